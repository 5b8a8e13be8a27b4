"""Tokens as labels of an axis, and checks of the arrays that are drawn beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import MinillmError
from ..transformer.model import Llama
from .canvas import plain_text

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from numpy.typing import ArrayLike


def token_label(token: str, space: str = "", longest: int = 12) -> str:
    """A token as the label of an axis: white space made visible, long tokens cut, a box for what the font lacks.

    space: what is written for a space in front, which most tokens have.
    """
    inside = token.strip(" ")
    text = inside.replace("\r", "").replace("\n", "↵").replace("\t", "⇥") if inside else "␣" * len(token)
    text = space * (inside != "" and token.startswith(" ")) + text
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    text = "".join(c if c.isprintable() else "□" for c in text)
    return plain_text(text) if text else "(special)"


def token_labels(model: Llama, ids: Sequence[int]) -> list[str]:
    """A short text for each id, for the axes of a figure; "#5" for one that has no text of its own (BOS)."""
    return [model.tokenizer.decode([index]) or f"#{index}" for index in ids]


def label_axis(axis: Axis, labels: Sequence[str], room: float, upright: bool = False) -> None:
    """Write as many of the labels at 0, 1, 2, ... as ``room`` inches hold."""
    every = -(-len(labels) // max(1, int(room / 0.13)))
    axis.set_ticks(range(0, len(labels), every), labels[::every])
    for label in axis.get_ticklabels() if upright else ():
        label.set_rotation(90)


def widest(labels: Sequence[str]) -> float:
    """The width of the longest label, in points."""
    from matplotlib.textpath import TextPath

    return max(TextPath((0, 0), label, size=8).get_extents().width for label in labels)


def checked_array(value: ArrayLike, dims: str, what: str) -> np.ndarray:
    """The value as an array with these dimensions ("H T S"). Raises MinillmError for others, or where one is empty."""
    array = np.asarray(value)
    if array.ndim != len(dims.split()) or 0 in array.shape:
        raise MinillmError(f"{what} is {list(array.shape)}, expected ({dims.replace(' ', ', ')}), none of them empty")
    return array


def check_tokens(tokens: Sequence[str], count: int, what: str) -> None:
    """Raise MinillmError unless there are ``count`` tokens."""
    if len(tokens) != count:
        raise MinillmError(f"found {len(tokens)} tokens for {count} {what}, expected one each")
