"""A copy that scores from its packed bits: products of whole numbers by AND and popcount, nothing unpacked.

A shadow (copies.py) stores the codes c of gate and up with b bits each. To read them takes b / 32 of the time of
float32. But BLAS multiplies floating-point numbers only, and to unpack the codes for it at every token takes about as
long as a float32 copy takes to be read. Whole numbers of few bits can be multiplied in another way. The input is
rounded, too, with one scale for the token:

    x_i ~ s (q_i - z)         q_i of a bits,  z = (2^a - 1) / 2,  s = max |x_i| / z

Both numbers are written bit by bit, c_ji = sum_k 2^k C_k[j, i] and q_i = sum_m 2^m Q_m[i]. Then

    sum_i c_ji q_i = sum_k sum_m 2^(k + m) popcount(C_k[j] & Q_m)

and one AND and one popcount of a 64-bit word do 64 products (Zhou et al. 2016, DoReFa-Net, arXiv 1606.06160, section
2.1). The sum is exact. With t = (2^b - 1) / 2, the shadow's product is

    w_j . x ~ scale_j s sum_i (c_ji - t) (q_i - z) = scale_j s (sum_i c_ji q_i - z sum_i c_ji - t sum_i q_i + D t z)

The work grows with a b. Few bits are enough for x, because its errors have no common direction: their sum over D
products stays small beside the sum itself.
"""

from __future__ import annotations

import numpy as np

from ..arguments import whole_number
from ..errors import MinillmError
from ..fields import Fields
from .copies import Shadow
from .layout import Layout, Shape
from .protocol import Predictor
from .quantise import unpack

INPUT_BITS = 4
TILE = 256 * 1024  # bytes of words that go through AND, popcount and sum while they lie in the core's own cache
WORD = 64  # bits of a word


def planes_of(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes bit by bit, 64 of a row in a word.  codes (n, D) below 2^bits  ->  planes (W, bits, n) uint64.

    W = ceil(D / 64). A row's last word is filled up with zeros. Neighbouring neurons are neighbours in memory, so that
    one call of NumPy works on all neurons.
    """
    rows, hidden = codes.shape
    padded = np.zeros((rows, -(-hidden // WORD) * WORD), np.uint8)
    padded[:, :hidden] = codes
    planes = [np.packbits(padded >> k & 1, axis=1).view(np.uint64) for k in range(bits)]  # bits times (n, W)
    return np.ascontiguousarray(np.stack(planes).transpose(2, 0, 1))


def products(planes: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """sum_m 2^m popcount(C_k[j] & Q_m) for every plane k.  planes (W, b, n), inputs (W, a, 1)  ->  (b, n) uint32.

    sum_k 2^k of it is the product with the codes. Both arrays are of ``planes_of``.
    """
    (words, b, n), a = planes.shape, inputs.shape[1]
    step = max(1, min(words, TILE // (8 * b * n)))
    both, ones = np.empty((step, b, n), np.uint64), np.empty((a, words, b, n), np.uint8)
    for start in range(0, words, step):
        some = planes[start : start + step]  # (step or fewer, b, n)
        for m in range(a):
            np.bitwise_and(some, inputs[start : start + step, m, :, None], out=both[: len(some)])
            np.bitwise_count(both[: len(some)], out=ones[m, start : start + step])
    total = np.zeros((b, n), np.uint32)
    for m in range(a):
        total += np.left_shift(ones[m].sum(axis=0, dtype=np.uint16), m, dtype=np.uint32)
    return total


def rounded(x: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """x rounded with one scale for each token, x ~ s (q - z).  x (T, D)  ->  q (T, D) uint8, s (T, 1)."""
    middle = (2**bits - 1) / 2
    scale = np.abs(x).max(axis=1, keepdims=True) / x.dtype.type(middle)  # (T, 1)
    scale = np.where(scale > 0, scale, 1).astype(x.dtype)
    return np.round(x / scale + x.dtype.type(middle)).astype(np.uint8), scale


class PackedShadow(Predictor):
    """A shadow that rounds its input and scores from packed bits (equations in the module's docstring).

    It is made from a shadow and has the same tables, in another order. Several tokens at once (a prompt, a text that is
    scored) go through the unpacked copy, with the same rounded inputs: one matrix product is faster there, and equal up
    to its rounding. Raises MinillmError for a shadow that reads the model's own gate.
    """

    def __init__(self, shadow: Shadow, input_bits: int = INPUT_BITS):
        if shadow.reads_gate:
            raise MinillmError(f"the predictor {shadow.name} reads the model's gate, expected a copy of gate and up")
        self.shadow, self.input_bits = shadow, whole_number("input_bits", input_bits, 1, 8)
        self.shape, self.cutoffs = shadow.shape, shadow.cutoffs
        self.trained_on, self.model = shadow.trained_on, shadow.model
        if self.shape[1] >= 2**16:
            raise MinillmError(f"the hidden size is {self.shape[1]}, expected less than 65536: counts are 16 bits")
        self.name = f"packed {shadow.name}"
        self._planes: dict[int, np.ndarray] = {}  # made once
        self._rows: dict[int, dict[str, np.ndarray]] = {}  # for each part: sum_i c_ji and scale_j (2, F)

    def planes(self, index: int) -> np.ndarray:
        """The planes of a layer's gate, then those of up: (W, b of gate + b of up, F). Made at their first use."""
        if index not in self._planes:
            tables, each, self._rows[index] = self.shadow.tables, [], {}
            for part, bits in self.shadow.bits.items():
                codes = unpack(tables[f"{part}_codes"][index], bits, self.shape[1])  # (F, D)
                each.append(planes_of(codes, bits))
                self._rows[index][part] = np.stack([codes.sum(axis=1), tables[f"{part}_scale"][index]]).astype(float)
            self._planes[index] = np.concatenate(each, axis=1)
        return self._planes[index]

    def predict(self, index: int, position: int, x: np.ndarray) -> np.ndarray:
        """x (T, D)  ->  the shadow's score for the rounded input (T, F)."""
        q, scale = rounded(x, self.input_bits)  # (T, D), (T, 1)
        if len(x) != 1:
            middle = x.dtype.type((2**self.input_bits - 1) / 2)
            return self.shadow.predict(index, position, (q.astype(x.dtype) - middle) * scale)
        sums = products(self.planes(index), planes_of(q, self.input_bits))  # (b of gate + b of up, F)
        tables, bits, each, first = self.shadow.tables, self.shadow.bits, {}, 0
        for part in bits:
            whole = 2.0 ** np.arange(bits[part]) @ sums[first : first + bits[part]]  # (F,): sum_i c_ji q_i
            first += bits[part]
            t, z = (2 ** bits[part] - 1) / 2, (2**self.input_bits - 1) / 2
            whole += (self.shape[1] * z - q.sum(dtype=np.float64)) * t - z * self._rows[index][part][0]
            each[part] = (whole * self._rows[index][part][1] * scale).astype(x.dtype, copy=False)  # (1, F)
            if f"{part}_bias" in tables:
                each[part] += tables[f"{part}_bias"][index]
        return self.shadow.expected(index, each["gate"], each["up"])

    @property
    def nbytes(self) -> int:
        """The shadow's tables: the planes hold the same bits."""
        return self.shadow.nbytes

    def multiply_adds(self, index: int) -> float:
        """2 F D products of whole numbers, each of a b pairs of bits, 32 of which count as one."""
        _, hidden, intermediate = self.shape
        return hidden * intermediate * self.input_bits * sum(self.shadow.bits.values()) / 32

    def arrays(self) -> dict[str, np.ndarray]:
        """The shadow's tables."""
        return self.shadow.arrays()

    def settings(self) -> dict:
        """The shadow's settings."""
        return self.shadow.settings()

    @classmethod
    def layout(cls, settings: Fields, shape: Shape) -> Layout:
        """Raises MinillmError: the shadow is what a file holds."""
        raise MinillmError("a packed shadow has no file of its own, expected that of its shadow")

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], settings: dict) -> PackedShadow:
        """The packed form of the shadow with these tables."""
        return cls(Shadow.from_arrays(arrays, settings))
