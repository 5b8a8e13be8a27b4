"""Figures of activations before anything is cut: their magnitudes, and natural sparsity.

One function each, rows or arrays in, matplotlib Axes out (canvas.py says how).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..units import compact
from .canvas import (
    MARKERS,
    Look,
    bar_look,
    drawn,
    figure_of,
    given_or_new,
    legend_above,
    listed,
    log_axis,
    matplotlib_or_error,
    new_axes,
    percent,
    plain_text,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@drawn
def magnitudes_by_layer(
    at: np.ndarray, shares: np.ndarray, step: str, model: str = "", *, ax: Axes | None = None
) -> Axes:
    """The cumulative distribution of |activation| in each layer (figures 5 to 7 of arXiv 2412.12178).

    at (n,) magnitudes above 0; shares (L, n) from distributions.cumulative_shares. First and last layer and two
    between have a marker and a name; the others have colours between them, dark to light.
    """
    ax = given_or_new(ax)
    matplotlib = matplotlib_or_error()
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(shares)))
    named = sorted({round(i) for i in np.linspace(0, len(shares) - 1, 4)})
    every = max(1, len(at) // 8)
    for i, share in enumerate(shares):
        extra: Look = {"linewidth": 0.8}
        if i in named:
            n = named.index(i)
            extra = {"marker": MARKERS[n], "markevery": (n * every // len(named), every), "label": f"layer {i}"}
        ax.plot(at, percent(share), color=shades[i], **extra)
    log_axis(ax, "x", float(at.min()), float(at.max()))
    ax.set_xlabel(f"magnitude |{step}| (no unit, log scale)")
    ax.set_ylabel("values up to that magnitude (%)")
    ax.set_ylim(0, 101)
    ax.set_title(f"{plain_text(model) + ': ' if model else ''}magnitudes of {step} by layer")
    ax.legend(loc="upper left")
    half = [at[min(int(np.searchsorted(share, 0.5)), len(at) - 1)] for share in shares]
    ends = f"{compact(min(half), 2)} to {compact(max(half), 2)}"
    ax.set_label(
        f"Cumulative distributions of the magnitude of {step} in {len(shares)} layers"
        f"{' of ' + model if model else ''}; half of the values lie below {ends}."
    )
    return ax


def magnitudes_figure(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], model: str = "") -> Figure:
    """A panel of ``magnitudes_by_layer`` for each step: {step: (at (n,), shares (L, n))} from distributions.curve."""
    panels = new_axes(-(-len(curves) // 2), min(len(curves), 2))
    for ax, (step, (at, shares)) in zip(panels, curves.items(), strict=False):
        magnitudes_by_layer(at, shares, step, model, ax=ax)
    for ax in panels[len(curves) :]:
        ax.remove()
    return figure_of(panels[0])


@drawn
def natural_by_layer(rows: Mapping[str, Sequence[Mapping]], key: str | None = None, *, ax: Axes | None = None) -> Axes:
    """Natural sparsity by layer, a group of bars per layer and a bar per model (figures 2 to 4 of arXiv 2412.12178).

    rows: {model: rows of natural.natural_sparsity}; key: which of their shares is shown (None: exact zeros of the gate,
    or, where no model has any, near-zeros).
    """
    ax = given_or_new(ax)
    if key is None:
        zeros = any(row["gate_zeros"] for layers in rows.values() for row in layers)
        key = "gate_zeros" if zeros else "gate_below_10_percent"
    what = {
        "gate_zeros": "gate activations exactly zero (%)",
        "mid_zeros": "neuron coefficients exactly zero (%)",
        "gate_below_1_percent": "gate activations below 1 % of their r.m.s. (%)",
        "gate_below_10_percent": "gate activations below 10 % of their r.m.s. (%)",
    }[key]
    numbers = sorted({row["layer"] for layers in rows.values() for row in layers})
    width = 0.8 / len(rows)
    for n, (model, layers) in enumerate(rows.items()):
        place = [numbers.index(row["layer"]) + (n - (len(rows) - 1) / 2) * width for row in layers]
        ax.bar(
            place, percent([row[key] for row in layers]), width, label=plain_text(model), linewidth=0.4, **bar_look(n)
        )
    ax.set_xticks(range(len(numbers)), [str(number) for number in numbers])
    ax.grid(False, axis="x")
    ax.set_xlabel("layer")
    ax.set_ylabel(what)
    ax.set_ylim(0, 100)
    ax.set_title("Natural sparsity: nothing is cut")
    legend_above(ax, len(rows))
    means = [f"{model} {np.mean(percent([row[key] for row in layers])):.1f}" for model, layers in rows.items()]
    ax.set_label(f"Bars by layer: {what.removesuffix(' (%)')}, in percent; mean over the layers: {listed(means)}.")
    return ax
