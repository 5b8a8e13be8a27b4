"""What notebooks show: a function's source, a figure with its alt text, a slider, a stepper.

Figures and controls are made in show/display.py and show/stepper.py, and can be imported from here. Under Jupyter the
source of a function is displayed as Markdown; without IPython a line is printed
instead, so the source of a notebook is also a program.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path

from ..show.display import display, figure_html, figure_png, show, under_ipython
from ..show.labels import token_labels
from ..show.stepper import (
    ThresholdView,
    buffer_stepper,
    buffer_text,
    slider,
    stepper,
    threshold_range,
    threshold_slider,
    threshold_view,
)

__all__ = [
    "ThresholdView",
    "buffer_stepper",
    "buffer_text",
    "figure_html",
    "figure_png",
    "show",
    "show_source",
    "slider",
    "stepper",
    "threshold_range",
    "threshold_slider",
    "threshold_view",
    "token_labels",
]

MONOSPACE = '<div style="font-family: var(--jp-code-font-family, monospace); font-size: 85%">'


def show_source(*functions: Callable) -> None:
    """Show the source of functions or classes as it stands in the package, with file and line."""
    for function in functions:
        lines, start = inspect.getsourcelines(function)
        source = textwrap.dedent("".join(lines))
        parts = Path(inspect.getfile(function)).parts
        package = function.__module__.split(".")[0]
        if package in parts:  # "minillm/transformer/ops.py", wherever it is installed
            parts = parts[len(parts) - 1 - parts[::-1].index(package) :]
        where = f"{'/'.join(parts)}, line {start}"
        if under_ipython():
            # As Markdown: every front end then colours it in its own theme, dark or light. The <div> is for nbconvert,
            # whose pages else show it in the letters of prose.
            code = f"{MONOSPACE}\n\n```python\n{source}```\n\n</div>"
            words = {"text/markdown": f"**`{function.__qualname__}`** · {where}\n\n{code}"}
            display(words | {"text/plain": f"# {where}\n{source}"})
        else:
            print(f"[source of {function.__qualname__}: {where}]")
