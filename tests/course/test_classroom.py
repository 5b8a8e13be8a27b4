"""A class: which files are graded, one row each, what is kept, and thirty files at once."""

import csv
import json
import os
import threading
import time
from pathlib import Path

import fuzz
import pytest
from student_files import OURS, PLAIN, changed

from minillm.course import classroom
from minillm.course.assignment import FUNCTIONS, template
from minillm.course.classroom import COLUMNS, Settings, Submission, earlier_rows, grade_class, row_of, submissions
from minillm.errors import MinillmError

GLU = PLAIN.replace("return gate /", "return up /")  # wrong in swiglu and thresholded_swiglu


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, source in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return folder


def notebook(*cells: str) -> str:
    return json.dumps({"cells": [{"cell_type": "code", "source": cell} for cell in cells]})


def names(folder: Path) -> list[str]:
    return [one.name for one in submissions(folder)]


@pytest.fixture
def quick(monkeypatch) -> list[Path]:
    """Grading without a process: full marks for every file; the files in the order in which they were graded."""
    graded: list[Path] = []

    def full(one: Submission, sha256: str, settings: Settings, stop: threading.Event) -> dict:
        graded.append(one.path)
        scores = dict.fromkeys(FUNCTIONS, 10.0)
        ending = {"total": 70.0, "first_mistake": one.reason, "seconds": 0.5, "flag": "", "sha256": sha256}
        return {"name": one.name, **scores, **ending}

    monkeypatch.setattr(classroom, "row_of", full)
    return graded


def test_flat_files_and_a_folder_per_student_hidden_ones_left_out(tmp_path):
    write(tmp_path, {
        "b.py": "", "A.PY": "", "c.ipynb": "", ".hidden.py": "", "._b.py": "", "__pycache__/b.py": "",
        ".ipynb_checkpoints/c.ipynb": "", "__MACOSX/b.py": "", "Ana Ö_12_assignsubmission_file_/mine.py": "",
        "venv/pyvenv.cfg": "", "venv/lib/x.py": "", "deep/one/two/x.py": "",
    })  # fmt: skip
    mine = "Ana Ö_12_assignsubmission_file_/mine.py"
    assert names(tmp_path) == ["A.PY", mine, "b.py", "c.ipynb", "deep/one/two/x.py"]


def test_a_helper_is_graded_with_the_file_that_imports_it(tmp_path):
    write(tmp_path, {
        "ana/mine.py": "import numpy, own_help as h\nfrom tools.more import x", "ana/own_help.py": "x = 1",
        "ana/tools/__init__.py": "", "ana/tools/more.py": "x = 1", "ana/unused.py": "",
        "ben/mine.py": "from .solution import *", "ben/solution.py": "def rope(x): pass",
        "cas/work.ipynb": notebook("from own_help import x"), "cas/own_help.py": "",
    })  # fmt: skip
    with pytest.warns(
        UserWarning, match="import them.*: ana/own_help.py, ana/tools/__init__.py, ana/tools/more.py, cas/own_help.py"
    ):
        found = names(tmp_path)
    assert found == ["ana/mine.py", "ana/unused.py", "ben/mine.py", "ben/solution.py", "cas/work.ipynb"]


def test_a_student_without_a_file_has_a_row_and_a_class_without_any_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    write(tmp_path, {"essay/essay.docx": "", "zip.docx": ""})
    with pytest.warns(UserWarning, match="zip.docx"):
        rows = grade_class(tmp_path)
    assert {row["name"]: row["first_mistake"] for row in rows} == {
        "empty/": "the folder holds no .py and no .ipynb file",
        "essay/": "the folder holds no .py and no .ipynb file (found essay.docx)",
    }
    (tmp_path / "none").mkdir()
    for folder in (tmp_path / "none", tmp_path / "missing"):
        with pytest.raises(MinillmError, match=folder.name):
            grade_class(folder)


@pytest.mark.skipif(os.name == "nt", reason="needs a pipe")
def test_a_file_that_cannot_be_read_has_a_row_with_the_reason(tmp_path):
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "broken.py").symlink_to(tmp_path / "nowhere")
    (tmp_path / "large.ipynb").touch()
    os.truncate(tmp_path / "large.ipynb", 30_000_000)
    reasons = [row["first_mistake"] for row in grade_class(tmp_path)]
    assert reasons == ["is missing, expected a file", "has 30,000,000 bytes, expected at most 20,000,000",
                       "is a pipe, expected a regular file"]  # fmt: skip


def test_names_of_any_characters_are_shown_escaped_in_every_row(tmp_path, quick):
    for name in (b"a\x1b[31m.py", b"b\xff.py", b"c\n.py", "d\u202e.py".encode()):
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).touch()
    table = tmp_path / "marks.csv"
    grade_class(tmp_path, table)
    rows = list(csv.DictReader(table.open(encoding="utf-8", newline="")))
    assert [row["name"] for row in rows] == [r"a\x1b[31m.py", r"b\udcff.py", r"c\n.py", r"d\u202e.py"]
    grade_class(tmp_path, table)
    assert len(quick) == 8 and len(rows) == 4  # empty files have no hash, so they are graded again


def test_rows_of_unchanged_files_are_kept_and_the_others_are_made(tmp_path, quick):
    folder, table = write(tmp_path / "class", {"a.py": "1", "b.py": "2"}), tmp_path / "marks.csv"
    told = []
    grade_class(folder, table, told=lambda row, done, total: told.append((row["name"], done, total)))
    first = table.read_bytes()
    assert grade_class(folder, table) and table.read_bytes() == first and len(quick) == 2
    assert sorted(name for name, *_ in told) == ["a.py", "b.py"] and [one[1:] for one in told] == [(1, 2), (2, 2)]
    write(folder, {"b.py": "3", "c.py": "4"})
    (folder / "a.py").unlink()
    rows = grade_class(folder, table)
    assert [row["name"] for row in rows] == ["b.py", "c.py"] and [path.name for path in quick[2:]] == ["b.py", "c.py"]
    kept = list(csv.DictReader(table.open(encoding="utf-8", newline="")))
    assert [row["name"] for row in kept] == ["b.py", "c.py", "a.py"] and list(kept[0]) == list(COLUMNS)


def test_an_interrupted_run_keeps_its_rows_and_a_second_one_completes(tmp_path, quick):
    folder, table = write(tmp_path / "class", {f"{i}.py": str(i) for i in range(5)}), tmp_path / "marks.csv"

    def interrupt(row, done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grade_class(folder, table, Settings(jobs=1), interrupt)
    done = [row["name"] for row in csv.DictReader(table.open(encoding="utf-8", newline=""))]
    assert len(done) == 2
    quick.clear()
    assert [row["total"] for row in grade_class(folder, table, Settings(jobs=1))] == [70] * 5
    assert len(quick) == 3 and not {path.name for path in quick} & set(done)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["class", "marks.csv"]


def test_an_interruption_before_the_first_row_leaves_nothing(tmp_path, monkeypatch):
    folder, table = write(tmp_path / "class", {"a.py": "1"}), tmp_path / "marks.csv"

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(classroom, "row_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        grade_class(folder, table)
    assert [path.name for path in tmp_path.iterdir()] == ["class"]


def test_two_runs_on_one_table_keep_the_rows_of_both(tmp_path, quick):
    table, runs = tmp_path / "marks.csv", []
    for name in "ab":
        folder = write(tmp_path / name, {f"{name}{i}.py": str(i) for i in range(10)})
        runs.append(threading.Thread(target=grade_class, args=(folder, table)))
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert len(list(csv.DictReader(table.open(encoding="utf-8", newline="")))) == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "marks.csv"]


def test_another_table_is_refused_before_the_work_and_stays_as_it_is(tmp_path, quick):
    folder, table = write(tmp_path / "class", {"a.py": "1"}), tmp_path / "other.csv"
    for content in ("name,points\nAna,3\n", "\x00", "a,b\n1\n"):
        table.write_text(content, encoding="utf-8")
        with pytest.raises(MinillmError, match="other.csv"):
            grade_class(folder, table)
        assert table.read_text(encoding="utf-8") == content and quick == []
    with pytest.raises(MinillmError, match=r"expected .csv or .json"):
        grade_class(folder, tmp_path / "marks.txt")


def test_a_table_that_somebody_else_changes_during_the_run_is_told_and_written_anew(tmp_path, monkeypatch):
    folder, table = write(tmp_path / "class", {"a.py": "1", "b.py": "2"}), tmp_path / "marks.csv"

    def forging(one, sha256, settings, stop):
        (tmp_path / "other").write_text("forged", encoding="utf-8")
        os.replace(tmp_path / "other", table)  # at once: in between it would be empty, as a new table is
        scores = dict.fromkeys(FUNCTIONS, 0.0)
        return {
            "name": one.name,
            **scores,
            "total": 0.0,
            "first_mistake": "",
            "seconds": 0.0,
            "flag": "",
            "sha256": "x",
        }

    monkeypatch.setattr(classroom, "row_of", forging)
    with pytest.warns(UserWarning, match="was changed by another program"):
        grade_class(folder, table, Settings(jobs=1))
    assert [row["total"] for row in csv.DictReader(table.open(encoding="utf-8", newline=""))] == ["0.0", "0.0"]


def test_the_first_mistake_is_the_first_function_or_the_block(tmp_path):
    write(
        tmp_path, {"a.py": GLU, "b.py": changed("rope", "np.outer(positions,", "np.outer(range(len(x)),"), "c.py": OURS}
    )
    one, two, three = (
        row_of(Submission(name, tmp_path / name), "", Settings(), threading.Event())
        for name in ("a.py", "b.py", "c.py")
    )
    assert str(one["first_mistake"]).startswith("swiglu: ") and one["total"] < 55 and one["rms_norm"] == 10
    assert str(two["first_mistake"]).startswith("rope: the given positions are ignored")
    assert three["first_mistake"] == "" and three["total"] == 70 and three["flag"] == "imports minillm"


@fuzz.examples
def test_any_table_of_marks_is_read_as_it_is_meant_or_refused(examples, tmp_path, quick):
    grade_class(write(tmp_path / "class", {"a.py": "1", "b.py": "2"}), tmp_path / "marks.csv")
    good = (tmp_path / "marks.csv").read_bytes()

    def valid(rows):
        numbers = [row[key] for row in rows.values() for key in (*FUNCTIONS, "total", "seconds")]
        return all(list(row) == list(COLUMNS) for row in rows.values()) and all(0 <= n < float("inf") for n in numbers)

    counts = fuzz.holds(examples, fuzz.csv_files(good), tmp_path / "other.csv", earlier_rows, valid)
    assert counts["accepted"] and counts["refused"]


# ---- a whole class ---------------------------------------------------------------------------------------------------
HANG = "\n\ndef {}(*arguments):\n    while True: pass\n"
CELLS = ["%matplotlib inline\nimport numpy as np", "print(np.ones(3))", *PLAIN.split("\n\n\n"), "1 / 0"]
WRONG = {"norm": changed("rms_norm", "axis=-1", "axis=0"), "lru": changed("lru", "[:capacity]", "[:capacity + 1]")}


def class_of_thirty() -> dict[str, tuple[str, dict[str, float]]]:
    """{file: its source, and the points of the functions that do not have all 10 (at most: a share may be right)}."""
    none = dict.fromkeys(FUNCTIONS, 0.0)
    forged = (
        "\nimport os\nfor fd in range(3, 9):\n    try: os.write(fd, b'\\0\\0\\0\\2{}' * 9)\n    except OSError: pass\n"
    )
    files: dict[str, tuple[str, dict[str, float]]] = {f"right{i}.py": (PLAIN, {}) for i in range(8)}
    files |= {f"nb{i}/work.ipynb": (notebook(*CELLS), {}) for i in range(4)}
    files |= {f"hangs_{name}.py": (PLAIN + HANG.format(name), {name: 0}) for name in ("rope", "lru", "swiglu")}
    files |= {
        "template.py": (template(), none),
        "ours.py": (OURS, {}),
        "wrong_norm.py": (WRONG["norm"], {"rms_norm": 7}),
        "wrong_lru.py": (WRONG["lru"], {"lru": 8}),
        "wrong_glu.py": (GLU, {"swiglu": 1, "thresholded_swiglu": 4}),
        "wrong_nb.ipynb": (notebook(*WRONG["lru"].split("\n\n\n")), {"lru": 8}),
        "half.py": (PLAIN.replace("def lru", "def my_lru"), {"lru": 0}),
        "syntax.py": (PLAIN + "\ndef f(:\n", none),
        "syntax_nb.ipynb": (notebook(*CELLS, "def f(:"), {}),
        "no_notebook.ipynb": ("{", none),
        "forges.py": (PLAIN + forged, none),
        "dies.py": (PLAIN + "\n\ndef attention(*a):\n    import os; os._exit(0)\n", {"attention": 0}),
        "huge.py": (PLAIN + "\n\ndef rope(*a):\n    return np.ones(1_500_000_000 // 8)\n", {"rope": 0}),
        "forks.py": (PLAIN + "\n\ndef lru(*a):\n    import os; os.fork()\n", {"lru": 0}),
        "exits.py": ("exit()\n" + PLAIN, none),
    }
    return files


@pytest.mark.slow
def test_a_class_of_thirty_has_the_right_marks_within_five_minutes(tmp_path):
    files = class_of_thirty()
    folder, table = (
        write(tmp_path / "class", {name: source for name, (source, _) in files.items()}),
        tmp_path / "marks.csv",
    )
    begun = time.perf_counter()
    rows = grade_class(folder, table, Settings(jobs=2))
    seconds = time.perf_counter() - begun
    print(f"{len(rows)} files in {seconds:.0f} s")
    assert len(rows) == 30 and seconds < 300
    for row in rows:
        most = files[str(row["name"])][1]
        for name in FUNCTIONS:
            assert row[name] <= most[name] if name in most else row[name] == 10, (row["name"], name, row[name])
        assert bool(row["first_mistake"]) == bool(most) and row["total"] == pytest.approx(
            sum(row[n] for n in FUNCTIONS)
        )
        assert row["flag"] == {"ours.py": "imports minillm", "forks.py": "starts processes"}.get(str(row["name"]), "")
    begun = time.perf_counter()
    assert grade_class(folder, table, Settings(jobs=2)) == rows and time.perf_counter() - begun < 5
