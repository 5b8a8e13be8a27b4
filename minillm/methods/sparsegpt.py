"""SparseGPT: remove weights, and let those that stay make up for it.

Frantar and Alistarh 2023 (SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot, arXiv 2301.00774,
algorithm 1). Wanda (wanda.py) leaves the kept weights as they are. Here they change. For a row w of a matrix, its
pruned form q, and the inputs x_t of a calibration text, the error of the output is

    sum_t (x_t . w - x_t . q)^2 = (w - q) H (w - q)^T        H = X^T X     (in, in)

    H^-1 = U^T U                                             U: upper triangle, by Cholesky

The columns are visited from left to right. Column j was visited: its weight is fixed. If it was removed, the columns
after it, which are still free, move by the best amount (Optimal Brain Surgeon):

    e = w_j / U_jj        w_k <- w_k - e U_jk    for k >= j        so w_j becomes 0
    what remains of the error is e^2

**Which weights go.** Those with the smallest w_j^2 / U_jj^2, the error that remains. At the first column of each block
of 128, the smallest share p of the block's weights is chosen, all rows together, on the weights as they are by then.
With a pattern N:M, each group of M chooses in every row, when its first column is reached.

    W (out, in), H (in, in)  ->  W with out * floor(p * in) zeros, as many as Wanda makes; other weights are new

Of them, out * (floor(p * b) - floor(p * a)) lie in the block of the columns from a to b.

**ISC** (Shao et al. 2023, One-Shot Sensitivity-Aware Mixed Sparsity Pruning, arXiv 2310.09499, eq. 4) is another choice
with the same updates:

    w_j^2 (H_jj + 1 / [H^-1]_jj)        ISC / (w_j^2 H_jj) lies between 1 and 2

since 1 <= H_jj [H^-1]_jj always. So ISC orders the weights nearly as the square of Wanda's score does.

**Exact least squares.** For a given mask, the best weights of a row have a closed form. With K the kept ones:

    q_K = (w H)_K [H_KK]^-1

``wanda-exact`` takes Wanda's mask and these weights. It solves one system for each row. SparseGPT shares one H^-1 among
all rows, and a weight cannot be changed any more by a removal to its right: its error is larger than the exact one.

**Damping.** H of a short text has no inverse. One per cent of its mean diagonal is added to the diagonal, so every H
has one. An input that never occurs then keeps small scores, and its weights are among the first to go.

Pitfalls. A smaller error of a layer's output is no promise for the perplexity. The result depends on the order of the
columns and on the size of the block. Since the weights change, there is nothing of the dense model to go back to. With
H = 1 nothing is updated: that is magnitude pruning, but per block and not per row.

Differs from the released code: a matrix loses as many weights as with Wanda, so that both can be compared. There, a
block loses floor(p * size) and the weight at the limit, which is more: at p = 0.7 and 64 inputs 0.700, not 0.688.
Differs from the released code: inputs that never occur are damped like others; there, their weights are set to zero.
Differs from the released code of ISC: [H^-1]_jj is the diagonal of the inverse, as in the paper; there, it is U_jj.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from ..errors import MinillmError
from ..predictors.quantise import damped, spread
from ..sparsity.spec import SparsitySpec
from ..transformer.layer import Layer
from ..transformer.model import Llama
from ..transformer.texts import document_hashes, runs
from .base import Variant, layer_by_layer, products, weights_variant
from .wanda import check_pattern, checked, count_of, removed_weights, scores, smallest, weights_spec

BLOCK = 128  # columns whose weights are compared with each other
Saliency = Callable[[np.ndarray, np.ndarray], np.ndarray]


# ---- which weights go ------------------------------------------------------------------------------------------------
def obs(H: np.ndarray, U: np.ndarray) -> np.ndarray:
    """1 / U_jj^2: the error that remains when a weight of 1 goes.  H, U (in, in)  ->  (in,)."""
    return 1 / np.square(np.diag(U))


def isc(H: np.ndarray, U: np.ndarray) -> np.ndarray:
    """H_jj + 1 / [H^-1]_jj, with H^-1 = U^T U (arXiv 2310.09499, eq. 4).  H, U (in, in)  ->  (in,)."""
    return np.diag(H) + 1 / np.square(U).sum(axis=0)


SALIENCIES: dict[str, Saliency] = {"OBS": obs, "ISC": isc}
WORDS = {"OBS": "w_ij^2 / U_jj^2", "ISC": "w_ij^2 (H_jj + 1 / [H^-1]_jj)"}


# ---- one matrix ------------------------------------------------------------------------------------------------------
def compensated(
    matrix: np.ndarray, moment: np.ndarray, target: float, pattern: tuple[int, int] | None = None,
    saliency: Saliency = obs, block: int = BLOCK,
) -> np.ndarray:  # fmt: skip
    """Remove weights column by column; those to the right make up for it (module docstring).

    matrix (out, in), moment H (in, in), up to a factor  ->  (out, in) float64. Raises MinillmError where
    the M of a pattern (N, M) does not divide the inputs.
    """
    inputs = matrix.shape[1]
    if pattern is not None:
        check_pattern(inputs, pattern)
    H = damped(moment, inputs)
    U = spread(H, np.arange(inputs))
    weight = saliency(H, U)[:, None]  # (in, 1)
    rest = matrix.T.astype(np.float64)  # (in, out): a column of the matrix is then one row in memory
    gone = np.zeros(rest.shape, bool)
    for start in range(0, inputs, block):
        end = min(start + block, inputs)
        if pattern is None:
            values = np.square(rest[start:end]) * weight[start:end]  # (block, out)
            count = len(matrix) * (count_of(target, end) - count_of(target, start))
            gone[start:end] = smallest(values.ravel(), count).reshape(values.shape)
        errors = np.zeros((end - start, len(matrix)))  # e of every column and row
        for j in range(start, end):
            if pattern is not None and j % pattern[1] == 0:
                group = slice(j, j + pattern[1])
                gone[group] = removed_weights((np.square(rest[group]) * weight[group]).T, target, pattern).T
            errors[j - start] = np.where(gone[j], rest[j], 0) / U[j, j]  # (out,)
            rest[j + 1 : end] -= np.outer(U[j, j + 1 : end], errors[j - start])
        rest[end:] -= U[start:end, end:].T @ errors  # later blocks, once for the whole block
    return np.where(gone, 0, rest).T


def exact(matrix: np.ndarray, moment: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """The best weights for a mask: q_K = (w H)_K [H_KK]^-1, row by row.

    matrix (out, in), moment H (in, in), up to a factor; gone (out, in) bool, True where a weight is removed
    ->  (out, in) float64.
    """
    H = damped(moment, matrix.shape[1])
    best = np.zeros(matrix.shape)
    for row, (wanted, stays) in enumerate(zip(matrix @ H, ~gone, strict=True)):
        best[row, stays] = np.linalg.solve(H[np.ix_(stays, stays)], wanted[stays])
    return best


# ---- a whole model ---------------------------------------------------------------------------------------------------
def fit(
    model: Llama, documents: str | Sequence[str], target: float, *, context: int | None = None,
    matrices: str = "ffn", pattern: tuple[int, int] | None = None, saliency: str = "OBS",
) -> Variant:  # fmt: skip
    """Prune and compensate (module docstring).

    target: the share of the weights that goes. matrices: "ffn" (three per layer) or "all" (seven). pattern:
    (N, M). saliency: "OBS" or "ISC". Raises MinillmError for other names and for a target that is not that of the
    pattern.
    """
    if saliency not in SALIENCIES:
        raise MinillmError(f"saliency is {saliency!r}, expected one of {', '.join(SALIENCIES)}")

    def prune(matrix: np.ndarray, moment: np.ndarray) -> np.ndarray:
        return compensated(matrix, moment, target, pattern, SALIENCIES[saliency])

    names = checked(target, matrices, pattern)
    spec = weights_spec("sparsegpt" if saliency == "OBS" else "isc", WORDS[saliency], target, matrices, pattern)
    if pattern is None:
        spec = replace(spec, comparison=f"{WORDS[saliency]}, the smallest of each block of {BLOCK} inputs go")
    spec = replace(spec, comparison=f"{spec.comparison}; the others make up for them")
    return _variant(model, documents, context, names, spec, prune)


def fit_exact(
    model: Llama, documents: str | Sequence[str], target: float, *, context: int | None = None, matrices: str = "ffn"
) -> Variant:
    """Prune by Wanda, then give every row the best weights for its mask. Arguments and errors are those of ``fit``."""
    names = checked(target, matrices, None)

    def prune(matrix: np.ndarray, moment: np.ndarray) -> np.ndarray:
        gone = removed_weights(scores(matrix, np.sqrt(np.diag(moment))), target)
        return exact(matrix, moment, gone)

    spec = weights_spec("wanda-exact", "|W_ij| ||x_j||", target, matrices, None)
    spec = replace(spec, comparison=f"{spec.comparison}; the others by least squares")
    return _variant(model, documents, context, names, spec, prune)


def _variant(
    model: Llama, documents: str | Sequence[str], context: int | None, names: Sequence[str], spec: SparsitySpec,
    prune: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Variant:  # fmt: skip
    """The record, after prune(matrix, H) has made the new matrix of every name, layer by layer."""

    def change(layer: Layer, sums: dict[str, np.ndarray]) -> Layer:
        changed = {}
        for name in names:
            matrix = getattr(layer, name)
            changed[name] = matrix.dtype.type(prune(matrix, sums[name]))
        return replace(layer, **changed)

    layers = layer_by_layer(model, runs(model, documents, "documents", context), products, change)
    return weights_variant(model, layers, spec, names, frozenset(document_hashes(documents)))


fit_all = partial(fit, matrices="all")
fit_2_4 = partial(fit, pattern=(2, 4))
fit_4_8 = partial(fit, pattern=(4, 8))
fit_isc = partial(fit, saliency="ISC")
fit_isc_all = partial(fit, saliency="ISC", matrices="all")
