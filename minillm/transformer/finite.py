"""Values that are no numbers: what happens where sums outgrow their dtype.

The weights of a file are finite, but their products need not be: above 3.4e38 a float32 is infinity, infinity minus
infinity is NaN, and whatever meets a NaN becomes one. The residual stream is only added to, so a row that is lost in
one block is lost in all that follow. One look at the stream behind the last block is therefore enough:

    sum_i h_i^2 is finite in every row            the sum that the last norm divides by

It also finds rows that are finite but have squares that are not (above 1e19 in float32): a norm makes zeros of them.

Only where that look fails, the blocks are computed again with a tap that looks at every step, and the error names the
first one. So a healthy pass pays for one sum, and NumPy's own warnings, which know no step, can be turned off.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np

from ..errors import MinillmError
from ..trace import Tap, Trace, chained, no_tap
from .ops import no_warnings

SQUARED = ("embed", "resid_pre", "resid_mid", "resid_post")  # the steps that a norm squares


def are_numbers(values: np.ndarray) -> bool:
    """Whether all values are finite; without an array of their number."""
    return math.isfinite(values.min()) and math.isfinite(values.max())


@no_warnings
def rows_are_numbers(h: np.ndarray) -> bool:
    """Whether the sum of squares of every row is finite.  h (T, D)."""
    return math.isfinite(np.vecdot(h, h).max())  # NaN is a maximum, too


def problem_of(name: str, value: np.ndarray) -> str | None:
    """What is wrong with the value of a step, as a sentence without its end; None for numbers (and masks)."""
    if value.dtype.kind != "f" or not value.size:
        return None
    if not are_numbers(value):
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(value))[0])
        kind = "NaN" if np.isnan(value[place]) else "infinity"
        return f"{name} holds {kind} (first at {list(place)}, shape {list(value.shape)})"
    if name.rpartition(".")[2] in SQUARED and not rows_are_numbers(value):
        return f"{name} reaches {np.abs(value).max():.2g}, and the sum of its squares is infinity"
    return None


class _Found(Exception):
    """The first problem; it ends the second pass."""


def first_problem(run: Callable[[Tap], object], tap: Tap) -> str:
    """The first step that is no number, as a sentence without its end.

    run: computes the blocks again with a tap. tap: that of the first pass; its edits take part, too. One that collects
    values, and has no room for those of a second pass, is no reason to fail.
    """

    def look(name: str, value: np.ndarray) -> np.ndarray:
        if problem := problem_of(name, value):
            raise _Found(problem)
        return value

    # A Trace takes each step once only, so another one makes its edits.
    again = Trace(keep=(), edits=tap.edits) if isinstance(tap, Trace) else tap

    def edited(name: str, value: np.ndarray) -> np.ndarray:
        try:
            return again(name, value)
        except Exception:
            return value

    try:
        run(look if tap is no_tap else chained(look, edited, look))
    except _Found as found:
        return str(found)
    return "the residual stream behind the last block holds values that are no numbers"


def report(problem: str, dtype: np.dtype, tap: Tap) -> None:
    """Raise MinillmError for a problem; only a note where the pass is traced: a trace may be made to look at it."""
    advice = "; dtype float64 holds larger ones than float32" if dtype == np.float32 else ""
    sentence = f"{problem}, expected finite numbers{advice}"
    if not isinstance(tap, Trace):
        raise MinillmError(sentence)
    warnings.warn(sentence, stacklevel=2)
