"""Distributions: the shares are those of the arrays themselves, and the streaming counts agree with them."""

import numpy as np
import pytest
import tiny

from minillm.errors import MinillmError
from minillm.sparsity.magnitudes import StreamingMagnitudes, collect
from minillm.study.distributions import (
    activation_magnitudes,
    activation_rows,
    curve,
    normal_below,
    share_below,
    weight_magnitudes,
)
from minillm.trace import Trace
from minillm.transformer.layer import FFN_MATRICES
from minillm.transformer.texts import runs


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.loaded(tmp_path_factory.mktemp("distributions") / "m")


@pytest.fixture(scope="module")
def magnitudes(model):
    return activation_magnitudes(model, tiny.STORIES, 16)


def traced(model, layer, step):
    """Every magnitude of a step, from traces of all that the protocol reads."""
    found = []
    for run in runs(model, tiny.STORIES, "documents", 16):
        with Trace(keep=f"blocks.{layer}.mlp.{step}") as trace:
            model.forward(run.ids, tap=trace)
        found.append(np.abs(trace[f"blocks.{layer}.mlp.{step}"]).ravel())
    return np.concatenate(found)


def test_weight_shares_are_those_of_the_matrices(tmp_path, monkeypatch):
    monkeypatch.setattr("minillm.study.distributions.BLOCK", 7)  # blocks that do not divide a matrix
    model = tiny.model()
    model.layers[1].up_proj[:3] = 0
    model.layers[0].gate_proj[0, 0] = 1e-9
    rows = weight_magnitudes(model)
    assert [(row["layer"], row["matrix"]) for row in rows] == [(i, name) for i in (0, 1) for name in FFN_MATRICES]
    for row in rows:
        w = getattr(model.layers[row["layer"]], row["matrix"])
        r = np.sqrt((w**2).mean())
        assert row["weights"] == w.size and row["rms"] == pytest.approx(r, rel=1e-12)
        assert row["zeros"] == (w == 0).mean()
        assert row["below_1_percent"] == (abs(w) <= 0.01 * r).mean()
        assert row["below_10_percent"] == (abs(w) <= 0.1 * r).mean()
    zeros = {(row["layer"], row["matrix"]): row["zeros"] for row in rows}
    assert zeros[1, "up_proj"] == 3 / 12 and zeros[0, "gate_proj"] == 0  # small is not zero


def test_random_weights_lie_where_a_normal_distribution_has_them():
    model = tiny.model(hidden_size=64, intermediate_size=512, num_hidden_layers=1, num_attention_heads=16)
    for row in weight_magnitudes(model):
        assert row["zeros"] == 0
        assert row["below_10_percent"] == pytest.approx(normal_below(0.1), abs=0.01)
    assert normal_below(1.0) == pytest.approx(0.6827, abs=1e-4)


@pytest.mark.parametrize("step", ["gate_pre", "gate", "up", "mid", "out"])
def test_activation_shares_are_those_of_the_traced_activations(model, magnitudes, step):
    rows = {row["layer"]: row for row in activation_rows(magnitudes, (0.01, 0.3, 2.0)) if row["step"] == step}
    for layer in (0, 1):
        values = traced(model, layer, step)
        for x in (0.01, 0.3, 2.0):
            # Counted in buckets 0.02 % wide: only values that near to x may be on the other side.
            near = np.mean(np.abs(values - x) <= 3e-4 * x)
            assert rows[layer][f"below_{x:g}"] == pytest.approx((values <= x).mean(), abs=near + 1e-12)
        assert rows[layer]["median"] == pytest.approx(np.quantile(values, 0.5), rel=0.05)


def test_curves_rise_from_few_to_nearly_all(model, magnitudes):
    at, shares = curve(magnitudes, "mid", 50)
    assert at.shape == (50,) and shares.shape == (2, 50) and (np.diff(at) > 0).all()
    assert (np.diff(shares) >= 0).all() and shares[:, 0].min() <= 0.05 and shares[:, -1].min() >= 0.99
    np.testing.assert_array_equal(shares[1], share_below(magnitudes.layers[1]["mid"], at))


def test_zeros_count_as_at_or_below_any_magnitude():
    found = StreamingMagnitudes()
    found.add(np.array([0.0, 0.0, 0.0, 1.0, -2.0], np.float32))
    np.testing.assert_allclose(share_below(found, [0.0, 1e-30, 0.5, 1.5, 100.0]), [0.6, 0.6, 0.6, 0.8, 1.0])
    assert share_below(StreamingMagnitudes(), [1.0]) == [0.0]  # nothing was counted


def test_a_relu_layer_without_any_activation_has_a_figure_too(tmp_path):
    model = tiny.model(hidden_act="relu", vocab_size=tiny.VOCABULARY)
    model.folder = tiny.folder(tmp_path)  # for its tokenizer
    for layer in model.layers:
        layer.gate_proj[:] = 0
    at, shares = curve(activation_magnitudes(model, tiny.STORIES), "gate")
    assert (shares == 1).all() and (np.diff(at) > 0).all()


def test_magnitudes_that_were_not_counted_in_buckets_are_refused(model):
    exact = collect(model, tiny.STORIES, ("mid",), 16, "exact")
    for function in (activation_rows, lambda found: curve(found, "mid")):
        with pytest.raises(MinillmError, match="exact.*expected streaming"):
            function(exact)
