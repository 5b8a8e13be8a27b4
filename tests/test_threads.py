"""One thread for small models, the user's word above it, and the old number afterwards: in fresh processes."""

import os
import subprocess
import sys
import threading
import time

import pytest
import tiny

import minillm.threads as threads
from minillm.errors import MinillmError
from minillm.threads import few_threads, use_threads, with_few_threads

CLEAN = {name: value for name, value in os.environ.items() if not name.endswith("_THREADS")}


class Library:
    """Stands for BLAS: it has a number of threads."""

    def __init__(self, number: int):
        self.num_threads = number

    def set_num_threads(self, number: int) -> None:
        self.num_threads = number


class Small:
    nbytes = threads.SMALL_MODEL - 1


class Large:
    nbytes = threads.SMALL_MODEL


@pytest.fixture
def blas(monkeypatch) -> Library:
    """A BLAS that chose 8 threads by itself, as many as there are cores."""
    library = Library(8)
    monkeypatch.setattr(threads, "_blas", threads.Blas([library], 8))
    monkeypatch.setattr(threads, "cores", lambda: 8)
    monkeypatch.setattr(threads, "LOOK_AGAIN", -1)
    monkeypatch.setattr(threads, "wanted_by_others", lambda: 0)
    return library


def test_a_small_model_gets_one_thread_a_large_one_all_and_the_old_number_comes_back(blas):
    with few_threads(Small()):
        assert blas.num_threads == 1
        with few_threads(Large()):
            assert blas.num_threads == 8
        with few_threads(Small()):
            assert blas.num_threads == 1
        assert blas.num_threads == 1
    assert blas.num_threads == 8
    with few_threads(Large()):
        assert blas.num_threads == 8
        with few_threads(Small()):
            assert blas.num_threads == 1
        assert blas.num_threads == 8


@pytest.mark.parametrize(("others", "expected"), [(0, 8), (1, 7), (7, 1), (20, 1)])
def test_a_large_model_takes_the_cores_that_no_other_program_wants(blas, monkeypatch, others, expected):
    monkeypatch.setattr(threads, "wanted_by_others", lambda: others)
    with few_threads(Large()):
        assert blas.num_threads == expected
        monkeypatch.setattr(threads, "wanted_by_others", lambda: 5)  # while a text is scored
        with few_threads(Large()):
            assert blas.num_threads == 3
        assert blas.num_threads == expected
    with few_threads(Small()):
        assert blas.num_threads == 1
    with use_threads(6), few_threads(Large()):
        assert blas.num_threads == 6
    assert blas.num_threads == 8


def test_the_cores_are_looked_at_again_only_after_a_while(blas, monkeypatch):
    looks = []
    monkeypatch.setattr(threads, "wanted_by_others", lambda: looks.append(1) or 0)
    monkeypatch.setattr(threads, "LOOK_AGAIN", 1000.0)
    monkeypatch.setattr(threads, "_seen", (-float("inf"), 1))
    assert [threads.free_cores() for _ in range(5)] == [8] * 5 and len(looks) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how many threads want a core")
def test_a_busy_program_is_seen_and_this_one_is_not_counted():
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        deadline = time.monotonic() + 20
        while threads.wanted_by_others() < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert threads.wanted_by_others() >= 1
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_a_system_that_does_not_say_counts_as_free(monkeypatch):
    def missing(*given, **options):
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", missing)
    assert threads.wanted_by_others() == 0


def test_the_old_number_comes_back_after_an_exception(blas):
    @with_few_threads
    def fails(model):
        assert blas.num_threads == 1
        raise KeyError

    with pytest.raises(KeyError):
        fails(Small())
    with pytest.raises(KeyError):
        fails(model=Small())
    with pytest.raises(KeyError), use_threads(3), few_threads(Small()):
        raise KeyError
    assert blas.num_threads == 8 and threads._held == threads.Held()


def test_use_threads_wins_over_the_size_and_the_innermost_wins(blas):
    with use_threads(3):
        assert threads.threads_for(Small()) == threads.threads_for(Large()) == blas.num_threads == 3
        with use_threads(5):
            assert threads.threads_for(Small()) == blas.num_threads == threads.asked() == 5
        assert threads.threads_for(Small()) == blas.num_threads == 3
    with few_threads(Small()), use_threads(4), few_threads(Small()):
        assert blas.num_threads == 4
    assert blas.num_threads == 8 and threads.asked() is None
    assert threads.threads_for(Small()) == 1 and threads.threads_for(Large()) == 8


@pytest.mark.parametrize("number", [0, -1, 1.5, True, None, "2"])
def test_a_number_of_threads_is_a_whole_number_from_1_on(blas, number):
    with pytest.raises(MinillmError, match="threads is"), use_threads(number):
        pass
    assert blas.num_threads == 8


def test_a_number_that_the_user_set_stays(blas, monkeypatch):
    blas.num_threads = 4  # threadpool_limits(4) around our call
    with few_threads(Small()):
        assert blas.num_threads == 4
    with use_threads(2), few_threads(Small()):
        assert blas.num_threads == 2
    assert blas.num_threads == 4
    monkeypatch.setattr(threads, "_blas", threads.Blas([blas], None))  # OMP_NUM_THREADS=8
    blas.num_threads = 8
    with few_threads(Small()):
        assert blas.num_threads == 8


def test_without_a_known_blas_nothing_is_done(monkeypatch):
    monkeypatch.setattr(threads, "_blas", threads.Blas([], 1))
    with few_threads(Small()), use_threads(3):
        assert threads.threads_for(Small()) == 1


def test_of_two_python_threads_the_first_sets_the_number_and_gives_it_back(blas):
    entered, leave, seen = threading.Event(), threading.Event(), []

    def first():
        with few_threads(Small()):
            entered.set()
            leave.wait(10)
        seen.append(blas.num_threads)

    runner = threading.Thread(target=first)
    runner.start()
    entered.wait(10)
    with few_threads(Small()):
        assert blas.num_threads == 1
        with use_threads(4):
            assert blas.num_threads == 1  # the other one's
        leave.set()
        runner.join()
        assert seen == [8] and blas.num_threads == 8
        with few_threads(Small()):  # the next pass of the longer block
            assert blas.num_threads == 1
        assert blas.num_threads == 8
    assert blas.num_threads == 8 and threads._held == threads.Held()


def test_a_pass_and_each_token_have_one_thread_and_the_caller_has_the_old_number(blas):
    from minillm.transformer.ffn import swiglu
    from minillm.transformer.generation import generate

    model, seen = tiny.model(), []

    def ffn(x, layer, position, tap):
        seen.append(blas.num_threads)
        return swiglu(x, layer, position, tap)

    model.forward([1, 2], ffn=ffn)
    model.hidden([1, 2], ffn=ffn)
    steps = generate(model, [1, 2], 4, ffn=ffn, stop_at_eos=False)
    next(steps)
    assert blas.num_threads == 8
    next(steps)  # and is never run to its end
    assert blas.num_threads == 8 and set(seen) == {1} and len(seen) == 8
    with use_threads(2):
        model.forward([1, 2], ffn=ffn)
    assert seen[-1] == 2


# ---- the real BLAS, in processes of their own ------------------------------------------------------------------------

SCRIPT = """
import threadpoolctl, numpy, minillm, minillm.threads as threads
from minillm.transformer.ffn import swiglu
def number(): return threads.look().number
seen = []
def ffn(*given):
    seen.append(number())
    return swiglu(*given)
model = minillm.load({folder!r})
own = number()
model.forward([1, 2], ffn=ffn)
with threadpoolctl.threadpool_limits(own + 1):  # of the user
    model.forward([1, 2], ffn=ffn)
    assert number() == own + 1
with minillm.use_threads(own + 2):
    model.forward([1, 2], ffn=ffn)
assert number() == own
print(own, *seen[::2])
"""


@pytest.mark.parametrize("given", [None, "3"])
def test_blas_has_one_thread_unless_the_user_says_otherwise(tmp_path, given):
    folder = str(tiny.folder(tmp_path / "m"))
    environment = CLEAN | ({"OMP_NUM_THREADS": given} if given else {})
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(folder=folder)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    own, *seen = map(int, done.stdout.split())
    assert seen == [own if given else 1, own + 1, own + 2]


def test_importing_minillm_loads_neither_numpy_nor_threadpoolctl():
    script = "import sys, minillm, minillm.threads; print([m for m in ('numpy', 'threadpoolctl') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], env=CLEAN, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize(
    "program",
    [
        ("-c", "import minillm; m = minillm.load('default'); minillm.perplexity(m, minillm.embedded_text('test'))"),
        ("-m", "minillm", "generate", "-p", "Once upon a time", "-n", "200"),
        ("-m", "minillm", "perplexity"),
    ],
    ids=["library", "generate", "perplexity"],
)
def test_no_more_processor_time_than_with_one_thread(program, busy):
    resource = pytest.importorskip("resource")

    def seconds(environment) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *program], env=environment, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        one = min(seconds(CLEAN | {"OMP_NUM_THREADS": "1"}) for _ in range(2))
        ours = min(seconds(CLEAN) for _ in range(2))
    finally:
        if other:
            other.kill()
            other.wait()
    assert ours < 1.5 * one + 0.2, (ours, one)
