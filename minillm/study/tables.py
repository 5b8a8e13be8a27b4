"""Rows of figures as text, CSV or JSON."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import MinillmError, whole_file


def text_table(rows: Sequence[Mapping[str, object]], columns: Mapping[str, str]) -> str:
    """Rows as aligned text; columns {key: format}, a key being the heading too. The format "" is for text.

    A value of None is printed as a dash.
    """

    def cell(value: object, form: str) -> str:
        return "-" if value is None else format(value, form)

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


def save_rows(path: str | Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows as .csv or .json, by the name's ending; first beside the target, then renamed.

    Values that are no plain numbers or text are written as JSON inside the CSV. Raises MinillmError.
    """
    path = Path(path)
    check_ending(path)
    if path.suffix == ".json":
        text = json.dumps(list(rows), indent=1) + "\n"
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
