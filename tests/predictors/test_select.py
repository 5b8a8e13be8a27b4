"""The predicted FFN: what equals the dense one, what equals policy mid, what the gathered form touches."""

from dataclasses import replace

import numpy as np
import pytest
import tiny

from minillm.errors import MinillmError, ThresholdsError
from minillm.predictors.baselines import PreviousToken, Static
from minillm.predictors.oracle import Oracle
from minillm.predictors.protocol import Predictor
from minillm.predictors.select import Predicted, above, predicted_ffn, scores_of, sparse_ffn
from minillm.sparsity.spec import SparsityMeter, SparsitySpec
from minillm.sparsity.thresholds import Thresholds
from minillm.trace import Trace
from minillm.transformer.attention import KVCache

FORMS = ("masked", "gathered")
IDS = [1, 5, 9, 2, 30, 7, 7, 11, 3]


def thresholds(model, value: float = 0.05) -> Thresholds:
    spec = SparsitySpec("mid", ("mid",), ">", "tensor", 0.5)
    return Thresholds("mid", "tensor", 0.5, tuple({"mid": value * (i + 1)} for i in range(len(model.layers))), spec)


class Fixed(Predictor):
    """Scores drawn once for each layer and position; and it notes how it was shown the truth."""

    name, nbytes = "fixed", 0

    def __init__(self, model, sequential=False, needs_truth=False):
        self.shape = (len(model.layers), model.config.hidden_size, model.config.intermediate_size)
        self.scores = np.random.default_rng(3).standard_normal((self.shape[0], 64, self.shape[2]))
        self.cutoffs, self.sequential, self.needs_truth = np.zeros(self.shape[0]), sequential, needs_truth
        self.seen = []

    def predict(self, index, position, x):
        return self.scores[index, position : position + len(x)]

    def observe(self, index, position, x, mask):
        self.seen.append((index, position, len(x), mask if mask is None else mask.copy()))


@pytest.mark.parametrize("family", ["plain", "llama"])  # llama: with biases
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cutoffs_of_minus_infinity_select_everything_and_are_dense_bit_for_bit(family, dtype):
    model = tiny.model(family, dtype)
    predictor = Fixed(model)
    predictor.cutoffs = np.full(len(model.layers), -np.inf)
    found = model.forward(IDS, ffn=sparse_ffn(model, thresholds(model), predictor=predictor))
    np.testing.assert_array_equal(found, model.forward(IDS))
    assert found.dtype == dtype


@pytest.mark.parametrize("family", ["plain", "llama"])
@pytest.mark.parametrize("kind", [{}, {"sequential": True}, {"sequential": True, "needs_truth": True}])
def test_gathered_equals_masked_and_touches_no_other_neuron(family, kind):
    model = tiny.model(family)
    ffns = [predicted_ffn(Fixed(model, **kind), thresholds(model), form) for form in FORMS]
    for ffn in ffns:
        ffn.select.predictor.scores[:, :, :3] = -1  # three neurons that are never selected
    with Trace() as masked:
        ours = model.forward(IDS, ffn=ffns[0], tap=masked)
    with Trace() as gathered:
        np.testing.assert_allclose(model.forward(IDS, ffn=ffns[1], tap=gathered), ours, rtol=0, atol=1e-12)
    assert "blocks.0.mlp.gate" not in gathered
    assert "blocks.0.mlp.mask_true" not in gathered and "blocks.0.mlp.mask_true" in masked
    for i in range(len(model.layers)):
        np.testing.assert_array_equal(gathered[f"blocks.{i}.mlp.mask"], masked[f"blocks.{i}.mlp.mask"])
    if not ffns[1].select.predictor.needs_truth:  # spoil what was not selected anywhere: it is never read
        unused = ~gathered["blocks.0.mlp.mask"].any(axis=0)
        assert unused.sum() == 3
        layer = model.layers[0]
        gate, down = np.where(unused[:, None], np.nan, layer.gate_proj), np.where(unused, np.nan, layer.down_proj)
        model.layers[0] = replace(layer, gate_proj=gate, down_proj=down)
        assert np.isfinite(model.forward(IDS, ffn=ffns[1])).all()


@pytest.mark.parametrize("form", FORMS)
def test_the_oracle_with_its_own_thresholds_is_policy_mid(form):
    model = tiny.model("llama")
    cut = thresholds(model)
    found = model.forward(IDS, ffn=sparse_ffn(model, cut, predictor=Oracle(model, cut), form=form))
    policy = model.forward(IDS, ffn=sparse_ffn(model, cut))
    np.testing.assert_allclose(found, policy, rtol=0, atol=0 if form == "masked" else 1e-12)
    assert np.abs(found - model.forward(IDS)).max() > 1e-3  # something was cut


def test_the_selected_neurons_are_not_cut_again_by_the_truth():
    model = tiny.model()
    ffn = predicted_ffn(Fixed(model), thresholds(model, 100.0))  # by these thresholds no neuron is active
    with Trace() as trace:
        model.forward(IDS, ffn=ffn, tap=trace)
    assert not trace["blocks.0.mlp.mask_true"].any()
    mask = trace["blocks.0.mlp.mask"]
    np.testing.assert_array_equal(trace["blocks.0.mlp.mid_cut"], np.where(mask, trace["blocks.0.mlp.mid"], 0))
    assert 0.2 < mask.mean() < 0.8


def test_a_sequential_predictor_sees_one_row_at_a_time_with_the_truth_of_that_row():
    model = tiny.model()
    predictor = Fixed(model, sequential=True, needs_truth=True)
    with Trace() as trace:
        model.forward(IDS, ffn=predicted_ffn(predictor, thresholds(model)), tap=trace)
    seen = [(index, position, rows) for index, position, rows, _ in predictor.seen]
    assert seen == [(i, t, 1) for i in range(len(model.layers)) for t in range(len(IDS))]
    for index, position, _, mask in predictor.seen:
        np.testing.assert_array_equal(mask[0], trace[f"blocks.{index}.mlp.mask_true"][position])


@pytest.mark.parametrize("sequential", [False, True])
def test_scores_are_those_of_each_position_however_many_rows_are_shown_at_a_time(sequential):
    model = tiny.model()
    predictor, x = Fixed(model, sequential), np.random.default_rng(0).standard_normal((5, 8))
    found = scores_of(predictor, x, model.layers[1], 7)
    assert np.array_equal(found, predictor.scores[1, 7:12])
    rows = [(position, count) for _, position, count, _ in predictor.seen]
    assert rows == ([(7 + t, 1) for t in range(5)] if sequential else [(7, 5)])
    assert all(mask is None for *_, mask in predictor.seen)  # the truth is for those that need it


def test_a_score_at_the_cutoff_is_not_selected_and_a_nan_is():
    assert above(np.array([0.4, 0.5, 0.6, np.nan]), 0.5).tolist() == [False, False, True, True]
    assert above(np.array([-1e30]), -np.inf).all()


def test_each_layer_has_its_own_cutoff_and_the_scores_are_tapped():
    model, taps = tiny.model(), {}
    predictor = Fixed(model)
    predictor.cutoffs = np.array([-0.5, 0.5])
    select, x = Predicted(predictor), np.zeros((4, 8))
    for i, layer in enumerate(model.layers):
        mask = select(x, layer, 2, lambda name, value: taps.setdefault(name, value))
        assert np.array_equal(mask, predictor.scores[i, 2:6] > predictor.cutoffs[i])
        assert np.array_equal(taps.pop("scores"), predictor.scores[i, 2:6]) and not taps


def test_a_predictor_that_needs_the_truth_is_refused_without_thresholds():
    model = tiny.model()
    with pytest.raises(MinillmError, match="fixed .* thresholds of policy mid"):
        Predicted(Fixed(model, needs_truth=True))(np.zeros((1, 8)), model.layers[0])


@pytest.mark.parametrize("form", FORMS)
def test_previous_token_in_chunks_is_the_full_pass(form):
    model = tiny.model()
    shape = Fixed(model).shape
    shares = np.random.default_rng(1).random((shape[0], shape[2])).astype(np.float32)
    predictor = PreviousToken(Static(shape, shares))
    predictor.cutoffs = np.full(shape[0], 0.7)
    ffn, cache, parts = predicted_ffn(predictor, thresholds(model), form), KVCache(model.config, 16, model.dtype), []
    full = model.forward(IDS, ffn=ffn)
    for part in (IDS[:4], IDS[4:5], IDS[5:]):
        parts.append(model.forward(part, cache, ffn))
    np.testing.assert_allclose(np.concatenate(parts), full, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(model.forward(IDS, ffn=ffn), full)  # position 0 starts afresh


def test_what_does_not_belong_together_is_refused_in_one_sentence():
    model = tiny.model()
    cut, predictor = thresholds(model), Fixed(model)
    with pytest.raises(ThresholdsError, match="policy cats"):
        predicted_ffn(predictor, replace(cut, policy="cats"))
    with pytest.raises(MinillmError, match="form is 'other'"):
        predicted_ffn(predictor, cut, "other")
    with pytest.raises(MinillmError, match="belongs to another model"):
        sparse_ffn(tiny.model(hidden_size=16), cut, predictor=predictor)
    predictor.scores = predictor.scores[:, :, :5]
    with pytest.raises(MinillmError, match=r"gave scores \[9, 5\], expected \[9, 12\]"):
        model.forward(IDS, ffn=predicted_ffn(predictor, cut))
    predictor.cutoffs = None
    with pytest.raises(MinillmError, match="no cutoffs"):
        sparse_ffn(model, cut, predictor=predictor)


def test_it_names_the_documents_behind_thresholds_and_predictor():
    model = tiny.model()
    predictor = Fixed(model)
    predictor.trained_on = frozenset({"b"})
    assert predicted_ffn(predictor, replace(thresholds(model), documents_sha256=("a",))).calibrated_on == {"a", "b"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reads_gate", [False, True])
def test_the_accounting_reads_what_was_selected_and_the_gate_where_the_predictor_needs_it(form, reads_gate):
    model, meter = tiny.model(), SparsityMeter()
    predictor = Fixed(model)
    predictor.reads_gate = reads_gate
    model.forward(IDS, ffn=sparse_ffn(model, thresholds(model), predictor=predictor, form=form), tap=meter)
    selected = (predictor.scores[:, : len(IDS)] > 0).mean()
    assert meter.report().read_exact == pytest.approx((1 if reads_gate else selected, selected, selected))
