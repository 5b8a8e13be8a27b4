"""Predicting by patterns seen before: the paper's own guideline, and its follow-up's clusters.

A pattern is the set of active neurons of one layer at one position, here the mask of policy ``mid``, 8 to a byte.

Library (Dhar et al. 2024, arXiv 2412.12178, section on predictability, which gives no method beyond this sentence:
the first layer's pattern as a key to those of the later layers). Layer 0 is computed exactly, so its pattern b is
known; the k stored positions with the nearest patterns vote for the layers above:

    near = the k positions n with the smallest Hamming distance |b xor library[0, n]|
    score[l, j] = sum over n in near of library[l, n, j]        for l >= 1

Clusters (follow-up, arXiv 2507.14179): K centroids c_k per layer stand for all patterns, and only one number is
predicted, which centroid. The distance counts what the centroid misses; what it has too much is free, so the density
of the centroids must be forced, or the densest one would be nearest to everything:

    D(b, c) = sum_j b_j (1 - c_j)        c_k = the most frequent neurons of its members, a fixed share of all

Where all centroids have the same density d, D and the Hamming distance rank them alike, since with h = |b & c|

    D = |b| - h        |b xor c| = |b| + d F - 2 h

so the asymmetry decides nothing there: it matters only when densities differ. The released code assigns by the TRUE
pattern, which nobody has before the layer is computed (``assign="pattern"``). No other assignment to centroids of one
density has a higher recall: an upper bound of the recall, though not of everything, since D counts a large neuron like
a small one. What can be used is the layer's input: the cluster whose members had the nearest mean input
(``assign="input"``).

Votes and bits tie often. Frequencies, scaled below one half, break the ties, so that any share can be selected.

Differs from the follow-up: patterns are those of policy mid and not of the cut gate; the history of a centroid blends
the means of its members, not their rounded bits; equal distances are told apart by the bits that are too many.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import MinillmError
from ..sparsity.magnitudes import sample_values
from ..sparsity.policies import policy_named
from ..study.edits import most_frequent
from ..transformer.model import Llama, shape_of
from ..transformer.ops import ACTIVATIONS, linear
from ..transformer.texts import document_hashes, runs
from .select import sparse_ffn

if TYPE_CHECKING:
    from ..sparsity.calibrate import Thresholds

TIE = np.float32(0.5)  # a frequency of 1 is worth half a vote
ROWS = 64  # positions whose keys are compared with a library at once


# ---- stored patterns -------------------------------------------------------------------------------------------------


def seen(
    model: Llama, thresholds: Thresholds, documents: str | Sequence[str], size: int, rng: np.random.Generator,
    context: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Inputs (L, N, D) and patterns (L, N, F) of ``size`` positions of a text (or all), drawn at random, in order.

    They are taken from the model as it runs: cut by these thresholds of policy mid. Raises MinillmError for others.
    """
    if thresholds.policy != "mid":
        raise MinillmError(f"the thresholds are of policy {thresholds.policy}, a predictor's truth is mid")
    pieces = runs(model, documents, "documents", context)
    found = sample_values(model, pieces, ("norm", "mask"), ffn=sparse_ffn(model, thresholds))
    total = len(found[0]["norm"])
    rows = np.sort(rng.choice(total, min(size, total), replace=False))
    return tuple(np.array([layer[step][rows] for layer in found]) for step in ("norm", "mask"))


def nearest(keys: np.ndarray, library: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` nearest patterns by Hamming distance, both packed: (T, B), (N, B)  ->  (T, count) indices.

    Of equal distances, the smaller index comes first.
    """
    found = []
    for a in range(0, len(keys), ROWS):
        differing = np.bitwise_count(keys[a : a + ROWS, None] ^ library)  # (rows, N, B)
        found.append(np.argsort(differing.sum(axis=-1, dtype=np.int32), axis=-1, kind="stable")[:, :count])
    return np.concatenate(found)


class Library:
    """The paper's guideline: layer 0's pattern finds stored positions, which vote for the later layers.

    library (L, N, B): packed patterns. frequency (L, F). first: gate_proj, up_proj and their biases of layer 0, which
    is computed exactly; they are counted in nbytes, since a token needs all of them. level: layer 0's threshold.
    """

    sequential, needs_truth = False, False

    def __init__(
        self, library: np.ndarray, frequency: np.ndarray, first: dict[str, np.ndarray], level: float, act: str, k: int
    ):
        self.library, self.frequency, self.first = library, frequency, first
        self.level, self.act, self.k = level, act, k
        width, hidden = first["gate_proj"].shape
        self.shape = (len(library), hidden, width)
        packed = library.dtype == np.uint8 and library.ndim == 3 and library.shape[2] == -(-width // 8)
        if not packed or frequency.shape != (len(library), width) or first["up_proj"].shape != (width, hidden):
            raise ValueError(f"library {library.shape} and frequency {frequency.shape} do not fit {width} neurons")
        if act not in ACTIVATIONS or not 1 <= k <= library.shape[1]:
            raise ValueError(f"act is {act!r} and k {k!r}, expected an activation and 1 to {library.shape[1]}")
        self.name = f"library {library.shape[1]}, k {k}"
        self.cutoffs, self.trained_on = None, frozenset()
        self._near = np.empty((0, k), int)

    @classmethod
    def fit(
        cls, model: Llama, thresholds: Thresholds, documents: str | Sequence[str], rng: np.random.Generator,
        size: int = 1024, k: int = 8, context: int | None = None,
    ) -> Library:  # fmt: skip
        """Store the patterns of ``size`` positions of a training text, drawn at random; k neighbours will vote."""
        _, patterns = seen(model, thresholds, documents, size, rng, context)
        if not 1 <= k <= patterns.shape[1]:
            raise MinillmError(f"k is {k}, expected 1 to {patterns.shape[1]}, the number of stored patterns")
        layer = model.layers[0]
        first = {name: getattr(layer, name) for name in ("gate_proj", "up_proj", "gate_bias", "up_bias")}
        first = {name: array for name, array in first.items() if array is not None}
        frequency = patterns.mean(axis=1, dtype=np.float32)  # (L, F)
        level, act = thresholds.layers[0]["mid"], model.config.hidden_act
        found = cls(np.packbits(patterns, axis=-1), frequency, first, level, act, k)
        found.trained_on = frozenset(document_hashes(documents))
        return found

    def predict(self, index: int, position: int, x: np.ndarray) -> np.ndarray:
        """x (T, D)  ->  |mid| at layer 0, votes of the neighbours found there at the others (T, F)."""
        if index == 0:
            gate = ACTIVATIONS[self.act](linear(x, self.first["gate_proj"], self.first.get("gate_bias")))
            mid = np.abs(gate * linear(x, self.first["up_proj"], self.first.get("up_bias")))  # (T, F)
            key = policy_named("mid").kept("mid", mid, {"mid": self.level}, {})
            self._near = nearest(np.packbits(key, axis=-1), self.library[0], self.k)  # (T, k)
            return mid
        if len(self._near) != len(x):
            raise MinillmError(f"layer {index} has {len(x)} rows, layer 0 had {len(self._near)}, expected the same")
        votes = np.zeros((len(x), self.shape[2]), np.float32)
        for near in self._near.T:
            votes += np.unpackbits(self.library[index, near], axis=-1, count=self.shape[2])
        return votes + TIE * self.frequency[index]  # (T, F)

    def observe(self, index: int, position: int, x: np.ndarray, mask: np.ndarray | None) -> None:
        """Nothing: layer 0's pattern is known when it is computed."""

    @property
    def nbytes(self) -> int:
        """Packed patterns, frequencies, and layer 0's gate and up."""
        return sum(array.nbytes for array in self.arrays().values())

    def multiply_adds(self, index: int) -> float:
        """Layer 0: gate and up, and N comparisons of F bits at 32 to one; the others: k votes per neuron."""
        _, hidden, width = self.shape
        return 2 * width * hidden + self.library.shape[1] * width / 32 if index == 0 else self.k * width

    def arrays(self) -> dict[str, np.ndarray]:
        """Its tables, layer 0's weights among them."""
        return {"library": self.library, "frequency": self.frequency, **self.first}

    def settings(self) -> dict:
        """k, and what layer 0 needs beside its weights."""
        return {"k": self.k, "level": self.level, "act": self.act}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], settings: dict) -> Library:
        """The same library again."""
        first = {name: array for name, array in arrays.items() if name not in ("library", "frequency")}
        act, level, k = settings["act"], float(settings["level"]), int(settings["k"])
        return cls(arrays["library"], arrays["frequency"], first, level, act, k)


# ---- clusters --------------------------------------------------------------------------------------------------------


def distances(patterns: np.ndarray, centroids: np.ndarray, kind: str = "missed") -> np.ndarray:
    """How far patterns are from centroids.

        missed    sum_j b_j (1 - c_j), and extra bits below one: sum_j (1 - b_j) c_j / (F + 1)     to break ties
        hamming   missed and extra bits alike

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

    In order k = 0 .. K-1, each cluster takes the nearest patterns that are left: greedy, as released, so that the last
    clusters get what nobody wanted.
    """
    count, clusters = distance.shape
    labels, left = np.empty(count, int), np.arange(count)
    for k in range(clusters):
        order = np.argsort(distance[left, k], kind="stable")
        size = count // clusters + (k < count % clusters)
        labels[left[order[:size]]] = k
        left = np.sort(left[order[size:]])
    return labels


def cluster(
    patterns: np.ndarray, count: int, density: float | None, rng: np.random.Generator, iterations: int = 10,
    distance: str = "missed",
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Centroids of patterns, and which of them each pattern belongs to (arXiv 2507.14179, its code).

        mean_k = (i mean_k + mean of the members) / (i + 1)        at iteration i, members by ``balanced``
        c_k = the ``density`` F largest entries of mean_k; or, density None, those above 1/2

    patterns (N, F) bool  ->  centroids (K, F) bool, labels (N,). MinillmError for a count or density out of range.
    """
    if not 1 <= count <= len(patterns):
        raise MinillmError(f"{count} clusters were asked for, expected 1 to {len(patterns)}, the number of patterns")
    if density is not None and not 0 < density <= 1:
        raise MinillmError(f"density is {density}, expected a share above 0 and at most 1")

    def binary(means: np.ndarray) -> np.ndarray:
        if density is None:
            return means > 0.5
        return np.array([most_frequent(mean, round(density * len(mean))) for mean in means])

    means = patterns[spread(patterns, count, rng)].astype(np.float64)  # (K, F)
    centroids = means > 0.5
    for i in range(iterations):
        labels = balanced(distances(patterns, centroids, distance))
        order = np.argsort(labels, kind="stable")
        starts = np.searchsorted(labels[order], np.arange(count))
        sizes = np.bincount(labels, minlength=count)[:, None]
        members = np.add.reduceat(patterns[order], starts, axis=0, dtype=np.float64) / sizes  # (K, F)
        means = (i * means + members) / (i + 1)
        centroids = binary(means)
    return centroids, balanced(distances(patterns, centroids, distance))


class Clusters:
    """The follow-up's clusters: the score of a neuron is its bit in the centroid that the position is assigned to.

    centroids (G, K, B): packed. frequency (L, F). means (G, K, D): mean input of each cluster's members, or None.
    G is L, or 1 where all layers share (``pooled``). With ``model``, positions are assigned by their true patterns,
    which only gate and up in full tell: an upper bound of the recall, and no file.
    """

    sequential, needs_truth = False, False

    def __init__(
        self, centroids: np.ndarray, frequency: np.ndarray, means: np.ndarray | None, shape: tuple[int, int, int],
        model: Llama | None = None, thresholds: Thresholds | None = None, distance: str = "missed",
    ):  # fmt: skip
        layers, hidden, width = self.shape = tuple(shape)
        groups, count = centroids.shape[:2]
        expected = [(groups, count, -(-width // 8)), (layers, width)]
        if groups not in (1, layers) or [centroids.shape, frequency.shape] != expected or centroids.dtype != np.uint8:
            raise ValueError(f"centroids {centroids.shape} and frequency {frequency.shape} do not fit {self.shape}")
        if means is not None and means.shape != (groups, count, hidden):
            raise ValueError(f"means {means.shape}, expected {(groups, count, hidden)}")
        self.centroids, self.frequency, self.means = centroids, frequency, means
        self.model, self.thresholds, self.distance = model, thresholds, distance
        self.name = f"clusters {count}" + " pooled" * (groups == 1 < layers) + ", true pattern" * (model is not None)
        self.cutoffs, self.trained_on = None, frozenset()

    @classmethod
    def fit(
        cls, model: Llama, thresholds: Thresholds, documents: str | Sequence[str], rng: np.random.Generator,
        count: int = 64, density: float | None = 0.5, size: int = 4096, pooled: bool = False, assign: str = "input",
        distance: str = "missed", iterations: int = 10, context: int | None = None,
    ) -> Clusters:  # fmt: skip
        """Cluster the patterns of ``size`` positions of a training text, layer by layer or (``pooled``) all together.

        density: share of set bits forced on every centroid, None for as many as the members have. assign: "input", or
        "pattern" (upper bound).
        """
        if assign not in ("input", "pattern"):
            raise MinillmError(f"assign is {assign!r}, expected input or pattern")
        inputs, patterns = seen(model, thresholds, documents, size, rng, context)
        frequency = patterns.mean(axis=1, dtype=np.float32)  # (L, F)
        if pooled:
            inputs, patterns = (array.reshape(1, -1, array.shape[-1]) for array in (inputs, patterns))
        centroids, means = [], []
        for x, bits in zip(inputs, patterns, strict=True):
            found, labels = cluster(bits, count, density, rng, iterations, distance)
            centroids.append(np.packbits(found, axis=-1))
            means.append([x[labels == k].mean(axis=0) for k in range(count)])
        truth = {"model": model, "thresholds": thresholds} if assign == "pattern" else {}
        table = np.array(means, np.float32) if assign == "input" else None
        predictor = cls(np.array(centroids), frequency, table, shape_of(model), **truth, distance=distance)
        predictor.trained_on = frozenset(document_hashes(documents))
        return predictor

    def assigned(self, index: int, x: np.ndarray) -> np.ndarray:
        """x (T, D)  ->  the cluster of each row (T,)."""
        group = index if len(self.centroids) > 1 else 0
        if self.model is None:
            # |x - mean|^2 = |x|^2 - 2 (x . mean - |mean|^2 / 2): the nearest has the largest bracket
            means = self.means[group]
            return (x @ means.T - np.square(means).sum(axis=1) / 2).argmax(axis=1)
        layer = self.model.layers[index]
        gate = layer.act(linear(x, layer.gate_proj, layer.gate_bias))  # (T, F)
        mid = gate * linear(x, layer.up_proj, layer.up_bias)  # (T, F)
        true = policy_named("mid").kept("mid", mid, self.thresholds.layers[index], {})
        return distances(true, self._bits(group), self.distance).argmin(axis=1)

    def _bits(self, group: int) -> np.ndarray:
        return np.unpackbits(self.centroids[group], axis=-1, count=self.shape[2]).astype(bool)  # (K, F)

    def predict(self, index: int, position: int, x: np.ndarray) -> np.ndarray:
        """x (T, D)  ->  the bits of the row's centroid, and below one half the frequencies (T, F)."""
        bits = self._bits(index if len(self.centroids) > 1 else 0)[self.assigned(index, x)]
        return bits.astype(np.float32) + TIE * self.frequency[index]

    def observe(self, index: int, position: int, x: np.ndarray, mask: np.ndarray | None) -> None:
        """Nothing to learn."""

    @property
    def nbytes(self) -> int:
        """Packed centroids, frequencies and mean inputs; an upper bound's gate and up are the model's own."""
        return sum(array.nbytes for array in (self.centroids, self.frequency, self.means) if array is not None)

    def multiply_adds(self, index: int) -> float:
        """K products of D entries; by the true pattern gate and up, and K comparisons of F bits at 32 to one."""
        _, hidden, width = self.shape
        count = self.centroids.shape[1]
        return count * hidden if self.model is None else 2 * width * hidden + count * width / 32

    def arrays(self) -> dict[str, np.ndarray]:
        """Its tables. Raises MinillmError for assignment by the true pattern, which needs the model itself."""
        if self.model is not None:
            raise MinillmError(f"{self.name} needs the model's own weights, expected a predictor that can be saved")
        return {"centroids": self.centroids, "frequency": self.frequency, "means": self.means}

    def settings(self) -> dict:
        """The shape of the model."""
        return {"shape": list(self.shape)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], settings: dict) -> Clusters:
        """The same clusters again."""
        layers, hidden, width = (int(size) for size in settings["shape"])
        return cls(arrays["centroids"], arrays["frequency"], arrays["means"], (layers, hidden, width))
