"""A sweep's file: read like a config, understood after a spreadsheet, shared by two sweeps at the same time."""

import csv
import io
import json
import subprocess
import sys

import fuzz
import pytest
import tiny

from minillm.errors import MinillmError
from minillm.study.record import IDENTITY, SAME, key_of, read_record
from minillm.study.sweep import sweep
from minillm.study.sweep_rows import COLUMNS
from minillm.tables import save_rows
from minillm.transformer.texts import split_text

STORIES = [f"{story} {number}" for number in range(2) for story in tiny.STORIES]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.loaded(tmp_path_factory.mktemp("record") / "m")


def swept(model, output=None, policies=("mid", "cats"), by="neuron", **more):
    return sweep(model, *split_text(STORIES), policies, (0.5,), by, context=64, output=output, **more)


@pytest.fixture(scope="module")
def rows(model):
    return swept(model, methods=("magnitude",))


@pytest.fixture
def text(rows, tmp_path) -> str:
    save_rows(tmp_path / "whole.csv", rows)
    return (tmp_path / "whole.csv").read_text(encoding="utf-8")


def with_cells(text: str, row: int, **cells: str) -> str:
    """The CSV with other cells in a row; row 0 is the heading."""
    table = list(csv.reader(io.StringIO(text)))
    for name, cell in cells.items():
        table[row][table[0].index(name)] = cell
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(table)
    return out.getvalue()


def test_the_columns_are_those_of_a_row_and_every_row_of_a_sweep_is_read_back_to_the_last_bit(rows, tmp_path):
    assert all(list(row) == list(COLUMNS) for row in rows) and set(IDENTITY) <= set(COLUMNS)
    for name in ("rows.csv", "rows.json"):
        save_rows(tmp_path / name, rows)
        assert read_record(tmp_path / name) == rows
    assert {row["by"] for row in rows} == {None, "neuron", "weights"}


@pytest.mark.parametrize(("by", "policy"), [("tensor", "teal"), ("ppl", "mid"), ("cett", "cett"), ("reads", "cats")])
def test_rows_of_every_kind_of_target_agree_with_themselves(model, tmp_path, by, policy):
    target = {"ppl": 0.05, "cett": 0.2, "reads": 0.3}.get(by, 0.5)
    calibration, test = split_text(STORIES)
    made = sweep(model, calibration, test, (policy,), (target,), by, context=64, output=tmp_path / "rows.csv")
    assert read_record(tmp_path / "rows.csv") == made


# ---- after a spreadsheet ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decimal", [".", ","])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_what_a_spreadsheet_changes_without_changing_values_is_understood(rows, text, tmp_path, decimal, mark, end):
    if decimal == mark:
        return
    table = list(csv.reader(io.StringIO(text)))
    if decimal == ",":
        table[1:] = [[c.replace(".", ",") if c.replace(".", "").isdigit() else c for c in line] for line in table[1:]]
    table = [[*line, "", ""] for line in table] + [[""] * (len(table[0]) + 2)]  # empty columns and an empty row
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=mark, lineterminator=end).writerows(table)
    (tmp_path / "rows.csv").write_bytes(b"\xef\xbb\xbf" + out.getvalue().encode())
    assert read_record(tmp_path / "rows.csv") == rows


def test_ten_digits_are_enough_and_four_are_not(text, rows, tmp_path):
    for digits, fine in ((10, True), (4, False)):
        (tmp_path / "rows.csv").write_text(with_cells(text, 1, perplexity=f"{rows[0]['perplexity']:.{digits}g}"))
        if fine:
            assert read_record(tmp_path / "rows.csv")[0]["perplexity"] == pytest.approx(rows[0]["perplexity"])
        else:
            with pytest.raises(MinillmError, match="row 1: perplexity is"):
                read_record(tmp_path / "rows.csv")


def test_points_and_commas_in_one_file_are_refused(text, tmp_path):
    mixed = with_cells(text, 1, nll="12,5").splitlines()
    table = list(csv.reader(mixed))
    out = io.StringIO()
    csv.writer(out, delimiter=";").writerows(table)
    (tmp_path / "rows.csv").write_text(out.getvalue())
    with pytest.raises(MinillmError, match="holds 12,5 and .*expected one way of writing decimals"):
        read_record(tmp_path / "rows.csv")


# ---- what is no record -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "cells", "says"),
    [
        (1, {"document_nll": ""}, "row 1 has no document_nll, expected a list of finite numbers"),
        (2, {"neuron_sparsity": ""}, "row 2 has no neuron_sparsity, expected a share from 0 to 1"),
        (1, {"nll": "", "tokens": ""}, "row 1 has no nll"),
        (1, {"nll": "much"}, "row 1: nll is 'much', expected a finite number"),
        (2, {"perplexity": "NaN"}, "row 2: perplexity is 'NaN'"),
        (2, {"perplexity": "1e400"}, "row 2: perplexity is '1e400'"),
        (2, {"perplexity": "30"}, "row 2: perplexity is 30, expected .* by the row's other columns"),
        (2, {"neuron_sparsity": "1.5"}, "row 2: neuron_sparsity is 1.5, expected a share from 0 to 1"),
        (2, {"neuron_sparsity": "0.25"}, "row 2: achieved is .*, expected 0.25 by|row 2: read_known_mask is"),
        (3, {"read_up": "0.1"}, "row 3: read_exact is"),
        (3, {"bytes": "7"}, "row 3: bits_per_byte is"),
        (3, {"vs_dense": "2"}, "row 3: vs_dense is 2, expected"),
        (1, {"vs_dense": "2"}, "row 1: vs_dense is 2, expected 1"),
        (2, {"tokens": "7"}, "row 2: nll .*|row 2: tokens is 7|row 2: tokens is not that of row 1"),
        (2, {"tokens": "1.5"}, "row 2: tokens is 1.5, expected a whole number"),
        (2, {"document_tokens": "[1]"}, "row 2: document_nll and document_tokens have 5 and 1 numbers"),
        (2, {"document_tokens": "[1, NaN]"}, "row 2: document_tokens is"),
        (2, {"tensor_sparsity": '{"mid": 2}'}, "row 2: tensor_sparsity is"),
        (2, {"policy": "mod"}, "row 2: policy 'mod' is unknown"),
        (4, {"policy": "mid"}, "row 4: method 'mid' is unknown"),
        (2, {"by": ""}, "row 2: policy mid has by None and target 0.5, expected both"),
        (1, {"by": "neuron"}, "row 1: by is neuron, expected nothing for the dense model"),
        (2, {"by": "neurons"}, "row 2: by is 'neurons', expected one of tensor, neuron"),
        (2, {"protocol": "document"}, "row 2: protocol is 'document', expected one of documents, stream"),
        (2, {"test_sha256": "0"}, "row 2: test_sha256 is '0', expected a SHA-256"),
        (2, {"bos": "2 from nowhere"}, "row 2: bos is not that of row 1"),
        (3, {"union_density": ""}, "row 3: has no union_density"),
        (2, {"fingerprint": "{}"}, "row 2: fingerprint is {}, expected an object"),
        (3, {"policy": "mid"}, "row 3 is row 2 again"),
        (0, {"bos": "nll"}, "the column 'nll' stands twice"),
        (0, {"bos": "BOS"}, "row 1 holds 'BOS', expected only model, policy"),
    ],
)
def test_a_cell_that_cannot_be_gives_one_sentence_with_row_and_column(text, tmp_path, row, cells, says):
    path = tmp_path / "rows.csv"
    path.write_text(with_cells(text, row, **cells), encoding="utf-8")
    with pytest.raises(MinillmError, match=says) as error:
        read_record(path)
    assert str(error.value).startswith(str(path))


def test_a_column_less_is_named(text, tmp_path):
    table = [line[:6] + line[7:] for line in csv.reader(io.StringIO(text))]
    out = io.StringIO()
    csv.writer(out).writerows(table)
    (tmp_path / "rows.csv").write_text(out.getvalue())
    with pytest.raises(MinillmError, match="row 1 has no neuron_sparsity, expected a share"):
        read_record(tmp_path / "rows.csv")


def test_a_record_older_than_fingerprints_is_read_and_continued_without_a_word(model, rows, tmp_path, recwarn):
    older = [{key: value for key, value in row.items() if key != "fingerprint"} for row in rows]
    for name in ("rows.csv", "rows.json"):
        save_rows(tmp_path / name, older[:2])
        assert read_record(tmp_path / name) == older[:2]
        new = []
        again = swept(model, tmp_path / name, methods=("magnitude",), on_row=new.append)
        assert again == older[:2] + rows[2:] == read_record(tmp_path / name) and new == rows[2:]
    with pytest.raises(MinillmError, match=r"row 1 is of another sweep \(context 64, expected 32\)"):
        sweep(model, *split_text(STORIES), ("mid",), (0.5,), context=32, output=tmp_path / "rows.csv")
    assert not recwarn.list


def valid(rows: list[dict]) -> bool:
    """What a record may hold: every column, each figure in its range and agreeing with the others."""
    assert len({key_of(row) for row in rows}) == len(rows)
    for row in rows:
        assert set(COLUMNS) - {"fingerprint", "stored"} <= set(row) <= set(COLUMNS)
        assert row["nll"] == pytest.approx(sum(row["document_nll"]), rel=1e-6)
        assert row["tokens"] == sum(row["document_tokens"]) and len(row["document_nll"]) == len(row["document_tokens"])
        shares = ("neuron_sparsity", *(f"read_{part}" for part in ("gate", "up", "down", "exact", "known_mask")))
        assert all(0 <= (row[key] or 0) <= 1 or row["by"] == "weights" for key in shares)
        assert json.loads(json.dumps(row, allow_nan=False)) == row
    return True


@fuzz.examples
@pytest.mark.parametrize("name", ["rows.csv", "rows.json"])
def test_a_broken_record_is_one_sentence_or_a_good_record(examples, rows, text, tmp_path, name):
    files = fuzz.csv_files(text.encode()) if name == "rows.csv" else fuzz.json_files(rows)
    counts = fuzz.holds(examples, files, tmp_path / name, read_record, valid)
    assert min(counts["accepted"], counts["refused"]) > examples / 50


# ---- two sweeps on one file ------------------------------------------------------------------------------------------


def test_rows_of_other_policies_stay_and_rows_of_other_texts_are_refused(model, rows, tmp_path):
    output = tmp_path / "rows.csv"
    swept(model, output, ("mid",))
    swept(model, output, ("cats",), by="tensor")
    found = read_record(output)
    assert [(row["policy"], row["by"]) for row in found] == [("dense", None), ("cats", "tensor"), ("mid", "neuron")]
    before = output.read_bytes()
    with pytest.raises(MinillmError, match="row 1 is of another sweep .*calibration_sha256"):
        sweep(model, STORIES[:2], STORIES[2:], ("mid",), (0.5,), context=64, output=output)
    assert output.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["rows.csv"]
    assert len(SAME) == 7


def test_a_row_that_another_sweep_writes_meanwhile_stays(model, rows, tmp_path):
    output = tmp_path / "rows.csv"

    def other_one(row):
        if row["policy"] == "dense":
            swept(model, output, ("topk",))

    swept(model, output, ("mid",), on_row=other_one)
    assert [row["policy"] for row in read_record(output)] == ["dense", "mid", "topk"]


CHILD = """
import sys
import minillm
from minillm.study.sweep import sweep
from minillm.study.sweep_rows import COLUMNS
from minillm.transformer.texts import split_text
model = minillm.load({folder!r}, "float64")
print("ready", flush=True)
sys.stdin.readline()
targets = [n / 20 for n in range(1, 9)]
sweep(model, *split_text({stories!r}), (sys.argv[1],), targets, "tensor", context=64, output={output!r})
"""


def test_three_processes_on_one_file_lose_no_row(model, tmp_path):
    name = "rows.csv"
    paths = {"folder": str(model.folder), "output": str(tmp_path / name)}
    script = CHILD.format(**paths, stories=STORIES)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script, policy], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for policy in ("mid", "cats", "topk")
    ]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:  # all at once
        child.stdin.write("\n")
        child.stdin.flush()
    assert [child.wait() for child in children] == [0, 0, 0]
    for child in children:
        child.stdin.close()
        child.stdout.close()
    found = read_record(tmp_path / name)
    assert sorted(row["policy"] for row in found) == sorted(["dense"] + ["mid", "cats", "topk"] * 8)
    assert [path.name for path in tmp_path.iterdir()] == [name]
