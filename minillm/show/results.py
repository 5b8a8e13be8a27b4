"""Figures of results: distributions, what a cut costs, what a predictor and a buffer are worth.

One function each, rows in, matplotlib Axes out (canvas.py says how). Every figure of the house can be had from here:
those that explain rather than measure, the map of the model and its company, are drawn in drawings.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from ..errors import MinillmError
from ..prefetch.clock import FETCHING, Interval, whole_token
from ..sparsity.policies import POLICIES
from .canvas import (
    BLACK,
    COLOURS,
    HATCHES,
    MARKERS,
    curve_styles,
    drawn,
    legend_above,
    listed,
    matplotlib_or_error,
    new_axes,
    percent,
)
from .explain import (
    byte_unit,
    check_rows,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BOUND = {"color": BLACK, "marker": "*", "linestyle": "-."}  # what no rival can beat looks like none, in every figure
KINDS = {  # of the intervals of a timeline: how they are called, coloured and hatched
    "rest": ("attention", "#AAAAAA", ""),
    "ffn": ("FFN", COLOURS[0], ""),
    "head": ("head", COLOURS[5], ".."),
    "stall": ("stall: waiting", COLOURS[1], "xx"),
    "fetch": ("fetch: missing", COLOURS[4], "//"),
    "prefetch": ("prefetch: guessed", COLOURS[2], "\\\\"),
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


def _policy_styles(rows: Sequence[Mapping]) -> dict[str, dict]:
    """The same colour and marker for a policy in every figure, whichever others are beside it."""
    known = curve_styles(tuple(POLICIES))
    return {name: known[name] for name in POLICIES if any(row["policy"] == name for row in rows)}


def _looks_with_bound(names: Sequence[str], bound: str) -> dict[str, dict]:
    """A colour and marker for each name; those that begin with ``bound`` look like a bound."""
    looks = curve_styles([name for name in names if not name.startswith(bound)])
    return {name: looks.get(name, BOUND) for name in names}


def _legend_beside(ax: Axes) -> None:
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)


# ---- distributions ---------------------------------------------------------------------------------------------------
@drawn
def magnitudes_by_layer(at: np.ndarray, shares: np.ndarray, step: str, model: str = "", *, ax: Axes) -> None:
    """The cumulative distribution of |activation| in each layer (figures 5 to 7 of arXiv 2412.12178).

    at (n,) magnitudes above 0; shares (L, n) from distributions.cumulative_shares. First and last layer and two
    between have a marker and a name; the others are drawn in the same run of colours, dark to light.
    """
    matplotlib = matplotlib_or_error()
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(shares)))
    named = sorted({round(i) for i in np.linspace(0, len(shares) - 1, 4)})
    every = max(1, len(at) // 8)
    for i, share in enumerate(shares):
        extra = {"linewidth": 0.8}
        if i in named:
            n = named.index(i)
            extra = {"marker": MARKERS[n], "markevery": (n * every // len(named), every), "label": f"layer {i}"}
        ax.plot(at, percent(share), color=shades[i], **extra)
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


@drawn
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
        ax.bar(place, percent([row[key] for row in found]), width, label=model, linewidth=0.4, **look)
    ax.set_xticks(range(len(layers)), [str(layer) for layer in layers])
    ax.grid(False, axis="x")
    ax.set_xlabel("layer")
    ax.set_ylabel(what)
    ax.set_ylim(0, 100)
    ax.set_title("Natural sparsity: nothing is cut")
    legend_above(ax, len(rows))
    means = [f"{model} {np.mean(percent([row[key] for row in found])):.1f}" for model, found in rows.items()]
    ax.set_label(f"Bars by layer: {what.removesuffix(' (%)')}, in percent; mean over the layers: {listed(means)}.")


# ---- what a cut costs ------------------------------------------------------------------------------------------------
@drawn
def cost_of_cuts(rows: Sequence[Mapping], x: str = "neuron_sparsity", *, ax: Axes) -> None:
    """Perplexity against neuron sparsity or weight reads, a curve per policy, from rows of one model's sweep.

    x: "neuron_sparsity", "read_exact" or "read_known_mask". Rows that went through sweep.with_intervals get bands.
    """
    dense = [row for row in rows if row["policy"] == "dense"]
    for policy, look in _policy_styles(rows).items():
        found = sorted((row for row in rows if row["policy"] == policy), key=lambda row: row[x])
        places, height = percent([row[x] for row in found]), [row["perplexity"] for row in found]
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
    ax.set_title(f"{about}\ntargets by {listed(bys)}{bands}")
    if x != "neuron_sparsity":
        ax.invert_xaxis()  # so that in every panel what is cut grows to the right
    ax.legend(loc="upper left", ncols=2 if len(ax.get_legend_handles_labels()[0]) > 6 else 1)
    worst = max(rows, key=lambda row: row["perplexity"])
    ax.set_label(
        f"Perplexity of {rows[0]['model']} against {X_AXES[x].removesuffix(' (%)')}, in percent, for "
        f"{listed([row for row in _policy_styles(rows)])}; from {min(heights):.2f} to {worst['perplexity']:.2f} "
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


@drawn
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
    styles = curve_styles([*PUBLISHED, *models])
    for name, heights in PUBLISHED.items():
        look = styles[name] | {"linestyle": "--", "markerfacecolor": "white"}
        label = f"{name} (published, read off the figure)"
        ax.plot(percent(PUBLISHED_SHARES), percent(np.array(heights) / heights[0] - 1), label=label, **look)
    for model in models:
        found = sorted((row for row in ours if row["model"] == model), key=lambda row: row["target"])
        points = [(0.0, 1.0), *((row["target"], row["vs_dense"]) for row in found)]
        points = np.array(sorted(dict(points).items()))
        ax.plot(percent(points[:, 0]), percent(points[:, 1] - 1), label=f"{model} (this run)", **styles[model])
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
@drawn
def cost_of_predictors(rows: Sequence[Mapping], dense: float | None = None, *, ax: Axes) -> None:
    """Perplexity against bytes touched per token, a curve per predictor, a point per selected fraction.

    rows: dicts with predictor, fraction, bytes_per_token (FFN weights read plus the predictor's own tables) and
    perplexity. dense: the uncut model's perplexity, drawn as a line.
    """
    names = list(dict.fromkeys(row["predictor"] for row in rows))
    unit, size = byte_unit(max(row["bytes_per_token"] for row in rows))
    for name, look in _looks_with_bound(names, "oracle").items():
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
    ax.set_title(f"Neurons selected: {listed(shares)} %")
    _legend_beside(ax)
    best = [min((row for row in rows if row["predictor"] == name), key=lambda row: row["perplexity"]) for name in names]
    ends = [f"{row['predictor']} {row['perplexity']:.2f}" for row in best]
    ax.set_label(
        f"Perplexity against bytes touched per token for {len(names)} predictors; "
        f"the best each reaches: {listed(ends)}."
    )


@drawn
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
        heights = percent([row[field] for row in rows])
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
    legend_above(ax, len(bars))
    parts = [
        f"{group} {100 * row[key]:.0f} (chance {100 * row[f'chance_{key}']:.0f})"
        for group, row in zip(groups, rows, strict=True)
    ]
    ax.set_label(f"Bars: {key} of activation patterns before and after an edit, in percent: {listed(parts)}.")


@drawn
def precision_recall(rows: Sequence[Mapping], *, ax: Axes) -> None:
    """What a predictor finds, and how much of it is right: a curve per predictor, a point per row.

    rows: dicts with predictor, recall and precision from 0 to 1, a row per selected fraction (or per layer). Raises
    MinillmError for none.
    """
    check_rows(rows, ("predictor", "recall", "precision"))
    names = list(dict.fromkeys(row["predictor"] for row in rows))
    for name, look in _looks_with_bound(names, "oracle").items():
        found = sorted((row["recall"], row["precision"]) for row in rows if row["predictor"] == name)
        ax.plot(*percent(found).T, label=name, **look)
    ax.set_xlim(0, 103)
    ax.set_ylim(0, 103)
    ax.set_xlabel("recall: of the active neurons, selected (%)")
    ax.set_ylabel("precision: of the selected, active (%)")
    ax.set_title("What a predictor finds, and how much of it is right")
    _legend_beside(ax)
    best = [max((row for row in rows if row["predictor"] == name), key=lambda row: row["recall"]) for name in names]
    ends = [f"{row['predictor']} {100 * row['recall']:.0f} and {100 * row['precision']:.0f}" for row in best]
    ax.set_label(
        f"Precision against recall of {len(names)} predictors; recall and precision in percent, where recall is "
        f"largest: {listed(ends)}."
    )


# ---- the buffer ------------------------------------------------------------------------------------------------------
def _by_capacity(rows: Sequence[Mapping], key: str, rivals: str) -> dict[str, np.ndarray]:
    """Rows of prefetch_rows as curves of ``key``: {name: (n, 2) capacity in percent and value}.

    Named by keeper; by predictor, too, where there are several. lru and belady, which every row has beside its own
    figures as ``rivals`` with their names in it, are curves even where no row is theirs.
    """
    check_rows(rows, ("keeper", "capacity_share", key))
    several = len({row.get("predictor") for row in rows}) > 1
    found: dict[str, list[tuple]] = {}
    for row in sorted(rows, key=lambda row: row["capacity_share"]):
        name = f"{row['keeper']}, {row['predictor']}" if several else row["keeper"]
        found.setdefault(name, []).append((100 * row["capacity_share"], row[key]))
    for rival in ("lru", "belady"):
        if all(rivals.format(rival) in row for row in rows) and not any(name.startswith(rival) for name in found):
            found[rival] = sorted({(100 * row["capacity_share"], row[rivals.format(rival)]) for row in rows})
    return {name: np.array(points, float) for name, points in found.items()}


def _draw_by_capacity(curves: Mapping[str, np.ndarray], ax: Axes) -> None:
    """Draw them; the first with the largest markers, so that curves that lie on each other are seen."""
    for n, (name, look) in enumerate(_looks_with_bound(tuple(curves), "belady").items()):
        ax.plot(*curves[name].T, label=name, markersize=max(3.5, 8 - n), **look)
    ax.set_xlim(-2, 102)
    ax.set_xlabel("capacity of the buffer (% of a layer's neurons)")


def _in_the_middle(curves: Mapping[str, np.ndarray], unit: str) -> str:
    """Each curve's value near half of the neurons, in words."""
    middle = {name: points[np.abs(points[:, 0] - 50).argmin()] for name, points in curves.items()}
    return listed([f"{name} {value:.3g}{unit} at {at:.0f} %" for name, (at, value) in middle.items()])


@drawn
def hit_rate_by_capacity(rows: Sequence[Mapping], *, ax: Axes) -> None:
    """Hit rate against the buffer's capacity, a curve per keeper; a random set hits capacity / N, the dotted line.

    rows: those of replay or prefetch_rows; lru and belady, which every row carries, are drawn in any case. Raises
    MinillmError for none.
    """
    curves = _by_capacity(rows, "hit_rate", "{}")
    curves = {name: points * (1, 100) for name, points in curves.items()}
    _draw_by_capacity(curves, ax)
    ax.plot([0, 100], [0, 100], color=BLACK, linestyle=":", linewidth=1, label="capacity / N")
    ax.set_ylim(-2, 102)
    ax.set_ylabel("hit rate: of what is needed, there (%)")
    ax.set_title("How much of what is needed lies in the buffer")
    _legend_beside(ax)
    ax.set_label(f"Hit rate against the buffer's capacity, in percent of the neurons: {_in_the_middle(curves, ' %')}.")


@drawn
def bytes_by_capacity(rows: Sequence[Mapping], *, ax: Axes) -> None:
    """Bytes fetched per token against the buffer's capacity, a curve per keeper; the dotted line is dense, no buffer.

    rows: those of replay or prefetch_rows; lru and belady, which every row carries, are drawn in any case. Raises
    MinillmError for none.
    """
    check_rows(rows, ("dense_bytes",))
    dense = rows[0]["dense_bytes"]
    unit, size = byte_unit(dense)
    curves = _by_capacity(rows, "bytes_per_token", "{}_bytes")
    curves = {name: points / (1, size) for name, points in curves.items()}
    _draw_by_capacity(curves, ax)
    ax.axhline(dense / size, color=BLACK, linestyle=":", linewidth=1, label="dense, no buffer")
    ax.set_ylim(0, None)
    ax.set_ylabel(f"fetched from slow memory per token ({unit})")
    ax.set_title("What has to be fetched")
    _legend_beside(ax)
    middle = _in_the_middle(curves, f" {unit}")
    ax.set_label(f"Fetched per token against the buffer's capacity; dense {dense / size:.3g} {unit}, {middle}.")


@drawn(size=(7.6, 3.8))
def gantt(intervals: Sequence[Interval | Mapping], *, ax: Axes) -> None:
    """Who does what when, in simulated time: a row per layer, in its upper half computing, in its lower half fetching.

    intervals: those of clock.simulate (Timeline.intervals, or its rows) for a token or two; the axis begins where they
    begin. Raises MinillmError for none.
    """
    intervals = [i if isinstance(i, Interval) else Interval(**i) for i in intervals]
    if not intervals:
        raise MinillmError("there are no intervals, expected those of a simulation")
    begin, end = min(i.start for i in intervals), max(i.end for i in intervals)
    unit, size = next(((u, s) for u, s in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)) if end - begin >= s), ("ns", 1e-9))
    for kind, (words, colour, hatch) in KINDS.items():
        found = [i for i in intervals if i.kind == kind]
        if found:
            rows = [i.layer + (0.19 if kind in FETCHING else -0.19) for i in found]
            left, length = ([(i.start - begin) / size for i in found], [(i.end - i.start) / size for i in found])
            look = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.3}
            ax.barh(rows, length, 0.38, left, label=words, **look)
    layers = sorted({i.layer for i in intervals})
    heads = {i.layer for i in intervals if i.kind == "head"}
    every = -(-len(layers) // 24)
    shown = [i for i in layers if i % every == 0 or i in heads]
    ax.set_yticks(shown, ["head" if i in heads else str(i) for i in shown])
    computing = sorted((i.start, i.token) for i in intervals if i.kind not in FETCHING)
    tokens = {token: start for start, token in reversed(computing)}  # when each begins
    for start in sorted(tokens.values())[1:]:
        ax.axvline((start - begin) / size, color=BLACK, linestyle=":", linewidth=1)
    ax.set_xlim(0, 1.01 * (end - begin) / size)
    ax.set_ylim(layers[-1] + 0.6, layers[0] - 0.6)
    ax.grid(False, axis="y")
    ax.set_xlabel(f"simulated time ({unit})" + ("; dotted: the next token" if len(tokens) > 1 else ""))
    ax.set_ylabel("layer")
    ax.set_title("Computing (upper half of a row) and fetching (lower half)")
    legend_above(ax, len(ax.get_legend_handles_labels()[0]), 6)
    stall = sum(i.end - i.start for i in intervals if i.kind == "stall") / (end - begin)
    ax.set_label(
        f"Timeline of {len(layers)} layers and {len(tokens)} tokens: {(end - begin) / size:.3g} {unit}, of which "
        f"computing stands still for {100 * stall:.0f} %."
    )


@drawn
def bytes_read(found: Mapping[str, float], what: str = "FFN weights read per token", *, ax: Axes) -> None:
    """Bytes that a token needs: a bar per way to run the model, with its share of the first one.

    found: {"dense": bytes, "oracle": bytes, ...}; what: which bytes. Raises MinillmError for none.
    """
    if not found:
        raise MinillmError("there is nothing to draw, expected {name: bytes}")
    unit, size = byte_unit(max(found.values()))
    whole = next(iter(found.values()))
    for n, (name, value) in enumerate(found.items()):
        look = {"color": ("#999999", *COLOURS)[n % 11], "hatch": HATCHES[n % len(HATCHES)], "edgecolor": "white"}
        bar = ax.bar(n, value / size, 0.7, linewidth=0.4, label=name, **look)
        ax.bar_label(bar, [f"{100 * value / whole:.0f} %"], padding=1)
    ax.set_xticks(range(len(found)), [fill(name, 11) for name in found])
    ax.margins(y=0.08)
    ax.grid(False, axis="x")
    ax.set_xlabel("how the FFNs are run")
    ax.set_ylabel(f"{what} ({unit})")
    ax.set_title("What has to be read")
    ends = [f"{name} {value / size:.3g}" for name, value in found.items()]
    ax.set_label(f"Bars, {what} in {unit}: {listed(ends)}.")


@drawn(size=(6.0, 3.8))
def speed_against_perplexity(rows: Sequence[Mapping], token: bool = False, *, ax: Axes) -> None:
    """What is gained in time, and what is paid in perplexity: a curve per block size and order, a point per sparsity.

    rows: dicts with group (neurons in a block; 1: scattered), order ("stored", "clustered"), sparsity (share left out),
    speedup (of the FFN over dense; low and high, its spread) and increase (of perplexity over dense, as a share).
    token: draw what that is worth to a whole token; then with ffn_share, the FFNs' share of a token's bytes, too.
    Raises MinillmError for none.
    """
    check_rows(rows, ("group", "sparsity", "speedup", "increase", *(("ffn_share",) if token else ())))
    if token:
        speeds = "speedup", "low", "high"
        rows = [
            row | {key: whole_token(row[key], row["ffn_share"]) for key in speeds if row.get(key) is not None}
            for row in map(dict, rows)
        ]
    of = "a token" if token else "an FFN"
    curves: dict[str, list[Mapping]] = {}
    for row in sorted(rows, key=lambda row: (row["group"], row["sparsity"])):
        name = f"blocks of {row['group']}, {row.get('order', 'stored')}" if row["group"] > 1 else "scattered"
        curves.setdefault(name, []).append(row)
    for name, look in curve_styles(tuple(curves)).items():
        x, y = percent([row["increase"] for row in curves[name]]), [row["speedup"] for row in curves[name]]
        ax.plot(x, y, label=name, **look)
        if all(row.get("low") is not None and row.get("high") is not None for row in curves[name]):
            ax.vlines(x, *([row[end] for row in curves[name]] for end in ("low", "high")), color=look["color"])
    ax.axhline(1, color=BLACK, linestyle=":", linewidth=1, label="dense")
    paid = percent([row["increase"] for row in rows])
    if paid.max() > 20 * max(1.0, np.median(paid)):
        ax.set_xscale("symlog", linthresh=1)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.set_xlabel("increase of perplexity over dense (%)")
    ax.set_ylabel(f"speed of {of} (times dense)")
    shares = [f"{100 * share:.0f}" for share in sorted({row["sparsity"] for row in rows})]
    ax.set_title(f"Points: {listed(shares)} % of the neurons left out")
    _legend_beside(ax)
    best = [max(found, key=lambda row: row["speedup"]) for found in curves.values()]
    ends = [f"{n} {r['speedup']:.3g} times at {100 * r['increase']:+.0f} %" for n, r in zip(curves, best, strict=True)]
    ax.set_label(f"Speed of {of} against the increase of perplexity; where it is fastest: {listed(ends)}.")
