"""The commands that the documentation prints: where they stand, and what a shell would run.

A command stands in a block of a Markdown file (```sh or ```console), in its running text between backticks, or indented
in the docstring of a module. What follows three spaces or " # " on the same line of a docstring says what it does.
"""

import ast
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.S | re.M)
PAGES = ("README.md", "notebooks/README.md")
PROGRAMS = r"(?:\.venv/bin/)?(?:minillm|python3?|pip|jupyter|bash)"
SCRIPT = re.compile(r"python3? [\w/]+\.py\b")


class Block(NamedTuple):
    """Commands that are run one after the other: where they stand, and their lines."""

    where: str
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.where}: {self.lines[0][:50]}"


def page_blocks() -> list[Block]:
    """The console blocks of the pages."""
    found = []
    for page in PAGES:
        for kind, code in FENCED.findall((ROOT / page).read_text(encoding="utf-8")):
            if kind in ("sh", "console", "bash", "shell"):
                lines = code.replace("\\\n", " ").splitlines()
                found.append(Block(page, tuple(line.removeprefix("$ ").strip() for line in lines if line.strip())))
    return found


def inline_commands() -> list[Block]:
    """The commands in the running text of the pages.

    `minillm grade` is the name of a command. Rows of tables say what a command takes. Both are left out.
    """
    found = []
    for page in PAGES:
        text = re.sub(r"^\|.*$", "", FENCED.sub("", (ROOT / page).read_text(encoding="utf-8")), flags=re.M)
        spans = re.findall(rf"`({PROGRAMS} [^` ]+ [^`]+)`", " ".join(text.split()))
        found += [Block(page, (span,)) for span in spans]
    return found


def docstrings() -> dict[str, str]:
    """The docstring of every module of the package, the scripts and the notebooks, by its path."""
    files = [file for folder in ("minillm", "weights_scripts", "notebooks") for file in (ROOT / folder).rglob("*.py")]
    read = {file.relative_to(ROOT).as_posix(): ast.parse(file.read_text(encoding="utf-8")) for file in sorted(files)}
    return {name: ast.get_docstring(tree) or "" for name, tree in read.items()}


def docstring_blocks() -> list[Block]:
    """The indented commands of the docstrings."""
    found = []
    for name, text in docstrings().items():
        lines = re.findall(rf"^ +({PROGRAMS} .*)$", text, re.M)
        if lines:
            found.append(Block(name, tuple(re.split(r"   | # ", line)[0].strip() for line in lines)))
    return found
