"""Each policy's comparison, at the threshold itself and on both sides of it."""

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minillm.errors import MinillmError
from minillm.sparsity.policies import (
    AFTER_BOTH,
    AFTER_GATE,
    AFTER_UP,
    OF_GATE_INPUT,
    OF_UP_INPUT,
    POLICIES,
    TENSORS,
    largest,
    policy_named,
    reaching,
    where_kept,
)

quick = settings(max_examples=40, derandomize=True, deadline=None)
VALUES = np.array([-0.6, -0.5, -0.4, -0.0, 0.0, 0.4, 0.5, 0.6])


BY_SIZE = [name for name, rule in POLICIES.items() if rule.comparison in (">", ">=")]
NORMS = {"in_gate_norm": np.full(8, 2.0), "neuron_norm": np.full(8, 2.0)}


@pytest.mark.parametrize(
    ("policy", "tensors", "at_the_threshold"),
    [
        ("dhar", ("gate_pre", "up", "out"), True),
        ("cats", ("gate",), False),
        ("mid", ("mid",), False),
        ("cett", ("neuron_norm",), True),
        ("teal", ("in_gate", "in_up", "mid"), False),
        ("wina", ("in_gate_norm", "in_up", "mid"), False),
        ("countdown", ("up",), False),
    ],
)
def test_a_policy_cuts_these_tensors_and_a_value_at_the_threshold_stays_or_goes(policy, tensors, at_the_threshold):
    rule = policy_named(policy)
    assert rule.tensors == tensors and rule.source
    for tensor in TENSORS:
        at = 1.0 if tensor in NORMS else 0.5  # the norms here double every value
        kept = rule.kept(tensor, VALUES, dict.fromkeys(TENSORS, at), NORMS)
        if tensor in tensors:
            edge = at_the_threshold
            assert kept.tolist() == [True, edge, False, False, False, False, edge, True] and kept.dtype == bool
        else:
            assert kept is None
        assert rule.kept(tensor, VALUES, {}, NORMS) is None  # a file without that tensor does not cut it


def test_the_cases_above_are_all_policies_that_compare_with_a_threshold():
    assert BY_SIZE == ["dhar", "cats", "mid", "cett", "teal", "wina", "countdown"]


def test_a_threshold_of_zero_keeps_all_but_the_exact_zeros_of_a_strict_comparison():
    assert POLICIES["dhar"].kept("up", VALUES, {"up": 0.0}).all()
    assert POLICIES["cats"].kept("gate", VALUES, {"gate": 0.0}).tolist() == (VALUES != 0).tolist()
    assert POLICIES["topk"].kept("mid", VALUES, {"mid": 0.0}).all()
    assert POLICIES["topp"].kept("mid", VALUES, {"mid": 0.0}).all()
    assert POLICIES["statistical"].kept("gate_pre", VALUES, {"gate_pre": 0.0}).all()


def test_the_norms_are_those_of_the_columns_that_a_value_is_multiplied_with():
    layer = tiny.model().layers[0]
    assert POLICIES["mid"].norms(layer) == {} == POLICIES["teal"].norms(layer)
    (gate,), (down,) = POLICIES["wina"].norms(layer).values(), POLICIES["cett"].norms(layer).values()
    np.testing.assert_allclose(gate, [np.sqrt((layer.gate_proj[:, i] ** 2).sum()) for i in range(8)])
    np.testing.assert_allclose(down, [np.sqrt((layer.down_proj[:, j] ** 2).sum()) for j in range(12)])


@quick
@given(arrays(np.float64, 20, elements=st.floats(-3, 3)), st.floats(0, 3), st.floats(0, 3), st.sampled_from([*TENSORS]))
def test_a_higher_threshold_keeps_a_subset(values, a, b, tensor):
    norms = dict.fromkeys(NORMS, np.linspace(0, 2, 20))
    for rule in POLICIES.values():
        if tensor in rule.tensors and rule.comparison != "prompt":
            low, high = (rule.kept(tensor, values, {tensor: t}, norms) for t in sorted((a, b)))
            assert not (high & ~low).any()


@quick
@given(arrays(np.float64, (3, 12), elements=st.floats(-3, 3)), st.floats(0, 1))
def test_top_k_keeps_so_many_of_each_token_and_none_that_is_smaller_than_one_that_goes(values, share):
    kept = POLICIES["topk"].kept("mid", values, {"mid": share})
    assert (kept.sum(axis=-1) == 12 - round(share * 12)).all()
    for row, mask in zip(np.abs(values), kept, strict=True):
        assert not mask.any() or mask.all() or row[mask].min() >= row[~mask].max()


@quick
@given(arrays(np.float64, (3, 12), elements=st.floats(-3, 3)), st.floats(0.01, 0.99))
def test_top_p_keeps_enough_of_the_sum_and_not_one_more(values, share):
    size = np.abs(values)
    for row, mask in zip(size, POLICIES["topp"].kept("mid", values, {"mid": 1 - share}), strict=True):
        total = row.sum()
        assert row[mask].sum() >= share * total * (1 - 1e-12)
        last = row[mask].min() if mask.any() else 0
        assert row[mask & (row > last)].sum() < share * total or last == 0  # without the smallest kept it is too little
        assert not (~mask & (row == last) & (last > 0)).any()  # equals stay together


def test_statistical_top_k_cuts_about_its_share_of_normal_values_and_compares_them_with_their_sign():
    values = np.random.default_rng(0).normal(3.0, 2.0, (5, 20_000))
    for share in (0.1, 0.5, 0.92):
        kept = POLICIES["statistical"].kept("gate_pre", values, {"gate_pre": share})
        np.testing.assert_allclose(kept.mean(axis=1), 1 - share, atol=0.01)
        assert all(row[mask].min() > row[~mask].max() for row, mask in zip(values, kept, strict=True))
    hand = np.array([[-4.0, 1.0, 2.0, 5.0], [1.0, 1.0, 1.0, 1.0]])  # mean 1, std sqrt(10.5); all equal: none is above
    cases = {0.5: [False, False, True, True], 0.7: [False, False, False, True], 0.3: [False, True, True, True]}
    for share, expected in cases.items():
        kept = POLICIES["statistical"].kept("gate_pre", hand, {"gate_pre": share})
        assert kept[0].tolist() == expected and not kept[1].any()
    assert not POLICIES["statistical"].kept("gate_pre", hand, {"gate_pre": 1.0}).any()


def test_of_equal_values_top_k_keeps_the_first_and_a_nan_stays_in_sight():
    assert largest(np.array([1.0, 2.0, 1.0, 1.0]), 2).tolist() == [True, True, False, False]
    assert reaching(np.array([3.0, 1.0, 1.0, 0.0]), 0.7).tolist() == [True, True, True, False]
    assert POLICIES["mid"].kept("mid", np.array([np.nan, 0.1]), {"mid": 1.0}).tolist() == [True, False]


def test_the_largest_entries_are_those_of_a_stable_sort_also_with_ties_and_with_values_that_are_no_numbers():
    rng = np.random.default_rng(0)
    for case in range(300):
        size = rng.integers(0, 5, (int(rng.integers(1, 4)), int(rng.integers(1, 12)))).astype(float)
        size[rng.random(size.shape) < 0.1] = (np.nan, np.inf, 1.0)[case % 3]
        count = int(rng.integers(0, size.shape[1] + 2))
        order = np.argsort(-np.where(np.isnan(size), np.inf, size), axis=1, kind="stable")[:, :count]
        expected = np.zeros(size.shape, bool)
        np.put_along_axis(expected, order, True, axis=1)
        assert np.array_equal(largest(size, count), expected), (size, count)


def test_the_tensors_stand_in_the_order_of_computation_and_cover_every_policy():
    order = [*OF_GATE_INPUT, *OF_UP_INPUT, *AFTER_GATE, *AFTER_UP, *AFTER_BOTH, "out"]
    assert [*TENSORS] == order
    assert all(set(rule.tensors) <= set(TENSORS) for rule in POLICIES.values())
    assert all(rule.name == name for name, rule in POLICIES.items())


def test_an_unknown_policy_is_refused_with_the_list():
    with pytest.raises(MinillmError, match="'Dhar' is unknown, expected one of dhar, cats, mid"):
        policy_named("Dhar")


def test_cut_values_become_zero_and_kept_ones_stay_as_they_are() -> None:
    """Bit for bit what np.where gives, in the dtype of the values; an infinity that is cut is not hidden."""
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        values, mask = rng.standard_normal((5, 7)).astype(dtype), rng.random((5, 7)) > 0.5
        kept = where_kept(mask, values)
        assert kept.dtype == dtype
        assert np.array_equal(kept, np.where(mask, values, 0))
    with np.errstate(invalid="ignore"):
        assert np.isnan(where_kept(np.array([False]), np.array([np.inf]))).all()
