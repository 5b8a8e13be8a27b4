"""A model's fingerprint depends on its weights and its config, and on nothing else."""

from dataclasses import replace

import numpy as np
import pytest

import minillm
from minillm.transformer.fingerprint import SAMPLED


def test_the_same_weights_give_the_same_fingerprint_in_both_precisions():
    single, double = minillm.load("default"), minillm.load("default", dtype="float64")
    assert single.fingerprint == double.fingerprint
    assert single.fingerprint.shape == (single.config.num_hidden_layers, *single.layers[0].gate_proj.shape[::-1])


def test_twins_of_one_shape_and_seed_differ():
    prints = [minillm.load(name).fingerprint for name in ("default-silu", "default-relu2", "default-gelu")]
    assert len({p.sha256 for p in prints}) == 3 and len({p.shape for p in prints}) == 1


@pytest.mark.parametrize("part", SAMPLED)
def test_one_changed_matrix_of_the_last_layer_is_enough(part):
    model, other = minillm.load("default"), minillm.load("default")
    changed = getattr(model.layers[-1], part) * np.float32(1.001)
    other.layers[-1] = replace(other.layers[-1], **{part: changed})
    assert model.fingerprint.sha256 != other.fingerprint.sha256
