"""The program that runs a student's file: how results become messages, and what it notices."""

import os

import numpy as np
import pytest

from minillm.course.attempt import Outcome
from minillm.course.child import CALLS, IMPORTS, LOOKS, READS, STARTS, message, watch
from minillm.loading.embedded import DATA


class Subclass(np.ndarray):
    shape, dtype, nbytes = (3,), np.dtype(bool), 0

    def __eq__(self, other):
        return True


class Raises:
    __class__ = property(lambda self: np.ndarray)

    def __array__(self, *arguments, **options):
        raise SystemExit


@pytest.mark.parametrize(
    ("value", "tree", "arrays"),
    [
        (None, None, 0),
        (np.ones(3), {"array": 0}, 1),
        ((np.ones(3), np.ones(2) > 0), {"tuple": [{"array": 0}, {"array": 1}]}, 2),
        ([np.ones(3), None], {"list": [{"array": 0}, None]}, 1),
        ([1.0] * 40, {"words": "a list of 40 items"}, 0),
        ((1, [np.ones(1)]), {"tuple": [{"words": "1"}, {"words": "a list of 1 item"}]}, 0),
        (np.ones(1_000_001), {"words": "float64[1000001]"}, 0),
        (np.broadcast_to(np.ones(1), (10**12,)), {"words": "float64[1000000000000]"}, 0),
        ((np.ones(600_000), np.ones(600_000)), {"tuple": [{"array": 0}, {"words": "float64[600000]"}]}, 1),
        (np.ones(2, object), {"words": "object[2]"}, 0),
        (np.float64(2), {"words": "2"}, 0),
        (np.array(2), {"words": "2"}, 0),
        ("y" * 10**6, {"words": repr("y" * 56)[:-1] + "..."}, 0),
        (np.ones((2, 2)).view(Subclass), {"array": 0}, 1),
        (Raises(), {"words": "a value of type Raises"}, 0),
        (iter([1]), {"words": "a value of type list_iterator"}, 0),
    ],
)
def test_a_result_is_arrays_or_words(value, tree, arrays):
    header, sent = message(Outcome(value, changed="x"))
    assert header["result"] == tree and len(sent) == arrays
    assert all(type(array) is np.ndarray for array in sent)


def test_a_problem_is_its_words():
    assert message(Outcome(problem="raised ValueError")) == ({"problem": "raised ValueError"}, [])


def test_it_tells_once_of_each_thing_that_it_notices():
    told = []
    hook = watch(told.append)
    hook("import", ("numpy.linalg", None, None, None, None))
    hook("open", ("/etc/hosts", "r", 0))
    hook("open", (7, "r", 0))
    hook("open", (None, "r", 0))
    hook("open", ("a\0b", "r", 0))
    hook("open", (f"/proc/{os.getpid()}/status", "r", 0))
    assert told == []
    for _ in range(2):
        hook("import", ("minillm.course", None, None, None, None))
        hook("open", (os.fsencode(DATA / "goldens" / ".." / "goldens" / "goldens.npz"), "r", 0))
        hook("os.fork", ())
        hook("ctypes.dlopen", (None,))
        hook("open", (f"/proc/{os.getppid()}/mem", "r", 0))
    assert [header["notice"] for header in told] == [IMPORTS, READS, STARTS, CALLS, LOOKS]
