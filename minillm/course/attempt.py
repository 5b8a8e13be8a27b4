"""One call of an answer: what it returned, or in words what went wrong instead.

An answer may do anything: raise, exit, print, return any value, change its arguments. Nothing of that leaves
``attempt``, except Ctrl-C. Two things cannot be caught in the same process: an answer that never ends, and one that
ends the process. For these, ``minillm grade`` makes the call in another process (child.py).

Here is no word about what is right; that is check.py.
"""

from __future__ import annotations

import copy
import inspect
import io
import numbers
import traceback
from collections.abc import Mapping, Set
from contextlib import redirect_stderr, redirect_stdout, suppress
from typing import NamedTuple

import numpy as np

from ..errors import show
from .differences import described

NO_RESULT = object()  # the result of a call that did not return
NOT_WRITTEN = "is not written yet"
WORDS = 200  # characters at most of an exception's message, of a line, of a signature
PRINTED = 20_000  # characters that are kept of what an answer prints


class Output(io.StringIO):
    """What an answer prints: only the beginning is kept."""

    def write(self, text: str) -> int:
        """Keep the text as long as there is room for it."""
        super().write(text[: max(0, PRINTED - self.tell())])
        return len(text)


class Outcome(NamedTuple):
    """One call: its result, what went wrong ("" when it returned), the argument that it changed, what it printed."""

    result: object = NO_RESULT
    problem: str = ""
    changed: str = ""
    printed: str = ""

    @property
    def returned(self) -> bool:
        """Whether the answer returned (it did not raise)."""
        return self.result is not NO_RESULT


def attempt(answer: object, case: tuple, after: tuple | None = None) -> Outcome:
    """Call answer(*copies of case).

    after: the arguments as they should be after the call; by default as they were before.
    """
    if not callable(answer):
        return Outcome(problem=f"it is not a function (found {described(answer)})")
    case, after = copied(case), copied(case) if after is None else after
    output = Output()
    try:
        # errstate: an answer's np.seterr ends with the call
        with redirect_stdout(output), redirect_stderr(output), np.errstate():
            result = answer(*case)
        changed = [i for i, (a, b) in enumerate(zip(case, after, strict=True)) if not unchanged(a, b)]
        name = argument_names(answer, case)[changed[0]] if changed else ""
        return Outcome(result, changed=name, printed=text_of(output))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, too
        return Outcome(problem=failure(error, answer, case), printed=text_of(output))


# ---- arguments -------------------------------------------------------------------------------------------------------
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


def argument_names(answer: object, case: tuple) -> list[str]:
    """The names of an answer's parameters; "number 1", ... where they are unknown."""
    names: list[str] = []
    with suppress(BaseException):  # a made-up __signature__ may raise anything
        names = list(inspect.signature(answer).parameters) if callable(answer) else []
    return (
        [name[:WORDS] for name in names] if len(names) == len(case) else [f"number {i + 1}" for i in range(len(case))]
    )


# ---- errors in words -------------------------------------------------------------------------------------------------
def failure(error: BaseException, answer: object, case: tuple) -> str:
    """An exception of answer(*case) in words."""
    if isinstance(error, NotImplementedError):
        return NOT_WRITTEN
    if isinstance(error, TypeError) and (why := signature_mismatch(answer, case)):
        return why
    return raised(error, getattr(getattr(answer, "__code__", None), "co_filename", None))


def raised(error: BaseException, file: str | None) -> str:
    """An exception in words, with the last line of this file (or cell) that it passed through."""
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    if not lines:
        return f"raised {error_text(error)}"
    cell = f" of {file}" if file and file.startswith("cell ") else ""
    code = f": {show(lines[-1].line, WORDS)}" if lines[-1].line else ""
    return f"raised {error_text(error)} in line {lines[-1].lineno}{cell}{code}"


def signature_mismatch(answer: object, case: tuple) -> str:
    """Why the arguments do not fit the answer's parameters; "" where they do, or where the parameters are unknown."""
    signature = None
    with suppress(BaseException):  # a made-up __signature__ may raise anything
        signature = inspect.signature(answer) if callable(answer) else None
    if signature is None:
        return ""
    try:
        signature.bind(*case)
    except TypeError as error:
        return f"takes {show(signature, WORDS)}, but is called with {len(case)} arguments ({error_text(error)})"
    return ""


def error_text(error: BaseException) -> str:
    """Type and message of an exception on one line."""
    message = ""
    with suppress(BaseException):  # its own __str__ may raise anything
        message = show(" ".join(str(error).split()), WORDS)
    return show(type(error).__name__, WORDS) + f": {message}" * bool(message)


def text_of(output: Output) -> str:
    """The printed text; "" where the answer has closed the stream."""
    try:
        return output.getvalue()
    except ValueError:
        return ""
