"""Numbers as arguments: NumPy's are as good as Python's; what is no number is refused and shown as it was given."""

from fractions import Fraction

import numpy as np
import pytest

from minillm.arguments import real_number, whole_number
from minillm.errors import MinillmError


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


def test_a_refused_value_is_shown_as_it_was_given():
    with pytest.raises(MinillmError, match="^n is '5', expected a whole number, at least 1$"):
        whole_number("n", "5", 1)
    with pytest.raises(MinillmError, match="^n is 0, expected at least 1$"):
        whole_number("n", np.int64(0), 1)
