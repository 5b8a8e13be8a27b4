"""How large weights and activations are: the measurements that activation sparsity starts from.

Dhar et al. 2024 (arXiv 2412.12178) argue in three steps: a modern model has no weights that are zero. It has no
activations that are zero by themselves (natural.py). But its FFN activations lie close to zero, so a threshold can cut
them.

    weights       per layer and matrix, the share that is exactly 0, and below 1 % and 10 % of r = sqrt(mean w^2)
    activations   per layer and step, P(|a| <= x), the cumulative distribution of magnitudes (their figures 5 to 7)

A normal distribution has erf(0.01 / sqrt 2) = 0.8 % of its values below 1 % of r and 8 % below 10 %. Weights with no
more small values than that leave nothing to cut. Activations are counted in StreamingMagnitudes: any length of text,
fixed memory. Every position counts, the BOS included.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import MinillmError
from ..sparsity.magnitudes import COLLECTED, ExactMagnitudes, Magnitudes, StreamingMagnitudes, collect
from ..transformer.layer import FFN_MATRICES
from ..transformer.model import Llama
from .natural import NEAR_ZERO

BELOW = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)  # the magnitudes of the table
BLOCK = 1 << 20  # weights looked at together


def normal_below(share: float) -> float:
    """The share of a normal distribution below ``share`` of its standard deviation: erf(share / sqrt 2)."""
    return math.erf(share / math.sqrt(2))


def weight_magnitudes(model: Llama) -> list[dict[str, Any]]:
    """The shares of the module docstring for every FFN matrix, a row per layer and matrix; r is in the row, too."""
    rows = []
    for layer in model.layers:
        for name in FFN_MATRICES if model.config.gated else ("gate_proj", "down_proj"):
            flat = getattr(layer, name).reshape(-1)  # a view
            blocks = [flat[start : start + BLOCK] for start in range(0, flat.size, BLOCK)]
            r = math.sqrt(sum(float(np.square(b, dtype=np.float64).sum()) for b in blocks) / flat.size)
            zeros = sum(b.size - np.count_nonzero(b) for b in blocks)
            below = [sum(np.count_nonzero(np.abs(b) <= near * r) for b in blocks) for near in NEAR_ZERO]
            rows.append(
                {"layer": layer.index, "matrix": name, "weights": flat.size, "zeros": int(zeros) / flat.size}
                | {f"below_{n * 100:g}_percent": int(c) / flat.size for n, c in zip(NEAR_ZERO, below, strict=True)}
                | {"rms": r}
            )
    return rows


def activation_magnitudes(
    model: Llama, documents: str | Sequence[str], context: int | None = None, tensors: Sequence[str] = COLLECTED
) -> Magnitudes:
    """Count the magnitudes of each step in each layer of the dense model on texts (protocol documents)."""
    there = [tensor for tensor in tensors if model.config.gated or tensor not in ("up", "in_up")]
    return collect(model, documents, there, context, "streaming")


def share_below(magnitudes: StreamingMagnitudes, at: Sequence[float] | np.ndarray) -> np.ndarray:
    """P(|a| <= x), linear inside a bucket (0.02 % wide); below 2^-40 it is the share of values counted as zero.

    at (n,) magnitudes  ->  (n,) shares from 0 to 1.
    """
    # Bucket i ends at the float whose leading bits are FIRST + i + 1 (magnitudes.py); the first one begins at 0.
    ends = (np.arange(1, magnitudes.BUCKETS + 1, dtype=np.uint32) + np.uint32(magnitudes.FIRST)) << np.uint32(11)
    cumulative = np.cumsum(magnitudes.counts)
    return np.interp(at, ends.view(np.float32).astype(np.float64), cumulative / max(1, cumulative[-1]))


def curve(magnitudes: Magnitudes, tensor: str, points: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """P(|a| <= x) of one step in every layer, for a figure: magnitudes x (points,), shares (L, points).

    x runs, in equal steps of its logarithm, from the smallest 2 % quantile of any layer to the largest 99.9 % quantile.
    """
    layers = [_streaming(layer[tensor]) for layer in magnitudes.layers]
    low = min((m.quantile(0.02) for m in layers if m.quantile(0.02) > 0), default=1e-6)
    high = max(max(m.quantile(0.999) for m in layers), 10 * low)
    at = np.geomspace(low, high, points)
    return at, np.stack([share_below(m, at) for m in layers])


def activation_rows(magnitudes: Magnitudes, below: Sequence[float] = BELOW) -> list[dict[str, Any]]:
    """The cumulative distributions as a table: a row per step and layer.

    below_x: the share of magnitudes up to x. median: the median magnitude, and so the threshold that cuts 50 % of that
    step.
    """
    rows = []
    for tensor in magnitudes.layers[0]:
        for index, layer in enumerate(magnitudes.layers):
            counted = _streaming(layer[tensor])
            shares = zip(below, share_below(counted, below), strict=True)
            row: dict[str, Any] = {"step": tensor, "layer": index}
            row |= {f"below_{x:g}": float(share) for x, share in shares}
            rows.append(row | {"median": counted.quantile(0.5)})
    return rows


def _streaming(magnitudes: ExactMagnitudes | StreamingMagnitudes) -> StreamingMagnitudes:
    """The counts of ``activation_magnitudes``; MinillmError for magnitudes that were collected in another way."""
    if not isinstance(magnitudes, StreamingMagnitudes):
        raise MinillmError("the magnitudes are of the exact kind, expected streaming ones (activation_magnitudes)")
    return magnitudes
