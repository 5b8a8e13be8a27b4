"""The dense feed-forward network: a sum over neurons, and the steps it taps."""

import numpy as np
import pytest
import tiny

from minillm.trace import Trace
from minillm.transformer.ffn import swiglu


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_swiglu_is_a_sum_over_neurons_each_with_a_row_of_gate_and_up_and_a_column_of_down(family):
    layer, x = tiny.model(family).layers[0], np.random.default_rng(0).standard_normal((3, 8))
    gate_bias, up_bias = (0 * layer.gate_proj[:, 0] if b is None else b for b in (layer.gate_bias, layer.up_bias))
    y = np.zeros((3, 8)) if layer.down_bias is None else np.tile(layer.down_bias, (3, 1))
    for j in range(len(layer.gate_proj)):
        g, u = x @ layer.gate_proj[j] + gate_bias[j], x @ layer.up_proj[j] + up_bias[j]
        y += np.outer(g / (1 + np.exp(-g)) * u, layer.down_proj[:, j])
    np.testing.assert_allclose(swiglu(x, layer), y, rtol=1e-11)


def test_a_neuron_whose_mid_is_zero_adds_nothing():
    layer, x = tiny.model().layers[0], np.random.default_rng(0).standard_normal((2, 8))
    with Trace(edits={"mid": lambda mid: np.where(np.arange(mid.shape[1]) == 5, 0, mid)}) as cut:
        swiglu(x, layer, tap=cut)
    with Trace() as whole:
        swiglu(x, layer, tap=whole)
    assert list(whole) == ["gate_pre", "gate", "up", "mid", "out"]
    missing = np.outer(whole["mid"][:, 5], layer.down_proj[:, 5])
    np.testing.assert_allclose(cut["out"], whole["out"] - missing, rtol=1e-11)


@pytest.mark.parametrize("act", ["relu", "relu2", "gelu_pytorch_tanh"])
def test_another_activation_takes_the_place_of_silu(act):
    layer, x = tiny.model(hidden_act=act).layers[0], np.random.default_rng(0).standard_normal((2, 8))
    with Trace() as trace:
        swiglu(x, layer, tap=trace)
    assert np.array_equal(trace["gate"], layer.act(trace["gate_pre"]))
    assert not np.allclose(trace["gate"], trace["gate_pre"] / (1 + np.exp(-trace["gate_pre"])))
