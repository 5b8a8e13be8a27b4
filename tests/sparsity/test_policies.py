"""Each policy's comparison, at the threshold itself and on both sides of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minillm.errors import MinillmError
from minillm.sparsity.policies import AFTER_GATE, AFTER_UP, POLICIES, TENSORS, policy_named

quick = settings(max_examples=40, derandomize=True, deadline=None)
VALUES = np.array([-0.6, -0.5, -0.4, -0.0, 0.0, 0.4, 0.5, 0.6])


@pytest.mark.parametrize(
    ("policy", "tensors", "at_the_threshold"),
    [("dhar", ("gate_pre", "up", "out"), True), ("cats", ("gate",), False), ("mid", ("mid",), False)],
)
def test_a_policy_cuts_these_tensors_and_a_value_at_the_threshold_stays_or_goes(policy, tensors, at_the_threshold):
    rule = policy_named(policy)
    assert rule.tensors == tensors and rule.source
    for tensor in TENSORS:
        kept = rule.kept(tensor, VALUES, dict.fromkeys(TENSORS, 0.5))
        if tensor in tensors:
            edge = at_the_threshold
            assert kept.tolist() == [True, edge, False, False, False, False, edge, True] and kept.dtype == bool
        else:
            assert kept is None
        assert rule.kept(tensor, VALUES, {}) is None  # a file without that tensor does not cut it


def test_a_threshold_of_zero_keeps_all_but_the_exact_zeros_of_a_strict_comparison():
    assert POLICIES["dhar"].kept("up", VALUES, {"up": 0.0}).all()
    assert POLICIES["cats"].kept("gate", VALUES, {"gate": 0.0}).tolist() == (VALUES != 0).tolist()


@quick
@given(arrays(np.float64, 20, elements=st.floats(-3, 3)), st.floats(0, 3), st.floats(0, 3), st.sampled_from(TENSORS))
def test_a_higher_threshold_keeps_a_subset(values, a, b, tensor):
    for rule in POLICIES.values():
        if tensor in rule.tensors:
            low, high = (rule.kept(tensor, values, {tensor: t}) for t in sorted((a, b)))
            assert not (high & ~low).any()


def test_the_tensors_stand_in_the_order_of_computation_and_cover_every_policy():
    assert TENSORS == (*AFTER_GATE, *AFTER_UP, "out") == ("gate_pre", "gate", "up", "mid", "out")
    assert all(set(rule.tensors) <= set(TENSORS) for rule in POLICIES.values())
    assert all(rule.name == name for name, rule in POLICIES.items())


def test_an_unknown_policy_is_refused_with_the_list():
    with pytest.raises(MinillmError, match="'Dhar' is unknown, expected one of dhar, cats, mid"):
        policy_named("Dhar")
