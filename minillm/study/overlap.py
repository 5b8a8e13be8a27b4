"""Activation patterns, and how much two of them have in common.

A pattern is what the paper's gate threshold keeps (Dhar et al. 2024, arXiv 2412.12178): at layer l and position t

    b[l, t, j] = |gate_pre[l, t, j]| >= threshold[l]            at 50 %: half of the bits are set

With the bits b as the truth and other bits a as a guess:

    match = mean(a == b)      recall = |a & b| / |b|      IoU = |a & b| / |a | b|

A rate means little alone. Beside it belong the rates of guesses that know nothing of the text:

    chance      independent bits of the same densities p, q:  match p q + (1 - p)(1 - q), recall p,
                IoU p q / (p + q - p q); for two masks of 50 %: 0.5, 0.5, 1/3
    static      one mask for every token: the neurons most often active on a calibration text
    unrelated   two positions of the calibration text drawn at random: P(both active) = mean_j f_j^2 with f_j neuron
                j's frequency. What a match is worth beyond it comes from the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import ThresholdsError
from ..sparsity.policies import largest, policy_named
from ..sparsity.thresholds import Thresholds
from ..steps import place
from ..transformer.evaluation import pass_over, run_hidden
from ..transformer.model import Llama
from ..transformer.texts import runs


class Overlap(NamedTuple):
    """Counts of the bits in two sets; every rate follows from them, and the counts of two comparisons add up.

    size: bits compared. truth, guess: bits set in either. both: bits set in both (no whole number in an expectation).
    """

    size: float = 0
    truth: float = 0
    guess: float = 0
    both: float = 0

    @classmethod
    def of(cls, truth: np.ndarray, guess: np.ndarray) -> Overlap:
        """Count two boolean arrays of one shape (or shapes that broadcast)."""
        truth, guess = np.broadcast_arrays(truth, guess)
        return cls(truth.size, *(int(np.count_nonzero(bits)) for bits in (truth, guess, truth & guess)))

    def plus(self, other: Overlap) -> Overlap:
        """The counts of both together."""
        return Overlap(*(a + b for a, b in zip(self, other, strict=True)))

    def chance(self) -> Overlap:
        """What independent bits of the same two densities have in common, on average."""
        return self._replace(both=self.truth * self.guess / max(1, self.size))

    @property
    def match(self) -> float | None:
        """Share of equal bits; None where nothing was compared."""
        return (self.size - self.truth - self.guess + 2 * self.both) / self.size if self.size else None

    @property
    def recall(self) -> float | None:
        """Share of the truth's set bits that the guess has set, too; None where the truth has none."""
        return self.both / self.truth if self.truth else None

    @property
    def iou(self) -> float | None:
        """Bits set in both over bits set in either; None where nothing is set."""
        union = self.truth + self.guess - self.both
        return self.both / union if union else None


class Count(NamedTuple):
    """The true bits of some positions of one layer, counted against three guesses (module docstring)."""

    original: Overlap = Overlap()
    static: Overlap = Overlap()
    unrelated: Overlap = Overlap()

    @classmethod
    def of(cls, truth: np.ndarray, original: np.ndarray, frequency: np.ndarray, static: np.ndarray) -> Count:
        """truth, original (n, F) bool; frequency, static (F,), of the same layer of a Reference."""
        once, both = len(truth) * frequency.sum(), len(truth) * np.square(frequency).sum()
        unrelated = Overlap(truth.size, once, once, both)
        return cls(Overlap.of(truth, original), Overlap.of(truth, static), unrelated)

    def plus(self, other: Count) -> Count:
        """The counts of both together."""
        return Count(*(a.plus(b) for a, b in zip(self, other, strict=True)))

    def rates(self) -> dict[str, float | None]:
        """Match, recall and IoU of the guess and of its three controls: {"match": ..., "chance_match": ...}."""
        kinds = {"": self.original, "chance_": self.original.chance()}
        kinds |= {"static_": self.static, "unrelated_": self.unrelated}
        return {f"{kind}{rate}": getattr(o, rate) for kind, o in kinds.items() for rate in ("match", "recall", "iou")}


def pattern(gate_pre: np.ndarray, thresholds: Thresholds, layer: int) -> np.ndarray:
    """The bits that the paper's rule keeps of one layer's gate_pre (..., F), by the policy dhar's own comparison.

    Raises ThresholdsError for thresholds that hold none for gate_pre.
    """
    kept = policy_named("dhar").kept("gate_pre", gate_pre, thresholds.layers[layer], {})
    if kept is None:
        raise ThresholdsError(f"the thresholds are of policy {thresholds.policy}, expected dhar's, with gate_pre")
    return kept


def patterns(model: Llama, ids: Sequence[int], thresholds: Thresholds) -> np.ndarray:
    """The patterns of a text: |gate_pre| >= threshold, from the dense model. ids (T,)  ->  bool (L, T, F)."""
    bits: list[list[np.ndarray]] = [[] for _ in model.layers]

    def tap(name: str, value: np.ndarray) -> np.ndarray:
        at = place(name)
        if at and at.step == "mlp.gate_pre":
            bits[at.layer].append(pattern(value, thresholds, at.layer))
        return value

    for _ in run_hidden(model, ids, tap=tap):
        pass
    return np.array([np.concatenate(parts) for parts in bits])


@dataclass(frozen=True)
class Reference:
    """What is known about the patterns before any test text is read, from a calibration text.

    frequency (L, F): share of its positions where each neuron is active. static (L, F): per layer the most frequent
    neurons, as many as are active on average.
    """

    thresholds: Thresholds
    frequency: np.ndarray
    static: np.ndarray


def reference(
    model: Llama, thresholds: Thresholds, documents: str | Sequence[str], context: int | None = None
) -> Reference:
    """Count how often each neuron is active on a calibration text (protocol documents, BOS included)."""
    thresholds.check_fits(model)
    active, positions = np.zeros((len(model.layers), model.config.intermediate_size), np.int64), 0

    def tap(name: str, value: np.ndarray) -> np.ndarray:
        nonlocal positions
        at = place(name)
        if name == "embed":
            positions += len(value)
        elif at and at.step == "mlp.gate_pre":
            active[at.layer] += pattern(value, thresholds, at.layer).sum(axis=0)
        return value

    pass_over(model, runs(model, documents, "documents", context), tap, what="counting patterns")
    frequency = active / positions
    return Reference(thresholds, frequency, np.array([largest(f, round(f.sum())) for f in frequency]))
