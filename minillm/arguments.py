"""Numbers that are given as arguments: Python's or NumPy's, checked in one place and passed on as Python's.

An array's scalar (``np.int64(5)``, an array of shape ()) is as good as Python's own number. True is no number here, and
neither is a text that holds one.
"""

from collections.abc import Callable
from contextlib import suppress
from numbers import Integral, Real

from .errors import MinillmError


def whole_number(name: str, value: object, least: int, most: int | None = None) -> int:
    """A whole number from ``least`` to ``most`` as an int. Raises MinillmError for everything else."""
    plain = _plain(value)
    expected = f"at least {least}" if most is None else f"{least} to {most}"
    if not isinstance(plain, Integral) or isinstance(plain, bool):
        raise MinillmError(f"{name} is {plain!r}, expected a whole number, {expected}")
    found = int(plain)
    if found < least or (most is not None and found > most):
        raise MinillmError(f"{name} is {found}, expected {expected}")
    return found


def real_number(name: str, value: object, good: Callable[[float], bool], expected: str) -> float:
    """A number for which ``good`` holds, as a float; ``expected`` says in words what that is.

    Raises MinillmError for everything else; ``good`` must be false for NaN.
    """
    plain = _plain(value)
    if isinstance(plain, Real) and not isinstance(plain, bool):
        with suppress(OverflowError):  # a whole number of more than 300 digits
            if good(float(plain)):
                return float(plain)
    raise MinillmError(f"{name} is {plain!r}, expected {expected}")


def _plain(value: object) -> object:
    """The Python value of an array's scalar; anything else as it is."""
    item = getattr(value, "item", None)
    return item() if getattr(value, "shape", None) == () and callable(item) else value
