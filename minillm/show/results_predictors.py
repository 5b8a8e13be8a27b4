"""Figures of predictors: recall and precision, their cost, the bytes read, and patterns before and after an edit.

One function each, rows in, matplotlib Axes out (canvas.py says how).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from ..errors import MinillmError
from ..units import byte_unit, plain
from .canvas import (
    BLACK,
    COLOURS,
    bar_look,
    check_rows,
    drawn,
    given_or_new,
    legend_above,
    legend_beside,
    listed,
    log_perplexity,
    looks_with_bound,
    percent,
    plain_text,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@drawn
def cost_of_predictors(rows: Sequence[Mapping], dense: float | None = None, *, ax: Axes | None = None) -> Axes:
    """Perplexity against bytes read per token, a curve per predictor, a point per selected fraction.

    rows: dicts with predictor, fraction, bytes_per_token (FFN weights read plus the predictor's own tables) and
    perplexity. dense: the uncut model's perplexity, drawn as a line.
    """
    ax = given_or_new(ax)
    names = list(dict.fromkeys(row["predictor"] for row in rows))
    unit, size = byte_unit(max(row["bytes_per_token"] for row in rows))
    for name, look in looks_with_bound(names, "oracle").items():
        curve = sorted((row for row in rows if row["predictor"] == name), key=lambda row: row["fraction"])
        places = [row["bytes_per_token"] / size for row in curve]
        ax.plot(places, [row["perplexity"] for row in curve], label=plain_text(name), **look)
    heights = [row["perplexity"] for row in rows] + ([dense] if dense else [])
    if dense:
        ax.axhline(dense, color=BLACK, linestyle=":", linewidth=1, label=f"dense ({dense:.2f})")
    if max(heights) > 3 * min(heights):
        log_perplexity(ax, heights)
    fractions = sorted({row["fraction"] for row in rows})
    ax.set_xlabel(f"bytes read per token, predictor included ({unit})")
    ax.set_ylabel("perplexity (per token)" + (", log scale" if ax.get_yscale() == "log" else ""))
    # Rounded: fractions are targets that are hit within half a percent.
    shares = list(dict.fromkeys(f"{100 * f:.0f}" for f in fractions))
    ax.set_title(f"Neurons selected: {listed(shares)} %")
    legend_beside(ax)
    best = [min((row for row in rows if row["predictor"] == name), key=lambda row: row["perplexity"]) for name in names]
    ends = [f"{row['predictor']} {row['perplexity']:.2f}" for row in best]
    ax.set_label(
        f"Perplexity against bytes read per token for {len(names)} predictors; the best each reaches: {listed(ends)}."
    )
    return ax


@drawn
def precision_recall(rows: Sequence[Mapping], *, ax: Axes | None = None) -> Axes:
    """Precision against recall: a curve per predictor, a point per row.

    rows: dicts with predictor, recall and precision from 0 to 1, a row per selected fraction (or per layer). Raises
    MinillmError for none.
    """
    ax = given_or_new(ax)
    check_rows(rows, ("predictor", "recall", "precision"))
    names = list(dict.fromkeys(row["predictor"] for row in rows))
    for name, look in looks_with_bound(names, "oracle").items():
        points = sorted((row["recall"], row["precision"]) for row in rows if row["predictor"] == name)
        ax.plot(*percent(points).T, label=plain_text(name), **look)
    ax.set_xlim(0, 103)
    ax.set_ylim(0, 103)
    ax.set_xlabel("recall: share of the active neurons selected (%)")
    ax.set_ylabel("precision: share of the selected neurons active (%)")
    ax.set_title("Precision and recall of predictors")
    legend_beside(ax)
    best = [max((row for row in rows if row["predictor"] == name), key=lambda row: row["recall"]) for name in names]
    ends = [f"{row['predictor']} {100 * row['recall']:.0f} and {100 * row['precision']:.0f}" for row in best]
    ax.set_label(
        f"Precision against recall of {len(names)} predictors; recall and precision in percent, where recall is "
        f"largest: {listed(ends)}."
    )
    return ax


@drawn
def bytes_read(sizes: Mapping[str, float], what: str = "FFN weights read per token", *, ax: Axes | None = None) -> Axes:
    """Bytes that a token reads: a bar per way to run the model, labelled with its share of the first bar.

    sizes: {"dense": bytes, "oracle": bytes, ...}; what: which bytes. Raises MinillmError for none.
    """
    ax = given_or_new(ax)
    if not sizes:
        raise MinillmError("there is nothing to draw, expected {name: bytes}")
    unit, size = byte_unit(max(sizes.values()))
    whole = next(iter(sizes.values()))
    for n, (name, value) in enumerate(sizes.items()):
        look = bar_look(n) | {"color": ("#999999", *COLOURS)[n % 11]}
        bar = ax.bar(n, value / size, 0.7, linewidth=0.4, label=name, **look)
        ax.bar_label(bar, [f"{100 * value / whole:.0f} %"], padding=1)
    ax.set_xticks(range(len(sizes)), [fill(plain_text(name), 11) for name in sizes])
    ax.margins(y=0.08)
    ax.grid(False, axis="x")
    ax.set_xlabel("how the FFNs are run")
    ax.set_ylabel(f"{what} ({unit})")
    ax.set_title("Weights read")
    ends = [f"{name} {plain(value / size)}" for name, value in sizes.items()]
    ax.set_label(f"Bars, {what} in {unit}: {listed(ends)}.")
    return ax


@drawn
def match_by_position(rows: Sequence[Mapping], key: str = "match", *, ax: Axes | None = None) -> Axes:
    """Agreement of the active neurons of an edited text with the original's, by kind of position (as in Table II).

    rows: those of edits.Measured.rows (by_layer=False), or any dicts with scope (or group, a name for it: A shared
    prefix, B changed, C scattered substitutions, D aligned paraphrase), ``key`` ("match", "recall" or "iou") from 0 to
    1, and static_key and chance_key, the same measure of the most frequent mask and of a random one.
    """
    ax = given_or_new(ax)
    fields = {"this text": key, "static mask": f"static_{key}", "chance": f"chance_{key}"}
    groups = [row.get("group") or " ".join(filter(None, (row.get("variant"), row["scope"]))) for row in rows]
    for n, (name, field) in enumerate(fields.items()):
        place = np.arange(len(rows)) + (n - 1) * 0.27
        heights = percent([row[field] for row in rows])
        look = bar_look(n) | {"color": ("#0072B2", "#E69F00", "#AAAAAA")[n]}
        bars = ax.bar(place, heights, 0.27, label=name, linewidth=0.4, **look)
        ax.bar_label(bars, [f"{height:.0f}" for height in heights], padding=1, fontsize=7)
    ax.set_xticks(range(len(rows)), [fill(plain_text(group), 13) for group in groups])
    ax.grid(False, axis="x")
    ax.set_xlabel("kind of position")
    ax.set_ylabel(f"{key} of the two patterns (% of neurons)")
    ax.set_ylim(0, 106)
    ax.set_yticks(range(0, 101, 20))
    ax.set_title("Activation patterns before and after an edit")
    legend_above(ax, len(fields))
    parts = [
        f"{group} {100 * row[key]:.0f} (chance {100 * row[f'chance_{key}']:.0f})"
        for group, row in zip(groups, rows, strict=True)
    ]
    ax.set_label(f"Bars: {key} of activation patterns before and after an edit, in percent: {listed(parts)}.")
    return ax
