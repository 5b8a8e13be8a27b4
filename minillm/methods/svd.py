"""Low rank: each matrix is replaced by the product of two thin ones.

With the singular value decomposition W = U S V^T (Eckart and Young 1936), the best matrix of rank k is

    W_k = U_k S_k V_k^T = A B        W (m, n), A (m, k), B (k, n)

    sum over all entries of (W - W_k)^2  =  sum over i > k of s_i^2        the tail energy: what the cut values hold

A and B have k (m + n) weights in place of m n, so below k = m n / (m + n) there are fewer. A target p removes that
share of a matrix's weights:

    k = floor((1 - p) m n / (m + n))

**Whitened.** What matters is the output x W^T, and some directions of x hold far more energy than others. With R R^T =
the products sum_t x_t^T x_t of a calibration text (Cholesky), the error of the output is the error of W R, and its best
rank k is that of the plain rule for W R (Wang et al. 2024, SVD-LLM, arXiv 2403.07378):

    W R = U S V^T        W_k = U_k S_k V_k^T R^-1        sum_t |x_t (W - W_k)^T|^2 = sum over i > k of s_i^2

Products that are singular are damped: a millionth of their mean diagonal is added to the diagonal. The statistics are
those of the model whose layers before are changed already (base.py).

**What is run and what is counted.** The variant holds W_k itself, rounded to the dtype of the model, in the place of W:
it runs as any other model and is saved as one. Its bytes are those of A and B (``stored["factors"]``, and what a token
reads), because x B^T A^T is the same and reads nothing else.

eFedLLM (arXiv 2411.16003) sends matrices in this form; it counts k (m + n + 1), the singular values on their own.

Pitfalls. Trained matrices have many singular values of nearly equal size, so the error grows fast: keeping half of
the weights costs far more than removing half of them one by one. A target of 0 leaves the matrices as they are:
a rank of m n / (m + n) would already be less than theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from ..errors import MinillmError
from ..predictors.quantise import factors
from ..sparsity.spec import SparsitySpec
from ..threads import with_few_threads
from ..transformer.layer import Layer
from ..transformer.model import Llama
from ..transformer.texts import document_hashes, runs
from .base import INPUTS, WEIGHT_BYTES, Read, Variant, dense_bytes, layer_by_layer, products, stored_bytes, with_layers
from .wanda import checked


def rank_of(shape: tuple[int, int], share: float) -> int:
    """k = floor(share m n / (m + n)).  Raises MinillmError where it is 0."""
    rows, inputs = shape
    rank = math.floor(round(share * rows * inputs / (rows + inputs), 9))
    if rank < 1:
        raise MinillmError(f"a matrix of {rows} x {inputs} has no rank left at {share:g} of its weights")
    return rank


@with_few_threads
def fit(
    model: Llama, documents: str | Sequence[str], target: float, *, context: int | None = None,
    matrices: str = "ffn", whitened: bool = True,
) -> Variant:  # fmt: skip
    """Replace matrices by products of low rank (module docstring).

    target: the share of each matrix's weights that goes. matrices: "ffn" (three per layer) or "all" (seven). whitened:
    the plain rule reads no text. Raises MinillmError for other matrices, and where a target leaves no rank.
    """
    names = checked(target, matrices, None)
    ranks = {} if target == 0 else {n: rank_of(getattr(model.layers[0], n).shape, 1 - target) for n in names}

    def change(layer: Layer, summed: dict[str, np.ndarray]) -> Layer:
        changed = {}
        for name, rank in ranks.items():
            matrix = getattr(layer, name)
            a, b = factors(matrix, rank, summed.get(name))
            changed[name] = (a @ b).astype(matrix.dtype)
        return replace(layer, **changed)

    if whitened:
        layers = layer_by_layer(model, runs(model, documents, "documents", context), products, change)
    else:
        layers = [change(layer, {}) for layer in model.layers]
    return _variant(model, layers, ranks, _spec(target, matrices, whitened), documents if whitened else [])


def _variant(
    model: Llama, layers: Sequence[Layer], ranks: dict[str, int], spec: SparsitySpec, documents: str | Sequence[str]
) -> Variant:  # fmt: skip
    """The record, with the bytes of the factors in place of those of the matrices."""
    reads, saved = {}, 0
    for name in INPUTS:
        shapes = [getattr(layer, name).shape for layer in layers]
        dense = read = sum(dense_bytes(getattr(layer, name)) for layer in layers)
        if name in ranks:
            read = sum(WEIGHT_BYTES * ranks[name] * sum(shape) for shape in shapes)
        reads[name], saved = Read(dense, read, read), saved + dense - read
    changed = sum(reads[name].dense for name in ranks)
    dense = stored_bytes(model, layers)["dense"]
    return Variant(
        spec.policy, with_layers(model, layers), spec=replace(spec, achieved=saved / changed if ranks else 0.0),
        reads=reads, stored={"dense": dense, "factors": dense - saved},
        calibrated_on=frozenset(document_hashes(documents)),
    )  # fmt: skip


def _spec(target: float, matrices: str, whitened: bool) -> SparsitySpec:
    """What the target counts, in the words of every sparsity figure."""
    about = "the three matrices of the FFN" if matrices == "ffn" else f"all {len(INPUTS)} matrices of a layer"
    of = "W R, with R R^T = x^T x" if whitened else "W"
    return SparsitySpec(
        "svd", ("weights",), f"singular values of {of}, the smallest go", "weights", target,
        token_scope="the same weights for every token", layer_scope=f"all layers, {about}",
        granularity="one rank for all matrices of a kind",
    )  # fmt: skip


fit_all = partial(fit, matrices="all")
fit_plain = partial(fit, whitened=False)
fit_plain_all = partial(fit, whitened=False, matrices="all")
