"""Rows of figures as text, CSV or JSON; and what a model is, in a row per part and in a line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from .errors import MinillmError, file_errors, whole_file


def cell(value: object, form: str) -> str:
    """A value as a table shows it; a dash for None."""
    return "-" if value is None else format(value, form)


def text_table(rows: Sequence[Mapping[str, object]], columns: Mapping[str, str]) -> str:
    """Rows as aligned text; columns {key: format}, a key being the heading too. The format "" is for text.

    A value of None is printed as a dash.
    """
    cells = [list(columns)] + [[cell(row.get(key), form) for key, form in columns.items()] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    left = [form == "" for form in columns.values()]
    return "\n".join(
        "  ".join(
            c.ljust(w) if is_left else c.rjust(w) for c, w, is_left in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in cells
    )


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
