"""Rows of figures as aligned text, CSV or JSON.

A row is a dict. What a table shows of it is a second dict, {key of the row: (heading, format)}, in the order of the
columns: so a row keeps the keys of its file, and a table has the headings that a reader understands.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from .errors import MinillmError, show
from .files import file_errors, whole_file

WIDTH = 100  # characters of a line of text; a wider table is split
Columns = Mapping[str, tuple[str, str]]  # {key of a row: (heading, format)}; the format "" is for text


def keys_as_headings(formats: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Columns for {key: format}, where each key is a good heading as it is."""
    return {key: (key, form) for key, form in formats.items()}


def cell(value: object, form: str) -> str:
    """A value as a table shows it; a dash for None, escapes for what would steer a terminal."""
    return "-" if value is None else show(format(value, form))


def text_table(rows: Sequence[Mapping[str, object]], columns: Columns, names: int = 1) -> str:
    """Rows as aligned text, under one line of headings: text on the left of its column, numbers on the right.

    A value of None, or a key that a row does not have, is printed as a dash. A table that is wider than WIDTH is
    split: parts stand below each other, and the first ``names`` columns, which name the row, come again in each part.
    """
    ready = [
        _aligned([show(heading), *(cell(row.get(key), form) for row in rows)], form == "")
        for key, (heading, form) in columns.items()
    ]
    naming, rest = ready[:names], ready[names:]
    parts = _parts(naming, rest) if _width(ready) > WIDTH else [rest]
    tables = ([*naming, *part] for part in parts)
    return "\n\n".join("\n".join("  ".join(cells).rstrip() for cells in zip(*part, strict=True)) for part in tables)


def _aligned(cells: Sequence[str], left: bool) -> list[str]:
    """The cells of a column, equally wide."""
    width = max(map(len, cells))
    return [cell.ljust(width) if left else cell.rjust(width) for cell in cells]


def _width(columns: Sequence[Sequence[str]]) -> int:
    return sum(len(column[0]) + 2 for column in columns) - 2


def _parts(naming: list[list[str]], rest: list[list[str]]) -> list[list[list[str]]]:
    """The other columns in groups, each of which fits beside the naming ones; at least one column in each group.

    Where a user's long name takes most of a line, a group still gets half of the usual width.
    """
    limit = max(WIDTH, _width(naming) + WIDTH // 2)
    parts: list[list[list[str]]] = [[]]
    for column in rest:
        if parts[-1] and _width([*naming, *parts[-1], column]) > limit:
            parts.append([])
        parts[-1].append(column)
    return parts


def check_ending(path: str | Path) -> None:
    """Raise MinillmError for a name that ends in neither .csv nor .json."""
    path = Path(path)
    if path.suffix not in (".csv", ".json"):
        raise MinillmError(f"{path}: the name ends in {path.suffix or 'nothing'}, expected .csv or .json")


def json_rows(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as a JSON list, one row per line."""
    return "[" + ",\n ".join(json.dumps(row) for row in rows) + "]"


def save_rows(path: str | Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows as .csv or .json, by the name's ending; first beside the target, then renamed.

    Values that are no plain numbers or text are written as JSON inside the CSV. Raises MinillmError.
    """
    path = Path(path)
    check_ending(path)
    if path.suffix == ".json":
        text = json_rows(rows) + "\n"
    else:
        buffer = io.StringIO()
        writer = csv.DictWriter(
            buffer, fieldnames=list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n"
        )
        writer.writeheader()
        for row in rows:
            writer.writerow({k: json.dumps(v) if isinstance(v, (dict, list, tuple)) else v for k, v in row.items()})
        text = buffer.getvalue()
    with whole_file(path, MinillmError) as beside:
        beside.write_bytes(text.encode())


def load_rows(path: str | Path, text: Collection[str]) -> list[dict]:
    """Read back what ``save_rows`` wrote: the same values, to the last bit; an empty file holds no rows.

    text: the columns of a CSV that hold text; every other cell is a number or JSON, and an empty cell is None.
    Raises MinillmError for whatever is not such a file.
    """
    path = Path(path)
    check_ending(path)
    with file_errors(path, "read", MinillmError):
        data = path.read_bytes()
    kind = "a JSON list with one object per row" if path.suffix == ".json" else "a CSV table"
    try:
        content = data.decode()
        if not content.strip():
            return []
        if path.suffix == ".json":
            rows = json.loads(content)
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise ValueError("another value")
            return rows
        before = csv.field_size_limit(2**31 - 1)  # of a cell; the usual 128 KiB are a few thousand documents
        try:
            heading, *lines = csv.reader(io.StringIO(content, newline=""), strict=True)
        finally:
            csv.field_size_limit(before)
        return [
            {key: _value(cell, key in text) for key, cell in zip(heading, line, strict=True)} for line in lines if line
        ]
    except (ValueError, RecursionError, csv.Error) as problem:  # ValueError: no UTF-8, no JSON, a line too short
        raise MinillmError(f"{path}: cannot be read as rows ({problem}), expected {kind}") from None


def _value(cell: str, is_text: bool) -> object:
    if not cell:
        return None
    return cell if is_text else json.loads(cell)
