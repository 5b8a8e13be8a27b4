"""The gathered form of the sparse FFN: equal to the masked form, and it reads what is counted and no more."""

import numpy as np
import pytest
import tiny
from cutting import NEURON_POLICIES, by_hand, limits_of
from hypothesis import given, settings
from hypothesis import strategies as st
from passes import cut

from minillm.sparsity.gathered import gathered_swiglu
from minillm.sparsity.masked import masked_swiglu
from minillm.sparsity.spec import SparsityMeter
from minillm.trace import Trace
from minillm.transformer.ffn import swiglu

quick = settings(max_examples=25, derandomize=True, deadline=None)
IDS = [1, 5, 3, 9, 30, 2, 7]


@pytest.mark.parametrize("policy", NEURON_POLICIES)
@pytest.mark.parametrize("family", ["llama", "mistral"])  # with and without biases
def test_the_gathered_form_is_the_rule_written_out_neuron_by_neuron(policy, family):
    layer, x = tiny.model(family).layers[1], np.random.default_rng(0).standard_normal((5, 8))
    limits = limits_of(policy, 0.4)
    found = gathered_swiglu(x, layer, policy=NEURON_POLICIES[policy], thresholds=limits)
    np.testing.assert_allclose(found, by_hand(x, layer, policy, limits), rtol=1e-11, atol=1e-13)
    assert not np.allclose(found, swiglu(x, layer))


@pytest.mark.parametrize("policy", NEURON_POLICIES)
def test_the_gathered_form_at_threshold_zero_is_dense_up_to_the_order_of_sums(policy):
    model = tiny.model("llama")
    dense = model.forward(IDS)
    found = model.forward(IDS, ffn=cut(model, policy, 0.0, "gathered"))
    np.testing.assert_allclose(found, dense, rtol=0, atol=1e-12 * np.abs(dense).max())


@pytest.mark.parametrize("policy", NEURON_POLICIES)
@pytest.mark.parametrize("family", tiny.FAMILIES)
@quick
@given(value=st.floats(0, 2), seed=st.integers(0, 9))
def test_gathered_equals_masked_and_their_masks_are_the_same(policy, family, value, seed):
    model, traces = tiny.model(family, seed=seed), []
    for form in ("masked", "gathered"):
        with Trace(keep="*") as trace:
            model.forward(IDS, ffn=cut(model, policy, value, form), tap=trace)
        traces.append(trace)
    masked, gathered = traces
    assert [name for name in masked if name in gathered] == list(gathered)
    for name, found in gathered.items():
        expected = masked[name]
        if found.dtype == bool:
            assert np.array_equal(found, expected), name
        else:
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * (np.abs(expected).max() or 1))


# ---- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", NEURON_POLICIES)
def test_the_gathered_form_reads_only_the_rows_and_columns_that_the_accounting_counts(policy):
    # One token; every row of up and every column of down that read_exact does not count is made NaN.
    model = tiny.model("llama", num_hidden_layers=1)
    layer, x = model.layers[0], np.random.default_rng(2).standard_normal((1, 8))
    limits = {tensor: value for tensor, value in limits_of(policy, 0.4).items() if tensor != "out"}  # NaN is cut there
    how = {"policy": NEURON_POLICIES[policy], "thresholds": limits}
    meter, trace, norms = SparsityMeter(), Trace(), NEURON_POLICIES[policy].norms(layer)

    def tap(name, value):
        return meter(f"blocks.0.mlp.{name}", trace(name, value))

    expected = gathered_swiglu(x, layer, 0, tap, **how)
    mask = trace["mask"][0]
    assert 0 < mask.sum() < len(mask)

    def read(name: str, size: int) -> np.ndarray:
        return trace[name][0] if name in trace else np.ones(size, bool)

    rows_of_gate, rows_of_up = read("mask_up", 12), read("mask_gate", 12)  # each decided by the other
    of_gate, of_up = read("mask_in_gate", 8), read("mask_in_up", 8)
    layer.gate_proj[~rows_of_gate], layer.gate_bias[~rows_of_gate] = np.nan, np.nan
    layer.up_proj[~rows_of_up], layer.up_bias[~rows_of_up] = np.nan, np.nan
    layer.gate_proj[:, ~of_gate], layer.up_proj[:, ~of_up] = np.nan, np.nan
    layer.down_proj[:, ~mask] = np.nan
    how["norms"] = norms
    assert np.array_equal(gathered_swiglu(x, layer, **how), expected) and np.isfinite(expected).all()
    assert np.isnan(masked_swiglu(x, layer, **how)).any()  # the plain form reads everything
    reads = (rows_of_gate.mean() * of_gate.mean(), rows_of_up.mean() * of_up.mean(), mask.mean())
    np.testing.assert_allclose(meter.report().read_exact, reads)
    # and each that is counted is needed: one more NaN shows
    layer.down_proj[:, np.flatnonzero(mask)[0]] = np.nan
    assert np.isnan(gathered_swiglu(x, layer, **how)).any()


def test_arguments_are_left_alone():
    model = tiny.model("llama")
    layer, x = model.layers[0], np.random.default_rng(0).standard_normal((3, 8))
    arrays = [x, *(value for value in vars(layer).values() if isinstance(value, np.ndarray))]
    before = [array.copy() for array in arrays]
    gathered_swiglu(x, layer, policy=NEURON_POLICIES["dhar"], thresholds=limits_of("dhar", 0.3))
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before, strict=True))
