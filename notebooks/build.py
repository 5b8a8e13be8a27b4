"""Write the notebooks from their sources.

    python notebooks/build.py
    python notebooks/build.py --check 00_shapes_before_models

Without a name it writes all of them.

    source/NN_name.py        the source to edit: jupytext's percent format, every exercise solved
    NN_name.ipynb            the lesson, with folded solutions
    exercises/NN_name.ipynb  the same for solving: each exercise has a function without its body, and the solution is
                             folded below the check

The notebooks are never edited by hand. They have no outputs, and the same source always gives the same bytes.

An exercise consists of three cells: Markdown with the task, and a hint in <details>; a code cell tagged "exercise" with
imports and one function with a docstring; a code cell tagged "check". A cell tagged "folded" is folded in both
notebooks: the reader runs it, but does not read it yet. --check writes nothing, names each file that differs from its
source, and exits with 1.
"""

import argparse
import ast
import hashlib
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

HERE = Path(__file__).parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
TO_SOLVE = """
*This version is for solving. Each exercise has an empty function for you to write, a check that says how many cases are
right, and a folded solution below the check. [The lesson with all solutions]({lesson}) is one folder above.*"""
SOLUTION = "<details><summary>Solution</summary>\n\n```python\n{code}\n```\n\n</details>"


def tags(cell: NotebookNode) -> list[str]:
    """The tags of a cell."""
    return cell.metadata.get("tags", [])


def exercise_function(code: str) -> ast.FunctionDef:
    """The function of an exercise cell; ValueError for a cell that is not imports and one function."""
    nodes = ast.parse(code).body
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    others = [node for node in nodes if not isinstance(node, ast.FunctionDef | ast.Import | ast.ImportFrom)]
    if len(functions) != 1 or others or not ast.get_docstring(functions[0]) or len(functions[0].body) < 2:
        raise ValueError(f"an exercise is imports and one function with docstring and body, found:\n{code}")
    return functions[0]


def without_body(code: str) -> str:
    """The code of an exercise with its function's body replaced; the lines above the function stay."""
    function = exercise_function(code)
    head = code.splitlines()[: function.body[0].end_lineno]
    return "\n".join([*head, f'{" " * function.body[0].col_offset}raise NotImplementedError("your turn")'])


def read(source: Path) -> NotebookNode:
    """Read a source: a notebook with solved exercises. ValueError where an exercise's three cells are not in order."""
    notebook = jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent")
    cells = notebook.cells
    for i, cell in enumerate(cells):
        cell.metadata = NotebookNode({key: cell.metadata[key] for key in ("tags",) if key in cell.metadata})
        if "folded" in tags(cell):
            cell.metadata["jupyter"] = NotebookNode({"source_hidden": True})
        if "exercise" in tags(cell):
            exercise_function(cell.source)
            before, after = cells[i - 1], cells[i + 1] if i + 1 < len(cells) else None
            if before.cell_type != "markdown" or "<summary>Hint</summary>" not in before.source:
                raise ValueError(f"{source.name}: no Markdown with a hint stands before the exercise\n{cell.source}")
            if after is None or "check" not in tags(after):
                raise ValueError(f"{source.name}: no check follows the exercise\n{cell.source}")
    return notebook


def lesson(source: Path) -> NotebookNode:
    """The lesson: solutions are folded (front ends that cannot fold show them)."""
    notebook = read(source)
    for cell in notebook.cells:
        if "exercise" in tags(cell):
            cell.metadata = NotebookNode({"jupyter": {"source_hidden": True}, "tags": ["exercise", "solution"]})
    return finished(notebook)


def exercises(source: Path) -> NotebookNode | None:
    """The notebook for solving, in the folder exercises/; None for a source without exercises."""
    notebook, cells, solved = read(source), [], ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = from_below(cell.source)
            if not cells:
                cell.source += "\n" + TO_SOLVE.format(lesson=f"../{source.stem}.ipynb")
        cells.append(cell)
        if "exercise" in tags(cell):
            solved, cell.source = cell.source, without_body(cell.source)
        if "check" in tags(cell) and solved:
            cells.append(nbformat.v4.new_markdown_cell(SOLUTION.format(code=solved)))
            solved = ""
    if len(cells) == len(notebook.cells):
        return None
    notebook.cells = cells
    return finished(notebook)


def from_below(markdown: str) -> str:
    """Adapt relative links to the folder exercises/; a link to a notebook with exercises leads to its exercises."""

    def moved(found: re.Match) -> str:
        if not found[1]:  # code
            return found[0]
        name, _, ending = found[1].rpartition(".")
        source = HERE / "source" / f"{name}.py"
        here_too = ending == "ipynb" and source.is_file() and has_exercises(source)
        return found[0] if here_too or re.match(r"[a-z]+:|#", found[1]) else f"](../{found[1]})"

    return re.sub(r"```.*?```|`[^`]*`|<code>.*?</code>|\]\(([^)\s]+)\)", moved, markdown, flags=re.S)


def has_exercises(source: Path) -> bool:
    """Whether a source holds an exercise."""
    return 'tags=["exercise"]' in source.read_text(encoding="utf-8")


def finished(notebook: NotebookNode) -> NotebookNode:
    """The notebook with our metadata, without outputs, and with cell ids that depend only on the cells' content."""
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        content = f"{cell.cell_type}\n{cell.source}"
        seen[content] = seen.get(content, 0) + 1
        cell.id = hashlib.sha256(f"{content}\n{seen[content]}".encode()).hexdigest()[:8]
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata = NotebookNode(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    nbformat.validate(notebook)
    return notebook


def built(names: Iterable[str] = ()) -> dict[Path, str]:
    """{path: text} of every notebook of the sources, or of the sources with these names."""
    files = {}
    for source in sorted(HERE.glob("source/*.py")):
        if names and source.stem not in names:
            continue
        files[HERE / f"{source.stem}.ipynb"] = lesson(source)
        files[HERE / "exercises" / f"{source.stem}.ipynb"] = exercises(source)
    return {path: nbformat.writes(notebook) + "\n" for path, notebook in files.items() if notebook is not None}


def different(files: dict[Path, str]) -> list[Path]:
    """The paths whose file is missing or differs (line ends aside)."""
    return [path for path, text in files.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]


def left_over(files: dict[Path, str]) -> list[Path]:
    """Notebooks without a source."""
    return sorted({*HERE.glob("*.ipynb"), *HERE.glob("exercises/*.ipynb")} - set(files))


def main(argv: list[str] | None = None) -> int:
    """Write or check the notebooks, and print what was done."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="sources, without .py (all)")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a notebook differs")
    args = parser.parse_args(argv)
    files = built(args.names)
    changed, extra = different(files), [] if args.names else left_over(files)
    for path in changed:
        if not args.check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(files[path], encoding="utf-8", newline="\n")
        print(f"{path.relative_to(HERE).as_posix()}: {'is not what its source gives' if args.check else 'written'}")
    for path in extra:
        print(f"{path.relative_to(HERE).as_posix()}: no source gives it")
    return 1 if extra or (args.check and changed) else 0


if __name__ == "__main__":
    sys.exit(main())
