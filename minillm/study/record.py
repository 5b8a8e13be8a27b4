"""The file of a sweep: read like a config, and shared by two sweeps at the same time.

The file is the only record of a sweep. It is written whole after every row, and a row that is found there is not
computed again. So nothing is taken from it unchecked: each cell holds what its column says (rows.py), and the figures
of a row agree with each other (sweep_rows.py) and with those of the other rows of the same model and text.

**Whose a row is** stands in the row: SAME names the model, both texts, protocol, context and dtype. model_sha256 is the
hash of all that a score depends on, and decides whether a row must be computed; fingerprint, which all files of minillm
carry, names the model for people and other files. A file with rows of another model, text or protocol is refused before
the work. Rows of the same ones with other policies and targets are kept.

**Two sweeps on one file** each read it again before they write, under a lock. So the rows of both survive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import MinillmError
from ..files import locked
from ..rows import load_rows
from ..tables import save_rows
from .sweep_rows import COLUMNS, WEIGHTS, contradictions, unequal

DENSE = {"policy": "dense", "by": None, "target": None}
SAME = ("model", "model_sha256", "calibration_sha256", "test_sha256", "protocol", "context", "dtype")
IDENTITY = (*SAME, "policy", "by", "target")  # rows that agree in these are the same row
ANEW = "mend the file, remove the row (then it is computed again), or name another file to begin anew"


class Record:
    """The rows of a plan: what the output file holds already, and what is added to it row by row.

    plan: the identities of the rows, in the order of the file. names: {values of SAME: the model in words}.
    """

    def __init__(
        self, plan: Sequence[tuple], names: Mapping[tuple, str], output: str | Path | None,
        on_row: Callable[[dict], None],
    ):  # fmt: skip
        self.output, self.on_row, self.names = output, on_row, names
        self.rows: dict[tuple, dict | None] = dict.fromkeys(plan)
        self.others: dict[tuple, dict] = {}  # of the same models and texts, but not in the plan
        if output is not None and Path(output).exists():
            self._read(output)

    def get(self, identity: dict) -> dict | None:
        """The row with these values of IDENTITY, or None where it is not known yet."""
        return self.rows[key_of(identity)]

    def add(self, new: dict) -> dict:
        """Record a new row, in the file first. What another sweep has written there meanwhile stays."""
        key = key_of(new)
        if self.output is None:
            self.rows[key] = new
        else:
            with locked(self.output, MinillmError):
                if Path(self.output).exists():
                    self._read(self.output)
                self.rows[key] = new = self.rows[key] or new
                save_rows(self.output, [*self.known(), *self.others.values()])
        self.on_row(new)
        return new

    def known(self) -> list[dict]:
        """All rows of the plan so far, in its order."""
        return [row for row in self.rows.values() if row]

    def _read(self, output: str | Path) -> None:
        """Take over the rows of the file. Raises MinillmError where one of them is of another model or text."""
        rows = read_record(output)
        for number, row in enumerate(rows, start=1):
            if key_of(row)[: len(SAME)] not in self.names:
                why = f"is of another sweep ({self._differs(row)}) and would be lost"
                raise MinillmError(f"{output}: row {number} {why}; to begin anew, name another file or remove this one")
        for row in rows:
            (self.rows if key_of(row) in self.rows else self.others)[key_of(row)] = row

    def _differs(self, row: dict) -> str:
        """What a row has and the nearest model of the plan has not, in words."""
        theirs = key_of(row)[: len(SAME)]
        ours = max(self.names, key=lambda known: sum(a == b for a, b in zip(known, theirs, strict=True)))
        differ = {name: (a, b) for name, a, b in zip(SAME, theirs, ours, strict=True) if a != b}
        found = []
        if theirs[:2] != ours[:2] and named(row) != self.names[ours]:
            found.append(f"of {named(row)}, expected {self.names[ours]}")
        if found or "dtype" in differ:  # these say already why the hash differs
            differ = {name: both for name, both in differ.items() if name not in ("model", "model_sha256")}
        return "; ".join([*found, *(f"{name} {_short(a)}, expected {_short(b)}" for name, (a, b) in differ.items())])


def key_of(row: dict) -> tuple:
    """The values of IDENTITY of a row."""
    return tuple(row[key] for key in IDENTITY)


def named(row: dict) -> str:
    """The model of a row in words: its name, and the beginning of its hash."""
    digest = row["fingerprint"]["sha256"] if "fingerprint" in row else row["model_sha256"]
    return f"{row['model']} ({digest[:8]})"


def _short(value: object) -> str:
    text = str(value)
    return text[:12] + "..." if len(text) == 64 else text  # a SHA-256


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_record(path: str | Path) -> list[dict]:
    """The rows of a sweep's file, each checked by itself and against the others of its model and texts.

    Raises MinillmError, in one sentence that names row and column.
    """
    rows = load_rows(path, COLUMNS, ANEW)
    first: dict[tuple, int] = {}
    groups: dict[tuple, list[tuple[int, dict]]] = {}
    for number, row in enumerate(rows, start=1):
        key = key_of(row)
        if (before := first.setdefault(key, number)) != number:
            raise MinillmError(f"{path}: row {number} is row {before} again, expected each row once; {ANEW}")
        for problem in contradictions(row):
            raise MinillmError(f"{path}: row {number}: {problem}; {ANEW}")
        groups.setdefault(key[: len(SAME)], []).append((number, row))
    for group in groups.values():
        for number, problem in _differences(group):
            raise MinillmError(f"{path}: row {number}: {problem}; {ANEW}")
    return rows


def _differences(group: Sequence[tuple[int, dict]]) -> Iterator[tuple[int, str]]:
    """What differs, but must not, between rows of one model and text: (number of the row, in words)."""
    before, first = group[0]
    for number, row in group:
        for name in ("tokens", "bytes", "bos", "document_tokens", "union_window", "fingerprint"):
            if name in row and name in first and row[name] != first[name]:
                yield number, f"{name} is not that of row {before}, which has the same model and text"
    for dense in (row for _, row in group if row["policy"] == "dense"):
        for number, row in group:
            for problem in unequal(row, {"vs_dense": row["perplexity"] / dense["perplexity"]}):
                yield number, problem
    known = {number: row["union_density"] is not None for number, row in group if row["by"] not in (None, WEIGHTS)}
    if len(set(known.values())) == 2:  # whether there is a whole window depends on the text alone
        missing = next(number for number, is_known in known.items() if not is_known)
        yield missing, "has no union_density, expected a share as in the other rows of its model and text"
