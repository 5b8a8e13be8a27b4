"""Grade a student's file: points for each function, all of them together as one block, and what else is to be known.

    grade_file("mine.py")            a Report; --json prints it

The file is executed in a process of its own (judge.py).
"""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import MinillmError
from .assignment import FUNCTIONS, POINTS, Grade, goldens, grade_function
from .block import Block, run_block
from .child import IMPORTS, NOTICES, READS
from .judge import MEMORY, SECONDS, Answers

IMPORT_OF_MINILLM = re.compile(rb"^[ \t]*(?:import|from)[ \t]+minillm\b", re.M)


class Report(NamedTuple):
    """A graded file: one grade per function, the block, the seconds that it took, and what a teacher should look at."""

    grades: list[Grade]
    block: Block
    seconds: float
    flag: str  # "imports minillm; starts processes", mostly ""

    @property
    def points(self) -> float:
        """Sum of the points of all functions (POINTS each at most)."""
        return sum(grade.points for grade in self.grades)

    @property
    def all_right(self) -> bool:
        """Whether every case and every step of the block is right."""
        return all(grade.right == grade.total for grade in self.grades) and self.block.first is None

    def asdict(self) -> dict[str, Any]:
        """The report for JSON."""
        block = {key: value for key, value in self.block._asdict().items() if key != "table"}
        functions = [grade._asdict() for grade in self.grades]
        of = POINTS * len(FUNCTIONS)
        # "trouble": earlier versions said there why a block could not be run. Now it always can.
        told = {"trouble": "", "flag": self.flag, "seconds": round(self.seconds, 2)}
        return {"points": self.points, "of": of, "functions": functions, "block": block, **told}


class NotGraded(MinillmError):
    """A file that has no report: it cannot be read, is not valid Python, or fails while it is imported.

    flag: as in a Report.
    """

    def __init__(self, message: object, flag: str):
        super().__init__(message)
        self.flag = flag


def grade_file(
    path: str | Path, seconds: float = SECONDS, memory: int = MEMORY, stop: threading.Event | None = None
) -> Report:
    """Grade a .py or an .ipynb file.

    seconds: for all calls of one function, and for importing the file; memory: in MB, of the process that runs it;
    stop: ends the grading as soon as it is set, with whatever grades.
    Raises NotGraded (or MinillmError), in one sentence.
    """
    goldens()  # damaged goldens are reported here, because they are not the file's fault
    begun = time.perf_counter()
    answers = Answers(path, seconds, memory, stop or threading.Event())
    try:
        with answers:
            functions = answers.functions()
            grades = [grade_function(name, functions, answers.failed.get(name, "is missing")) for name in FUNCTIONS]
            block = run_block(answers.functions())
    except MinillmError as error:
        raise NotGraded(error, flag_of(answers)) from None
    return Report(grades, block, time.perf_counter() - begun, flag_of(answers))


def flag_of(answers: Answers) -> str:
    """What a file does that an answer need not do: seen while it ran, or in its text."""
    seen = set(answers.notices)
    if answers.path.suffix.lower() == ".py" and IMPORT_OF_MINILLM.search(answers.source):
        seen.add(IMPORTS)
    if b"goldens" in answers.source:
        seen.add(READS)
    return "; ".join(notice for notice in NOTICES if notice in seen)
