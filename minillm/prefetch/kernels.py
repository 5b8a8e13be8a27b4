"""The FFN of one token from a set of neurons, as fast as NumPy can: three ways to touch only what is needed.

One token's FFN is limited by memory: every weight is read once, for one product and one sum. So with a share r of the
neurons the time should be r of the dense one. It is more, since the set of neurons changes from token to token:

    gather     W[J] x            copies the rows of J to one place, then multiplies: every row moves three times
    tiled      the same in tiles that stay in the core's own cache, into one buffer: the copy is read from there again
    blocks     W[b] x, b whole   neighbouring neurons chosen together: a slice is a view, and nothing is copied

The first two take any set J. The last takes whole blocks of g neurons, stored as on disk (bundle.py): gate and up rows
of a block are one matrix, so a block costs two products. reorder.py finds the neurons that should share a block.

All need the down matrix neuron by neuron, as rows: its columns, F numbers apart, would cost a cache line per number.
Each equals the masked form up to the order of the sums, and none makes an intermediate of F numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import MinillmError
from ..transformer.layer import Layer
from ..transformer.linear import linear, one_row
from .bundle import bundled

TILE = 512 * 1024  # bytes of a tile: it is read again from a core's own cache, of 1 or 2 MB on servers


@dataclass(frozen=True, eq=False)
class NeuronMajor:
    """The matrices of one layer with a row per neuron: gate, up, down (F, D); a missing bias is None."""

    gate: np.ndarray
    up: np.ndarray
    down: np.ndarray
    act: Callable[[np.ndarray], np.ndarray]
    gate_bias: np.ndarray | None = None
    up_bias: np.ndarray | None = None
    down_bias: np.ndarray | None = None

    @classmethod
    def of(cls, layer: Layer) -> NeuronMajor:
        """From a layer of a model; the down matrix is copied, as rows."""
        down = np.ascontiguousarray(layer.down_proj.T)
        biases = (layer.gate_bias, layer.up_bias, layer.down_bias)
        return cls(layer.gate_proj, layer.up, down, layer.act, *biases)


def coefficients(
    x: np.ndarray, gate: np.ndarray, up: np.ndarray, neurons: np.ndarray | slice, weights: NeuronMajor | Layer,
) -> np.ndarray:  # fmt: skip
    """mid of the neurons whose rows are given.

        mid_j = act(x . gate_j + b_j) (x . up_j + c_j)

    x (..., D), gate, up (n, D), neurons: their indices in the layer (for its biases)  ->  (..., n).
    """
    return _combined(linear(x, gate), linear(x, up), neurons, weights)


def _combined(g: np.ndarray, u: np.ndarray, neurons: np.ndarray | slice, weights: NeuronMajor | Layer) -> np.ndarray:
    """act(g + b) (u + c); g and u are overwritten."""
    if weights.gate_bias is not None and weights.up_bias is not None:  # a family has both or neither
        g += weights.gate_bias[neurons]
        u += weights.up_bias[neurons]
    g = weights.act(g)
    g *= u
    return g


def gather(x: np.ndarray, weights: NeuronMajor, neurons: np.ndarray) -> np.ndarray:
    """The plain form: the rows of a set of neurons, copied to one place.  x (D,), neurons (n,) indices  ->  y (D,)."""
    mid = coefficients(x, weights.gate[neurons], weights.up[neurons], neurons, weights)  # (n,)
    return _with_bias(mid @ weights.down[neurons], weights)


def tiled_gather(x: np.ndarray, weights: NeuronMajor, neurons: np.ndarray, tile: int = TILE) -> np.ndarray:
    """The same through one buffer of ``tile`` bytes.  x (D,), neurons (n,) indices  ->  y (D,).

    take(mode="clip") writes straight into its ``out``; the default mode, which checks the indices, fills a hidden
    buffer first. So they are checked here, once. Raises MinillmError for one that is out of range.
    """
    count, hidden = weights.gate.shape
    if len(neurons) and not (0 <= neurons.min() and neurons.max() < count):
        raise MinillmError(f"neurons go from {neurons.min()} to {neurons.max()}, expected 0 to {count - 1}")
    rows = max(1, min(len(neurons), tile // (hidden * weights.gate.itemsize)))
    buffer = np.empty((rows, hidden), weights.gate.dtype)
    g, u = (np.empty(len(neurons), x.dtype) for _ in range(2))
    pieces = [slice(start, start + rows) for start in range(0, len(neurons), rows)]
    for matrix, products in ((weights.gate, g), (weights.up, u)):
        for piece in pieces:
            kept = neurons[piece]
            tile_rows = matrix.take(kept, axis=0, out=buffer[: len(kept)], mode="clip")
            one_row(x, tile_rows, out=products[piece])
    mid = _combined(g, u, neurons, weights)  # (n,)
    y = np.zeros(hidden, x.dtype)
    for piece in pieces:
        kept = neurons[piece]
        y += mid[piece] @ weights.down.take(kept, axis=0, out=buffer[: len(kept)], mode="clip")
    return _with_bias(y, weights)


class Blocks(NamedTuple):
    """One layer as bundles in memory: rows (3 F, D) as bundle.py lays them out, and the layer itself."""

    rows: np.ndarray
    group: int
    layer: Layer

    @classmethod
    def of(cls, layer: Layer, group: int) -> Blocks:
        """From a layer of a model; its three matrices are copied."""
        return cls(bundled(layer.gate_proj, layer.up, layer.down_proj, group), group, layer)


def block_views(x: np.ndarray, weights: Blocks, blocks: np.ndarray) -> np.ndarray:
    """The neurons of whole blocks, without a copy of any weight.  x (D,), blocks (n,) indices  ->  y (D,).

    Two products per block, and the activation once for all: a call per small block would take longer than reading it.
    """
    rows, g, layer = weights
    count = len(rows) // 3
    places = [(3 * b * g, min(g, count - b * g)) for b in blocks.tolist()]  # first row; neurons: the last has fewer
    both = np.zeros((len(places), 2, g), x.dtype)  # (n, 2, g): gate and up
    for (first, n), out in zip(places, both, strict=True):
        if n == g:
            one_row(x, rows[first : first + 2 * g], out=out.reshape(-1))
        else:
            out[:, :n] = one_row(x, rows[first : first + 2 * n]).reshape(2, n)
    neurons = np.minimum(blocks[:, None] * g + np.arange(g), count - 1)  # (n, g)
    mid = _combined(both[:, 0], both[:, 1], neurons, layer)  # (n, g)
    y, part = (np.zeros(rows.shape[1], x.dtype) for _ in range(2))
    for (first, n), coefficient in zip(places, mid, strict=True):
        y += np.dot(coefficient[:n], rows[first + 2 * n : first + 3 * n], out=part)
    return _with_bias(y, layer)


def _with_bias(y: np.ndarray, weights: NeuronMajor | Layer) -> np.ndarray:
    return y if weights.down_bias is None else y + weights.down_bias


# ---- which one -------------------------------------------------------------------------------------------------------

# Speed-up over the dense FFN at densities 1/2 and 1/10, by the megabytes of the layer's three matrices, in float32 and
# one thread, for blocks of 32: the last lines of `minillm bench ffn` at the shapes 15M, 110M, 1B and 4096 11008, cold
# in cache. The smallest is 260K, hot, as in a model of such layers, which stay in a core's own cache.
MEASURED = {
    0.132: {"gather": (0.68, 0.91), "tiled": (0.55, 0.65), "blocks": (0.46, 0.68)},
    2.65: {"gather": (0.49, 3.74), "tiled": (1.08, 3.26), "blocks": (1.28, 4.07)},
    18.9: {"gather": (0.29, 3.11), "tiled": (1.04, 4.07), "blocks": (1.50, 6.07)},
    138: {"gather": (0.27, 2.21), "tiled": (1.14, 5.40), "blocks": (1.79, 8.31)},
    541: {"gather": (0.14, 2.05), "tiled": (1.19, 5.80), "blocks": (1.90, 9.08)},
}
DENSITIES = (0.5, 0.1)
SMALL_BLOCKS = {1: 0.40, 4: 0.69, 8: 0.81, 16: 0.91, 32: 1.0}  # block size -> the share of that speed-up


def expected_speedup(shape: tuple[int, int], density: float, group: int = 1, itemsize: int = 4) -> dict[str, float]:
    """Speed-up of each method over the dense FFN, from the table above, and dense: 1.

    Between its sizes and densities, and beyond them, logarithms of speed-ups are linear in logarithms: speed-up is a
    power of density, near -1. shape (F, D); density: share of neurons touched; group: neurons per block, 1 where any
    set may be needed.
    """
    sizes, megabytes = np.log(list(MEASURED)), np.log(3 * shape[0] * shape[1] * itemsize / 1e6)
    at_half, at_tenth = DENSITIES
    steps = np.log(at_half / max(density, 1e-9)) / np.log(at_half / at_tenth)  # 0 at the first density, 1 at the second
    speedups = {"dense": 1.0}
    for method in ("gather", "tiled", *(["blocks"] if group > 1 else [])):
        logs = np.log([row[method] for row in MEASURED.values()])  # (sizes, 2)
        half, tenth = (np.interp(megabytes, sizes, column) for column in logs.T)
        speedups[method] = float(np.exp(half + steps * (tenth - half)))
        if method == "blocks":
            reached = np.interp(np.log(group), np.log(list(SMALL_BLOCKS)), list(SMALL_BLOCKS.values()))
            speedups[method] *= float(reached)
    return speedups


ROUTER = 2  # D / H: the hidden layer of a router that chooses blocks has half as many numbers as its input


def with_router(speedup: float, shape: tuple[int, int], group: int) -> float:
    """The speed-up of blocks once a router's time is added, if its tables are read as fast as the dense FFN's.

        1 / (1 / speedup + H (D + B) / (3 F D))        H = D / ROUTER, B = F / group blocks

    shape (F, D).
    """
    neurons, hidden = shape
    tables = hidden // ROUTER * (hidden + -(-neurons // group))
    return 1 / (1 / speedup + tables / (3 * neurons * hidden))


def choose(shape: tuple[int, int], density: float, group: int = 1, itemsize: int = 4) -> str:
    """The fastest of dense, gather, tiled and blocks for that shape (F, D), density and block size, as measured."""
    speedup = expected_speedup(shape, density, group, itemsize)
    return max(speedup, key=speedup.__getitem__)
