"""Rows computed at the same time: by processes of this machine, or by the workers of a dask cluster.

    jobs = 1            row after row, in this process
    jobs = N            N processes, which joblib starts
    jobs = None         what ``joblib.parallel_config`` around the call says
    cluster = ADDRESS   the workers of a running dask scheduler, through joblib

joblib hands out one row at a time, and each comes back when it is done. What all rows of a model share is sent to a
worker once: joblib's own processes map each array above 1 MB from a file in shared memory (read-only), and dask's
workers keep a copy. Rows are the same bit for bit, serial or parallel, where the number of BLAS threads is the same:
one in each worker, unless ``use_threads`` (threads.py) says another.

**A worker that ends** (killed, or its machine is gone) costs time and nothing else: rows that came back stay, and the
others are computed again. Only where TRIES attempts in a row give no row at all, the reason is elsewhere (the memory,
mostly), and one sentence says so.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError
from contextlib import contextmanager, redirect_stderr
from typing import NamedTuple, Protocol

from ..errors import MinillmError
from ..threads import asked, use_threads

TRIES = 3  # attempts in a row that give no row
CONNECT_SECONDS = 10  # to wait for a scheduler, and for a worker


class Workers(NamedTuple):
    """Who computes rows (module docstring); cluster: the address of a dask scheduler, "tcp://HOST:8786"."""

    jobs: int | None = 1
    cluster: str | None = None

    @property
    def here(self) -> bool:
        """Whether rows are computed in this process."""
        return self.jobs == 1 and self.cluster is None


HERE = Workers()


class Rows(Protocol):
    """What workers are given once; ``row`` computes one row from a few plain values."""

    @property
    def row(self) -> Callable[..., dict]: ...


def computed(shared: Rows, left: Sequence[tuple], workers: Workers) -> Iterator[dict]:
    """The rows of ``left``, each as soon as it is known; a parallel order is any order.

    left: for each row, the arguments of ``shared.row``. Raises MinillmError where joblib or dask is missing, a
    scheduler does not answer, or workers end again and again.
    """
    if workers.here:
        yield from (shared.row(*cut) for cut in left)
        return
    waiting, failed = dict(enumerate(left)), 0
    while waiting:
        try:
            for number, found in _attempt(shared, waiting, workers):
                del waiting[number]
                failed = 0
                yield found
        except _Lost as lost:
            failed += 1
            if failed == TRIES:
                why = f"workers ended {TRIES} times before a row was done (killed, perhaps for their memory)"
                raise MinillmError(f"{why}: run the same command again, with fewer jobs") from lost
            warnings.warn(f"a worker ended before its row was done; {len(waiting)} rows are left", stacklevel=3)


class _Lost(Exception):
    """A worker ended, and rows with it."""


def _attempt(shared: Rows, waiting: dict[int, tuple], workers: Workers) -> Iterator[tuple[int, dict]]:
    """(number, row) of the waiting rows, until all are there or a worker ends."""
    try:
        from joblib import Parallel, delayed
    except ImportError:
        raise MinillmError("more than one job needs joblib: pip install '.[study]'") from None
    threads = asked() or 1  # of BLAS in each worker: the jobs share the cores
    with _backend(shared, workers) as ended:
        # batch_size 1: each row comes back, and is recorded, when it is done.
        jobs = None if workers.cluster else workers.jobs
        parallel = Parallel(n_jobs=jobs, batch_size=1, return_as="generator_unordered")
        calls = [delayed(_in_worker)(threads, shared, number, *cut) for number, cut in waiting.items()]
        try:
            for number, found, notes in parallel(calls):
                for note in notes:
                    warnings.warn(note, stacklevel=4)
                yield number, found
        except ended as problem:
            raise _Lost from problem
        except ImportError as problem:
            raise MinillmError(f"a worker cannot import what it needs ({problem}), expected minillm there") from None


@contextmanager
def _backend(shared: Rows, workers: Workers) -> Iterator[tuple[type[Exception], ...]]:
    """joblib's backend while rows are computed; gives the errors that mean that a worker has ended."""
    if workers.cluster is None:
        yield (BrokenExecutor,)
        return
    from joblib import parallel_config

    try:
        from distributed import Client
        from distributed.scheduler import KilledWorker
    except ImportError:
        raise MinillmError("a cluster needs dask: pip install '.[cluster]'") from None
    address = workers.cluster
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError):
        expected = "expected the address of a running one, such as tcp://127.0.0.1:8786"
        raise MinillmError(f"cluster {address}: no dask scheduler answers there, {expected}") from None
    with client:
        try:
            client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        except TimeoutError:
            raise MinillmError(f"cluster {address}: has no worker, expected at least one") from None
        with parallel_config(backend="dask", client=client, scatter=[shared]):  # a copy for each worker
            yield KilledWorker, CancelledError


def _in_worker(threads: int, shared: Rows, number: int, *cut: object) -> tuple[int, dict, list[str]]:
    """A row with its number, and the warnings that came with it, to be shown by the process that asked for it."""
    with use_threads(threads):
        if threading.current_thread() is not threading.main_thread():  # both of these are for a whole process
            return number, shared.row(*cut), []
        with warnings.catch_warnings(record=True) as notes, redirect_stderr(io.StringIO()):  # no progress bars
            warnings.simplefilter("always")
            return number, shared.row(*cut), sorted({str(note.message) for note in notes})
