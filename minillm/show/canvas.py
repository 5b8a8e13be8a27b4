"""What all figures share: the style, the Axes to draw on, the alt text, the file, and small helpers for drawing.

Every axis names its quantity and unit. Colours follow Okabe and Ito (they differ for any colour vision). Every curve
also has its own marker, so that a figure printed in grey can be read. Sizes are for half a page.

A figure is a function of rows or arrays that gives matplotlib Axes (primer.py, map.py, explain_*.py, results_*.py). It
draws on the Axes that it is given, or on a figure of its own. It puts the alt text into the Axes' label, which is never
drawn: ``alt_text(ax)`` reads it, ``ax.set_label("...")`` changes it, and ``save_figure`` writes it into the file.

Figures are made without pyplot: nothing is global, no window opens, nothing has to be closed. matplotlib is imported
inside the functions, so the rest of minillm runs without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from ..errors import MinillmError, show
from ..files import whole_file
from ..units import compact

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

P = ParamSpec("P")
R = TypeVar("R")
Look = dict[str, Any]  # what matplotlib's functions take by keyword: colour, marker, hatch, ...

BLACK = "#000000"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#8B6B00", "#5D3A9B", "#B00020")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*")  # one more than colours: no pair comes back soon
BLUE, RED, GREY = COLOURS[0], COLOURS[1], "#666666"
HATCHES = ("", "//", "..", "xx", "\\\\", "++")
BOUND: Look = {"color": BLACK, "marker": "*", "linestyle": "-."}  # the look of a curve that no other can beat
AROUND = (  # where words may stand beside a point: offset in points, and alignment
    ((0, 4), "center", "bottom"), ((0, -5), "center", "top"), ((5, 0), "left", "center"), ((-5, 0), "right", "center"),
)  # fmt: skip
LONGEST_NAME = 48  # characters of a name in a figure
SIZE = (5.0, 3.6)  # inches, with letters of 9 points: half a page
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "legend.frameon": False,
}


def check_figure(path: str | Path) -> None:
    """Raise MinillmError for a name that ends in neither .png nor .svg, and where matplotlib is not installed."""
    path = Path(path)
    if path.suffix not in (".png", ".svg"):
        raise MinillmError(f"{path}: the name ends in {path.suffix or 'nothing'}, expected .png or .svg")
    matplotlib_or_error()


def matplotlib_or_error() -> ModuleType:
    """The package matplotlib; MinillmError where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise MinillmError("figures need matplotlib: pip install '.[study]'") from None
    return matplotlib


def new_axes(rows: int = 1, columns: int = 1, size: tuple[float, float] = SIZE) -> list[Axes]:
    """A figure of ``rows`` times ``columns`` panels, each of ``size`` inches; gives the panels' Axes, row by row."""
    matplotlib = matplotlib_or_error()
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):  # artists keep the style that they are made in
        figure = Figure((size[0] * columns, size[1] * rows), dpi=150, layout="constrained")
        return list(np.atleast_1d(figure.subplots(rows, columns)).flat)


def given_or_new(ax: Axes | None, size: tuple[float, float] = SIZE) -> Axes:
    """The given Axes, or the Axes of a new figure of ``size`` inches."""
    return new_axes(size=size)[0] if ax is None else ax


def figure_of(drawing: Axes | Figure) -> Figure:
    """The whole figure that the Axes are a part of."""
    return drawing.figure.figure  # twice: Axes may lie in a part of a figure


def alt_text(drawing: Axes | Figure) -> str:
    """The description of one panel, or of all panels of a figure one after the other."""
    from matplotlib.figure import Figure

    panels = drawing.axes if isinstance(drawing, Figure) else [drawing]
    labels = [show(panel.get_label()) for panel in panels]
    return " ".join(label for label in labels if label and not label.startswith("<"))


def save_figure(drawing: Axes | Figure, path: str | Path) -> None:
    """Write the figure (of an Axes) as .png or .svg, by the name's ending, with its alt text as the file's description.

    First beside the target, then renamed. The same rows, drawn anew, give the same file. Raises MinillmError.
    """
    check_figure(path)
    path, figure = Path(path), figure_of(drawing)
    metadata: dict[str, str | None] = {"Description": alt_text(figure), "Title": show(path.stem)}
    metadata["Date" if path.suffix == ".svg" else "Software"] = None  # neither: the same figure gives the same file
    with matplotlib_or_error().rc_context({"svg.hashsalt": "minillm", "svg.fonttype": "path"}):
        with whole_file(path, MinillmError) as beside:
            figure.savefig(beside, format=path.suffix[1:], metadata=metadata)


def drawn(draw: Callable[P, R]) -> Callable[P, R]:
    """Run a drawing function in the house's style."""

    @wraps(draw)
    def in_style(*args: P.args, **options: P.kwargs) -> R:
        with matplotlib_or_error().rc_context(STYLE):
            return draw(*args, **options)

    return in_style


def plain_text(text: object, longest: int = LONGEST_NAME) -> str:
    """A name from outside, to be written in a figure as it is: no formula begins at a dollar, no letter is missing.

    What would steer a terminal is written as an escape, what matplotlib's own fonts lack as a box. A long name loses
    its middle: it must leave room for the figure.
    """
    from matplotlib.font_manager import findfont, get_font

    fonts = [get_font(findfont(name)) for name in ("DejaVu Sans", "DejaVu Sans Mono")]  # always there
    letters = "".join(c if all(f.get_char_index(ord(c)) for f in fonts) else "□" for c in show(text, longest))
    hidden = " " if letters.startswith("_") else ""  # a legend leaves out names that begin with an underscore
    return hidden + letters.replace("$", r"\$")


def curve_styles(names: Sequence[str]) -> dict[str, Look]:
    """A colour and a marker for each name, always the same for the same list."""
    return {
        name: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        | {"linestyle": "-" if i < len(COLOURS) else "--"}
        for i, name in enumerate(names)
    }


def bar_look(n: int) -> Look:
    """Colour and hatch of the n-th group of bars."""
    return {"color": COLOURS[n % len(COLOURS)], "hatch": HATCHES[n % len(HATCHES)], "edgecolor": "white"}


def percent(values: ArrayLike) -> np.ndarray:
    """Shares as percentages."""
    return 100 * np.asarray(values, float)


def listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names)


def legend_above(ax: Axes, entries: int, columns: int = 3) -> None:
    """The legend between title and axes: bars may be as high as the axes, so there is no room inside."""
    lines = -(-entries // columns)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2, columnspacing=1.2)
    ax.set_title(ax.get_title(), pad=6 + 13 * lines)


def check_rows(rows: Sequence[Mapping], keys: Sequence[str]) -> None:
    """Raise MinillmError where there is no row, or where one lacks a key."""
    if not rows:
        raise MinillmError(f"there are no rows, expected dicts with {listed(keys)}")
    missing = [key for key in keys if any(key not in row for row in rows)]
    if missing:
        raise MinillmError(f"the rows have no {listed(missing)}, expected dicts with {listed(keys)}")


def looks_with_bound(names: Sequence[str], bound: str) -> dict[str, Look]:
    """A colour and marker for each name; names that begin with ``bound`` get the look of a bound."""
    looks = curve_styles([name for name in names if not name.startswith(bound)])
    return {name: looks.get(name, BOUND) for name in names}


def legend_beside(ax: Axes) -> None:
    """The legend to the right of the axes."""
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)


def log_ticks(low: float, high: float, fewest: int = 4, most: int = 9) -> list[float]:
    """Round numbers from ``low`` to ``high`` for a logarithmic axis: as many as are needed, evenly spread.

    Powers of ten where there are enough of them; else with 3, with 2 and 5, and so on between them.
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), range(1, 10), [1 + i / 10 for i in range(90)]):
        found = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        ticks = [tick for tick in found if low <= tick <= high]
        if len(ticks) >= fewest:
            break
    return ticks[:: -(-len(ticks) // most) or 1]


def log_axis(ax: Axes, which: str, low: float, high: float) -> None:
    """A logarithmic x or y axis from ``low`` to ``high``, with plain numbers at its ticks."""
    from matplotlib.ticker import NullFormatter, NullLocator

    axis = ax.xaxis if which == "x" else ax.yaxis
    ax.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    ticks = log_ticks(low, high)
    axis.set_ticks(ticks, [compact(tick) for tick in ticks])
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def log_perplexity(ax: Axes, heights: Sequence[float]) -> None:
    """A logarithmic scale for perplexities."""
    log_axis(ax, "y", min(heights) / 1.1, max(heights) * 1.15)


def label_points(ax: Axes, points: Sequence[tuple[float, float]], words: Sequence[str]) -> None:
    """Write a few words beside each point, where no other words stand; a point without room for them has none."""
    figure_of(ax).draw_without_rendering()  # the layout, which says where the points lie
    taken = [text.get_window_extent() for text in ax.texts]
    for point, word in zip(points, words, strict=True):
        label = ax.annotate(word, point, (0, 0), textcoords="offset points", color=GREY, fontsize=7)
        for place, across, along in AROUND:
            label.set(position=place, ha=across, va=along)
            box = label.get_window_extent()
            inside = ax.bbox.contains(*box.min) and ax.bbox.contains(*box.max)
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
        else:
            label.remove()


def inches(ax: Axes) -> tuple[float, float]:
    """About how wide and high the Axes will be; the exact size is known only after the layout."""
    wide, high = figure_of(ax).get_size_inches()
    spec = ax.get_subplotspec()
    if spec is None:
        place = ax.get_position()
        return wide * place.width, high * place.height
    rows, columns = spec.get_gridspec().get_geometry()
    return wide * len(spec.colspan) / columns, high * len(spec.rowspan) / rows
