"""Figures of the prefetch buffer: hits and bytes against its capacity, and a timeline of computing and fetching.

One function each, rows in, matplotlib Axes out (canvas.py says how).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import MinillmError
from ..prefetch.clock import FETCHING, Interval
from ..units import byte_unit, plain, time_unit
from .canvas import (
    BLACK,
    COLOURS,
    Look,
    check_rows,
    drawn,
    given_or_new,
    legend_above,
    legend_beside,
    listed,
    looks_with_bound,
    plain_text,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


INTERVAL_LOOKS = {  # kinds of the intervals of a timeline: their words, colour and hatch
    "rest": ("attention", "#AAAAAA", ""),
    "ffn": ("FFN", COLOURS[0], ""),
    "head": ("head", COLOURS[5], ".."),
    "stall": ("stall: waiting", COLOURS[1], "xx"),
    "fetch": ("fetch: missing", COLOURS[4], "//"),
    "prefetch": ("prefetch: guessed", COLOURS[2], "\\\\"),
}


def _by_capacity(rows: Sequence[Mapping], key: str, rivals: str) -> dict[str, np.ndarray]:
    """Rows of prefetch_rows as curves of ``key``: {name: (n, 2) capacity in percent and value}.

    A curve is named by its eviction policy (keeper), and by its predictor where there are several. lru and belady are
    always curves: every row carries their values, too, under the key ``rivals`` with their names in it.
    """
    check_rows(rows, ("keeper", "capacity_share", key))
    several = len({row.get("predictor") for row in rows}) > 1
    curves: dict[str, list[tuple]] = {}
    for row in sorted(rows, key=lambda row: row["capacity_share"]):
        name = f"{row['keeper']}, {row['predictor']}" if several else row["keeper"]
        curves.setdefault(name, []).append((100 * row["capacity_share"], row[key]))
    for rival in ("lru", "belady"):
        if all(rivals.format(rival) in row for row in rows) and not any(name.startswith(rival) for name in curves):
            curves[rival] = sorted({(100 * row["capacity_share"], row[rivals.format(rival)]) for row in rows})
    return {name: np.array(points, float) for name, points in curves.items()}


def _draw_by_capacity(curves: Mapping[str, np.ndarray], ax: Axes) -> None:
    """Draw the curves, the first with the largest markers, so that curves that lie on each other are seen."""
    for n, (name, look) in enumerate(looks_with_bound(tuple(curves), "belady").items()):
        ax.plot(*curves[name].T, label=plain_text(name), markersize=max(3.5, 8 - n), **look)
    ax.set_xlim(-2, 102)
    ax.set_xlabel("capacity of the buffer (% of a layer's neurons)")


def _in_the_middle(curves: Mapping[str, np.ndarray], unit: str) -> str:
    """Each curve's value near half of the neurons, in words."""
    middle = {name: points[np.abs(points[:, 0] - 50).argmin()] for name, points in curves.items()}
    return listed([f"{name} {plain(value)}{unit} at {at:.0f} %" for name, (at, value) in middle.items()])


@drawn
def hit_rate_by_capacity(rows: Sequence[Mapping], *, ax: Axes | None = None) -> Axes:
    """Hit rate against the buffer's capacity, a curve per policy; dotted: capacity / N, as of a random set.

    rows: those of replay or prefetch_rows; lru and belady, which every row carries, are drawn in any case. Raises
    MinillmError for none.
    """
    ax = given_or_new(ax)
    curves = _by_capacity(rows, "hit_rate", "{}")
    curves = {name: points * (1, 100) for name, points in curves.items()}
    _draw_by_capacity(curves, ax)
    ax.plot([0, 100], [0, 100], color=BLACK, linestyle=":", linewidth=1, label="capacity / N")
    ax.set_ylim(-2, 102)
    ax.set_ylabel("hit rate: requests that are in the buffer (%)")
    ax.set_title("Hit rate of the buffer")
    legend_beside(ax)
    ax.set_label(f"Hit rate against the buffer's capacity, in percent of the neurons: {_in_the_middle(curves, ' %')}.")
    return ax


@drawn
def bytes_by_capacity(rows: Sequence[Mapping], *, ax: Axes | None = None) -> Axes:
    """Bytes fetched per token against the buffer's capacity, a curve per eviction policy; dotted: dense, no buffer.

    rows: those of replay or prefetch_rows; lru and belady, which every row carries, are drawn in any case. Raises
    MinillmError for none.
    """
    ax = given_or_new(ax)
    check_rows(rows, ("dense_bytes",))
    dense = rows[0]["dense_bytes"]
    unit, size = byte_unit(dense)
    curves = _by_capacity(rows, "bytes_per_token", "{}_bytes")
    curves = {name: points / (1, size) for name, points in curves.items()}
    _draw_by_capacity(curves, ax)
    ax.axhline(dense / size, color=BLACK, linestyle=":", linewidth=1, label="dense, no buffer")
    ax.set_ylim(0, None)
    ax.set_ylabel(f"fetched per token ({unit})")
    ax.set_title("Bytes fetched from slow memory")
    legend_beside(ax)
    middle = _in_the_middle(curves, f" {unit}")
    ax.set_label(
        f"Bytes fetched per token against the buffer's capacity; dense {plain(dense / size)} {unit}, {middle}."
    )
    return ax


@drawn
def gantt(intervals: Sequence[Interval | Mapping], *, ax: Axes | None = None) -> Axes:
    """A timeline of simulated time: a row per layer, with computing in its upper half and fetching in its lower half.

    intervals: those of clock.simulate (Timeline.intervals, or its rows) for a token or two; the axis begins where they
    begin. Raises MinillmError for none.
    """
    ax = given_or_new(ax, (7.6, 3.8))
    bars = [i if isinstance(i, Interval) else Interval(**i) for i in intervals]
    if not bars:
        raise MinillmError("there are no intervals, expected those of a simulation")
    begin, end = min(i.start for i in bars), max(i.end for i in bars)
    unit, size = time_unit(end - begin)
    for kind, (words, colour, hatch) in INTERVAL_LOOKS.items():
        alike = [i for i in bars if i.kind == kind]
        if alike:
            rows = [i.layer + (0.19 if kind in FETCHING else -0.19) for i in alike]
            left, length = ([(i.start - begin) / size for i in alike], [(i.end - i.start) / size for i in alike])
            look: Look = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.3}
            ax.barh(rows, length, 0.38, left, label=words, **look)
    layers = sorted({i.layer for i in bars})
    heads = {i.layer for i in bars if i.kind == "head"}
    every = -(-len(layers) // 24)
    shown = [i for i in layers if i % every == 0 or i in heads]
    ax.set_yticks(shown, ["head" if i in heads else str(i) for i in shown])
    computing = sorted((i.start, i.token) for i in bars if i.kind not in FETCHING)
    tokens = {token: start for start, token in reversed(computing)}  # when each begins
    for start in sorted(tokens.values())[1:]:
        ax.axvline((start - begin) / size, color=BLACK, linestyle=":", linewidth=1)
    ax.set_xlim(0, 1.01 * (end - begin) / size)
    ax.set_ylim(layers[-1] + 0.6, layers[0] - 0.6)
    ax.grid(False, axis="y")
    ax.set_xlabel(f"simulated time ({unit})" + ("; dotted: the next token" if len(tokens) > 1 else ""))
    ax.set_ylabel("layer")
    ax.set_title("Computing (upper half of a row) and fetching (lower half)")
    legend_above(ax, len(ax.get_legend_handles_labels()[0]), 6)
    stall = sum(i.end - i.start for i in bars if i.kind == "stall") / (end - begin)
    ax.set_label(
        f"Timeline of {len(layers)} layers and {len(tokens)} tokens: {plain((end - begin) / size)} {unit}, of which "
        f"computing waits for {100 * stall:.0f} %."
    )
    return ax
