"""Named arrays in one .npz file: written whole, and checked before a number is unpacked.

An .npz file is a zip archive. Each of its members, NAME.npy, is one array: a short header with dtype, order and shape,
then the numbers. A hostile archive of a few kilobytes may unpack to terabytes, and a hostile array may hold a program
(a pickled object). So everything that can be said without unpacking is checked first:

    names       each ends in .npy and stands once
    headers     plain numbers (bool, integer, float) of a shape whose bytes are the member's
    sizes       all arrays together have at most UNPACKED bytes, or at most RATIO times the bytes of the file

(An archive that is not compressed has the size of its arrays. Weights and activations hardly get smaller by
compression, masks about 8 times.)
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .errors import TraceError
from .files import regular_file, whole_file

if TYPE_CHECKING:
    import zipfile  # imported where it is used: every model needs this module, few runs need an archive

UNPACKED, RATIO = 1 << 28, 20  # bytes; unpacked over packed
HEADER, MEMBERS = 10_000, 100_000  # at most so many bytes of one header, so many arrays of one file


def save_arrays(path: str | Path, arrays: Mapping[str, np.ndarray], comment: bytes = b"") -> None:
    """Write named arrays as .npz, first to a file beside the target, so that nothing is ever half written.

    comment: up to 65,535 bytes that the archive carries; whoever reads only the arrays does not see them.
    """
    with whole_file(path, TraceError) as beside:
        with open(beside, "wb") as file:
            save: Callable[..., None] = np.savez  # its own signature takes every array for its one option, a bool
            save(file, **arrays)
        if comment:
            import zipfile

            with zipfile.ZipFile(beside, "a") as archive:
                archive.comment = comment


def load_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Read an .npz file of plain arrays of numbers; pickled objects are refused. Raises TraceError."""
    return load_archive(path)[0]


def load_archive(path: str | Path) -> tuple[dict[str, np.ndarray], bytes]:
    """The arrays of an .npz file and its comment. Raises TraceError, in one sentence."""
    import zipfile

    path = regular_file(path, TraceError)
    try:
        with open(path, "rb") as file:
            if file.read(6) == b"\x93NUMPY":
                raise TraceError(f"{path}: holds a single array, expected an .npz file of named arrays")
        with zipfile.ZipFile(path) as archive:
            names = _checked_names(path, archive)
            _check_sizes(path, archive)
            arrays = {}
            for name, member in names.items():
                with archive.open(member) as file:
                    arrays[name] = np.lib.format.read_array(file, allow_pickle=False, max_header_size=HEADER)
            return arrays, archive.comment
    except TraceError:
        raise
    except Exception as error:  # NumPy, zipfile and zlib each raise several kinds for a broken file
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise TraceError(f"{path}: not an .npz file of plain arrays ({why})") from error


def _checked_names(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """{name of the array: its member}. Raises TraceError."""
    members = archive.infolist()
    if len(members) > MEMBERS:
        raise TraceError(f"{path}: holds {len(members):,} arrays, expected at most {MEMBERS:,}")
    if (promised := _promised(path, archive)) != min(len(members), 0xFFFF):
        raise TraceError(f"{path}: lists {len(members)} arrays and ends with a count of {promised}: it is damaged")
    names: dict[str, zipfile.ZipInfo] = {}
    for member in members:
        name = member.filename
        if not name.endswith(".npy"):
            raise TraceError(f"{path}: holds {name[:80]!r}, expected only arrays (.npy)")
        if name.removesuffix(".npy") in names:
            raise TraceError(f"{path}: holds {name[:80]!r} twice, expected each array once")
        names[name.removesuffix(".npy")] = member
    return names


def _promised(path: Path, archive: zipfile.ZipFile) -> int:
    """The number of members that the last record of the archive gives (at most 0xFFFF).

    zipfile does not look at it. Where one byte of the list of members is wrong, some of them are missing from it.
    """
    with open(path, "rb") as file:
        file.seek(-22 - len(archive.comment), os.SEEK_END)
        return int.from_bytes(file.read(12)[10:], "little")


def _check_sizes(path: Path, archive: zipfile.ZipFile) -> None:
    """Raise TraceError where an array is not what its header says, or all of them together are too large."""
    limit = max(UNPACKED, RATIO * path.stat().st_size)
    if (total := sum(member.file_size for member in archive.infolist())) > limit:
        raise TraceError(f"{path}: its arrays unpack to {total:,} bytes, expected at most {limit:,} from such a file")
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    for member in archive.infolist():
        with archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            if version not in read:
                raise TraceError(
                    f"{path}: {member.filename[:80]!r} has .npy version {version}, expected (1, 0) or (2, 0)"
                )
            shape, _, dtype = read[version](file, max_header_size=HEADER)
            nbytes = member.file_size - file.tell()
        if dtype.kind not in "biuf":
            raise TraceError(f"{path}: {member.filename[:80]!r} is {dtype}, expected numbers")
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != nbytes:
            expected = f"expected the bytes of {dtype}{list(shape)}"
            raise TraceError(f"{path}: {member.filename[:80]!r} has {nbytes:,} bytes, {expected}")
