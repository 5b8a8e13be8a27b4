"""Files: read only what is a regular file of a stated size, and write whole or not at all.

A file of a user's may be anything: a device that never ends, a pipe that waits for a writer, a few gigabytes. So a
file is looked at before it is opened (``regular_file``), and no more than a stated number of bytes is read from it
(``read_bytes``). A file that is written gets a name of its own beside the target, which no other file has, and is then
renamed (``whole_file``): nobody ever reads half a file, and an older file stays as it was until the new one is whole.
"""

import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import MinillmError

if sys.platform != "win32":
    import fcntl  # here, not where it is used: a signal during that import would leave the lock's file behind

TEXT_LIMIT = 1_000_000_000  # bytes; a text is held in memory some times over


@contextmanager
def file_errors(path: str | Path, done: str, error: type[MinillmError]) -> Iterator[None]:
    """Turn an OSError of the block into ``error``: "{path}: cannot be {done} (No space left on device)"."""
    try:
        yield
    except OSError as problem:
        raise error(f"{path}: cannot be {done} ({problem.strerror or problem})") from None
    except ValueError as problem:  # a name that no system takes: it holds a zero byte
        if isinstance(problem, MinillmError) or "embedded null" not in str(problem):
            raise
        raise error(f"{path}: cannot be {done} (a file's name holds no zero byte)") from None


def regular_file(path: str | Path, error: type[MinillmError], limit: int | None = None) -> Path:
    """The path of a file that can be read to its end: a regular one (or a link to one) of at most ``limit`` bytes.

    Raises error for a file that is missing or too large, a folder, a device, a pipe.
    """
    path = Path(path)
    with file_errors(path, "read", error):
        try:
            about = os.stat(path)
        except FileNotFoundError:
            raise error(f"{path}: is missing, expected a file") from None
    if not stat.S_ISREG(about.st_mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFIFO: "a pipe"}
        kind = kinds.get(stat.S_IFMT(about.st_mode), "no file of data")
        raise error(f"{path}: is {kind}, expected a regular file")
    if limit is not None and about.st_size > limit:
        raise error(f"{path}: has {about.st_size:,} bytes, expected at most {limit:,}")
    return path


def read_bytes(path: str | Path, error: type[MinillmError], limit: int) -> bytes:
    """The bytes of a regular file of at most ``limit`` bytes. Raises error in one sentence."""
    path = regular_file(path, error, limit)
    with file_errors(path, "read", error), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        raw = file.read(size + 1)
        if len(raw) > size:
            raw += file.read(max(0, limit + 1 - len(raw)))
    if len(raw) > limit:  # it grew since, or it is a file of the system's that says 0
        raise error(f"{path}: has more than {limit:,} bytes, expected at most {limit:,}")
    return raw


def read_text(path: str | Path, error: type[MinillmError] = MinillmError, limit: int = TEXT_LIMIT) -> str:
    """The text of a UTF-8 file; a byte order mark in front is allowed. Raises error in one sentence."""
    try:
        return read_bytes(path, error, limit).decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{path}: byte {problem.start} is not UTF-8, expected a UTF-8 text") from None


@contextmanager
def whole_file(path: str | Path, error: type[MinillmError]) -> Iterator[Path]:
    """Give a new, empty file beside ``path`` to write to; after the block it is renamed to ``path``.

    Its name is one that no other file has, so nothing of the user's and no other run is in the way. It keeps the
    mode of an older file ``path``, and goes away when the block fails; then the older file stays as it was. What
    stands at ``path`` as a link is replaced, not followed. An OSError becomes ``error``.
    """
    import tempfile  # here: a run that only reads does not wait for it

    path = Path(path)
    beside = None
    try:
        with file_errors(path, "written", error):
            if path.is_dir() or not path.name:
                raise IsADirectoryError(None, "it is a folder")
            # A name as long as the system allows has no room for more: the temporary name holds only its beginning.
            handle, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".tmp", dir=path.parent)
            os.close(handle)
            beside = Path(name)
            yield beside
            os.chmod(beside, _mode(path))
            os.replace(beside, path)
    finally:
        if beside is not None:
            with suppress(OSError):
                beside.unlink()


@contextmanager
def whole_folder(path: str | Path, error: type[MinillmError]) -> Iterator[Path]:
    """The same for a folder: give a new one beside ``path`` to fill; after the block it is renamed to ``path``.

    Raises error where ``path`` exists already.
    """
    import shutil
    import tempfile

    path = Path(path)
    beside = None
    try:
        with file_errors(path, "written", error):
            if os.path.lexists(path):
                raise error(f"{path}: exists already, expected the name of a new folder")
            beside = Path(tempfile.mkdtemp(prefix=f".{path.name[:40]}.", suffix=".tmp", dir=path.parent))
            yield beside
            os.chmod(beside, _new_mode(0o777))
            os.rename(beside, path)
    finally:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)  # no longer there once it is renamed


@contextmanager
def locked(path: str | Path, error: type[MinillmError]) -> Iterator[None]:
    """Let one process at a time into the block: those that read ``path`` and then write it anew.

    The lock is the system's, on an empty file beside ``path`` that goes away with the block. When a process ends, the
    system takes its lock back, however it ended. Where a file system knows no locks, nobody waits.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name[:200]}.lock")
    while True:
        with file_errors(path, "written", error):
            handle = os.open(beside, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        with suppress(OSError):
            _wait_for_lock(handle)
        # The one before us has removed this file while we waited: then the lock that counts is on another one.
        with suppress(OSError):
            if os.path.samestat(os.fstat(handle), os.stat(beside)):
                break
        os.close(handle)
    about = os.fstat(handle)
    ours = stat.S_ISREG(about.st_mode) and about.st_size == 0  # a pipe, or a file with something in it, is the user's
    try:
        yield
    finally:
        if ours and os.name != "nt":  # while we hold the lock: nobody else can remove the next one's file
            with suppress(OSError):
                beside.unlink()
        os.close(handle)
        if ours and os.name == "nt":  # Windows removes no file that is open, so there the next one's stays, too
            with suppress(OSError):
                beside.unlink()


def _wait_for_lock(handle: int) -> None:
    """Lock an open file for this process alone."""
    if sys.platform == "win32":
        import msvcrt

        while True:
            with suppress(PermissionError):  # another process has it
                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
                return
            time.sleep(0.02)
    else:
        fcntl.flock(handle, fcntl.LOCK_EX)


def _mode(path: Path) -> int:
    """The mode of the file that is there, or what a new file gets."""
    with suppress(OSError):
        if not path.is_symlink():
            return stat.S_IMODE(path.stat().st_mode)
    return _new_mode(0o666)


def _new_mode(full: int) -> int:
    """The mode that the system gives to a new file or folder."""
    umask = os.umask(0)
    os.umask(umask)
    return full & ~umask
