"""Grade the files of a class: one row per file, in a table that grows with each and can be taken up again.

    grade_class("handed_in", "marks.csv", jobs=2)

FOLDER is what a teacher downloads: files whose names hold the students' names, or one folder per student. Each .py and
.ipynb file below it is graded, except a module that another file beside it imports and that has none of the functions.

The table is written whole after each file. A row whose file has not changed since (sha256) is kept as it is; so an
interrupted run, or a late submission, needs the same command once more.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, nullcontext
from pathlib import Path
from typing import NamedTuple

from ..errors import MinillmError, show
from ..files import locked, read_bytes
from ..rows import NOT_NEGATIVE, TEXT, load_rows, matching
from ..tables import check_ending, save_rows
from .assignment import FUNCTIONS
from .child import FILE_LIMIT
from .grade import NotGraded, Report, grade_file
from .judge import MEMORY, SECONDS

KINDS = (".py", ".ipynb")
WORDS = matching(r".*", "a text").or_empty()
COLUMNS = {
    "name": TEXT, **dict.fromkeys((*FUNCTIONS, "total"), NOT_NEGATIVE), "first_mistake": WORDS,
    "seconds": NOT_NEGATIVE, "flag": WORDS, "sha256": WORDS,
}  # fmt: skip
NAMED = 5  # files in a note, at most
NOT_A_STUDENTS = ("__pycache__", "__MACOSX", "node_modules")
NAMES = "|".join(FUNCTIONS)
DEFINES = re.compile(rf"^[ \t]*(?:def[ \t]+(?:{NAMES})\b|(?:{NAMES})[ \t]*=)".encode(), re.M)
# The quote and the escaped line end stand before the lines of a notebook.
IMPORTS = re.compile(rb"(?:^|\"|\\n)[ \t]*(?:from[ \t]+\.?|import[ \t]+)([\w \t,]+)", re.M)
Row = dict[str, object]


class Settings(NamedTuple):
    """How a class is graded: seconds per function, MB per process, files at a time."""

    seconds: float = SECONDS
    memory: int = MEMORY
    jobs: int = 1


class Submission(NamedTuple):
    """A file to grade under the name that its row has; or, where there is none, the reason."""

    name: str
    path: Path
    reason: str = ""


def grade_class(
    folder: str | Path,
    table: str | Path | None = None,
    settings: Settings | None = None,
    told: Callable[[Row, int, int], None] = lambda row, done, all_of_them: None,
) -> list[Row]:
    """Grade all files of a folder; rows with the keys COLUMNS, in the order of the names.

    table: a .csv or .json to write after each file; the rows that it holds of unchanged files are kept, and so are
    those of files that are no longer there. told: called with each new row, how many are done, and of how many.
    Raises MinillmError where there is nothing to grade, or the table is another one.
    """
    settings, found = settings or Settings(), submissions(Path(folder))
    with nullcontext() if table is None else locked(table, MinillmError):  # a second run waits, and keeps these rows
        rows = earlier_rows(Path(table)) if table is not None else {}
        written = source_of(Path(table)) if table is not None else b""
        hashes = {one.name: sha256_of(one) for one in found}
        todo = [one for one in found if not kept(rows.get(one.name), hashes[one.name])]
        with closing(graded(todo, hashes, settings)) as coming:
            for done, row in enumerate(coming, len(found) - len(todo) + 1):
                rows[str(row["name"])] = row
                if table is not None:
                    written = save(Path(table), ordered(rows, found), written)
                told(row, done, len(found))
    return [rows[one.name] for one in found]


def graded(todo: Sequence[Submission], hashes: Mapping[str, str], settings: Settings) -> Generator[Row, None, None]:
    """The rows of these files, each as soon as it is ready; ``jobs`` at a time, in threads that wait for processes."""
    stop = threading.Event()
    with ThreadPoolExecutor(settings.jobs) as pool:
        try:
            waiting = [pool.submit(row_of, one, hashes[one.name], settings, stop) for one in todo]
            for future in as_completed(waiting):
                yield future.result()
        finally:  # after Ctrl-C, too: every student's process ends before this does
            stop.set()
            pool.shutdown(cancel_futures=True)


# ---- which files -----------------------------------------------------------------------------------------------------
def submissions(folder: Path) -> list[Submission]:
    """What is to be graded below a folder, by name. Raises MinillmError for a folder without any."""
    files = sorted(files_below(folder))
    sources = [path for path in files if path.suffix.lower() in KINDS]
    helpers = [path for path in sources if is_helper(path, sources)]
    note("not graded, because other files import them and they have none of the functions", helpers, folder)
    found = [Submission(name_of(path, folder), path) for path in sources if path not in helpers]
    others = [path for path in files if path not in sources and path.parent == folder]
    with_files = {path.relative_to(folder).parts[0] for path in sources}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and is_students(path) and path.name not in with_files:
            inside = ", ".join(file.name for file in files if file.is_relative_to(path))
            reason = f"the folder holds no .py and no .ipynb file{f' (found {inside})' if inside else ''}"
            found.append(Submission(f"{name_of(path, folder)}/", path, reason))
    if not found:
        raise MinillmError(f"{folder}: holds no .py and no .ipynb file, expected those of a class")
    foreign = [path for path in others if path.suffix.lower() not in (".csv", ".json", ".txt", ".md")]
    note("not graded, because they are no .py and no .ipynb files", foreign, folder)
    return sorted(found)


def note(what: str, paths: Sequence[Path], folder: Path) -> None:
    """A note on files, the first of them by name."""
    if paths:
        names = ", ".join(name_of(path, folder) for path in paths[:NAMED])
        more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
        warnings.warn(f"{what}: {names}{more}", stacklevel=3)


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder, except in hidden ones and in Python's own."""

    def refuse(error: OSError) -> None:
        if error.filename is not None and Path(error.filename) == folder:
            raise MinillmError(f"{folder}: cannot be read ({error.strerror or error})")

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if is_students(Path(place, name))]
        yield from (Path(place, name) for name in files if not name.startswith("."))


def is_students(folder: Path) -> bool:
    """Whether a folder may hold a student's files: not a hidden one, no cache, no virtual environment."""
    own = folder.name.startswith(".") or folder.name in NOT_A_STUDENTS
    return not own and not (folder / "pyvenv.cfg").exists()


def name_of(path: Path, folder: Path) -> str:
    """The name of a file in the table: its path below the folder, with what no table can hold escaped."""
    return show(path.relative_to(folder).as_posix())


def source_of(path: Path) -> bytes:
    """The bytes of a file; none where it cannot be read (its row will say why)."""
    try:
        return read_bytes(path, MinillmError, FILE_LIMIT)
    except MinillmError:
        return b""


def is_helper(path: Path, sources: Sequence[Path]) -> bool:
    """Whether a file is only a module of another one: that lies beside or above it, and imports it.

    A module that has one of the functions itself is no helper.
    """
    if path.suffix.lower() != ".py" or DEFINES.search(source_of(path)):
        return False
    for other in sources:
        if other != path and path.is_relative_to(other.parent):
            name = os.fsencode(path.relative_to(other.parent).with_suffix("").parts[0])
            if any(name in re.findall(rb"\w+", words) for words in IMPORTS.findall(source_of(other))):
                return True
    return False


# ---- rows ------------------------------------------------------------------------------------------------------------
def row_of(one: Submission, sha256: str, settings: Settings, stop: threading.Event) -> Row:
    """Grade one file."""
    scores: dict[str, object] = dict.fromkeys(FUNCTIONS, 0.0)
    ending: Row = {"total": 0.0, "first_mistake": one.reason, "seconds": 0.0, "flag": "", "sha256": sha256}
    if not one.reason:
        begun = time.perf_counter()
        try:
            report = grade_file(one.path, settings.seconds, settings.memory, stop)
            scores = {grade.function: round(grade.points, 2) for grade in report.grades}
            ending |= {"total": round(report.points, 2), "first_mistake": first_mistake(report)}
            ending["flag"] = report.flag
        except MinillmError as error:
            ending["first_mistake"] = str(error).removeprefix(f"{show(one.path)}: ")
            ending["flag"] = error.flag if isinstance(error, NotGraded) else ""
        ending["seconds"] = round(time.perf_counter() - begun, 2)
    return {"name": one.name, **scores, **ending}


def first_mistake(report: Report) -> str:
    """The first function that is not wholly right, and why; "" where all are."""
    wrong = [grade for grade in report.grades if grade.right < grade.total]
    if wrong:
        return f"{wrong[0].function}: {wrong[0].diagnosis or wrong[0].problem}"
    return f"{report.block.function}, as one block: {report.block.how}" if report.block.first else ""


def sha256_of(one: Submission) -> str:
    """The hash of a file; "" where there is none."""
    source = b"" if one.reason else source_of(one.path)
    return hashlib.sha256(source).hexdigest() if source else ""


def earlier_rows(table: Path) -> dict[str, Row]:
    """{name: row} of a table of an earlier run; none where there is no file. Raises MinillmError for another table."""
    check_ending(table)
    if not table.exists():
        return {}
    rows = load_rows(table, COLUMNS, "give another name for a new table")
    if not rows and (source := source_of(table)).strip() and b"sha256" not in source:
        raise MinillmError(f"{table}: holds no rows, expected a table that minillm grade wrote, or a new name")
    return {str(row["name"]): {key: "" if row[key] is None else row[key] for key in COLUMNS} for row in rows}


def save(table: Path, rows: list[Row], before: bytes) -> bytes:
    """Write the table; its bytes. before: what was written last, to see whether somebody else wrote, too."""
    if source_of(table) != before:
        warnings.warn(f"{table} was changed by another program during the run; it is written anew", stacklevel=2)
    save_rows(table, rows)
    return source_of(table)


def kept(row: Row | None, sha256: str) -> bool:
    """Whether an earlier row still holds: it is of the same file."""
    return row is not None and sha256 != "" and row["sha256"] == sha256


def ordered(rows: Mapping[str, Row], found: list[Submission]) -> list[Row]:
    """The rows as they are written: those of the files that are there, by name, then the others."""
    here = [one.name for one in found]
    return [rows[name] for name in [*here, *sorted(rows.keys() - set(here))] if name in rows]
