"""Figures of the first two lessons: a broadcast sum, the merges of a word's pieces, the layout of a file.

One function each, arrays in, matplotlib Axes out; style, alt text and files as in canvas.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import MinillmError
from .canvas import COLOURS, Look, drawn, given_or_new, listed, plain_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREY, PALE = COLOURS[0], COLOURS[4], "#999999", "#F1F1F1"


@drawn
def broadcasting(a: np.ndarray, b: np.ndarray, *, ax: Axes | None = None) -> Axes:
    """a + b as three grids: stored values have a dark frame, repeated values are pale.

    a, b of at most two axes with at most 8 places each, of shapes that broadcast. Raises MinillmError for others.
    """
    ax = given_or_new(ax, (7.2, 2.2))
    a, b = np.asarray(a), np.asarray(b)
    try:
        total = a + b
    except ValueError:
        raise MinillmError(f"{list(a.shape)} and {list(b.shape)} do not broadcast") from None
    if total.ndim > 2 or max(total.shape, default=1) > 8:
        raise MinillmError(f"the result is {list(total.shape)}, expected at most two axes of at most 8")
    rows, columns = np.atleast_2d(total).shape
    for n, (name, array) in enumerate((("a", a), ("b", b), ("a + b", total))):
        left = n * (columns + 1.4)
        stored = np.atleast_2d(array).shape
        for i, row in enumerate(np.broadcast_to(np.atleast_2d(array), (rows, columns))):
            for j, value in enumerate(row):
                real = i < stored[0] and j < stored[1]
                corners = [left + j, left + j + 1], [-i, -i], [-i - 1, -i - 1]
                ax.fill_between(*corners, facecolor="#CFE3F2" if real else PALE, edgecolor="white", linewidth=1)
                colour = "black" if real else GREY
                ax.text(left + j + 0.5, -i - 0.5, f"{value:g}", ha="center", va="center", color=colour)
        x, y = left + min(stored[1], columns), -min(stored[0], rows)
        ax.plot([left, x, x, left, left], [0, 0, y, y, 0], color=BLUE, linewidth=1.6, clip_on=False)
        ax.text(left + columns / 2, 0.25, f"{name}  {tuple(array.shape)}", ha="center", va="bottom")
        if n < 2:
            ax.text(left + columns + 0.7, -rows / 2, "+="[n], ha="center", va="center", fontsize=14)
    ax.set(xlim=(-0.2, 3 * columns + 3), ylim=(-rows - 0.2, 1), aspect="equal")
    ax.set_axis_off()
    ax.set_label(
        f"Three grids of {rows} by {columns}: a of shape {tuple(a.shape)} and b of shape {tuple(b.shape)}, each "
        f"repeated (pale) where the other is longer, and their sum, of shape {tuple(total.shape)}."
    )
    return ax


@drawn
def merges(stages: Sequence[Sequence[str]], *, ax: Axes | None = None) -> Axes:
    """The merges of a word's pieces: a line per stage; the new piece of each stage is filled.

    stages: lists of pieces, each with the same letters as the first. Raises MinillmError.
    """
    ax = given_or_new(ax, (7.2, 3.6))
    words = {"".join(stage) for stage in stages}
    if len(words) != 1 or words == {""}:
        raise MinillmError(f"the stages spell {len(words)} different words, expected one word, at least a letter long")
    for n, stage in enumerate(stages):
        before, place = _borders(stages[n - 1]) if n else None, 0
        for piece in stage:
            end = place + len(piece)
            new = before is not None and (place, end) not in before
            colour = ORANGE if new else "#CFE3F2"
            ax.fill_between([place + 0.05, end - 0.05], -n - 0.38, -n + 0.38, color=colour, linewidth=0)
            ax.text(
                (place + end) / 2, -n, plain_text(piece.replace(" ", "␣")), ha="center", va="center", family="monospace"
            )
            place = end
        what = "characters" if n == 0 else f"merge {n}"
        ax.text(-0.3, -n, what, ha="right", va="center", fontsize=8, color="#444444")
    ax.set(xlim=(-0.2, len(next(iter(words))) + 0.1), ylim=(-len(stages) + 0.4, 0.6))
    ax.set_axis_off()
    ax.set_label(
        f"The pieces of {next(iter(words))!r} in {len(stages)} lines, from {len(stages[0])} single characters to "
        f"{listed([repr(piece) for piece in stages[-1]])}; in each line the piece just made is filled."
    )
    return ax


def _borders(stage: Sequence[str]) -> set[tuple[int, int]]:
    """(begin, end) of each piece, in characters."""
    ends = np.cumsum([len(piece) for piece in stage]).tolist()
    return set(zip([0, *ends], ends, strict=False))


@drawn
def file_layout(parts: Sequence[tuple[int, int, str]], size: int, *, ax: Axes | None = None) -> Axes:
    """A file as a column of boxes, not to scale, each with the byte it begins at.

    parts: (begin, end, what it is) in bytes, in order; between parts that do not touch, a gap is drawn. size: of the
    whole file. Raises MinillmError for parts that overlap or do not fit.
    """
    ax = given_or_new(ax, (7.2, 3.2))
    borders = [byte for begin, end, _ in parts for byte in (begin, end)]
    if not parts or borders != sorted(borders) or not 0 <= borders[0] or borders[-1] > size:
        raise MinillmError(f"the parts lie at {borders} in a file of {size} bytes, expected them in order and inside")
    boxes, done = [], 0
    for begin, end, what in parts:
        if begin > done:
            boxes.append((done, begin, ""))
        boxes.append((begin, end, what))
        done = end
    if done < size:
        boxes.append((done, size, ""))
    for n, (begin, end, what) in enumerate(boxes):
        shade = ("#F6D9B8", "#CFE3F2")[begin >= boxes[min(2, len(boxes) - 1)][0]] if what else "white"
        edges: Look = {"facecolor": shade, "edgecolor": GREY, "linewidth": 0.8, "linestyle": "-" if what else ":"}
        ax.fill_between([0, 1], -n, -n - 1, **edges)
        ax.text(
            0.02, -n - 0.5, plain_text(what or "..."), va="center", family="monospace" if what else None, fontsize=8
        )
        ax.text(-0.01, -n, f"{begin:,}", ha="right", va="center", fontsize=8, color="#444444")
        ax.text(1.01, -n - 0.5, f"{end - begin:,} bytes", va="center", fontsize=8, color="#444444")
    ax.text(-0.01, -len(boxes), f"{size:,}", ha="right", va="center", fontsize=8, color="#444444")
    ax.text(-0.01, 0.6, "byte", ha="right", va="center", fontsize=8, color="#444444")
    ax.set(xlim=(-0.12, 1.16), ylim=(-len(boxes) - 0.3, 0.8))
    ax.set_axis_off()
    ax.set_label(f"A file of {size:,} bytes as boxes, not to scale: {listed([what for _, _, what in parts])}.")
    return ax
