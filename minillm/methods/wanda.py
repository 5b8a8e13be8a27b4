"""Wanda: remove the weights whose products are small; and magnitude pruning, its control.

Sun et al. 2023 (A Simple and Effective Pruning Approach for Large Language Models, arXiv 2306.11695, eq. 1). The
importance of weight W_ij, which multiplies input feature j of output i, is

    S_ij = |W_ij| ||x_j||_2        ||x_j||_2 = sqrt(sum_t x[t, j]^2)

with the norm over all tokens of a calibration text. In each output row the smallest S_ij go, and nothing is updated:

    W (out, in), ||x|| (in,)  ->  W with floor(target * in) zeros in each row
    N:M                           at most N weights of each M successive inputs stay (2:4 and 4:8 remove one half)

**Magnitude pruning** is the same with ||x_j||_2 = 1. What remains the same: the unit that is compared (one row), the
matrices and the counts, so a difference of the two is the worth of the norms and of nothing else.

The layers are pruned one after the other: the norms of layer l come from the model whose layers before l are pruned
already (base.py). The scored positions count, the BOS among them.

Pitfalls. The groups matter: scores compared over a whole matrix are another method. At equal norms Wanda is
magnitude pruning, so where the inputs of a matrix have nearly equal norms it gains nothing: on the FFN of
tinystories-656k it is no better than its control; with attention included it is. The length and the kind of the
calibration texts change the result (issues 45 and 47 of the released code). Few processors skip single zeros: what is
saved are bytes that are stored and read, and the bitmap beside them costs a sixteenth of a dense 16-bit matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from ..errors import MinillmError
from ..sparsity.spec import SparsitySpec
from ..transformer.layer import Layer
from ..transformer.model import Llama
from ..transformer.texts import document_hashes, runs
from .base import INPUTS, MATRIX_SETS, Variant, layer_by_layer, squares, weights_variant


def scores(matrix: np.ndarray, norms: np.ndarray | float) -> np.ndarray:
    """S_ij = |W_ij| ||x_j||_2.  matrix (out, in), norms (in,), or 1 for magnitude pruning  ->  (out, in)."""
    return np.abs(matrix) * norms


def smallest(values: np.ndarray, count: int) -> np.ndarray:
    """True at the ``count`` smallest entries of each row; of equal ones, the first.  (..., n)  ->  bool (..., n)."""
    order = np.argsort(values, axis=-1, kind="stable")[..., :count]
    mask = np.zeros(values.shape, bool)
    np.put_along_axis(mask, order, True, axis=-1)
    return mask


def count_of(target: float, inputs: int) -> int:
    """floor(target * inputs), where 0.29 * 100 = 28.999999999999996 counts as 29."""
    return math.floor(round(target * inputs, 9))


def removed_weights(values: np.ndarray, target: float, pattern: tuple[int, int] | None = None) -> np.ndarray:
    """Which weights go, by their scores: floor(target * in) of each row, or with a pattern (N, M) all but N of each M.

    values (out, in)  ->  bool (out, in). Raises MinillmError where M does not divide the number of inputs.
    """
    rows, inputs = values.shape
    if pattern is None:
        return smallest(values, count_of(target, inputs))
    kept, group = pattern
    check_pattern(inputs, pattern)
    return smallest(values.reshape(rows, -1, group), group - kept).reshape(rows, inputs)


def check_pattern(inputs: int, pattern: tuple[int, int]) -> None:
    """Raise MinillmError where the M of (N, M) does not divide the number of inputs."""
    kept, group = pattern
    if inputs % group:
        raise MinillmError(f"a matrix has {inputs} inputs, expected a multiple of {group} for {kept}:{group}")


def pruned(layer: Layer, norms: dict[str, np.ndarray | float], target: float, pattern: tuple[int, int] | None) -> Layer:
    """The layer with smaller matrices set to zero: new arrays for the names in ``norms``, everything else is shared."""
    changed = {}
    for name, norm in norms.items():
        matrix = getattr(layer, name)
        gone = removed_weights(scores(matrix, norm), target, pattern)
        changed[name] = np.where(gone, matrix.dtype.type(0), matrix)
    return replace(layer, **changed)


def fit(
    model: Llama, documents: str | Sequence[str], target: float, *, context: int | None = None,
    matrices: str = "ffn", pattern: tuple[int, int] | None = None,
) -> Variant:  # fmt: skip
    """Prune with the norms of the inputs (module docstring).

    target: the share of each row's weights that goes. matrices: "ffn" (three per layer) or "all" (seven). pattern:
    (N, M). Raises MinillmError for other matrices and for a target that is not that of the pattern.
    """
    names = checked(target, matrices, pattern)

    def change(layer: Layer, sums: dict[str, np.ndarray]) -> Layer:
        return pruned(layer, {name: np.sqrt(sums[name]) for name in names}, target, pattern)

    layers = layer_by_layer(model, runs(model, documents, "documents", context), squares, change)
    spec = weights_spec("wanda", "|W_ij| ||x_j||", target, matrices, pattern)
    return weights_variant(model, layers, spec, names, frozenset(document_hashes(documents)))


def fit_magnitude(
    model: Llama, documents: str | Sequence[str], target: float, *, context: int | None = None,
    matrices: str = "ffn", pattern: tuple[int, int] | None = None,
) -> Variant:  # fmt: skip
    """Prune by |W_ij| alone; no text is read. Arguments and errors are those of ``fit``."""
    names = checked(target, matrices, pattern)
    layers = [pruned(layer, dict.fromkeys(names, 1.0), target, pattern) for layer in model.layers]
    spec = weights_spec("magnitude", "|W_ij|", target, matrices, pattern)
    return weights_variant(model, layers, spec, names, frozenset())


def checked(target: float, matrices: str, pattern: tuple[int, int] | None) -> tuple[str, ...]:
    """The names of the matrices to prune. Raises MinillmError for arguments that do not fit together."""
    if matrices not in MATRIX_SETS:
        raise MinillmError(f"matrices is {matrices!r}, expected one of {', '.join(MATRIX_SETS)}")
    if pattern is not None and target != 1 - pattern[0] / pattern[1]:
        kept, group = pattern
        raise MinillmError(
            f"target is {target}, expected {1 - kept / group}: the pattern keeps {kept} of {group} weights"
        )
    return MATRIX_SETS[matrices]


def weights_spec(
    policy: str, score: str, target: float, matrices: str, pattern: tuple[int, int] | None
) -> SparsitySpec:  # fmt: skip
    """What the target counts, in the words of every sparsity figure."""
    group = f"each {pattern[1]} successive inputs of a row" if pattern else "each row"
    about = "the three matrices of the FFN" if matrices == "ffn" else f"all {len(INPUTS)} matrices of a layer"
    return SparsitySpec(
        policy, ("weights",), f"{score}, the smallest of {group} go", "weights", target,
        token_scope="the same weights for every token", layer_scope=f"all layers, {about}",
        granularity="one decision per weight",
    )  # fmt: skip


fit_all = partial(fit, matrices="all")
fit_2_4 = partial(fit, pattern=(2, 4))
fit_4_8 = partial(fit, pattern=(4, 8))
fit_magnitude_all = partial(fit_magnitude, matrices="all")
fit_magnitude_2_4 = partial(fit_magnitude, pattern=(2, 4))
