"""Figures of the cost of cutting: perplexity, beside the paper's figure 8, and the speed that is gained.

One function each, rows in, matplotlib Axes out (canvas.py says how).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import MinillmError
from ..prefetch.clock import whole_token
from ..sparsity.policies import POLICIES
from ..units import plain
from .canvas import (
    BLACK,
    Look,
    check_rows,
    curve_styles,
    drawn,
    figure_of,
    given_or_new,
    label_points,
    legend_beside,
    listed,
    log_perplexity,
    new_axes,
    percent,
    plain_text,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Perplexity on WikiText-2 against the share of each tensor cut (policy dhar by tensor), read off figure 8 of
# arXiv 2412.12178 by eye, to about +-0.05.
PUBLISHED_SHARES = (0.0, 0.30, 0.35, 0.40, 0.45, 0.50)
PUBLISHED = {
    "Llama-3-8B": (6.14, 6.77, 7.16, 7.79, 8.79, 10.64),
    "Phi-3-mini": (6.33, 6.55, 6.70, 6.94, 7.30, 7.93),
    "Mistral-7B": (5.26, 5.42, 5.53, 5.72, 5.99, 6.44),
}
X_AXES = {
    "neuron_sparsity": "neuron sparsity: (token, neuron) pairs cut (%)",
    "read_exact": "FFN weights read per token, mask computed (%)",
    "read_known_mask": "FFN weights read per token, mask known (%)",
}


def _policy_styles(rows: Sequence[Mapping]) -> dict[str, Look]:
    """Colour and marker of each policy in the rows, the same in every figure; after them, those of other methods."""
    names = list(dict.fromkeys(row["policy"] for row in rows if row["policy"] != "dense"))
    looks = curve_styles([*POLICIES, *(name for name in names if name not in POLICIES)])
    return {name: look for name, look in looks.items() if name in names}


@drawn
def cost_of_cuts(rows: Sequence[Mapping], x: str = "neuron_sparsity", *, ax: Axes | None = None) -> Axes:
    """Perplexity against neuron sparsity or weight reads, a curve per policy, from rows of one model's sweep.

    x: "neuron_sparsity", "read_exact" or "read_known_mask". Rows that went through sweep.with_intervals get bands.
    """
    ax = given_or_new(ax)
    dense = [row for row in rows if row["policy"] == "dense"]
    for policy, look in _policy_styles(rows).items():
        curve = sorted((row for row in rows if row["policy"] == policy), key=lambda row: row[x])
        places, height = percent([row[x] for row in curve]), [row["perplexity"] for row in curve]
        ax.plot(places, height, label=plain_text(policy), **look)
        if all("perplexity_low" in row for row in curve):
            low, high = ([row[f"perplexity_{end}"] for row in curve] for end in ("low", "high"))
            ax.fill_between(places, low, high, color=look["color"], alpha=0.18, linewidth=0)
    if dense:
        label = f"dense ({dense[0]['perplexity']:.2f})"
        ax.axhline(dense[0]["perplexity"], color=BLACK, linestyle=":", linewidth=1, label=label)
    heights = [row["perplexity"] for row in rows]
    if max(heights) > 3 * min(heights):
        log_perplexity(ax, heights)
    ax.set_xlabel(X_AXES[x])
    ax.set_ylabel("perplexity (per token)" + (", log scale" if ax.get_yscale() == "log" else ""))
    bys = sorted({row["by"] for row in rows if row["by"]})
    about = "{tokens:,} tokens, protocol {protocol}, context {context}".format(**rows[0])
    bands = "; bands: 95 % intervals over documents" if any("perplexity_low" in row for row in rows) else ""
    ax.set_title(f"{plain_text(rows[0]['model'])}, {about}\ntargets by {listed(bys)}{bands}")
    if x != "neuron_sparsity":
        ax.invert_xaxis()  # so that in every panel what is cut grows to the right
    if x == "neuron_sparsity":
        ax.legend(loc="upper left", ncols=2 if len(ax.get_legend_handles_labels()[0]) > 6 else 1)
    else:  # its curves begin at different places, one of them in every corner
        legend_beside(ax)
    worst = max(rows, key=lambda row: row["perplexity"])
    ax.set_label(
        f"Perplexity of {rows[0]['model']} against {X_AXES[x].removesuffix(' (%)')}, in percent, for "
        f"{listed([row for row in _policy_styles(rows)])}; from {min(heights):.2f} to {worst['perplexity']:.2f} "
        f"({worst['policy']} at {100 * worst[x]:.0f})."
    )
    return ax


@drawn
def beside_the_paper(rows: Sequence[Mapping], *, ax: Axes | None = None) -> Axes:
    """Figure 8 of arXiv 2412.12178: the increase of perplexity when each tensor is cut at a percentage (policy dhar).

    rows of a sweep of one or several models; only dhar by tensor is drawn. The paper's three models are beside them,
    dashed and hollow: other models, another text (WikiText-2), values read off its figure. Each curve is relative to
    its own dense model, since perplexities of different tokenizers and texts cannot be compared.
    """
    ax = given_or_new(ax)
    ours = [row for row in rows if row["policy"] == "dhar" and row["by"] == "tensor"]
    if not ours:
        raise MinillmError("none of the rows is of policy dhar by tensor, which figure 8 of the paper is about")
    models = list(dict.fromkeys(row["model"] for row in ours))
    styles = curve_styles([*PUBLISHED, *models])
    for name, heights in PUBLISHED.items():
        look = styles[name] | {"linestyle": "--", "markerfacecolor": "white"}
        label = f"{name} (published, read off the figure)"
        ax.plot(percent(PUBLISHED_SHARES), percent(np.array(heights) / heights[0] - 1), label=label, **look)
    for model in models:
        curve = sorted((row for row in ours if row["model"] == model), key=lambda row: row["target"])
        points = np.array(sorted({0.0: 1.0, **{row["target"]: row["vs_dense"] for row in curve}}.items()))
        ax.plot(
            percent(points[:, 0]), percent(points[:, 1] - 1), label=f"{plain_text(model)} (this run)", **styles[model]
        )
    ax.set_xlabel("share of gate, up and FFN output cut, each (%)")
    ax.set_ylabel("increase of perplexity over dense (%)")
    ax.set_title("The paper's rule (dhar, by tensor)")
    ax.legend(loc="upper left")
    last = [max((row for row in ours if row["model"] == model), key=lambda row: row["target"]) for model in models]
    ends = [f"{row['model']} +{100 * (row['vs_dense'] - 1):.0f} at {100 * row['target']:.0f}" for row in last]
    paper = [f"{name} +{100 * (heights[-1] / heights[0] - 1):.0f} at 50" for name, heights in PUBLISHED.items()]
    ax.set_label(
        "Increase of perplexity in percent against the percentage cut of each tensor. "
        f"This run: {listed(ends)}. Published, read off the figure: {listed(paper)}."
    )
    return ax


def sweep_figure(rows: Sequence[Mapping]) -> Figure:
    """The figure of a sweep: a line of panels per model, perplexity against neuron sparsity and against weight reads.

    A sweep of dhar alone by tensor is the paper's own experiment, and gives its figure 8 instead.
    """
    if {(row["policy"], row["by"]) for row in rows} <= {("dense", None), ("dhar", "tensor")}:
        return figure_of(beside_the_paper(rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    panels = new_axes(len(models), 2)
    for i, model in enumerate(models):
        for ax, x in zip(panels[2 * i :], ("neuron_sparsity", "read_exact"), strict=False):
            cost_of_cuts([row for row in rows if row["model"] == model], x, ax=ax)
        if legend := panels[2 * i + 1].get_legend():
            legend.remove()  # the same curves as on the left
    return figure_of(panels[0])


MOST_CURVES = 5  # in one panel


@drawn
def speed_against_perplexity(rows: Sequence[Mapping], token: bool = False, *, ax: Axes | None = None) -> Axes:
    """Speed gained against perplexity lost: a curve per block size, the share left out beside each point, the front.

    rows: dicts with group (neurons in a block; 1: scattered), order ("stored", "clustered"), sparsity (share left out),
    speedup (of the FFN over dense; low and high, its spread) and increase (of perplexity over dense, as a share). Of
    two orders the cheaper is drawn; of more than MOST_CURVES block sizes, those nearest to the front.
    token: draw the speed of a whole token instead; then the rows need ffn_share, the FFNs' share of a token's bytes.
    Raises MinillmError for none.
    """
    ax = given_or_new(ax, (6.0, 3.8))
    check_rows(rows, ("group", "sparsity", "speedup", "increase", *(("ffn_share",) if token else ())))
    if token:
        speeds = "speedup", "low", "high"
        rows = [
            row | {key: whole_token(row[key], row["ffn_share"]) for key in speeds if row.get(key) is not None}
            for row in map(dict, rows)
        ]
    of = "a token" if token else "an FFN"
    curves, front = _block_curves(rows), _front(rows)
    edge = percent([row["increase"] for row in front]), [row["speedup"] for row in front]
    halo: Look = {"color": "#D0D0D0", "linewidth": 6, "marker": "o", "markersize": 11, "zorder": 0}
    ax.plot(*edge, label="front: best of all", **halo)
    looks = curve_styles(tuple(curves))
    for name, look in looks.items():
        x, y = percent([row["increase"] for row in curves[name]]), [row["speedup"] for row in curves[name]]
        ax.plot(x, y, label=name, **look)
        if all(row.get("low") is not None and row.get("high") is not None for row in curves[name]):
            low, high = ([row[end] for row in curves[name]] for end in ("low", "high"))
            ax.vlines(x, low, high, color=look["color"])
    ax.axhline(1, color=BLACK, linestyle=":", linewidth=1, label="dense")
    paid = percent([row["increase"] for curve in curves.values() for row in curve])
    if paid.max() > 20 * max(1.0, np.median(paid)):
        ax.set_xscale("symlog", linthresh=1)
        ax.xaxis.set_major_formatter(lambda value, _: plain(value))
    ax.margins(0.07, 0.1)
    ax.set_xlabel("increase of perplexity over dense (%)")
    ax.set_ylabel(f"speed of {of} (times dense)")
    ax.set_title("Numbers at the points: % of the neurons left out")
    legend_beside(ax)
    for name in looks:
        points = [(100 * row["increase"], row["speedup"]) for row in curves[name]]
        label_points(ax, points, [f"{100 * row['sparsity']:.0f}" for row in curves[name]])
    ends = [f"{plain(row['speedup'])} times at {100 * row['increase']:+.1f} % ({_blocks(row)})" for row in front]
    ax.set_label(
        f"Speed of {of} against the increase of perplexity for {listed(list(curves))}, each point with the share of "
        f"the neurons left out; the front: {listed(ends)}."
    )
    return ax


def _blocks(row: Mapping) -> str:
    """A row's block size in words."""
    return f"blocks of {row['group']}" if row["group"] > 1 else "single neurons"


def _block_curves(rows: Sequence[Mapping]) -> dict[str, list[Mapping]]:
    """A curve per block size, by the share left out: at each share the row that costs least."""
    best: dict[int, dict[float, Mapping]] = {}
    for row in sorted(rows, key=lambda row: (row["group"], row["sparsity"], row["increase"])):
        best.setdefault(row["group"], {}).setdefault(row["sparsity"], row)
    on_front = Counter(row["group"] for row in _front(rows))
    chosen = sorted(sorted(best, key=lambda group: (-on_front[group], group))[:MOST_CURVES])
    curves = {}
    for group in chosen:
        points = list(best[group].values())
        orders = {row.get("order", "stored") for row in points}
        name = _blocks(points[0]) + (f", {orders.pop()}" if group > 1 and len(orders) == 1 else "")
        curves[name] = points
    return curves


def _front(rows: Sequence[Mapping]) -> list[Mapping]:
    """The rows that no other beats: none is faster at no more perplexity."""
    front: list[Mapping] = []
    for row in sorted(rows, key=lambda row: (row["increase"], -row["speedup"])):
        if not front or row["speedup"] > front[-1]["speedup"]:
            front.append(row)
    return front
