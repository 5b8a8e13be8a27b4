"""Figures of whole passes: differences of two passes, the next token's probabilities, the cost of a text, training.

One function each, arrays or rows in, matplotlib Axes out; style, alt text and files as in canvas.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..divergence import Comparison, Row
from ..errors import MinillmError
from ..units import byte_unit, plain
from .canvas import (
    BLACK,
    BLUE,
    GREY,
    RED,
    Look,
    bar_look,
    check_rows,
    curve_styles,
    drawn,
    given_or_new,
    legend_above,
    listed,
    log_axis,
    percent,
    plain_text,
)
from .labels import check_tokens, checked_array, label_axis, token_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes


TIMES = {"step": "steps", "tokens": "tokens", "epoch": "epochs"}  # what the rows of a training may count


@drawn
def error_per_step(rows: Sequence[Row] | Comparison, *, ax: Axes | None = None) -> Axes:
    """The difference of two passes at each step, in execution order, on a logarithmic axis; the first is named.

    rows: those of trace.compare, or the whole Comparison (then its tolerance is drawn, too). A row without a number
    (another shape, one side only) is left out; steps that are equal bit for bit stand at the bottom. Raises
    MinillmError.
    """
    ax = given_or_new(ax, (7.2, 3.6))
    tolerance, rows = (rows.tolerance, rows.rows) if isinstance(rows, Comparison) else (None, rows)
    rows = [row for row in rows if not math.isnan(row.relative)]
    if not rows:
        raise MinillmError("there is no difference to draw, expected the rows of a comparison")
    names, errors = [row.name for row in rows], np.array([row.relative for row in rows])
    finite = errors[(errors > 0) & np.isfinite(errors)]
    low, high = (finite.min(), finite.max()) if len(finite) else (1e-16, 1e-16)
    low = min(low, tolerance or low)
    bottom, top = 10.0 ** (math.floor(math.log10(low)) - 1), 10.0 ** math.ceil(math.log10(high) + 0.3)
    differs = np.array([row.status != "ok" for row in rows])
    looks: tuple[tuple[str, np.ndarray, Look], ...] = (
        ("equal bit for bit", ~differs & (errors == 0), {"marker": "|", "color": GREY, "markersize": 7}),
        ("agrees", ~differs & (errors > 0), {"marker": "o", "color": BLUE}),
        ("differs", differs, {"marker": "X", "color": RED, "markersize": 6}),
    )
    for label, chosen, look in looks:
        if chosen.any():
            at = np.flatnonzero(chosen)
            ax.plot(at, np.clip(errors[at], bottom, top), linestyle="none", label=label, clip_on=False, **look)
    if tolerance:
        ax.axhline(tolerance, color=BLACK, linestyle=":", linewidth=1, label=f"tolerance {tolerance:g}")
        top = max(top, 10 * tolerance)
    ax.set_yscale("log")
    ax.set_ylim(bottom, top)
    _name_steps(ax, names)
    ax.set_ylabel("difference (share of the largest value)")
    words = f"they are largest at {names[int(errors.argmax())]}, {errors.max():.1e}"
    if differs.any():
        first = int(differs.argmax())
        words = f"the first that differs is {names[first]}, by {errors[first]:.1e}"
        ax.axvline(first, color=RED, linewidth=1, zorder=1)
        side = "left" if first < len(rows) / 2 else "right"
        offset: Look = {"textcoords": "offset points", "ha": side, "va": "bottom", "color": RED}
        ax.annotate(f" {plain_text(names[first])} ", (first, bottom), (0, 3), **offset)
    ax.set_title("Differences between two passes")
    legend_above(ax, len(ax.get_legend_handles_labels()[0]), 4)
    ax.set_label(f"Relative differences of {len(rows)} steps in execution order: {words}.")
    return ax


def _name_steps(ax: Axes, names: Sequence[str]) -> None:
    """Write the steps' names at the axis; of more than 24 steps, the numbers of the layers that begin there."""
    if len(names) <= 24:
        label_axis(ax.xaxis, [plain_text(name.removeprefix("blocks."), 24) for name in names], 99, upright=True)
        ax.set_xlabel("step (in execution order)")
        return
    blocks = [re.sub(r"^blocks\.(\d+)\..*", r"\1", name) for name in names]
    begins = [i for i, block in enumerate(blocks) if block.isdigit() and (i == 0 or blocks[i - 1] != block)]
    begins = begins[:: -(-len(begins) // 16)]
    ax.set_xticks(begins, [blocks[i] for i in begins])
    ax.set_xlabel("step, in execution order (numbers: where a layer begins)")


@drawn
def sampling_bars(tokens: Sequence[str], probabilities: Mapping[str, np.ndarray], *, ax: Axes | None = None) -> Axes:
    """The probabilities of the next token: a group of bars per token, a bar per setting of the sampling.

    tokens: V of them; probabilities: {setting: (V,)}, each summing to 1. At most the ten likeliest tokens are drawn,
    and none that stays below 0.5 % under every setting; all others are one group. Raises MinillmError for other shapes.
    """
    ax = given_or_new(ax)
    table = {name: checked_array(values, "V", f"the row of {name}") for name, values in probabilities.items()}
    if not table:
        raise MinillmError("there are no probabilities, expected {setting: probabilities}")
    for values in table.values():
        check_tokens(tokens, len(values), "probabilities")
    best = np.max(list(table.values()), axis=0)  # (V,)
    shown = [i for i in np.argsort(-best, kind="stable")[:10] if best[i] >= 0.005]
    labels = [token_label(tokens[i], "␣") for i in shown]
    heights = {name: [*values[shown]] for name, values in table.items()}
    if len(shown) < len(tokens):
        labels.append("all others")
        heights = {name: [*shares, max(0.0, table[name].sum() - sum(shares))] for name, shares in heights.items()}
    width = 0.84 / len(table)
    for n, (name, shares) in enumerate(heights.items()):
        place = np.arange(len(labels)) + (n - (len(table) - 1) / 2) * width
        ax.bar(place, percent(shares), width, label=plain_text(name), linewidth=0.4, **bar_look(n))
    ax.set_xticks(range(len(labels)), labels, rotation=90)
    ax.grid(False, axis="x")
    ax.set_xlabel("next token (␣ is a space)")
    ax.set_ylabel("probability (%)")
    ax.set_title("Probabilities of the next token")
    legend_above(ax, len(table))
    ends = [f"{name} {100 * shares[0]:.0f} %" for name, shares in heights.items()]
    ax.set_label(f"Bars of the probabilities of the next token; the likeliest, {tokens[shown[0]]!r}: {listed(ends)}.")
    return ax


@drawn
def cache_growth(rows: Sequence[Mapping], *, ax: Axes | None = None) -> Axes:
    """Bytes of the KV cache against the length of the text, a curve per name.

    rows: dicts with positions, bytes and, where there are several curves, name. Raises MinillmError for none.
    """
    ax = given_or_new(ax)
    check_rows(rows, ("positions", "bytes"))
    curves: dict[str, list[Mapping]] = {}
    for row in sorted(rows, key=lambda row: row["positions"]):
        curves.setdefault(row.get("name", "the cache"), []).append(row)
    unit, size = byte_unit(max(row["bytes"] for row in rows))
    for name, look in curve_styles(tuple(curves)).items():
        points = curves[name]
        ax.plot(
            [row["positions"] for row in points],
            [row["bytes"] / size for row in points],
            label=plain_text(name),
            **look,
        )
    ax.set_ylim(0, None)
    ax.set_xlabel("length of the text (positions)")
    ax.set_ylabel(f"keys and values stored ({unit})")
    ax.set_title("Size of the KV cache")
    if len(curves) > 1:
        ax.legend(loc="upper left")
    last = {name: points[-1] for name, points in curves.items()}
    ends = [f"{name} {plain(row['bytes'] / size)} {unit} at {row['positions']}" for name, row in last.items()]
    ax.set_label(f"Size of the KV cache against positions: {listed(ends)}.")
    return ax


@drawn
def work_per_token(rows: Sequence[Mapping], *, ax: Axes | None = None) -> Axes:
    """Multiply-adds for one more token against the length of the text, a curve per name, both axes logarithmic.

    rows: dicts with name, positions and multiply_adds. Raises MinillmError for none.
    """
    ax = given_or_new(ax)
    check_rows(rows, ("name", "positions", "multiply_adds"))
    ends = []
    for name, look in curve_styles(tuple(dict.fromkeys(row["name"] for row in rows))).items():
        points = sorted((row["positions"], row["multiply_adds"]) for row in rows if row["name"] == name)
        ax.plot(*zip(*points, strict=True), label=plain_text(name), **look)
        ends.append(f"{name} {points[-1][1]:,.0f} at {points[-1][0]}")
    for which, key in (("x", "positions"), ("y", "multiply_adds")):
        values = [row[key] for row in rows]
        log_axis(ax, which, min(values) / 1.1, max(values) * 1.1)
    ax.set_xlabel("length of the text, log scale (positions)")
    ax.set_ylabel("one more token, log scale (multiply-adds)")
    ax.set_title("Work for one more token")
    ax.legend(loc="upper left")
    ax.set_label(f"Multiply-adds for one more token against positions: {listed(ends)}.")
    return ax


@drawn
def training_curve(rows: Sequence[Mapping], unit: str = "nats", *, ax: Axes | None = None) -> Axes:
    """Losses during training: a curve for every number in the rows beside step, tokens and epoch.

    rows: dicts with step (or tokens, or epoch) and one or more losses, all in ``unit``; a loss that is absent from a
    row, or None, was not measured there. Raises MinillmError for none.
    """
    ax = given_or_new(ax)
    x = next((key for key in TIMES if rows and key in rows[0]), "step")
    check_rows(rows, (x,))
    names = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in TIMES]
    if not names:
        raise MinillmError(f"the rows have {x} alone, expected a loss beside it")
    ends = []
    for name, look in curve_styles(names).items():
        points = [(row[x], row[name]) for row in rows if row.get(name) is not None]
        every = max(1, len(points) // 10)
        ax.plot(*zip(*points, strict=True), label=plain_text(name.replace("_", " ")), markevery=every, **look)
        ends.append(f"{name.replace('_', ' ')} from {plain(points[0][1])} to {plain(points[-1][1])}")
    ax.set_xlabel(f"training ({TIMES[x]})")
    ax.set_ylabel(f"loss ({unit})")
    ax.set_title("Training")
    ax.legend(loc="upper right")
    ax.set_label(f"Training over {rows[-1][x]:,} {TIMES[x]}, in {unit}: {listed(ends)}.")
    return ax
