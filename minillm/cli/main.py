"""The command line: ``minillm demo``, ``minillm generate`` and so on; ``minillm --help`` lists the commands.

Without --model it runs the embedded model, without --text the embedded texts, and without any word at all the demo.

Results go to stdout, everything else (progress, seeds, timings, notes) to stderr; ``--json`` makes the result one JSON
value. Exit status: 0 done, 1 bad input or (compare) a divergence, 2 wrong usage, 130 Ctrl-C.

NumPy is imported only inside the commands: ``--help`` and a wrong word need none of it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib import import_module

from .. import __version__
from ..errors import MinillmError
from ..threads import use_threads
from .outputs import check_outputs
from .parser import Parser
from .shared import say

COMMANDS = {  # each file of commands -> the commands it adds, as --help lists them
    "demo": ("demo",),
    "model": ("generate", "perplexity"),
    "inspect": ("inspect", "trace", "compare"),
    "download": ("download",),
    "cut": ("calibrate", "sweep"),
    "prune": ("prune",),
    "pareto": ("pareto",),
    "pipeline": ("pipeline",),
    "train": ("train", "tune"),
    "predict": ("predict",),
    "activations": ("activations",),
    "disk": ("bundle",),
    "prefetch": ("prefetch",),
    "study": ("patterns", "report"),
    "course": ("grade",),
    "bench": ("bench",),
}


def parser(wanted: str | None = None) -> Parser:
    """The parser of all commands; each file of commands adds its own.

    Where the ``wanted`` command is known, only its file is imported: a start needs no more.
    """
    top = Parser(
        prog="minillm",
        description="Activation sparsity in large language models, in pure NumPy. Without any argument: the demo.",
    )
    top.add_argument("--version", action="version", version=f"minillm {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    one = [file for file, names in COMMANDS.items() if wanted in names]
    for file in one or COMMANDS:
        import_module(f".{file}", __package__).add(commands)
    return top


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let SIGTERM (and SIGHUP, of a terminal that closes) end the program as Ctrl-C does: what is half written goes.

    The exit status is 128 and the signal's number, as a shell has it. The handlers of before come back afterwards.
    """

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {}
    if threading.current_thread() is threading.main_thread():  # only there can handlers be set
        for name in names:
            number = getattr(signal, name)
            if signal.getsignal(number) is signal.SIG_DFL:  # not where it is ignored, as under nohup
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def note_once() -> Callable[..., None]:
    """A warnings.showwarning that prints a note on stderr, each sentence once in a command.

    Thresholds, for instance, meet the model at several places of one command.
    """
    said: set[str] = set()

    def note(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in said:
            said.add(str(message))
            say(f"minillm: note: {message}")

    return note


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    with stopped_by_signals():
        return run(argv)


def run(argv: list[str] | None) -> int:
    """Read the arguments, run the command, and turn what goes wrong into one sentence."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # an emoji, say, where the terminal has none
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        say("minillm demo on the embedded model; `minillm --help` lists all commands")
    argv = argv or ["demo"]
    arguments = parser(argv[0]).parse_args(argv)
    warnings.showwarning = note_once()
    try:
        check_outputs(arguments)
        threads = getattr(arguments, "threads", None)  # without --threads, the model's size decides: threads.py
        with use_threads(threads) if threads else nullcontext():
            status = arguments.run(arguments)
        print(end="", flush=True)
        return status
    except MinillmError as error:
        say(f"minillm: {error}")
        return 1
    except KeyboardInterrupt:
        say()
        say("minillm: interrupted")
        return 130
    except MemoryError as error:
        say(f"minillm: there is not enough memory ({error or 'asked for by Python itself'})")
        return 1
    except OSError as error:
        # What is still buffered goes nowhere, or Python would try to write it once more at its end, and complain.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader of our output went away, as `head` does
            return 0
        say(f"minillm: {error.filename or 'output'}: {error.strerror or error}")  # a full disk, mostly
        return 1
