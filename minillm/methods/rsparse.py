"""R-Sparse: the large inputs of a matrix are multiplied exactly, all others by a matrix of low rank.

Zhang et al. 2025 (R-Sparse: Rank-Aware Activation Sparsity for Efficient LLM Inference, arXiv 2504.19449). Of each
matrix W (m, n) of the FFN, with its input x, a mask over the inputs and A B the best matrix of rank r (svd.py):

    y  =  W (x * mask)  +  A B (x * (1 - mask))        mask_j = |x_j| ||W[:, j]|| > t        A (m, r), B (r, n)

so an input that is small is not taken for zero: what it adds is rounded to the r strongest directions of W. At full
rank the result is that of the dense FFN, whatever the mask.

**One budget.** A token reads the columns of W that its mask keeps, and both factors. A share R of the weights is
divided by alpha (the paper searches one alpha for each matrix; here all have the same):

    share of the inputs that stay  =  alpha R            t = the quantile of |x_j| ||W[:, j]|| on a calibration text
    r                              =  (1 - alpha) R m n / (m + n), rounded

    alpha = 1    no low rank, and |x_j| is compared without the norm, as in the released code: TEAL (policies.py)
    alpha = 0    every input is cut: the FFN is the plain SVD of that rank

Pitfalls. With the same mask the low rank can only help. With the same budget it must be worth more than the columns
that it displaces, and on the three models of this project it never is. That no input is zero has a price, too: no
neuron is ever skipped, and the accounting counts none. The released code cuts only the later half of a prompt; here
every token is cut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..arguments import real_number
from ..predictors.quantise import factors
from ..sparsity.calibrate import quantile_of
from ..sparsity.magnitudes import collect
from ..sparsity.policies import AFTER_BOTH, OF_GATE_INPUT, OF_UP_INPUT, Cut, Policy, policy_named, where_kept
from ..sparsity.spec import SparsitySpec, tap_reads
from ..threads import with_few_threads
from ..trace import Tap, no_tap
from ..transformer.layer import FFN_MATRICES, Layer
from ..transformer.linear import linear
from ..transformer.model import Llama
from ..transformer.texts import document_hashes
from .base import WEIGHT_BYTES, Variant, check, stored_bytes

ALPHA = 0.9
SCALED = Policy("rsparse", ("in_gate_norm", "in_up_norm", "neuron_norm"), ">", "arXiv 2504.19449")
Factors = tuple[np.ndarray, np.ndarray]  # A (m, r), B (r, n)


def mixed_linear(
    x: np.ndarray, mask: np.ndarray | None, weight: np.ndarray, bias: np.ndarray | None, low: Factors
) -> np.ndarray:
    """y = W (x * mask) + A B (x * (1 - mask)) (+ b).  x, mask (T, n), None keeps all; weight (m, n)  ->  (T, m)."""
    kept = where_kept(mask, x)  # (T, n)
    a, b = low
    return linear(kept, weight, bias) + linear(linear(x - kept, b), a)


@dataclass(frozen=True, eq=False)
class RSparseFFN:
    """A FeedForward that runs the equation above for gate, up and down. cuts, low: of each layer."""

    cuts: tuple[Cut, ...]
    low: tuple[Mapping[str, Factors], ...]

    def __call__(self, x: np.ndarray, layer: Layer, position: int = 0, tap: Tap = no_tap) -> np.ndarray:
        """x (T, D)  ->  (T, D)."""
        cut, low = self.cuts[layer.index], self.low[layer.index]
        of_gate, of_up = cut.keep(OF_GATE_INPUT, x, x), cut.keep(OF_UP_INPUT, x, x)  # (T, D) or None
        gate_pre = tap("gate_pre", mixed_linear(x, of_gate, layer.gate_proj, layer.gate_bias, low["gate_proj"]))
        gate = tap("gate", layer.act(gate_pre))  # (T, F)
        up = tap("up", mixed_linear(x, of_up, layer.up, layer.up_bias, low["up_proj"]))  # (T, F)
        mid = tap("mid", gate * up)  # (T, F)
        of_down = cut.keep(AFTER_BOTH, mid, mid)  # (T, F) or None
        if tap is not no_tap and any(mask is not None for mask in (of_gate, of_up, of_down)):
            more = [shared(layer, low)]  # the factors: the same for every token
            tap_reads(lambda name, shares: tap(name, shares + more), of_gate, of_up, of_down)
        return tap("out", mixed_linear(mid, of_down, layer.down_proj, layer.down_bias, low["down_proj"]))  # (T, D)


def shared(layer: Layer, low: Mapping[str, Factors]) -> list[float]:
    """Numbers in the factors of [gate, up, down], as shares of the weights of these matrices."""
    return [sum(part.size for part in low[name]) / getattr(layer, name).size for name in FFN_MATRICES]


@with_few_threads
def fit(
    model: Llama, documents: str | Sequence[str], target: float, *, context: int | None = None, alpha: float = ALPHA
) -> Variant:
    """The dense model with an FFN that reads a share 1 - target of its weights for each token (module docstring).

    alpha: the part of these reads that goes to exact columns, 0 to 1. Target 0 is the dense model. Thresholds come
    from the values of the dense model. Raises MinillmError for FFNs without a gate, and for a target or an alpha out of
    range. It is not in METHODS, because the tables of those methods compare weights that are removed for good.
    """
    alpha = real_number("alpha", alpha, lambda share: 0 <= share <= 1, "a share from 0 to 1")
    check("rsparse", model, target)
    alpha, reads = (alpha if target else 1.0), 1 - target
    policy = policy_named("teal") if alpha == 1 else SCALED
    found = collect(model, documents, policy.tensors, context)
    cuts, low = [], []
    for layer, magnitudes in zip(model.layers, found.layers, strict=True):
        level = 1 - alpha * reads
        # The largest value of the calibration text would let a larger one of another text through.
        limits = {t: quantile_of(magnitudes, t, level) if level < 1 else math.inf for t in policy.tensors}
        cuts.append(Cut(policy, limits, policy.norms(layer)))
        low.append({name: of_rank(getattr(layer, name), (1 - alpha) * reads) for name in FFN_MATRICES})
    spec = SparsitySpec(
        "rsparse", policy.tensors, policy.comparison, "reads", target,
        granularity=f"one threshold per layer and matrix, one decision per token and input; alpha {alpha:g}",
    )  # fmt: skip
    numbers = sum(part.size for layer in low for pair in layer.values() for part in pair)
    stored = stored_bytes(model, model.layers)["dense"] + WEIGHT_BYTES * numbers
    return Variant(
        "rsparse", model, RSparseFFN(tuple(cuts), tuple(low)), spec=spec, stored={"dense": stored},
        calibrated_on=frozenset(document_hashes(documents)),
    )  # fmt: skip


def of_rank(matrix: np.ndarray, share: float) -> Factors:
    """The factors of a matrix (m, n) with about that share of its weights, in its dtype; of rank 0: empty ones."""
    rows, inputs = matrix.shape
    a, b = factors(matrix, round(share * rows * inputs / (rows + inputs)))
    return a.astype(matrix.dtype), b.astype(matrix.dtype)
