"""Broken files of arrays that keep the structure of good ones: safetensors and npz. See fuzz.py."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile
from contextlib import suppress

import numpy as np
from fuzz import Object, change_bytes, change_json, encoded, near, tree
from hypothesis import strategies as st

# ---- safetensors -----------------------------------------------------------------------------------------------------

SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4,
         "F32": 4, "U64": 8, "I64": 8, "F64": 8}  # fmt: skip
NUMBERS = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4", "U8": "u1", "U16": "<u2"}
VALUES = [np.nan, np.inf, -np.inf, 0, -1, 1, 2, 255, 1e30, -1e30, 1e300, 6e4, 1e-30]


def unpacked(raw: bytes) -> tuple[dict, dict[str, tuple[str, list[int], bytes]]]:
    """The metadata of a good file, and name -> (dtype, shape, bytes)."""
    length = struct.unpack("<Q", raw[:8])[0]
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    metadata = header.pop("__metadata__", {})
    tables = {name: (e["dtype"], e["shape"], data[slice(*e["data_offsets"])]) for name, e in header.items()}
    return metadata, tables


def change_table(draw: st.DrawFn, tables: dict[str, tuple[str, list[int], bytes]]) -> None:
    """One change of the tables after which shapes, dtypes and bytes still agree."""
    name = draw(st.sampled_from(sorted(tables)))
    dtype, shape, raw = tables[name]
    how = draw(st.sampled_from(["value", "value", "value", "dtype", "shape", "longer", "drop", "rename", "add"]))
    if how == "value" and dtype in NUMBERS and raw:
        array = np.frombuffer(raw, NUMBERS[dtype]).copy()
        with np.errstate(all="ignore"):
            value = np.array(draw(st.sampled_from(VALUES))).astype(array.dtype)
        array[draw(st.sampled_from([0, array.size // 2, array.size - 1]))] = value
        tables[name] = (dtype, shape, array.tobytes())
    elif how == "dtype" and shape:
        other = draw(st.sampled_from(sorted(SIZES)))
        if (len(raw) * 1) % (SIZES[other] * max(1, int(np.prod(shape[:-1])))) == 0:
            last = len(raw) // SIZES[other] // max(1, int(np.prod(shape[:-1])))
            tables[name] = (other, [*shape[:-1], last], raw)
    elif how == "shape":
        shapes = [shape[::-1], [int(np.prod(shape))], [1, *shape], [*shape, 1], [*shape[:-2], -1, 1]]
        new = draw(st.sampled_from(shapes))
        tables[name] = (dtype, [int(np.prod(shape[-2:])) if size == -1 else size for size in new], raw)
    elif how == "longer" and shape and shape[0]:
        part, more = len(raw) // shape[0], draw(st.sampled_from([-1, 1]))
        tables[name] = (
            dtype,
            [shape[0] + more, *shape[1:]],
            raw[: part * (shape[0] + more)] + raw[:part][: part * more],
        )
    elif how == "drop":
        del tables[name]
    elif how == "rename":
        tables[draw(st.sampled_from(near(name)[:5]))] = tables.pop(name)
    elif how == "add":
        others = [name + "x", "x", "", "table.bias", "table.gate_bias", "table.up_error", "cutoffs"]
        tables.setdefault(draw(st.sampled_from(others)), tables[name])


def packed(metadata: dict, tables: dict[str, tuple[str, list[int], bytes]]) -> tuple[Object, bytes]:
    """The header, as a tree, and the data of a file."""
    header, data = Object([["__metadata__", tree(metadata)]]), b""
    for name, (dtype, shape, raw) in tables.items():
        offsets = [len(data), len(data) + len(raw)]
        header.append([name, Object([["dtype", dtype], ["shape", list(shape)], ["data_offsets", offsets]])])
        data += raw
    return header, data


def with_header(header: str, data: bytes, length: int | None = None) -> bytes:
    """A safetensors file of a header's text and the tables' bytes, perhaps with a false length."""
    raw = header.encode("utf-8", "surrogatepass")
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


@st.composite
def safetensors_files(draw: st.DrawFn, good: bytes, inside: str | None = None) -> bytes:
    """The bytes of a safetensors file with a few changes. inside: the metadata's field that holds JSON itself."""
    metadata, tables = unpacked(good)
    if inside is not None and draw(st.booleans()):
        about = [tree(json.loads(metadata[inside]))]
        for _ in range(draw(st.integers(1, 2))):
            change_json(draw, about[0] if about and draw(st.integers(0, 30)) else about)
        metadata[inside] = encoded(about[0]) if about else ""
    for _ in range(draw(st.integers(0, 2))):
        if tables:
            change_table(draw, tables)
    header, data = packed(metadata, tables)
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 1, 2]))):
        change_json(draw, header)
    length = draw(st.sampled_from([*[None] * 20, 0, 7, 2**40, 2**63]))
    return change_bytes(draw, with_header(encoded(header), data, length))


def declared(metadata: dict[str, str], tables: dict[str, tuple[str, list[int]]]) -> bytes:
    """The beginning of a safetensors file that holds these tables; the file's length is 8, the header and their bytes.

    For ``huge``: what the header says is true, and nothing of the tables is written.
    """
    header, end = {"__metadata__": metadata}, 0
    for name, (dtype, shape) in tables.items():
        begin, end = end, end + SIZES[dtype] * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    return with_header(json.dumps(header), b"")


# ---- npz -------------------------------------------------------------------------------------------------------------

HEADERS = [
    "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000,), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }",
    "{'descr': '<U999999', 'fortran_order': False, 'shape': (9,), }",
]


def change_member(draw: st.DrawFn, members: list[tuple[str, bytes]]) -> None:
    """One change of the members of an archive, in place."""
    index = draw(st.integers(0, len(members) - 1))
    name, raw = members[index]
    how = draw(st.sampled_from(["value", "value", "dtype", "shape", "header", "drop", "twice", "rename", "bytes"]))
    if how == "drop":
        del members[index]
    elif how == "twice":
        members.append((name, raw))
    elif how == "rename":
        members[index] = (
            draw(st.sampled_from([*near(name)[:4], "x.npy", "../x.npy", "x\x1b[2J.npy", "x\ny.npy"])),
            raw,
        )
    elif how == "header":
        head = draw(st.sampled_from(HEADERS)).encode()
        members[index] = (name, b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + raw[-64:])
    elif how == "bytes":
        members[index] = (name, change_bytes(draw, raw))
    elif name.endswith(".npy") and b"1000000000" not in raw:  # a header from HEADERS: 8 GB would be allocated for it
        with suppress(ValueError, TypeError):  # what an earlier change broke, and what cannot be cast
            array = np.lib.format.read_array(io.BytesIO(raw))
            with np.errstate(all="ignore"):
                if how == "value" and array.size:
                    array.flat[draw(st.integers(0, array.size - 1))] = draw(st.sampled_from(VALUES))
                elif how == "dtype":
                    array = array.astype(draw(st.sampled_from(["f2", "f8", "i8", "?", "c16", "U4", "M8[s]"])))
                elif how == "shape":
                    array = draw(st.sampled_from([array.T, array.ravel(), array[None], array[:0], array[..., None]]))
            out = io.BytesIO()
            np.lib.format.write_array(out, array)
            members[index] = (name, out.getvalue())


@st.composite
def npz_files(draw: st.DrawFn, good: bytes) -> bytes:
    """The bytes of an .npz archive with a few changes."""
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    for _ in range(draw(st.integers(0, 3))):
        if members:
            change_member(draw, members)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))) as archive:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a name that stands twice
            for name, raw in members:
                archive.writestr(name, raw)
    return change_bytes(draw, out.getvalue())
