"""Tables: aligned text, CSV and JSON that read back, and files that are whole or not there."""

import csv
import json
import os

import pytest

from minillm.errors import MinillmError
from minillm.tables import WIDTH, as_csv_text, from_csv_text, keys_as_headings, save_rows, text_table

ROWS = [
    {"policy": "dense", "target": None, "tokens": 44293, "reads": [1.0, 0.5], "spec": 'a, "b"\nc'},
    {"policy": "dhär", "target": 0.5, "tokens": 7, "reads": {"gate": 1}, "spec": ""},
]


def test_text_stands_left_numbers_right_and_nothing_as_a_dash():
    columns = keys_as_headings({"policy": "", "target": ".2f", "tokens": ",", "absent": ".1f", "spec": ""})
    table = text_table(ROWS, columns)
    assert text_table(ROWS, {key: columns[key] for key in ("policy", "target", "tokens")}).splitlines() == [
        "policy  target  tokens",
        "dense        -  44,293",
        "dhär      0.50       7",
    ]
    assert "absent" in table and not any(line.endswith(" ") for line in table.splitlines())


def test_a_table_without_rows_is_its_heading():
    assert text_table([], keys_as_headings({"policy": "", "tokens": ","})) == "policy  tokens"


def test_a_column_has_its_own_heading_and_takes_the_rows_key():
    columns = {"tokens": ("scored", ","), "policy": ("", "")}
    assert text_table(ROWS, columns).splitlines() == ["scored", "44,293  dense", "     7  dhär"]
    assert keys_as_headings({"tokens": ","}) == {"tokens": ("tokens", ",")}


def test_a_wide_table_is_split_and_every_part_names_its_rows():
    columns = {"policy": "", "target": ".2f"} | {f"figure {i:02}": ".3f" for i in range(20)}
    rows = [{"policy": "dense"}, {"policy": "mid", "target": 0.5} | {f"figure {i:02}": i for i in range(20)}]
    table = text_table(rows, keys_as_headings(columns), names=2)
    parts = [part.splitlines() for part in table.split("\n\n")]
    assert len(parts) > 1 and max(map(len, table.splitlines())) <= WIDTH
    for heading, dense, mid in parts:
        assert heading.split()[:2] == ["policy", "target"]
        assert dense.split()[:2] == ["dense", "-"] and mid.split()[:2] == ["mid", "0.50"]
    headings = " ".join(heading for heading, *_ in parts)
    assert all(headings.count(f"figure {i:02}") == 1 for i in range(20))


def test_a_long_name_does_not_make_a_part_for_every_column():
    columns = keys_as_headings({"policy": ""} | {f"figure {i:02}": ".3f" for i in range(4)})
    assert text_table([{"policy": "x" * 300}], columns).count("\n\n") == 0


def test_headings_cannot_steer_a_terminal_either():
    assert text_table([{"a": "x\x1b[2J"}], {"a": ("\x1b[1m", "")}) == "\\x1b[1m\nx\\x1b[2J"


def test_json_reads_back_equal(tmp_path):
    save_rows(tmp_path / "rows.json", ROWS)
    assert json.loads((tmp_path / "rows.json").read_bytes()) == ROWS


def test_csv_reads_back_and_holds_lists_as_json(tmp_path):
    save_rows(str(tmp_path / "rows.csv"), ROWS)
    assert b"\r" not in (tmp_path / "rows.csv").read_bytes()  # the same file on every system
    with open(tmp_path / "rows.csv", encoding="utf-8", newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["target"], first["spec"], second["policy"]) == ("", 'a, "b"\nc', "dhär")
    assert (json.loads(first["reads"]), json.loads(second["reads"])) == ([1.0, 0.5], {"gate": 1})


def test_csv_has_a_column_for_every_key_of_any_row(tmp_path):
    save_rows(tmp_path / "rows.csv", [{"a": 1}, {"b": 2, "a": 3}])
    assert (tmp_path / "rows.csv").read_text(encoding="utf-8") == "a,b\n1,\n3,2\n"


@pytest.mark.parametrize("name", ["rows", "rows.txt", "rows.CSV", ".csv"])
def test_another_ending_is_refused_and_nothing_written(tmp_path, name):
    with pytest.raises(MinillmError, match="expected .csv or .json"):
        save_rows(tmp_path / name, ROWS)
    assert not list(tmp_path.iterdir())


def test_a_file_is_replaced_whole_or_left_as_it_is(tmp_path, monkeypatch):
    target = tmp_path / "rows.json"
    save_rows(target, ROWS[:1])
    save_rows(target, ROWS)
    assert json.loads(target.read_bytes()) == ROWS
    with pytest.raises(TypeError):
        save_rows(target, [{"a": object()}])  # no JSON value
    for absent in (tmp_path / "absent" / "rows.csv", target / "rows.csv"):
        with pytest.raises(MinillmError, match="cannot be written"):
            save_rows(absent, ROWS)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)  # as on Windows, where somebody has the file open
    with pytest.raises(MinillmError, match=r"rows.json: cannot be written \(Permission denied\)"):
        save_rows(target, [])
    assert json.loads(target.read_bytes()) == ROWS and list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1.5", "@x", "\tx", "\rx", "'=1", "''-"])
def test_a_text_that_a_spreadsheet_would_execute_is_quoted_and_a_number_is_not(tmp_path, text):
    save_rows(tmp_path / "rows.csv", [{"model": text, "log_ratio": -1.5, "of": [-1]}])
    with open(tmp_path / "rows.csv", encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["model"], row["log_ratio"], row["of"]) == ("'" + text, "-1.5", "[-1]")
    assert from_csv_text(as_csv_text(text)) == text


def test_other_texts_stay_as_they_are():
    for text in ("mid", "'quoted'", "", "a=b", "1-2"):
        assert as_csv_text(text) == text == from_csv_text(text)


def test_a_name_that_is_no_unicode_is_written_escaped(tmp_path):
    save_rows(tmp_path / "rows.csv", [{"model": "m\udcff"}])
    assert (tmp_path / "rows.csv").read_bytes() == b"model\nm\\udcff\n"
