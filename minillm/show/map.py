"""The map of the model: every step of one block, the sparse path and the buffer, with "you are here".

The map is drawn in inches, from the tables below: BOXES (where each step stands), _ARROWS and _BENDS (arrows of a dense
model), _STREAM (the residual stream) and _ASIDE (arrows of the sparse path).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MinillmError
from ..steps import STEPS, step_names
from .canvas import BLACK, BLUE, Look, drawn, given_or_new, inches, listed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patches import Patch

Line = Sequence[tuple[float, float]]  # the points that an arrow goes through
PALE = "#F4F4F4"
MAP = (10.4, 4.8)  # inches, which are also the units in which the map is drawn
_X = [1.7 + 0.975 * i for i in range(8)]  # the block's columns
_LEFT, _RIGHT = 0.52, 9.86  # what comes before the blocks, and after
_Q, _K, _V, _TURN = 4.02, 3.55, 3.08, 2.66  # the rows of attention; where the stream turns back to the left
_GATE, _FFN, _UP, _POST, _POLICY, _LOW = 2.27, 2.03, 1.79, 1.60, 0.98, 0.50
_HALF, _TALL = 0.435, 0.18  # half of a box's width and height; other ones:
_WIDTHS = {"files": 0.48, "slow memory": 0.52}
_HEIGHTS = {"files": 0.31, "cache": 0.415, "mlp.mask": 0.42}

# name -> (x, y, title, words below it). A box without a title is a step's: it shows the step's last name and dims.
BOXES: dict[str, tuple[float, float, str, str]] = {
    "text": (_LEFT, 4.49, "text", ""),
    "ids": (_LEFT, _Q, "ids", "T"),
    "embed": (_LEFT, _K, "", ""),
    "files": (_LEFT, _FFN, "checkpoint", "config, weights,\ntokenizer"),
    "resid_pre": (_X[0], _K, "", ""),
    "attn.norm": (_X[1], _K, "", ""),
    "attn.q": (_X[2], _Q, "", ""),
    "attn.k": (_X[2], _K, "", ""),
    "attn.v": (_X[2], _V, "", ""),
    "attn.rot_q": (_X[3], _Q, "", "rope, "),
    "attn.rot_k": (_X[3], _K, "", "rope, "),
    "cache": (_X[4], (_K + _V) / 2, "KV cache", "keys, values"),
    "attn.scores": (_X[5], _Q, "", "q · k, "),
    "attn.pattern": (_X[5], _K, "", "softmax, "),
    "attn.z": (_X[5], _V, "", "of v, "),
    "attn.out": (_X[6], _V, "", ""),
    "resid_mid": (_X[7], _TURN, "", ""),
    "mlp.norm": (_X[1], _FFN, "", ""),
    "mlp.gate_pre": (_X[2], _GATE, "", ""),
    "mlp.gate": (_X[3], _GATE, "", "act, "),
    "mlp.up": (_X[2], _UP, "", ""),
    "mlp.mid": (_X[4], _FFN, "", "gate × up, "),
    "mlp.mid_cut": (_X[5], _FFN, "", "or 0, "),
    "mlp.out": (_X[6], _FFN, "", "down, "),
    "resid_post": (_X[7], _POST, "", ""),
    "policy": (_X[4], _POLICY, "policy", "|value| > t"),
    "mlp.mask": (_X[5], (_POLICY + _LOW) / 2, "", ""),
    "mlp.scores": (_X[2], _LOW, "predictor", "scores, T F"),
    "buffer": (_X[6], _LOW, "buffer", "small, fast"),
    "slow memory": (_X[7] + 0.09, _LOW, "slow memory", "all weights"),
    "final_norm": (_RIGHT, _POST, "", ""),
    "logits": (_RIGHT, 2.13, "", ""),
    "sampling": (_RIGHT, _TURN, "next token", ""),
}
PARTS = {  # what a chapter is about; "attn" and "mlp" are parts by the names of their steps
    "loading": ("text", "ids", "files"),
    "transformer": tuple(b for b in BOXES if b in step_names(0) or f"blocks.0.{b}" in step_names(1)),
    "generation": ("ids", "cache", "logits", "sampling"),
    "sparsity": ("policy", "mlp.mask", "mlp.mid_cut"),
    "predictors": ("mlp.scores", "mlp.mask"),
    "prefetch": ("buffer", "slow memory"),
}
# Steps that a Llama does not have -> the box in whose place they stand.
OTHER_FAMILIES = {"project_in": "embed", "embed_positions": "embed", "project_out": "final_norm",
                  "attn.out_norm": "attn.out", "mlp.out_norm": "mlp.out"}  # fmt: skip
_ARROWS = (  # from box to box
    "text ids", "ids embed", "embed resid_pre", "resid_pre attn.norm", "attn.norm attn.q", "attn.norm attn.k",
    "attn.norm attn.v", "attn.q attn.rot_q", "attn.k attn.rot_k", "attn.rot_q attn.scores", "attn.scores attn.pattern",
    "attn.pattern attn.z", "attn.z attn.out", "mlp.norm mlp.gate_pre", "mlp.norm mlp.up", "mlp.gate_pre mlp.gate",
    "mlp.gate mlp.mid", "mlp.up mlp.mid", "mlp.mid mlp.mid_cut", "mlp.mid_cut mlp.out", "resid_post final_norm",
    "final_norm logits", "logits sampling",
)  # fmt: skip
_CACHE, _DOWN = _X[4] + _HALF, _X[5] - _HALF - 0.06  # the cache's right side; where an arrow turns before the scores
_SUMS = ((_X[7], _V), (_X[7], _FFN + 0.17))  # where a branch is added to the stream
_STREAM: tuple[Line, ...] = (  # the residual stream, drawn thick
    ((_X[0], _K + _TALL), (_X[0], 4.36), (_X[7], 4.36), (_X[7], _V + 0.11)),
    ((_X[7], _V - 0.11), (_X[7], _TURN + _TALL)),
    ((_X[7], _TURN - _TALL), (_X[7], _SUMS[1][1] + 0.11)),
    ((_X[7], _SUMS[1][1] - 0.11), (_X[7], _POST + _TALL)),
)
_BENDS: tuple[Line, ...] = (
    ((_X[3] + _HALF, _K), (_X[4] - _HALF, _K)),
    ((_X[2] + _HALF, _V), (_X[4] - _HALF, _V)),
    ((_CACHE, _K), (_DOWN, _K), (_DOWN, _Q - 0.09), (_X[5] - _HALF, _Q - 0.09)),
    ((_CACHE, _V), (_X[5] - _HALF, _V)),
    ((_X[6] + _HALF, _V), (_X[7] - 0.11, _V)),
    ((_X[7] - _HALF, _TURN), (_X[0], _TURN), (_X[0], _FFN), (_X[1] - _HALF, _FFN)),
    ((_X[6] + _HALF, _SUMS[1][1] - 0.06), (_X[7] - 0.09, _SUMS[1][1] - 0.06)),
)
_ASIDE: tuple[Line, ...] = (  # arrows that a dense model does not have, drawn dashed
    ((_LEFT, _FFN + _HEIGHTS["files"]), (_LEFT, _K - _TALL)),
    ((_X[4], _FFN - _TALL), (_X[4], _POLICY + _TALL)),
    ((_X[4] + _HALF, _POLICY), (_X[5] - _HALF, _POLICY)),
    ((_X[1], _FFN - _TALL), (_X[1], _LOW), (_X[2] - _HALF, _LOW)),
    ((_X[2] + _HALF, _LOW), (_X[5] - _HALF, _LOW)),
    ((_X[5], (_POLICY + _LOW) / 2 + _HEIGHTS["mlp.mask"]), (_X[5], _FFN - _TALL)),
    ((_X[5] + _HALF, _LOW), (_X[6] - _HALF, _LOW)),
    ((_X[7] + 0.09 - _WIDTHS["slow memory"], _LOW), (_X[6] + _HALF, _LOW)),
    ((_X[6], _LOW + _TALL), (_X[6], _FFN - _TALL)),
)


def boxes_of(name: str | None) -> tuple[str, ...]:
    """The boxes of the map that a name stands for: of a step (with or without its layer), of a part, or the box itself.

    Raises MinillmError for another name.
    """
    if name is None:
        return ()
    if name in PARTS:
        return PARTS[name]
    inside = re.sub(r"^blocks\.(\d+|\*)\.", "", name)
    inside = re.sub(r"^mlp\.(mask_\w+|reads)$", "mlp.mask", inside)  # several masks, and the reads that they cause
    inside = OTHER_FAMILIES.get(inside, inside)
    boxes = tuple(box for box in BOXES if box == inside or box.startswith(inside + "."))
    if not boxes:
        known = ", ".join([*PARTS, *BOXES])
        raise MinillmError(f"{name!r} is no place on the map, expected a step's name or one of {known}")
    return boxes


@drawn
def you_are_here(step: str | None = None, *, ax: Axes | None = None) -> Axes:
    """The map of a model: a token's path from text to logits, and where sparsity, predictors and buffer come in.

    step: what is filled: a step ("mlp.mid", "blocks.0.attn.q"), a part of the model ("attn", "mlp"), a chapter (PARTS),
    or any box; None fills nothing. Below the names stand the dimensions (trace.STEPS). Raises MinillmError for another.
    """
    filled = boxes_of(step)
    ax = given_or_new(ax, MAP)
    wide, high = inches(ax)
    scale = min(1.0, wide / MAP[0], high / MAP[1])  # letters shrink with the map, so that they stay in their boxes
    ax.set(xlim=(0, MAP[0]), ylim=(0.02, MAP[1] - 0.02), aspect="equal")
    ax.set_axis_off()
    _draw_ground(ax, scale)
    for name in BOXES:
        _draw_box(ax, name, name in filled, scale)
    _draw_arrows(ax, scale)
    what = listed([box.rpartition(".")[2] for box in filled]) if filled else "nothing"
    ax.set_label(
        "Map of the model: text, ids, embedding; then L times a block of attention (norm; q, k, v; rotation, cache, "
        "scores, pattern, z, out) and FFN (norm, gate, up, their product mid, the kept part of it, out), each added to "
        "the residual stream; then norm, logits, next token. Below the FFN, a policy or a predictor makes a mask, and "
        f"a buffer before slow memory holds the weights that the mask needs. Filled: {what}."
    )
    return ax


def _rounded(ax: Axes, corners: tuple[float, float, float, float], radius: float, **look: Any) -> Patch:
    """A box with round corners; corners: left, low, right, top."""
    from matplotlib.patches import FancyBboxPatch

    left, low, right, top = corners
    style = f"round,pad=0,rounding_size={radius}"
    return ax.add_patch(FancyBboxPatch((left, low), right - left, top - low, boxstyle=style, **look))


def _draw_ground(ax: Axes, scale: float) -> None:
    """What lies below the boxes: the frames of a block and of its sparse part, and the words beside them."""
    _rounded(ax, (1.16, 0.08, 9.27, 4.72), 0.12, facecolor=PALE, edgecolor="#888888", linewidth=1.2 * scale, zorder=0)
    dashes: Look = {"linestyle": (0, (4, 3)), "linewidth": scale}
    _rounded(ax, (1.24, 0.18, 9.19, 1.28), 0.10, facecolor="white", edgecolor="#999999", zorder=0, **dashes)
    own: Look
    for x, y, words, own in (
        (1.3, 4.56, "block, L times", {"weight": "bold"}),
        (_X[3], 4.48, "the residual stream", {}),
        (_X[1] - _HALF, _V, "attention", {}),
        (_X[0] - _HALF, _UP - 0.1, "FFN", {}),
        (1.32, 1.10, "fewer neurons,\nfewer weights", {"va": "top"}),
    ):
        look: Look = {"fontsize": 9 * scale, "color": "#444444", "style": "italic", "va": "center", "zorder": 3}
        ax.text(x, y, words, **look | own)


def _draw_box(ax: Axes, name: str, filled: bool, scale: float) -> None:
    """One box with its title, and the dimensions below the title."""
    x, y, title, under = BOXES[name]
    if not title:
        title = name.rpartition(".")[2]
        under += (STEPS.get(name) or STEPS[f"blocks.*.{name}"]).dims
    look: Look = {"facecolor": BLUE if filled else "white", "edgecolor": BLACK}
    look["linewidth"] = (2.0 if filled else 1.0) * scale
    side, half = _WIDTHS.get(name, _HALF), _HEIGHTS.get(name, _TALL)
    _rounded(ax, (x - side, y - half, x + side, y + half), 0.05, zorder=2, **look).set_gid(name)
    look = {"ha": "center", "zorder": 3, "color": "white" if filled else BLACK}
    up = 0.07 + 0.055 * under.count("\n") if under else 0
    ax.text(x, y + up, title, fontsize=9 * scale, weight="bold", va="center", **look)
    look["color"] = "white" if filled else "#444444"
    ax.text(x, y + up - 0.085, under, fontsize=7.5 * scale, va="top", linespacing=1.0, **look)


def _draw_arrows(ax: Axes, scale: float) -> None:
    """The arrows between the boxes, the residual stream, and the circles where a branch is added to it."""
    for x, y in _SUMS:
        circle = {"boxstyle": "circle,pad=0.12", "facecolor": "white", "edgecolor": BLACK, "linewidth": scale}
        ax.text(x, y, "+", fontsize=10 * scale, weight="bold", ha="center", va="center", zorder=3, bbox=circle)
    for a, b in (names.split() for names in _ARROWS):
        (xa, ya, *_), (xb, yb, *_) = BOXES[a], BOXES[b]
        if xa == xb:
            between = [(xa, ya + math.copysign(_TALL, yb - ya)), (xb, yb - math.copysign(_TALL, yb - ya))]
        else:
            turn = xb - _HALF - 0.06
            between = [(xa + _HALF, ya), *(((turn, ya), (turn, yb)) if ya != yb else ()), (xb - _HALF, yb)]
        _draw_arrow(ax, between, scale)
    for points in _BENDS:
        _draw_arrow(ax, points, scale)
    for points in _STREAM:
        _draw_arrow(ax, points, scale, thickness=2.4, color=BLACK)
    for points in _ASIDE:
        _draw_arrow(ax, points, scale, linestyle=(0, (3, 2)))


def _draw_arrow(
    ax: Axes, points: Line, scale: float, thickness: float = 1.2, color: str = "#444444", **look: Any
) -> None:
    """A line through the points, with an arrow's head at the last one."""
    from matplotlib.patches import Polygon

    (x, y), (to_x, to_y) = points[-2:]
    far = math.hypot(to_x - x, to_y - y)
    along = np.array([to_x - x, to_y - y]) / far
    neck = np.array([to_x, to_y]) - 0.08 * along
    across = (0.025 + 0.012 * thickness) * np.array([-along[1], along[0]])
    line = zip(*points[:-1], neck, strict=True)
    ax.plot(*line, color=color, linewidth=thickness * scale, solid_capstyle="butt", zorder=1, **look)
    ax.add_patch(Polygon(np.array([neck + across, (to_x, to_y), neck - across]), color=color, linewidth=0, zorder=1))
