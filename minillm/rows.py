"""Rows that are read back from a CSV or JSON file: each cell is checked, like the fields of a config.

Such a file may have been opened and saved since it was written. A table of columns says what each cell holds:

    {"policy": TEXT, "neuron_sparsity": SHARE, "tokens": whole(1), "level": SHARE.or_empty()}

A row is given back only where every one of these columns is there and every cell holds what its column says; anything
else is one sentence that names row and column. The same table serves both kinds of file. What a spreadsheet changes
without changing the values is understood: a byte order mark, semicolons or tabs between cells, line ends, empty rows
and columns behind the last one, and commas in place of decimal points.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from .errors import MinillmError
from .fields import brief, parse_value
from .files import read_text
from .tables import check_ending, from_csv_text

ROWS_LIMIT = 100_000_000  # bytes of a file of rows; one of 20,000 documents and 100 rows has half of it


class Kind(NamedTuple):
    """What the cells of a column hold.

    words: for a sentence ("a share from 0 to 1"). check: gives the value as it is used; ValueError for another one.
    is_text: the cell of a CSV is taken as it stands; any other cell is a number or JSON. may_be_empty: then it is None.
    may_be_absent: an older file lacks the column.
    """

    words: str
    check: Callable[[object], object]
    is_text: bool = False
    may_be_empty: bool = False
    may_be_absent: bool = False

    def or_empty(self) -> Kind:
        """The same kind, where a cell may be empty."""
        return self._replace(may_be_empty=True, words=f"{self.words}, or nothing")

    def or_absent(self) -> Kind:
        """The same kind, where an older file lacks the column."""
        return self._replace(may_be_absent=True)


def numbers(low: float, high: float, words: str) -> Kind:
    """Finite numbers from ``low`` to ``high``."""

    return Kind(words, lambda value: number_between(value, low, high))


def number_between(value: object, low: float, high: float) -> float:
    """A finite number from ``low`` to ``high``. Raises ValueError for anything else, OverflowError above 1e308."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError
    if not low <= value <= high:
        raise ValueError
    return float(value)


def whole(low: int) -> Kind:
    """A whole number of at least ``low``; 3.0 is 3, because some programs write all numbers in this way."""

    def check(value: object) -> int:
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value < 2**53 or value % 1:
            raise ValueError
        return int(value)

    return Kind(f"a whole number, at least {low}", check)


def one_of(*choices: str) -> Kind:
    """One of these texts."""

    def check(value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError
        return value

    return Kind(f"one of {', '.join(choices)}", check, is_text=True)


def matching(pattern: str, words: str) -> Kind:
    """A text that this regular expression describes."""

    def check(value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value, re.DOTALL):
            raise ValueError
        return value

    return Kind(words, check, is_text=True)


def list_of(kind: Kind, words: str) -> Kind:
    """A list, not empty, whose items are of that kind."""

    def check(value: object) -> list:
        if not isinstance(value, list) or not value:
            raise ValueError
        return [kind.check(item) for item in value]

    return Kind(words, check)


def _yes_or_no(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


TEXT = matching(r".+", "a text")
SHARE = numbers(0, 1, "a share from 0 to 1")
FINITE = numbers(-math.inf, math.inf, "a finite number")
NOT_NEGATIVE = numbers(0, math.inf, "a finite number, at least 0")
YES_OR_NO = Kind("true or false", _yes_or_no)
Kinds = Mapping[str, Kind]


def load_rows(path: str | Path, columns: Kinds, hint: str = "") -> list[dict]:
    """Read rows that ``save_rows`` wrote: the same values, to the last bit. An empty file holds no rows.

    columns: what each column holds; no other may be there. hint: what an error's sentence ends with.
    Raises MinillmError, in one sentence that names row and column, for a file that holds anything else.
    """
    path = Path(path)
    check_ending(path)
    source = read_text(path, MinillmError, ROWS_LIMIT)
    if not source.strip():
        return []
    if path.suffix == ".csv":
        cells = _csv_rows(source, path, columns)
    else:
        found = parse_value(source.encode(), str(path), MinillmError)
        if not isinstance(found, list):
            raise MinillmError(f"{path}: holds a JSON {type(found).__name__}, expected a list with one object per row")
        cells = found
    return [checked_row(row, columns, f"{path}: row {number}", hint) for number, row in enumerate(cells, start=1)]


def checked_row(row: object, columns: Kinds, where: str, hint: str = "") -> dict:
    """One row with the values of all its columns. where: the file and the row, for an error's sentence."""
    ending = f"; {hint}" if hint else ""
    if not isinstance(row, dict):
        raise MinillmError(f"{where} is {brief(row)}, expected an object{ending}")
    if unknown := [key for key in row if key not in columns]:
        raise MinillmError(f"{where} holds {brief(unknown[0])}, expected only {_listed(columns)}{ending}")
    checked: dict[str, object] = {}
    for key, kind in columns.items():
        value = row.get(key)
        if value is None:
            if kind.may_be_absent:
                continue
            if not (kind.may_be_empty and key in row):
                raise MinillmError(f"{where} has no {key}, expected {kind.words}{ending}")
            checked[key] = None
            continue
        try:
            checked[key] = kind.check(value)
        except (ValueError, OverflowError):
            raise MinillmError(f"{where}: {key} is {brief(value)}, expected {kind.words}{ending}") from None
    return checked


def _listed(columns: Kinds) -> str:
    names = list(columns)
    return ", ".join(names) if len(names) < 8 else f"{', '.join(names[:6])} and so on to {names[-1]}"


# ---- CSV -------------------------------------------------------------------------------------------------------------

MARKS = ",;\t"  # between cells
POINT, COMMA = re.compile(r"[+-]?\d+\.\d+([eE][+-]?\d+)?"), re.compile(r"[+-]?\d+,\d+([eE][+-]?\d+)?")


def _csv_rows(source: str, path: Path, columns: Kinds) -> list[dict[str, object]]:
    """The rows of a CSV's text, {heading: value}; a cell that is neither number nor JSON stays a text."""
    before = csv.field_size_limit(2**31 - 1)  # of a cell; the usual 128 KiB are a few thousand documents
    try:
        first = re.split(r"[\r\n]", source.lstrip("\r\n"), maxsplit=1)[0]
        headings = {mark: next(csv.reader([first], delimiter=mark)) for mark in MARKS}  # not strict: with quotes, too
        mark = max(MARKS, key=lambda mark: len(columns.keys() & set(headings[mark])))
        reader = csv.reader(io.StringIO(source, newline=""), delimiter=mark, strict=True)
        heading, *lines = (line for line in reader if any(line))
    except (csv.Error, ValueError) as problem:  # ValueError: every cell is empty
        raise MinillmError(f"{path}: is no CSV table ({problem}), expected a heading for each column") from None
    finally:
        csv.field_size_limit(before)
    heading = heading[: max((i + 1 for i, name in enumerate(heading) if name), default=0)]
    if not lines and not columns.keys() & set(heading):  # some text, which would be lost
        raise MinillmError(f"{path}: has the heading {brief(heading[0])}, expected {_listed(columns)}")
    if twice := [name for i, name in enumerate(heading) if name in heading[:i]]:
        raise MinillmError(f"{path}: the column {brief(twice[0])} stands twice, expected once")
    for number, line in enumerate(lines, start=1):
        if len(line) < len(heading) or any(line[len(heading) :]):
            expected = f"expected one for each of {len(heading)} columns"
            raise MinillmError(f"{path}: row {number} has {len(line)} cells, {expected}")
    numbers = [cell for line in lines for name, cell in zip(heading, line, strict=False) if not _is_text(columns, name)]
    with_comma = next(filter(COMMA.fullmatch, numbers), "") if mark != "," else ""
    if with_comma and (with_point := next(filter(POINT.fullmatch, numbers), "")):
        raise MinillmError(f"{path}: holds {with_comma} and {with_point}, expected one way of writing decimals")
    read = _with_commas if with_comma else _json_cell
    return [
        {
            name: None if not cell else from_csv_text(cell) if _is_text(columns, name) else read(cell)
            for name, cell in zip(heading, line, strict=False)
        }
        for line in lines
    ]


def _is_text(columns: Kinds, name: str) -> bool:
    return name not in columns or columns[name].is_text


def _with_commas(cell: str) -> object:
    return _json_cell(cell.replace(",", ".") if COMMA.fullmatch(cell) else cell)


def _json_cell(cell: str) -> object:
    try:
        return parse_value(cell.encode(), "", MinillmError)
    except MinillmError:
        return cell
