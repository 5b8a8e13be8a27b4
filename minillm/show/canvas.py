"""Around every figure: the house's style, an Axes to draw on, the words for who cannot see it, and the file.

Every axis names its quantity and unit. Colours follow Okabe and Ito (told apart with any colour vision), and every
curve has a marker of its own besides, so that a figure printed in grey can be read. Sizes are for half a page.

A figure is a function of rows or arrays that gives matplotlib Axes (drawings.py, plots.py). It takes the Axes to draw
on (or makes a figure of its own) and leaves a sentence that says what there is to see in the Axes' label, which is
never drawn: ``alt_text(ax)`` reads it, ``ax.set_label("...")`` changes it, and ``save_figure`` writes it into the file.

Figures are made without pyplot: nothing is global, no window opens, nothing has to be closed. matplotlib is imported
inside the functions, so the rest of minillm runs without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import MinillmError, whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLACK = "#000000"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#8B6B00", "#5D3A9B", "#B00020")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*")  # one more than colours: no pair comes back soon
HATCHES = ("", "//", "..", "xx", "\\\\", "++")
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


def matplotlib_or_error():
    """The package; MinillmError where it is not installed."""
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


def alt_text(figure: Axes | Figure) -> str:
    """What there is to see, in words: of one panel, or of all panels of a figure one after the other."""
    panels = figure.axes if hasattr(figure, "axes") and isinstance(figure.axes, list) else [figure]
    return " ".join(text for panel in panels if (text := panel.get_label()) and not text.startswith("<"))


def save_figure(figure: Axes | Figure, path: str | Path) -> None:
    """Write the figure (of an Axes) as .png or .svg, by the name's ending, with its alt text as the file's description.

    First beside the target, then renamed. The same rows, drawn anew, give the same file. Raises MinillmError.
    """
    check_figure(path)
    path, figure = Path(path), getattr(figure, "figure", figure)
    metadata = {"Description": alt_text(figure), "Title": path.stem}
    metadata |= {"Date": None} if path.suffix == ".svg" else {"Software": None}
    with matplotlib_or_error().rc_context({"svg.hashsalt": "minillm", "svg.fonttype": "path"}):
        with whole_file(path, MinillmError) as beside:
            figure.savefig(beside, format=path.suffix[1:], metadata=metadata)


def drawn(draw: Callable | None = None, *, size: tuple[float, float] = SIZE) -> Callable:
    """Make the Axes where none is given, of ``size`` inches, and draw in the house's style."""
    if draw is None:
        return partial(drawn, size=size)

    @wraps(draw)
    def on_axes(*args, ax: Axes | None = None, **options) -> Axes:
        with matplotlib_or_error().rc_context(STYLE):
            ax = new_axes(size=size)[0] if ax is None else ax
            draw(*args, ax=ax, **options)
        return ax

    return on_axes


def curve_styles(names: Sequence[str]) -> dict[str, dict]:
    """A colour and a marker for each name, always the same for the same list."""
    return {
        name: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        | {"linestyle": "-" if i < len(COLOURS) else "--"}
        for i, name in enumerate(names)
    }


def percent(values: Sequence[float]) -> np.ndarray:
    """Shares as percentages."""
    return 100 * np.asarray(values, float)


def listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names)


def legend_above(ax: Axes, entries: int, columns: int = 3) -> None:
    """The legend between title and axes: bars may be as high as the axes, so there is no free place inside."""
    lines = -(-entries // columns)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2, columnspacing=1.2)
    ax.set_title(ax.get_title(), pad=6 + 13 * lines)
