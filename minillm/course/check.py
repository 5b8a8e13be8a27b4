"""Check an exercise: call the reader's function and the specification on the same cases, and compare the results.

    score   right of total cases;  values = mean over the cases of the share of right values (differences.py)

The specification is a function of the package, or a slow loop that says plainly what is meant. Where the two disagree,
one sentence says how.

An answer may do anything: raise, exit, print, return any value, change its arguments. Nothing of that leaves this
module, except Ctrl-C. The arguments are copies; a change that the specification does not make is a wrong case. One
thing cannot be caught in the same process: an answer that never ends.
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
from .differences import described, difference

PRINTED = 10  # lines shown at most of what a wrong answer printed


class Score(NamedTuple):
    """Numbers of right cases and of all cases, mean share of right values, and the sentence on the first wrong case."""

    right: int
    total: int
    values: float
    problem: str

    @property
    def fraction(self) -> float:
        """Share of the cases that are right."""
        return self.right / self.total

    def _ipython_display_(self) -> None:
        """Show nothing: a notebook would display the last value of a cell, and ``check`` has printed it already."""


NO_RESULT = object()  # the result of a call that did not return
NOT_WRITTEN = "is not written yet"


class Verdict(NamedTuple):
    """One case: share of right values, what is wrong ("" when right), result, printed text, changed argument."""

    values: float
    problem: str
    result: object = NO_RESULT
    printed: str = ""
    changed: str = ""

    @property
    def returned(self) -> bool:
        """Whether the answer returned (it did not raise)."""
        return self.result is not NO_RESULT


def check(exercise: str, answer: Callable, spec: Callable, cases: Sequence[tuple], rtol: float = 1e-6) -> Score:
    """Compare answer(*case) with spec(*case) on each case; print how many are right and what is wrong first.

    cases: tuples of arguments; both functions get copies. rtol: relative to the largest value expected. Errors of the
    answer are caught and printed; errors of the specification are raised; no cases at all raise MinillmError. An answer
    that never ends is not stopped: interrupt the kernel.
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
    score = total_score(verdicts, [written_call(name, case) for case in cases])
    print(f"exercise {exercise}: {score.right} of {score.total} right")
    if score.problem:
        print(f"  {score.problem}")
        for line in next(v.printed for v in verdicts if v.problem).splitlines()[:PRINTED]:
            print(f"  printed: {line}")
    return score


def total_score(verdicts: Sequence[Verdict], calls: Sequence[str]) -> Score:
    """The score of several cases; calls: each call in words, for the sentence on the first wrong one."""
    sentences = [f"case {i}, {call}: {v.problem}" for i, (v, call) in enumerate(zip(verdicts, calls, strict=True), 1)]
    first = next((words for words, v in zip(sentences, verdicts, strict=True) if v.problem), "")
    right = sum(not v.problem for v in verdicts)
    return Score(right, len(verdicts), float(np.mean([v.values for v in verdicts])), first)


# ---- one call --------------------------------------------------------------------------------------------------------
def judge(answer: object, case: tuple, expected: object, rtol: float, after: tuple | None = None) -> Verdict:
    """Call answer(*copies of case) and compare the result with the expected one.

    after: the arguments as they should be after the call; by default as they were before.
    """
    if not callable(answer):
        return Verdict(0.0, f"it is not a function (found {described(answer)})")
    case, after = copied(case), case if after is None else after
    output = io.StringIO()
    try:
        # errstate: an answer's np.seterr ends with the call
        with redirect_stdout(output), redirect_stderr(output), np.errstate():
            result = answer(*case)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, too
        return Verdict(0.0, failure(error, answer, case), printed=text_of(output))
    try:
        values, problem = difference(result, expected, rtol)
        changed = [i for i, (a, b) in enumerate(zip(case, after, strict=True)) if not unchanged(a, b)]
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an object whose own methods raise
        seen = f"{described(result)} that cannot be compared ({error_text(error)})"
        return Verdict(0.0, f"returned {seen}, expected {described(expected)}", result, text_of(output))
    name = argument_names(answer, case)[changed[0]] if changed else ""
    if name:
        problem = f"changed its argument {name} in place, expected a new array" + (f"; and {problem}" * bool(problem))
    return Verdict(values, problem, result, text_of(output), name)


def copied(case: tuple) -> tuple:
    """Copies of all arguments; an argument that cannot be copied is passed as it is."""
    try:
        return copy.deepcopy(case)
    except Exception:
        return tuple(map(copied_or_same, case))


def copied_or_same(value: object) -> object:
    """A deep copy, or the value itself where it cannot be copied."""
    with suppress(Exception):
        return copy.deepcopy(value)
    return value


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


# ---- errors in words -------------------------------------------------------------------------------------------------
def failure(error: BaseException, answer: Callable, case: tuple) -> str:
    """An exception of answer(*case) in words."""
    if isinstance(error, NotImplementedError):
        return NOT_WRITTEN
    if isinstance(error, TypeError) and (why := signature_mismatch(answer, case)):
        return why
    return raised(error, getattr(getattr(answer, "__code__", None), "co_filename", None))


def raised(error: BaseException, file: str | None) -> str:
    """An exception in words, with the last line of this file (or cell) that it passed through."""
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    where = f" in line {lines[-1].lineno}" + f": {lines[-1].line}" * bool(lines[-1].line) if lines else ""
    return f"raised {error_text(error)}{where}"


def signature_mismatch(answer: Callable, case: tuple) -> str:
    """Why the arguments do not fit the answer's parameters; "" where they do, or where the parameters are unknown."""
    try:
        signature = inspect.signature(answer)
    except (TypeError, ValueError):
        return ""
    try:
        signature.bind(*case)
    except TypeError as error:
        return f"takes {signature}, but is called with {len(case)} arguments ({error_text(error)})"
    return ""


def error_text(error: BaseException) -> str:
    """Type and message of an exception on one line."""
    try:
        message = " ".join(str(error).split())[:200]
    except Exception:
        message = ""
    return type(error).__name__ + f": {message}" * bool(message)


def text_of(output: io.StringIO) -> str:
    """The printed text; "" where the answer has closed the stream."""
    try:
        return output.getvalue()
    except ValueError:
        return ""


# ---- calls in words --------------------------------------------------------------------------------------------------
def argument_names(answer: Callable, case: tuple) -> list[str]:
    """The names of an answer's parameters; "number 1", ... where they are unknown."""
    try:
        names = list(inspect.signature(answer).parameters)
    except (TypeError, ValueError):
        names = []
    return names if len(names) == len(case) else [f"number {i}" for i in range(1, len(case) + 1)]


def written_call(name: str, case: tuple) -> str:
    """A call as it would be written: rms_norm(float64[2, 8], float64[8], 1e-05)."""
    return f"{name}({', '.join(map(described, case))})"
