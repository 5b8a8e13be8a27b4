"""Does an activation pattern survive an edit of the text? The experiment behind the paper's Table II, with controls.

A text and an edited variant of it (variants.py) are read one after the other, and their activation patterns compared
(overlap.py): with the variant's bits as the truth and the original's as the guess, how many bits match? The paper gives
one match per pair of texts and takes 100 % to mean that patterns can be foreseen. Four things must be told apart first,
so each pair of positions (t of the original, t' of the variant) is counted in every scope that it is in:

    prefix      t = t' before the first edit: same token, same past. In a causal model the match is 1 by construction,
                at every layer, and says nothing about predictability.                                  (A)
    after       t = t' from the first edit on, aligned by index; its two parts are                      (B)
    changed       another token in the same place                                                     (B, C)
    unchanged     the same token in the same place, after another past                                  (C)
    aligned     from the first edit on, the tokens that difflib finds in both: same token, maybe moved  (D)
    window      t = t', everything that was read

Each rate stands beside chance, a static mask and unrelated positions (overlap.py), for the same layer and positions.

Equal bits need equal sums. BLAS blocks its loops by the shape of a matrix, so the same row in a longer matrix may come
out with another last bit. Therefore original and variant are cropped to the SAME length before they are read: every
product has the same shape in both passes, a row of a product depends on its own row only, and attention gives what
lies ahead a weight of exactly 0. The prefix then matches to the last bit, not nearly.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arguments import whole_number
from ..errors import MinillmError
from ..transformer.model import Llama
from ..transformer.texts import bos_ids, default_context
from .overlap import Count, Reference, patterns
from .variants import SIMILARITIES, Pair

SCOPES = ("prefix", "after", "changed", "unchanged", "aligned", "window")

# Table II as published, Llama-3-8B, first layer: (which texts, at which similarities, lowest rate, highest rate).
TABLE_TWO = (
    ("9 of the 12 texts", (95, 90, 85, 80, 75, 70), 1.0, 1.0),
    ("texts 2 and 8", (95, 90, 85, 80, 75, 70), 0.5773, 0.5773),
    ("text 4", (95,), 1.0, 1.0),
    ("text 4", (90, 85, 80, 75, 70), 0.5383, 0.5393),
)


# ---- which positions belong together ---------------------------------------------------------------------------------


def shared_prefix(original: Sequence[Any], variant: Sequence[Any]) -> int:
    """The number of ids (or words) that two texts have in common at their start."""
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
    left, right = (np.concatenate([np.arange(b[side], b[side] + b[2]) for b in blocks]) for side in (0, 1))
    positions = {scope: (found, found) for scope, found in by_index.items()} | {"aligned": (left, right)}
    return {scope: positions[scope] for scope in SCOPES}


# ---- counting --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """The result: counts by (text, variant, scope, layer), and by (text, variant) how long the prefix and the text are.

    lengths: ids of the variant before the first edit, and in all, in the whole text and not only in the window.
    """

    counts: dict[tuple[str, str, str, int], Count]
    lengths: dict[tuple[str, str], tuple[int, int]]
    width: int

    def rows(self, by_text: bool = False, by_variant: bool = True, by_layer: bool = True) -> list[dict[str, Any]]:
        """A row per text, variant, scope and layer: positions, rates and their controls.

        Where by_text, by_variant or by_layer is False, the counts of all texts, variants or layers are added.
        whole_text, in scope ``after``: the match that the whole text would have if all that follows the edit matched as
        it does in the window, shared + (1 - shared) match.
        """
        pooled: dict[tuple[str | None, str | None, str, int | None], Count] = defaultdict(Count)
        lengths: dict[tuple[str | None, str | None], np.ndarray] = defaultdict(lambda: np.zeros(2))
        layers = 1 if by_layer else 1 + max(layer for *_, layer in self.counts)
        for (text, variant, scope, layer), count in self.counts.items():
            key = (text if by_text else None, variant if by_variant else None, scope, layer if by_layer else None)
            pooled[key] = pooled[key].plus(count)
        for (text, variant), prefix_and_whole in self.lengths.items():
            lengths[text if by_text else None, variant if by_variant else None] += prefix_and_whole
        rows = []
        for (name, kind, scope, index), count in pooled.items():
            if not (size := count.original.size):
                continue
            prefix, whole = lengths[name, kind]
            row = {"text": name, "variant": kind, "scope": scope, "layer": index, "shared": prefix / whole}
            row["positions"] = int(size) // self.width // layers
            row |= {"density": count.original.truth / size, **count.rates()}
            share = row["shared"]
            row["whole_text"] = share + (1 - share) * row["match"] if scope == "after" else None
            rows.append(row)
        return rows


def predictability(model: Llama, known: Reference, pairs: Iterable[Pair], context: int | None = None) -> Measured:
    """Compare the patterns of texts and their variants, scope by scope and layer by layer (module docstring).

    context: the window, BOS included (default: the smaller of the model's and 2048). A variant that is its text, or
    differs from it only behind the text's end, is left out, and a note says so. Raises MinillmError for a window
    without room, and where no pair is left.
    """
    from tqdm.auto import tqdm

    start, _ = bos_ids(model)
    context = default_context(model) if context is None else context
    context = whole_number("context", context, len(start) + 2, model.config.max_position_embeddings)
    counts: dict[tuple[str, str, str, int], Count] = {}
    lengths: dict[tuple[str, str], tuple[int, int]] = {}
    last: list[int] | None = None
    for pair in tqdm(list(pairs), desc="comparing patterns", unit="pair", leave=False, delay=2, disable=None):
        left, right = ([*start, *ids] for ids in crop(pair.original, pair.edited, context - len(start)))
        if left == right:
            warnings.warn(f"{pair.variant} of {pair.text} is the same text as far as both go: left out", stacklevel=2)
            continue
        lengths[pair.text, pair.variant] = shared_prefix(pair.original, pair.edited), len(pair.edited)
        if left != last:  # the variants of a text often share its window
            last, a = left, patterns(model, left, known.thresholds)  # (L, T, F)
        b = patterns(model, right, known.thresholds)  # (L, T, F)
        for scope, (of_a, of_b) in scopes(left, right).items():
            for layer, (frequency, static) in enumerate(zip(known.frequency, known.static, strict=True)):
                count = Count.of(b[layer, of_b], a[layer, of_a], frequency, static)
                counts[pair.text, pair.variant, scope, layer] = count
    if not counts:
        raise MinillmError("there is no text to compare, expected at least one pair of a text and an edited one")
    return Measured(counts, lengths, model.config.intermediate_size)


def published(measured: Measured) -> list[dict[str, Any]]:
    """Table II as published, similarity by similarity, beside what chance gives and what was measured here.

        whole text at chance = s + (1 - s) / 2        a prefix of s that matches by causality, the rest like two coins

    measured: tails in any number of texts; the rows show the pooled ``whole_text`` and the rates that it is made of.
    """
    ours = {(row["variant"], row["scope"]): row for row in measured.rows(by_layer=False)}
    rows = []
    for percent in SIMILARITIES:
        row: dict[str, Any] = {"similarity": f"{percent} %"}
        for name, low, high in [(n, low, high) for n, at, low, high in TABLE_TWO if percent in at]:
            row[name] = f"{low:.2%}" if low == high else f"{low:.2%} .. {high:.2%}"
        row |= {"two 50 % masks": 0.5, "whole text at chance": (1 + percent / 100) / 2}
        for scope in ("prefix", "after"):
            row[f"our {scope}"] = ours.get((f"tail {percent} %", scope), {}).get("match")
        row["our whole text"] = ours.get((f"tail {percent} %", "after"), {}).get("whole_text")
        rows.append(row)
    return rows
