"""A model's fingerprint depends on its weights and its config, and on nothing else."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import tiny

import minillm
from minillm.errors import MinillmError
from minillm.predictors.copies import Shadow
from minillm.predictors.select import sparse_ffn
from minillm.sparsity.spec import SparsitySpec
from minillm.sparsity.thresholds import Thresholds
from minillm.trace import Trace
from minillm.transformer.generation import generate


def test_the_same_weights_give_the_same_fingerprint_in_both_precisions():
    single, double = minillm.load("default"), minillm.load("default", dtype="float64")
    assert single.fingerprint == double.fingerprint
    assert single.fingerprint.shape == (single.config.num_hidden_layers, *single.layers[0].gate_proj.shape[::-1])


def test_twins_of_one_shape_and_seed_differ():
    prints = [minillm.load(name).fingerprint for name in ("default-silu", "default-relu2", "default-gelu")]
    assert len({p.sha256 for p in prints}) == 3 and len({p.shape for p in prints}) == 1


def parts(model) -> list[str]:
    return [part for part, weight in vars(model.layers[-1]).items() if isinstance(weight, np.ndarray)]


@pytest.mark.parametrize("family", ["llama", "qwen3"])  # between them they have all biases and all norms
def test_one_changed_weight_of_the_last_layer_is_enough(family):
    model = tiny.model(family)
    for part in parts(model):
        other = tiny.model(family)
        changed = getattr(model.layers[-1], part) * np.float32(1.001)
        other.layers[-1] = replace(other.layers[-1], **{part: changed})
        assert model.fingerprint.sha256 != other.fingerprint.sha256, part


@pytest.mark.parametrize("part", ["embed_tokens", "norm", "lm_head"])
def test_a_changed_end_is_enough(part):
    model, other = tiny.model(), tiny.model()
    setattr(other, part, getattr(other, part) * np.float32(1.001))
    assert model.fingerprint.sha256 != other.fingerprint.sha256


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 5000.0},
        {"rms_norm_eps": 1e-3},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"model_type": "mistral", "sliding_window": 3},
    ],
)
def test_the_same_weights_under_another_config_are_another_model(changes):
    assert tiny.model(**changes).fingerprint.sha256 != tiny.model().fingerprint.sha256
    scaled = {"rope_type": "linear", "factor": 3.0}
    assert tiny.model(**changes).fingerprint.sha256 != tiny.model(rope_scaling=scaled).fingerprint.sha256


def test_a_feed_forward_network_of_another_model_is_noticed_wherever_it_is_used():
    ours, theirs, deeper = tiny.model(), tiny.model(seed=1), tiny.model(num_hidden_layers=3)
    thresholds = calibrated(theirs)
    shadow = Shadow.fit(theirs, 4)
    shadow.cutoffs = np.zeros(2)
    for ffn in (sparse_ffn(theirs, thresholds), sparse_ffn(theirs, thresholds, predictor=shadow)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            theirs.forward([1, 3], ffn=ffn)
        with pytest.warns(UserWarning, match="another model"):
            ours.forward([1, 3], ffn=ffn)
        with pytest.warns(UserWarning, match="another model"):
            next(generate(ours, [1, 3], 1, ffn=ffn))
        with pytest.raises(MinillmError, match="2 layers.*3 layers"):
            deeper.forward([1, 3], ffn=ffn)


def calibrated(model) -> Thresholds:
    spec = SparsitySpec("mid", ("mid",), ">", "tensor", 0.5)
    return Thresholds("mid", "tensor", 0.5, ({"mid": 0.1},) * 2, spec, model=model.fingerprint)


def test_a_trace_that_is_told_nothing_knows_whose_it_is(tmp_path):
    model = tiny.model()
    with Trace() as trace:
        model.forward([1, 3], tap=trace)
    trace.save(tmp_path / "t.npz")
    assert Trace.load(tmp_path / "t.npz").model == model.fingerprint
