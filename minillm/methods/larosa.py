"""LaRoSA: turn the inputs of a layer so that few coordinates hold most of them, then keep each token's largest.

Liu et al. 2025 (LaRoSA: Layerwise Rotated Sparse Activation, arXiv 2507.01299). An input x of a matrix W is written in
another orthonormal basis, the columns of Q (n, n). Since Q Q^T = 1, nothing changes but the place of the zeros:

    z = x Q        z_cut = z at its K largest |z_j|, 0 elsewhere        y = z_cut (W Q)^T        K = floor((1 - p) n)

W Q is computed once. A token then reads K of its columns, the same number for every token and text: no threshold that
holds on one text and not on another. Q is the PCA basis of the inputs, the eigenvectors of the products of a
calibration text (of the dense model, about 0 and not about the mean, as 0 is what a cut coordinate becomes):

    sum_t x_t^T x_t  =  Q diag(l_1 .. l_n) Q^T

Correlated inputs become uncorrelated ones with very unequal sizes, and the largest of a token hold more of its energy.

**Which inputs.** Those behind a norm are turned: of gate and up, and with matrices="all" of q, k and v. mid is cut as
it is. A basis for it could not be prepared, as mid is a product neuron by neuron; and turning it made perplexity worse
here: in the basis of its neurons it is sparser already. z of the attention is cut as it is, too.

**Bytes.** z = x Q is a product with n^2 numbers, which every token reads. They are counted, one half with gate and one
half with up (a third each with q, k and v). If the mask is known, the K columns of Q that it names are enough.
Differs from LaRoSA: there the stream between the layers is turned, so that the basis of a layer is part of the weights
before it, and one product per change of basis remains. Here x is turned in place: the same cut, but for the weights of
the norm, which are part of x here.

Variant.tap does this to the dense model: x_cut = z_cut Q^T takes the place of x, and W x_cut is (W Q) z_cut.

Pitfalls. Where F is a few times D, as in small models, the rotation is a tenth of the FFN's weights: compare at equal
reads and not at equal K. A mask is one of turned coordinates, so no neuron of gate and up is skipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..sparsity.spec import SparsitySpec
from ..threads import with_few_threads
from ..trace import Tap
from ..transformer.layer import Layer
from ..transformer.model import Llama
from ..transformer.texts import document_hashes, runs
from .base import INPUTS, WEIGHT_BYTES, Read, Variant, check, dense_bytes, layer_by_layer, products, stored_bytes
from .qsparse import Groups, bytes_read, groups_of, top_inputs
from .wanda import checked

TURNED = ("attn.norm", "mlp.norm")


def bases_of(
    model: Llama, documents: str | Sequence[str], context: int | None, steps: Sequence[str]
) -> dict[str, np.ndarray]:  # fmt: skip
    """The PCA basis Q of these steps in every layer: {"blocks.0.mlp.norm": (n, n)}, in the dtype of the model."""
    found: dict[str, np.ndarray] = {}

    def look(layer: Layer, summed: dict[str, np.ndarray]) -> Layer:
        for name, step in INPUTS.items():
            if step in steps:
                _, basis = np.linalg.eigh(summed[name])
                found[f"blocks.{layer.index}.{step}"] = basis.astype(model.dtype)
        return layer  # dense

    layer_by_layer(model, runs(model, documents, "documents", context), products, look)
    return found


def turned_top_inputs(groups: Groups, bases: Mapping[str, np.ndarray]) -> Tap:
    """The tap that cuts the inputs in their bases: z = x Q, the K largest stay, and back: z_cut Q^T.  (T, n) each."""
    cut = top_inputs(groups)

    def tap(name: str, value: np.ndarray) -> np.ndarray:
        if name not in bases:
            return cut(name, value)
        return cut(name, value @ bases[name]) @ bases[name].T

    return tap


@with_few_threads
def fit(
    model: Llama, documents: str | Sequence[str], target: float, *, context: int | None = None, matrices: str = "ffn",
) -> Variant:  # fmt: skip
    """The dense model, run with cut inputs (module docstring).

    target: the share p of each input that every token cuts; 0 is the dense model. matrices: "ffn" (the inputs of three
    matrices) or "all" (of seven). It is not in METHODS, because the tables of those methods compare weights that are
    removed for good. Raises MinillmError for other matrices, FFNs without a gate, and a target that keeps nothing.
    """
    check("larosa", model, target)
    steps = tuple(dict.fromkeys(INPUTS[name] for name in checked(target, matrices, None)))
    groups = {name: group for name, group in groups_of(model, target).items() if name.endswith(steps)}
    bases = bases_of(model, documents, context, [step for step in TURNED if step in steps]) if target else {}
    kept = [count / inputs for count, inputs in groups.values()]
    spec = SparsitySpec(
        "larosa", steps, "top-k", "tensor", target, 1 - float(np.mean(kept)),
        layer_scope=f"all layers, the inputs of {'the FFN' if matrices == 'ffn' else f'all {len(INPUTS)} matrices'}",
        granularity=f"one decision per token and coordinate of an input; {' and '.join(TURNED)} in their PCA basis",
    )  # fmt: skip
    numbers = sum(basis.size for basis in bases.values())
    stored = {"dense": stored_bytes(model, model.layers)["dense"] + WEIGHT_BYTES * numbers}
    reads = {name: _read(model, name, groups, bases) for name in INPUTS}
    down = reads["down_proj"]  # its columns are the neurons
    return Variant(
        "larosa", model, tap=turned_top_inputs(groups, bases), spec=spec, reads=reads, stored=stored,
        removed=1 - down.exact / down.dense, calibrated_on=frozenset(document_hashes(documents)),
    )  # fmt: skip


def _read(model: Llama, name: str, groups: Groups, bases: Mapping[str, np.ndarray]) -> Read:
    """Bytes of one matrix, all layers together, and of its part in the rotation of its input."""
    sharing = sum(step == INPUTS[name] for step in INPUTS.values())  # matrices with the same input
    exact = known = 0.0
    for layer in model.layers:
        place = f"blocks.{layer.index}.{INPUTS[name]}"
        columns = bytes_read(layer, name, groups) if place in groups else dense_bytes(getattr(layer, name))
        exact, known = exact + columns, known + columns
        if place in bases:
            turn, (count, inputs) = WEIGHT_BYTES * bases[place].size / sharing, groups[place]
            exact, known = exact + turn, known + turn * count / inputs
    return Read(sum(dense_bytes(getattr(layer, name)) for layer in model.layers), exact, known)
