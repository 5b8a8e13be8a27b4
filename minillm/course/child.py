"""The program that runs a student's file, in a process of its own: python -m minillm.course.child

    judge (judge.py)                                        this program
    {"memory": bytes, "seconds": of the processor}      ->  {"missing": [limits that this system does not have]}
    {"file": name, "folder": ..., "wanted": [...]},
        and the file's bytes                            ->  {"defined": [...], "failed": {name: why}}, or {"error": ...}
    {"call": name, "arguments": [...]}, and arrays      ->  {"result": ..., "changed": name}, or {"problem": ...}
    {"call": ...}                                       ->  and so on, until the pipe is closed

The messages are frames (wire.py); an answer repeats the "number" of its question. Each argument is a number, or
{"array": i}, the i-th array of the frame. A result may also be None, {"tuple": [...]}, {"list": [...]}, or
{"words": "what it is"} for any other value.

This process knows the arguments of one call at a time. It does not know what is right, which points there are, or
where they are written. So a file can reach all of this program, and only spoils its own results. Standard input and
output are taken away before the file is executed. At any time, {"notice": ...} may come before an answer, once for
each of NOTICES.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np

from ..errors import MinillmError
from .attempt import WORDS, Outcome, attempt
from .cells import executed
from .differences import described
from .limits import limit
from .wire import ARRAYS_LIMIT, pack, receive, sendable

FILE_LIMIT = 20_000_000  # bytes; notebooks hold their pictures
ITEMS = 8  # of a tuple or a list, at most; a longer one is only described
IMPORTS, READS, STARTS, CALLS, LOOKS = NOTICES = (
    "imports minillm", "reads the data of minillm", "starts processes", "calls C libraries",
    "looks into other processes",
)  # fmt: skip


def main() -> None:
    """Answer the judge's messages until there are no more."""
    requests, replies = private_pipes()
    lock = threading.Lock()

    def reply(header: dict[str, object], arrays: Sequence[np.ndarray] = ()) -> None:
        frame = pack(header | {"number": question["number"]}, arrays)
        with lock:
            replies.write(frame)
            replies.flush()

    question, _ = receive(requests)
    reply({"missing": limit(int(str(question["memory"])), int(str(question["seconds"])))})
    question, (source,) = receive(requests, FILE_LIMIT)
    file, wanted = str(question["file"]), [str(name) for name in list_of(question["wanted"])]
    prepare(str(question["folder"]), reply)
    try:
        answers = executed(file, source.tobytes(), wanted)
    except MinillmError as error:
        reply({"error": str(error)})
        return
    reply({"defined": list(answers.defined), "failed": answers.failed})
    while True:
        question, arrays = receive(requests)
        arguments = tuple(
            arrays[value["array"]] if isinstance(value, dict) else value for value in list_of(question["arguments"])
        )
        try:
            outcome = attempt(answers.defined[str(question["call"])], arguments)
        except KeyboardInterrupt:  # here it is no Ctrl-C
            outcome = Outcome(problem="raised KeyboardInterrupt")
        reply(*message(outcome))


def private_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """The two pipes to the judge, under numbers of their own; what is read and printed goes nowhere from now on."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    return requests, replies


def prepare(folder: str, reply: Callable[[dict[str, object]], None]) -> None:
    """What a file finds: modules of its own folder, none of minillm's loaded, a look at what it imports and opens."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "minillm"]:
        del sys.modules[name]
    # After Python's own modules and before installed packages: a file queue.py of some student replaces nothing.
    places = [i for i, place in enumerate(sys.path) if Path(place).name in ("site-packages", "dist-packages")]
    sys.path.insert(min(places, default=len(sys.path)), folder)
    sys.addaudithook(watch(reply))


def watch(reply: Callable[[dict[str, object]], None]) -> Callable[[str, tuple], None]:
    """A function that Python calls whenever something is imported, opened or started; it tells the judge of NOTICES."""
    data = os.path.realpath(Path(__file__).parents[1] / "data") + os.sep
    told = set()
    processes, own = re.compile(r"/proc/\d+/"), f"/proc/{os.getpid()}/"
    real, decode, integer = os.path.realpath, os.fsdecode, int

    def seen(event: str, values: tuple) -> str:
        if event == "import":
            return IMPORTS if str(values[0]).partition(".")[0] == "minillm" else ""
        if event == "open" and values[0] is not None and not isinstance(values[0], integer):
            path = real(decode(values[0]))
            other = processes.match(path) and not path.startswith(own)
            return READS if path.startswith(data) else LOOKS if other else ""
        if event in ("os.fork", "os.forkpty", "os.posix_spawn", "os.system", "os.exec", "subprocess.Popen"):
            return STARTS
        return CALLS if event == "ctypes.dlopen" else ""

    def hook(event: str, values: tuple) -> None:
        with suppress(Exception):  # an error here would become one of the file's
            notice = seen(event, values)
            if notice and notice not in told:
                told.add(notice)
                reply({"notice": notice})

    return hook


# ---- results ---------------------------------------------------------------------------------------------------------
def message(outcome: Outcome) -> tuple[dict[str, object], list[np.ndarray]]:
    """An outcome as a header and arrays."""
    if not outcome.returned:
        return {"problem": outcome.problem}, []
    arrays: list[np.ndarray] = []
    try:
        return {"result": tree(outcome.result, arrays), "changed": outcome.changed}, arrays
    except BaseException:  # a value whose own methods raise
        return {"result": {"words": f"a value of type {type(outcome.result).__name__}"[:WORDS]}, "changed": ""}, []


def tree(value: object, arrays: list[np.ndarray], deeper: bool = True) -> object:
    """A result for the header; arrays that may travel are appended to ``arrays``, everything else is described."""
    if value is None:
        return None
    if isinstance(value, np.ndarray):
        plain = np.asarray(value)  # of a subclass, too
        if plain.ndim and sendable(plain, ARRAYS_LIMIT - sum(array.nbytes for array in arrays)):
            arrays.append(plain)
            return {"array": len(arrays) - 1}
    if isinstance(value, list | tuple) and len(value) <= ITEMS and deeper:
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [tree(item, arrays, deeper=False) for item in value]}
    return {"words": described(value)[:WORDS]}


def list_of(value: object) -> list:
    """A header's list."""
    assert isinstance(value, list)
    return value


if __name__ == "__main__":
    status = 1
    try:
        main()
        status = 0
    except EOFError:  # the judge needs no more
        status = 0
    finally:
        os._exit(status)  # without waiting for threads that the file has started
