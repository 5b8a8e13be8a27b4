"""What a predictor's file must hold: the dtype, the shape and the range of each table, known before a table is read.

Each kind says it once, with a letter for each size (Predictor.layout):

    {"A": Table("LDr"), "B": Table("LrF"), "scale": Table("LF", low=ABOVE_ZERO)}      float16 unless said otherwise

L, D and F are the model's number of layers, hidden size and number of neurons. Another letter is a size that only the
tables know, the rank r for instance: it must be the same wherever it stands. A file's header gives names, dtypes and
shapes. Where one of them is not as it must be, the file is refused before a table is read. Then the tables are read one
by one, and a value out of range (NaN is always out of range) is refused with the table's name and its layer.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from typing import NamedTuple

import numpy as np

from ..errors import CheckpointError
from ..fields import Fields, brief
from ..files import file_errors
from ..loading.tensors import TensorInfo

Shape = tuple[int, int, int]  # L, D, F
Header = Mapping[str, tuple[str, tuple[int, ...]]]  # name -> dtype, shape

NUMPY: dict[str, np.dtype] = {
    "U8": np.dtype("u1"),
    "U16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
LARGEST = float(np.finfo(np.float64).max)
ABOVE_ZERO = 5e-324  # the smallest number above 0


class Table(NamedTuple):
    """One table: a letter for each dimension, the dtypes that it may have, and the range of its values.

    group: of optional tables; those of one group stand in the file together, or none of them does.
    """

    dims: str
    dtypes: tuple[str, ...] = ("F16",)
    low: float = -LARGEST
    high: float = LARGEST
    group: str | None = None


class Layout(NamedTuple):
    """All tables of a file by name, and the sizes behind their letters.

    sizes: letter -> size. free: letter -> the sizes that it may have, where only the tables know it.
    """

    tables: dict[str, Table]
    sizes: dict[str, int]
    free: Mapping[str, Container[int]] = {}


def sizes_of(shape: Shape) -> dict[str, int]:
    """{"L": ..., "D": ..., "F": ...}: what every layout begins with."""
    return {"L": shape[0], "D": shape[1], "F": shape[2]}


def check_shape(read: Fields, shape: Shape) -> None:
    """Refuse settings whose shape is not ``shape``."""
    found = read.fields.get("shape")
    if not isinstance(found, list) or any(type(size) is not int for size in found) or found != list(shape):
        raise read.error("shape", f"{list(shape)}")


def check_header(layout: Layout, found: Header, source: str) -> None:
    """Refuse a file whose tables are not those of the layout, by names, dtypes and shapes. Raises CheckpointError."""
    tables, sizes = layout.tables, dict(layout.sizes)
    for name in found:
        if name not in tables:
            raise CheckpointError(f"{source}: tensor {brief(name)} is unknown, expected {', '.join(tables)}")
    groups = {table.group for name, table in tables.items() if name in found}
    for name, table in tables.items():
        if name not in found:
            if table.group is None or table.group in groups:
                raise CheckpointError(f"{source}: tensor {name} is missing, expected it in a predictor of this kind")
            continue
        dtype, shape = found[name]
        if dtype not in table.dtypes:
            raise CheckpointError(f"{source}: tensor {name} is {dtype}, expected {' or '.join(table.dtypes)}")
        expected = [sizes.get(letter, letter) for letter in table.dims]
        for letter, size in zip(table.dims, shape, strict=False):
            if letter not in sizes and size in layout.free[letter]:
                sizes[letter] = size
        if shape != tuple(sizes.get(letter) for letter in table.dims):
            raise CheckpointError(f"{source}: tensor {name} has shape {list(shape)}, expected {_in_words(expected)}")


def _in_words(shape: list[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def check_values(table: Table, name: str, array: np.ndarray, source: str) -> None:
    """Refuse a table with a value out of its range, layer by layer. Raises CheckpointError."""
    for index, part in enumerate(array):
        least, largest = float(part.min()), float(part.max())  # NaN where one of the values is
        if not (least >= table.low and largest <= table.high):
            found = least if not least >= table.low else largest
            where = f" in layer {index}" if table.dims[0] == "L" else ""
            raise CheckpointError(f"{source}: tensor {name} holds {found:g}{where}, expected {_range(table)}")


def _range(table: Table) -> str:
    if table.high < LARGEST:
        return f"numbers from {table.low:g} to {table.high:g}"
    return {0: "finite numbers from 0", ABOVE_ZERO: "finite numbers above 0"}.get(table.low, "finite numbers")


def read_table(table: Table, info: TensorInfo, source: str) -> np.ndarray:
    """One table of a file whose header was checked, and its values checked. Raises CheckpointError."""
    count = math.prod(info.shape)
    with file_errors(info.path, "read", CheckpointError), open(info.path, "rb") as file:
        file.seek(info.offset)
        array: np.ndarray = np.fromfile(file, NUMPY[info.dtype], count)
    if array.size != count:
        raise CheckpointError(f"{source}: ends inside tensor {brief(info.name)}, expected {info.nbytes} bytes")
    array = array.reshape(info.shape)
    if table.dtypes != ("U8",):  # every byte is a good one
        check_values(table, info.name, array, source)
    return array
