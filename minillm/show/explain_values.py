"""Figures of one step's values: attention weights, active neurons, distributions, rotations, the bits of a number.

One function each, arrays in, matplotlib Axes out; style, alt text and files as in canvas.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import MinillmError
from ..loading.tensors import to_bfloat16
from .canvas import BLACK, drawn, figure_of, given_or_new, inches, listed, matplotlib_or_error, plain_text
from .labels import check_tokens, checked_array, label_axis, token_label, widest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage


@drawn
def attention_pattern(pattern: np.ndarray, tokens: Sequence[str], *, ax: Axes | None = None) -> Axes:
    """Attention weights: a heat map for each head, dark for a large weight, grey where the causal mask forbids to look.

    pattern (T, S), or (H, T, S) for a panel per head (each an inset of ``ax``); its rows sum to 1. tokens: the S
    attended ones; the T new ones are the last of them. Colours follow the square root of the weight, so that a weight
    of 1 % is still seen. Raises MinillmError for other shapes.
    """
    ax = given_or_new(ax, (5.6, 4.6))
    single = np.ndim(pattern) == 2
    heads = checked_array(np.asarray(pattern)[None] if single else pattern, "H T S", "the pattern")
    count, new, attended = heads.shape
    check_tokens(tokens, attended, "attended positions")
    if new > attended:
        raise MinillmError(f"the pattern has {new} new positions, expected at most the {attended} attended ones")
    labels = [token_label(token) for token in tokens]
    image = _draw_heads(ax, heads, labels, single)
    if not single:  # the panels' labels lie outside ax, and its own outside them
        ax.set(xticks=[], yticks=[], facecolor="none")
        ax.spines[:].set_visible(False)
    far = 0 if single else widest(labels) + 8
    ax.set_xlabel("attended position (token)", labelpad=4 + far)
    ax.set_ylabel("new position (token)", labelpad=4 + far)
    bar = figure_of(ax).colorbar(image, ax=ax, label="attention weight (%)", ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 1])
    bar.ax.set_yticklabels(["0", "1", "5", "10", "25", "50", "100"])
    bar.outline.set_visible(False)
    first, own = heads[:, :, 0].mean(), np.einsum("htt->ht", heads[:, :, attended - new :]).mean()
    ax.set_label(
        f"Attention weights of {count} head{'s' if count > 1 else ''}, {new} new by {attended} attended positions: "
        f"{100 * first:.0f} % of the weight falls on the first position, {100 * own:.0f} % on the position itself."
    )
    return ax


def _draw_heads(ax: Axes, heads: np.ndarray, labels: Sequence[str], single: bool) -> AxesImage:
    """Draw heads (H, T, S) as panels in rows and columns; gives the last image, for a colour bar."""
    from matplotlib.colors import PowerNorm

    count, new, attended = heads.shape
    later = np.arange(attended) > np.arange(attended - new, attended)[:, None]  # (T, S)
    columns = math.ceil(math.sqrt(count))
    columns = next((c for c in range(columns, columns * 3 // 2 + 1) if count % c == 0), columns)  # no empty place
    rows = -(-count // columns)
    width, height = inches(ax)
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
            label_axis(panel.yaxis, labels[attended - new :], 0.75 * high * height)
        if i + columns >= count:
            label_axis(panel.xaxis, labels, 0.7 * wide * width, upright=True)
    return image


@drawn
def neuron_raster(mask: np.ndarray, tokens: Sequence[str], sort: bool = False, *, ax: Axes | None = None) -> Axes:
    """Which neurons are active for which token: a row per token, dark where the neuron is active.

    mask (T, F) bool; tokens: T of them. sort: the neurons that are active most often come first. Raises MinillmError.
    """
    ax = given_or_new(ax, (6.4, 3.8))
    mask = checked_array(mask, "T F", "the mask").astype(bool)
    check_tokens(tokens, len(mask), "rows of the mask")
    shown = mask[:, np.argsort(-mask.sum(axis=0), kind="stable")] if sort else mask
    ax.imshow(shown, cmap="Blues", vmin=0, vmax=1.2, aspect="auto", interpolation="nearest")
    ax.grid(False)
    label_axis(ax.yaxis, [token_label(token) for token in tokens], 0.8 * inches(ax)[1])
    ax.set_xlabel("neuron (most often active first)" if sort else "neuron (index)")
    ax.set_ylabel("position (token)")
    ax.set_title(f"{100 * mask.mean():.0f} % of the (token, neuron) pairs are active (dark)")
    always, never = mask.all(axis=0).mean(), (~mask).all(axis=0).mean()
    ax.set_label(
        f"Raster of {mask.shape[1]} neurons for {len(mask)} tokens: {100 * mask.mean():.0f} % of the pairs are active; "
        f"{100 * always:.0f} % of the neurons are active for every token, {100 * never:.0f} % for none."
    )
    return ax


@drawn
def activation_ridges(values_by_layer: Sequence[np.ndarray], what: str, *, ax: Axes | None = None) -> Axes:
    """The distribution of a step's values in each layer: a ridge per layer, a histogram scaled to its own maximum.

    values_by_layer: an array of values per layer; what: the step's name. The axis spans 95 % of the values of the
    widest layer. Raises MinillmError for nothing to draw.
    """
    ax = given_or_new(ax)
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
    ax.set_xlabel(f"value of {plain_text(what)} (no unit)")
    ax.set_ylabel("layer (share of values, own scale)")
    ax.set_title(f"Distribution of {plain_text(what)} in each layer")
    half = [np.median(np.abs(values)) for values in layers]
    ax.set_label(
        f"Ridges, the distributions of {what} in {len(layers)} layers; half of a layer's values lie within "
        f"{min(half):.2g} of zero (layer {np.argmin(half)}) to {max(half):.2g} (layer {np.argmax(half)})."
    )
    return ax


@drawn
def rope_fan(cos: np.ndarray, sin: np.ndarray, *, ax: Axes | None = None) -> Axes:
    """The rotation of a head's pairs of coordinates at positions 0, 1, 2, ...: a fan per pair, from fast to slow.

    cos, sin (T, d/2) from rope.rope_table; four pairs and eleven positions at most are drawn. Raises MinillmError.
    """
    ax = given_or_new(ax, (7.6, 2.5))
    cos, sin = checked_array(cos, "T d/2", "cos"), checked_array(sin, "T d/2", "sin")
    if cos.shape != sin.shape:
        raise MinillmError(f"cos is {list(cos.shape)} and sin {list(sin.shape)}, expected the same shape")
    positions, count = min(len(cos), 11), cos.shape[1]
    pairs = sorted({0, count // 8, count // 4, count - 1})
    shades = matplotlib_or_error().colormaps["viridis"](np.linspace(0, 0.85, positions))
    turn = np.linspace(0, 2 * np.pi, 100)
    speeds = []
    for place, j in enumerate(pairs):
        middle = 3.1 * place
        written: list[tuple[float, float]] = []
        ax.plot(middle + np.cos(turn), np.sin(turn), color="#BBBBBB", linewidth=0.8)
        for p in range(positions):
            ax.plot([middle, middle + cos[p, j]], [0, sin[p, j]], color=shades[p], linewidth=1.8)
            if all(math.hypot(cos[p, j] - x, sin[p, j] - y) > 0.2 for x, y in written):  # or numbers would overlap
                written.append((cos[p, j], sin[p, j]))
                x, y = middle + 1.2 * cos[p, j], 1.2 * sin[p, j]
                ax.text(x, y, str(p), color=BLACK, ha="center", va="center", fontsize=8)
        angle = abs(math.atan2(sin[1, j], cos[1, j])) if len(cos) > 1 else 0.0
        speed = f"{angle:.2g} radians a position" if angle else "at rest"
        speeds.append(f"pair {j} {speed}")
        ax.text(middle, -1.62, f"pair {j}\n{speed}", ha="center", va="center", linespacing=1.3)
    ax.set(aspect="equal", xlim=(-1.55, 3.1 * (len(pairs) - 1) + 1.55), ylim=(-2.0, 1.45))
    ax.set_axis_off()
    ax.set_title(f"Rotation of pairs of coordinates at positions 0 to {positions - 1}")
    ax.set_label(f"Fans, one per pair, of the angles at positions 0 to {positions - 1}: {listed(speeds)}.")
    return ax


@drawn
def bf16_bits(value: float, *, ax: Axes | None = None) -> Axes:
    """The bits of a number as float32 and as bfloat16, which is the upper half of them, rounded to the nearest.

    Raises MinillmError for a number that is not finite.
    """
    from matplotlib.patches import Rectangle

    ax = given_or_new(ax, (7.6, 2.0))
    exact = np.array([value], np.float32)
    if not np.isfinite(exact[0]):
        raise MinillmError(f"value is {value}, expected a finite number")
    bits, upper = int(exact.view(np.uint32)[0]), int(to_bfloat16(exact)[0])
    value = float(exact[0])
    kept = float(np.uint32(upper << 16).view(np.float32))
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
    off = f"{100 * abs(kept - value) / abs(value):.2g} % off" if value else "exact"
    off = off if kept != value else "exact"
    ax.text(16.5, -1.4, f"= {kept:.8g}, {off}", va="center")
    ax.text(32, -0.45, f"= {value:.8g}", va="center", ha="right")
    ax.set(aspect="equal", xlim=(-5.2, 32.3), ylim=(-2.4, 2.4))
    ax.set_axis_off()
    ax.set_label(
        f"The 32 bits of {value:.8g}, sign, exponent and mantissa, and below them the 16 bits of the nearest bfloat16, "
        f"{kept:.8g} ({off})."
    )
    return ax
