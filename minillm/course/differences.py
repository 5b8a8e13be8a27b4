"""How two values differ: the share of right values, and one sentence that says what is wrong.

    right    max |found - expected| <= rtol max |expected|,  with the shape and dtype expected
    values   of one array, the share of its entries that lie within rtol max |expected| of what is expected; of truth
             values, how much better than the best constant answer:  1 - wrong / min(true, false),  at least 0

``difference(found, expected, rtol)`` takes any two Python values: it looks into arrays, numbers, lists, tuples and
mappings, and compares everything else with ``==``. The sentence speaks of shapes first, because most wrong answers are
the right numbers along the wrong axis.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Described:
    """A value that is no array, of another process: only these words on it are known. It equals nothing."""

    words: str


def difference(found: object, expected: object, rtol: float) -> tuple[float, str]:
    """The share of right values, and what is wrong in words ("" when all is right)."""
    if isinstance(expected, np.ndarray) and expected.ndim:
        return array_difference(found, expected, rtol)
    if isinstance(expected, numbers.Number | np.generic | np.ndarray) and np.asarray(expected).dtype.kind in "biufc":
        return number_difference(found, np.asarray(expected), rtol)
    if isinstance(expected, list | tuple):
        return list_difference(found, expected, rtol)
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


def list_difference(found: object, expected: Sequence[object], rtol: float) -> tuple[float, str]:
    """``difference`` for a list or a tuple: item by item."""
    found = found.tolist() if isinstance(found, np.ndarray) and found.ndim else found
    if not isinstance(found, list | tuple) or len(found) != len(expected):
        return 0.0, f"returned {described(found)}, expected {described(expected)}{missing_return(found)}"
    parts = [difference(a, b, rtol) for a, b in zip(found, expected, strict=True)]
    wrong = [f"item {i}: {problem}" for i, (_, problem) in enumerate(parts, 1) if problem]
    share = f"; {len(parts) - len(wrong)} of {len(parts)} items are right" if wrong and len(parts) > 1 else ""
    return float(np.mean([values for values, _ in parts])) if parts else 1.0, f"{wrong[0]}{share}" if wrong else ""


def missing_return(found: object) -> str:
    """A hint at the usual reason for a None."""
    return ": is a return missing?" if found is None else ""


def number_difference(found: object, expected: np.ndarray, rtol: float) -> tuple[float, str]:
    """``difference`` for one number (expected: without axes); its type is free, but an array with axes is wrong."""
    number = np.asarray(found) if isinstance(found, numbers.Number | np.generic | np.ndarray) else None
    if number is None or number.dtype.kind not in "biufc":
        return 0.0, f"returned {described(found)}, expected {described(expected)}{missing_return(found)}"
    if number.ndim:
        hint = ": sum or average over every axis?"
        return 0.0, f"returned {described(found)}, expected {described(expected)}{hint}"
    if expected.dtype.kind in "biu":
        right = bool(number == expected)
    else:
        right = not wrong_values(number[None], expected[None], rtol).any()
    return float(right), "" if right else "returned {}, expected {}".format(*both_described(number, expected))


def wrong_values(found: np.ndarray, expected: np.ndarray, rtol: float) -> np.ndarray:
    """True where a value is not the one expected; shapes are equal. NaN agrees only with NaN."""
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
    wrong = wrong_values(found, expected, rtol)
    right = float(1 - wrong.mean()) if wrong.size else 1.0
    if expected.dtype.kind == "b":
        rarer = min(expected.sum(), (~expected).sum())
        right = max(0.0, float(1 - wrong.sum() / rarer)) if rarer else float(not wrong.any())
    # Integers of another width are the same numbers (and the default width differs between systems); floats are not.
    both_integers = found.dtype.kind in "iu" and expected.dtype.kind in "iu"
    if found.dtype != expected.dtype and not both_integers:
        leak = ": something in it is float64" if (found.dtype, expected.dtype.name) == (np.float64, "float32") else ""
        values = "the values are right" if not wrong.any() else f"{1 - wrong.mean():.0%} of the values are right"
        return right, f"returned {described(found)}, expected {wanted}{leak}; {values}"
    return right, worst_value(found, expected, wrong) if wrong.any() else ""


def worst_value(found: np.ndarray, expected: np.ndarray, wrong: np.ndarray) -> str:
    """The sentence on wrong values: one of them with its place, and how many values are right.

    The value shown is the first that is not finite, else the one with the largest difference; of integers and truth
    values the first wrong one, because there a large difference says no more than a small one.
    """
    count = f"{wrong.size - wrong.sum():,} of {wrong.size:,} values are right"
    not_finite = ~np.isfinite(found) & wrong
    if not_finite.any():
        at = [int(i) for i in np.argwhere(not_finite)[0]]
        return f"{described(found[tuple(at)])} at {at}, expected {described(expected[tuple(at)])}; {count}"
    size = wrong * 1.0
    if expected.dtype.kind in "fc":
        size[wrong] = np.abs(found[wrong].astype(complex) - expected[wrong])
    at = [int(i) for i in np.unravel_index(np.argmax(size), size.shape)]
    here = "found {}, expected {}".format(*both_described(found[tuple(at)], expected[tuple(at)]))
    what = "largest difference" if expected.dtype.kind in "fc" else "first wrong value"
    return f"{what} at {at}: {here}; {count}"


def shape_hint(found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """A guess at what happened to the axes."""
    if found == expected[::-1] and len(found) > 1:
        return ": transposed?"
    if sorted(found) == sorted(expected):
        return ": the same axes in another order"
    if [n for n in found if n != 1] == [n for n in expected if n != 1]:
        return ": an axis of length 1 too many or too few"
    if np.prod(found) == np.prod(expected):
        return ": the same number of values in another shape"
    if len(found) == len(expected):
        axis = next(i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b)
        return f": axis {axis} has length {found[axis]}, not {expected[axis]}"
    return f": {len(found)} axes, not {len(expected)}"


def both_described(found: np.generic | np.ndarray, expected: np.generic | np.ndarray) -> tuple[str, str]:
    """Two different numbers in words that differ, too: with all their digits where six are the same."""
    words = described(found), described(expected)
    return words if words[0] != words[1] else (repr(found.item()), repr(expected.item()))


def described(value: object) -> str:
    """A value in a few words: an array by dtype and shape, a number or a short text as it is."""
    if isinstance(value, Described):
        return value.words
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
