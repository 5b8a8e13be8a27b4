"""Numbers as a reader writes them: 1.25 MB, 3.4 ms, 12,300; never 1.25e+06.

A table or an axis has one unit for all its numbers, that of the largest (``byte_unit``, ``time_unit``). A number that
stands alone has its own (``in_bytes``, ``in_seconds``).
"""

import math

BYTES = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1.0))
SECONDS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9))


def byte_unit(largest: float) -> tuple[str, float]:
    """The unit (GB, MB, kB or bytes) that suits a number of bytes, and its size in bytes."""
    return next((unit for unit in BYTES if largest >= unit[1]), BYTES[-1])


def time_unit(largest: float) -> tuple[str, float]:
    """The unit (s, ms, µs or ns) that suits a number of seconds, and its size in seconds."""
    return next((unit for unit in SECONDS if largest >= unit[1]), SECONDS[-1])


def plain(value: float, digits: int = 3) -> str:
    """A number with so many significant digits and without an exponent; whole digits are never rounded away."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if decimals else text


def compact(value: float, digits: int = 3) -> str:
    """``plain``, but for a difference or a mean near zero: 1.2e-07 is easier to read than 0.00000012."""
    return f"{value:.{digits - 1}e}" if 0 < abs(value) < 1e-4 else plain(value, digits)


def in_bytes(count: float) -> str:
    """A number of bytes with its unit: "1.25 MB"."""
    unit, size = byte_unit(abs(count))
    return f"{plain(count / size)} {unit}"


def in_seconds(seconds: float) -> str:
    """A time with its unit: "3.4 ms"."""
    unit, size = time_unit(abs(seconds))
    return f"{plain(seconds / size)} {unit}"
