"""What notebooks show: a function's source, a figure with its description, a slider, a stepper.

Under Jupyter everything is displayed as HTML, and a description in words goes with every figure for readers who cannot
see it. Without IPython (``python notebooks/source/NN_name.py``) one line is printed instead, so a notebook's source is
also a program. The figure is drawn in both cases, so that an error in it is noticed. IPython and ipywidgets are
optional: without ipywidgets a slider becomes one static view.

What a slider shows is computed by a plain function (``threshold_view``, ``buffer_text``), which is tested by itself.
The widgets are only a value, ``observe`` and an HTML field: ``ipywidgets.interact`` and its Output area can make a run
without a browser hang.
"""

from __future__ import annotations

import base64
import html
import inspect
import sys
import tempfile
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import MinillmError
from ..prefetch.buffer import PrefetchBuffer
from ..prefetch.traffic import EVENT_COLUMNS, event_rows
from ..show.canvas import alt_text, save_figure
from ..show.explain import neuron_raster
from ..sparsity.masked import masked_swiglu
from ..sparsity.policies import POLICIES
from ..tables import keys_as_headings, text_table
from ..trace import Trace
from ..transformer.generation import generate
from ..transformer.model import Llama

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MONOSPACE = '<div style="font-family: var(--jp-code-font-family, monospace); font-size: 85%">'


def _under_ipython() -> bool:
    """Whether this runs in IPython or Jupyter; found out without importing IPython."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


def _display(bundle: Mapping[str, object]) -> None:
    """Hand a display {kind: content} to the notebook."""
    from IPython.display import display

    display(dict(bundle), raw=True)


# ---- source ----------------------------------------------------------------------------------------------------------
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
        if _under_ipython():
            # As Markdown: every front end then colours it in its own theme, dark or light. The <div> is for nbconvert,
            # whose pages else show it in the letters of prose.
            code = f"{MONOSPACE}\n\n```python\n{source}```\n\n</div>"
            words = {"text/markdown": f"**`{function.__qualname__}`** · {where}\n\n{code}"}
            _display(words | {"text/plain": f"# {where}\n{source}"})
        else:
            print(f"[source of {function.__qualname__}: {where}]")


# ---- figures ---------------------------------------------------------------------------------------------------------
def figure_png(figure: Axes | Figure) -> bytes:
    """A figure as the bytes of a PNG file; its alt text is stored in the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.png"
        save_figure(figure, path)
        return path.read_bytes()


def figure_html(figure: Axes | Figure) -> str:
    """A figure as a self-contained <img>. Raises MinillmError for a figure without alt text."""
    words = alt_text(figure)
    if not words:
        raise MinillmError('the figure has no alt text, expected one: ax.set_label("what there is to see")')
    whole = figure.figure  # an Axes belongs to a Figure; a Figure is its own
    if whole is None:
        raise MinillmError("the Axes was removed from its figure, expected one that can be drawn")
    width = round(whole.bbox.width / whole.dpi * 100)
    data = base64.b64encode(figure_png(figure)).decode()
    style = f"width:{width}px; max-width:100%; background:white"
    return f'<img alt="{html.escape(words)}" style="{style}" src="data:image/png;base64,{data}">'


def show(figure: Axes | Figure) -> None:
    """Display a figure (or that of an Axes) with its alt text; without IPython, print the alt text."""
    picture, words = figure_html(figure), alt_text(figure)
    if _under_ipython():
        _display({"text/html": picture, "text/plain": f"[figure: {words}]"})
    else:
        print(f"[figure: {words}]")


# ---- a threshold that can be moved -----------------------------------------------------------------------------------
def token_labels(model: Llama, ids: Sequence[int]) -> list[str]:
    """A short text for each id, for the axes of a figure; "#5" for one that has no text of its own (BOS)."""
    return [model.tokenizer.decode([index]) or f"#{index}" for index in ids]


@dataclass(frozen=True)
class ThresholdView:
    """What one threshold t does: every neuron with |mid| <= t is cut, in every layer."""

    threshold: float
    layer: int  # the one whose mask is shown
    tokens: list[str]
    mask: np.ndarray  # (T, F) bool, True where a neuron of that layer is kept
    cut: float  # share of the (token, neuron) pairs that are cut, over all layers
    errors: np.ndarray  # (L,) |y_cut - y| / |y| of each layer's FFN output over the text, for the dense model's input
    dense: str  # how the model goes on uncut
    text: str  # and how it goes on when it is cut

    def __str__(self) -> str:
        low, high, here = 100 * self.errors.min(), 100 * self.errors.max(), 100 * self.errors[self.layer]
        return (
            f"threshold {self.threshold:.3g}: {100 * self.cut:.0f} % of all neurons cut\n"
            f"FFN output changes by {here:.0f} % in layer {self.layer} ({low:.0f} to {high:.0f} % over the layers)\n"
            f"uncut  {self.dense!r}\ncut    {self.text!r}"
        )

    def figure(self) -> Axes:
        """The mask as a raster of neurons and tokens."""
        return neuron_raster(self.mask, self.tokens)


def threshold_view(model: Llama, text: str, threshold: float, layer: int = 0, new_tokens: int = 24) -> ThresholdView:
    """Cut every neuron with |mid| <= threshold, and look at mask, output error and continuation.

        y_cut = (mid where |mid| > t, else 0) W_down^T        the same t in every layer

    Raises MinillmError for a threshold below 0 and a layer that there is not.
    """
    if not threshold >= 0 or not 0 <= layer < len(model.layers):
        expected = f"expected a number >= 0 and a layer from 0 to {len(model.layers) - 1}"
        raise MinillmError(f"threshold is {threshold} and layer {layer}, {expected}")
    ids = model.tokenizer.encode(text)
    with Trace(keep=["blocks.*.mlp.norm", "blocks.*.mlp.out"]) as dense:
        model.hidden(ids, tap=dense)
    ffn = partial(masked_swiglu, policy=POLICIES["mid"], thresholds={"mid": float(threshold)})
    masks, errors = [], []
    for each in model.layers:
        with Trace(keep="mask") as cut:
            y = ffn(dense[f"blocks.{each.index}.mlp.norm"], each, 0, cut)
        out = dense[f"blocks.{each.index}.mlp.out"]
        masks.append(cut["mask"])
        errors.append(np.linalg.norm(y - out) / np.linalg.norm(out))

    def goes_on(**how) -> str:
        return "".join(step.text for step in generate(model, ids, new_tokens, **how))

    share = 1 - float(np.mean([mask.mean() for mask in masks]))
    return ThresholdView(
        threshold, layer, token_labels(model, ids), masks[layer], share, np.array(errors), goes_on(), goes_on(ffn=ffn)
    )


def _view_html(view: ThresholdView) -> str:
    return f"{figure_html(view.figure())}<pre>{html.escape(str(view))}</pre>"


def threshold_range(model: Llama, text: str) -> tuple[float, float]:
    """Where a slider may begin and end: 10 % and 99.5 % of the text's |mid| lie below, in the mean over the layers.

    A story often survives the loss of nine neurons in ten, so the slider has to go further, and |mid| has tails so
    heavy that only a logarithmic one has room for all of it. With exact zeros (ReLU) it begins at a 1000th of its end.
    """
    with Trace(keep="blocks.*.mlp.mid") as trace:
        model.hidden(model.tokenizer.encode(text), tap=trace)
    low, high = np.mean([np.quantile(np.abs(mid), (0.1, 0.995)) for mid in trace.values()], axis=0).tolist()
    return max(low, high / 1000), high


def threshold_slider(model: Llama, text: str, layer: int = 0, new_tokens: int = 24) -> None:
    """A slider for the threshold: mask, output error and continuation are drawn anew when it is let go.

    Without ipywidgets or IPython: one view, at the middle of the slider's way.
    """
    low, high = threshold_range(model, text)
    middle = float(np.sqrt(low * high))

    def page(threshold: float) -> str:
        return _view_html(threshold_view(model, text, threshold, layer, new_tokens))

    if not _under_ipython():
        view = threshold_view(model, text, middle, layer, new_tokens)
        view.figure()
        print(view)
    elif (widgets := _widgets()) is None:
        _display({"text/html": page(middle), "text/plain": "[a threshold's view]"})
    else:
        box = slider(widgets, page, low, high)
        _show_widget(box, box.children[1].value)


def slider(widgets, page: Callable[[float], str], low: float, high: float):
    """A slider in equal ratios from ``low`` to ``high``, above the HTML that page(value) gives."""
    begin, end = np.log10((low, high)).tolist()
    value = widgets.FloatLogSlider(
        10 ** ((begin + end) / 2), base=10, min=begin, max=end, step=(end - begin) / 60, description="threshold",
        readout_format=".3g", continuous_update=False,
    )  # fmt: skip
    field = widgets.HTML(page(value.value))

    def moved(change: Mapping) -> None:
        field.value = page(change["new"])

    value.observe(moved, names="value")
    return widgets.VBox([value, field])


# ---- a buffer that can be stepped ------------------------------------------------------------------------------------
def buffer_text(buffer: PrefetchBuffer, last: int = 10) -> str:
    """The last events of a buffer as a table, and what each layer keeps now."""

    def short(neurons: str, width: int = 48) -> str:
        return neurons if len(neurons) <= width else neurons[: width - 4].rsplit(" ", 1)[0] + " ..."

    rows = [row | {"neurons": short(row["neurons"])} for row in event_rows(buffer.events[-last:])]
    happened = text_table(rows, EVENT_COLUMNS) if rows else "nothing has happened yet"
    holds = [
        {
            "layer": layer,
            "kept": f"{buffer.held[layer].sum()} of {buffer.capacity}",
            "neurons": short(" ".join(map(str, np.flatnonzero(buffer.held[layer])))),
            "on their way": short(" ".join(map(str, np.flatnonzero(buffer.waiting[layer])))) or "-",
        }
        for layer in range(buffer.layers)
    ]
    columns = keys_as_headings({"layer": "d", "kept": "", "neurons": "", "on their way": ""})
    return f"{happened}\n\n{text_table(holds, columns)}"


def _buffer_html(buffer: PrefetchBuffer) -> str:
    return f"<pre>{html.escape(buffer_text(buffer))}</pre>"


def buffer_stepper(buffer: PrefetchBuffer, events: int = 6) -> None:
    """Buttons that take a buffer's script (``follow``) on by one event or ten; the first ``events`` are taken at once.

    Without ipywidgets or IPython: the view after those.
    """
    for _ in range(events):
        buffer.step()
    if not _under_ipython():
        print(buffer_text(buffer))
        return
    page, widgets = _buffer_html(buffer), _widgets()
    if widgets is None:
        _display({"text/html": page, "text/plain": buffer_text(buffer)})
    else:
        _show_widget(stepper(widgets, buffer), page)


def stepper(widgets, buffer: PrefetchBuffer):
    """Buttons "1 event" and "10 events" above what ``buffer_text`` says; they go grey at the script's end."""
    field = widgets.HTML(_buffer_html(buffer))
    buttons = [widgets.Button(description=f"{n} event{'s' if n > 1 else ''}") for n in (1, 10)]

    def pressed(button, count: int) -> None:
        for _ in range(count):
            if buffer.step() is None:
                for each in buttons:
                    each.disabled = True
                break
        field.value = _buffer_html(buffer)

    for button, count in zip(buttons, (1, 10), strict=True):
        button.on_click(partial(pressed, count=count))
    return widgets.VBox([widgets.HBox(buttons), field])


def _widgets():
    """The module ipywidgets, or None where it is not installed."""
    try:
        import ipywidgets
    except ImportError:
        return None
    return ipywidgets


def _show_widget(box, page: str) -> None:
    """Display a widget; where a page is read without a kernel behind it, the static HTML is seen in its place."""
    _display(box._repr_mimebundle_() | {"text/html": page})
