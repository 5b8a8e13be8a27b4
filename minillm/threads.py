"""How many threads BLAS gets, the library behind every ``x @ w.T``.

BLAS shares a product among several threads, by default one for each core. For a large matrix that pays. The products
of a small model are done before the threads have found each other. And where another program keeps a core busy, the
threads wait for one another: a text that takes one second of one core then takes fifty. Two threads against one, as
times as fast (Intel Xeon, 2 cores, NumPy 2.4.6, OpenBLAS 0.3.31; busy: another program on one of the two):

    weights of the model      7 MB          61 MB         438 MB
                              idle  busy    idle  busy    idle  busy
    one token after another   0.98  1.00    1.32  0.78    1.71  0.58
    a pass of 16 tokens       1.16  0.73    1.62  0.08    1.69  0.78
    a pass of 64              1.09  0.59    1.46  0.18    1.69  0.75
    scoring 512               1.12  0.71    1.39  0.55    1.61  0.55

So everything that runs a model stands in ``few_threads(model)``: one thread for a small model, for a large one as many
as there are cores that no other program wants at this moment, and the number that was there before is given back at the
end. The results are the same bits with any number. (Where a row is multiplied row by row, transformer/linear.py, a
token has one thread whatever the number is: that form is at the limit without a second.)

Who decides, the first that says anything:

    1. use_threads(n)         with minillm.use_threads(4): ...          (command line: --threads 4)
    2. the user's settings    OMP_NUM_THREADS and its kin in the environment, or a number of threads other than the one
                              that BLAS chose by itself (threadpoolctl.threadpool_limits around our call)
    3. the model's size       below SMALL_MODEL bytes one thread, else one for each free core

A block is entered once for a whole pass, text or training; those inside it cost next to nothing, and for a large model
they look at the cores again. A generator
(``generate``) holds a block only while it computes a token and never while the caller has the token, so one that is
not run to its end leaves nothing behind.

The number belongs to the process. Of several Python threads that run models at once, the first to enter a block sets
it and gives it back; the others find it set and leave it. A block of theirs that lasts longer goes on with the number
that was given back, until the next pass inside it. Figures do not depend on this, only speed.

threadpoolctl knows OpenBLAS, MKL and BLIS. Where NumPy was built with another library (Accelerate on macOS, which
chooses for each product itself) it reports none, and nothing is done here.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar

from .arguments import whole_number

if TYPE_CHECKING:
    from threadpoolctl import LibController

SMALL_MODEL = 40_000_000  # bytes of weights in memory; below, one thread is about as fast as two, or faster
LOOK_AGAIN = 0.01  # seconds for which what was seen of the cores holds: a pass of a large model takes as long
VARIABLES = (  # what BLAS reads, once, when NumPy loads it
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS",
)  # fmt: skip


class Sized(Protocol):
    """A model. nbytes: of its weights."""

    @property
    def nbytes(self) -> int: ...


# ---- BLAS and its number of threads ----------------------------------------------------------------------------------


class Blas(NamedTuple):
    """What was found when BLAS was first looked at.

    libraries: mostly one, none where threadpoolctl knows none. own: the number of threads that BLAS chose by itself;
    None where the user set it in the environment.
    """

    libraries: Sequence[LibController]
    own: int | None

    @property
    def number(self) -> int:
        """The number of threads now."""
        return self.libraries[0].num_threads if self.libraries else 1

    def set(self, number: int) -> None:
        """Give BLAS that number of threads."""
        for library in self.libraries:
            library.set_num_threads(number)

    def let_others_set(self) -> None:
        """From version 3.8 on, threadpoolctl takes numbers only from the Python thread that set one, until this."""
        for library in self.libraries:
            if hasattr(library, "clear_controlling_thread"):
                library.clear_controlling_thread()


_blas: Blas | None = None


def look() -> Blas:
    """Find BLAS and its number of threads. Done once in a process, when its first model is made."""
    global _blas
    if _blas is None:
        import numpy  # noqa: F401  it loads BLAS
        from threadpoolctl import ThreadpoolController

        blas = Blas(ThreadpoolController().select(user_api="blas").lib_controllers, None)
        _blas = blas if any(map(os.environ.get, VARIABLES)) else blas._replace(own=blas.number)
    return _blas


def cores() -> int | None:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def wanted_by_others() -> int:
    """How many threads of other programs run, or wait for a core, at this moment (Linux); 0 where no one knows."""
    try:
        with open("/proc/loadavg", encoding="ascii") as file:  # "0.20 0.18 0.12 1/80 11206": 1 of 80 is runnable
            runnable = int(file.read().split()[3].partition("/")[0])
        own = 0  # this one, and threads of BLAS that still look for work
        for task in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{task}/stat", encoding="utf-8", errors="replace") as file:
                own += file.read().rpartition(")")[2].split()[0] == "R"
    except (OSError, ValueError, IndexError):
        return 0
    return max(0, runnable - own)


_seen = (-math.inf, 1)  # when the cores were last looked at, and how many were free


def free_cores() -> int:
    """How many cores no other program wants, at least this one; looked at every LOOK_AGAIN seconds at most."""
    global _seen
    now = time.monotonic()
    if now - _seen[0] > LOOK_AGAIN:
        _seen = now, max(1, (cores() or 1) - wanted_by_others())
    return _seen[1]


# ---- blocks ----------------------------------------------------------------------------------------------------------


class Held(NamedTuple):
    """The innermost open block: the Python thread that it is in, and its number; both None where none is open."""

    thread: int | None = None
    number: int | None = None


_asked: ContextVar[int | None] = ContextVar("threads", default=None)  # by use_threads
_held = Held()
_lock = threading.Lock()  # of _held


class Block:
    """A ``with`` block in which BLAS has ``number`` threads; None leaves it as it is. It can be entered once."""

    def __init__(self, number: int | None):
        self.number = number
        self.before: tuple[Held, int] | None = None  # what to give back; None: nothing was changed

    def __enter__(self) -> None:
        global _held
        if self.number is None or self.number == _held.number:
            return
        with _lock:
            me = threading.get_ident()
            if _held.thread in (None, me) and _held.number != self.number:
                blas = look()
                self.before = _held, blas.number
                blas.set(self.number)
                _held = Held(me, self.number)

    def __exit__(self, *error: object) -> None:
        global _held
        if self.before is None:
            return
        with _lock:
            blas, (_held, number) = look(), self.before
            blas.set(number)
            if _held.thread is None:
                blas.let_others_set()


@contextmanager
def use_threads(number: int) -> Iterator[None]:
    """In this block BLAS has ``number`` threads, whatever the size of the model and the environment.

        with minillm.use_threads(4):
            minillm.perplexity(model, text)

    Raises MinillmError for a number below 1.
    """
    number = whole_number("threads", number, 1)
    before = _asked.set(number)
    try:
        with Block(number):
            yield
    finally:
        _asked.reset(before)


def threads_for(model: Sized) -> int:
    """The number that BLAS has in a pass of this model, for tables."""
    with few_threads(model):
        return look().number


def variables(number: int) -> dict[str, str]:
    """The environment of a child process in which BLAS gets this number from the start."""
    return dict.fromkeys(VARIABLES, str(number))


def asked() -> int | None:
    """The number of the innermost ``use_threads`` around this call; None where there is none."""
    return _asked.get()


def few_threads(model: Sized) -> Block:
    """The block for everything that runs this model (who decides: module docstring)."""
    if (number := _asked.get()) is not None:
        return Block(number)
    blas = look()
    if blas.own is None or (_held.number is None and blas.number not in (blas.own, cores())):
        return Block(None)  # the user's number
    return Block(1 if model.nbytes < SMALL_MODEL else min(blas.own, free_cores()))


M = TypeVar("M", bound=Sized)
P = ParamSpec("P")
R = TypeVar("R")


def with_few_threads(function: Callable[Concatenate[M, P], R]) -> Callable[Concatenate[M, P], R]:
    """The same function, all of it inside ``few_threads`` of its model, which is its first argument."""

    @wraps(function)
    def inside(model: M, *args: P.args, **options: P.kwargs) -> R:
        with few_threads(model):
            return function(model, *args, **options)

    return inside
