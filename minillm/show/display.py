"""Figures in a notebook: an image with its alt text under Jupyter, a line of text without it.

Under Jupyter everything is displayed as HTML, and the same in words for readers who cannot see it. Without IPython a
line is printed instead, so the source of a notebook is also a program. The figure is drawn all the same, so that a
mistake shows. IPython is used where it runs, and never imported otherwise.
"""

from __future__ import annotations

import base64
import html
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MinillmError
from .canvas import alt_text, figure_of, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def under_ipython() -> bool:
    """Whether IPython runs this program; asked without importing it."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


def display(bundle: Mapping[str, object]) -> None:
    """Display {kind: content} in the notebook: the front end chooses the best kind that it knows."""
    from IPython.display import display as ipython_display

    ipython_display(dict(bundle), raw=True)


def figure_png(figure: Axes | Figure) -> bytes:
    """A figure as the bytes of a PNG file, which holds its alt text, too."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.png"
        save_figure(figure, path)
        return path.read_bytes()


def figure_html(figure: Axes | Figure) -> str:
    """A figure as an <img> that needs no other file. Raises MinillmError for a figure without alt text."""
    words = alt_text(figure)
    if not words:
        raise MinillmError('the figure has no alt text, expected ax.set_label("what there is to see")')
    width = round(figure_of(figure).get_size_inches()[0] * 100)
    data = base64.b64encode(figure_png(figure)).decode()
    style = f"width:{width}px; max-width:100%; background:white"
    return f'<img alt="{html.escape(words)}" style="{style}" src="data:image/png;base64,{data}">'


def show(figure: Axes | Figure) -> None:
    """Display a figure (or that of an Axes) with its alt text; without IPython, print the alt text."""
    picture, words = figure_html(figure), alt_text(figure)
    if under_ipython():
        display({"text/html": picture, "text/plain": f"[figure: {words}]"})
    else:
        print(f"[figure: {words}]")
