"""R-Sparse: full rank, no rank and no exact input; its reads by hand; its figures on a published model."""

import math
from dataclasses import replace

import numpy as np
import pytest
import tiny

import minillm
from minillm.errors import MinillmError
from minillm.methods import rsparse
from minillm.methods.base import with_layers
from minillm.methods.rsparse import SCALED, RSparseFFN, mixed_linear, of_rank
from minillm.predictors.quantise import factors
from minillm.predictors.select import sparse_ffn
from minillm.sparsity.calibrate import calibrate
from minillm.sparsity.policies import Cut
from minillm.study.score import score_variant
from minillm.trace import Trace
from minillm.transformer.documents import split_documents
from minillm.transformer.layer import FFN_MATRICES
from minillm.transformer.linear import linear

TEXT = [f"{story} And {i} more." for i in range(2) for story in tiny.STORIES]
IDS = [1, 5, 3, 9, 30, 2, 7]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.loaded(tmp_path_factory.mktemp("rsparse") / "m")


@pytest.mark.parametrize("bias", [False, True])
def test_kept_inputs_meet_the_matrix_and_all_others_its_low_rank(bias):
    rng = np.random.default_rng(0)
    w, x, mask = rng.standard_normal((6, 4)), rng.standard_normal((5, 4)), rng.random((5, 4)) > 0.5
    b, (left, right) = (rng.standard_normal(6) if bias else None), factors(w, 2)
    expected = np.zeros((5, 6)) + (0 if b is None else b)
    for t in range(5):
        for j in range(4):
            expected[t] += x[t, j] * (w[:, j] if mask[t, j] else left @ right[:, j])
    np.testing.assert_allclose(mixed_linear(x, mask, w, b, (left, right)), expected, rtol=1e-12)
    one = mixed_linear(x[:1], mask[:1], w, b, (left, right))  # the form for a single token
    np.testing.assert_allclose(one, expected[:1], rtol=1e-12)
    whole, none = mixed_linear(x, None, w, b, (left, right)), mixed_linear(x, mask, w, b, of_rank(w, 0.0))
    np.testing.assert_allclose(whole, linear(x, w, b), rtol=1e-12)
    np.testing.assert_allclose(none, linear(x * mask, w, b), rtol=1e-12)


@pytest.mark.parametrize("family", ["plain", *tiny.FAMILIES, *tiny.GATED])
def test_at_full_rank_it_is_the_dense_model_whatever_is_cut(family):
    model = tiny.model(family)
    for limit in (0.0, 0.3, math.inf):
        cuts = [Cut(SCALED, dict.fromkeys(SCALED.tensors, limit), SCALED.norms(layer)) for layer in model.layers]
        low = [{n: factors(getattr(layer, n), 8) for n in FFN_MATRICES} for layer in model.layers]  # D = 8
        found = model.forward(IDS, ffn=RSparseFFN(tuple(cuts), tuple(low)))
        np.testing.assert_allclose(found, model.forward(IDS), rtol=0, atol=1e-5)
    low = [{n: factors(getattr(layer, n), 4) for n in FFN_MATRICES} for layer in model.layers]
    assert not np.allclose(model.forward(IDS, ffn=RSparseFFN(tuple(cuts), tuple(low))), found, atol=1e-3)


def test_alpha_0_is_plain_svd_also_for_inputs_larger_than_any_that_was_calibrated(model):
    reads = 0.8  # ranks: 3.84 of gate, up and down, so 4
    made = rsparse.fit(model, TEXT[:1], 1 - reads, alpha=0.0)
    layers = [{n: factors(getattr(layer, n), 4) for n in FFN_MATRICES} for layer in model.layers]
    pairs = zip(model.layers, layers, strict=True)
    low = with_layers(model, [replace(layer, **{n: a @ b for n, (a, b) in of.items()}) for layer, of in pairs])
    np.testing.assert_allclose(model.forward(IDS, ffn=made.ffn), low.forward(IDS), rtol=0, atol=1e-5)
    x = 1000 * np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    for layer, other in zip(model.layers, low.layers, strict=True):
        expected = minillm.swiglu(x, other)
        np.testing.assert_allclose(made.ffn(x, layer), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_alpha_1_is_teal(model):
    made = rsparse.fit(model, TEXT, 0.5, alpha=1.0)
    teal = sparse_ffn(model, calibrate(model, TEXT, "teal", 0.5))
    assert np.array_equal(model.forward(IDS, ffn=made.ffn), model.forward(IDS, ffn=teal))
    assert made.stored == {"dense": 2 * sum(model.parameters.values())}


def test_target_0_is_the_dense_model(model):
    made = rsparse.fit(model, TEXT, 0.0)
    assert np.array_equal(model.forward(IDS, ffn=made.ffn), model.forward(IDS))


def test_each_column_is_compared_by_its_own_norm_and_the_reads_are_columns_and_factors(model):
    made, trace = rsparse.fit(model, TEXT, 0.4, alpha=0.7), Trace()
    model.forward(IDS, ffn=made.ffn, tap=trace)
    rank = round(0.3 * 0.6 * 96 / 20)
    assert rank == 1
    layer, limits = model.layers[1], made.ffn.cuts[1].thresholds
    for i, (name, step, tensor) in enumerate(
        zip(FFN_MATRICES, ("norm", "norm", "mid"), ("in_gate_norm", "in_up_norm", "neuron_norm"), strict=True)
    ):
        sizes = np.abs(trace[f"blocks.1.mlp.{step}"]) * np.sqrt((getattr(layer, name) ** 2).sum(axis=0))
        expected = (sizes > limits[tensor]).mean(axis=1) + 20 / 96  # (8 + 12) numbers of rank 1
        np.testing.assert_allclose(trace["blocks.1.mlp.reads"][:, i], expected)
    factors_held = 2 * 3 * 20 * 2  # layers, matrices, numbers, bytes
    assert made.stored == {"dense": 2 * sum(model.parameters.values()) + factors_held}


def test_the_row_counts_its_reads_on_the_text_that_is_scored(model):
    made = rsparse.fit(model, TEXT, 0.4, alpha=0.7)
    row = score_variant(made, tiny.STORIES[:3], minillm.perplexity(model, tiny.STORIES[:3]))
    assert row["by"] == "reads" and row["achieved"] == pytest.approx(1 - row["read_exact"])
    assert abs(row["achieved"] - 0.4) < 0.06 and row["neuron_sparsity"] == 0 and row["read_known_mask"] == 1
    assert (row["read_gate"] + row["read_up"] + row["read_down"]) / 3 == pytest.approx(row["read_exact"])


def test_a_target_and_an_alpha_out_of_range_are_refused(model):
    with pytest.raises(MinillmError, match=r"target is 1\.0, expected a share from 0 to below 1"):
        rsparse.fit(model, TEXT, 1.0)
    with pytest.raises(MinillmError, match=r"alpha is 1\.5, expected a share from 0 to 1"):
        rsparse.fit(model, TEXT, 0.5, alpha=1.5)


def test_a_model_without_gates_is_refused_by_name():
    with pytest.raises(MinillmError, match="method rsparse .* have no gate"):
        rsparse.fit(tiny.model("opt"), TEXT, 0.5)


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize(("alpha", "expected"), [(1.0, 21.96), (0.9, 22.39)])
def test_perplexities_are_those_of_an_independent_implementation(shared, alpha, expected):
    model = minillm.load(shared / "models" / "tinystories-656k")
    train, test = (
        split_documents((shared / "text" / f"tinystories-{part}.txt").read_text(encoding="utf-8"))
        for part in ("train", "valid")
    )
    made = rsparse.fit(model, train[:100], 0.5, context=512, alpha=alpha)
    score = minillm.perplexity(model, test, context=512, ffn=made.ffn)
    assert score.perplexity == pytest.approx(expected, rel=0.005)
