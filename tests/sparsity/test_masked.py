"""The masked form of the sparse FFN: the rule written out, and the dense FFN where nothing is cut."""

import numpy as np
import pytest
import tiny
from cutting import ACTIVATIONS, NEURON_POLICIES, by_hand, limits_of
from passes import cut

from minillm.sparsity.masked import masked_swiglu
from minillm.transformer.ffn import swiglu

IDS = [1, 5, 3, 9, 30, 2, 7]


@pytest.mark.parametrize("policy", NEURON_POLICIES)
@pytest.mark.parametrize("family", ["llama", "mistral"])  # with and without biases
def test_the_masked_form_is_the_rule_written_out_neuron_by_neuron(policy, family):
    layer, x = tiny.model(family).layers[1], np.random.default_rng(0).standard_normal((5, 8))
    limits = limits_of(policy, 0.4)
    found = masked_swiglu(x, layer, policy=NEURON_POLICIES[policy], thresholds=limits)
    np.testing.assert_allclose(found, by_hand(x, layer, policy, limits), rtol=1e-11, atol=1e-13)
    assert not np.allclose(found, swiglu(x, layer))


@pytest.mark.parametrize("policy", NEURON_POLICIES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_masked_form_at_threshold_zero_is_dense_bit_for_bit(policy, activation, dtype):
    model = tiny.model("llama", dtype, hidden_act=activation)
    ffn = cut(model, policy, 0.0, "masked")
    assert model.forward(IDS, ffn=ffn).tobytes() == model.forward(IDS).tobytes()


def test_arguments_are_left_alone():
    model = tiny.model("llama")
    layer, x = model.layers[0], np.random.default_rng(0).standard_normal((3, 8))
    arrays = [x, *(value for value in vars(layer).values() if isinstance(value, np.ndarray))]
    before = [array.copy() for array in arrays]
    masked_swiglu(x, layer, policy=NEURON_POLICIES["dhar"], thresholds=limits_of("dhar", 0.3))
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before, strict=True))
