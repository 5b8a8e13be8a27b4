"""The notebooks: as their sources say, without outputs, every exercise to be solved and solvable, and all of them run.

Running them all takes a kernel each and belongs to the slow tests. The test command of README.md runs QUICK without
one, and the first of them in one. Each three times in a row: python -m pytest tests/notebooks --notebook-runs 3
"""

import json
import linecache
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from scripts import load_script

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"
SECONDS_PER_CELL = 120  # by the clock: what takes longer hangs
SECONDS_PER_NOTEBOOK = 60  # of the processor, or by the clock where the system does not tell: others may be busy, too
QUICK = ("00", "01", "02")  # those that need a few seconds
CHECKED = re.compile(r"^exercise (\S+): (\d+) of (\d+) right$", re.M)

build = load_script(NOTEBOOKS / "build.py")
SOURCES = sorted((NOTEBOOKS / "source").glob("*.py"))
LESSONS = [source for source in SOURCES if source.stem[0].isdigit()]
WITH_EXERCISES = [source for source in SOURCES if build.has_exercises(source)]


def each(sources, quick=None):
    """Sources as parameters; where it is said how the quick ones begin, the others are slow."""
    sources = list(sources)
    slow = [quick is not None and not source.stem.startswith(quick) for source in sources]
    return [
        pytest.param(source, id=source.stem, marks=pytest.mark.slow if is_slow else ())
        for source, is_slow in zip(sources, slow, strict=True)
    ]


def committed(source: Path, folder: str = "") -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOKS / folder / f"{source.stem}.ipynb", as_version=4)


# ---- what is written -------------------------------------------------------------------------------------------------


def test_every_notebook_is_what_its_source_gives_and_none_is_left_over():
    files = build.built()
    assert len(files) > len(LESSONS)
    assert build.different(files) == [], "run: python notebooks/build.py"
    assert build.left_over(files) == []


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.rglob("*.ipynb")), ids=lambda path: path.parent.name[0] + path.stem)
def test_a_committed_notebook_holds_no_output_and_no_trace_of_a_run(path):
    data = path.read_bytes()
    notebook = json.loads(data)
    nbformat.validate(notebook)
    assert notebook["metadata"] == build.METADATA and data.endswith(b"}\n")
    for cell in notebook["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"] == [] and cell["execution_count"] is None)
        assert set(cell["metadata"]) <= {"tags", "jupyter"}
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])


@pytest.mark.parametrize("source", each(SOURCES))
def test_links_lead_to_files_that_are_there(source):
    for folder in ("", "exercises"):
        path = NOTEBOOKS / folder / f"{source.stem}.ipynb"
        if path.is_file():
            text = "\n".join(cell.source for cell in committed(source, folder).cells if cell.cell_type == "markdown")
            text = re.sub(r"```.*?```|`[^`]*`|<code>.*?</code>", "", text, flags=re.S)  # in code, ](x) is no link
            for target in re.findall(r"\]\(([^)\s]+)\)", text):
                if not re.match(r"[a-z]+:|#", target):
                    assert (path.parent / target.partition("#")[0]).exists(), f"{path.name}: {target}"


@pytest.mark.parametrize("source", each(LESSONS))
def test_a_lesson_has_all_the_parts_that_a_lesson_has(source):
    cells = committed(source).cells
    first = cells[0].source
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert re.match(rf"# {source.stem[:2]} · \S", first), "a title with the notebook's number"
    assert re.findall(r"^(\d)\. ", first, re.M) == ["1", "2", "3"], "three goals"
    for part in ("show(you_are_here(", "show_source(", 'CHECKPOINT = ""', "if CHECKPOINT:", "assert "):
        assert part in code, part
    for heading in ("change something", "your own checkpoint", "recap|in one paragraph"):
        assert re.search(rf"^##+ .*({heading})", prose, re.M | re.I), heading
    following = [other for other in LESSONS if other > source][:1]
    assert all(f"]({other.stem}.ipynb)" in cells[-1].source for other in following), "a link to the next notebook"
    assert re.search(r"\w+\.py\b", cells[-1].source), "pointers to the package's source"
    solved = [cell for cell in cells if "exercise" in build.tags(cell)]
    assert 2 <= len(solved) <= 4 or source.stem.startswith("00")  # 00 is made of puzzles
    assert len(solved) == len(re.findall(r"^check\(", code, re.M))
    assert len(solved) == len(re.findall(r"^### Exercise \d\d\.\d+: ", prose, re.M))
    for text in re.findall(r"^### Exercise .*?(?=^#|\Z)", prose, re.M | re.S):
        assert re.search(r"●○* · \d+ minutes", text), text
    todo = [cell for cell in committed(source, "exercises").cells if "exercise" in build.tags(cell)]
    assert [cell.source.count('raise NotImplementedError("your turn")') for cell in todo] == [1] * len(solved)


def test_the_map_and_the_teachers_page_name_every_lesson():
    on_map = "\n".join(cell.source for cell in committed(NOTEBOOKS / "source" / "map.py").cells)
    page = (NOTEBOOKS / "README.md").read_text(encoding="utf-8")
    for source in LESSONS:
        title = re.match(r"# (.*)", committed(source).cells[0].source)[1]
        assert f"[{title}]({source.stem}.ipynb)" in on_map
        assert re.search(rf"^\| \d\. .*\b{source.stem[:2]}\b", page, re.M), source.stem
    exercises = {text for source in SOURCES for text in re.findall(r"Exercise (\d\d\.\d+)", source.read_text("utf-8"))}
    assert set(re.findall(r"\b0\d\.\d+", page)) <= exercises
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page) + re.findall(r"notebooks/[\w/]+\.py", page):
        assert (NOTEBOOKS / target).exists() or (ROOT / target).exists(), target


# ---- what runs: in this process --------------------------------------------------------------------------------------


class Session:
    """Code cells one after the other in one namespace, as a kernel would, without one."""

    def __init__(self, name: str, capsys):
        self.name, self.capsys, self.cells = name, capsys, 0
        self.namespace = {"__name__": "__main__"}

    def run(self, code: str) -> str:
        """Run a cell; -> what it printed to stdout. Nothing may stand on stderr."""
        self.cells += 1
        file = f"<{self.name}, cell {self.cells}>"
        linecache.cache[file] = (len(code), None, code.splitlines(keepends=True), file)  # so that inspect finds it
        exec(compile(code, file, "exec"), self.namespace)
        out, err = self.capsys.readouterr()
        assert not err, f"{file}\n{code}\n{err}"
        return out


def scores(output: str) -> list[tuple[str, int, int]]:
    """(exercise, right, total) of every check's line."""
    return [(name, int(right), int(total)) for name, right, total in CHECKED.findall(output)]


@pytest.mark.slow
@pytest.mark.parametrize("source", each(LESSONS))
def test_the_last_cell_runs_with_a_checkpoint_of_your_own(source, tmp_path):
    code = source.read_text(encoding="utf-8")
    folder = (ROOT / "minillm" / "data" / "default-silu").as_posix()
    assert code.count('\nCHECKPOINT = ""\n') == 1
    program = tmp_path / source.name
    program.write_text(code.replace('CHECKPOINT = ""', f'CHECKPOINT = "{folder}"'), encoding="utf-8")
    done = subprocess.run([sys.executable, str(program)], cwd=NOTEBOOKS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("source", each(source for source in WITH_EXERCISES if source.stem.startswith(QUICK)))
def test_every_exercise_fails_unsolved_and_is_all_right_when_solved(source, capsys, monkeypatch):
    monkeypatch.chdir(NOTEBOOKS)
    session, solved, begun = Session(source.stem, capsys), "", []
    for cell in build.read(source).cells:
        if cell.cell_type != "code":
            continue
        if "exercise" in build.tags(cell):
            solved = cell.source
            session.run(build.without_body(cell.source))
        elif "check" in build.tags(cell):
            ((name, right, total),) = scores(session.run(cell.source))
            assert right < total, f"exercise {name} is all right with nothing written"
            session.run(solved)
            assert scores(session.run(cell.source)) == [(name, total, total)]
            begun.append(name)
        else:
            session.run(cell.source)
    assert begun == [f"{source.stem[:2]}.{i}" for i in range(1, len(begun) + 1)] and begun


# ---- what runs: in a kernel ------------------------------------------------------------------------------------------


def run_in_a_kernel(path: Path, settings: Path) -> tuple[nbformat.NotebookNode, float]:
    """Run all cells in a kernel of its own; -> the notebook with outputs, and how many seconds it took.

    As Jupyter does, in the notebook's folder, where nothing may be left behind; without the user's own settings.
    nbclient may go on after a cell's time is over, so the whole is measured here, too.
    """
    notebook, before = nbformat.read(path, as_version=4), sorted(NOTEBOOKS.rglob("*"))
    folders = {name: str(settings / name) for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR")}
    where = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, timeout=SECONDS_PER_CELL, kernel_name="python3", resources=where)
    clock, used = time.perf_counter(), used_by_children()
    client.execute(env=os.environ | folders)
    clock, used = time.perf_counter() - clock, used_by_children() - used
    seconds = used or clock
    print(f"{path.stem}: {clock:.1f} s, {used:.1f} s of the processor")
    assert clock < 5 * SECONDS_PER_NOTEBOOK
    assert sorted(NOTEBOOKS.rglob("*")) == before
    return notebook, seconds


def used_by_children() -> float:
    """Seconds of the processor that ended child processes have used; 0 under Windows."""
    times = os.times()
    return times.children_user + times.children_system


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def printed(notebook: nbformat.NotebookNode, stream: str = "stdout") -> str:
    return "".join(o.text for o in outputs(notebook) if o.output_type == "stream" and o.name == stream)


def pictures(notebook: nbformat.NotebookNode) -> list[str]:
    """Every <img> of the outputs; a picture that came another way has no words and is refused."""
    data = [o.data for o in outputs(notebook) if "data" in o]
    assert not [kind for bundle in data for kind in bundle if kind.startswith("image/")], "show() it, for its alt text"
    return [tag for bundle in data for tag in re.findall(r"<img[^>]*>", str(bundle.get("text/html", "")))]


def check_run(notebook: nbformat.NotebookNode, seconds: float) -> None:
    """No word on stderr, figures that carry their words, within the time."""
    assert not printed(notebook, "stderr")
    assert all(re.search(r'alt="[^"]{30,}"', tag) for tag in pictures(notebook))
    assert pictures(notebook)
    assert seconds < SECONDS_PER_NOTEBOOK


@pytest.mark.parametrize("source", each(SOURCES, QUICK[0]))
def test_a_notebook_runs_from_a_clean_kernel_and_its_solutions_are_right(source, tmp_path, nth_run):
    notebook, seconds = run_in_a_kernel(NOTEBOOKS / f"{source.stem}.ipynb", tmp_path)
    check_run(notebook, seconds)
    found = scores(printed(notebook))
    assert len(found) == sum("check" in build.tags(cell) for cell in notebook.cells)
    assert all(right == total for _, right, total in found), found


@pytest.mark.parametrize("source", each(WITH_EXERCISES, ()))
def test_an_exercise_notebook_runs_to_its_end_with_nothing_solved(source, tmp_path, nth_run):
    notebook, seconds = run_in_a_kernel(NOTEBOOKS / "exercises" / f"{source.stem}.ipynb", tmp_path)
    check_run(notebook, seconds)
    found = scores(printed(notebook))
    assert len(found) == sum("check" in build.tags(cell) for cell in notebook.cells)
    assert all(right < total for _, right, total in found), found


# ---- the script ------------------------------------------------------------------------------------------------------

SOURCE = '''# %% [markdown]
# # 00 · A title
# [next](00_b.ipynb), `a[0](b)`, <code>a[0](b)</code>, [map](map.ipynb)
# [ops](../minillm/ops.py), [paper](https://arxiv.org/abs/1)

# %% [markdown]
# ### Exercise 00.1: double
# <details><summary>Hint</summary>Twice.</details>

# %% tags=["exercise"]
import math


@staticmethod
def double(
    x: int,
) -> int:
    """Double x.

    Not more.
    """
    y = 2 * x  # the solution

    return y


# %% tags=["check"]
print(double(math.floor(2.5)))
'''


@pytest.fixture
def course(tmp_path, monkeypatch) -> Path:
    """A copy of build.py's folder with two small sources."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "00_a.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "source" / "00_b.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "source" / "map.py").write_text("# %% [markdown]\n# # The map\n", encoding="utf-8")
    monkeypatch.setattr(build, "HERE", tmp_path)
    return tmp_path


def test_the_solution_is_folded_in_the_lesson_and_taken_out_of_the_exercise(course, capsys):
    assert build.main([]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "00_a.ipynb: written", "exercises/00_a.ipynb: written",
        "00_b.ipynb: written", "exercises/00_b.ipynb: written", "map.ipynb: written",
    ]  # fmt: skip
    whole, todo = (nbformat.read(course / folder / "00_a.ipynb", as_version=4) for folder in ("", "exercises"))
    assert [cell.cell_type for cell in whole.cells] == ["markdown", "markdown", "code", "code"]
    assert whole.cells[2].metadata == {"jupyter": {"source_hidden": True}, "tags": ["exercise", "solution"]}
    assert "the solution" in whole.cells[2].source
    assert [cell.cell_type for cell in todo.cells] == ["markdown", "markdown", "code", "code", "markdown"]
    assert todo.cells[2].source.endswith('    Not more.\n    """\n    raise NotImplementedError("your turn")')
    assert todo.cells[2].source.startswith("import math\n\n\n@staticmethod\ndef double(")
    assert "y = 2 * x  # the solution\n\n    return y\n```" in todo.cells[4].source
    assert "solution" not in todo.cells[2].source + todo.cells[3].source
    links = re.findall(r"\]\((.*?)\)", todo.cells[0].source)
    files = ["00_b.ipynb", "b", "b", "../map.ipynb", "../../minillm/ops.py"]
    assert links == [*files, "https://arxiv.org/abs/1", "../00_a.ipynb"]


def test_a_cell_that_is_not_to_be_read_yet_is_folded_in_both(course):
    source = course / "source" / "00_a.py"
    source.write_text(SOURCE + '\n# %% tags=["folded"]\nsecret = 1\n', encoding="utf-8")
    build.main([])
    for folder in ("", "exercises"):
        cells = nbformat.read(course / folder / "00_a.ipynb", as_version=4).cells
        folded = [cell for cell in cells if cell.metadata.get("jupyter") and "solution" not in build.tags(cell)]
        assert [cell.source for cell in folded] == ["secret = 1"]


def test_the_same_source_gives_the_same_bytes_and_check_names_what_differs(course, capsys):
    build.main([])
    before = {path: path.read_bytes() for path in course.rglob("*.ipynb")}
    capsys.readouterr()
    assert build.main([]) == 0 and build.main(["--check"]) == 0 and capsys.readouterr().out == ""
    shutil.copy(course / "00_a.ipynb", course / "07_gone.ipynb")
    source = course / "source" / "00_a.py"
    source.write_text(SOURCE.replace("# the solution", "# it"), encoding="utf-8")
    assert build.main(["--check"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "00_a.ipynb: is not what its source gives", "exercises/00_a.ipynb: is not what its source gives",
        "07_gone.ipynb: no source gives it",
    ]  # fmt: skip
    assert {path: path.read_bytes() for path in before} == before
    assert build.main(["00_a"]) == 0 and build.main(["--check", "00_a"]) == 0
    ids = [[cell["id"] for cell in json.loads(data)["cells"]] for data in (before[course / "00_a.ipynb"],)][0]
    now = [cell["id"] for cell in json.loads((course / "00_a.ipynb").read_bytes())["cells"]]
    assert [a == b for a, b in zip(ids, now, strict=True)] == [True, True, False, True]
    (course / "00_b.ipynb").write_bytes(before[course / "00_b.ipynb"].replace(b"\n", b"\r\n"))
    assert "00_b" not in [path.stem for path in build.different(build.built())]  # a checkout under Windows


@pytest.mark.parametrize(
    ("found", "replaced_by"),
    [
        ('    """Double x.\n\n    Not more.\n    """\n', ""),  # no docstring
        ("    y = 2 * x  # the solution\n\n    return y\n", ""),  # no body
        ("import math\n", "import math\ny = 3\n"),  # other things beside the function
        ("Hint", "Help"),
        ('# %% tags=["check"]', "# %%"),
    ],
)
def test_an_exercise_of_another_form_is_refused(course, found, replaced_by):
    assert found in SOURCE
    (course / "source" / "00_a.py").write_text(SOURCE.replace(found, replaced_by), encoding="utf-8")
    with pytest.raises(ValueError, match="exercise"):
        build.built()
