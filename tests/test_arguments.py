"""Numbers as arguments: NumPy's are as good as Python's; what is no number is refused and shown as it was given."""

from fractions import Fraction

import numpy as np
import pytest
import tiny

import minillm
from minillm.arguments import real_number, whole_number
from minillm.errors import MinillmError
from minillm.transformer.texts import first_tokens, split_text


@pytest.mark.parametrize("value", [5, np.int64(5), np.uint8(5), np.array(5, np.int16)])
def test_whole_numbers_of_any_kind_become_int(value):
    found = whole_number("top_k", value, 1, 9)
    assert found == 5 and type(found) is int


@pytest.mark.parametrize("value", [0.25, np.float32(0.25), np.float16(0.25), np.array(0.25), Fraction(1, 4)])
def test_numbers_of_any_kind_become_float(value):
    found = real_number("top_p", value, lambda p: 0 < p <= 1, "a share")
    assert found == 0.25 and type(found) is float
    assert real_number("top_p", np.int32(1), lambda p: 0 < p <= 1, "a share") == 1.0


@pytest.mark.parametrize(
    "value", [True, np.True_, "5", None, 5.0, np.float64(5), float("nan"), [5], np.array([5]), b"5", 5j]
)
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(MinillmError, match="top_k is .*, expected a whole number, 1 to 9"):
        whole_number("top_k", value, 1, 9)


@pytest.mark.parametrize("value", [0, 10, -1, np.int8(-1)])
def test_a_whole_number_out_of_range_is_refused(value):
    with pytest.raises(MinillmError, match="top_k is (0|10|-1), expected 1 to 9"):
        whole_number("top_k", value, 1, 9)


@pytest.mark.parametrize("value", [True, np.True_, "0.5", None, float("nan"), np.float32("inf"), [0.5], 0, 2, 10**400])
def test_what_is_no_number_in_range_is_refused(value):
    with pytest.raises(MinillmError, match="top_p is .*, expected a share"):
        real_number("top_p", value, lambda p: 0 < p <= 1, "a share")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.loaded(tmp_path_factory.mktemp("arguments") / "model")


def drawn() -> np.random.Generator:
    return np.random.default_rng(0)


CALLS = {  # (the public function, its arguments as Python's numbers, those that may be given in other ways)
    "generate": (
        lambda model, **given: [step.token for step in minillm.generate(model, [1, 5], rng=drawn(), **given)],
        {"max_new_tokens": 4, "temperature": 0.5, "top_k": 9, "top_p": 0.5, "min_p": 0.25},
    ),
    "perplexity": (lambda model, **given: minillm.perplexity(model, tiny.STORIES, **given).nll, {"context": 9}),
    "calibrate": (
        lambda model, **given: minillm.calibrate(model, tiny.STORIES, "mid", **given).layers,
        {"sparsity": 0.5, "context": 9},
    ),
    "KVCache": (lambda model, **given: minillm.KVCache(model.config, **given).keys.shape, {"capacity": 5}),
    "first_tokens": (lambda model, **given: first_tokens(model, tiny.STORIES, **given), {"tokens": 20, "context": 9}),
    "split_text": (lambda model, **given: split_text(tiny.STORIES, **given), {"share": 0.5}),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_public_functions_take_numpy_numbers_as_pythons_and_refuse_what_is_none(model, name):
    call, given = CALLS[name]
    scalars = {key: np.float16(value) if isinstance(value, float) else np.int32(value) for key, value in given.items()}
    arrays = {key: np.array(value) for key, value in given.items()}
    assert call(model, **given) == call(model, **scalars) == call(model, **arrays)
    for key in given:
        for bad in (True, "1", float("nan"), [1], b"1"):
            with pytest.raises(MinillmError, match=f"{key} is .*, expected") as caught:
                call(model, **given | {key: bad})
            assert repr(bad) in str(caught.value)


def test_thresholds_found_for_a_numpy_share_are_written(model, tmp_path):
    minillm.calibrate(model, tiny.STORIES, "mid", np.float32(0.5)).save(tmp_path / "t.json")
    assert minillm.Thresholds.load(tmp_path / "t.json").level == 0.5


@pytest.mark.parametrize("source", [None, 5, b"default", True])
def test_a_model_that_is_no_name_is_refused(source):
    with pytest.raises(MinillmError, match="the model is of type"):
        minillm.load(source)


def test_a_refused_value_is_shown_as_it_was_given():
    with pytest.raises(MinillmError, match="^n is '5', expected a whole number, at least 1$"):
        whole_number("n", "5", 1)
    with pytest.raises(MinillmError, match="^n is 0, expected at least 1$"):
        whole_number("n", np.int64(0), 1)
