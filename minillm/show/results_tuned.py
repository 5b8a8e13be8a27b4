"""The figure of models that learnt to live with blocks: speed against perplexity, before and after.

Rows in, matplotlib Axes out (canvas.py says how).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import MinillmError
from ..units import plain
from .canvas import (
    BLACK,
    GREY,
    Look,
    check_rows,
    curve_styles,
    drawn,
    given_or_new,
    label_points,
    legend_beside,
    listed,
    log_axis,
    percent,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TUNED = ("router", True)  # the kind that the figure is about: its points have numbers
KINDS: dict[tuple[str, bool], tuple[str, Look]] = {  # (chosen_by, tuned) -> its words, and its look beside the colour
    TUNED: ("router, tuned with it", {"linestyle": "-", "markersize": 7}),
    ("router", False): ("router, not tuned", {"linestyle": "--", "markerfacecolor": "white"}),
    ("oracle", False): ("oracle, not tuned (a bound)", {"linestyle": ":", "markerfacecolor": "white"}),
}
MOST_TICKS = 6
LINEAR = 1.0  # percent: below it, the axis of increases is linear, since they may be 0 or less


@drawn
def speed_after_tuning(rows: Sequence[Mapping], *, ax: Axes | None = None) -> Axes:
    """Speed gained against perplexity lost: a curve per block size and kind of choice, the share left out at points.

    rows: those of study/tuned.py, of one model. Full points: tuned with its router; hollow: the same choice without
    tuning, with the same shares from below. Of two rows of the same blocks, share and kind, the cheaper is drawn.
    Raises MinillmError for none.
    """
    ax = given_or_new(ax, (6.4, 3.8))
    check_rows(rows, ("group", "sparsity", "chosen_by", "tuned", "speedup", "increase"))
    curves = _curves(rows)
    if not curves:
        raise MinillmError("none of the rows has a speed, expected some of these blocks and shares that were measured")
    looks = curve_styles([str(group) for group in sorted({group for group, _ in curves})])
    for (group, kind), points in curves.items():
        x, y = percent([row["increase"] for row in points]), [row["speedup"] for row in points]
        ax.plot(x, y, **looks[str(group)] | KINDS[kind][1])
    _keys(ax, looks, [kind for kind in KINDS if any(kind == other for _, other in curves)])
    _scale(ax, [100 * row["increase"] for points in curves.values() for row in points])
    ax.axhline(1, color=BLACK, linestyle=":", linewidth=1)
    ax.margins(y=0.1)
    ax.set_xlabel("increase of perplexity over dense, on held-out documents (%)")
    ax.set_ylabel("speed of an FFN, choice included (times dense)")
    ax.set_title("Numbers at the points: % of the neurons left out")
    legend_beside(ax)
    for (_, kind), points in curves.items():
        if kind == TUNED or all(other != TUNED for _, other in curves):
            places = [(100 * row["increase"], row["speedup"]) for row in points]
            label_points(ax, places, [f"{100 * row['sparsity']:.0f}" for row in points])
    ax.set_label(f"Speed of an FFN against the increase of perplexity: {_in_words(curves)}.")
    return ax


Curves = dict[tuple[int, tuple[str, bool]], list[Mapping]]


def _curves(rows: Sequence[Mapping]) -> Curves:
    """The points of each (block size, kind), by the share left out; the cheaper one of each share."""
    best: dict[tuple[int, tuple[str, bool]], dict[float, Mapping]] = {}
    for row in sorted(rows, key=lambda row: row["increase"]):
        kind = row["chosen_by"], row["tuned"]
        if kind in KINDS and row["speedup"] is not None:
            best.setdefault((row["group"], kind), {}).setdefault(row["sparsity"], row)
    return {key: sorted(best[key].values(), key=lambda row: row["sparsity"]) for key in sorted(best)}


def _keys(ax: Axes, looks: Mapping[str, Look], kinds: Sequence[tuple[str, bool]]) -> None:
    """Entries of the legend: colour and marker for the block size, line and filling for the kind."""
    for group, look in looks.items():
        ax.plot([], [], label=f"blocks of {group}", **look | {"linestyle": ""})
    for kind in kinds:
        words, look = KINDS[kind]
        ax.plot([], [], label=words, color=BLACK if kind == TUNED else GREY, marker="o", **look)


def _scale(ax: Axes, increases: Sequence[float]) -> None:
    """A logarithmic axis of increases in percent, with plain numbers; linear near 0 where one lies there or below."""
    low, high = min(increases), max(2 * LINEAR, *increases)
    if low >= LINEAR:
        log_axis(ax, "x", low / 1.4, 1.4 * high)
        return
    left, right = 1.4 * min(0.0, low) - 0.2, 1.4 * high
    powers = [LINEAR * 10.0**n for n in range(12)]
    below, above = ([size for size in powers if size < limit] for limit in (-left, right))
    every = -(-(len(below) + len(above)) // MOST_TICKS)
    ticks = [*(-size for size in below[::-1][::every]), 0.0, *above[every - 1 :: every]]
    ax.set_xscale("symlog", linthresh=LINEAR)
    ax.set_xticks(ticks, [plain(tick) for tick in ticks])
    ax.minorticks_off()
    ax.set_xlim(left, right)


def _in_words(curves: Curves) -> str:
    """Every curve's points in words."""
    found = []
    for (group, kind), points in curves.items():
        each = [f"{plain(row['speedup'])} times at {100 * row['increase']:+.1f} %" for row in points]
        found.append(f"blocks of {group}, {KINDS[kind][0]}: {listed(each)}")
    return "; ".join(found)
