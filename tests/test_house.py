"""The house keeps its shape: a test file for each module under the same name, short files and short functions."""

import ast
from pathlib import Path

import pytest

import minillm

PACKAGE, TESTS = Path(minillm.__file__).parent, Path(__file__).parent
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.stem not in ("__init__", "__main__")]
SCRIPTS = sorted((TESTS.parent / "weights_scripts").glob("*.py"))
FILE_LINES, FUNCTION_LINES = 400, 80  # at most; 300 and 60 are the aim


@pytest.mark.parametrize("module", [path.relative_to(PACKAGE).as_posix() for path in MODULES])
def test_every_module_has_a_test_file_of_the_same_name(module):
    path = TESTS / module
    assert path.with_name(f"test_{path.name}").is_file()


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_file_begins_with_its_docstring_and_is_short(path):
    source = path.read_text(encoding="utf-8")
    lines, tree = source.count("\n"), ast.parse(source)
    assert len(ast.get_docstring(tree) or "") > 20
    assert lines <= FILE_LINES
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= FUNCTION_LINES, f"{node.name} has {length} lines"
