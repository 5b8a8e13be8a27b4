"""Predicting by patterns seen before: the paper's own guideline, a library of patterns.

A pattern is the set of active neurons of one layer at one position, here the mask of policy ``mid``, 8 to a byte.

Library (Dhar et al. 2024, arXiv 2412.12178, section on predictability, which gives no method beyond this sentence:
the first layer's pattern as a key to those of the later layers). Layer 0 is computed exactly, so its pattern b is
known; the k stored positions with the nearest patterns vote for the layers above:

    near = the k positions n with the smallest Hamming distance |b xor library[0, n]|
    score[l, j] = sum over n in near of library[l, n, j]        for l >= 1

Votes tie often. The frequencies of the neurons, scaled below one half, break the ties, so that any share can be
selected. (clusters.py breaks the ties of its bits in the same way.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import MinillmError
from ..fields import Fields
from ..sparsity.magnitudes import sample_values
from ..sparsity.selected import check_truth
from ..sparsity.sparse import policy_ffn
from ..sparsity.thresholds import Thresholds
from ..transformer.linear import linear
from ..transformer.model import Llama
from ..transformer.ops import ACTIVATIONS
from ..transformer.texts import document_hashes, runs
from .layout import Layout, Shape, Table, sizes_of
from .protocol import Predictor
from .select import above

TIE = np.float32(0.5)  # a frequency of 1 is worth half a vote
ROWS = 64  # positions whose keys are compared with a library at once


def sample_patterns(
    model: Llama, thresholds: Thresholds, documents: str | Sequence[str], size: int, rng: np.random.Generator,
    context: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Inputs (L, N, D) and patterns (L, N, F) of N = ``size`` positions of a text, drawn at random, kept in order.

    A shorter text gives all of its positions. They are taken from the model as it runs, cut by these thresholds of
    policy mid. Raises ThresholdsError for thresholds of another policy.
    """
    check_truth(thresholds)
    pieces = runs(model, documents, "documents", context)
    values = sample_values(model, pieces, ("norm", "mask"), ffn=policy_ffn(model, thresholds))
    total = len(values[0]["norm"])
    rows = np.sort(rng.choice(total, min(size, total), replace=False))
    return np.array([layer["norm"][rows] for layer in values]), np.array([layer["mask"][rows] for layer in values])


def nearest(keys: np.ndarray, library: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` nearest patterns by Hamming distance, both packed: (T, B), (N, B)  ->  (T, count) indices.

    Of equal distances, the smaller index comes first.
    """
    indices = []
    for a in range(0, len(keys), ROWS):
        differing = np.bitwise_count(keys[a : a + ROWS, None] ^ library)  # (rows, N, B)
        indices.append(np.argsort(differing.sum(axis=-1, dtype=np.int32), axis=-1, kind="stable")[:, :count])
    return np.concatenate(indices)


@dataclass(frozen=True)
class LibrarySettings:
    """How a library is made. size: number of stored positions, drawn at random. k: number of neighbours that vote."""

    size: int = 1024
    k: int = 8


class Library(Predictor):
    """The paper's guideline: layer 0's pattern finds stored positions, which vote for the later layers.

    library (L, N, B): packed patterns. frequency (L, F). first: gate_proj, up_proj and their biases of layer 0, which
    is computed exactly; they are counted in nbytes, since a token needs all of them. level: layer 0's threshold.
    """

    def __init__(
        self, library: np.ndarray, frequency: np.ndarray, first: dict[str, np.ndarray], level: float, act: str, k: int
    ):
        self.library, self.frequency, self.first = library, frequency, first
        self.level, self.act, self.k = level, act, k
        width, hidden = first["gate_proj"].shape
        self.shape = (len(library), hidden, width)
        self.name = f"library {library.shape[1]}, k {k}"
        self._near = np.empty((0, k), int)

    @classmethod
    def fit(
        cls, model: Llama, thresholds: Thresholds, documents: str | Sequence[str], rng: np.random.Generator,
        settings: LibrarySettings = LibrarySettings(), context: int | None = None,
    ) -> Library:  # fmt: skip
        """Store patterns of a training text. Raises MinillmError for more neighbours than stored patterns."""
        _, patterns = sample_patterns(model, thresholds, documents, settings.size, rng, context)
        if not 1 <= settings.k <= patterns.shape[1]:
            raise MinillmError(f"k is {settings.k}, expected 1 to {patterns.shape[1]}, the number of stored patterns")
        layer = model.layers[0]
        first = {name: getattr(layer, name) for name in ("gate_proj", "up_proj", "gate_bias", "up_bias")}
        first = {name: array for name, array in first.items() if array is not None}
        frequency = patterns.mean(axis=1, dtype=np.float32)  # (L, F)
        level, act = thresholds.layers[0]["mid"], model.config.hidden_act
        library = cls(np.packbits(patterns, axis=-1), frequency, first, level, act, settings.k)
        library.trained_on, library.model = frozenset(document_hashes(documents)), model.fingerprint
        return library

    def predict(self, index: int, position: int, x: np.ndarray) -> np.ndarray:
        """x (T, D)  ->  |mid| at layer 0, votes of the neighbours found there at the others (T, F)."""
        if index == 0:
            gate = ACTIVATIONS[self.act](linear(x, self.first["gate_proj"], self.first.get("gate_bias")))
            mid = np.abs(gate * linear(x, self.first["up_proj"], self.first.get("up_bias")))  # (T, F)
            keys = np.packbits(above(mid, self.level), axis=-1)  # (T, B)
            self._near = nearest(keys, self.library[0], self.k)  # (T, k)
            return mid
        if len(self._near) != len(x):
            raise MinillmError(f"layer {index} has {len(x)} rows, layer 0 had {len(self._near)}, expected the same")
        votes = np.zeros((len(x), self.shape[2]), np.float32)
        for near in self._near.T:
            votes += np.unpackbits(self.library[index, near], axis=-1, count=self.shape[2])
        return votes + TIE * self.frequency[index]  # (T, F)

    @property
    def nbytes(self) -> int:
        """Packed patterns, frequencies, and layer 0's gate and up."""
        return sum(array.nbytes for array in self.arrays().values())

    def multiply_adds(self, index: int) -> float:
        """Layer 0: gate and up, and N comparisons of F bits, 32 of which count as one; above: k votes per neuron."""
        _, hidden, width = self.shape
        return 2 * width * hidden + self.library.shape[1] * width / 32 if index == 0 else self.k * width

    def arrays(self) -> dict[str, np.ndarray]:
        """Its tables, layer 0's weights among them."""
        return {"library": self.library, "frequency": self.frequency, **self.first}

    def settings(self) -> dict:
        """k, and what layer 0 needs beside its weights: its threshold and the activation."""
        return {"k": self.k, "level": self.level, "act": self.act}

    @classmethod
    def layout(cls, settings: Fields, shape: Shape) -> Layout:
        """The packed patterns, B = F / 8 bytes each, of N >= k positions; frequencies; layer 0's weights as loaded."""
        settings.only(["k", "level", "act"])
        settings.choice("act", ACTIVATIONS)
        most, loaded = 2**31 - 1, ("F32", "F64")
        count, level = settings.integer("k", most), settings.between("level", 0, 1e38)
        if level is None:
            raise settings.error("level", "a number from 0")
        tables = {
            "library": Table("LNB", ("U8",)), "frequency": Table("LF", ("F32",), 0, 1),
            "gate_proj": Table("FD", loaded), "up_proj": Table("FD", loaded),
            "gate_bias": Table("F", loaded, group="bias"), "up_bias": Table("F", loaded, group="bias"),
        }  # fmt: skip
        return Layout(tables, sizes_of(shape) | {"B": -(-shape[2] // 8)}, {"N": range(count, most + 1)})

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], settings: dict) -> Library:
        """The same library again."""
        first = {name: array for name, array in arrays.items() if name not in ("library", "frequency")}
        act, level, k = settings["act"], float(settings["level"]), int(settings["k"])
        return cls(arrays["library"], arrays["frequency"], first, level, act, k)
