"""The command for teachers and students: grade marks a file of functions that a student wrote."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from ..errors import MinillmError
from . import flags
from .shared import say, wrapped

if TYPE_CHECKING:
    from ..course.child import Report


def add(commands: flags.Commands) -> None:
    """Add the command of this file."""
    output = flags.output("with --template: the new file (default: print it)")
    grade = flags.command(commands, "grade", command_grade, output)
    grade.add_argument(
        "file", nargs="?", metavar="FILE", help="a Python file; it is executed: grade only what you would run"
    )
    grade.add_argument("--template", action="store_true", help="write the file to fill in, and do nothing else")
    grade.add_argument("--seconds", type=flags.positive, default=20, help="time limit for each function (default: 20)")


def command_grade(a: argparse.Namespace) -> int:
    """Grade seven functions that a student wrote; FILE is executed. Exit status 1 when something is wrong."""
    from ..course.assignment import template, write_template
    from ..course.child import grade_file

    if a.template == bool(a.file):
        raise MinillmError("expected one of FILE and --template")
    if a.template:
        if a.output:
            write_template(a.output)
            say(f"written: {a.output}; fill it in, then: minillm grade {a.output}")
        else:
            print(template(), end="")
        return 0
    if a.output:
        raise MinillmError("-o is the name for --template, expected FILE alone")
    report = grade_file(a.file, a.seconds)
    if a.json:
        print(json.dumps(report.asdict()))
        return 0 if report.all_right else 1
    print_report(report)
    return 0 if report.all_right else 1


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
    if block is None:
        print(wrapped(f"The functions as one block: {report.trouble}."))
    elif len(block.replaced) == len(FUNCTIONS):
        print("There is nothing yet to run as one block.")
    else:
        if block.first:
            print(f"The functions as one block, step by step:\n\n{block.table}\n")
            print(wrapped(f"First wrong step: {block.first} ({block.function}): {block.how}."))
        else:
            print(f"The functions as one block: all {len(block.steps)} steps agree.")
        if block.replaced:
            print(wrapped(f"In the place of {', '.join(block.replaced)}: the right values."))
