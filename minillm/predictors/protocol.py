"""What a predictor is.

A predictor gives every neuron of a layer a score before the layer is computed, larger where the neuron is likelier to
matter. The neurons above the layer's cutoff are selected (select.py):

    s = predict(layer, x)    x (T, D)  ->  s (T, F)
    neuron j is selected where  s_j > cutoff[layer]

A score needs no scale of its own, because the cutoffs are quantiles of the scores (cutoffs.py). How well the selected
neurons match the active ones is counted in metrics.py. A predictor is an ordinary class that subclasses Predictor;
the members that it does not define have the defaults given there.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ..errors import MinillmError
from ..fields import Fields
from ..identity import Fingerprint
from ..transformer.model import Llama, shape_of
from .layout import Layout, Shape

LOOKAHEADS = ("layer", "token")  # a guess for layer l of token t is made at layer l - 1, or already at token t - 1


class Predictor(Protocol):
    """Scores neurons in advance. One object serves one text at a time: position 0 starts a new text, with fresh state.

    name: as in the table. shape: (L, D, F) of the model it is for. cutoffs (L,): neuron j is selected where its score
    is above the layer's cutoff; fit_cutoffs sets them. trained_on: hashes of the documents behind its tables and
    cutoffs. model: whose tables and cutoffs they are; None in files that are older than this field. The traits below
    say what it needs and what it can do; a predictor sets those that differ from the default.
    """

    name: str
    shape: tuple[int, int, int]
    cutoffs: np.ndarray | None = None
    trained_on: frozenset[str] = frozenset()
    model: Fingerprint | None = None
    sequential: bool = False  # rows must be shown one at a time, each observed before the next is predicted
    needs_truth: bool = False  # observe() must get the true mask
    reads_gate: bool = False  # it reads the layer's own gate in full; an FFN that reads from disk does not have it
    lookaheads: tuple[str, ...] = ()  # how early it can guess: see LOOKAHEADS; () needs the layer's own input
    selects: bool = True  # False for a guess that is too poor to select neurons: it only says what to prefetch
    free: bool = False  # True for a bound whose work and reads are not counted

    def attach(self, model: Llama) -> None:
        """Give it the model before use. By default it needs nothing of the model."""
        return None

    def predict(self, index: int, position: int, x: np.ndarray) -> np.ndarray:
        """x (T, D), the FFN's normed input at layer ``index``, its first row at ``position``  ->  scores (T, F)."""

    def observe(self, index: int, position: int, x: np.ndarray, mask: np.ndarray | None) -> None:
        """Called after the layer was computed; mask (T, F) is the true one where needs_truth, else None.

        By default: no state to update.
        """
        return None

    @property
    def nbytes(self) -> int:
        """Bytes of its own tables as they are stored (packed), the cutoffs not counted."""

    def multiply_adds(self, index: int) -> float:
        """Multiply-adds per token at that layer; 32 operations on single bits count as one."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Its tables, by name; together with settings() all that from_arrays needs."""

    def settings(self) -> dict:
        """The rest, as JSON values."""

    @classmethod
    def layout(cls, settings: Fields, shape: Shape) -> Layout:
        """The tables of its file; raises an error of settings' kind for a setting that is unknown or out of range."""

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], settings: dict) -> Predictor:
        """The same predictor again, from tables and settings that fit ``layout``."""


def check_fits(predictor: Predictor, model: Llama) -> None:
    """Raise MinillmError when the predictor is for another number of layers, hidden size or intermediate size.

    Warns where it was made for another model of the same shape.

    One that reads a part of the layer itself (its own gate, for instance) is given the model here: see attach.
    """
    if tuple(predictor.shape) != shape_of(model):
        found = f"the predictor {predictor.name} is for (layers, hidden, intermediate) {tuple(predictor.shape)}"
        raise MinillmError(f"{found}, the model has {shape_of(model)}: it belongs to another model")
    if predictor.model is not None:
        predictor.model.check(model.fingerprint, f"the predictor {predictor.name}")
    predictor.attach(model)
