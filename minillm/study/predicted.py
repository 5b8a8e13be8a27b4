"""A predictor in the place of the oracle, as a Variant: what it reads itself counts, too.

A token reads the tables of the predictor, and then the rows and columns of the neurons that it selects. With s the
share of the neurons that is selected and own the bytes of the tables over those of the FFNs at 16 bits per weight:

    read per token  =  own + s             s = 1 - target - own, so that a share ``target`` of the bytes is not read
    read per token  =  own + 1/3 + 2/3 s   where the predictor reads the layer's own gate in full

So the same target means the same bytes as for a policy by reads (calibrate.py) or for a method: a predictor with large
tables may select fewer neurons. The tables are stored beside the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import MinillmError
from ..methods.base import WEIGHT_BYTES, Variant, stored_bytes
from ..predictors.catalogue import entry_of
from ..predictors.cutoffs import fit_cutoffs
from ..predictors.select import sparse_ffn
from ..sparsity.selected import SelectedFFN
from ..sparsity.spec import SparsitySpec
from ..trace import Tap, no_tap
from ..transformer.ffn import FeedForward
from ..transformer.layer import Layer
from ..transformer.model import Llama
from .prediction import PredictionSettings, workshop_of

TRUTH = 0.5  # share of the neurons that the true mask cuts: what trained predictors learn, whatever is selected later


def is_predictor(name: str) -> bool:
    """Whether a name is one of the predictors of the catalogue."""
    return entry_of(name) is not None


@dataclass(frozen=True, eq=False)
class WithTables:
    """A FeedForward that reports the reads of another one and ``own`` more: a predictor's tables, as a share."""

    ffn: FeedForward
    own: float

    def __call__(self, x: np.ndarray, layer: Layer, position: int = 0, tap: Tap = no_tap) -> np.ndarray:
        """x (T, D)  ->  (T, D)."""

        def counted(name: str, value: np.ndarray) -> np.ndarray:
            return tap(name, value + self.own if name == "reads" else value)

        return self.ffn(x, layer, position, no_tap if tap is no_tap else counted)


def predictor_variant(
    name: str, model: Llama, documents: str | Sequence[str], target: float, context: int | None = None
) -> Variant:
    """Make a predictor of the catalogue, and the Variant in which it selects the neurons (module docstring).

    documents: split here into those that it learns from and those that its cutoffs are fitted on. target: share of the
    FFNs' bytes that a token does not read. Raises MinillmError for an unknown name, and where the tables alone are
    more than may be read.
    """
    workshop = workshop_of(model, documents, PredictionSettings(TRUTH), context)
    predictor = workshop.make(name)
    own = predictor.nbytes / (WEIGHT_BYTES * model.parameters["ffn"])
    fixed = 1 / 3 if predictor.reads_gate else 0.0
    selected = (1 - target - own - fixed) / (1 - fixed)
    if selected <= 0:
        read = f"reads {own + fixed:.3f} of the weights' bytes to know its neurons"
        raise MinillmError(f"the predictor {name} {read}, expected less than {1 - target:.3f}: its target is too high")
    fit_cutoffs(model, predictor, workshop.thresholds, workshop.held, selected, context)
    ffn = sparse_ffn(model, workshop.thresholds, predictor=predictor)
    assert isinstance(ffn, SelectedFFN)
    spec = SparsitySpec(
        name, ("mid",), "predicted", "reads", target,
        granularity=f"one cutoff per layer, one decision per token and neuron by {predictor.name}",
    )  # fmt: skip
    stored = stored_bytes(model, model.layers)["dense"] + predictor.nbytes
    return Variant(
        name, model, WithTables(ffn, own), spec=spec, stored={"dense": stored}, calibrated_on=ffn.calibrated_on
    )
