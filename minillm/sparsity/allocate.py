"""Two ways to choose thresholds by their effect on a layer's output instead of by a share of its values.

CETT, cumulative errors of tail truncation (Luo et al. 2025, Sparsing Law, arXiv 2411.02335, section 3). Neuron j adds
n_j = m_j W_down[:, j] to the output y, and its length is ||n_j|| = |m_j| ||W_down[:, j]||. A threshold e leaves out

    D = { j : ||n_j|| < e }        CETT(e) = mean_t  || sum_{j in D} n_j || / || y ||

and the layer's threshold is the largest e on a grid with CETT(e) <= target. The vectors that are left out can cancel
each other, so CETT does not always grow with e: bisection may stop at a smaller e than the largest.

Greedy allocation (Liu et al. 2024, TEAL, arXiv 2408.14690, algorithm 1). A layer's cut tensors begin at level 0. In
each round, every tensor is raised by one step on trial, and the raise is kept that gives the smallest

    || ffn(x) - cut ffn(x) ||

Differs from TEAL: the FFN alone is cut. Its matrices have equally many weights, so every step saves the same, and the
error of the block is the error of its FFN.
"""

from collections.abc import Callable

import numpy as np

from ..transformer.ffn import swiglu
from ..transformer.layer import Layer
from .masked import masked_swiglu
from .policies import Policy, magnitude

GRID = 4096  # thresholds tried per layer; the paper's code takes 65,536
TOP = 0.99  # the grid ends at this quantile of ||n_j||
STEP = 0.05  # of one tensor's level


def cett_curve(mid: np.ndarray, layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    """CETT of one layer at every threshold of the grid.

    mid (T, F)  ->  thresholds (GRID,), CETT (GRID,). Per token, the neurons are sorted by length and their
    vectors n_j are added one by one: the length of a partial sum is what a threshold just above its last neuron loses.
    """
    length = magnitude("neuron_norm", mid, {"neuron_norm": np.linalg.norm(layer.down_proj, axis=0)})  # (T, F)
    grid = np.linspace(length.min(), np.quantile(length, TOP), GRID)
    lost = np.zeros(GRID)
    down = layer.down_proj.T.astype(np.float64)  # (F, D)
    for m, size in zip(mid, length, strict=True):
        order = np.argsort(size, kind="stable")
        partial = np.cumsum(m[order, None] * down[order], axis=0)  # (F, D)
        error = np.concatenate([[0.0], np.linalg.norm(partial, axis=1)])  # (F + 1,): with 0, 1, ... F left out
        share = error / max(error[-1], np.finfo(np.float64).tiny)  # a token whose output is zero loses nothing
        lost += share[np.searchsorted(size[order], grid, side="left")]  # number of neurons below the threshold
    return grid, lost / len(mid)


def largest_within(grid: np.ndarray, curve: np.ndarray, target: float) -> float:
    """The largest threshold whose CETT is at most the target; 0 where there is none."""
    within = np.flatnonzero(curve <= target)
    return float(grid[within[-1]]) if target > 0 and len(within) else 0.0


def cut_error(
    x: np.ndarray, layer: Layer, policy: Policy, thresholds: dict[str, float], dense: np.ndarray | None = None
) -> float:
    """|| ffn(x) - cut ffn(x) || over all rows.  x (T, D)  ->  a length. dense: ffn(x), if already computed."""
    dense = swiglu(x, layer) if dense is None else dense
    return float(np.linalg.norm(dense - masked_swiglu(x, layer, policy=policy, thresholds=thresholds)))


def greedy_levels(
    x: np.ndarray, layer: Layer, policy: Policy, at: Callable[[str, float], float], end: float = 0.95
) -> list[dict[str, float]]:
    """Greedy allocation in one layer: {tensor: level} after each step, from 0 until the mean level reaches ``end``.

    x (T, D) inputs of the layer; at(tensor, level): a tensor's threshold at a quantile.
    """
    levels, dense = dict.fromkeys(policy.tensors, 0.0), swiglu(x, layer)
    path = [levels]

    def error(tried: dict[str, float]) -> float:
        return cut_error(x, layer, policy, {t: at(t, level) for t, level in tried.items()}, dense)

    while np.mean(list(levels.values())) < end:
        raised = [levels | {t: min(level + STEP, 0.99)} for t, level in levels.items() if level < 0.99]
        levels = min(raised, key=error)
        path.append(levels)
    return path


def on_path(path: list[dict[str, float]], mean: float) -> dict[str, float]:
    """The levels of a path at a given mean level, interpolated linearly between two steps."""
    means = [float(np.mean(list(levels.values()))) for levels in path]
    return {tensor: float(np.interp(mean, means, [levels[tensor] for levels in path])) for tensor in path[0]}
