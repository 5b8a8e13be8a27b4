"""The command for teachers and students: grade marks files of functions that students wrote."""

from __future__ import annotations

import argparse
import inspect
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MinillmError, show
from . import flags
from .shared import say, wrapped

if TYPE_CHECKING:
    from ..course.grade import Report

SAFETY = """
Example: minillm grade handed_in --csv marks.csv --jobs 2

Each file is executed in a process of its own, with limits: --seconds, --memory, files of at most
10 MB, and (on Linux) no further processes. That process gets arguments and gives back arrays. What
is right, the points and the table stay in this one. A file that imports minillm, reads its data,
or does something that could hide this, is flagged.

Not isolated are your files and the network: what you can read, write or reach, a student's file
can, too. Where that matters, grade in a container with minillm in it:

  docker run --rm --network none --read-only --tmpfs /tmp \\
      -v "$PWD/class:/class:ro" -v "$PWD/marks:/marks" IMAGE \\
      minillm grade /class --csv /marks/marks.csv
"""
NAME = 40  # characters of a file's name in the printed table
MISTAKE = 300  # and of its first mistake below it


def add(commands: flags.Commands) -> None:
    """Add the command of this file."""
    output = flags.output("with --template: the new file (default: print it)")
    grade = flags.command(commands, "grade", command_grade, output)
    grade.description, grade.epilog = inspect.cleandoc(command_grade.__doc__ or ""), SAFETY
    grade.formatter_class = argparse.RawDescriptionHelpFormatter
    grade.add_argument("file", nargs="?", metavar="FILE", help="a .py or .ipynb file, or the folder of a class")
    grade.add_argument("--template", action="store_true", help="write the file to fill in, and do nothing else")
    about = "of a folder: the table to write (.csv or .json); rows that it holds of unchanged files are kept"
    grade.add_argument("--csv", metavar="FILE", help=about)
    jobs = min(4, os.cpu_count() or 1)
    grade.add_argument("--jobs", type=flags.positive, default=jobs, help=f"of a folder: files at a time (here: {jobs})")
    seconds = "time limit for each function, and for importing the file (default: 10)"
    grade.add_argument("--seconds", type=flags.positive, default=10, help=seconds)
    memory = "memory limit of a student's process in MB, Python and NumPy included (default: 1000)"
    grade.add_argument("--memory", type=flags.positive, default=1000, metavar="MB", help=memory)


def command_grade(a: argparse.Namespace) -> int:
    """Grade seven functions that a student wrote, or those of a whole class.

    Exit status of a FILE: 1 when something in it is wrong. Of a folder: 0 when all its files have their row.
    """
    if a.template == bool(a.file):
        raise MinillmError("expected one of FILE and --template")
    if a.template:
        return write_or_print_template(a.output)
    if a.output:
        raise MinillmError("-o is the name for --template, expected FILE alone")
    if Path(a.file).is_dir():
        return grade_folder(a)
    if a.csv:
        raise MinillmError(f"{a.file}: --csv is for a folder, expected the folder of a class")
    from ..course.grade import grade_file

    report = grade_file(a.file, a.seconds, a.memory)
    if a.json:
        print(json.dumps(report.asdict()))
    else:
        print_report(report)
    return 0 if report.all_right else 1


def write_or_print_template(output: str | None) -> int:
    """The file to fill in: to a new file, or on stdout."""
    from ..course.assignment import template, write_template

    if output:
        write_template(output)
        say(f"written: {output}; fill it in, then: minillm grade {output}")
    else:
        print(template(), end="")
    return 0


# ---- one file --------------------------------------------------------------------------------------------------------
def print_report(report: Report) -> None:
    """Points and diagnosis of each function, then how all of them work together as one block."""
    from ..course.assignment import FUNCTIONS, POINTS

    width = max(map(len, FUNCTIONS))
    print(f"{'function':<{width}}    cases  points  what is wrong")
    for grade in report.grades:
        start = f"{grade.function:<{width}}  {grade.right:>2} of {grade.total:<2} {grade.points:>6.1f}  "
        print(wrapped(grade.diagnosis or grade.problem or "-", start))
    print(f"{'together':<{width}}           {report.points:>5.1f}  of {POINTS * len(FUNCTIONS)}\n")
    block = report.block
    if len(block.replaced) == len(FUNCTIONS):
        print("There is nothing yet to run as one block.")
    else:
        if block.first:
            print(f"The functions as one block, step by step:\n\n{block.table}\n")
            print(wrapped(f"First wrong step: {block.first} ({block.function}): {block.how}."))
        else:
            print(f"The functions as one block: all {len(block.steps)} steps agree.")
        if block.replaced:
            print(wrapped(f"In the place of {', '.join(block.replaced)}: the right values."))
    if report.flag:
        print(wrapped(f"To look at: the file {report.flag}."))


# ---- a class ---------------------------------------------------------------------------------------------------------
def grade_folder(a: argparse.Namespace) -> int:
    """Grade all files of a folder, and print their rows."""
    from ..course.classroom import Settings, grade_class

    def told(row: Mapping[str, object], done: int, total: int) -> None:
        say(f"{done} of {total}: {row['name']}: {row['total']:g} points, {row['seconds']:.1f} s")

    rows = grade_class(a.file, a.csv, Settings(a.seconds, a.memory, a.jobs), told)
    if a.csv:
        say(f"written: {show(a.csv)}")
    if a.json:
        print(json.dumps(rows))
    else:
        print_rows(rows)
    return 0


def print_rows(rows: Sequence[Mapping[str, object]]) -> None:
    """The rows as a table, and below it the first mistake of each file."""
    from ..course.assignment import FUNCTIONS
    from ..tables import text_table

    short = ("norm", "rope", "attn", "swiglu", "cut", "pred", "lru")
    columns = {"name": ("file", "")} | {key: (name, ".1f") for key, name in zip(FUNCTIONS, short, strict=True)}
    columns |= {"total": ("total", ".1f"), "seconds": ("s", ".1f")}
    print(text_table([row | {"name": show(row["name"], NAME)} for row in map(dict, rows)], columns))
    for row in rows:
        if row["first_mistake"]:
            print(wrapped(f"{row['name']}: {show(row['first_mistake'], MISTAKE)}"))
    for row in rows:
        if row["flag"]:
            print(wrapped(f"To look at: {row['name']} {row['flag']}."))
