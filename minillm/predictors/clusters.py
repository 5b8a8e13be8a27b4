"""Predicting by clusters of patterns: the follow-up of the paper (arXiv 2507.14179).

A pattern is the set of active neurons of one layer at one position (memory.py). K centroids c_k per layer stand for
all patterns, and only one number is predicted, which centroid. The distance counts the bits that the centroid misses.
Its excess bits cost nothing, so the density of the centroids must be forced, or the densest one would be nearest to
everything:

    D(b, c) = sum_j b_j (1 - c_j)        c_k = the most frequent neurons of its members, a fixed share of all

Where all centroids have the same density d, D and the Hamming distance rank them alike, since with h = |b & c|

    D = |b| - h        |b xor c| = |b| + d F - 2 h

so the asymmetry decides nothing there: it matters only when densities differ. The released code assigns by the TRUE
pattern, which is not known before the layer is computed (``assign="pattern"``). No other assignment to centroids of one
density has a higher recall: an upper bound of the recall, though not of everything, since D counts a large neuron like
a small one. What can be used is the layer's input: the cluster whose members had the nearest mean input
(``assign="input"``).

Bits tie often. Frequencies, scaled below one half, break the ties, so that any share can be selected.

Differs from the follow-up: patterns are those of policy mid and not of the cut gate; the history of a centroid blends
the means of its members, not their rounded bits; of equal distances, the one with fewer excess bits counts as smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import MinillmError
from ..fields import Fields
from ..sparsity.policies import largest
from ..sparsity.selected import mid_mask
from ..sparsity.thresholds import Thresholds
from ..threads import few_threads
from ..transformer.ffn import mid_of
from ..transformer.model import Llama, shape_of
from ..transformer.texts import document_hashes
from .layout import Layout, Shape, Table, check_shape, sizes_of
from .memory import TIE, sample_patterns
from .protocol import Predictor


def distances(patterns: np.ndarray, centroids: np.ndarray, kind: str = "missed") -> np.ndarray:
    """How far patterns are from centroids.

        missed    sum_j b_j (1 - c_j) + sum_j (1 - b_j) c_j / (F + 1)     the excess bits stay below one and break ties
        hamming   sum_j b_j (1 - c_j) + sum_j (1 - b_j) c_j

    patterns (N, F), centroids (K, F), both bool  ->  (N, K) float64.
    """
    b, c = patterns.astype(np.float32), centroids.astype(np.float32)
    hits = (b @ c.T).astype(np.float64)  # (N, K): whole numbers, exact
    missed, extra = b.sum(axis=1)[:, None] - hits, c.sum(axis=1) - hits
    if kind not in ("missed", "hamming"):
        raise MinillmError(f"distance is {kind!r}, expected missed or hamming")
    return missed + (extra / (patterns.shape[1] + 1) if kind == "missed" else extra)


def spread(patterns: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """First centroids, far from each other: ``count`` of the patterns (N, F)  ->  their indices (count,).

    The densest pattern first; each next one with a probability proportional to sqrt(Hamming distance) to the nearest
    one chosen, at first only among those with at least 40 % zeros (k-means++ as the follow-up's code has it).
    """
    chosen = [int(patterns.sum(axis=1).argmax())]
    far = np.full(len(patterns), np.inf)
    sparse = patterns.mean(axis=1) <= 0.6
    while len(chosen) < count:
        far = np.minimum(far, np.count_nonzero(patterns ^ patterns[chosen[-1]], axis=1))
        far[chosen] = 0
        weight = np.sqrt(far)
        weight = weight * sparse if (weight * sparse).any() else weight
        if not weight.any():  # only copies of chosen ones are left
            weight = np.ones(len(patterns))
            weight[chosen] = 0
        chosen.append(int(rng.choice(len(patterns), p=weight / weight.sum())))
    return np.array(chosen)


def balanced(distance: np.ndarray) -> np.ndarray:
    """Give each cluster equally many patterns: (N, K)  ->  labels (N,), sizes N // K or one more.

    In order k = 0 .. K-1, each cluster takes the nearest patterns that are left: greedy, as in the released code, so
    that the last clusters get the patterns that fitted no other.
    """
    count, clusters = distance.shape
    labels, left = np.empty(count, int), np.arange(count)
    for k in range(clusters):
        order = np.argsort(distance[left, k], kind="stable")
        size = count // clusters + (k < count % clusters)
        labels[left[order[:size]]] = k
        left = np.sort(left[order[size:]])
    return labels


@dataclass(frozen=True)
class ClusterSettings:
    """How patterns are clustered.

    count: number of clusters (K). density: share of set bits forced on every centroid; None: as many as the members
    have. distance: "missed" or "hamming". iterations: of assigning and averaging. size: number of positions that are
    clustered. pooled: all layers together, or one by one. assign: by the "input", or by the true "pattern" (the bound).
    """

    count: int = 64
    density: float | None = 0.5
    distance: str = "missed"
    iterations: int = 10
    size: int = 4096
    pooled: bool = False
    assign: str = "input"


def cluster(patterns: np.ndarray, settings: ClusterSettings, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Centroids of patterns, and which of them each pattern belongs to (arXiv 2507.14179, its code).

        mean_k = (i mean_k + mean of the members) / (i + 1)        at iteration i, members by ``balanced``
        c_k = the ``density`` F largest entries of mean_k; or, density None, those above 1/2

    patterns (N, F) bool  ->  centroids (K, F) bool, labels (N,). MinillmError for a count or density out of range.
    """
    count, density, distance = settings.count, settings.density, settings.distance
    if not 1 <= count <= len(patterns):
        raise MinillmError(f"{count} clusters were asked for, expected 1 to {len(patterns)}, the number of patterns")
    if density is not None and not 0 < density <= 1:
        raise MinillmError(f"density is {density}, expected a share above 0 and at most 1")

    def binary(means: np.ndarray) -> np.ndarray:
        if density is None:
            return means > 0.5
        return np.array([largest(mean, round(density * len(mean))) for mean in means])

    means = patterns[spread(patterns, count, rng)].astype(np.float64)  # (K, F)
    centroids = means > 0.5
    for i in range(settings.iterations):
        labels = balanced(distances(patterns, centroids, distance))
        order = np.argsort(labels, kind="stable")
        starts = np.searchsorted(labels[order], np.arange(count))
        sizes = np.bincount(labels, minlength=count)[:, None]
        members = np.add.reduceat(patterns[order], starts, axis=0, dtype=np.float64) / sizes  # (K, F)
        means = (i * means + members) / (i + 1)
        centroids = binary(means)
    return centroids, balanced(distances(patterns, centroids, distance))


class TruePattern(NamedTuple):
    """What assignment by the true pattern needs: the model's own gate and up, and the thresholds of policy mid."""

    model: Llama
    thresholds: Thresholds
    distance: str = "missed"

    def of(self, index: int, x: np.ndarray) -> np.ndarray:
        """x (T, D)  ->  the true pattern of each row, bool (T, F)."""
        return mid_mask(mid_of(x, self.model.layers[index]), self.thresholds, index)  # (T, F)


class Clusters(Predictor):
    """The follow-up's clusters: the score of a neuron is its bit in the centroid that the position is assigned to.

    centroids (G, K, B): packed. frequency (L, F). means (G, K, D): mean input of each cluster's members, or None. G is
    L, or 1 where all layers share (``pooled``). With ``truth``, positions are assigned by their true patterns, which
    takes gate and up in full: an upper bound of the recall, which cannot be saved.
    """

    def __init__(
        self, centroids: np.ndarray, frequency: np.ndarray, means: np.ndarray | None, shape: tuple[int, int, int],
        truth: TruePattern | None = None,
    ):  # fmt: skip
        layers, hidden, width = shape
        self.shape = (layers, hidden, width)
        groups, count = centroids.shape[:2]
        if means is None and truth is None:
            raise ValueError("means are None, expected them, or the true pattern, to assign positions by")
        self.centroids, self.frequency, self.means, self.truth = centroids, frequency, means, truth
        self.name = f"clusters {count}" + " pooled" * (groups == 1 < layers) + ", true pattern" * (truth is not None)

    @classmethod
    def fit(
        cls, model: Llama, thresholds: Thresholds, documents: str | Sequence[str], rng: np.random.Generator,
        settings: ClusterSettings = ClusterSettings(), context: int | None = None,
    ) -> Clusters:  # fmt: skip
        """Cluster the patterns of a training text. Raises MinillmError for settings out of range."""
        if settings.assign not in ("input", "pattern"):
            raise MinillmError(f"assign is {settings.assign!r}, expected input or pattern")
        inputs, patterns = sample_patterns(model, thresholds, documents, settings.size, rng, context)
        frequency = patterns.mean(axis=1, dtype=np.float32)  # (L, F)
        if settings.pooled:
            inputs, patterns = (array.reshape(1, -1, array.shape[-1]) for array in (inputs, patterns))
        centroids, means = [], []
        for x, bits in zip(inputs, patterns, strict=True):
            with few_threads(model):
                centres, labels = cluster(bits, settings, rng)
            centroids.append(np.packbits(centres, axis=-1))
            means.append([x[labels == k].mean(axis=0) for k in range(settings.count)])
        by_input = settings.assign == "input"
        table = np.array(means, np.float32) if by_input else None
        truth = None if by_input else TruePattern(model, thresholds, settings.distance)
        predictor = cls(np.array(centroids), frequency, table, shape_of(model), truth)
        predictor.trained_on, predictor.model = frozenset(document_hashes(documents)), model.fingerprint
        return predictor

    def assigned(self, index: int, x: np.ndarray) -> np.ndarray:
        """x (T, D)  ->  the cluster of each row (T,)."""
        group = index if len(self.centroids) > 1 else 0
        if self.truth is not None:
            return distances(self.truth.of(index, x), self._bits(group), self.truth.distance).argmin(axis=1)
        # |x - mean|^2 = |x|^2 - 2 (x . mean - |mean|^2 / 2): the nearest has the largest bracket
        means = self._means()[group]  # (K, D)
        return (x @ means.T - np.square(means).sum(axis=1) / 2).argmax(axis=1)

    def _means(self) -> np.ndarray:
        if self.means is None:
            raise MinillmError(f"{self.name} needs the model's own weights, expected a predictor that can be saved")
        return self.means

    def _bits(self, group: int) -> np.ndarray:
        return np.unpackbits(self.centroids[group], axis=-1, count=self.shape[2]).astype(bool)  # (K, F)

    def predict(self, index: int, position: int, x: np.ndarray) -> np.ndarray:
        """x (T, D)  ->  the bits of the row's centroid, and below one half the frequencies (T, F)."""
        bits = self._bits(index if len(self.centroids) > 1 else 0)[self.assigned(index, x)]
        return bits.astype(np.float32) + TIE * self.frequency[index]

    @property
    def nbytes(self) -> int:
        """Packed centroids, frequencies and mean inputs; the gate and up of an upper bound are the model's own."""
        return sum(array.nbytes for array in (self.centroids, self.frequency, self.means) if array is not None)

    def multiply_adds(self, index: int) -> float:
        """K products of D entries; by the true pattern gate and up, and K comparisons of F bits, 32 to one."""
        _, hidden, width = self.shape
        count = self.centroids.shape[1]
        return count * hidden if self.truth is None else 2 * width * hidden + count * width / 32

    def arrays(self) -> dict[str, np.ndarray]:
        """Its tables. Raises MinillmError for assignment by the true pattern, which needs the model itself."""
        return {"centroids": self.centroids, "frequency": self.frequency, "means": self._means()}

    def settings(self) -> dict:
        """The shape of the model."""
        return {"shape": list(self.shape)}

    @classmethod
    def layout(cls, settings: Fields, shape: Shape) -> Layout:
        """K packed centroids, B = F / 8 bytes each, and their mean inputs, for G groups: one for all layers, or L."""
        settings.only(["shape"])
        check_shape(settings, shape)
        tables = {"centroids": Table("GKB", ("U8",)), "frequency": Table("LF", ("F32",), 0, 1)}
        tables["means"] = Table("GKD", ("F32",))
        free = {"G": (1, shape[0]), "K": range(1, 2**31)}
        return Layout(tables, sizes_of(shape) | {"B": -(-shape[2] // 8)}, free)

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], settings: dict) -> Clusters:
        """The same clusters again."""
        layers, hidden, width = (int(size) for size in settings["shape"])
        return cls(arrays["centroids"], arrays["frequency"], arrays["means"], (layers, hidden, width))
