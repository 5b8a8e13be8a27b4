"""The judge's side: run a student's file in a process of its own (child.py), and take no more than arrays from it.

    with Answers(path, seconds, memory, stop) as answers:
        answers.functions()["rms_norm"](arguments)      an Outcome: a result that is still to be compared

One process serves all calls of a file. When a function hangs, ends the process or sends what is no result, the process
is killed with all its threads, that function is given up, and the next call starts a new process. What is right, the
points, and every file that is written stay on this side.
"""

from __future__ import annotations

import math
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import MinillmError, show
from ..files import read_bytes
from .assignment import FUNCTIONS, Answer
from .attempt import Outcome
from .child import FILE_LIMIT, NOTICES
from .differences import Described
from .wire import WireError, pack, receive

SECONDS = 10.0  # for all calls of one function, and for importing the file
MEMORY = 1_000  # MB of one process, Python and NumPy included
START_SECONDS = 60.0  # Python and NumPy, on a busy machine
STEP = 0.2  # seconds after which a waiting judge looks whether it should stop
SKIPPED = 100  # frames before an answer: notices, and what a function forged to be the answer to an earlier question
REMOVE_SECONDS = 30.0  # for a folder that Python itself cannot remove
PROBLEM = 500  # characters at most of what a process says of its functions
Message = tuple[dict[str, object], list[np.ndarray]]


class Ended(Exception):
    """The process gives no answer any more; the message says why."""


class TimeOver(Ended):
    """It had no more time, and was killed."""


class Process:
    """A running child.py: one question at a time, each within a number of seconds."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop, self.number = stop, 0
        self.notices: set[str] = set()
        self.thread: threading.Thread | None = None
        self.folder = tempfile.mkdtemp(prefix="minillm-grade-")  # where relative names lead; ``end`` removes it
        # -P: a file in the current folder must not take the place of a module. -B: no __pycache__ beside the file.
        command = [sys.executable, "-P", "-B", "-m", f"{__package__}.child"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            cwd=self.folder, env=environment(self.folder), start_new_session=True,
        )  # fmt: skip

    def ask(self, question: dict[str, object], seconds: float, arrays: Sequence[np.ndarray] = ()) -> Message:
        """Send a question and wait for its answer. Raises Ended; the process is killed then."""
        self.number += 1
        frame = pack(question | {"number": self.number}, arrays)
        # In a thread, because reading from a pipe cannot be given a time on every system.
        answer: queue.SimpleQueue[Message | Exception] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._exchange, args=(frame, answer), daemon=True)
        self.thread.start()
        found: Message | Exception = TimeOver("did not finish in time")
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.stop.is_set():
            with suppress(queue.Empty):
                found = answer.get(timeout=min(STEP, max(0.001, end - time.monotonic())))
                break
        if isinstance(found, tuple):
            return found
        problem = found if isinstance(found, TimeOver) else Ended(self._why(found))
        self.end()
        raise problem

    def _exchange(self, frame: bytes, answer: queue.SimpleQueue[Message | Exception]) -> None:
        """Write the question, then read what comes up to its answer; in a thread."""
        try:
            assert self.process.stdin and self.process.stdout
            self.process.stdin.write(frame)
            self.process.stdin.flush()
            for _ in range(SKIPPED):
                header, arrays = receive(self.process.stdout)
                if header.get("notice") in NOTICES:
                    self.notices.add(str(header["notice"]))
                elif header.get("number") == self.number:
                    answer.put((header, arrays))
                    return
            raise WireError("frames that answer no question")
        except (OSError, EOFError, ValueError, MemoryError, WireError) as problem:
            answer.put(problem)

    def _why(self, problem: Exception) -> str:
        """Why there is no answer, in words."""
        if not isinstance(problem, OSError | EOFError):
            return no_result(problem)
        try:
            status = self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return "closed the pipe to the judge"
        if status >= 0:
            return f"ended the process (exit status {status})"
        name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
        return f"ended the process ({name})"

    def end(self) -> None:
        """Kill the process with everything that it started, and remove its folder."""
        if hasattr(os, "killpg"):
            with suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)  # its group has its own number
        self.process.kill()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5)
        if self.thread is not None:
            self.thread.join(timeout=1)
        # A thread that still reads holds the pipe: some process that escaped has the other end. Then it stays open.
        if self.thread is None or not self.thread.is_alive():
            for pipe in (self.process.stdin, self.process.stdout):
                with suppress(OSError):
                    pipe and pipe.close()
        with suppress(RecursionError):
            shutil.rmtree(self.folder, ignore_errors=True)
        if os.name == "posix" and os.path.exists(self.folder):  # folders in folders in folders ...
            with suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(["rm", "-rf", "--", self.folder], stderr=subprocess.DEVNULL, timeout=REMOVE_SECONDS)


def environment(folder: str) -> dict[str, str]:
    """The variables of the process: this package can be imported, one thread, no windows, temporary files in folder."""
    paths = [str(Path(__file__).parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)), "MPLBACKEND": "Agg",
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"),
        **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), folder),
    }  # fmt: skip


class Answers:
    """The functions of a student's file; ``functions()`` gives what calls them.

    Raises MinillmError, in one sentence, for a file that cannot be read, is not valid Python, or fails while it is
    imported. seconds: for all calls of one function, and for the import. memory: in MB, of the process. Once ``stop``
    is set (in another thread), every call ends at once, and no further process is started.
    """

    def __init__(self, path: str | Path, seconds: float, memory: int, stop: threading.Event):
        self.path, self.seconds, self.memory, self.stop = Path(path), seconds, memory, stop
        self.source = read_bytes(path, MinillmError, FILE_LIMIT)
        self.defined: list[str] = []
        self.failed: dict[str, str] = {}  # {function: why it is not defined}
        self.given_up: dict[str, str] = {}  # {function: how it ended a process}
        self.notices: set[str] = set()
        self.left: dict[str, float] = {}  # seconds
        self.process: Process | None = None

    def __enter__(self) -> Answers:
        try:
            self.start()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def end(self) -> None:
        """End the process, if there is one."""
        if self.process is not None:
            self.process.end()
            self.notices |= self.process.notices
        self.process = None

    def functions(self) -> dict[str, Answer]:
        """{name: what calls it} of the functions that the file defines and that have not been given up; fresh time."""
        self.left = dict.fromkeys(self.defined, self.seconds)
        return {name: partial(self.call, name) for name in self.defined if name not in self.given_up}

    def start(self) -> None:
        """Start a process and have the file executed there."""
        if self.stop.is_set():
            raise MinillmError(f"{self.path}: grading was stopped")
        try:
            self.process = process = Process(self.stop)
        except OSError as problem:
            why = problem.strerror or problem
            raise MinillmError(f"{self.path}: the process that should run it cannot be started ({why})") from None
        # Each function has its time by the clock; the limit of the processor's time ends what goes on beside it.
        processor = math.ceil(self.seconds * (len(FUNCTIONS) + 2)) + 60
        try:
            header, _ = process.ask({"memory": self.memory * 1_000_000, "seconds": processor}, START_SECONDS)
        except Ended as problem:
            raise MinillmError(f"{self.path}: the process that should run it did not start (it {problem})") from None
        missing = header["missing"]
        if isinstance(missing, list) and missing:
            what = ", ".join(map(str, missing))
            warnings.warn(f"this system does not limit {what} of a student's file", stacklevel=2)
        question: dict[str, object] = {"file": str(self.path), "folder": str(self.path.absolute().parent)}
        source = np.frombuffer(self.source, np.uint8)
        try:
            header, _ = process.ask(question | {"wanted": list(FUNCTIONS)}, self.seconds, [source])
            if "error" in header:
                raise MinillmError(f"{self.path}: {show(text(header['error']), PROBLEM)}")
            defined, failed = header.get("defined"), header.get("failed")
            if not isinstance(defined, list) or not isinstance(failed, dict):
                raise WireError("an import without functions")
            self.defined = [name for name in FUNCTIONS if name in defined]
            self.failed = {name: show(text(failed[name]), PROBLEM) for name in FUNCTIONS if name in failed}
        except (Ended, WireError) as problem:
            raise MinillmError(f"{self.path}: importing it {self._why(problem)}") from None

    def call(self, name: str, arguments: tuple) -> Outcome:
        """Call a function of the file. A function that has ended a process is not called again."""
        if name in self.given_up:
            return Outcome(problem=self.given_up[name])
        arrays = [value for value in arguments if isinstance(value, np.ndarray)]
        places = iter(range(len(arrays)))
        told = [{"array": next(places)} if isinstance(value, np.ndarray) else value for value in arguments]
        begun = time.perf_counter()
        try:
            if self.process is None:
                self.start()
                begun = time.perf_counter()
            assert self.process is not None
            outcome = outcome_of(*self.process.ask({"call": name, "arguments": told}, self.left[name], arrays))
        except (Ended, WireError, MinillmError) as problem:
            self.end()
            self.given_up[name] = str(problem) if isinstance(problem, MinillmError) else self._why(problem)
            return Outcome(problem=self.given_up[name])
        self.left[name] -= time.perf_counter() - begun
        return outcome

    def _why(self, problem: Exception) -> str:
        if isinstance(problem, TimeOver):
            return f"did not finish within {self.seconds:g} s"
        return no_result(problem) if isinstance(problem, WireError) else str(problem)


def no_result(problem: Exception) -> str:
    """What is said of a process that does not keep to the messages."""
    return f"sent what is no result ({problem})"


# ---- what comes back -------------------------------------------------------------------------------------------------
def outcome_of(header: dict[str, object], arrays: list[np.ndarray]) -> Outcome:
    """The outcome of a call from the process's answer. Raises WireError."""
    if "problem" in header:
        return Outcome(problem=show(text(header["problem"]), PROBLEM))
    if "result" not in header:
        raise WireError("an answer without a result")
    return Outcome(value_of(header["result"], arrays), changed=show(text(header.get("changed")), PROBLEM))


def value_of(tree: object, arrays: list[np.ndarray], deeper: bool = True) -> object:
    """A result: an array, None, ``Described``, or a tuple or a list of these. Raises WireError."""
    if tree is None:
        return None
    kind, value = next(iter(tree.items())) if isinstance(tree, dict) and len(tree) == 1 else ("", None)
    if kind == "array" and type(value) is int and 0 <= value < len(arrays):
        return arrays[value]
    if kind == "words":
        return Described(show(text(value), PROBLEM))
    if kind in ("tuple", "list") and isinstance(value, list) and deeper:
        items = [value_of(item, arrays, deeper=False) for item in value]
        return tuple(items) if kind == "tuple" else items
    raise WireError("a value of an unknown kind")


def text(value: object) -> str:
    """A header's text. Raises WireError."""
    if not isinstance(value, str):
        raise WireError("something else in the place of a text")
    return value
