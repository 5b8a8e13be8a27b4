"""Neurons that fire together, stored together: the permutation that makes blocks worth keeping.

The order of a layer's neurons has no meaning: permute the rows of gate and up and the columns of down alike, and the
same products are summed in another order. So it can be chosen. If whole blocks of g neighbours are kept or left out
(prefetch/kernels.py gives the reason), the best order puts the neurons that matter for the same tokens into the same
block, so that half of the blocks hold more than half of the output's energy.

The energy of neuron j is its share of token t's FFN output,

    e[t, j] = m[t, j]^2 ||down_j||^2 / sum_i m[t, i]^2 ||down_i||^2                        m = act(gate) * up

A token keeps the K blocks with the largest E[t, b] = sum of e[t, j] over the block. We look for the partition into
blocks that keeps the most energy over a calibration text,

    kept = mean_t  sum of the K largest E[t, b]

by exchanging neurons between blocks, two at a time. An exchange between blocks b and c does not change
E[t, b] + E[t, c] = C, only their difference. With a >= a' the (K-1)-th and K-th largest of the other blocks, the token
keeps

    the K-2 largest of the others  +  max(a + a', C, a + (C + |E[t, b] - E[t, c]|) / 2)

either none, both, or the larger of the two. So the exact gain of all g^2 exchanges of a pair of blocks is one array of
(T, g, g) numbers. The best exchange is made, until no pair has a gain. (Clustering brings similar neurons together,
without this objective. Here two neurons can also share a block because no token needs either of them, and all blocks
have the same size without a constraint.) The start is random: one sorted by frequency ends in a poorer optimum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ..predictors.router import block_sums, neuron_energy
from ..sparsity.magnitudes import sample_values
from ..sparsity.policies import largest
from ..sparsity.selected import NOTHING_READ, SelectedFFN
from ..trace import Tap, no_tap
from ..transformer.layer import Layer
from ..transformer.model import Llama
from ..transformer.texts import runs
from .kernels import coefficients

AT_ONCE = 1 << 15  # numbers: 128 KiB of a core's cache
SWEEPS = 20  # over all pairs of blocks, at most; most need fewer


def recorded_mid(
    model: Llama, documents: str | Sequence[str], tokens: int = 4000, context: int | None = None
) -> list[np.ndarray]:
    """mid of each layer on the first ``tokens`` tokens of texts, in the dense model: L times (T, F)."""
    sampled = sample_values(model, runs(model, documents, "documents", context), ("mid",), tokens)
    return [layer["mid"] for layer in sampled]


def energy_shares(mid: np.ndarray, layer: Layer) -> np.ndarray:
    """e: each neuron's share of the token's energy.  mid (T, F)  ->  (T, F), rows that sum to 1.

    A token without any energy (ReLU can give one) has shares of 0.
    """
    energy = neuron_energy(mid, layer)  # (T, F)
    total = energy.sum(axis=1, keepdims=True)  # (T, 1)
    return np.divide(energy, total, out=np.zeros_like(energy), where=total > 0)


def block_energy(energy: np.ndarray, order: np.ndarray, group: int) -> np.ndarray:
    """E of each block of ``group`` neighbours in that order.  energy (T, F), order (F,)  ->  (T, B)."""
    return block_sums(energy[:, order], group)


def kept_count(blocks: int, share: float) -> int:
    """K: number of blocks to keep, at least one."""
    return max(1, round(share * blocks))


def retained(energy: np.ndarray, order: np.ndarray, group: int, share: float = 0.5) -> float:
    """The objective: mean over tokens of the energy in the blocks kept, each token's best ``share`` of them."""
    sums = np.sort(block_energy(energy, order, group), axis=1)  # (T, B)
    return float(sums[:, -kept_count(sums.shape[1], share) :].sum(axis=1).mean())


def clustered(energy: np.ndarray, group: int, rng: np.random.Generator, share: float = 0.5) -> np.ndarray:
    """An order of the neurons in which blocks of ``group`` keep the most (module docstring).

    energy (T, F), rows that sum to 1, from a calibration text  ->  order (F,): the neuron at each place.
    Takes time T F^2 per sweep over all pairs of blocks; SWEEPS of them at most.
    """
    tokens, neurons = energy.shape
    order = rng.permutation(neurons)
    starts = [*range(0, neurons, group), neurons]
    blocks = len(starts) - 1
    if kept_count(blocks, share) == blocks:
        return order  # any order keeps everything
    # Two more blocks without neurons, one always kept and one never, so that every K has neighbours to compare with.
    K = kept_count(blocks, share) + 1
    extra = np.broadcast_to(np.array([[2], [0]], np.float32), (2, tokens))
    sums = np.concatenate([block_energy(energy, order, group).T.astype(np.float32), extra])  # E (B + 2, T)
    energy = np.ascontiguousarray(energy.T, np.float32)  # (F, T): a neuron's values side by side

    each = np.arange(tokens)

    def around_the_cut() -> np.ndarray:
        """The (K-1)-th to (K+2)-th largest block sums of each token (4, T)."""
        return np.sort(sums, axis=0)[::-1][K - 2 : K + 2].copy()  # np.partition takes six times as long

    def largest_of_others(place: int, high: np.ndarray, low: np.ndarray) -> np.ndarray:
        """The (K-1)-th (place 0) or K-th (1) largest sum once two, one high and one low, are taken out (T,)."""
        skip = place + (high >= cut[place])
        skip += low >= cut.take(skip * tokens + each)
        return cut.take(skip * tokens + each)

    settled: dict[tuple[int, int], tuple[int, int]] = {}  # blocks -> their moves when the two were last looked at
    cut, moves, every = around_the_cut(), [0] * blocks, True
    for _ in range(SWEEPS):
        exchanged = False
        for b, c in combinations(range(blocks), 2):
            if not every and settled.get((b, c)) == (moves[b], moves[c]):
                continue  # neither has changed since; the others matter little, and the last sweep checks all pairs
            both = sums[b] + sums[c]  # C (T,)
            high, low = np.maximum(sums[b], sums[c]), np.minimum(sums[b], sums[c])
            a, a2 = largest_of_others(0, high, low), largest_of_others(1, high, low)
            # max(a + a', C, a + (C + |d|) / 2) = a + (C + max(|d|, level)) / 2    with d = E_b - E_c
            level = 2 * (np.maximum(a + a2, both) - a) - both  # (T,)
            mine, yours, before = order[starts[b] : starts[b + 1]], order[starts[c] : starts[c + 1]], moves[b]  # views
            while (best := _best_exchange(energy[mine], energy[yours], sums[b] - sums[c], level)) is not None:
                i, j = best
                change = energy[yours[j]] - energy[mine[i]]
                sums[b] += change
                sums[c] -= change
                mine[i], yours[j] = yours[j], mine[i]
                moves[b] += 1
                moves[c] += 1
            settled[b, c] = moves[b], moves[c]
            if moves[b] > before:
                cut, exchanged = around_the_cut(), True
        if every and not exchanged:
            break
        every = not exchanged
    return order


def _best_exchange(
    mine: np.ndarray, yours: np.ndarray, difference: np.ndarray, level: np.ndarray
) -> tuple[int, int] | None:
    """The exchange (i of mine, j of yours) that raises sum_t max(|E_b - E_c|, level) most; None where none does."""
    now = np.maximum(np.abs(difference), level).sum(dtype=np.float64)
    best, where = 2e-6 * len(level), None  # less is rounding
    yours, left = 2 * yours, difference - 2 * mine  # (g, T)
    ones, rows = np.ones_like(level), max(1, AT_ONCE // yours.size)
    for i in range(0, len(mine), rows):
        after = left[i : i + rows, None] + yours  # (rows, g, T)
        np.abs(after, out=after)
        gain = np.maximum(after, level, out=after) @ ones - now  # (rows, g)
        if gain.max() > best:
            best, at = gain.max(), np.unravel_index(gain.argmax(), gain.shape)
            where = i + int(at[0]), int(at[1])
    return where


def best_blocks(energy: np.ndarray, order: np.ndarray, group: int, share: float) -> np.ndarray:
    """True for the neurons of each token's K blocks of the largest energy.  energy (T, F)  ->  bool (T, F)."""
    blocks = block_energy(energy, order, group)  # (T, B)
    kept = largest(blocks, kept_count(blocks.shape[1], share))  # (T, B)
    mask = np.empty(energy.shape, bool)
    mask[:, order] = kept[:, np.arange(len(order)) // group]
    return mask


def dropped_means(mid: np.ndarray, layer: Layer, order: np.ndarray, group: int, share: float = 0.5) -> np.ndarray:
    """Each neuron's mean mid over the tokens that leave its block out.  mid (T, F) of a calibration text  ->  (F,).

    Zero for a neuron that is never left out.
    """
    out = ~best_blocks(neuron_energy(mid, layer), order, group, share)  # (T, F)
    return np.where(out, mid, 0).sum(axis=0) / np.maximum(1, out.sum(axis=0, dtype=mid.dtype))


@dataclass(frozen=True, eq=False)
class BlockOracle:
    """A Selector of each token's best blocks: it knows mid, so it is a bound and no method.

        the K blocks with the largest sum of (m_j - mean_j)^2 ||down_j||^2

    and with ``means`` in the FFN that executes it (``SelectedFFN(select, means=...)``)

        y = c + sum of (m_j - mean_j) down_j over these blocks        c = sum over all j of mean_j down_j

    group: neurons per block. share: of the blocks that are kept. orders: per layer (place -> neuron), without changing
    the model; None: as stored. means: per layer (F,), the mid of a neuron that is left out (``dropped_means``); None:
    zero. c is known beforehand, so means cost no read: a block that is left out is replaced by its mean.
    """

    group: int
    share: float = 0.5
    orders: Sequence[np.ndarray] | None = None
    means: Sequence[np.ndarray] | None = None
    name: str = "block oracle"
    calibrated_on: frozenset[str] = frozenset()
    reads: frozenset[str] = NOTHING_READ

    def __call__(self, x: np.ndarray, layer: Layer, position: int = 0, tap: Tap = no_tap) -> np.ndarray:
        """x (T, D)  ->  mask (T, F)."""
        i, count = layer.index, len(layer.gate_proj)
        order = np.arange(count) if self.orders is None else self.orders[i]
        mean = np.zeros(count, x.dtype) if self.means is None else self.means[i]  # (F,)
        mid = coefficients(x, layer.gate_proj, layer.up, slice(None), layer)  # (T, F)
        return best_blocks(neuron_energy(mid - mean, layer), order, self.group, self.share)  # (T, F)

    def ffn(self) -> SelectedFFN:
        """The FeedForward that keeps these blocks, with the means in the place of the others."""
        return SelectedFFN(self, means=self.means)
