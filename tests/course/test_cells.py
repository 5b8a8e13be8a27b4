"""What of a file is executed: all of a .py, and of a notebook what its functions need."""

import json

import fuzz
import pytest

from minillm.course.cells import executed
from minillm.errors import MinillmError


def notebook(*cells: str, **more) -> bytes:
    """Code cells; a text that begins with # is Markdown."""
    kinds = [("markdown" if cell.startswith("# ") else "code", cell) for cell in cells]
    listed = [{"cell_type": kind, "source": cell.splitlines(keepends=True)} for kind, cell in kinds]
    return json.dumps({"cells": listed, "nbformat": 4} | more).encode()


def run(*cells: str, wanted=("f", "g")):
    return executed("mine.ipynb", notebook(*cells), wanted)


def test_only_what_a_function_needs_is_executed():
    done = run(
        "import math\nimport no_such_module",
        "TABLE = [1, 2]\nTABLE[0] = 5\nseen = print('never') or 1 / 0",
        "def helper(x):\n    return TABLE[x] + math.floor(1.5)",
        "# A title",
        "def f(x):\n    x = helper(x)\n    return x\n\nf(0) / 0",
        "x = 1 / 0\nwhile True: pass",
        "for i in range(2):\n    TABLE[i] += 1",
    )
    assert done.failed == {} and list(done.defined) == ["f"] and done.defined["f"](0) == 7


def test_the_last_definition_counts_and_what_stands_before_it_still_runs():
    done = run(
        "def f():\n    raise NotImplementedError", "a = 1", "def f():\n    return a", "a = 2", "f = lambda f=f: f"
    )
    assert done.defined["f"]()() == 2


def test_a_table_that_is_filled_by_calls_is_filled_and_a_plot_of_it_is_not_drawn():
    done = run(
        "import numpy as np\nimport json as plot\nsizes, rows = [], {}",
        "for i in range(3):\n    sizes.append(i)",
        "rows.update(a=1)\nplot.dumps(1 / 0)\nother = []\nother.append(1 / 0)\nnp.ones(1 / 0)",
        "def f():\n    return np.array(sizes).tolist(), rows, plot.dumps(3)",
    )
    assert done.defined["f"]() == ([0, 1, 2], {"a": 1}, "3") and done.failed == {}


def test_names_from_a_star_a_class_and_a_condition_are_found():
    done = run(
        "from math import *",
        "class A:\n    size = floor(2.5)\n    def get(self): return B",
        "if True:\n    B = 3\nelse:\n    C = 1",
        "try:\n    import cupy as xp\nexcept ImportError:\n    xp = 7",
        "def f():\n    return A.size, A().get(), xp",
    )
    assert done.defined["f"]() == (2, 3, 7)


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("%matplotlib inline\n%config x = 1\n!pip install y\nf?\nhelp??\ndef f(): return 1", 1),
        ("%%time\ndef f(): return 1", 1),
        ("files = !ls\nn = %timeit -o 1\ndef f(): return files", None),
        ("if True:\n    %time x = 1\n    def f(): return 1", 1),
        ("a, b = 7, 4\nc = (a\n  % b)\ndef f(): return c", 3),
        ("%%capture\ndef f(): return 1", 1),
    ],
)
def test_lines_for_ipython_do_no_harm(cell, value):
    assert run(cell).defined["f"]() == value


def test_cells_in_another_language_are_no_python():
    done = run("%%bash\ndef f() nonsense", "%%writefile x.py\ndef f(): return 2", "def g(): return 1")
    assert list(done.defined) == ["g"] and done.failed == {}


def test_what_fails_costs_only_what_it_defines_and_says_where():
    done = run("# one", "k = {}['key']\ndef f(): return k", "def h(:", "def f(x):\n  return\n\ndef g(:")
    assert list(done.defined) == ["f"] and list(done.failed) == ["g"]
    assert done.failed["g"].startswith("is missing: in cell 4, line 4 is not valid Python (")
    done = run("# one", "import numpy\ng = numpy.no_such_thing")
    assert done.failed["g"].startswith("is missing: its cell raised AttributeError: module 'numpy' has no attribute")
    assert done.failed["g"].endswith("in line 2 of cell 2: g = numpy.no_such_thing")
    assert run("def f():\n    exit(3)\nexit(4)").defined


def test_a_py_file_runs_whole_and_its_failure_is_one_sentence():
    assert executed("a.py", b"x = 1\ndef f(): return x", ["f", "g"]).defined["f"]() == 1
    exported = b"get_ipython().run_line_magic('matplotlib', 'inline')\nget_ipython().system('ls')\ndef f(): return 1"
    assert executed("a.py", exported, ["f"]).defined["f"]() == 1
    for source, words in ((b"def f(:", "line 1 is not valid Python"), (b"1/0", "importing it raised ZeroDivisionError"),
                          (b"exit()", "importing it raised SystemExit"), (b"\0", "is not valid Python")):  # fmt: skip
        with pytest.raises(MinillmError, match=words):
            executed("a.py", source, ["f"])


@pytest.mark.parametrize(
    "source",
    [b"", b"{", b"[]", b"{}", b'{"cells": 3}', b'{"cells": [3]}', b'{"cells": [{}]}', b"\xff\xfe\x00", b"[" * 10**5,
     b'{"cells": [{"cell_type": "code", "source": 3}]}', b'{"worksheets": []}',
     b'{"cells": [{"cell_type": "code", "source": [1]}]}'],
)  # fmt: skip
def test_what_is_no_notebook_is_one_sentence(source):
    with pytest.raises(MinillmError, match="it is not a notebook"):
        executed("a.ipynb", source, ["f"])


@fuzz.examples
def test_any_notebook_gives_functions_or_one_sentence(examples, tmp_path):
    good = {"cells": [
        {"cell_type": "markdown", "source": ["# A title"]},
        {"cell_type": "code", "source": ["import math\n", "k = 3"], "outputs": [], "execution_count": None},
        {"cell_type": "code", "source": "%time x = k\ndef f():\n    return k", "metadata": {"tags": ["a"]}},
    ], "nbformat": 4, "metadata": {}}  # fmt: skip

    def parse(path):
        return executed("mine.ipynb", path.read_bytes(), ["f"])

    counts = fuzz.holds(
        examples, fuzz.json_files(good), tmp_path / "mine.ipynb", parse, lambda done: set(done.defined) <= {"f"}
    )
    assert counts["accepted"] and counts["refused"]
