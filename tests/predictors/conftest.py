"""A tiny model with a tokenizer, its thresholds, and texts: what every test of a predictor starts from."""

import numpy as np
import pytest
import tiny
from patterns import texts

from minillm.sparsity.calibrate import calibrate


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """(model in float64, thresholds of mid at half of the neurons)."""
    model = tiny.loaded(tmp_path_factory.mktemp("small") / "model", hidden_size=16, intermediate_size=24)
    return model, calibrate(model, tiny.STORIES, "mid", 0.5, by="neuron")


@pytest.fixture(scope="session")
def inputs(small) -> np.ndarray:
    """Something for a layer to see: (9, D)."""
    return np.random.default_rng(5).standard_normal((9, small[0].config.hidden_size))


@pytest.fixture(scope="session")
def three_layers(tmp_path_factory):
    """(model of three layers with 45 neurons each and biases, thresholds of mid), for the texts of patterns.py."""
    folder = tmp_path_factory.mktemp("library") / "model"
    model = tiny.loaded(folder, "float64", num_hidden_layers=3, intermediate_size=45, mlp_bias=True)
    return model, calibrate(model, texts(6), "mid", 0.5)
