"""One safetensors file: a header and arrays, each byte of them checked before an array is made.

A safetensors file (https://github.com/huggingface/safetensors, "Format") is as simple as a file of arrays can be:

    8 bytes     n, the length of the header, unsigned, little-endian
    n bytes     the header, JSON:  {"model.norm.weight": {"dtype": "BF16", "shape": [576], "data_offsets": [0, 1152]},
                                    ..., "__metadata__": {"format": "pt"}}
    the rest    the arrays one after another, row by row, little-endian; data_offsets count from the start of the rest

A reader needs 30 lines; most lines below refuse broken files. Everything is checked before anything is allocated: the
header's length against the file, each array's bytes against its shape, the arrays against the file (no hole, no
overlap, no byte left over).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeGuard

import numpy as np

from ..errors import BundleError, CheckpointError
from ..fields import Fields, brief, parse_json
from ..files import file_errors, regular_file, whole_file
from ..foreign import START, foreign_content

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

HEADER_LIMIT = 16_000_000  # bytes; a header takes about 110 per tensor, and the largest models have 100,000 tensors
NUMBERS_AT_ONCE = 1 << 20  # numbers that are widened at a time: 2 MB of BF16 become 4 MB of float32
# What is read. NumPy has no bfloat16: its bits are taken as whole numbers.
DTYPES: dict[str, np.dtype] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
# What a file may hold beside that, in tensors that no model here uses: bits per number.
BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "U64": 64, "I32": 32, "U32": 32, "I16": 16, "U16": 16,
    "I8": 8, "U8": 8, "BOOL": 8, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
DIMENSIONS = 32  # at most; NumPy takes no more than 64, weights here have one or two


class TensorInfo(NamedTuple):
    """Where one array lies: what the header of its file says, checked."""

    name: str
    dtype: str  # a key of BITS; read_tensor takes those of DTYPES
    shape: tuple[int, ...]
    path: Path
    offset: int  # bytes from the start of the file
    nbytes: int


def read_header(path: str | Path) -> dict[str, TensorInfo]:
    """The arrays of a safetensors file, by name, from its checked header: see read_whole_header."""
    return read_whole_header(path)[0]


def read_whole_header(path: str | Path, limit: int = HEADER_LIMIT) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Read and check the header of one safetensors file; the arrays themselves are not touched.

    ->  the arrays by name, and the metadata. limit: bytes that the header may have. Raises CheckpointError for every
    file that the safetensors library refuses, and also for a name that stands twice, for a header that does not begin
    with "{" and for one above ``limit``. Tensors of any dtype may stand in it.
    """
    path = regular_file(path, CheckpointError)
    with file_errors(path, "read", CheckpointError), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(START)
        n = int.from_bytes(start[:8], "little")
        if size < 8 or n > min(limit, size - 8):
            if foreign := foreign_content(start, "a safetensors file"):
                raise CheckpointError(f"{path}: {foreign}")
            expected = f"expected at most {limit} and no more than the file holds"
            raise CheckpointError(f"{path}: the header length is {n} in a file of {size} bytes, {expected}")
        file.seek(8)
        raw = file.read(n)
    if not raw.startswith(b"{"):
        raise CheckpointError(f"{path}: the header begins with {raw[:1]!r}, expected '{{'")
    entries = parse_json(raw, f"{path} (header)", CheckpointError)

    metadata = entries.pop("__metadata__", None)
    strings = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    if metadata is not None and not strings:
        raise CheckpointError(f"{path}: __metadata__ is {brief(metadata)}, expected an object of strings")
    tensors = {name: _tensor_info(name, entry, path, 8 + n) for name, entry in entries.items()}
    end = 8 + n
    for info in sorted(tensors.values(), key=lambda info: (info.offset, info.nbytes)):
        if info.offset != end:
            found = f"tensor {brief(info.name)} begins at byte {info.offset}"
            raise CheckpointError(f"{path}: {found}, expected {end}, without hole or overlap")
        end += info.nbytes
    if end != size:
        raise CheckpointError(f"{path}: the arrays end at byte {end}, expected the end of the file at {size}")
    return tensors, metadata or {}


def _tensor_info(name: str, entry: object, path: Path, start: int) -> TensorInfo:
    """Check one entry of a header by itself: dtype, shape, and as many bytes as the two ask for."""

    def sizes(value: object, counts: range) -> TypeGuard[list[int]]:  # True is an int; 2**48 bytes are beyond any disk
        if not isinstance(value, list) or len(value) not in counts:
            return False
        return all(type(item) is int and 0 <= item < 2**48 for item in value)

    if not isinstance(entry, dict):
        raise CheckpointError(f"{path}: tensor {brief(name)} is {brief(entry)}, expected an object")
    read = Fields(entry, f"{path}: tensor {brief(name)}", kind=CheckpointError)
    dtype, shape, offsets = read.choice("dtype", BITS), entry.get("shape"), entry.get("data_offsets")
    if not sizes(shape, range(DIMENSIONS + 1)):
        raise read.error("shape", f"a list of at most {DIMENSIONS} sizes")
    if not sizes(offsets, range(2, 3)):
        raise read.error("data_offsets", "a list of two byte positions")
    bits = math.prod(shape) * BITS[dtype]
    if 8 * (offsets[1] - offsets[0]) != bits:
        raise read.error("data_offsets", f"{brief(bits // 8)} bytes for {dtype} of shape {brief(shape)}")
    return TensorInfo(name, dtype, tuple(shape), path, start + offsets[0], bits // 8)


def read_tensor(info: TensorInfo, dtype: DTypeLike, maps: dict[Path, np.ndarray] | None = None) -> np.ndarray:
    """Read one array, read-only, as float32 or float64; all values must be finite (CheckpointError names the tensor).

    An array stored in that dtype is a view of the mapped file; maps keeps one map per file between calls.
    Raises CheckpointError also for an array that is stored as anything but F32, F16 or BF16.
    """
    if info.dtype not in DTYPES:
        found = f"tensor {brief(info.name)} is stored as {info.dtype}"
        raise CheckpointError(f"{info.path}: {found}, expected one of {', '.join(DTYPES)}")
    dtype = np.dtype(dtype)
    maps = {} if maps is None else maps
    with file_errors(info.path, "read", CheckpointError):
        if DTYPES[info.dtype] == dtype and info.nbytes:
            if info.path not in maps:
                # as plain ndarray: np.memmap's own class costs time in every operation
                maps[info.path] = np.memmap(info.path, np.uint8, mode="r").view(np.ndarray)
            array = maps[info.path][info.offset : info.offset + info.nbytes].view(dtype)
            if info.offset % dtype.itemsize:  # the format allows a header of any length; BLAS would copy at every use
                array = array.copy()
        else:
            array = np.empty(math.prod(info.shape), dtype)
            for start, piece in pieces(info):
                array[start : start + piece.size] = piece
    if not all_finite(array):
        raise CheckpointError(f"{info.path}: tensor {info.name} holds NaN or infinity, expected finite numbers")
    array.flags.writeable = False
    return array.reshape(info.shape)


def all_finite(array: np.ndarray) -> bool:
    """Whether an array holds no NaN and no infinity.

    A sum is as fast as memory, and neither of the two can hide in it; where it overflows, look closely.
    """
    with np.errstate(all="ignore"):
        return bool(np.isfinite(array.sum(dtype=array.dtype)) or np.isfinite(array).all())


def pieces(info: TensorInfo) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (index of the first number, numbers) of one array, flat, NUMBERS_AT_ONCE numbers at a time.

    So the stored and the widened array are never both in memory.

    BF16 is the upper half of a float32: shifting its 16 bits up by 16 is exact for every value.
    """
    stored, count = DTYPES[info.dtype], math.prod(info.shape)
    with open(info.path, "rb") as file:
        file.seek(info.offset)
        for start in range(0, count, NUMBERS_AT_ONCE):
            wanted = min(NUMBERS_AT_ONCE, count - start)
            piece = np.fromfile(file, stored, wanted)
            if piece.size != wanted:
                raise CheckpointError(f"{info.path}: ends inside tensor {info.name}, expected {info.nbytes} bytes")
            if info.dtype == "BF16":
                piece = piece.astype(np.uint32)
                piece <<= 16
                piece = piece.view(np.float32)
            elif info.dtype == "F16":
                piece = piece.astype(np.float32)
            yield start, piece


def save_tensors(path: str | Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Write arrays to one safetensors file, whole or not at all, and read them back before it takes its name.

    Raises CheckpointError when the file cannot be written or does not give back what was written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file, save_file  # here, as reading needs no part of it

    # safetensors 0.8.0 writes the buffer of a transposed or strided array as if it were contiguous (its issue 825).
    # (np.asarray with order="C" does what np.ascontiguousarray does, but a scalar stays a scalar.)
    tensors = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    with whole_file(path, CheckpointError) as beside:
        try:
            save_file(tensors, beside, metadata=metadata)
            back = load_file(beside)
        except SafetensorError as problem:  # raised for a full disk, too
            raise OSError(str(problem)) from None
        for name, array in tensors.items():
            copy = back[name]
            if (copy.dtype, copy.shape, copy.tobytes()) != (array.dtype, array.shape, array.tobytes()):
                raise CheckpointError(f"{path}: tensor {brief(name)} is not what was written, expected the same")
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(beside, 0o666 & ~umask)  # the library writes files for their owner alone


def to_bfloat16(array: np.ndarray) -> np.ndarray:
    """The bits of the nearest bfloat16 (a float32's upper half), ties to even.  float32  ->  uint16, same shape.

    Raises BundleError where the nearest is infinite (above 3.39e38).
    """
    bits = array.view(np.uint32)
    upper = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    if ((upper & 0x7F80) == 0x7F80).any():
        raise BundleError("a weight is beyond 3.39e38, expected numbers that bfloat16 can hold")
    return upper
