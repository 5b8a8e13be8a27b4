"""The sign predictor: one bit per weight of the gate (SparseInfer, arXiv 2411.12692).

It counts how many signs of x and of the gate's row agree:

    N_neg = popcount(sign(x) XOR sign(gate_j))        s_j = N_pos - N_neg = D - 2 N_neg

which is x . gate_j with every magnitude set to 1. No training, no multiplication: the signs are packed 8 to a byte, and
a row costs D / 8 bytes. Written for ReLU, where a negative gate is exactly zero; with SiLU it is only small.

Counts have ties, and a share between two counts could not be selected. So a fixed fraction of 1 is added for each
neuron, the fractional part of j times the golden ratio: it orders equal counts and changes nothing else.

Differs from the paper: its rule N_neg > alpha N_pos is our cutoff, one per layer.
"""

from __future__ import annotations

import numpy as np

from ..fields import Fields
from ..transformer.model import Llama, shape_of
from .layout import Layout, Shape, Table, check_shape, sizes_of
from .protocol import Predictor
from .quantise import pack

PAIRS = 1 << 20  # (token, neuron) pairs whose XOR is held at once
GOLDEN = (5**0.5 - 1) / 2


class Sign(Predictor):
    """s_j = D - 2 N_neg, from one bit per weight of the gate (equations in the module's docstring)."""

    name = "sign"

    def __init__(self, shape: tuple[int, int, int], bits: np.ndarray):
        layers, hidden, intermediate = shape
        self.shape, self.bits = (layers, hidden, intermediate), bits
        self._order = (np.arange(intermediate) * GOLDEN % 1).astype(np.float32)

    @classmethod
    def fit(cls, model: Llama) -> Sign:
        """Pack the signs of every gate matrix: (L, F, D) -> (L, F, D / 8) bytes."""
        predictor = cls(shape_of(model), np.stack([pack(np.signbit(layer.gate_proj)) for layer in model.layers]))
        predictor.model = model.fingerprint
        return predictor

    def disagreements(self, index: int, x: np.ndarray) -> np.ndarray:
        """N_neg of every token and neuron: x (T, D)  ->  counts (T, F)."""
        signs, rows = pack(np.signbit(x)), max(1, PAIRS // self.shape[2])  # (T, D / 8)
        blocks = (signs[a : a + rows, None] ^ self.bits[index] for a in range(0, len(x), rows))  # (rows, F, D / 8)
        return np.concatenate([np.bitwise_count(block).sum(axis=-1, dtype=np.int32) for block in blocks])

    def predict(self, index: int, position: int, x: np.ndarray) -> np.ndarray:
        """x (T, D)  ->  signs that agree minus signs that do not, and the order of ties (T, F)."""
        return (self.shape[1] - 2 * self.disagreements(index, x)).astype(np.float32) + self._order

    @property
    def nbytes(self) -> int:
        """One bit per weight of the gate."""
        return self.bits.nbytes

    def multiply_adds(self, index: int) -> float:
        """F D operations on single bits, 32 of which count as one."""
        _, hidden, intermediate = self.shape
        return intermediate * hidden / 32

    def arrays(self) -> dict[str, np.ndarray]:
        """The packed signs."""
        return {"bits": self.bits}

    def settings(self) -> dict:
        """The shape."""
        return {"shape": self.shape}

    @classmethod
    def layout(cls, settings: Fields, shape: Shape) -> Layout:
        """The packed signs, B = D / 8 bytes a row."""
        settings.only(["shape"])
        check_shape(settings, shape)
        return Layout({"bits": Table("LFB", ("U8",))}, sizes_of(shape) | {"B": -(-shape[1] // 8)})

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], settings: dict) -> Sign:
        """The predictor with these packed signs."""
        return cls(settings["shape"], arrays["bits"])
