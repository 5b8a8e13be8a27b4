"""How far an answer is right: a reader's function beside one that is, case by case.

    right    shape and dtype as expected, and  max |found - expected| / max |expected| <= rtol
    values   of one array, the share of its entries that lie within rtol max |expected| of what is expected; of truth
             values, how far beyond the best constant answer:  1 - wrong / min(true, false),  at least 0

The specification is a function of the package, or a slow loop that says plainly what is meant. Where the two part ways,
one sentence says how, and speaks of shapes first: most wrong answers are the right numbers in the wrong axis.

Nothing that an answer does is let out of here, except Ctrl-C: it may raise, exit, print, give back anything at all, and
change its arguments (they are copies; a change that the specification does not make is a wrong case). One thing cannot
be caught in the same process: an answer that never ends.
"""

from __future__ import annotations

import copy
import inspect
import io
import numbers
import traceback
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import redirect_stderr, redirect_stdout, suppress
from typing import NamedTuple

import numpy as np

from ..errors import MinillmError

PRINTED = 10  # lines of what a wrong answer printed that are shown


class Score(NamedTuple):
    """How many cases are right, the mean share of right values over the cases, and what is wrong with the first."""

    right: int
    total: int
    values: float
    problem: str

    @property
    def fraction(self) -> float:
        """Share of the cases that are right."""
        return self.right / self.total

    def _ipython_display_(self) -> None:
        """Nothing: a notebook would show the last value of a cell, and ``check`` has printed it already."""


NOTHING = object()  # what came back from a call that did not come back
NOT_WRITTEN = "is not written yet"


class Verdict(NamedTuple):
    """One case: the share of right values, what is wrong ("" when right), what came back, what was printed, and the
    argument that was changed."""

    values: float
    problem: str
    found: object = NOTHING
    printed: str = ""
    changed: str = ""

    @property
    def returned(self) -> bool:
        """Whether the answer came to its end."""
        return self.found is not NOTHING


def check(exercise: str, answer: Callable, spec: Callable, cases: Sequence[tuple], rtol: float = 1e-6) -> Score:
    """Compare answer(*case) with spec(*case) on each case, and print how many are right and what is wrong first.

    cases: tuples of arguments; both functions get copies. rtol: relative to the largest value expected. Raises nothing
    for what the answer does; what the specification raises is let through, and MinillmError says that there are no
    cases. An answer that never ends is not stopped: interrupt the kernel.
    """
    cases = [tuple(case) for case in cases]
    if not cases:
        raise MinillmError(f"exercise {exercise} has no cases, expected at least one")
    verdicts = []
    for case in cases:
        given = copied(case)
        expected = spec(*given)
        verdicts.append(judge(answer, case, expected, rtol, after=given))
    name = getattr(answer, "__name__", "answer")
    score = summed(verdicts, [in_call(name, case) for case in cases])
    print(f"exercise {exercise}: {score.right} of {score.total} right")
    if score.problem:
        print(f"  {score.problem}")
        for line in next(v.printed for v in verdicts if v.problem).splitlines()[:PRINTED]:
            print(f"  printed: {line}")
    return score


def summed(verdicts: Sequence[Verdict], calls: Sequence[str]) -> Score:
    """The score of several cases; calls: how each is written in words, for the sentence on the first wrong one."""
    wrong = [f"case {i}, {call}: {v.problem}" for i, (v, call) in enumerate(zip(verdicts, calls, strict=True), 1)]
    first = next((words for words, v in zip(wrong, verdicts, strict=True) if v.problem), "")
    right = sum(not v.problem for v in verdicts)
    return Score(right, len(verdicts), float(np.mean([v.values for v in verdicts])), first)


# ---- one call --------------------------------------------------------------------------------------------------------
def judge(answer: object, case: tuple, expected: object, rtol: float, after: tuple | None = None) -> Verdict:
    """Call answer(*copies of case) and say how far the result is what was expected.

    after: the arguments as they should be after the call; the case itself where not said.
    """
    if not callable(answer):
        return Verdict(0.0, f"it is no function (found {described(answer)})")
    case, after = copied(case), case if after is None else after
    output = io.StringIO()
    try:
        # errstate: an answer's np.seterr ends with it
        with redirect_stdout(output), redirect_stderr(output), np.errstate():
            found = answer(*case)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, too
        return Verdict(0.0, failure(error, answer, case), printed=text_of(output))
    try:
        values, problem = difference(found, expected, rtol)
        changed = [i for i, (a, b) in enumerate(zip(case, after, strict=True)) if not unchanged(a, b)]
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # of an object that cannot even be looked at
        problem = f"returned {described(found)} that cannot be compared ({said(error)}), expected {described(expected)}"
        return Verdict(0.0, problem, found, text_of(output))
    name = argument_names(answer, case)[changed[0]] if changed else ""
    if name:
        problem = f"changed its argument {name} in place, expected a new array" + (f"; and {problem}" * bool(problem))
    return Verdict(values, problem, found, text_of(output), name)


def copied(case: tuple) -> tuple:
    """Copies of all arguments; what cannot be copied is given as it is."""
    try:
        return copy.deepcopy(case)
    except Exception:
        return tuple(one[0] if (one := _deep(value)) else value for value in case)


def _deep(value: object) -> list:
    with suppress(Exception):
        return [copy.deepcopy(value)]
    return []


def unchanged(a: object, b: object) -> bool:
    """Whether two arguments hold the same numbers; looks into arrays and the usual containers, not into objects."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        return np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return list(a) == list(b) and all(unchanged(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(unchanged, a, b))
    if isinstance(a, Set | bytearray | str | numbers.Number):
        return bool(a == b) or a != a  # NaN is not equal to itself
    return True


def failure(error: BaseException, answer: Callable, case: tuple) -> str:
    """What an exception of answer(*case) says."""
    if isinstance(error, NotImplementedError):
        return NOT_WRITTEN
    if isinstance(error, TypeError) and (why := unfitting(answer, case)):
        return why
    return raised(error, getattr(getattr(answer, "__code__", None), "co_filename", None))


def raised(error: BaseException, file: str | None) -> str:
    """What an exception says, and the last line of this file (or cell) that it came through."""
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    where = f" in line {lines[-1].lineno}" + f": {lines[-1].line}" * bool(lines[-1].line) if lines else ""
    return f"raised {said(error)}{where}"


def unfitting(answer: Callable, case: tuple) -> str:
    """Why the arguments do not fit the answer's parameters; "" where they do or nobody knows."""
    try:
        signature = inspect.signature(answer)
    except (TypeError, ValueError):
        return ""
    try:
        signature.bind(*case)
    except TypeError as error:
        return f"takes {signature}, but is called with {len(case)} arguments ({said(error)})"
    return ""


def said(error: BaseException) -> str:
    """Kind and message of an exception on one line."""
    try:
        message = " ".join(str(error).split())[:200]
    except Exception:
        message = ""
    return type(error).__name__ + f": {message}" * bool(message)


def text_of(output: io.StringIO) -> str:
    """What was printed; an answer may have closed the stream."""
    try:
        return output.getvalue()
    except ValueError:
        return ""


# ---- one value beside another ----------------------------------------------------------------------------------------
def difference(found: object, expected: object, rtol: float) -> tuple[float, str]:
    """The share of right values, and what is wrong in words ("" when all is right)."""
    if isinstance(expected, np.ndarray) and expected.ndim:
        return array_difference(found, expected, rtol)
    if isinstance(expected, numbers.Number | np.generic | np.ndarray) and np.asarray(expected).dtype.kind in "biufc":
        return number_difference(found, expected, rtol)
    if isinstance(expected, list | tuple):
        found = found.tolist() if isinstance(found, np.ndarray) and found.ndim else found
        if not isinstance(found, list | tuple) or len(found) != len(expected):
            return 0.0, f"returned {described(found)}, expected {described(expected)}{missing_return(found)}"
        parts = [difference(a, b, rtol) for a, b in zip(found, expected, strict=True)]
        wrong = [f"item {i}: {problem}" for i, (_, problem) in enumerate(parts, 1) if problem]
        share = f"; {len(parts) - len(wrong)} of {len(parts)} items are right" if wrong and len(parts) > 1 else ""
        return float(np.mean([values for values, _ in parts])) if parts else 1.0, f"{wrong[0]}{share}" if wrong else ""
    if isinstance(expected, Mapping):
        if not isinstance(found, Mapping) or set(found) != set(expected):
            keys = f" with the keys {sorted(map(str, found))}" if isinstance(found, Mapping) else ""
            expectation = f"a mapping with the keys {sorted(map(str, expected))}"
            return 0.0, f"returned {described(found)}{keys}, expected {expectation}{missing_return(found)}"
        values, problem = difference([found[key] for key in expected], list(expected.values()), rtol)
        return values, problem and f"of the keys {list(expected)}, {problem}"
    if bool(found == expected):
        return 1.0, ""
    return 0.0, f"returned {described(found)}, expected {described(expected)}{missing_return(found)}"


def missing_return(found: object) -> str:
    """The usual reason for a None."""
    return ": is a return missing?" if found is None else ""


def number_difference(found: object, expected: object, rtol: float) -> tuple[float, str]:
    """``difference`` for a number: of any type, but no array with axes."""
    kind = np.asarray(found).dtype.kind if isinstance(found, numbers.Number | np.generic | np.ndarray) else "O"
    if kind not in "biufc" or np.ndim(found):
        hint = ": sum or average over every axis?" if kind in "biufc" and np.ndim(found) else missing_return(found)
        return 0.0, f"returned {described(found)}, expected {described(expected)}{hint}"
    if np.asarray(expected).dtype.kind in "biu":
        right = bool(found == expected)
    else:
        right = not parts_apart(np.asarray(found)[None], np.asarray(expected)[None], rtol).any()
    return float(right), "" if right else f"returned {described(found)}, expected {described(expected)}"


def parts_apart(found: np.ndarray, expected: np.ndarray, rtol: float) -> np.ndarray:
    """True where a value is not the one expected; shapes are equal. Not-a-number agrees with itself alone."""
    if expected.dtype.kind in "biu" or not expected.size:
        return found != expected
    finite = np.isfinite(expected)
    with np.errstate(invalid="ignore", over="ignore"):
        allowed = rtol * (np.abs(expected[finite]).max(initial=0) or 1.0)
        near = np.abs(found - expected) <= allowed
    return ~np.where(finite, near, (found == expected) | ((found != found) & (expected != expected)))


def array_difference(found: object, expected: np.ndarray, rtol: float) -> tuple[float, str]:
    """``difference`` for an array: its shape, then its dtype, then its values."""
    wanted = described(expected)
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "biufc":
        return 0.0, f"returned {described(found)}, expected an array {wanted}{missing_return(found)}"
    if found.shape != expected.shape:
        return 0.0, f"returned {described(found)}, expected {wanted}{shape_hint(found.shape, expected.shape)}"
    apart = parts_apart(found, expected, rtol)
    right = float(1 - apart.mean()) if apart.size else 1.0
    if expected.dtype.kind == "b":
        rarer = min(expected.sum(), (~expected).sum())
        right = max(0.0, float(1 - apart.sum() / rarer)) if rarer else float(not apart.any())
    # Whole numbers of another width are the same numbers (and the system's own width differs); floats are not.
    whole = found.dtype.kind in "iu" and expected.dtype.kind in "iu"
    if found.dtype != expected.dtype and not whole:
        leak = ": something in it is float64" if (found.dtype, expected.dtype.name) == (np.float64, "float32") else ""
        values = "the values are right" if not apart.any() else f"{1 - apart.mean():.0%} of the values are right"
        return right, f"returned {described(found)}, expected {wanted}{leak}; {values}"
    if not apart.any():
        return 1.0, ""
    count = f"{apart.size - apart.sum():,} of {apart.size:,} values are right"
    strange = ~np.isfinite(found) & apart
    if strange.any():
        at = [int(i) for i in np.argwhere(strange)[0]]
        return right, f"{described(found[tuple(at)])} at {at}, expected {described(expected[tuple(at)])}; {count}"
    size = apart * 1.0
    if expected.dtype.kind in "fc":  # else a wrong number is a wrong number, and the first is shown
        size[apart] = np.abs(found[apart].astype(complex) - expected[apart])
    at = [int(i) for i in np.unravel_index(np.argmax(size), size.shape)]
    here = f"found {described(found[tuple(at)])}, expected {described(expected[tuple(at)])}"
    what = "largest difference" if expected.dtype.kind in "fc" else "first wrong value"
    return right, f"{what} at {at}: {here}; {count}"


def shape_hint(found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """A guess at what happened to the axes."""
    if found == expected[::-1] and len(found) > 1:
        return ": transposed?"
    if sorted(found) == sorted(expected):
        return ": the same axes in another order"
    if [n for n in found if n != 1] == [n for n in expected if n != 1]:
        return ": an axis of length 1 too many or too few"
    if np.prod(found) == np.prod(expected):
        return ": as many values in another shape"
    if len(found) == len(expected):
        axis = next(i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b)
        return f": axis {axis} has length {found[axis]}, not {expected[axis]}"
    return f": {len(found)} axes, not {len(expected)}"


# ---- words -----------------------------------------------------------------------------------------------------------
def described(value: object) -> str:
    """A value in a few words: an array by dtype and shape, a number or a short text as it is."""
    if isinstance(value, np.ndarray) and value.ndim:
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, np.generic | np.ndarray):
        value = value.item()
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None or isinstance(value, bool | int | str | bytes):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:57]}..."
    if isinstance(value, list | tuple | Set | Mapping):
        items = "item" if len(value) == 1 else "items"
        return f"a {type(value).__name__} of {len(value)} {items}"
    if callable(value):
        return f"the function {getattr(value, '__name__', '')}".strip()
    return f"a value of type {type(value).__name__}"


def argument_names(answer: Callable, case: tuple) -> list[str]:
    """The names of an answer's parameters, as far as there are such."""
    try:
        names = list(inspect.signature(answer).parameters)
    except (TypeError, ValueError):
        names = []
    return names if len(names) == len(case) else [f"number {i}" for i in range(1, len(case) + 1)]


def in_call(name: str, case: tuple) -> str:
    """A case as it would be written: rms_norm(float64[2, 8], float64[8], 1e-05)."""
    return f"{name}({', '.join(map(described, case))})"
