"""Small copies of a matrix: rounded to few bits, or of low rank, made for the inputs that it will meet.

A copy of gate and up can say which neurons of the real layer are worth reading (copies.py). How good a copy is depends
on its inputs. The inputs x of a layer are far from round: a few directions hold most of their energy. The error that
counts for a row w and its copy q is

    mean_t (x_t . w - x_t . q)^2 = (w - q) H (w - q)^T        H = mean_t x_t^T x_t   (D, D), on a training text

so both kinds of copy take H where it is given. Without it, H = 1: the plain rounding and the plain SVD. Rounding then
works as GPTQ does (Frantar et al. 2022, arXiv 2210.17323): the error of a column is made good by the columns that come
after it, since inputs that go together can stand in for each other.
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

DAMPING = 0.01  # of the mean of H's diagonal, added to it


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


def damped(moment: np.ndarray | None, hidden: int) -> np.ndarray:
    """H for rounding: a mean of 1 on its diagonal, plus DAMPING there; 1 where it is unknown.  (D, D)  ->  (D, D).

    A direction that never occurs in the training text counts a little, too, and H has an inverse.
    """
    H = np.eye(hidden) if moment is None else with_unit_mean(moment)
    return H + DAMPING * np.eye(hidden)


def nearest(values: np.ndarray, levels: int) -> np.ndarray:
    """Each number rounded to one of that many levels, which stand one apart around 0: 4 levels are -1.5, -.5, .5, 1.5.

    >>> nearest(np.array([0.9, -0.2, 7.0]), levels=4)
    array([ 0.5, -0.5,  1.5])
    """
    top = (levels - 1) / 2
    return np.clip(np.round(values + top), 0, 2 * top) - top


def rounding_order(H: np.ndarray) -> np.ndarray:
    """The columns by how much they count, H_jj, the largest first: an early column finds most others still free."""
    return np.argsort(-np.diag(H), kind="stable")


def spread(H: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The upper triangle U with U^T U = H^-1, columns in this order: how an error spreads over what comes later.

    Say that column j was rounded and its value is off by d_j. The best that the columns after it can do, which are
    still free, is to move by

        - d_j U[j, j+1:] / U[j, j]        and what remains of the error is (d_j / U[j, j])^2

    so the sum of these squares over all columns is the whole error (w - q) H (w - q)^T.
    """
    return np.linalg.cholesky(np.linalg.inv(H[np.ix_(order, order)])).T


def compensated(w: np.ndarray, scale: np.ndarray, levels: int, H: np.ndarray) -> np.ndarray:
    """Round one column after the other; the error of a column is made good by those that are not yet rounded.

    (Frantar et al. 2022, GPTQ, arXiv 2210.17323, algorithm 1; see ``spread``.) With H = 1 nothing is spread, and each
    weight takes the nearest level.

    w (F, D), scale (F,), H (D, D), damped  ->  levels around 0, (F, D).

    >>> w, H = np.array([[0.9, 0.9]]), np.array([[2.0, 1.0], [1.0, 2.0]])
    >>> nearest(w, levels=4)  # off by (.4, .4); the error that counts is .96
    array([[0.5, 0.5]])
    >>> compensated(w, np.ones(1), 4, H)  # .9 + .4 H_12 / H_22 = 1.1 takes the level above; off by (.4, -.6): .56
    array([[0.5, 1.5]])
    """
    order = rounding_order(H)
    U, rest, code = spread(H, order), (w / scale[:, None]).T[order], np.empty(w.shape)  # (D, D), (D, F), (F, D)
    for j, column in enumerate(order):
        code[:, column] = nearest(rest[j], levels)
        rest[j + 1 :] -= np.outer(U[j, j + 1 :] / U[j, j], rest[j] - code[:, column])
    return code


def improved(
    w: np.ndarray, code: np.ndarray, scale: np.ndarray, levels: int, H: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One turn that makes (w - q) H (w - q)^T smaller, q = scale code: first the codes, then the scale.

    - One column at a time, with all others as they are. With r = (w - q) H, the best value of column j is
      q_j + r_j / H_jj; the nearest level is taken.
    - The scale, by least squares.

    w, code (F, D), scale (F,), H (D, D)  ->  code (F, D), scale (F,).
    """
    code = code.T.copy()  # (D, F): a column of the weight is then one row in memory
    r = H @ (w.T / scale - code)  # (D, F), in units of the scale
    for j in rounding_order(H):
        better = nearest(code[j] + r[j] / H[j, j], levels)
        r -= np.outer(H[j], better - code[j])
        code[j] = better
    return code.T, best_scale(w, code.T, scale, H)


def best_scale(w: np.ndarray, code: np.ndarray, scale: np.ndarray, H: np.ndarray) -> np.ndarray:
    """The scale of each row by least squares, (w H c^T) / (c H c^T), as a float16 can hold it.

    w, code (F, D), scale (F,), H (D, D)  ->  (F,). A float16 has no number near 0: there, the scale stays as it is.
    """
    codeH = code @ H
    refined = np.vecdot(codeH, w) / np.maximum(np.vecdot(codeH, code), 1e-30)
    return np.where(refined.astype(np.float16) > 0, refined, scale).astype(np.float16).astype(np.float64)


def first_scale(w: np.ndarray, levels: int, weights: np.ndarray) -> np.ndarray:
    """For each row the best of some scales, if each weight took its nearest level: w (F, D), weights (D,)  ->  (F,)."""
    largest = np.maximum(np.abs(w).max(axis=1), 1e-4)  # (F,); float16 has no scale near 0
    scale, least = largest, np.full(len(w), np.inf)
    for share in np.linspace(0.3, 1.1, 41):
        tried = share * largest / ((levels - 1) / 2)  # (F,)
        missed = w - nearest(w / tried[:, None], levels) * tried[:, None]
        error = (missed**2 * weights).sum(axis=1)
        scale, least = np.where(error < least, tried, scale), np.minimum(error, least)
    return scale.astype(np.float16).astype(np.float64)


@no_warnings  # what outgrows a float16 is refused by check_table
def quantise(
    weight: np.ndarray, bits: int, moment: np.ndarray | None = None, turns: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """Round each row w to q = scale (code - (2^bits - 1) / 2), looking for the least (w - q) H (w - q)^T.

    The scale comes from a search, the codes from compensated rounding, and a few turns improve both. Without a moment,
    H = 1: each weight takes the nearest level.

    weight (F, D), moment (D, D) or None for the identity  ->  codes (F, D) uint8, scale (F,) float16.
    """
    w, levels, H = weight.astype(np.float64), 2**bits, damped(moment, weight.shape[1])
    scale = first_scale(w, levels, np.diag(H))
    code = compensated(w, scale, levels, H)
    for _ in range(turns if moment is not None else 0):
        code, scale = improved(w, code, scale, levels, H)
    return (code + (levels - 1) / 2).astype(np.uint8), scale.astype(np.float16)


@no_warnings  # as above
def low_rank(weight: np.ndarray, rank: int, moment: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """``factors`` in float16: A (F, r), B (r, D)."""
    a, b = factors(weight, rank, moment)
    return a.astype(np.float16), b.astype(np.float16)


@no_warnings
def factors(weight: np.ndarray, rank: int, moment: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The best A (F, r) B (r, D) for a weight (F, D): least (w - q) H (w - q)^T over all rows, by one SVD.

    H = R R^T (Cholesky);  W R = U S V^T;  A = (U S)_r,  B = V_r^T R^-1        (H = 1: Eckart and Young 1936)

    moment (D, D): H up to a factor; None for H = 1. A millionth of its mean diagonal is added to its diagonal, so that
    a singular H has an inverse. float64.
    """
    w = weight.astype(np.float64)
    one = np.eye(w.shape[1])
    R = one if moment is None else np.linalg.cholesky(with_unit_mean(moment) + 1e-6 * one)
    u, s, vt = np.linalg.svd(w @ R, full_matrices=False)
    root = np.sqrt(s[:rank])  # shared between the two, so that neither is too large or too small for a float16
    b = np.linalg.solve(R.T, (root[:, None] * vt[:rank]).T).T  # (r, D)
    return u[:, :rank] * root, b
