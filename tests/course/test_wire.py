"""Frames: what is sent comes back, and nothing else is taken, whatever the bytes are."""

import io
import json

import fuzz
import numpy as np
import pytest

from minillm.course.judge import outcome_of
from minillm.course.wire import ARRAYS_LIMIT, DTYPES, HEADER_LIMIT, WireError, pack, receive, sendable
from minillm.errors import MinillmError


def frame(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(4, "big") + text + body


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0,), (3,), (2, 0, 3), (2, 3, 4)])
def test_an_array_comes_back_as_it_was(dtype, shape):
    array = (np.arange(np.prod(shape)).reshape(shape) % 2).astype(dtype)
    for sent in (array, array.T, array.astype(array.dtype.newbyteorder(">"))):
        header, (found,) = receive(io.BytesIO(pack({"call": "x", "eps": 0.1}, [sent])))
        assert header["call"] == "x" and header["eps"] == 0.1
        assert found.dtype == array.dtype and found.shape == sent.shape and np.array_equal(found, sent)


def test_nan_infinity_and_the_last_bit_come_back():
    array = np.array([np.nan, np.inf, -np.inf, 0.1 + 0.2, 5e-324])
    assert receive(io.BytesIO(pack({}, [array])))[1][0].tobytes() == array.tobytes()


def test_every_byte_of_a_truth_value_but_0_is_true():
    _, (found,) = receive(io.BytesIO(frame({"arrays": [["bool", [3]]]}, b"\0\1\7")))
    assert found.tolist() == [False, True, True] and found.view(np.uint8).tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    "header",
    [
        b"", b"{", b"[" * 60_000, b"\xff", b"nonsense", b"7", b"[]", b'"text"', b"null", {}, {"arrays": 3},
        {"arrays": [3]}, {"arrays": [["float64"]]}, {"arrays": [["object", [1]]]}, {"arrays": [["O", [1]]]},
        {"arrays": [["<U9", [1]]]}, {"arrays": [["float128", [1]]]}, {"arrays": [[["a", "<i8"], [1]]]},
        {"arrays": [["float64", 3]]}, {"arrays": [["float64", [-1]]]}, {"arrays": [["float64", [1.0]]]},
        {"arrays": [["float64", [True]]]}, {"arrays": [["float64", [10**12]]]}, {"arrays": [["bool", [10**30, 0]]]},
        {"arrays": [["float64", [1_000_001]]]}, {"arrays": [["float64", [600_000]], ["float64", [600_000]]]},
        {"arrays": [["bool", [1] * 17]]}, {"arrays": [["bool", [0, 10**6, 10**6]]]},
    ],
)  # fmt: skip
def test_what_is_no_frame_is_refused_before_its_arrays_are_read(header):
    class Body(io.BytesIO):
        def read(self, count=-1):
            assert count <= HEADER_LIMIT
            return super().read(count)

    with pytest.raises(WireError):
        receive(Body(frame(header)))


def test_a_long_header_is_refused_before_it_is_read():
    with pytest.raises(WireError, match="4,294,967,295 bytes"):
        receive(io.BytesIO(b"\xff" * 100))


@pytest.mark.parametrize("end", range(0, 40, 3))
def test_a_frame_that_ends_too_early_is_an_end(end):
    whole = pack({}, [np.ones(2)])
    assert len(whole) > 40
    with pytest.raises(EOFError):
        receive(io.BytesIO(whole[:end]))


def test_what_may_travel():
    assert sendable(np.ones((2, 3))) and sendable(np.broadcast_to(np.True_, (1000,)))
    assert not sendable(np.broadcast_to(np.ones(1), (10**12,))) and not sendable(np.ones(2, object))
    assert not sendable(np.array(["a"])) and not sendable(np.ones(3), room=20)


@fuzz.examples
def test_any_answer_is_taken_as_it_is_meant_or_refused(examples, tmp_path):
    header = {
        "number": 3, "changed": "x", "result": {"tuple": [{"array": 0}, {"words": "3"}, None, {"array": 1}]},
        "arrays": [["float64", [2, 3]], ["bool", [4]]],
    }  # fmt: skip

    def parse(path):
        try:
            return outcome_of(*receive(io.BytesIO(frame(path.read_bytes(), b"\7" * 200))))
        except (WireError, EOFError) as problem:
            raise MinillmError(str(problem) or "the frame ends too early") from None

    def valid(outcome):
        items = outcome.result if isinstance(outcome.result, tuple | list) else [outcome.result]
        arrays = [item for item in items if isinstance(item, np.ndarray)]
        return sum(a.nbytes for a in arrays) <= ARRAYS_LIMIT and all(a.dtype.name in DTYPES for a in arrays)

    counts = fuzz.holds(examples, fuzz.json_files(header), tmp_path / "answer", parse, valid)
    assert counts["accepted"] and counts["refused"]
