"""Typed reading of JSON: the type, the range, the default, and an error that names file, field and value."""

import json
from pathlib import Path

import pytest

from minillm.errors import BundleError, ConfigError, MinillmError
from minillm.fields import Fields, brief, file_in, parse_json, read_json


def fields(**values) -> Fields:
    return Fields(values, "folder/file.json")


def test_each_type_is_read_as_it_stands():
    read = fields(name="b", yes=True, n=3, x=2, xs=[1, 2.5], ids=[4, 0], id=7, nothing=None)
    assert read.choice("name", ["a", "b"]) == "b" and read.boolean("yes") is True
    assert read.integer("n", 3) == 3 and read.integer_or_null("n", 3) == 3
    assert read.number("x", 2.0) == 2.0 and type(read.number("x", 2.0)) is float
    assert read.numbers("xs", 2, 1, 3) == (1.0, 2.5)
    assert read.token_ids("ids", 5) == (4, 0) and read.token_ids("id", 8) == (7,) and read.token_ids("nothing", 5) == ()
    assert read.integer_or_null("nothing", 3, 1) is None  # null is not absent
    assert read.boolean("nothing") is False


def test_an_absent_field_takes_its_default_and_without_one_is_an_error():
    read = fields()
    assert read.choice("a", ["b"], "b") == "b" and read.boolean("a") is False
    assert read.integer("a", 9, 4) == 4 and read.number("a", 9.0, 0.5) == 0.5
    assert read.integer_or_null("a", 9) is None and read.integer_or_null("a", 9, 4) == 4
    assert read.token_ids("a", 9) == () and read.token_ids("a", 9, 2) == (2,)
    for method, *rest in (("choice", ["b"]), ("integer", 9), ("number", 9.0), ("numbers", 1, 1, 9)):
        with pytest.raises(ConfigError, match=r"folder/file\.json: a is missing, expected"):
            getattr(read, method)("a", *rest)


WRONG = [
    ("choice", ("c", None, ["a"], 1, True), (["a", "b"],)),
    ("boolean", (1, 0, "true"), ()),
    ("integer", (True, 0, 10, 1.0, "3", None, [3]), (9,)),
    ("integer_or_null", (True, 0, 10, 1.0, "3", [3]), (9,)),
    ("number", (True, 0, -1, 10, float("nan"), float("inf"), "3", None), (9.0,)),
    (
        "numbers",
        (3, None, [1], [1, 2, 3], [1, True], [1, 0], [1, float("inf")], [1, "2"], [0.5, 1], [1, 10]),
        (2, 1, 9),
    ),
    ("token_ids", (True, 1.0, "3", [1, None], [[1]], {"a": 1}, [1, True]), (9,)),
]


@pytest.mark.parametrize(
    ("method", "value", "rest"), [(m, value, rest) for m, values, rest in WRONG for value in values]
)
def test_another_type_or_a_value_out_of_range_is_refused_by_name(method, value, rest):
    with pytest.raises(ConfigError) as refusal:
        getattr(fields(a=value), method)("a", *rest)
    assert str(refusal.value).startswith(f"folder/file.json: a is {brief(value)}, expected ")


@pytest.mark.parametrize(("value", "left"), [(9, ()), (-1, ()), ([3, 9], (3,)), ([10**400, 8, 0], (8, 0))])
def test_ids_outside_the_vocabulary_are_left_out_with_a_note(value, left):
    with pytest.warns(UserWarning, match=r"folder/file\.json: a holds the id (9|-1|100000)") as notes:
        assert fields(a=value).token_ids("a", 9) == left
    assert len(notes) == 1 and len(str(notes[0].message)) < 200


def test_an_error_has_the_kind_the_prefix_and_the_value_that_it_was_given():
    read = Fields({"a": 1}, "f", "inner.", BundleError)
    assert (
        type(read.error("a", "two")) is BundleError and str(read.error("a", "two")) == "f: inner.a is 1, expected two"
    )
    assert str(read.error("a", "two", 3)) == "f: inner.a is 3, expected two"


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b'{"a": 1, "b": 2, "a": 1}', "'a' stands twice"),
        (b'{"a": {"b": 1, "b": 2}}', "'b' stands twice"),
        (b'{"a": NaN}', "not finite"),
        (b'{"a": -Infinity}', "not finite"),
        (b'{"a": 1e999}', "not finite"),
        (b'{"a": "\\ud800"}', "not valid JSON"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (b'{"a": 1', "not valid JSON"),
        (b"[1]", "holds a JSON list"),
        (b"1" * 5000, "not valid JSON"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
)
def test_what_python_s_json_lets_pass_is_refused(raw, problem):
    with pytest.raises(BundleError) as refusal:
        parse_json(raw, "x.json", BundleError)
    assert str(refusal.value).startswith("x.json: ") and problem in str(refusal.value)


def test_what_is_one_object_is_what_json_reads():
    raw = b'{"a": [1, -0, 2.5e3, null, true], "b": {"c": "\\u00e9 \xc3\xa9"}}'
    assert parse_json(raw, "x", MinillmError) == json.loads(raw)
    assert str(parse_json(b'{"a": -0}', "x", MinillmError)["a"]) == "-0.0"


def test_a_file_is_read_up_to_its_limit_and_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path, ConfigError, limit=11) == {"a": 1}
    with pytest.raises(ConfigError, match=r"x\.json: has 11 bytes, expected at most 10"):
        read_json(path, ConfigError, limit=10)
    with pytest.raises(ConfigError, match=r"absent\.json: is missing"):
        read_json(tmp_path / "absent.json", ConfigError)


def test_a_file_lies_in_its_own_folder(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "a.json").write_text("{}")
    assert file_in(tmp_path / "inside", "a.json", ConfigError).is_file()
    for name, problem in (("b.json", "is missing"), ("../inside", "out of its folder"), ("../b.json", "out of its")):
        with pytest.raises(ConfigError, match=problem):
            file_in(tmp_path / "inside", name, ConfigError)


def test_a_broken_link_is_named_with_its_target(tmp_path):
    try:
        (tmp_path / "a.json").symlink_to(Path("..", "blobs", "0123"))
    except OSError:
        pytest.skip("this system makes no symbolic links")
    with pytest.raises(ConfigError, match=r"a\.json: is a link to .*0123, which does not exist"):
        file_in(tmp_path, "a.json", ConfigError)


@pytest.mark.parametrize(("start", "named"), [(b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
                                              (b"<!doctype html>", "web page"), (b"\n <HTML lang='en'>", "web page"),
                                              (b"PK\3\4", "pickled"), (b"\x1f\x8b\x08", "compressed")])  # fmt: skip
def test_what_stands_in_the_place_of_a_json_file_is_named(start, named, tmp_path):
    (tmp_path / "config.json").write_bytes(start + b"\0" * 99)
    with pytest.raises(ConfigError, match=named) as refusal:
        read_json(tmp_path / "config.json", ConfigError)
    assert "expected a JSON file" in str(refusal.value)


def test_a_value_is_shown_in_one_short_line():
    assert brief("a\nb") == "'a\\nb'" and brief([1, "x"]) == "[1, 'x']"
    for value in ("x" * 10**6, list(range(10**5)), {"key": "x" * 1000}):
        assert len(brief(value)) <= 80 and "\n" not in brief(value)
