"""Broken files that keep the structure of good ones: strategies for Hypothesis, and the property that a parser has.

A parser that is fed random bytes refuses nearly all of them at the first line. What finds faults is a file that is
right but for one or two things: a field that stands twice, a number that is NaN, a table of another shape whose bytes
still add up. Each strategy takes a good file and gives bytes of a changed one:

    json_files          fields dropped, repeated, renamed, of another type or value, at any depth
    csv_files           columns and cells changed; separators, line ends and quotes as spreadsheets write them
    safetensors_files   (fuzz_arrays.py) header, JSON inside its metadata, tables and their values changed
    npz_files           (fuzz_arrays.py) members and their arrays changed

A test gives a good file, the parser, and a check of its own for what may be accepted:

    @fuzz.examples
    def test_...(examples, tmp_path):
        fuzz.holds(examples, fuzz.json_files(GOOD), tmp_path / "t.json", Thresholds.load, valid)

The property: for every file the parser raises one short sentence, or gives content that ``valid`` accepts.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minillm.errors import MinillmError

T = TypeVar("T")
MEMORY = 300_000_000  # bytes that a parser may take at most
QUICK, THOROUGH = 80, int(os.environ.get("FUZZ_EXAMPLES", "300"))
examples = pytest.mark.parametrize("examples", [QUICK, pytest.param(THOROUGH, marks=pytest.mark.slow)])

# ---- the property ----------------------------------------------------------------------------------------------------


def holds(
    examples: int, files: st.SearchStrategy[bytes], path: Path, parse: Callable[[Path], T], valid: Callable[[T], object]
) -> Counter:
    """Write and parse that number of files: each gives one sentence, or content that ``valid`` accepts.

    valid raises AssertionError, or gives False, for content that should not have been accepted. QUICK files, or fewer,
    are the same in every run. ->  how many were "accepted" and "refused": where all are refused, little is shown.
    """
    counts: Counter = Counter()

    def one(raw: bytes) -> None:
        path.write_bytes(raw)
        counts[parsed(parse, path, valid)] += 1

    how = settings(
        max_examples=examples, derandomize=examples <= QUICK, deadline=None, database=None, print_blob=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    how(given(files)(one))()
    return counts


def parsed(parse: Callable[[Path], T], path: Path, valid: Callable[[T], object]) -> str:
    """Parse one file: "refused" in one printable sentence of at most 1,000 characters, or "accepted" by ``valid``."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # NumPy's: a sum overflowed, a value was no number
        try:
            found = parse(path)
        except MinillmError as error:
            said = str(error)
            assert said.isprintable() and 10 < len(said) <= 1_000, said
            return "refused"
        assert valid(found) is not False, f"accepted: {found!r:.300}"
    return "accepted"


def memory_of(parse: Callable[[Path], object], path: Path) -> int:
    """The largest number of bytes that Python and NumPy held while a file was parsed, or refused."""
    tracemalloc.start()
    try:
        with suppress(MinillmError):
            parse(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def huge(path: Path, raw: bytes, size: int = 2_000_000_000) -> Path:
    """A file that begins with these bytes and has ``size`` bytes, which take no room on the disk."""
    path.write_bytes(raw)
    os.truncate(path, size)
    return path


# ---- JSON ------------------------------------------------------------------------------------------------------------


class Raw(str):
    """JSON text that is written as it stands: what Python's json would not write."""


class Object(list):
    """The fields of an object as [name, value] pairs, so that a name may stand twice."""


STRANGE = [
    *map(Raw, ("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "-0", "-0.0", "1e-320", "1e38", "3.5e38", "1e308")),
    *map(Raw, ("9" * 400, "9" * 5_000, "[" * 3_000 + "]" * 3_000, '{"a":' * 300 + "1" + "}" * 300, '"\\ud800"')),
    True, False, None, 0, 1, -1, 2, 3, 7, 9, 255, 2**31, 2**63, 2**64, -(2**63), 0.0, 0.5, 1.0, -1.0, 1.5, 1e30,
    "", "0", "1", "x", "x" * 9_000, "nan", "a\nb", "\x1b[31m", "\u202e", "../../x", "0" * 64, "f" * 64, "F" * 64,
    [], [0], [1], [[]], [None], ["x"], [1, 2, 3], [0] * 300, Object(), Object([["a", 1]]), Object([["", None]]),
]  # fmt: skip


def tree(value: Any) -> Any:
    """JSON values with their objects as Object."""
    if isinstance(value, dict):
        return Object([name, tree(item)] for name, item in value.items())
    if isinstance(value, Object):
        return Object([name, tree(item)] for name, item in value)
    return [tree(item) for item in value] if isinstance(value, list | tuple) else value


def encoded(node: Any) -> str:
    """The JSON text of a tree."""
    if isinstance(node, Raw):
        return str(node)
    if isinstance(node, Object):
        return "{" + ", ".join(f"{json.dumps(name)}: {encoded(item)}" for name, item in node) + "}"
    return "[" + ", ".join(map(encoded, node)) + "]" if isinstance(node, list) else json.dumps(node)


def places(node: Any) -> list[tuple[list, int]]:
    """Every field and item of a tree: the list that it stands in, and where."""
    found = []
    for index, item in enumerate(node if isinstance(node, list) else []):
        found += [(node, index), *places(item[1] if isinstance(node, Object) else item)]
    return found


def near(value: Any) -> list:
    """Values that look like this one and are not."""
    if isinstance(value, bool) or value is None:
        return [str(value).lower(), int(bool(value))]
    if isinstance(value, int | float):
        return [value + 1, value - 1, -value, value * 2, value / 2, float(value), str(value), [value], value * 1e30]
    if isinstance(value, str):
        return [value.upper(), value[:-1], value + " ", value + "x", value[::-1], [value], list(value[:9])]
    if isinstance(value, list) and not isinstance(value, Object):
        return [value[:-1], value + value[-1:], value[::-1], [value], value * 2, value[:1]]
    return [[item for _, item in value], [value], encoded(value)]


def _value_of(place: tuple[list, int]) -> Any:
    return place[0][place[1]][1] if isinstance(place[0], Object) else place[0][place[1]]


def change_json(draw: st.DrawFn, node: Any) -> None:
    """One change of a tree, in place."""
    if not (where := places(node)):
        return
    place = (holder, index) = draw(st.sampled_from(where))
    how = draw(
        st.sampled_from(["strange", "near", "near", "other", "drop", "twice", "twice, changed", "rename", "add"])
    )
    choices = {
        "strange": STRANGE, "twice, changed": STRANGE, "near": near(_value_of(place)), "add": STRANGE,
        "other": [_value_of(other) for other in where],
    }  # fmt: skip
    value = copy.deepcopy(tree(draw(st.sampled_from(choices[how]))) if how in choices else _value_of(place))
    named = isinstance(holder, Object)
    if how == "drop":
        del holder[index]
    elif how.startswith("twice"):
        holder.insert(index + draw(st.integers(0, 1)), [holder[index][0], value] if named else value)
    elif how == "add":
        holder.insert(
            index, [draw(st.sampled_from(["x", "", "model", "é" * 400, "\x1b[2J"])), value] if named else value
        )
    elif how == "rename" and named:
        holder[index] = [draw(st.sampled_from(near(holder[index][0])[:5])), value]
    elif how != "rename":
        holder[index] = [holder[index][0], value] if named else value


def change_bytes(draw: st.DrawFn, raw: bytes) -> bytes:
    """Now and then: the file cut short, a byte changed, something in front or behind."""
    how = draw(st.sampled_from([*["no"] * 12, "cut", "byte", "mark", "behind"]))
    at = draw(st.integers(0, max(0, len(raw) - 1))) if how in ("cut", "byte") else 0
    changed = {"cut": raw[:at], "mark": b"\xef\xbb\xbf" + raw, "behind": raw + b"\0\n"}
    if how == "byte":
        return raw[:at] + bytes([draw(st.integers(0, 255))]) + raw[at + 1 :]
    return changed.get(how, raw)


@st.composite
def json_files(draw: st.DrawFn, good: Any, changes: int = 3) -> bytes:
    """The bytes of a JSON file with up to ``changes`` changes."""
    root = [tree(json.loads(json.dumps(good)))]
    for _ in range(draw(st.integers(0, changes))):
        change_json(draw, root[0] if root and draw(st.integers(0, 30)) else root)
    text = "\n".join(map(encoded, root)) if len(root) != 1 else encoded(root[0])
    return change_bytes(draw, text.encode("utf-8", "surrogatepass"))


# ---- CSV -------------------------------------------------------------------------------------------------------------

CELLS = ["", " ", "nan", "inf", "-inf", "NaN", "1e400", "x", "0", "-1", "1", "0.5", "1,5", "true", "null", "[]", "{}",
         '"', "a\nb", "=1+1", "[1, NaN]", "9" * 400, "\x1b[31m", "\ufeff", "x" * 9_000]  # fmt: skip


def change_rows(draw: st.DrawFn, rows: list[list[str]]) -> None:
    """One change of a table's rows, the heading among them, in place."""
    how = draw(
        st.sampled_from(["cell", "cell", "cell", "drop", "twice", "swap", "rename", "short", "long", "row", "again"])
    )
    row = draw(st.sampled_from(rows))
    column = draw(st.integers(0, max(0, len(row) - 1)))
    if how == "cell" and row:
        row[column] = draw(st.sampled_from([*CELLS, row[column - 1], row[column] + "0", row[column][:-1]]))
    elif how == "short":
        del row[column:]
    elif how == "long":
        row.append(draw(st.sampled_from(CELLS)))
    elif how == "row":
        rows.remove(row)
    elif how == "again":
        rows.append(list(row))
    elif how == "rename" and rows[0]:
        rows[0][column % len(rows[0])] = draw(st.sampled_from([*CELLS, *rows[0], *(name.upper() for name in rows[0])]))
    else:  # a whole column
        for each in rows:
            if column < len(each):
                cell = each.pop(column)
                again = {"drop": [], "twice": [(0, cell), (len(each), cell)], "swap": [(0, cell)]}.get(
                    how, [(column, cell)]
                )
                for at, value in again:
                    each.insert(at, value)


@st.composite
def csv_files(draw: st.DrawFn, good: bytes) -> bytes:
    """The bytes of a CSV file with a few changes, written as programs and spreadsheets do."""
    rows = list(csv.reader(io.StringIO(good.decode("utf-8-sig"), newline="")))
    for _ in range(draw(st.integers(0, 3))):
        if rows:
            change_rows(draw, rows)
    out = io.StringIO(newline="")
    csv.writer(
        out, delimiter=draw(st.sampled_from([",", ",", ",", ";", "\t"])),
        lineterminator=draw(st.sampled_from(["\n", "\n", "\r\n", "\r"])),
        quoting=draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
    ).writerows(rows)  # fmt: skip
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]))
    return change_bytes(draw, out.getvalue().encode(encoding, "replace"))
