"""Does an activation pattern survive an edit of the text? The experiment behind the paper's Table II, with controls.

A pattern is what the paper's gate threshold keeps (Dhar et al. 2024, arXiv 2412.12178): at layer l and position t

    b[l, t, j] = |gate_pre[l, t, j]| >= threshold[l]            at 50 %: half of the bits are set

A text and an edited variant of it are read one after the other, and their patterns compared. With the variant's bits as
the truth and the original's as the prediction:

    match = mean(a == b)      recall = |a & b| / |b|      IoU = |a & b| / |a | b|

The paper gives one match per pair of texts and takes 100 % to mean that patterns can be foreseen. Four things must be
told apart first, so each pair of positions (t of the original, t' of the variant) is counted in the scopes it is in:

    prefix      t = t' before the first edit: same token, same past. In a causal model the match is 1 by construction,
                at every layer, and says nothing about predictability.                                  (A)
    after       t = t' from the first edit on, aligned by index; its two parts are                      (B)
    changed       another token in the same place                                                     (B, C)
    unchanged     the same token in the same place, after another past                                  (C)
    aligned     from the first edit on, the tokens that difflib finds in both: same token, maybe moved  (D)
    window      t = t', everything that was read

and each rate stands beside three others, for the same layer and the same positions:

    chance      independent bits of the same densities p, q:  match p q + (1 - p)(1 - q), recall p,
                IoU p q / (p + q - p q); for two masks of 50 %: 0.5, 0.5, 1/3
    static      one mask for every token: the neurons most often active on a calibration text
    unrelated   two positions of the calibration text drawn at random: P(both active) = mean_j f_j^2 with f_j neuron
                j's frequency. What a match is worth beyond it comes from the text.

Equal bits need equal sums. BLAS blocks its loops by the shape of a matrix, so the same row in a longer matrix may come
out with another last bit. Therefore original and variant are cropped to the SAME length before they are read: every
product has the same shape in both passes, a row of a product depends on its own row only, and attention gives what
lies ahead a weight of exactly 0. The prefix then matches to the last bit, not nearly.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import MinillmError, ThresholdsError
from ..sparsity.policies import largest, policy_named
from ..sparsity.thresholds import Thresholds
from ..transformer.evaluation import pass_over, run_hidden
from ..transformer.model import Llama
from ..transformer.texts import bos_ids, default_context, runs
from .variants import SIMILARITIES, Pair

SCOPES = ("prefix", "after", "changed", "unchanged", "aligned", "window")

# Table II as published, Llama-3-8B, first layer: (which texts, at which similarities, lowest rate, highest rate).
PUBLISHED = (
    ("9 of the 12 texts", (95, 90, 85, 80, 75, 70), 1.0, 1.0),
    ("texts 2 and 8", (95, 90, 85, 80, 75, 70), 0.5773, 0.5773),
    ("text 4", (95,), 1.0, 1.0),
    ("text 4", (90, 85, 80, 75, 70), 0.5383, 0.5393),
)


class Overlap(NamedTuple):
    """Counts that say how two sets of bits overlap; every rate of this module follows from them, and they add up.

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
        """What independent bits of the same two densities would have in common, on average."""
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
        """Set in both over set in either; None where nothing is set."""
        union = self.truth + self.guess - self.both
        return self.both / union if union else None


def patterns(model: Llama, ids: Sequence[int], thresholds: Thresholds) -> np.ndarray:
    """The patterns of a text: |gate_pre| >= threshold, from the dense model. ids (T,)  ->  bool (L, T, F)."""
    found: list[list[np.ndarray]] = [[] for _ in model.layers]

    def tap(name: str, value: np.ndarray) -> np.ndarray:
        if name.endswith(".mlp.gate_pre"):
            layer = int(name.split(".")[1])
            found[layer].append(pattern(value, thresholds, layer))
        return value

    for _ in run_hidden(model, ids, tap=tap):
        pass
    return np.array([np.concatenate(parts) for parts in found])


def pattern(gate_pre: np.ndarray, thresholds: Thresholds, layer: int) -> np.ndarray:
    """The bits that the paper's rule keeps of one layer's gate_pre (..., F), by the policy dhar's own comparison.

    Raises ThresholdsError for thresholds that hold none for gate_pre.
    """
    kept = policy_named("dhar").kept("gate_pre", gate_pre, thresholds.layers[layer], {})
    if kept is None:
        raise ThresholdsError(f"the thresholds are of policy {thresholds.policy}, expected dhar's, with gate_pre")
    return kept


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
        if name == "embed":
            positions += len(value)
        elif name.endswith(".mlp.gate_pre"):
            layer = int(name.split(".")[1])
            active[layer] += pattern(value, thresholds, layer).sum(axis=0)
        return value

    pass_over(model, runs(model, documents, "documents", context), tap, what="counting patterns")
    frequency = active / positions
    return Reference(thresholds, frequency, np.array([largest(f, round(f.sum())) for f in frequency]))


def shared_prefix(original: Sequence[int], variant: Sequence[int]) -> int:
    """How many ids two texts have in common at their start."""
    pairs = zip(original, variant, strict=False)  # up to the end of the shorter
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(original), len(variant)))


def crop(original: Sequence[int], variant: Sequence[int], size: int) -> tuple[list[int], list[int]]:
    """The same window of both texts: at most ``size`` ids, the first edit at its middle, both of the same length.

    Where a text ends before the window does, the window moves left to stay full, as far as there is text. The equal
    lengths are what makes the prefix match exactly (module docstring).
    """
    shortest = min(len(original), len(variant))
    start = max(0, min(shared_prefix(original, variant) - size // 2, shortest - size))
    window = slice(start, min(start + size, shortest))
    return list(original[window]), list(variant[window])


def scopes(original: Sequence[int], variant: Sequence[int]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Scope -> (positions in the original, positions in the variant), both (n,), for two windows of one length T."""
    import difflib

    edit, at = shared_prefix(original, variant), np.arange(len(original))
    same = np.asarray(original) == np.asarray(variant)  # (T,)
    by_index = {
        "prefix": at[:edit],
        "after": at[edit:],
        "changed": at[~same],
        "unchanged": at[edit:][same[edit:]],
        "window": at,
    }
    # autojunk would drop the tokens that are frequent in long texts, which are most of them here
    matcher = difflib.SequenceMatcher(None, original[edit:], variant[edit:], autojunk=False)
    blocks = [(edit + a, edit + b, n) for a, b, n in matcher.get_matching_blocks()]
    aligned = [np.concatenate([np.arange(block[side], block[side] + block[2]) for block in blocks]) for side in (0, 1)]
    return {scope: (by_index[scope],) * 2 if scope in by_index else tuple(aligned) for scope in SCOPES}


class Count(NamedTuple):
    """What was counted for one text, variant, scope and layer: the variant's bits against three guesses."""

    original: Overlap = Overlap()
    static: Overlap = Overlap()
    unrelated: Overlap = Overlap()

    def plus(self, other: Count) -> Count:
        """Both together."""
        return Count(*(a.plus(b) for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Measured:
    """The result: counts by (text, variant, scope, layer), and by (text, variant) how long the prefix and the text are.

    lengths: ids of the variant before the first edit, and in all, in the whole text and not only in the window.
    """

    counts: dict[tuple[str, str, str, int], Count]
    lengths: dict[tuple[str, str], tuple[int, int]]
    width: int

    def rows(self, by_text: bool = False, by_variant: bool = True, by_layer: bool = True) -> list[dict]:
        """A row per text, variant, scope and layer: positions, rates and their controls.

        What is not told apart (by_text, by_variant, by_layer) is pooled: the counts are added. whole_text, in scope
        ``after``: the match that the whole text would have with the rest matching as the window's does,
        shared + (1 - shared) match.
        """
        pooled: dict[tuple, Count] = defaultdict(Count)
        lengths: dict[tuple, np.ndarray] = defaultdict(lambda: np.zeros(2))
        layers = 1 + max(layer for *_, layer in self.counts)
        for (text, variant, scope, layer), count in self.counts.items():
            key = (text if by_text else None, variant if by_variant else None, scope, layer if by_layer else None)
            pooled[key] = pooled[key].plus(count)
        for (text, variant), found in self.lengths.items():
            lengths[text if by_text else None, variant if by_variant else None] += found
        found = []
        for (text, variant, scope, layer), count in pooled.items():
            if not count.original.size:
                continue
            prefix, whole = lengths[text, variant]
            row = {"text": text, "variant": variant, "scope": scope, "layer": layer, "shared": prefix / whole}
            row["positions"] = int(count.original.size) // self.width // (1 if by_layer else layers)
            row |= {"density": count.original.truth / count.original.size}
            kinds = {"": count.original, "chance_": count.original.chance()}
            kinds |= {"static_": count.static, "unrelated_": count.unrelated}
            for kind, overlap in kinds.items():
                row |= {f"{kind}{rate}": getattr(overlap, rate) for rate in ("match", "recall", "iou")}
            share = row["shared"]
            row["whole_text"] = share + (1 - share) * row["match"] if scope == "after" else None
            found.append(row)
        return found


def predictability(model: Llama, known: Reference, pairs: Iterable[Pair], context: int | None = None) -> Measured:
    """Compare the patterns of texts and their variants, scope by scope and layer by layer (module docstring).

    context: the window, BOS included (default: the smaller of the model's and 2048). Raises MinillmError for a window
    without room, and for a variant that does not differ from its text.
    """
    from tqdm.auto import tqdm

    context = default_context(model) if context is None else context
    start, _ = bos_ids(model)
    limit = model.config.max_position_embeddings
    if not len(start) + 2 <= context <= limit:
        raise MinillmError(f"context is {context}, expected {len(start) + 2} to {limit} (the model's own)")
    counts, lengths, last = {}, {}, None
    for pair in tqdm(list(pairs), desc="comparing patterns", unit="pair", leave=False, delay=2, disable=None):
        if pair.original == pair.edited:
            raise MinillmError(f"{pair.variant} of {pair.text} is the same text, expected an edited one")
        prefix = shared_prefix(pair.original, pair.edited)
        lengths[pair.text, pair.variant] = prefix, len(pair.edited)
        windows = [start + ids for ids in crop(pair.original, pair.edited, context - len(start))]
        if windows[0] != last:  # the variants of a text often share its window
            last, a = windows[0], patterns(model, windows[0], known.thresholds)  # (L, T, F)
        b = patterns(model, windows[1], known.thresholds)  # (L, T, F)
        for scope, (of_a, of_b) in scopes(*windows).items():
            for layer, (frequency, static) in enumerate(zip(known.frequency, known.static, strict=True)):
                truth = b[layer, of_b]  # (n, F)
                both, once = len(truth) * np.square(frequency).sum(), len(truth) * frequency.sum()
                counts[pair.text, pair.variant, scope, layer] = Count(
                    Overlap.of(truth, a[layer, of_a]),
                    Overlap.of(truth, static),
                    Overlap(truth.size, once, once, both),
                )
    if not counts:
        raise MinillmError("there is no text to compare, expected at least one pair")
    return Measured(counts, lengths, model.config.intermediate_size)


def published(measured: Measured) -> list[dict]:
    """Table II as published, similarity by similarity, beside what chance gives and what was measured here.

        whole text at chance = s + (1 - s) / 2        a prefix of s that matches by causality, the rest like two coins

    measured: tails in any number of texts; the rows show the pooled ``whole_text`` and the rates that it is made of.
    """
    ours = {(row["variant"], row["scope"]): row for row in measured.rows(by_layer=False)}
    found = []
    for percent in SIMILARITIES:
        row = {"similarity": f"{percent} %"}
        for name, low, high in [(n, low, high) for n, at, low, high in PUBLISHED if percent in at]:
            row[name] = f"{low:.2%}" if low == high else f"{low:.2%} .. {high:.2%}"
        row |= {"two 50 % masks": 0.5, "whole text at chance": (1 + percent / 100) / 2}
        for scope in ("prefix", "after"):
            row[f"our {scope}"] = ours.get((f"tail {percent} %", scope), {}).get("match")
        row["our whole text"] = ours.get((f"tail {percent} %", "after"), {}).get("whole_text")
        found.append(row)
    return found
