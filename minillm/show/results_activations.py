"""Figures of activations compared: sparsity against perplexity, predictors, reuse (study/relu2.py).

One function each, rows in, matplotlib Axes out (canvas.py says how).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .canvas import (
    bar_look,
    curve_styles,
    drawn,
    figure_of,
    given_or_new,
    legend_above,
    listed,
    new_axes,
    percent,
    plain_text,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _models(rows: Sequence[Mapping]) -> list[str]:
    return list(dict.fromkeys(row["model"] for row in rows))


@drawn
def sparsity_and_price(rows: Sequence[Mapping], *, ax: Axes | None = None) -> Axes:
    """Increase of perplexity against neuron sparsity, a curve per model, a point per CETT.

    rows: of relu2.tradeoff_rows: model, by, neuron_sparsity, vs_dense; those by cett are drawn.
    """
    ax, ends = given_or_new(ax), []
    for model, look in curve_styles(_models(rows)).items():
        points = sorted(
            (row["neuron_sparsity"], row["vs_dense"]) for row in rows if row["model"] == model and row["by"] == "cett"
        )
        x, y = percent(points).T
        ax.plot(x, y - 100, label=plain_text(model), **look)
        ends.append(f"{model} {x[-1]:.0f} at {y[-1] - 100:+.0f}")
    ax.set_xlabel("neurons cut (%)")
    ax.set_ylabel("increase of perplexity (%)")
    ax.set_title("1. Sparsity against performance, a point per CETT")
    ax.legend(loc="upper left")
    ax.set_label(f"Increase of perplexity against neurons cut, in percent; at the largest CETT: {listed(ends)}.")
    return ax


@drawn
def recall_of_predictors(rows: Sequence[Mapping], *, ax: Axes | None = None) -> Axes:
    """Recall of each predictor, a group of bars per model; above each bar the increase of perplexity with its mask.

    rows: of relu2.predictivity_rows: model, predictor, recall, active, perplexity, dense. The oracle is left out.
    """
    ax, models, parts = given_or_new(ax), _models(rows), []
    predictors = [name for name in dict.fromkeys(row["predictor"] for row in rows) if name != "oracle"]
    width = 0.8 / max(1, len(predictors))
    for n, predictor in enumerate(predictors):
        found = [row for row in rows if row["predictor"] == predictor]
        place = [models.index(row["model"]) + (n - (len(predictors) - 1) / 2) * width for row in found]
        bars = ax.bar(place, percent([row["recall"] for row in found]), width, label=plain_text(predictor),
                      linewidth=0.4, **bar_look(n))  # fmt: skip
        paid = [100 * (row["perplexity"] / row["dense"] - 1) for row in found]
        ax.bar_label(bars, [f"{each:+.0f}" for each in paid], padding=1, fontsize=7, rotation=90)
        each = [f"{row['model']} {100 * row['recall']:.0f}" for row in found]
        parts.append(f"{predictor}: {listed(each)}")
    active = {row["model"]: row["active"] for row in reversed(rows)}  # the first row's, which is the oracle's
    ax.set_xticks(range(len(models)), [f"{plain_text(name)}\n{100 * active[name]:.0f} % active" for name in models])
    ax.grid(False, axis="x")
    ax.set_xlabel("model, and its share of active neurons")
    ax.set_ylabel("recall at as many selected as active (%)")
    ax.set_ylim(0, 115)
    ax.set_yticks(range(0, 101, 20))
    ax.set_title("2. Predictivity; above a bar: increase of perplexity, %")
    legend_above(ax, len(predictors), columns=2)
    ax.set_label(f"Bars: recall of predictors in percent; {'; '.join(parts)}.")
    return ax


@drawn
def reuse_of_neurons(rows: Sequence[Mapping], *, ax: Axes | None = None) -> Axes:
    """Reuse against the number of tokens looked back, a curve per model; dotted: what chance would reuse.

    rows: of relu2.affinity_row: model, and reuse_K and chance_K for some K.
    """
    ax, ends = given_or_new(ax), []
    look_back = [int(key.removeprefix("reuse_")) for key in rows[0] if key.startswith("reuse_")]
    for row, look in zip(rows, curve_styles(_models(rows)).values(), strict=True):
        reused, chance = (
            percent([np.nan if row[f"{kind}_{k}"] is None else row[f"{kind}_{k}"] for k in look_back])
            for kind in ("reuse", "chance")
        )
        ax.plot(look_back, reused, label=plain_text(row["model"]), **look)
        ax.plot(look_back, chance, color=look["color"], linestyle=":", linewidth=1)
        ends.append(f"{row['model']} {reused[0]:.0f} and {chance[0]:.0f}")
    ax.set_xscale("log", base=2)
    ax.set_xticks(look_back, [str(k) for k in look_back])
    ax.set_xlabel("tokens looked back")
    ax.set_ylabel("active neurons that were active there (%)")
    ax.set_ylim(0, 103)
    ax.set_title("3. Reuse; dotted: by chance, at the same frequencies")
    ax.legend(loc="lower right")
    ax.set_label(f"Reuse after one token and what chance would reuse, in percent: {listed(ends)}.")
    return ax


def activations_figure(
    tradeoff: Sequence[Mapping], predictivity: Sequence[Mapping], affinity: Sequence[Mapping]
) -> Figure:
    """The three axes side by side: rows of relu2.tradeoff_rows, predictivity_rows and affinity_row."""
    first, second, third = new_axes(1, 3)
    sparsity_and_price(tradeoff, ax=first)
    recall_of_predictors(predictivity, ax=second)
    reuse_of_neurons(affinity, ax=third)
    return figure_of(first)
