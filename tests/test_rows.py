"""Rows read back: each cell by its column, in CSV and in JSON alike."""

import csv
import math

import fuzz
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm.errors import MinillmError
from minillm.rows import (
    FINITE,
    NOT_NEGATIVE,
    SHARE,
    TEXT,
    YES_OR_NO,
    checked_row,
    list_of,
    load_rows,
    matching,
    numbers,
    one_of,
    whole,
)
from minillm.tables import save_rows

COLUMNS = {"name": TEXT, "count": whole(0), "share": SHARE.or_empty(), "list": list_of(FINITE, "a list").or_absent()}
ROWS = [{"name": "a", "count": 3, "share": 0.1, "list": [1.5, -2.0]}, {"name": "=b;c", "count": 0, "share": None}]


@pytest.mark.parametrize("name", ["rows.csv", "rows.json"])
def test_rows_are_read_back_equal_and_an_empty_file_holds_none(tmp_path, name):
    save_rows(tmp_path / name, ROWS)
    assert load_rows(tmp_path / name, COLUMNS) == ROWS
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf \n")
    assert load_rows(tmp_path / name, COLUMNS) == []
    with pytest.raises(MinillmError, match="is missing"):
        load_rows(tmp_path / "absent.csv", COLUMNS)
    with pytest.raises(MinillmError, match="is a folder"):
        (tmp_path / "folder.csv").mkdir()
        load_rows(tmp_path / "folder.csv", COLUMNS)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (SHARE, [0, 1, 0.5], [-0.1, 1.1, True, "0.5", None, math.nan, [0.5]]),
        (FINITE, [-1e300, 3], [math.inf, math.nan, 10**400, "1", False]),
        (NOT_NEGATIVE, [0, 1e9], [-1e-9, math.inf]),
        (numbers(1, 2, ""), [1, 2], [0.99, 2.01]),
        (whole(1), [1, 7, 8.0], [0, 1.5, True, 2**60, math.nan, math.inf, "1"]),
        (one_of("a", "b"), ["a"], ["c", 1, "", ["a"]]),
        (matching("[0-9]+", ""), ["12"], ["12\n", "x", 12]),
        (TEXT, ["x\ny"], ["", 1, None]),
        (list_of(whole(0), ""), [[0, 1]], [[], [0.5], 0, "0", [None], {}]),
        (YES_OR_NO, [True, False], [0, "true", None]),
    ],
)
def test_a_kind_takes_its_values_and_no_others(kind, good, bad):
    for value in good:
        assert kind.check(value) == value
    for value in bad:
        with pytest.raises((ValueError, OverflowError)):
            kind.check(value)


def test_a_row_names_what_is_missing_unknown_or_wrong():
    for row, says in (
        ([1], "row 1 is \\[1\\], expected an object; hint"),
        ({"name": "a", "count": 1}, "row 1 has no share, expected a share from 0 to 1, or nothing; hint"),
        ({"name": "", "count": 1, "share": 1}, "row 1: name is ''"),
        ({"name": "a", "count": None, "share": 1}, "row 1 has no count"),
        (
            {"name": "a", "count": 1, "share": 1, "nmae": 1},
            "row 1 holds 'nmae', expected only name, count, share, list",
        ),
    ):
        with pytest.raises(MinillmError, match=says):
            checked_row(row, COLUMNS, "row 1", "hint")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("name,count,share\na,1\n", "row 1 has 2 cells, expected one for each of 3"),
        ("name,count,share\na,1,1,1\n", "row 1 has 4 cells, expected one for each of 3"),
        ("name,count,name\na,1,1\n", "the column 'name' stands twice"),
        ('name,count,share\na,1,"1\n', "is no CSV table"),
        (",,,\n", "is no CSV table"),
        ("name;count;share\na;1;0,5\nb;2;0.5\n", "holds 0,5 and 0.5"),
        ("name,count,share\na,1,[[[\n", r"row 1: share is '\[\[\[', expected a share"),
    ],
)
def test_a_csv_that_is_no_table_is_refused(tmp_path, content, says):
    (tmp_path / "rows.csv").write_text(content, encoding="utf-8")
    with pytest.raises(MinillmError, match=says):
        load_rows(tmp_path / "rows.csv", COLUMNS)


def test_a_heading_alone_holds_no_rows(tmp_path):
    (tmp_path / "rows.csv").write_text("name,count\n", encoding="utf-8")
    assert load_rows(tmp_path / "rows.csv", COLUMNS) == []


@given(
    st.lists(
        st.fixed_dictionaries({"name": st.text(min_size=1), "count": st.integers(0, 2**52), "share": st.floats(0, 1)})
    )
)
def test_any_text_and_number_is_read_back_to_the_last_bit(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    rows = [row for row in rows if not any("\ud800" <= c <= "\udfff" for c in row["name"])]
    save_rows(path, rows)
    assert load_rows(path, COLUMNS) == rows
    with open(path, encoding="utf-8", newline="") as file:  # and no cell of text is a formula
        assert not any(line["name"][0] in "=+-@\t\r" for line in csv.DictReader(file))


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    assert (
        fuzz.memory_of(lambda path: load_rows(path, COLUMNS), fuzz.huge(tmp_path / "rows.csv", b"name,count\n")) < 1e7
    )


def test_a_table_whose_cells_are_all_quoted_is_understood(tmp_path):
    for mark in ",;\t":
        with open(tmp_path / "rows.csv", "w", newline="") as file:
            writer = csv.writer(file, delimiter=mark, quoting=csv.QUOTE_ALL)
            writer.writerows([["name", "count", "share"], ["a", "3", "0.1"]])
        assert load_rows(tmp_path / "rows.csv", COLUMNS) == [{"name": "a", "count": 3, "share": 0.1}]


def test_a_text_that_is_no_table_is_not_taken_for_one_without_rows(tmp_path):
    for text in ("my notes\n", "[]\n", "other,headings\n"):
        (tmp_path / "rows.csv").write_text(text)
        with pytest.raises(MinillmError, match=r"rows\.csv"):
            load_rows(tmp_path / "rows.csv", COLUMNS)
    (tmp_path / "rows.csv").write_text("name,count,share\n")
    assert load_rows(tmp_path / "rows.csv", COLUMNS) == []
