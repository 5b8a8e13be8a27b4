"""A Variant as a Hugging Face folder, with a file that says how it was made: pruning.json.

What a method did to the weights is in the folder, and transformers gives the same logits with it. A method that changes
how a block is computed (a FeedForward, a tap) leaves nothing that could be written there, and is refused in one
sentence.

The format has one width for all layers. Where a method has left layers of different widths F_l, all are written with
the largest: the neurons that a narrow layer lacks have weights 0, so they add nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MinillmError
from ..loading.save import how_made, save_model, source_fields
from ..trace import no_tap
from ..transformer.ffn import swiglu
from ..transformer.layer import Layer
from ..transformer.model import Llama
from .base import Variant

FORMAT, VERSION = "minillm-pruned", 1
ABOUT = "pruning.json"


def check_writable(variant: Variant) -> None:
    """Raise MinillmError where a folder of weights would not be what was made."""
    if variant.ffn is not swiglu or variant.tap is not no_tap:
        why = "changes how a block is computed while it runs, and that no folder of weights can hold"
        raise MinillmError(f"{variant.name} {why}; without -o it is fitted and scored")


def widened(layer: Layer, width: int) -> Layer:
    """The layer with neurons of weight 0 behind its own, ``width`` in all."""
    missing = width - len(layer.gate_proj)

    def bias(b: np.ndarray | None) -> np.ndarray | None:
        return None if b is None else np.pad(b, (0, missing))

    return replace(
        layer,
        gate_proj=np.pad(layer.gate_proj, ((0, missing), (0, 0))),  # (F, D)
        up_proj=np.pad(layer.up, ((0, missing), (0, 0))),  # (F, D)
        down_proj=np.pad(layer.down_proj, ((0, 0), (0, missing))),  # (D, F)
        gate_bias=bias(layer.gate_bias),
        up_bias=bias(layer.up_bias),
    )


def save_variant(out: str | Path, variant: Variant, model: Llama, about: Mapping[str, Any]) -> Path:
    """Write a Variant as a new folder (module docstring), complete or not at all; gives its path.

    model: the one that it was made from, whose tokenizer and config are copied. about: further facts for pruning.json.
    Raises MinillmError where the variant is more than its weights, the model has no folder, or ``out`` exists.
    """
    check_writable(variant)
    if model.folder is None:
        raise MinillmError("the model has no folder, expected one with a tokenizer to copy")
    layers = variant.model.layers
    width = max(len(layer.gate_proj) for layer in layers)
    weights = variant.model.weights
    for layer in layers:
        if len(layer.gate_proj) < width:
            weights |= widened(layer, width).weights()
    fields = source_fields(model.folder)
    if width != model.config.intermediate_size:
        fields["intermediate_size"] = width
    spec = variant.spec and variant.spec.asdict()
    facts = {"method": variant.name, "spec": spec, "stored": variant.stored, **about}
    text = json.dumps(how_made((FORMAT, VERSION), model.fingerprint, facts, variant.calibrated_on), indent=1)
    return save_model(out, weights, model.folder, fields, {ABOUT: f"{text}\n"})
