"""A model that is trained for its cut: what is cut, the training, and the folder that all commands take.

Two kinds of cuts can be in the loop:

    a policy at a share     the thresholds are found on the training text, and stay as they are while the weights change
    blocks of g neurons     each token keeps the blocks that a router chooses (route.py), or its best ones
                            (prefetch/reorder.py: a free oracle). First the neurons are put into an order in which those
                            that matter for the same tokens are neighbours. The tuned model is stored in this order, so
                            that its blocks are read as they lie

The folder is a Hugging Face folder with more files: training.json says how it was made, thresholds.json holds the cut
that the model has learnt to live with, and router.safetensors the router that chooses its blocks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import MinillmError
from ..identity import Fingerprint
from ..loading.save import Content, how_made, save_model
from ..predictors.files import save_predictor
from ..predictors.router import Router
from ..prefetch.reorder import clustered, energy_shares, recorded_mid
from ..sparsity.thresholds import Thresholds
from ..tables import json_rows
from ..transformer.layer import Layer
from ..transformer.model import Llama
from .trainer import Trained

FORMAT, VERSION = "minillm-trained", 1
ABOUT, THRESHOLDS = "training.json", "thresholds.json"
ROUTER = "router.safetensors"
GROUPING_TOKENS = 2000  # of the text that the order of the neurons is found on


class Settings(NamedTuple):
    """What a tuned model's FFN runs with: thresholds, and a router that chooses blocks (then they say what is true)."""

    thresholds: Thresholds | None = None
    router: Router | None = None


def in_order(layer: Layer, order: np.ndarray) -> Layer:
    """A layer with its neurons in another order: the same function, summed in that order.  order (F,): old places."""
    biases = {name: bias[order] for name in ("gate_bias", "up_bias") if (bias := getattr(layer, name)) is not None}
    return replace(layer, gate_proj=layer.gate_proj[order], up_proj=layer.up[order],
                   down_proj=np.ascontiguousarray(layer.down_proj[:, order]), **biases)  # fmt: skip


def grouped(model: Llama, documents: str | Sequence[str], group: int, share: float, seed: int = 0) -> Llama:
    """The model with neurons stored so that blocks of ``group`` neighbours keep the most, ``share`` of them kept."""
    mids, rng = recorded_mid(model, documents, GROUPING_TOKENS), np.random.default_rng(seed)
    weights = model.weights
    for mid, layer in zip(mids, model.layers, strict=True):
        order = clustered(energy_shares(mid, layer), group, rng, share)
        weights = weights | in_order(layer, order).weights()
    made = Llama(model.config, weights, model.folder)
    made.bos = model.bos
    return made


def save_trained(
    out: str | Path, trained: Trained, began_with: Fingerprint, about: Mapping[str, Any],
    settings: Settings | None = None, fields: Mapping[str, Any] | None = None,
) -> Path:  # fmt: skip
    """Write a trained model as a new folder (module docstring), complete or not at all; gives its path.

    about: further facts for training.json. settings: what the FFN runs with; its thresholds are written as the new
    model's own, with the hashes of the training text. fields: of config.json; None: those of the model's folder.
    """
    model, batches = trained.model, trained.batches
    if model.folder is None:
        raise MinillmError("the model has no folder, expected one with a tokenizer to copy")
    known = sorted(batches.documents_sha256)
    facts = {"plan": asdict(trained.plan), "batch": batches.tokens, "seed": batches.seed, **about}
    text = json.dumps(how_made((FORMAT, VERSION), began_with, facts, known), indent=1)
    curve = json_rows(trained.curve).replace("\n", "\n  ")
    more: dict[str, Content] = {ABOUT: f'{text[:-2]},\n "curve": {curve}\n}}\n'}
    thresholds, router = settings or Settings()
    if router is not None:
        more[ROUTER] = partial(save_predictor, predictor=router)
    if thresholds is not None:
        seen = tuple(sorted({*thresholds.documents_sha256, *known}))
        more[THRESHOLDS] = replace(thresholds, model=model.fingerprint, documents_sha256=seen).as_json()
    return save_model(out, model.weights, model.folder, fields, more)
