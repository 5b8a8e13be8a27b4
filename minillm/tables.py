"""Rows of figures as aligned text, CSV or JSON.

A row is a dict. What a table shows of it is a second dict, {key of the row: (heading, format)}, in the order of the
columns: so a row keeps the keys of its file, and a table has the headings that a reader understands.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from .errors import MinillmError, show
from .files import whole_file

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


def growing_table(
    rows: Iterable[Mapping[str, object]], columns: Columns, widest: Mapping[str, object]
) -> Iterator[str]:
    """The lines of a table whose rows are still being made: the headings at once, then each row when it is known.

    widest: a row with the widest value that is expected in each column; a wider one moves what is to the right of it.
    """
    headings = [show(heading) for heading, _ in columns.values()]
    sizes = [cell(widest.get(key), form) for key, (_, form) in columns.items()]
    widths = [max(len(a), len(b)) for a, b in zip(headings, sizes, strict=True)]

    def line(cells: Iterable[str]) -> str:
        triples = zip(cells, widths, columns.values(), strict=True)
        return "  ".join(c.rjust(width) if form else c.ljust(width) for c, width, (_, form) in triples).rstrip()

    yield line(headings)
    for row in rows:
        yield line(cell(row.get(key), form) for key, (_, form) in columns.items())


def _aligned(cells: Sequence[str], left: bool) -> list[str]:
    """The cells of a column, equally wide."""
    width = max(map(len, cells))
    return [cell.ljust(width) if left else cell.rjust(width) for cell in cells]


def _width(columns: Sequence[Sequence[str]]) -> int:
    return sum(len(column[0]) + 2 for column in columns) - 2


def _parts(naming: list[list[str]], rest: list[list[str]]) -> list[list[list[str]]]:
    """The other columns in groups, each of which fits beside the naming ones; at least one column in each group.

    Where names take most of a line, as long names of a user can, a group still gets half of the usual width.
    """
    room = WIDTH - _width(naming)
    limit = WIDTH if room >= WIDTH // 4 else _width(naming) + WIDTH // 2
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
        keys = list(dict.fromkeys(key for row in rows for key in row))
        text = csv_line(keys) + "".join(csv_line([_csv_cell(row.get(key)) for key in keys]) for row in rows)
    with whole_file(path, MinillmError) as beside:
        # Half of a surrogate pair (in the name of a folder that is no UTF-8) is written as its escape.
        beside.write_bytes(text.encode("utf-8", "backslashreplace"))


def csv_line(cells: Sequence[object]) -> str:
    """One line of a CSV, with the same end on every system.

    (csv.writer quotes a carriage return only where it is a part of its own line end, and no reader forgives another.)
    """
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerow(cells)
    return buffer.getvalue()[:-2] + "\n"


def _csv_cell(value: object) -> object:
    if isinstance(value, str):
        return as_csv_text(value)
    return json.dumps(value) if isinstance(value, (dict, list, tuple)) else value


# What a spreadsheet would execute, and such a text with apostrophes in front. (https://owasp.org, "CSV Injection")
FORMULA = re.compile(r"'*[=+\-@\t\r\n]")


def as_csv_text(text: str) -> str:
    """A text as a CSV holds it: with an apostrophe in front where a spreadsheet would take it for a formula.

    >>> as_csv_text("=1+1")
    "'=1+1"
    """
    return "'" + text if FORMULA.match(text) else text


def from_csv_text(cell: str) -> str:
    """The inverse of ``as_csv_text``."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell
