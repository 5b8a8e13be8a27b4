"""Controls in a notebook: a slider for a threshold, buttons that step a prefetch buffer.

    threshold_slider    y_cut = (mid where |mid| > t, else 0) W_down^T: the mask, the output's error, the continuation
    buffer_stepper      the last events of a buffer's script, and what each layer keeps now

What a control shows is computed by a plain function (``threshold_view``, ``buffer_text``), which is tested by itself.
ipywidgets is used where it is installed; without it there is one static view, and without IPython one printed view. The
widgets are only a value, ``observe`` and an HTML field: ``ipywidgets.interact`` and its Output area can make a run
without a browser hang.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from ..errors import MinillmError, show
from ..prefetch.buffer import PrefetchBuffer
from ..prefetch.traffic import EVENT_COLUMNS, event_rows, short
from ..sparsity.masked import masked_swiglu
from ..sparsity.policies import POLICIES
from ..tables import keys_as_headings, text_table
from ..trace import Trace
from ..transformer.ffn import FeedForward, swiglu
from ..transformer.generation import generate
from ..transformer.model import Llama
from ..units import compact
from .display import display, figure_html, under_ipython
from .explain_values import neuron_raster
from .labels import token_labels

if TYPE_CHECKING:
    from ipywidgets import VBox
    from matplotlib.axes import Axes


# ---- a threshold that can be moved -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class ThresholdView:
    """The effect of one threshold t: every neuron with |mid| <= t is cut, in every layer."""

    threshold: float
    layer: int  # the one whose mask is shown
    tokens: list[str]
    mask: np.ndarray  # (T, F) bool, True where a neuron of that layer is kept
    cut: float  # share of the (token, neuron) pairs that are cut, over all layers
    errors: np.ndarray  # (L,) |y_cut - y| / |y| of each layer's FFN output over the text, for the dense model's input
    dense: str  # the continuation of the dense model
    text: str  # the continuation of the cut model

    def __str__(self) -> str:
        low, high, here = 100 * self.errors.min(), 100 * self.errors.max(), 100 * self.errors[self.layer]
        return (
            f"threshold {compact(self.threshold)}: {100 * self.cut:.0f} % of all neurons cut\n"
            f"FFN output changes by {here:.0f} % in layer {self.layer} ({low:.0f} to {high:.0f} % over the layers)\n"
            f"uncut  {self.dense!r}\ncut    {self.text!r}"
        )

    def figure(self) -> Axes:
        """The mask as a raster of neurons and tokens."""
        return neuron_raster(self.mask, self.tokens)


def threshold_view(model: Llama, text: str, threshold: float, layer: int = 0, new_tokens: int = 24) -> ThresholdView:
    """Cut every neuron with |mid| <= threshold; gives mask, output error and continuation.

        y_cut = (mid where |mid| > t, else 0) W_down^T        the same t in every layer

    Raises MinillmError for a threshold below 0 and a layer that does not exist.
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

    def continued(ffn: FeedForward) -> str:
        return "".join(step.text for step in generate(model, ids, new_tokens, ffn=ffn))

    share = 1 - float(np.mean([mask.mean() for mask in masks]))
    return ThresholdView(
        threshold,
        layer,
        token_labels(model, ids),
        masks[layer],
        share,
        np.array(errors),
        continued(swiglu),
        continued(ffn),
    )


def view_html(view: ThresholdView) -> str:
    """The mask's figure and the words of a view."""
    words = html.escape(show(view, keep="\n"))
    return f"{figure_html(view.figure())}<pre>{words}</pre>"


def threshold_range(model: Llama, text: str) -> tuple[float, float]:
    """The two ends of a slider: the 10 % and 99.5 % quantiles of the text's |mid|, averaged over the layers.

    A story often survives the loss of nine neurons in ten, so the slider must reach further than that. |mid| has heavy
    tails, so the slider is logarithmic. With exact zeros (ReLU) it begins at a 1000th of its end.
    """
    with Trace(keep="blocks.*.mlp.mid") as trace:
        model.hidden(model.tokenizer.encode(text), tap=trace)
    low, high = np.mean([np.quantile(np.abs(mid), (0.1, 0.995)) for mid in trace.values()], axis=0).tolist()
    return max(low, high / 1000), high


def threshold_slider(model: Llama, text: str, layer: int = 0, new_tokens: int = 24) -> None:
    """A slider for the threshold: mask, output error and continuation are updated when it is released.

    Without ipywidgets or IPython: one view, at the slider's middle.
    """
    low, high = threshold_range(model, text)
    middle = float(np.sqrt(low * high))

    def page(threshold: float) -> str:
        return view_html(threshold_view(model, text, threshold, layer, new_tokens))

    if not under_ipython():
        view = threshold_view(model, text, middle, layer, new_tokens)
        view.figure()
        print(view)
    elif (widgets := installed_widgets()) is None:
        display({"text/html": page(middle), "text/plain": "[a threshold's view]"})
    else:
        box = slider(widgets, page, low, high)
        show_widget(box, box.children[1].value)


def slider(widgets: ModuleType, page: Callable[[float], str], low: float, high: float) -> VBox:
    """A slider with equal ratios from ``low`` to ``high``, above the HTML that page(value) gives."""
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
    rows = [row | {"neurons": short(row["neurons"])} for row in event_rows(buffer.events[-last:])]
    events = text_table(rows, EVENT_COLUMNS) if rows else "nothing has happened yet"
    layers = [
        {
            "layer": layer,
            "kept": f"{buffer.held[layer].sum()} of {buffer.capacity}",
            "neurons": short(" ".join(map(str, np.flatnonzero(buffer.held[layer]))), 36),
            "on their way": short(" ".join(map(str, np.flatnonzero(buffer.waiting[layer]))), 36) or "-",
        }
        for layer in range(buffer.layers)
    ]
    columns = keys_as_headings({"layer": "d", "kept": "", "neurons": "", "on their way": ""})
    return f"{events}\n\n{text_table(layers, columns)}"


def buffer_html(buffer: PrefetchBuffer) -> str:
    """The text of a buffer in letters of one width."""
    return f"<pre>{html.escape(buffer_text(buffer))}</pre>"


def buffer_stepper(buffer: PrefetchBuffer, events: int = 6) -> None:
    """Buttons that run the next one or ten events of a buffer's script (``follow``); the first ``events`` run at once.

    Without ipywidgets or IPython: the view after those events.
    """
    for _ in range(events):
        buffer.step()
    if not under_ipython():
        print(buffer_text(buffer))
        return
    page, widgets = buffer_html(buffer), installed_widgets()
    if widgets is None:
        display({"text/html": page, "text/plain": buffer_text(buffer)})
    else:
        show_widget(stepper(widgets, buffer), page)


def stepper(widgets: ModuleType, buffer: PrefetchBuffer) -> VBox:
    """Buttons "1 event" and "10 events" above the text of ``buffer_text``; they are disabled at the script's end."""
    field = widgets.HTML(buffer_html(buffer))
    buttons = [widgets.Button(description=f"{n} event{'s' if n > 1 else ''}") for n in (1, 10)]

    def pressed(button, count: int) -> None:
        for _ in range(count):
            if buffer.step() is None:
                for each in buttons:
                    each.disabled = True
                break
        field.value = buffer_html(buffer)

    for button, count in zip(buttons, (1, 10), strict=True):
        button.on_click(partial(pressed, count=count))
    return widgets.VBox([widgets.HBox(buttons), field])


def installed_widgets() -> ModuleType | None:
    """The module ipywidgets, or None where it is not installed."""
    try:
        import ipywidgets
    except ImportError:
        return None
    return ipywidgets


def show_widget(box: VBox, page: str) -> None:
    """Display a widget; a page without a kernel behind it shows the static HTML instead."""
    display(box._repr_mimebundle_() | {"text/html": page})
