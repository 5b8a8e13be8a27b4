"""Rows by processes and by a dask cluster: the same rows, and a worker that is killed costs time and nothing else."""

import os
import signal
import sys
import time
import warnings
from concurrent.futures import BrokenExecutor
from contextlib import suppress

import pytest
import tiny

from minillm.errors import MinillmError
from minillm.study import workers
from minillm.study.sweep import sweep
from minillm.study.workers import Workers, computed
from minillm.threads import asked, use_threads
from minillm.transformer.texts import split_text

PLAN = (("mid", "cats", "topk"), (0.3, 0.5, 0.6))
POSIX = pytest.mark.skipif(os.name == "nt", reason="a process is killed by its number")


class Slow:
    """Rows that take a moment each, so that workers can be killed while they work; large enough to be sent once."""

    def __init__(self, seconds: float = 0.1):
        self.seconds = seconds

    def __sizeof__(self) -> int:
        return 100_000

    def row(self, number: int) -> dict:
        time.sleep(self.seconds)
        return {"number": number, "threads": asked(), "pid": os.getpid()}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.loaded(tmp_path_factory.mktemp("workers") / "m")


def swept(model, output=None, **options):
    texts = split_text([f"{story} {number}" for number in range(3) for story in tiny.STORIES])
    return sweep(model, *texts, *PLAN, context=64, methods=("wanda",), output=output, **options)


def kill(pids):
    for pid in pids:
        with suppress(ProcessLookupError):  # killed before already
            os.kill(pid, signal.SIGKILL)


def killing(rows, pids, times: int) -> list[int]:
    """The numbers of all rows; after each of the first ``times`` rows all processes of ``pids()`` are killed."""
    numbers = []
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        for row in rows:
            numbers.append(row["number"])
            if len(numbers) <= times:
                kill(pids())
    assert row["pid"] != os.getpid()
    if times:
        assert any("a worker ended before its row was done" in str(note.message) for note in notes)
    return numbers


def test_each_worker_has_one_thread_unless_another_number_is_asked_for():
    assert workers._in_worker(1, Slow(0), 7, 5)[:2] == (7, Slow(0).row(5) | {"threads": 1})
    with use_threads(3):
        assert workers._in_worker(asked() or 1, Slow(0), 7, 5)[1]["threads"] == 3


@POSIX
def test_processes_that_are_killed_are_replaced_and_every_row_comes_once():
    from joblib.externals.loky import reusable_executor

    rows = computed(Slow(), [(number,) for number in range(6)], Workers(2))
    numbers = killing(rows, lambda: list(reusable_executor._executor._processes), 1)
    assert sorted(numbers) == list(range(6))


def test_workers_that_end_again_and_again_give_a_sentence(monkeypatch):
    def ends(self, calls):
        raise BrokenExecutor("gone")
        yield

    monkeypatch.setattr("joblib.Parallel.__call__", ends)
    with warnings.catch_warnings(), pytest.raises(MinillmError, match="workers ended 3 times before a row was done"):
        warnings.simplefilter("ignore")
        list(computed(Slow(0), [(1,), (2,)], Workers(2)))


def test_a_cluster_without_dask_and_one_that_does_not_answer_are_one_sentence(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "distributed", None)
        with pytest.raises(MinillmError, match=r"a cluster needs dask: pip install '\.\[cluster\]'"):
            list(computed(Slow(0), [(1,)], Workers(cluster="tcp://127.0.0.1:1")))


# ---- dask ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster:
        yield cluster


@pytest.mark.slow
@pytest.mark.parity
def test_a_cluster_of_two_workers_gives_the_same_rows(model, cluster, tmp_path):
    rows = swept(model)
    assert swept(model, tmp_path / "rows.csv", cluster=cluster.scheduler_address) == rows
    assert swept(model, jobs=2) == rows


@pytest.mark.slow
@pytest.mark.parity
@POSIX
@pytest.mark.parametrize("count", [1, 2])
def test_workers_of_a_cluster_that_are_killed_cost_time_and_nothing_else(cluster, count):
    rows = computed(Slow(0.3), [(number,) for number in range(8)], Workers(cluster=cluster.scheduler_address))
    pids, numbers = [worker.pid for worker in cluster.workers.values()][:count], []
    for row in rows:
        numbers.append(row["number"])
        if len(numbers) == 2:
            kill(pids)
    assert sorted(numbers) == list(range(8))


@pytest.mark.slow
@pytest.mark.parity
def test_a_scheduler_that_does_not_answer_or_has_no_worker_is_one_sentence(monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(workers, "CONNECT_SECONDS", 1)
    for address in ("tcp://127.0.0.1:9", "nowhere", "://"):
        with pytest.raises(MinillmError, match="no dask scheduler answers there"):
            list(computed(Slow(0), [(1,)], Workers(cluster=address)))
    with distributed.LocalCluster(n_workers=0, dashboard_address=None) as empty:
        with pytest.raises(MinillmError, match="has no worker, expected at least one"):
            list(computed(Slow(0), [(1,)], Workers(cluster=empty.scheduler_address)))
