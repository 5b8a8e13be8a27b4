"""grade: what it prints of a student's file, and what it writes."""

import csv
import json

import pytest
from student_files import PLAIN, changed, file_of

from minillm.cli.main import main
from minillm.course.assignment import template, write_template
from minillm.course.grade import grade_file
from minillm.errors import MinillmError


def test_the_template_gets_nothing_and_says_so(tmp_path, capsys):
    path = tmp_path / "mine.py"
    assert main(["grade", "--template", "-o", str(path)]) == 0
    assert path.read_text(encoding="utf-8") == template() and str(path) in capsys.readouterr().err
    assert main(["grade", str(path)]) == 1
    out = capsys.readouterr().out
    assert out.count("is not written yet") == 7 and "0.0  of 70" in out and "nothing yet to run" in out
    assert [grade.points for grade in grade_file(path).grades] == [0] * 7


def test_the_template_never_replaces_a_file_and_is_printed_without_a_name(tmp_path, capsys):
    path = file_of(tmp_path, "precious")
    with pytest.raises(MinillmError, match="mine.py: exists, expected a new name"):
        write_template(path)
    assert main(["grade", "--template", "-o", str(path)]) == 1 and path.read_text(encoding="utf-8") == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["mine.py"] and capsys.readouterr().out == ""
    assert main(["grade", "--template"]) == 0 and capsys.readouterr().out == template()


def test_missing_functions_get_nothing_and_the_rest_is_graded(tmp_path, capsys):
    source = PLAIN.replace("def rope(", "def my_rope(").replace("def lru(", "lru = 3\n\n\ndef other(")
    path = file_of(tmp_path, source.replace("return gate /", "return up /"))
    assert main(["grade", str(path)]) == 1
    out = capsys.readouterr().out
    assert main(["grade", str(path), "--json"]) == 1
    points = {grade["function"]: grade["points"] for grade in json.loads(capsys.readouterr().out)["functions"]}
    assert points["rope"] == points["lru"] == 0 and points["rms_norm"] == points["attention"] == 10
    assert "is missing" in out and "it is not a function (found 3)" in out
    assert "First wrong step: blocks.0.mlp.out (swiglu): " in " ".join(out.split())
    assert "In the place of rope, lru: the right values." in out


def test_a_file_that_is_not_there_and_a_folder(tmp_path, capsys):
    assert main(["grade", str(tmp_path / "nothing.py")]) == 1
    assert f"minillm: {tmp_path / 'nothing.py'}: is missing" in capsys.readouterr().err
    assert main(["grade", str(tmp_path)]) == 1
    assert f"minillm: {tmp_path}: holds no .py and no .ipynb file" in capsys.readouterr().err
    for arguments in ([], ["x.py", "--template"], ["x.py", "-o", str(tmp_path / "y")]):
        assert main(["grade", *arguments]) == 1 and "expected" in capsys.readouterr().err


def test_the_report_is_json(tmp_path, capsys):
    path = file_of(tmp_path, changed("attention", "np.where(mask, scores, -np.inf)", "scores * np.nan"))
    assert main(["grade", str(path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert report["of"] == 70 and report["points"] == 60 and len(report["functions"]) == 7
    assert report["block"]["first"] == "blocks.0.attn.z" and report["block"]["function"] == "attention"
    assert main(["grade", str(file_of(tmp_path, PLAIN)), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["points"] == 70


def test_a_notebook_is_graded_alone(tmp_path, capsys):
    path = tmp_path / "mine.ipynb"
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": PLAIN}]}), encoding="utf-8")
    assert main(["grade", str(path)]) == 0 and "70.0  of 70" in capsys.readouterr().out
    path.write_text("{", encoding="utf-8")
    assert main(["grade", str(path)]) == 1
    assert f"minillm: {path}: it is not a notebook" in capsys.readouterr().err


def test_a_class_is_a_table_and_its_mistakes(tmp_path, capsys):
    folder, table = tmp_path / "class", tmp_path / "marks.csv"
    folder.mkdir()
    (folder / "Ana.py").write_text(PLAIN, encoding="utf-8")
    (folder / "Ben\x1b[31m.py").write_text("import minillm\nraise ValueError('\x1b[2J' * 999)", encoding="utf-8")
    (folder / "=1+1.py").write_text("def f(:", encoding="utf-8")
    assert main(["grade", str(folder), "--csv", str(table), "--jobs", "2"]) == 0
    out, err = capsys.readouterr()
    rows = list(csv.DictReader(table.open(encoding="utf-8", newline="")))
    assert [row["name"].lstrip("'") for row in rows] == ["=1+1.py", "Ana.py", r"Ben\x1b[31m.py"]
    assert [float(row["total"]) for row in rows] == [0, 70, 0] and rows[1]["first_mistake"] == ""
    assert rows[0]["first_mistake"] == "line 1 is not valid Python (invalid syntax)"
    assert rows[2]["first_mistake"].startswith("importing it raised ValueError: ")
    assert [row["flag"] for row in rows] == ["", "", "imports minillm"]
    assert "Ana.py " in out and "70.0" in out and r"Ben\x1b[31m.py imports minillm" in " ".join(out.split())
    assert "3 of 3: " in err and f"written: {table}" in err and "\x1b" not in out + err
    assert max(map(len, out.splitlines())) <= 100
    before = table.read_bytes()
    assert main(["grade", str(folder), "--csv", str(table), "--json"]) == 0
    out, err = capsys.readouterr()
    assert [row["total"] for row in json.loads(out)] == [0, 70, 0] and "1 of 3" not in err
    assert table.read_bytes() == before


def test_what_is_not_isolated_is_said_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["grade", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for fact in ("Not isolated are", "network", "--network none", "--read-only", "--memory", "--jobs", "--csv"):
        assert fact in text


def test_a_table_needs_a_folder_and_a_name_that_can_be_written(tmp_path, capsys):
    path = file_of(tmp_path, PLAIN)
    assert main(["grade", str(path), "--csv", str(tmp_path / "x.csv")]) == 1
    assert "--csv is for a folder" in capsys.readouterr().err
    for name in ("x.txt", "no/x.csv"):
        assert main(["grade", str(tmp_path), "--csv", str(tmp_path / name)]) == 1
        assert name in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.py"]
