"""Figures that explain: the map of the model, what a step's array looks like, how two passes differ.

One function each, arrays in, matplotlib Axes out; style, alt text and files as in canvas.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import MinillmError
from ..loading.tensors import to_bfloat16
from ..trace import Comparison, Row
from .canvas import BLACK, COLOURS, HATCHES, curve_styles, drawn, legend_above, listed, matplotlib_or_error, percent
from .map import BLUE, GREY, RED, _inches

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TIMES = {"step": "steps", "tokens": "tokens", "epoch": "epochs"}  # what a training's rows may count


def token_label(token: str, space: str = "", longest: int = 12) -> str:
    """A token as it can be written at an axis: white space made visible, long ones cut, a box for what no letter has.

    space: what stands for a space in front, which most tokens have.
    """
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont("DejaVu Sans"))  # matplotlib's own, always there
    inside = token.strip(" ")
    text = inside.replace("\r", "").replace("\n", "↵").replace("\t", "⇥") if inside else "␣" * len(token)
    text = space * (inside != "" and token.startswith(" ")) + text
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    text = "".join(c if c.isprintable() and font.get_char_index(ord(c)) else "□" for c in text)
    return text.replace("$", r"\$") or "(special)"  # a dollar would begin a formula


def _label_axis(axis, labels: Sequence[str], room: float, upright: bool = False) -> None:
    """Write as many of the labels at 0, 1, 2, ... as ``room`` inches hold."""
    every = -(-len(labels) // max(1, int(room / 0.13)))
    axis.set_ticks(range(0, len(labels), every), labels[::every])
    for label in axis.get_ticklabels() if upright else ():
        label.set_rotation(90)


def _points(labels: Sequence[str]) -> float:
    """How long the longest of some labels is, in points."""
    from matplotlib.textpath import TextPath

    return max(TextPath((0, 0), label, size=8).get_extents().width for label in labels)


def _array(value, dims: str, what: str) -> np.ndarray:
    """The value as an array with these dimensions, none of them empty. Raises MinillmError."""
    value = np.asarray(value)
    if value.ndim != len(dims.split()) or 0 in value.shape:
        raise MinillmError(f"{what} is {list(value.shape)}, expected ({dims.replace(' ', ', ')}), nothing of it empty")
    return value


def _check_tokens(tokens: Sequence[str], count: int, what: str) -> None:
    """Raise MinillmError where there are not as many tokens as there should be."""
    if len(tokens) != count:
        raise MinillmError(f"found {len(tokens)} tokens for {count} {what}, expected one each")


@drawn(size=(5.6, 4.6))
def attention_pattern(pattern: np.ndarray, tokens: Sequence[str], *, ax: Axes) -> None:
    """Where each position looks: a heat map for each head, dark where the weight is large, grey where nobody may look.

    pattern (T, S), or (H, T, S) for a panel per head (each an inset of ``ax``); its rows sum to 1. tokens: the S
    attended ones; the T new ones are the last of them. Colours run with the square root of the weight, since a weight
    of 1 % is still one to see. Raises MinillmError for other shapes.
    """
    from matplotlib.colors import PowerNorm

    single = np.ndim(pattern) == 2
    heads = _array(np.asarray(pattern)[None] if single else pattern, "H T S", "the pattern")
    count, new, attended = heads.shape
    _check_tokens(tokens, attended, "attended positions")
    if new > attended:
        raise MinillmError(f"the pattern has {new} new positions, expected at most the {attended} attended ones")
    later = np.arange(attended) > np.arange(attended - new, attended)[:, None]  # (T, S)
    columns = math.ceil(math.sqrt(count))
    columns = next((c for c in range(columns, columns * 3 // 2 + 1) if count % c == 0), columns)  # no hole
    rows = -(-count // columns)
    width, height = _inches(ax)
    labels = [token_label(token) for token in tokens]
    gap, line = 0.05, 0.22 / height  # between panels; a panel's title
    wide, high = (1 - gap * (columns - 1)) / columns, (1 - line * rows - gap * (rows - 1)) / rows
    for i, head in enumerate(heads):
        row, column = divmod(i, columns)
        place = (column * (wide + gap), 1 - (row + 1) * (high + line) - row * gap, wide, high)
        panel = ax if single else ax.inset_axes(place)
        panel.set_facecolor("#E4E4E4")
        shown = np.ma.masked_array(head, later & (head == 0))
        norm = PowerNorm(0.5, vmin=0, vmax=1)
        image = panel.imshow(shown, cmap="Blues", norm=norm, aspect="auto", interpolation="nearest")
        panel.grid(False)
        panel.set(xticks=[], yticks=[])
        if not single:
            panel.set_title(f"head {i}", pad=3)
        if column == 0:
            _label_axis(panel.yaxis, labels[attended - new :], 0.75 * high * height)
        if i + columns >= count:
            _label_axis(panel.xaxis, labels, 0.7 * wide * width, upright=True)
    if not single:  # the panels' labels lie outside ax, and its own outside them
        ax.set(xticks=[], yticks=[], facecolor="none")
        ax.spines[:].set_visible(False)
    far = 0 if single else _points(labels) + 8
    ax.set_xlabel("attended position (token)", labelpad=4 + far)
    ax.set_ylabel("new position (token)", labelpad=4 + far)
    bar = ax.figure.colorbar(image, ax=ax, label="attention weight (%)", ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 1])
    bar.ax.set_yticklabels(["0", "1", "5", "10", "25", "50", "100"])
    bar.outline.set_visible(False)
    first, own = heads[:, :, 0].mean(), np.einsum("htt->ht", heads[:, :, attended - new :]).mean()
    ax.set_label(
        f"Attention weights of {count} head{'s' if count > 1 else ''}, {new} new by {attended} attended positions: "
        f"{100 * first:.0f} % of the weight falls on the first position, {100 * own:.0f} % on the position itself."
    )


@drawn(size=(6.4, 3.8))
def neuron_raster(mask: np.ndarray, tokens: Sequence[str], sort: bool = False, *, ax: Axes) -> None:
    """Which neurons are active for which token: a row per token, dark where the neuron is active.

    mask (T, F) bool, tokens: T of them. sort: neurons that are active most often come first. Raises MinillmError.
    """
    mask = _array(mask, "T F", "the mask").astype(bool)
    _check_tokens(tokens, len(mask), "rows of the mask")
    shown = mask[:, np.argsort(-mask.sum(axis=0), kind="stable")] if sort else mask
    ax.imshow(shown, cmap="Blues", vmin=0, vmax=1.2, aspect="auto", interpolation="nearest")
    ax.grid(False)
    _label_axis(ax.yaxis, [token_label(token) for token in tokens], 0.8 * _inches(ax)[1])
    ax.set_xlabel("neuron (most often active first)" if sort else "neuron (index)")
    ax.set_ylabel("position (token)")
    ax.set_title(f"{100 * mask.mean():.0f} % of the (token, neuron) pairs are active (dark)")
    always, never = mask.all(axis=0).mean(), (~mask).all(axis=0).mean()
    ax.set_label(
        f"Raster of {mask.shape[1]} neurons for {len(mask)} tokens: {100 * mask.mean():.0f} % of the pairs are active; "
        f"{100 * always:.0f} % of the neurons are active for every token, {100 * never:.0f} % for none."
    )


@drawn
def activation_ridges(values_by_layer: Sequence[np.ndarray], what: str, *, ax: Axes) -> None:
    """How a step's values are distributed in each layer: a ridge per layer, a histogram drawn to its own height.

    values_by_layer: an array of values per layer; what: the step's name. The axis spans 95 % of the values of the
    widest layer. Raises MinillmError for nothing to draw.
    """
    layers = [np.asarray(values, np.float64).ravel() for values in values_by_layer]
    if not layers or not all(values.size and np.isfinite(values).all() for values in layers):
        raise MinillmError("expected an array of finite values for each layer, and at least one layer")
    limit = max(np.quantile(np.abs(values), 0.95) for values in layers) or 1.0
    edges = np.linspace(-limit, limit, 121)
    middles = (edges[1:] + edges[:-1]) / 2
    shades = matplotlib_or_error().colormaps["viridis"](np.linspace(0, 0.85, len(layers)))
    tall = 1.7 if len(layers) > 1 else 1.0
    for i, values in enumerate(layers):
        counts, _ = np.histogram(values, edges)
        top = tall * counts / max(1, counts.max()) - i
        ax.fill_between(middles, -i, top, color=shades[i], linewidth=0, alpha=0.85, zorder=2 + i)
        ax.plot(middles, top, color="white", linewidth=0.9, zorder=2 + i)
    every = -(-len(layers) // 16)
    ax.set_yticks(range(0, -len(layers), -every), [str(i) for i in range(0, len(layers), every)])
    ax.axvline(0, color=BLACK, linewidth=0.8, linestyle=":", zorder=2 + len(layers))
    ax.set_xlim(-limit, limit)
    ax.set_ylim(-len(layers) + 0.8, tall + 0.1)
    ax.set_xlabel(f"value of {what} (no unit)")
    ax.set_ylabel("layer (share of values, to its own height)")
    ax.set_title(f"{what}, layer by layer")
    half = [np.median(np.abs(values)) for values in layers]
    ax.set_label(
        f"Ridges, the distributions of {what} in {len(layers)} layers; half of a layer's values lie within "
        f"{min(half):.2g} of zero (layer {np.argmin(half)}) to {max(half):.2g} (layer {np.argmax(half)})."
    )


@drawn
def sampling_bars(tokens: Sequence[str], probabilities: Mapping[str, np.ndarray], *, ax: Axes) -> None:
    """What may come next, and how likely each setting makes it: a group of bars per token, a bar per setting.

    tokens: V of them; probabilities: {setting: (V,)}, each summing to 1. Drawn are the likeliest, ten at most and none
    that is below 0.5 % under every setting; all others are one group. Raises MinillmError for other shapes.
    """
    table = {name: _array(values, "V", f"the row of {name}") for name, values in probabilities.items()}
    if not table:
        raise MinillmError("there are no probabilities, expected {setting: probabilities}")
    for values in table.values():
        _check_tokens(tokens, len(values), "probabilities")
    best = np.max(list(table.values()), axis=0)  # (V,)
    shown = [i for i in np.argsort(-best, kind="stable")[:10] if best[i] >= 0.005]
    labels = [token_label(tokens[i], "␣") for i in shown]
    heights = {name: [*values[shown]] for name, values in table.items()}
    if len(shown) < len(tokens):
        labels.append("all others")
        heights = {name: [*found, max(0.0, table[name].sum() - sum(found))] for name, found in heights.items()}
    width = 0.84 / len(table)
    for n, (name, found) in enumerate(heights.items()):
        look = {"color": COLOURS[n % len(COLOURS)], "hatch": HATCHES[n % len(HATCHES)], "edgecolor": "white"}
        place = np.arange(len(labels)) + (n - (len(table) - 1) / 2) * width
        ax.bar(place, percent(found), width, label=name, linewidth=0.4, **look)
    ax.set_xticks(range(len(labels)), labels, rotation=90)
    ax.grid(False, axis="x")
    ax.set_xlabel("next token (␣ is a space)")
    ax.set_ylabel("probability (%)")
    ax.set_title("What may come next")
    legend_above(ax, len(table))
    ends = [f"{name} {100 * found[0]:.0f} %" for name, found in heights.items()]
    ax.set_label(f"Bars of the probabilities of the next token; the likeliest, {tokens[shown[0]]!r}: {listed(ends)}.")


@drawn(size=(7.6, 2.5))
def rope_fan(cos: np.ndarray, sin: np.ndarray, *, ax: Axes) -> None:
    """How far a head's pairs of coordinates have turned at positions 0, 1, 2, ...: a fan per pair, fast to slow.

    cos, sin (T, d/2) from rope.rope_table; four pairs and eleven positions at most are drawn. Raises MinillmError.
    """
    cos, sin = _array(cos, "T d/2", "cos"), _array(sin, "T d/2", "sin")
    if cos.shape != sin.shape:
        raise MinillmError(f"cos is {list(cos.shape)} and sin {list(sin.shape)}, expected the same shape")
    positions, count = min(len(cos), 11), cos.shape[1]
    pairs = sorted({0, count // 8, count // 4, count - 1})
    shades = matplotlib_or_error().colormaps["viridis"](np.linspace(0, 0.85, positions))
    turn = np.linspace(0, 2 * np.pi, 100)
    said = []
    for place, j in enumerate(pairs):
        middle, written = 3.1 * place, []
        ax.plot(middle + np.cos(turn), np.sin(turn), color="#BBBBBB", linewidth=0.8)
        for p in range(positions):
            ax.plot([middle, middle + cos[p, j]], [0, sin[p, j]], color=shades[p], linewidth=1.8)
            if all(math.hypot(cos[p, j] - x, sin[p, j] - y) > 0.2 for x, y in written):  # or numbers would overlap
                written.append((cos[p, j], sin[p, j]))
                far = {"ha": "center", "va": "center", "fontsize": 8}
                ax.text(middle + 1.2 * cos[p, j], 1.2 * sin[p, j], str(p), color=BLACK, **far)
        speed = abs(math.atan2(sin[1, j], cos[1, j])) if len(cos) > 1 else 0.0
        speed = f"{speed:.2g} radians a position" if speed else "at rest"
        said.append(f"pair {j} {speed}")
        ax.text(middle, -1.62, f"pair {j}\n{speed}", ha="center", va="center", linespacing=1.3)
    ax.set(aspect="equal", xlim=(-1.55, 3.1 * (len(pairs) - 1) + 1.55), ylim=(-2.0, 1.45))
    ax.set_axis_off()
    ax.set_title(f"How far pairs of coordinates are turned at positions 0 to {positions - 1}")
    ax.set_label(f"Fans, one per pair, of the angles at positions 0 to {positions - 1}: {listed(said)}.")


@drawn(size=(7.6, 2.0))
def bf16_bits(value: float, *, ax: Axes) -> None:
    """The bits of a number as float32, and as bfloat16: the upper half of them, rounded to the nearest.

    Raises MinillmError for what either cannot hold.
    """
    from matplotlib.patches import Rectangle

    value = np.float32(value)
    if not np.isfinite(value):
        raise MinillmError(f"value is {value}, expected a finite number")
    bits, upper = int(value.view(np.uint32)), int(to_bfloat16(value.reshape(1))[0])
    kept = np.uint32(upper << 16).view(np.float32)
    parts = {"sign": (0, 1, "#F0C4DD"), "exponent, 8 bits": (1, 9, "#F6D58A"), "mantissa": (9, 32, "#BFE0F5")}
    for low, number, count, name in ((0, bits, 32, "float32"), (-1.9, upper, 16, "bfloat16")):
        for first, last, colour in parts.values():
            for i in range(first, min(last, count)):
                ax.add_patch(Rectangle((i, low), 1, 1, facecolor=colour, edgecolor="#555555", linewidth=0.6))
                ax.text(i + 0.5, low + 0.5, str(number >> (count - 1 - i) & 1), ha="center", va="center", fontsize=9)
        ax.text(-0.5, low + 0.5, name, ha="right", va="center", weight="bold")
    for name, (first, last, _) in parts.items():
        ax.text(max(first + last, 1.8) / 2 - (0.9 if name == "sign" else 0), 1.3, name, ha="center", va="bottom")
    ax.plot([16, 16], [-2.2, 1.2], color=BLACK, linestyle="--", linewidth=1)
    off = f"{100 * abs(float(kept) - float(value)) / abs(float(value)):.2g} % off" if value else "exact"
    off = off if kept != value else "exact"
    ax.text(16.5, -1.4, f"= {kept:.8g}, {off}", va="center")
    ax.text(32, -0.45, f"= {value:.8g}", va="center", ha="right")
    ax.set(aspect="equal", xlim=(-5.2, 32.3), ylim=(-2.4, 2.4))
    ax.set_axis_off()
    ax.set_label(
        f"The 32 bits of {value:.8g}, sign, exponent and mantissa, and below them the 16 bits of the nearest bfloat16, "
        f"{kept:.8g} ({off})."
    )


@drawn(size=(7.2, 3.6))
def error_per_step(rows: Sequence[Row] | Comparison, *, ax: Axes) -> None:
    """How far two passes are apart at each step, in execution order, on a logarithmic axis; the first that differs.

    rows: those of trace.compare, or all that it gives (then its tolerance is drawn, too). What has no number (another
    shape, one side only) is left out, what is equal bit for bit stands at the foot. Raises MinillmError.
    """
    tolerance, rows = getattr(rows, "tolerance", None), getattr(rows, "rows", rows)
    rows = [row for row in rows if not math.isnan(row.relative)]
    if not rows:
        raise MinillmError("there is no difference to draw, expected the rows of a comparison")
    errors = np.array([row.relative for row in rows])
    finite = errors[(errors > 0) & np.isfinite(errors)]
    low, high = (finite.min(), finite.max()) if len(finite) else (1e-16, 1e-16)
    low = min(low, tolerance or low)
    foot, top = 10.0 ** (math.floor(math.log10(low)) - 1), 10.0 ** math.ceil(math.log10(high) + 0.3)
    differs = np.array([row.status != "ok" for row in rows])
    for label, found, look in (
        ("equal bit for bit", ~differs & (errors == 0), {"marker": "|", "color": GREY, "markersize": 7}),
        ("agrees", ~differs & (errors > 0), {"marker": "o", "color": BLUE}),
        ("differs", differs, {"marker": "X", "color": RED, "markersize": 6}),
    ):
        if found.any():
            at = np.flatnonzero(found)
            ax.plot(at, np.clip(errors[at], foot, top), linestyle="none", label=label, clip_on=False, **look)
    if tolerance:
        ax.axhline(tolerance, color=BLACK, linestyle=":", linewidth=1, label=f"tolerance {tolerance:g}")
        top = max(top, 10 * tolerance)
    ax.set_yscale("log")
    ax.set_ylim(foot, top)
    names = [row.name for row in rows]
    if len(rows) <= 24:
        _label_axis(ax.xaxis, [name.removeprefix("blocks.") for name in names], 99, upright=True)
        ax.set_xlabel("step (in execution order)")
    else:
        blocks = [re.sub(r"^blocks\.(\d+)\..*", r"\1", name) for name in names]
        begins = [i for i, block in enumerate(blocks) if block.isdigit() and (i == 0 or blocks[i - 1] != block)]
        begins = begins[:: -(-len(begins) // 16)]
        ax.set_xticks(begins, [blocks[i] for i in begins])
        ax.set_xlabel("step, in execution order (numbers: where a layer begins)")
    ax.set_ylabel("difference (share of the largest value)")
    words = f"they are largest at {names[int(errors.argmax())]}, {errors.max():.1e}"
    if differs.any():
        first = int(differs.argmax())
        words = f"the first that differs is {names[first]}, by {errors[first]:.1e}"
        ax.axvline(first, color=RED, linewidth=1, zorder=1)
        words_at = {"ha": "left" if first < len(rows) / 2 else "right", "va": "bottom", "color": RED}
        ax.annotate(f" {names[first]} ", (first, foot), (0, 3), textcoords="offset points", **words_at)
    ax.set_title("How far two passes are apart")
    legend_above(ax, len(ax.get_legend_handles_labels()[0]), 4)
    ax.set_label(f"Relative differences of {len(rows)} steps in execution order: {words}.")


def byte_unit(largest: float) -> tuple[str, float]:
    """The unit in which so many bytes are a number from 1 to 1000, and how many bytes it is."""
    return next(((u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if largest >= s), ("bytes", 1.0))


def check_rows(rows: Sequence[Mapping], keys: Sequence[str]) -> None:
    """Raise MinillmError where there is no row, or where one lacks a key."""
    if not rows:
        raise MinillmError(f"there are no rows, expected dicts with {listed(keys)}")
    missing = [key for key in keys if any(key not in row for row in rows)]
    if missing:
        raise MinillmError(f"the rows have no {listed(missing)}, expected dicts with {listed(keys)}")


@drawn
def cache_growth(rows: Sequence[Mapping], *, ax: Axes) -> None:
    """Bytes of the KV cache against the length of the text, a curve per name.

    rows: dicts with positions, bytes and, where there are several curves, name. Raises MinillmError for none.
    """
    check_rows(rows, ("positions", "bytes"))
    curves: dict[str, list[Mapping]] = {}
    for row in sorted(rows, key=lambda row: row["positions"]):
        curves.setdefault(row.get("name", "the cache"), []).append(row)
    unit, size = byte_unit(max(row["bytes"] for row in rows))
    for name, look in curve_styles(tuple(curves)).items():
        found = curves[name]
        ax.plot([row["positions"] for row in found], [row["bytes"] / size for row in found], label=name, **look)
    ax.set_ylim(0, None)
    ax.set_xlabel("text so far (positions)")
    ax.set_ylabel(f"keys and values kept ({unit})")
    ax.set_title("What the KV cache holds")
    if len(curves) > 1:
        ax.legend(loc="upper left")
    last = {name: found[-1] for name, found in curves.items()}
    ends = [f"{name} {row['bytes'] / size:.3g} {unit} at {row['positions']}" for name, row in last.items()]
    ax.set_label(f"Size of the KV cache against positions: {listed(ends)}.")


@drawn
def work_per_token(rows: Sequence[Mapping], *, ax: Axes) -> None:
    """Multiply-adds for one more token against the length of the text, a curve per name, both axes logarithmic.

    rows: dicts with name, positions and multiply_adds. Raises MinillmError for none.
    """
    check_rows(rows, ("name", "positions", "multiply_adds"))
    ends = []
    for name, look in curve_styles(tuple(dict.fromkeys(row["name"] for row in rows))).items():
        found = sorted((row["positions"], row["multiply_adds"]) for row in rows if row["name"] == name)
        ax.plot(*zip(*found, strict=True), label=name, **look)
        ends.append(f"{name} {found[-1][1]:.2g} at {found[-1][0]}")
    ax.set(xscale="log", yscale="log")
    ax.set_xlabel("text so far, log scale (positions)")
    ax.set_ylabel("one more token, log scale (multiply-adds)")
    ax.set_title("What a token costs")
    ax.legend(loc="upper left")
    ax.set_label(f"Multiply-adds for one more token against positions: {listed(ends)}.")


@drawn
def training_curve(rows: Sequence[Mapping], unit: str = "nats", *, ax: Axes) -> None:
    """How a loss falls during training: a curve for every number in the rows beside step, tokens and epoch.

    rows: dicts with step (or tokens, or epoch) and one or more losses, all in ``unit``; one that is absent from a row,
    or None, was not measured there. Raises MinillmError for none.
    """
    x = next((key for key in TIMES if rows and key in rows[0]), "step")
    check_rows(rows, (x,))
    names = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in TIMES]
    if not names:
        raise MinillmError(f"the rows have {x} alone, expected a loss beside it")
    ends = []
    for name, look in curve_styles(names).items():
        found = [(row[x], row[name]) for row in rows if row.get(name) is not None]
        ax.plot(*zip(*found, strict=True), label=name.replace("_", " "), markevery=max(1, len(found) // 10), **look)
        ends.append(f"{name.replace('_', ' ')} from {found[0][1]:.3g} to {found[-1][1]:.3g}")
    ax.set_xlabel(f"training ({TIMES[x]})")
    ax.set_ylabel(f"loss ({unit})")
    ax.set_title("Training")
    ax.legend(loc="upper right")
    ax.set_label(f"Training over {rows[-1][x]:,} {TIMES[x]}, in {unit}: {listed(ends)}.")
