"""The oracle: the score of a neuron is what it will be.

    s_j = |act(x . gate_j) (x . up_j)| = |m_j|

It reads all of gate and up to know this, so it is not a method: it is the bound that predictors are compared with. With
its thresholds as cutoffs it is policy ``mid``.
"""

from __future__ import annotations

import numpy as np

from ..errors import MinillmError
from ..fields import Fields
from ..sparsity.thresholds import Thresholds
from ..transformer.ffn import mid_of
from ..transformer.model import Llama, shape_of
from .layout import Layout, Shape
from .protocol import LOOKAHEADS, Predictor


class Oracle(Predictor):
    """|mid| from the layer's own weights; with thresholds of policy mid, their levels are its cutoffs."""

    name, nbytes = "oracle", 0
    lookaheads, free = LOOKAHEADS, True  # a bound: it may know anything at any time

    def __init__(self, model: Llama, thresholds: Thresholds | None = None):
        self.layers, self.shape, self.model = model.layers, shape_of(model), model.fingerprint
        if thresholds is not None:
            self.cutoffs = np.array([layer["mid"] for layer in thresholds.layers])

    def predict(self, index: int, position: int, x: np.ndarray) -> np.ndarray:
        """x (T, D)  ->  |mid| (T, F)."""
        return np.abs(mid_of(x, self.layers[index]))  # (T, F)

    def multiply_adds(self, index: int) -> float:
        """Gate and up in full: 2 F D."""
        _, hidden, intermediate = self.shape
        return 2 * intermediate * hidden

    def arrays(self) -> dict[str, np.ndarray]:
        """No tables of its own."""
        return {}

    def settings(self) -> dict:
        """No settings."""
        return {}

    @classmethod
    def layout(cls, settings: Fields, shape: Shape) -> Layout:
        """Raises MinillmError: there is no file of an oracle."""
        raise MinillmError("the oracle has no tables of its own, expected a predictor that can be saved")

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], settings: dict) -> Oracle:
        """Raises MinillmError: an oracle is made from a model."""
        raise MinillmError("the oracle has no tables of its own, expected Oracle(model, thresholds)")
