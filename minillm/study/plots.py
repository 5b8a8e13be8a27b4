"""Figures: one function each, rows or arrays in, matplotlib Axes out, and one that writes them to a file.

Every axis names its quantity and unit. Colours follow Okabe and Ito (told apart with any colour vision), and every
curve has a marker of its own besides, so that a figure printed in grey can be read. Sizes are for half a page.

Each function takes the Axes to draw on (or makes a figure of its own) and leaves a sentence that says what there is to
see in the Axes' label, which is never drawn: ``alt_text(ax)`` reads it, ``ax.set_label("...")`` changes it, and
``save_figure`` writes it into the file.

Figures are made without pyplot: nothing is global, no window opens, nothing has to be closed. matplotlib is imported
inside the functions, so the rest of minillm runs without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from ..errors import MinillmError, whole_file
from ..sparsity.policies import POLICIES

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
# Perplexity on WikiText-2 against the share of each tensor cut (policy dhar by tensor), read off figure 8 of
# arXiv 2412.12178 by eye: +-0.05 or so.
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


# ---- around every figure ---------------------------------------------------------------------------------------------


def check_figure(path: str | Path) -> None:
    """Raise MinillmError for a name that ends in neither .png nor .svg, and where matplotlib is not installed."""
    path = Path(path)
    if path.suffix not in (".png", ".svg"):
        raise MinillmError(f"{path}: the name ends in {path.suffix or 'nothing'}, expected .png or .svg")
    _matplotlib()


def _matplotlib():
    try:
        import matplotlib
    except ImportError:
        raise MinillmError("figures need matplotlib: pip install '.[study]'") from None
    return matplotlib


def new_axes(rows: int = 1, columns: int = 1) -> list[Axes]:
    """A figure of ``rows`` times ``columns`` panels, each half a page; gives the panels' Axes, row by row."""
    matplotlib = _matplotlib()
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):  # artists keep the style that they are made in
        figure = Figure((SIZE[0] * columns, SIZE[1] * rows), dpi=150, layout="constrained")
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
    with _matplotlib().rc_context({"svg.hashsalt": "minillm", "svg.fonttype": "path"}):
        with whole_file(path, MinillmError) as beside:
            figure.savefig(beside, format=path.suffix[1:], metadata=metadata)


def _drawn(draw):
    """Make the Axes where none is given, and draw in the house's style."""
    from functools import wraps

    @wraps(draw)
    def drawn(*args, ax: Axes | None = None, **options) -> Axes:
        with _matplotlib().rc_context(STYLE):
            ax = new_axes()[0] if ax is None else ax
            draw(*args, ax=ax, **options)
        return ax

    return drawn


def _styles(names: Sequence[str]) -> dict[str, dict]:
    """A colour and a marker for each name, always the same for the same list."""
    return {
        name: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        | {"linestyle": "-" if i < len(COLOURS) else "--"}
        for i, name in enumerate(names)
    }


def _policy_styles(rows: Sequence[Mapping]) -> dict[str, dict]:
    """The same colour and marker for a policy in every figure, whichever others are beside it."""
    known = _styles(tuple(POLICIES))
    return {name: known[name] for name in POLICIES if any(row["policy"] == name for row in rows)}


def _percent(values: Sequence[float]) -> np.ndarray:
    return 100 * np.asarray(values, float)


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names)


# ---- distributions ---------------------------------------------------------------------------------------------------


@_drawn
def magnitudes_by_layer(at: np.ndarray, shares: np.ndarray, step: str, model: str = "", *, ax: Axes) -> None:
    """The cumulative distribution of |activation| in each layer (figures 5 to 7 of arXiv 2412.12178).

    at (n,) magnitudes above 0; shares (L, n) from distributions.cumulative_shares. First and last layer and two
    between have a marker and a name; the others are drawn in the same run of colours, dark to light.
    """
    matplotlib = _matplotlib()
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(shares)))
    named = sorted({round(i) for i in np.linspace(0, len(shares) - 1, 4)})
    every = max(1, len(at) // 8)
    for i, share in enumerate(shares):
        extra = {"linewidth": 0.8}
        if i in named:
            n = named.index(i)
            extra = {"marker": MARKERS[n], "markevery": (n * every // len(named), every), "label": f"layer {i}"}
        ax.plot(at, _percent(share), color=shades[i], **extra)
    ax.set_xscale("log")
    ax.set_xlabel(f"magnitude |{step}| (no unit, log scale)")
    ax.set_ylabel("values up to that magnitude (%)")
    ax.set_ylim(0, 101)
    ax.set_title(f"{model + ': ' if model else ''}magnitudes of {step} by layer")
    ax.legend(loc="upper left")
    half = [at[min(np.searchsorted(share, 0.5), len(at) - 1)] for share in shares]
    ax.set_label(
        f"Cumulative distributions of the magnitude of {step} in {len(shares)} layers"
        f"{' of ' + model if model else ''}; half of the values lie below {min(half):.2g} to {max(half):.2g}."
    )


def magnitudes_figure(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], model: str = "") -> Figure:
    """A panel of ``magnitudes_by_layer`` for each step: {step: (at (n,), shares (L, n))} from distributions.curve."""
    panels = new_axes(-(-len(curves) // 2), min(len(curves), 2))
    for ax, (step, (at, shares)) in zip(panels, curves.items(), strict=False):
        magnitudes_by_layer(at, shares, step, model, ax=ax)
    for ax in panels[len(curves) :]:
        ax.remove()
    return panels[0].figure


@_drawn
def natural_by_layer(rows: Mapping[str, Sequence[Mapping]], key: str | None = None, *, ax: Axes) -> None:
    """Natural sparsity by layer, a group of bars per layer and a bar per model (figures 2 to 4 of arXiv 2412.12178).

    rows: {model: rows of natural.natural_sparsity}; key: which of their shares is shown (None: exact zeros of the gate,
    or, where no model has any, near-zeros).
    """
    if key is None:
        zeros = any(row["gate_zeros"] for found in rows.values() for row in found)
        key = "gate_zeros" if zeros else "gate_below_10_percent"
    what = {
        "gate_zeros": "gate activations exactly zero (%)",
        "mid_zeros": "neuron coefficients exactly zero (%)",
        "gate_below_1_percent": "gate activations below 1 % of their r.m.s. (%)",
        "gate_below_10_percent": "gate activations below 10 % of their r.m.s. (%)",
    }[key]
    layers = sorted({row["layer"] for found in rows.values() for row in found})
    width = 0.8 / len(rows)
    for n, (model, found) in enumerate(rows.items()):
        place = [layers.index(row["layer"]) + (n - (len(rows) - 1) / 2) * width for row in found]
        look = {"color": COLOURS[n % len(COLOURS)], "hatch": HATCHES[n % len(HATCHES)], "edgecolor": "white"}
        ax.bar(place, _percent([row[key] for row in found]), width, label=model, linewidth=0.4, **look)
    ax.set_xticks(range(len(layers)), [str(layer) for layer in layers])
    ax.grid(False, axis="x")
    ax.set_xlabel("layer")
    ax.set_ylabel(what)
    ax.set_ylim(0, 100)
    ax.set_title("Natural sparsity: nothing is cut")
    _legend_above(ax, len(rows))
    means = [f"{model} {np.mean(_percent([row[key] for row in found])):.1f}" for model, found in rows.items()]
    ax.set_label(f"Bars by layer: {what.removesuffix(' (%)')}, in percent; mean over the layers: {_list(means)}.")


def _legend_above(ax: Axes, entries: int, columns: int = 3) -> None:
    """The legend between title and axes: bars may be as high as the axes, so there is no free place inside."""
    lines = -(-entries // columns)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2, columnspacing=1.2)
    ax.set_title(ax.get_title(), pad=6 + 13 * lines)


# ---- what a cut costs ------------------------------------------------------------------------------------------------


@_drawn
def cost_of_cuts(rows: Sequence[Mapping], x: str = "neuron_sparsity", *, ax: Axes) -> None:
    """Perplexity against neuron sparsity or weight reads, a curve per policy, from rows of one model's sweep.

    x: "neuron_sparsity", "read_exact" or "read_known_mask". Rows that went through sweep.with_intervals get bands.
    """
    dense = [row for row in rows if row["policy"] == "dense"]
    for policy, look in _policy_styles(rows).items():
        found = sorted((row for row in rows if row["policy"] == policy), key=lambda row: row[x])
        places, height = _percent([row[x] for row in found]), [row["perplexity"] for row in found]
        ax.plot(places, height, label=policy, **look)
        if all("perplexity_low" in row for row in found):
            limits = ([row[f"perplexity_{end}"] for row in found] for end in ("low", "high"))
            ax.fill_between(places, *limits, color=look["color"], alpha=0.18, linewidth=0)
    if dense:
        label = f"dense ({dense[0]['perplexity']:.2f})"
        ax.axhline(dense[0]["perplexity"], color=BLACK, linestyle=":", linewidth=1, label=label)
    heights = [row["perplexity"] for row in rows]
    if max(heights) > 3 * min(heights):
        _log_perplexity(ax, heights)
    ax.set_xlabel(X_AXES[x])
    ax.set_ylabel("perplexity (per token)" + (", log scale" if ax.get_yscale() == "log" else ""))
    bys = sorted({row["by"] for row in rows if row["by"]})
    about = "{model}, {tokens:,} tokens, protocol {protocol}, context {context}".format(**rows[0])
    bands = "; bands: 95 % intervals over documents" if any("perplexity_low" in row for row in rows) else ""
    ax.set_title(f"{about}\ntargets by {_list(bys)}{bands}")
    if x != "neuron_sparsity":
        ax.invert_xaxis()  # so that in every panel what is cut grows to the right
    ax.legend(loc="upper left", ncols=2 if len(ax.get_legend_handles_labels()[0]) > 6 else 1)
    worst = max(rows, key=lambda row: row["perplexity"])
    ax.set_label(
        f"Perplexity of {rows[0]['model']} against {X_AXES[x].removesuffix(' (%)')}, in percent, for "
        f"{_list([row for row in _policy_styles(rows)])}; from {min(heights):.2f} to {worst['perplexity']:.2f} "
        f"({worst['policy']} at {100 * worst[x]:.0f})."
    )


def _log_perplexity(ax: Axes, heights: Sequence[float]) -> None:
    """A logarithmic scale with plain numbers at 1, 2, 5 times powers of ten (a decade may have no line otherwise)."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylim(min(heights) / 1.1, max(heights) * 1.15)


@_drawn
def beside_the_paper(rows: Sequence[Mapping], *, ax: Axes) -> None:
    """Figure 8 of arXiv 2412.12178: the increase of perplexity when each tensor is cut at a percentage (policy dhar).

    rows of a sweep of one or several models; only dhar by tensor is drawn. The paper's three models are beside them,
    dashed and hollow: other models, another text (WikiText-2), values read off its figure. Each curve is relative to
    its own dense model, since perplexities of different tokenizers and texts cannot be compared.
    """
    ours = [row for row in rows if row["policy"] == "dhar" and row["by"] == "tensor"]
    if not ours:
        raise MinillmError("none of the rows is of policy dhar by tensor, which figure 8 of the paper is about")
    models = list(dict.fromkeys(row["model"] for row in ours))
    styles = _styles([*PUBLISHED, *models])
    for name, heights in PUBLISHED.items():
        look = styles[name] | {"linestyle": "--", "markerfacecolor": "white"}
        label = f"{name} (published, read off the figure)"
        ax.plot(_percent(PUBLISHED_SHARES), _percent(np.array(heights) / heights[0] - 1), label=label, **look)
    for model in models:
        found = sorted((row for row in ours if row["model"] == model), key=lambda row: row["target"])
        points = [(0.0, 1.0), *((row["target"], row["vs_dense"]) for row in found)]
        points = np.array(sorted(dict(points).items()))
        ax.plot(_percent(points[:, 0]), _percent(points[:, 1] - 1), label=f"{model} (this run)", **styles[model])
    ax.set_xlabel("share of gate, up and FFN output cut, each (%)")
    ax.set_ylabel("increase of perplexity over dense (%)")
    ax.set_title("The paper's rule (dhar, by tensor)")
    ax.legend(loc="upper left")
    last = [max((row for row in ours if row["model"] == model), key=lambda row: row["target"]) for model in models]
    ends = [f"{row['model']} +{100 * (row['vs_dense'] - 1):.0f} at {100 * row['target']:.0f}" for row in last]
    paper = [f"{name} +{100 * (heights[-1] / heights[0] - 1):.0f} at 50" for name, heights in PUBLISHED.items()]
    ax.set_label(
        "Increase of perplexity in percent against the percentage cut of each tensor. "
        f"This run: {_list(ends)}. Published, read off the figure: {_list(paper)}."
    )


def sweep_figure(rows: Sequence[Mapping]) -> Figure:
    """The figure of a sweep: a line of panels per model, perplexity against neuron sparsity and against weight reads.

    A sweep of dhar alone by tensor is the paper's own experiment, and gives its figure 8 instead.
    """
    if {(row["policy"], row["by"]) for row in rows} <= {("dense", None), ("dhar", "tensor")}:
        return beside_the_paper(rows).figure
    models = list(dict.fromkeys(row["model"] for row in rows))
    panels = new_axes(len(models), 2)
    for i, model in enumerate(models):
        for ax, x in zip(panels[2 * i :], ("neuron_sparsity", "read_exact"), strict=False):
            cost_of_cuts([row for row in rows if row["model"] == model], x, ax=ax)
    return panels[0].figure


# ---- predictors ------------------------------------------------------------------------------------------------------


@_drawn
def cost_of_predictors(rows: Sequence[Mapping], dense: float | None = None, *, ax: Axes) -> None:
    """Perplexity against bytes touched per token, a curve per predictor, a point per selected fraction.

    rows: dicts with predictor, fraction, bytes_per_token (FFN weights read plus the predictor's own tables) and
    perplexity. dense: the uncut model's perplexity, drawn as a line.
    """
    names = list(dict.fromkeys(row["predictor"] for row in rows))
    largest = max(row["bytes_per_token"] for row in rows)
    unit, size = next(((u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if largest >= s), ("bytes", 1))
    styles = _styles([name for name in names if name != "oracle"])
    for name in names:
        look = styles.get(name, {"color": BLACK, "marker": "*", "linestyle": "-."})  # the oracle: a limit, no rival
        found = sorted((row for row in rows if row["predictor"] == name), key=lambda row: row["fraction"])
        places = [row["bytes_per_token"] / size for row in found]
        ax.plot(places, [row["perplexity"] for row in found], label=name, **look)
    heights = [row["perplexity"] for row in rows] + ([dense] if dense else [])
    if dense:
        ax.axhline(dense, color=BLACK, linestyle=":", linewidth=1, label=f"dense ({dense:.2f})")
    if max(heights) > 3 * min(heights):
        _log_perplexity(ax, heights)
    fractions = sorted({row["fraction"] for row in rows})
    ax.set_xlabel(f"bytes touched per token, predictor included ({unit})")
    ax.set_ylabel("perplexity (per token)" + (", log scale" if ax.get_yscale() == "log" else ""))
    # Rounded: fractions are targets that are hit within half a percent.
    shares = list(dict.fromkeys(f"{100 * f:.0f}" for f in fractions))
    ax.set_title(f"Neurons selected: {_list(shares)} %")
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    best = [min((row for row in rows if row["predictor"] == name), key=lambda row: row["perplexity"]) for name in names]
    ends = [f"{row['predictor']} {row['perplexity']:.2f}" for row in best]
    ax.set_label(
        f"Perplexity against bytes touched per token for {len(names)} predictors; the best each reaches: {_list(ends)}."
    )


@_drawn
def match_by_position(rows: Sequence[Mapping], key: str = "match", *, ax: Axes) -> None:
    """How well the active neurons of an edited text match the original's, by kind of position (methods of Table II).

    rows: those of patterns.Measured.rows (by_layer=False), or any dicts with scope (or group, a name for it: A shared
    prefix, B changed, C scattered substitutions, D aligned paraphrase), ``key`` ("match", "recall" or "iou") from 0 to
    1, and static_key and chance_key, the same measure of the most frequent mask and of a random one.
    """
    bars = {"this text": key, "static mask": f"static_{key}", "chance": f"chance_{key}"}
    groups = [row.get("group") or " ".join(filter(None, (row.get("variant"), row["scope"]))) for row in rows]
    for n, (name, field) in enumerate(bars.items()):
        place = np.arange(len(rows)) + (n - 1) * 0.27
        heights = _percent([row[field] for row in rows])
        look = {"color": ("#0072B2", "#E69F00", "#AAAAAA")[n], "hatch": HATCHES[n], "edgecolor": "white"}
        drawn = ax.bar(place, heights, 0.27, label=name, linewidth=0.4, **look)
        ax.bar_label(drawn, [f"{height:.0f}" for height in heights], padding=1, fontsize=7)
    ax.set_xticks(range(len(rows)), [fill(group, 13) for group in groups])
    ax.grid(False, axis="x")
    ax.set_xlabel("kind of position")
    ax.set_ylabel(f"{key} of the two patterns (% of neurons)")
    ax.set_ylim(0, 106)
    ax.set_yticks(range(0, 101, 20))
    ax.set_title("Activation patterns before and after an edit")
    _legend_above(ax, len(bars))
    parts = [
        f"{group} {100 * row[key]:.0f} (chance {100 * row[f'chance_{key}']:.0f})"
        for group, row in zip(groups, rows, strict=True)
    ]
    ax.set_label(f"Bars: {key} of activation patterns before and after an edit, in percent: {_list(parts)}.")
