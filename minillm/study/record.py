"""The file of a sweep: what its columns hold, and how two sweeps write to one file.

The file is the only record of a sweep. It is written whole after every row, and a row that is found there is not
computed again. So it is read like a config (rows.py): COLUMNS says what each cell holds, and the figures of a row must
agree with each other:

    nll = sum of document_nll          tokens = sum of document_tokens
    perplexity = exp(nll / tokens)     bits_per_byte = nll / ln 2 / bytes     vs_dense = perplexity / the dense model's
    read_exact = mean of read_gate, read_up, read_down        achieved: what by says of these

**Whose a row is** stands in the row: SAME names the model, both texts, protocol, context and dtype. model_sha256 is the
hash of all that a score depends on, and decides whether a row must be computed; fingerprint, which all files of minillm
carry, names the model for people and other files. A file with rows of another model, text or protocol is refused before
the work. Rows of the same ones with other policies and targets are kept.

**Two sweeps on one file** each read it again before they write, under a lock. So the rows of both survive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ..errors import MinillmError
from ..files import locked
from ..methods.base import method_named
from ..rows import (
    FINITE,
    NOT_NEGATIVE,
    SHARE,
    TEXT,
    Kind,
    list_of,
    load_rows,
    matching,
    number_between,
    numbers,
    one_of,
    whole,
)
from ..sparsity.policies import policy_named
from ..sparsity.spec import SparsityReport
from ..tables import save_rows
from ..transformer.fingerprint import read_fingerprint
from .score import evaluation_of

WEIGHTS = "weights"  # what the target of a method counts, and the mark of a method's row
DENSE = {"policy": "dense", "by": None, "target": None}
SAME = ("model", "model_sha256", "calibration_sha256", "test_sha256", "protocol", "context", "dtype")
IDENTITY = (*SAME, "policy", "by", "target")  # rows that agree in these are the same row
ANEW = "mend the file, remove the row (then it is computed again), or name another file to begin anew"


def _share_per_tensor(value: object) -> dict[str, float]:
    if not isinstance(value, dict):
        raise ValueError
    return {name: number_between(share, 0, 1) for name, share in value.items()}


def _of_a_model(value: object) -> dict:
    found = read_fingerprint(value, "", MinillmError)
    if found is None:
        raise ValueError
    return found.asdict()


SHA256 = matching("[0-9a-f]{64}", "a SHA-256, 64 hexadecimal digits")
READS = numbers(0, 8, "a share of the weights")  # of a method it may be above 1: indices are read, too
COLUMNS = {
    "model": TEXT,
    "policy": TEXT,
    "by": one_of("tensor", "neuron", "reads", "cett", "ppl", WEIGHTS).or_empty(),
    "target": NOT_NEGATIVE.or_empty(),
    "achieved": FINITE.or_empty(),
    "level": SHARE.or_empty(),
    "neuron_sparsity": SHARE,
    "tensor_sparsity": Kind("an object with a share from 0 to 1 per tensor", _share_per_tensor),
    "read_gate": READS,
    "read_up": READS,
    "read_down": READS,
    "read_exact": READS,
    "read_known_mask": READS,
    "union_density": SHARE.or_empty(),
    "union_window": whole(1),
    "perplexity": numbers(1, math.inf, "a finite number, at least 1"),
    "vs_dense": NOT_NEGATIVE,
    "bits_per_byte": NOT_NEGATIVE,
    "nll": NOT_NEGATIVE,
    "tokens": whole(1),
    "bytes": whole(1),
    "protocol": one_of("documents", "stream"),
    "context": whole(2),
    "bos": TEXT,
    "dtype": one_of("float32", "float64"),
    "spec": TEXT,
    "document_nll": list_of(NOT_NEGATIVE, "a list of finite numbers, at least 0"),
    "document_tokens": list_of(whole(0), "a list of whole numbers"),
    "model_sha256": SHA256,
    "calibration_sha256": SHA256,
    "test_sha256": SHA256,
    "fingerprint": Kind("an object of name, shape [L, D, F] and sha256", _of_a_model).or_absent(),
}


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
        if named(row) != self.names[ours]:
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
    first: dict[tuple, tuple[int, dict]] = {}
    seen: dict[tuple, int] = {}
    for number, row in enumerate(rows, start=1):
        where, key = f"{path}: row {number}", key_of(row)
        if key in seen:
            raise MinillmError(f"{where} is row {seen[key]} again, expected each row once; {ANEW}")
        seen[key] = number
        for problem in _contradictions(row):
            raise MinillmError(f"{where}: {problem}; {ANEW}")
        before, other = first.setdefault(key[: len(SAME)], (number, row))
        for name in ("tokens", "bytes", "bos", "document_tokens", "union_window", "fingerprint"):
            if name in row and name in other and row[name] != other[name]:
                why = f"{name} is not that of row {before}, which has the same model and text"
                raise MinillmError(f"{where}: {why}; {ANEW}")
    _check_against_dense(path, rows)
    return rows


def _check_against_dense(path: str | Path, rows: Sequence[dict]) -> None:
    """Raise MinillmError where vs_dense, or an increase of perplexity, is not what the dense row says."""
    dense = {key_of(row)[: len(SAME)]: row["perplexity"] for row in rows if row["policy"] == "dense"}
    for number, row in enumerate(rows, start=1):
        if (of_dense := dense.get(key_of(row)[: len(SAME)])) is not None:
            for problem in _unequal(row, {"vs_dense": row["perplexity"] / of_dense}):
                raise MinillmError(f"{path}: row {number}: {problem}; {ANEW}")


def _contradictions(row: dict) -> Iterable[str]:
    """What in a row contradicts the rest of it, in words."""
    by, policy = row["by"], row["policy"]
    try:
        if policy != "dense":
            (method_named if by == WEIGHTS else policy_named)(policy)
    except MinillmError as problem:
        yield str(problem)
    if (policy == "dense") != (by is None) or (by is None) != (row["target"] is None):
        yield f"policy {policy} has by {by} and target {row['target']}, expected both for a cut and none for dense"
    if len(row["document_nll"]) != len(row["document_tokens"]):
        counts = f"{len(row['document_nll'])} and {len(row['document_tokens'])} numbers"
        yield f"document_nll and document_tokens have {counts}, expected one for each document"
    if not row["nll"] / row["tokens"] < 709:  # whose exponential is no finite float64
        yield f"nll is {row['nll']}, expected less than 709 per token"
        return
    score = evaluation_of(row)
    yield from _unequal(row, {
        "nll": sum(row["document_nll"]), "tokens": sum(row["document_tokens"]), "perplexity": score.perplexity,
        "bits_per_byte": score.bits_per_byte,
    })  # fmt: skip
    report = report_of(row)
    if by is None:
        nothing = dict.fromkeys(("read_gate", "read_up", "read_down", "read_known_mask", "vs_dense"), 1.0)
        yield from _unequal(row, nothing | {"neuron_sparsity": 0.0})
        if row["achieved"] is not None or row["level"] is not None or row["tensor_sparsity"]:
            yield "achieved, level or tensor_sparsity says something of the dense model, expected nothing"
    elif by == "ppl":
        yield from _unequal(row, {"achieved": row["vs_dense"] - 1})
    else:
        yield from _unequal(row, {"achieved": report.achieved(by)})
    yield from _unequal(row, {"read_exact": report.weight_reads})
    if by != WEIGHTS and max(row[key] for key in ("read_gate", "read_up", "read_down", "read_known_mask")) > 1:
        yield "a read_... is above 1, expected shares from 0 to 1"
    if "fingerprint" in row and row["fingerprint"]["name"] != row["model"]:
        yield f"fingerprint names {row['fingerprint']['name']}, expected {row['model']}, as model says"


def report_of(row: dict) -> SparsityReport:
    """The accounting that a row was made of, as far as it tells."""
    exact, known = (row["read_gate"], row["read_up"], row["read_down"]), row["read_known_mask"]
    return SparsityReport(
        row["tokens"], row["neuron_sparsity"], (), row["tensor_sparsity"], exact, (known, known, known),
        row["union_density"], row["union_window"],
    )  # fmt: skip


def _unequal(row: dict, expected: Mapping[str, float | None]) -> Iterable[str]:
    """Columns that are not what others say, in words. A spreadsheet may have kept only the first ten digits."""
    for name, value in expected.items():
        found = row[name]
        if found is None or value is None:
            if found is not value:
                yield f"{name} is {found}, expected {value} by the row's other columns"
        elif not math.isclose(found, value, rel_tol=1e-7, abs_tol=1e-7):
            yield f"{name} is {found:.10g}, expected {value:.10g} by the row's other columns"
