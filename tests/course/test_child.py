"""Grading a file in child processes: what it gets, and what happens when it hangs, dies or is not valid Python."""

import json
import subprocess
import sys
import time

import pytest
from student_files import OURS, PLAIN, changed, file_of

from minillm.cli.main import main
from minillm.course.child import grade_file, grade_here


@pytest.mark.parametrize("source", [OURS, PLAIN], ids=["minillm's own", "a student's"])
def test_a_full_solution_gets_every_point_and_every_step(tmp_path, source):
    report = grade_file(file_of(tmp_path, source))
    assert [grade.problem for grade in report.grades] == [""] * 7
    assert report.points == 70 and report.all_right and report.block.first is None and not report.block.replaced
    assert {step["status"] for step in report.block.steps} == {"ok"} and len(report.block.steps) == 19


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def rms_norm(:\n", "line 1 is not valid Python (invalid syntax)"),
        ("import numpy as np\nimport no_such_module\n",
         "importing it raised ModuleNotFoundError: No module named 'no_such_module' in line 2: import no_such_module"),
        ("print('hello')\nexit(0)\n", "importing it raised SystemExit: 0 in line 2: exit(0)"),
        ("import os\nos._exit(0)\n", "importing it ended the process (exit status 0)"),
        ("x = input()\n", "importing it raised EOFError"),
        ("a = '\0'", "is not valid Python ("),
        ("# -*- coding: nonsense -*-\n", "is not valid Python ("),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_imported_is_one_sentence(tmp_path, capsys, source, words):
    path = file_of(tmp_path, source)
    assert main(["grade", str(path)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"minillm: {path}: ") and words in err and err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["mine.py"]


def test_what_hangs_or_dies_gets_nothing_and_the_rest_is_graded(tmp_path):
    source = changed("rope", "half = x", "while True: pass\n    half = x")
    source = source.replace(
        "def lru(requests, capacity):\n", "def lru(requests, capacity):\n    import os; os._exit(7)\n"
    )
    report = grade_file(file_of(tmp_path, source), seconds=6)
    problems = {grade.function: grade.problem for grade in report.grades}
    assert problems.pop("rope") == "did not finish within 6 s"
    assert problems.pop("lru") == "ended the process (exit status 7)" and set(problems.values()) == {""}
    assert report.points == 50 and not report.all_right
    assert report.block.first is None and report.block.replaced == ["rope", "lru"]


def test_threads_that_go_on_and_printing_do_no_harm(tmp_path, capfd):
    noise = "\nimport threading, time, sys\nthreading.Thread(target=time.sleep, args=(60,)).start()\nprint('noise')\n"
    start = time.perf_counter()
    report = grade_file(file_of(tmp_path, PLAIN + noise), seconds=50)
    assert report.all_right and capfd.readouterr() == ("", "") and time.perf_counter() - start < 45


def test_the_file_is_read_anew_each_time_and_leaves_no_cache(tmp_path):
    path = file_of(tmp_path, PLAIN)
    assert grade_file(path).all_right
    path.write_text(PLAIN.replace("> threshold", "< threshold"), encoding="utf-8")  # as long as it was
    assert not grade_file(path).all_right
    assert [p.name for p in tmp_path.iterdir()] == ["mine.py"]


def test_neither_the_current_folder_nor_the_files_own_can_replace_a_module(tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise SystemExit", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert grade_file(file_of(tmp_path, PLAIN)).all_right


def test_the_child_writes_a_line_for_each_function_as_it_is_done(tmp_path):
    output = tmp_path / "rows"
    grade_here(str(file_of(tmp_path, PLAIN)), str(output), "lru,block", "rope,lru")
    first, lru, block = map(json.loads, output.read_bytes().splitlines())
    assert first == {} and lru["problem"] == "is missing" and block["replaced"] == ["rope", "lru"]


def test_it_also_runs_as_a_program(tmp_path):
    path = file_of(tmp_path, PLAIN)
    done = subprocess.run([sys.executable, "-m", "minillm", "grade", str(path)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and "all 19 steps agree" in done.stdout
