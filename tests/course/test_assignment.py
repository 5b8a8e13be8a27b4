"""The template, the goldens, and the points of one function."""

import hashlib
import json

import numpy as np
import pytest
from student_files import answers_of, changed, file_of

from minillm.course import assignment
from minillm.course.assignment import FUNCTIONS, cases_of, goldens, grade_function, template
from minillm.course.cells import executed
from minillm.course.mistakes import MISTAKES
from minillm.errors import MinillmError
from minillm.loading import embedded


def test_the_template_has_the_signatures_equations_and_shapes_of_all_functions(tmp_path):
    functions = executed("mine.py", template().encode(), FUNCTIONS).defined
    assert list(functions) == list(FUNCTIONS) == list(MISTAKES)
    for name, function in functions.items():
        assert "->" in function.__doc__ and len(cases_of(name)) >= 4
        with pytest.raises(NotImplementedError):
            function(*cases_of(name)[0][0])
    assert max(map(len, template().splitlines())) <= 120


def test_partial_credit_counts_cases_and_values(tmp_path):
    functions = answers_of(file_of(tmp_path, changed("attention", "(new, heads, d)", "(new, heads)")))
    assert grade_function("attention", functions).points == 0  # it raises everywhere
    values = answers_of(file_of(tmp_path, changed("rms_norm", "* weight", "* weight * (np.arange(len(weight)) > 1)")))
    grade = grade_function("rms_norm", values)
    shares = [1 - 2 / case[0][0].shape[-1] for case in cases_of("rms_norm")]
    assert grade.right == 0 and grade.points == pytest.approx(5 * np.mean(shares))
    source = changed("lru", "return np.array(hits)", "return np.zeros(len(hits), bool)")
    constant = grade_function("lru", answers_of(file_of(tmp_path, source)))
    assert constant.right == 1 and constant.points == pytest.approx(2)  # the buffer without room


def test_the_goldens_are_small_whole_and_say_where_they_come_from():
    folder = embedded.DATA / "goldens"
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert hashlib.sha256((folder / "goldens.npz").read_bytes()).hexdigest() == manifest["sha256"]["goldens.npz"]
    assert set(manifest["made_by"]) == {"torch", "transformers", "numpy"} and "seed" in manifest
    assert sum(path.stat().st_size for path in folder.iterdir()) < 300_000
    assert all(np.isfinite(a).all() for a in goldens().values())


def test_the_cases_hold_both_widths_and_give_back_the_width_that_came_in():
    for name in FUNCTIONS:
        widths = set()
        for arguments, expected, _ in cases_of(name):
            parts = expected if isinstance(expected, tuple) else (expected,)
            given = {a.dtype for a in arguments if isinstance(a, np.ndarray) and a.dtype.kind == "f"}
            assert {p.dtype for p in parts if p.dtype.kind == "f"} == given
            widths |= given
        assert widths == ({np.dtype("float32"), np.dtype("float64")} if name != "lru" else set())


def test_damaged_goldens_are_told(tmp_path, monkeypatch):
    folder = tmp_path / "goldens"
    folder.mkdir()
    for path in (embedded.DATA / "goldens").iterdir():
        (folder / path.name).write_bytes(path.read_bytes() + b" ")
    monkeypatch.setattr(assignment, "DATA", tmp_path)
    with pytest.raises(MinillmError, match="goldens.npz: its sha256 is"):
        goldens.__wrapped__()
