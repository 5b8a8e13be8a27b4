"""Mixed sparsity: traces by Hutchinson, the allocation by rank, and the whole."""

import numpy as np
import pytest
import tiny

from minillm.errors import MinillmError
from minillm.methods.base import fit
from minillm.methods.mixed import allocated, gradient, in_columns, traces
from minillm.methods.sparsegpt import fit as sparsegpt
from minillm.transformer.model import Llama
from minillm.transformer.texts import Run, first_runs, runs

NAMES = ["model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.down_proj.weight"]


@pytest.fixture(scope="module")
def small():
    """A model of a few hundred weights, and a text for it."""
    model = tiny.model(hidden_size=4, intermediate_size=5, num_hidden_layers=1, head_dim=2, vocab_size=9,
                       num_attention_heads=2, num_key_value_heads=1)  # fmt: skip
    ids = np.random.default_rng(0).integers(0, 9, 30).tolist()
    return model, [Run(ids, 1, 0, 1)]


def exact_trace(model: Llama, pieces, name: str) -> float:
    """The diagonal of the Hessian, one weight at a time."""
    weights = {key: w.copy() for key, w in model.weights.items()}
    copy, total, h = Llama(model.config, weights), 0.0, 1e-5
    flat = weights[name].reshape(-1)
    for j in range(flat.size):
        flat[j] += h
        above = gradient(copy, pieces, [name])[name].reshape(-1)[j]
        flat[j] -= 2 * h
        below = gradient(copy, pieces, [name])[name].reshape(-1)[j]
        flat[j] += h
        total += (above - below) / (2 * h)
    return total


def test_hutchinsons_traces_are_within_5_percent_of_the_exact_ones(small):
    model, pieces = small
    before = {name: w.copy() for name, w in model.weights.items()}
    found = traces(model, pieces, NAMES, probes=1500)
    for name in NAMES:
        assert found[name] == pytest.approx(exact_trace(model, pieces, name), rel=0.05)
    assert all(np.array_equal(model.weights[name], w) for name, w in before.items())  # the model stays as it was


def test_sensitive_matrices_keep_more_and_the_target_is_that_of_all_weights():
    sizes = {"a": 100, "b": 300, "c": 50}
    shares = allocated({"a": 2.0, "b": 9.0, "c": -1.0}, sizes, 0.5)
    assert shares["c"] > shares["a"] > shares["b"]
    assert sum(shares[name] * n for name, n in sizes.items()) / 450 == pytest.approx(0.5)
    assert shares["c"] - shares["b"] == pytest.approx(0.2)
    equal = allocated({"a": 2.0, "b": 9.0, "c": -1.0}, dict.fromkeys("abc", 10), 0.5)
    assert equal == pytest.approx({"c": 0.6, "a": 0.5, "b": 0.4})


@pytest.mark.parametrize("target", [0.05, 0.95])
def test_a_target_that_leaves_no_room(target):
    with pytest.raises(MinillmError, match=f"target is {target}: from "):
        allocated({"a": 1.0, "b": 2.0}, {"a": 1, "b": 1}, target)


def test_whole_inputs_keep_the_share_of_all_weights():
    shares, shapes = {"a": 0.53, "b": 0.41, "c": 0.6}, {"a": (10, 7), "b": (10, 7), "c": (4, 9)}
    whole = in_columns(shares, shapes)
    assert all(whole[name] * shapes[name][1] == pytest.approx(round(whole[name] * shapes[name][1])) for name in shares)
    weights = {name: rows * inputs for name, (rows, inputs) in shapes.items()}
    lost = sum((shares[name] - whole[name]) * n for name, n in weights.items())
    assert abs(lost) <= 5  # half of an input's weights


@pytest.mark.parametrize("name", ["mixed", "mixed-all"])
def test_the_share_that_goes_is_the_target_and_not_the_same_everywhere(tmp_path, name):
    model = tiny.loaded(tmp_path / "m", "float32", hidden_size=32, intermediate_size=96, head_dim=8)
    variant = fit(name, model, tiny.STORIES, 0.5)
    assert variant.spec.achieved == pytest.approx(0.5, abs=1e-3)
    zeros = [1 - np.count_nonzero(layer.up_proj) / layer.up_proj.size for layer in variant.model.layers]
    zeros += [1 - np.count_nonzero(layer.down_proj) / layer.down_proj.size for layer in variant.model.layers]
    assert 0.05 < max(zeros) - min(zeros) <= 0.25
    assert variant.spec.policy == name and variant.calibrated_on


def test_a_target_of_0_is_the_dense_model(tmp_path):
    model = tiny.loaded(tmp_path / "m", "float32")
    variant, plain = fit("mixed", model, tiny.STORIES, 0.0), sparsegpt(model, tiny.STORIES, 0.0)
    for ours, theirs in zip(variant.model.layers, plain.model.layers, strict=True):
        assert np.array_equal(ours.down_proj, theirs.down_proj)


def test_the_beginning_of_a_text(tmp_path):
    model = tiny.loaded(tmp_path / "m")
    pieces = runs(model, tiny.STORIES, "documents", None)
    assert (len(first_runs(pieces, 1)), len(first_runs(pieces, 10**6))) == (1, len(pieces))
