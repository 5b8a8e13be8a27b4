"""Grade a student's file: it is executed in child processes, each with a time limit.

    parent   grade_file -> run_child        child   grade_here -> functions_of, then one line of JSON per function

The child writes each line as soon as a function is graded. When it hangs or dies, the function that it was running gets
no points, and a new child continues with the next function. A child process is no protection against harm: grade only a
file that you would run yourself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import MinillmError
from ..files import file_errors
from .assignment import FUNCTIONS, POINTS, Grade, cases_of, goldens, grade_function
from .block import Block, run_block
from .check import error_text, raised

SECONDS = 20  # time limit of one child


class Report(NamedTuple):
    """A graded file."""

    grades: list[Grade]
    block: Block | None  # None where the child hung or died in it; ``trouble`` says how
    trouble: str

    @property
    def points(self) -> float:
        """Sum of the points of all functions (POINTS each at most)."""
        return sum(grade.points for grade in self.grades)

    @property
    def all_right(self) -> bool:
        """Whether every case and every step of the block is right."""
        right = all(grade.right == grade.total for grade in self.grades)
        return right and self.block is not None and self.block.first is None

    def asdict(self) -> dict[str, Any]:
        """The report for JSON."""
        block = self.block and {key: value for key, value in self.block._asdict().items() if key != "table"}
        functions = [grade._asdict() for grade in self.grades]
        of = POINTS * len(FUNCTIONS)
        return {"points": self.points, "of": of, "functions": functions, "block": block, "trouble": self.trouble}


def grade_file(path: str | Path, seconds: float = SECONDS) -> Report:
    """Execute a file and grade its functions, in child processes that are stopped after ``seconds`` each.

    Raises MinillmError, in one sentence, for a file that cannot be read, is not valid Python, or fails while it is
    imported.
    """
    path = Path(path)
    with file_errors(path, "read", MinillmError):
        path.read_bytes()
    goldens()  # damaged goldens are reported here, because they are not the file's fault
    grades: dict[str, Grade] = {}
    block: Block | None = None
    trouble = ""
    skipped: list[str] = []
    pending = [*FUNCTIONS, "block"]
    while pending:
        rows, ended = run_child(path, seconds, pending, skipped)
        if not rows or "error" in rows[0]:  # the first line says whether the file could be imported
            raise MinillmError(f"{path}: {rows[0]['error'] if rows else f'importing it {ended}'}")
        for row in rows[1:]:
            name = pending.pop(0)
            if name == "block":
                block = Block(**row)
            else:
                grades[name] = Grade(**row)
        if pending:
            name = pending.pop(0)
            skipped.append(name)
            if name == "block":
                trouble = ended
            else:
                grades[name] = Grade(name, 0.0, 0, len(cases_of(name)), ended, "")
    return Report([grades[name] for name in FUNCTIONS], block, trouble)


def run_child(
    path: Path, seconds: float, names: Sequence[str], skipped: Sequence[str]
) -> tuple[list[dict[str, Any]], str]:
    """Run ``grade_here`` in a new process: the rows that it wrote, and in words how it ended."""
    program = "import os, sys; from minillm.course.child import grade_here; grade_here(*sys.argv[1:]); os._exit(0)"
    # -P: a file in the current folder must not take the place of a module.
    command = [sys.executable, "-P", "-c", program, str(path)]
    paths = [str(Path(__file__).parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    nowhere = subprocess.DEVNULL
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        output = Path(folder) / "rows.jsonl"
        output.touch()
        command += [str(output), ",".join(names), ",".join(skipped)]
        try:
            status = subprocess.run(
                command, timeout=seconds, env=environment, stdin=nowhere, stdout=nowhere, stderr=nowhere
            ).returncode
            ended = f"ended the process (exit status {status})"
        except subprocess.TimeoutExpired:
            ended = f"did not finish within {seconds:g} s"
        lines = output.read_bytes().split(b"\n")[:-1]  # a last line without its end was not written whole
        return [json.loads(line) for line in lines], ended


def grade_here(path: str, output: str, names: str, skipped: str) -> None:
    """The child's part: execute the file, then write one line of JSON per name as soon as it is graded."""
    with open(output, "ab", buffering=0) as file:

        def write(row: Mapping[str, Any]) -> None:
            file.write(json.dumps(row).encode() + b"\n")

        try:
            functions = functions_of(path)
        except MinillmError as error:
            write({"error": str(error)})
            return
        write({})
        kept = {name: value for name, value in functions.items() if name not in skipped.split(",")}
        for name in names.split(","):
            write((run_block(kept) if name == "block" else grade_function(name, kept))._asdict())


def functions_of(path: str | Path) -> dict[str, object]:
    """Execute a Python file and take what it defines under the names of FUNCTIONS. Raises MinillmError."""
    # Compiled from the source each time: Python's own cache may hold an older version of the file.
    module = types.ModuleType("answer")
    module.__file__ = str(path)
    sys.modules["answer"] = module
    try:
        code = compile(Path(path).read_bytes(), str(path), "exec")
    except SyntaxError as error:
        line = f"line {error.lineno}" if error.lineno else "it"
        raise MinillmError(f"{line} is not valid Python ({error.msg})") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise MinillmError(f"it is not valid Python ({error_text(error)})") from None
    try:
        exec(code, vars(module))
    except BaseException as error:  # exit(), too
        raise MinillmError(f"importing it {raised(error, str(path))}") from None
    return {name: vars(module)[name] for name in FUNCTIONS if name in vars(module)}
