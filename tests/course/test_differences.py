"""How two values differ: the share that is right, and the sentence on what is wrong."""

import numpy as np
import pytest

from minillm.course.differences import difference, shape_hint

X = np.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize(
    ("found", "expected", "words"),
    [
        (3, 4, "returned 3, expected 4"),
        (np.float64(0.5), 0.25, "returned 0.5, expected 0.25"),
        (np.ones(3), 1.0, "returned float64[3], expected 1: sum or average over every axis?"),
        (None, 1.0, "returned None, expected 1: is a return missing?"),
        ("1", 1, "returned '1', expected 1"),
        ([1, 2], [1, 3], "item 2: returned 2, expected 3; 1 of 2 items are right"),
        ([1], [1, 3], "returned a list of 1 item, expected a list of 2 items"),
        ((X, X), (X, X.T), "item 2: returned float64[3, 4], expected float64[4, 3]"),
        ("abc", "abd", "returned 'abc', expected 'abd'"),
        ({"a": 1}, {"b": 1}, "a dict of 1 item with the keys ['a'], expected a mapping with the keys ['b']"),
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, "of the keys ['a', 'b'], item 2: returned 2, expected 3"),
        ([True, False], np.array([True, False]), "returned a list of 2 items, expected an array bool[2]"),
        (np.array([True, True]), np.array([True, False]), "first wrong value at [1]: found True, expected False"),
    ],
)
def test_numbers_lists_texts_and_mappings(found, expected, words):
    assert words in difference(found, expected, 1e-6)[1]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (np.float32(2), 2.0), (np.array(2), 2), (2.0, 2), (True, np.True_), (np.nan, float("nan")), ([1, 2], (1, 2)),
        (np.array([1, 2]), [1, 2]), (np.array([1, 2], np.int32), np.array([1, 2])), (None, None),
        (np.zeros((0, 3)), np.zeros((0, 3))),
        ({"b": 2, "a": 1}, {"a": 1, "b": 2}), (1e-3 + 1e-10, 1e-3), ({1, 2}, {2, 1}), ([], []),
        (np.array([1 + 2j]), np.array([1 + 2j])),
    ],
)  # fmt: skip
def test_what_is_as_good_as_right_is_right(found, expected):
    assert difference(found, expected, 1e-6) == (1.0, "")


def test_truth_values_count_as_far_as_they_are_better_than_a_constant():
    truth = np.array([True, False, False, False, True, False])
    for constant in (np.zeros(6, bool), np.ones(6, bool)):
        assert difference(constant, truth, 1e-6)[0] == 0
    one_wrong = truth.copy()
    one_wrong[1] = True
    assert difference(one_wrong, truth, 1e-6)[0] == 0.5 and "5 of 6" in difference(one_wrong, truth, 1e-6)[1]
    assert difference(truth, truth, 1e-6) == (1.0, "") == difference(truth[1:4], np.zeros(3, bool), 1e-6)


@pytest.mark.parametrize(
    ("found", "expected", "words"),
    [
        ((4, 3), (3, 4), "transposed"),
        ((4, 2, 3), (2, 3, 4), "the same axes in another order"),
        ((1, 3), (3,), "an axis of length 1"),
        ((12,), (3, 4), "the same number of values"),
        ((3, 5), (3, 4), "axis 1 has length 5, not 4"),
        ((3,), (3, 4), "1 axes, not 2"),
    ],
)
def test_the_hint_on_a_shape_names_the_likeliest_cause(found, expected, words):
    assert words in shape_hint(found, expected)
