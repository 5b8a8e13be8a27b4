"""Whole neurons are removed for good: a smaller dense model, and what is left of down_proj makes up for the loss.

Neuron j of a layer is row j of gate and of up and column j of down. Without it the three matrices are narrower and
still dense, so nothing has to be skipped and no bitmap is stored. This is the one kind of pruning that any program
runs faster. With K the kept neurons of F:

    gate[K, :]  up[K, :]  down[:, K]        the same result as mid_j = 0 for all j outside K

**Which neurons stay.** Those of the largest score (F,), as many in each layer:

    norm         root of |gate_j|^2 + |up_j|^2 + |down_j|^2      weights alone: two rows and a column
    mid          mean_t |mid_j| * |down_j|                       what the neuron adds to the output
    importance   rows(gate) + rows(up) + columns(down), sums of  W_ij^2 / [(2 X X^T)^-1]_jj   (search.py)
    random       chance: the control

**Least squares.** The kept neurons can stand in for some of what the removed ones did. With G = sum_t mid_t^T mid_t of
a calibration text, the columns that bring the output nearest to that of the dense layer are

    min over V of sum_t |mid_t W^T - mid_t[K] V^T|^2        V = W G[:, K] G[K, K]^-1        W (D, F), V (D, |K|)

G is scaled to a mean diagonal of 1 and damped by a millionth, so that it has an inverse. A neuron that never fires
then keeps its weights.

**ADMM** reaches the same minimum in small steps (Shen et al. 2024, Search for Efficient LLMs, arXiv 2409.17372,
section 3.5). Z has zeros at the removed columns, U gathers the differences, rho = 1, 30 steps:

    W <- (W_0 G + rho (Z - U)) (G + rho I)^-1        Z <- (W + U) where kept, else 0        U <- U + W - Z

Differs from the paper: eq. (8) prints Z <- (W + U) * M with M = 1 at *removed* columns, and the released code does the
same. That keeps what should go (a test shows the error). G is scaled: on the raw sums rho = 1 is next to nothing,
and 30 steps change nothing. The closed form is exact, and shorter; ADMM is here to be seen.

The layers are changed one after the other (base.py), so G is that of the model whose layers before are narrow already.

Pitfalls. "Half of the neurons" is far more than "half of the weights one by one": a neuron that is seldom needed is
still needed then. Least squares matters more than the choice: chance with it can beat a choice by norms with it. A low
error of the layer's output is no promise for the perplexity.

**As a folder.** One width for all layers is a normal Hugging Face folder. Widths that differ (search.py) are written
with the largest, the missing neurons as zeros (saved.py); the bytes in the tables are those without them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from ..errors import MinillmError
from ..predictors.quantise import with_unit_mean
from ..sparsity.spec import SparsitySpec
from ..transformer.layer import FFN_MATRICES, Layer
from ..transformer.model import Llama
from ..transformer.texts import document_hashes, runs
from .base import INPUTS, WEIGHT_BYTES, Read, Variant, dense_bytes, layer_by_layer, products, with_layers

DAMPING = 1e-6  # of the mean diagonal, for the least squares
INVERSE_DAMPING = 1e-2  # of the mean diagonal, for the importance, which divides by an inverse
RHO, STEPS = 1.0, 30
Sums = dict[str, np.ndarray]  # matrix name -> products and sizes of its inputs


# ---- what is known of the inputs -------------------------------------------------------------------------------------
def products_and_sizes(x: np.ndarray) -> np.ndarray:
    """Products of each pair of input features, and below them the sums of sizes.  x (T, n)  ->  (n + 1, n) float64.

    Row n holds sum_t |x[t, j]|.
    """
    return np.vstack([products(x), np.abs(x).sum(axis=0, dtype=np.float64)])


# ---- which neurons stay ----------------------------------------------------------------------------------------------
def norm_scores(layer: Layer, sums: Sums) -> np.ndarray:
    """The root of |gate_j|^2 + |up_j|^2 + |down_j|^2.  ->  (F,)."""
    own = np.hstack([layer.gate_proj, layer.up, layer.down_proj.T])  # (F, 3 D)
    return np.linalg.norm(own, axis=1)


def mid_scores(layer: Layer, sums: Sums) -> np.ndarray:
    """sum_t |mid_j| * |down_j|: the mean times the number of tokens, which is the same for all.  ->  (F,)."""
    return sums["down_proj"][-1] * np.linalg.norm(layer.down_proj, axis=0)


def importance(matrix: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """W_ij^2 / [(2 X X^T)^-1]_jj (arXiv 2409.17372, eq. 1).  matrix (out, in), moment (in, in)  ->  (out, in).

    The released text has no damping, and sums of a short text have no inverse: a hundredth of the mean diagonal is
    added.
    """
    scale = np.trace(moment) / len(moment) or 1.0
    inverse = np.linalg.inv(2 * scale * damped(moment, INVERSE_DAMPING))
    return np.square(matrix, dtype=np.float64) / np.diag(inverse)


def importance_scores(layer: Layer, sums: Sums) -> np.ndarray:
    """Rows of gate and of up, and columns of down, summed.  ->  (F,)."""
    gate, up, down = (importance(getattr(layer, name), sums[name][:-1]) for name in FFN_MATRICES)
    return gate.sum(axis=1) + up.sum(axis=1) + down.sum(axis=0)


SCORES: dict[str, Callable[[Layer, Sums], np.ndarray]] = {
    "norm": norm_scores, "mid": mid_scores, "importance": importance_scores,
}  # fmt: skip


def largest(scores: np.ndarray, count: int) -> np.ndarray:
    """The neurons of the ``count`` largest scores, in their order; of equal ones the last.  (F,)  ->  (count,)."""
    return np.sort(np.argsort(scores, kind="stable")[len(scores) - count :])


# ---- what the kept ones become ---------------------------------------------------------------------------------------
def damped(moment: np.ndarray, share: float) -> np.ndarray:
    """G with a mean diagonal of 1, plus ``share`` on the diagonal.  (F, F)  ->  (F, F)."""
    return with_unit_mean(moment) + share * np.eye(len(moment))


def least_squares(matrix: np.ndarray, moment: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """W G[:, K] G[K, K]^-1 (module docstring).  matrix (D, F), moment (F, F), keep (|K|,)  ->  (D, |K|)."""
    G = damped(moment, DAMPING)
    return np.linalg.solve(G[np.ix_(keep, keep)], G[keep] @ matrix.T).T


def admm(matrix: np.ndarray, moment: np.ndarray, keep: np.ndarray, steps: int = STEPS, rho: float = RHO) -> np.ndarray:
    """The same minimum in steps (module docstring).  matrix (D, F), moment (F, F), keep (|K|,)  ->  (D, |K|)."""
    G = damped(moment, DAMPING)
    kept = np.zeros(len(G))
    kept[keep] = 1
    inverse = np.linalg.inv(G + rho * np.eye(len(G)))
    target, Z, U = matrix @ G, matrix * kept, np.zeros(matrix.shape)
    for _ in range(steps):
        W = (target + rho * (Z - U)) @ inverse
        Z = (W + U) * kept
        U = U + W - Z
    return Z[:, keep]


def unchanged(matrix: np.ndarray, moment: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """The kept columns as they are: the mask alone."""
    return matrix[:, keep]


CORRECTIONS = {"none": unchanged, "least squares": least_squares, "ADMM": admm}


# ---- the smaller model -----------------------------------------------------------------------------------------------
def narrow(layer: Layer, keep: np.ndarray, down: np.ndarray | None = None) -> Layer:
    """The layer with the neurons ``keep`` (|K|,) alone; down (D, |K|): in place of the columns that it has."""

    def of(rows: np.ndarray | None) -> np.ndarray | None:
        return None if rows is None else rows[keep]

    columns = layer.down_proj[:, keep] if down is None else down.astype(layer.down_proj.dtype)
    return replace(
        layer, gate_proj=layer.gate_proj[keep], up_proj=layer.up[keep], down_proj=np.ascontiguousarray(columns),
        gate_bias=of(layer.gate_bias), up_bias=of(layer.up_bias),
    )  # fmt: skip


def narrow_model(model: Llama, layers: Sequence[Layer]) -> Llama:
    """The model with narrower layers; its config has the largest of the widths, as its folder would."""
    small = with_layers(model, layers)
    small.config = replace(model.config, intermediate_size=max(len(layer.gate_proj) for layer in layers))
    vars(small).pop("parameters", None)
    return small


def neurons_variant(
    name: str, model: Llama, layers: Sequence[Layer], target: float, how: str, calibrated_on: frozenset[str]
) -> Variant:  # fmt: skip
    """The record: narrower layers, with the bytes that they have (module docstring); how: the rule, in a few words."""
    small = narrow_model(model, layers)
    reads = {}
    for matrix in INPUTS:
        dense, read = (sum(dense_bytes(getattr(layer, matrix)) for layer in some) for some in (model.layers, layers))
        reads[matrix] = Read(dense, read, read)
    gone = 1 - sum(len(layer.gate_proj) for layer in layers) / sum(len(layer.gate_proj) for layer in model.layers)
    spec = SparsitySpec(
        name, ("weights",), how, "weights", target, achieved=gone,
        token_scope="the same neurons for every token", layer_scope="all layers, the three matrices of the FFN",
        granularity="one decision per neuron",
    )  # fmt: skip
    stored = {"dense": WEIGHT_BYTES * sum(array.size for array in small.weights.values())}
    return Variant(name, small, spec=spec, reads=reads, stored=stored, removed=gone, calibrated_on=calibrated_on)


def kept_count(neurons: int, target: float) -> int:
    """F - floor(target F).  Raises MinillmError where nothing is left."""
    count = neurons - math.floor(round(target * neurons, 9))
    if count < 1:
        raise MinillmError(f"target is {target}, which leaves none of {neurons} neurons, expected a smaller one")
    return count


def fit(
    model: Llama, documents: str | Sequence[str], target: float, *, context: int | None = None,
    score: str = "mid", correction: str = "least squares",
) -> Variant:  # fmt: skip
    """Remove the neurons of the smallest scores from every layer (module docstring).

    target: the share that goes; each layer keeps F - floor(target F). score: norm, mid, importance or random (the
    same for every call). correction: none, least squares or ADMM. Raises MinillmError for other names.
    """
    for what, given, known in (("score", score, [*SCORES, "random"]), ("correction", correction, [*CORRECTIONS])):
        if given not in known:
            raise MinillmError(f"{what} is {given!r}, expected one of {', '.join(known)}")
    rng = np.random.default_rng(0)

    def change(layer: Layer, sums: Sums) -> Layer:
        neurons = len(layer.gate_proj)
        scores = rng.random(neurons) if score == "random" else SCORES[score](layer, sums)
        keep = largest(scores, kept_count(neurons, target))
        if len(keep) == neurons:
            return layer
        return narrow(layer, keep, CORRECTIONS[correction](layer.down_proj, sums["down_proj"][:-1], keep))

    if correction == "none" and score in ("norm", "random"):  # no text is needed
        layers, seen = [change(layer, {"down_proj": np.empty((1, 0))}) for layer in model.layers], frozenset[str]()
    else:
        layers = layer_by_layer(model, runs(model, documents, "documents", context), products_and_sizes, change)
        seen = frozenset(document_hashes(documents))
    how = f"the {score} score of their neuron, the smallest of each layer go (correction of down: {correction})"
    return neurons_variant(f"neurons-{score}", model, layers, target, how, seen)


fit_mask = partial(fit, correction="none")
fit_admm = partial(fit, correction="ADMM")
fit_norm = partial(fit, score="norm")
fit_norm_mask = partial(fit, score="norm", correction="none")
fit_importance = partial(fit, score="importance")
fit_importance_mask = partial(fit, score="importance", correction="none")
fit_random = partial(fit, score="random")
fit_random_mask = partial(fit, score="random", correction="none")
