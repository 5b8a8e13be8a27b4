"""How many threads BLAS gets, the library behind every ``x @ w.T``.

BLAS shares a product among several threads, by default one for each core. For a large matrix that pays. The products
of a small model are done before the threads have found each other, and where another program keeps one core busy they
wait for one another: a text that takes one second of one core then takes fifty. So everything that runs a model stands
in ``few_threads(model)``: one thread for a small model, and the number that was there before is given back at the end.

Who decides, the first that says anything:

    1. use_threads(n)         with minillm.use_threads(4): ...          (command line: --threads 4)
    2. the user's settings    OMP_NUM_THREADS and its kin in the environment, or a number of threads other than the one
                              that BLAS chose by itself (threadpoolctl.threadpool_limits around our call)
    3. the model's size       below SMALL_MODEL bytes one thread, else as many as BLAS chose

A block is entered once for a whole pass, text or training; blocks inside it cost next to nothing. A generator
(``generate``) holds a block only while it computes a token and never while the caller has the token, so one that is
not run to its end leaves nothing behind.

The number belongs to the process. Of several Python threads that run models at once, the first to enter a block sets
it and gives it back; the others find it set and leave it. A block of theirs that lasts longer goes on with the number
that was given back, until the next pass inside it. Figures do not depend on this, only speed.

threadpoolctl knows OpenBLAS, MKL and BLIS. Where NumPy was built with another library (Accelerate on macOS, which
chooses for each product itself) it reports none, and nothing is done here.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar

from .arguments import whole_number

if TYPE_CHECKING:
    from threadpoolctl import LibController

SMALL_MODEL = 200_000_000  # bytes of weights in memory; below, one thread is as fast as two, or faster
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
    if _held.number is not None or model.nbytes >= SMALL_MODEL:
        return Block(None)
    blas = look()
    if blas.own is None or blas.number != blas.own and blas.number != cores():
        return Block(None)  # the user's number
    return Block(1)


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
