"""The record of one layer's weights: the right arrays under the right names, as views, with the config's settings."""

from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest
import tiny

from minillm.transformer.layer import Layer
from minillm.transformer.ops import gelu_tanh, silu


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_each_field_is_the_array_of_that_name_in_the_checkpoint_and_absent_ones_are_none(family):
    config = tiny.config(family)
    weights = tiny.weights(config)
    layer = Layer.from_weights(config, weights, 1)
    arrays = {field.name: getattr(layer, field.name) for field in fields(Layer)}
    arrays = {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}
    expected = {}
    for name, array in weights.items():
        if name.startswith("model.layers.1."):
            module, kind = name.split(".")[-2:]
            expected[module.replace("_proj", "_bias") if kind == "bias" else module] = array
    assert arrays.keys() == expected.keys()
    assert all(arrays[name] is array for name, array in expected.items())


def test_the_settings_are_those_of_the_config():
    config = tiny.config("qwen2", sliding_window=8, use_sliding_window=True, max_window_layers=1,
                         hidden_act="gelu_pytorch_tanh")  # fmt: skip
    first, second = (Layer.from_weights(config, tiny.weights(config), i) for i in (0, 1))
    assert (first.index, second.index) == (0, 1) and (first.window, second.window) == (None, 8)
    assert (first.head_dim, first.eps, first.act) == (4, 1e-5, gelu_tanh)
    assert tiny.model().layers[0].act is silu


def test_a_layer_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        tiny.model().layers[0].index = 3
