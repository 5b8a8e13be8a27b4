"""Frames: how arrays travel between the judge and the process that runs a student's file.

    frame    length of the header (4 bytes, big-endian) | header (JSON, UTF-8) | the arrays' bytes, one after the other
    header   {"arrays": [["float64", [3, 6]], ...], and whatever else the message says}

An array's bytes are in C order and little-endian. Nothing that is received is executed or unpickled. The reader knows
the size of everything before it reads it, and refuses (``WireError``) a header or arrays above a stated size, a dtype
that is not in DTYPES, and whatever else is no frame.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import IO

import numpy as np

HEADER_LIMIT = 65_536  # bytes
ARRAYS_LIMIT = 8_000_000  # bytes of all arrays of a frame; the goldens' largest result has some thousands
DTYPES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64", "complex64", "complex128",
)  # fmt: skip
MOST_AXES = 16
SIZE_BYTES = 4  # of the header's length


class WireError(Exception):
    """What came is no frame; the message says why. EOFError says that nothing comes any more."""


def sendable(array: np.ndarray, room: int = ARRAYS_LIMIT) -> bool:
    """Whether an array has a dtype and a size that may travel."""
    return array.dtype.name in DTYPES and array.ndim <= MOST_AXES and array.size * array.itemsize <= room


def pack(header: dict[str, object], arrays: Sequence[np.ndarray] = ()) -> bytes:
    """A frame as bytes; each of the arrays must be ``sendable``."""
    listed = [[array.dtype.name, list(array.shape)] for array in arrays]
    text = json.dumps(header | {"arrays": listed}).encode()
    parts = [array.astype(array.dtype.newbyteorder("<"), "C", copy=False).tobytes() for array in arrays]
    return b"".join([len(text).to_bytes(SIZE_BYTES, "big"), text, *parts])


def receive(file: IO[bytes], limit: int = ARRAYS_LIMIT) -> tuple[dict[str, object], list[np.ndarray]]:
    """Read one frame: its header and its arrays, which may have ``limit`` bytes in all.

    Raises EOFError where the file has ended, WireError for whatever is no frame.
    """
    size = int.from_bytes(exactly(file.read, SIZE_BYTES), "big")
    if size > HEADER_LIMIT:
        raise WireError(f"a header of {size:,} bytes, expected at most {HEADER_LIMIT:,}")
    try:
        header = json.loads(exactly(file.read, size))
        kinds = [
            (np.dtype(name), shape) for name, shape in header["arrays"] if name in DTYPES and is_shape(shape, limit)
        ]
        complete = len(kinds) == len(header["arrays"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise WireError("a header that cannot be read") from None
    if not isinstance(header, dict) or not complete:
        raise WireError("an array of an unknown kind, or of more bytes than may come")
    sizes = [kind.itemsize * math.prod(shape) for kind, shape in kinds]
    if sum(sizes) > limit:
        raise WireError(f"arrays of {sum(sizes):,} bytes, expected at most {limit:,}")
    return header, [
        unpacked(exactly(file.read, count), kind, shape) for (kind, shape), count in zip(kinds, sizes, strict=True)
    ]


def exactly(read: Callable[[int], bytes], count: int) -> bytes:
    """That number of bytes. Raises EOFError where the file ends before."""
    found = read(count)
    if len(found) < count:
        raise EOFError
    return found


def is_shape(shape: object, limit: int) -> bool:
    """Whether a value is the shape of an array of at most ``limit`` entries; an axis of length 0 counts as 1 here."""
    if not isinstance(shape, list) or len(shape) > MOST_AXES or not all(type(n) is int and n >= 0 for n in shape):
        return False
    return math.prod(max(n, 1) for n in shape) <= limit


def unpacked(raw: bytes, kind: np.dtype, shape: list[int]) -> np.ndarray:
    """An array from its bytes. A truth value is one byte; every byte but 0 is True."""
    if kind == np.bool_:
        return (np.frombuffer(raw, np.uint8) != 0).reshape(shape)
    return np.frombuffer(raw, kind.newbyteorder("<")).astype(kind).reshape(shape)
