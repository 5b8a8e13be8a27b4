"""Small copies of a matrix: rounded to few bits, or of low rank, made for the inputs that it will meet.

A copy of gate and up can say which neurons of the real layer are worth reading (copies.py). How good a copy is depends
on its inputs. The inputs x of a layer are far from round: a few directions hold most of their energy. The error that
counts for a row w and its copy q is

    mean_t (x_t . w - x_t . q)^2 = (w - q) H (w - q)^T        H = mean_t x_t^T x_t   (D, D), on a training text

so both kinds of copy take H where it is given. Without it, H = 1: the plain rounding and the plain SVD.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import MinillmError
from ..sparsity.sparse import policy_ffn
from ..sparsity.thresholds import Thresholds
from ..steps import place
from ..transformer.evaluation import pass_over
from ..transformer.finite import are_numbers
from ..transformer.model import Llama, shape_of
from ..transformer.ops import no_warnings
from ..transformer.texts import runs


def second_moments(
    model: Llama, thresholds: Thresholds, documents: str | Sequence[str], context: int | None = None
) -> np.ndarray:
    """H = mean_t x_t^T x_t of the FFN inputs of every layer, in the model as it is cut: (L, D, D) float64."""
    layers, hidden, _ = shape_of(model)
    total, tokens = np.zeros((layers, hidden, hidden)), np.zeros(layers)

    def tap(name: str, value: np.ndarray) -> np.ndarray:
        at = place(name)
        if at and at.step == "mlp.norm":
            total[at.layer] += value.T @ value
            tokens[at.layer] += len(value)
        return value

    pass_over(model, runs(model, documents, "documents", context), tap, policy_ffn(model, thresholds), "second moments")
    return total / tokens[:, None, None]


def pack(codes: np.ndarray, bits: int = 1) -> np.ndarray:
    """Whole numbers below 2^bits, packed without gaps on the last axis: (..., n) -> (..., ceil(n bits / 8)) uint8.

    The first number takes the lowest bits of the first byte. Three numbers of 3 bits, 9 bits in all, take two bytes:
    5 = 101, 3 = 011 and 7 = 111 in binary, so the bytes are 11 011 101 (the two low bits of the 7 in front) and 1.

    >>> packed = pack(np.array([5, 3, 7]), bits=3)
    >>> [f"{byte:08b}" for byte in packed]
    ['11011101', '00000001']
    >>> unpack(packed, bits=3, count=3).tolist()
    [5, 3, 7]
    >>> pack(np.array([True, False, True])).tolist()  # a mask: one bit each
    [5]
    """
    each = np.unpackbits(codes.astype(np.uint8)[..., None], axis=-1, count=bits, bitorder="little")  # (..., n, bits)
    return np.packbits(each.reshape(*codes.shape[:-1], -1), axis=-1, bitorder="little")


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The inverse of ``pack``: (..., ceil(count bits / 8)) uint8 -> (..., count) uint8."""
    each = np.unpackbits(packed, axis=-1, count=count * bits, bitorder="little")
    each = each.reshape(*packed.shape[:-1], count, bits)
    return np.packbits(each, axis=-1, bitorder="little")[..., 0]


def check_table(table: np.ndarray, what: str) -> np.ndarray:
    """The same table. Raises MinillmError, with ``what`` was to be stored, where it is more than float16 holds."""
    if table.dtype.kind == "f" and not are_numbers(table):
        raise MinillmError(f"{what} is too large for the float16 tables of a predictor, expected at most 65504")
    return table


def with_unit_mean(moment: np.ndarray) -> np.ndarray:
    """H scaled to a mean of 1 on its diagonal; zeros (of inputs that are all zero) stay.  (D, D)  ->  (D, D)."""
    return moment / (np.trace(moment) or 1) * len(moment)


@no_warnings  # what outgrows a float16 is refused by check_table
def quantise(
    weight: np.ndarray, bits: int, moment: np.ndarray | None = None, sweeps: int = 12
) -> tuple[np.ndarray, np.ndarray]:
    """Round each row w to q = scale (code - (2^bits - 1) / 2), looking for the least (w - q) H (w - q)^T.

    First, codes by nearest rounding, at the best of some scales for H's diagonal. Then, in turns:
    - one column at a time, with all others as they are. With r = (w - q) H, the best value of column j is
      q_j + r_j / H_jj; the nearest value that a code can have is taken. An error made in one column is corrected by
      the columns that go with it.
    - the scale, by least squares: (w H c^T) / (c H c^T), c = the codes' values.
    No step makes the error larger. (Frantar et al. 2022, GPTQ, arXiv 2210.17323, does the first in one sweep.)

    weight (F, D), moment (D, D) or None for the identity  ->  codes (F, D) uint8, scale (F,) float16.
    """
    w, top = weight.astype(np.float64), (2**bits - 1) / 2
    H = np.eye(w.shape[1]) if moment is None else with_unit_mean(moment)
    H = H + 1e-3 * np.eye(len(H))  # a direction that never occurs in the text counts a little, too

    def nearest(values: np.ndarray, scale: np.ndarray | float) -> np.ndarray:
        return np.clip(np.round(values / scale + top), 0, 2 * top) - top

    largest = np.maximum(np.abs(w).max(axis=1), 1e-4)  # (F,); float16 has no scale near 0
    scale, least = largest, np.full(len(w), np.inf)
    for share in np.linspace(0.3, 1.1, 41):
        tried = share * largest / top  # (F,)
        error = ((w - nearest(w, tried[:, None]) * tried[:, None]) ** 2 * np.diag(H)).sum(axis=1)
        scale, least = np.where(error < least, tried, scale), np.minimum(error, least)
    scale = scale.astype(np.float16).astype(np.float64)
    code = nearest(w, scale[:, None])  # (F, D), as values around 0
    for _ in range(sweeps if moment is not None else 0):
        r = (w - code * scale[:, None]) @ H  # (F, D)
        for j in range(w.shape[1]):
            better = nearest(code[:, j] + r[:, j] / (H[j, j] * scale), 1.0)
            r -= np.outer((better - code[:, j]) * scale, H[j])
            code[:, j] = better
        codeH = code @ H
        refined = (codeH * w).sum(axis=1) / np.maximum((codeH * code).sum(axis=1), 1e-30)
        # A float16 has no number near 0: there, the scale stays as it is.
        scale = np.where(refined.astype(np.float16) > 0, refined, scale).astype(np.float16).astype(np.float64)
    return (code + top).astype(np.uint8), scale.astype(np.float16)


@no_warnings
def low_rank(weight: np.ndarray, rank: int, moment: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The best A (F, r) B (r, D) for a weight (F, D): least (w - q) H (w - q)^T over all rows, by one SVD.

    H = R R^T (Cholesky);  W R = U S V^T;  A = (U S)_r,  B = V_r^T R^-1        (H = 1: Eckart and Young 1936)
    """
    w = weight.astype(np.float64)
    H = np.eye(w.shape[1]) if moment is None else with_unit_mean(moment)
    R = np.linalg.cholesky(H + 1e-6 * np.eye(len(H)))
    u, s, vt = np.linalg.svd(w @ R, full_matrices=False)
    root = np.sqrt(s[:rank])  # shared between the two, so that neither is too large or too small for a float16
    b = np.linalg.solve(R.T, (root[:, None] * vt[:rank]).T).T  # (r, D)
    return (u[:, :rank] * root).astype(np.float16), b.astype(np.float16)
