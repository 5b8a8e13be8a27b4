"""Grading a file: what it gets, and what happens when it hangs, dies or is not valid Python."""

import json
import subprocess
import sys
import time

import pytest
from student_files import OURS, PLAIN, changed, file_of

from minillm.cli.main import main
from minillm.course.grade import grade_file


@pytest.mark.parametrize("source", [OURS, PLAIN], ids=["minillm's own", "a student's"])
def test_a_full_solution_gets_every_point_and_every_step(tmp_path, source):
    report = grade_file(file_of(tmp_path, source))
    assert [grade.problem for grade in report.grades] == [""] * 7
    assert report.points == 70 and report.all_right and report.block.first is None and not report.block.replaced
    assert report.flag == ("imports minillm" if source == OURS else "") and report.seconds < 20
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


@pytest.mark.slow
def test_what_hangs_or_dies_gets_nothing_and_the_rest_is_graded(tmp_path):
    source = changed("rope", "half = x", "while True: pass\n    half = x")
    source = source.replace(
        "def lru(requests, capacity):\n", "def lru(requests, capacity):\n    import os; os._exit(7)\n"
    )
    report = grade_file(file_of(tmp_path, source), seconds=3)
    problems = {grade.function: grade.problem for grade in report.grades}
    assert problems.pop("rope") == "did not finish within 3 s"
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


@pytest.mark.slow
def test_what_it_did_until_it_hung_counts_and_the_block_still_runs(tmp_path):
    slow = "\n\ndef lru(requests, n, right=lru):\n    while n == 1: pass\n    return right(requests, n)\n"
    report = grade_file(file_of(tmp_path, PLAIN + slow), seconds=2)
    *others, grade = report.grades
    assert {other.points for other in others} == {10} and 0 < grade.right < grade.total
    assert grade.problem.endswith(": did not finish within 2 s") and "case " in grade.problem
    assert report.block.first is None and report.block.replaced == ["lru"]


def test_modules_beside_the_file_are_found_but_replace_none_of_pythons(tmp_path):
    (tmp_path / "own_help.py").write_text("from pathlib import Path\nvalue = 1", encoding="utf-8")
    (tmp_path / "queue.py").write_text("raise SystemExit", encoding="utf-8")
    report = grade_file(file_of(tmp_path, f"import own_help\nfrom queue import Queue\n{PLAIN}"))
    assert report.all_right and sorted(p.name for p in tmp_path.iterdir()) == ["mine.py", "own_help.py", "queue.py"]


def test_a_notebook_is_graded_by_its_cells(tmp_path):
    cells = ["%matplotlib inline\nimport numpy as np", "1 / 0", *PLAIN.split("\n\n\n"), "def lru(:", "import minillm"]
    listed = [{"cell_type": "code", "source": cell} for cell in cells]
    path = tmp_path / "mine.ipynb"
    path.write_text(json.dumps({"cells": listed}), encoding="utf-8")
    report = grade_file(path)
    assert report.all_right and report.flag == ""
    listed[2 + PLAIN.split("\n\n\n").index(PLAIN[PLAIN.index("def rope(") :].split("\n\n\n")[0])]["source"] += "\n  x"
    path.write_text(json.dumps({"cells": listed}), encoding="utf-8")
    rope = grade_file(path).grades[1]
    assert rope.points == 0 and rope.problem.startswith("is missing: in cell 5, line 7 is not valid Python")


CHEAT = """
{how}


def lru(requests, capacity):
    for i in range(9):
        key = f"lru/{{i}}/"
        if key + "in/0" in G and np.array_equal(G[key + "in/0"], requests) and G[key + "in/1"] == capacity:
            return G[key + "out/0"]
"""
DATA = "P = [p for p in sys.path if os.path.exists(p + '/mini' + 'llm')][0] + '/mini' + 'llm/data/gold' + 'ens/'"


@pytest.mark.parametrize(
    ("how", "flag", "points"),
    [
        (
            "from minillm.course.assignment import goldens\nG = goldens()",
            "imports minillm; reads the data of minillm",
            10,
        ),
        ("import importlib as i\nG = i.import_module('mini' + 'llm.course.assignment').__dict__", "imports minillm", 0),
        (f"import os, sys\n{DATA}\nG = dict(np.load(P + 'gold' + 'ens.npz'))", "reads the data of minillm", 10),
        ("import cheat_help\nG = {}", "imports minillm", 0),
        ("import os\nos.system('true')\nG = {}", "starts processes", 0),
        ("import ctypes\nctypes.CDLL(None)\nG = {}", "calls C libraries", 0),
        ("# minillm, import minillm\nG = {}", "", 0),
    ],
)
def test_a_file_that_uses_minillm_or_what_could_hide_it_is_flagged(tmp_path, how, flag, points):
    (tmp_path / "cheat_help.py").write_text("import minillm", encoding="utf-8")
    report = grade_file(file_of(tmp_path, PLAIN + CHEAT.format(how=how)))
    assert report.flag == flag and [grade.points for grade in report.grades] == [10] * 6 + [points]


def test_it_also_runs_as_a_program(tmp_path):
    path = file_of(tmp_path, PLAIN)
    done = subprocess.run([sys.executable, "-m", "minillm", "grade", str(path)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and "all 19 steps agree" in done.stdout
