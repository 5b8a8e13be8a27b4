"""The FFN of a Selector: every kind of Selector, in both forms, and what is counted as read."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
from passes import cut, traced

from minillm.errors import MinillmError
from minillm.predictors.baselines import PreviousToken, Static
from minillm.predictors.copies import Shadow
from minillm.predictors.select import Predicted
from minillm.sparsity import griffin
from minillm.sparsity.griffin import Griffin
from minillm.sparsity.selected import Recorded, SelectedFFN, StaticSet, mid_mask
from minillm.sparsity.sparse import policy_selector
from minillm.sparsity.spec import SparsityMeter
from minillm.transformer.attention import KVCache
from minillm.transformer.model import shape_of

IDS = [1, 5, 3, 9, 30, 2, 7, 8, 11, 4]
L, D, F = 2, 8, 12
FORMS = ("masked", "gathered")


@pytest.fixture(autouse=True)
def short_prompt(monkeypatch):
    monkeypatch.setattr(griffin, "PROMPT", 4)


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(2).random(shape) < 0.4


def predicted(model, gate_bits: int) -> Predicted:
    predictor = Shadow.fit(model, 4, gate_bits=gate_bits)
    predictor.cutoffs = np.full(L, 0.4)
    predictor.attach(model)
    return Predicted(predictor)


def previous_token(model) -> Predicted:
    predictor = PreviousToken(Static(shape_of(model), np.random.default_rng(1).random((L, F)).astype(np.float32)))
    predictor.cutoffs = np.full(L, 0.7)
    return Predicted(predictor, cut(model, "mid").thresholds)


KINDS = {
    "policy": lambda model: policy_selector(model, cut(model, "cats").thresholds),
    "predictor": lambda model: predicted(model, 4),
    "predictor that reads the gate": lambda model: predicted(model, 0),
    "predictor that sees the truth": previous_token,
    "recorded": lambda model: Recorded(drawn(L, len(IDS), F)),
    "static set": lambda model: StaticSet(drawn(L, F)),
    "griffin": lambda model: Griffin([0.25, 0.5]),
}


def sum_over_neurons(x: np.ndarray, layer, mask: np.ndarray) -> np.ndarray:
    """The FFN as a sum over the neurons of a mask, one (token, neuron) pair at a time."""
    out = np.zeros_like(x) + (0 if layer.down_bias is None else layer.down_bias)
    for t, j in zip(*np.nonzero(mask), strict=True):
        g = x[t] @ layer.gate_proj[j] + (0 if layer.gate_bias is None else layer.gate_bias[j])
        u = x[t] @ layer.up_proj[j] + (0 if layer.up_bias is None else layer.up_bias[j])
        out[t] += layer.act(np.array([g]))[0] * u * layer.down_proj[:, j]
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["plain", "llama"])  # llama: with biases
def test_both_forms_are_the_sum_over_the_selected_neurons(kind, family):
    model = tiny.model(family)
    masked, gathered = (traced(model, IDS, ffn=SelectedFFN(KINDS[kind](model), form)) for form in FORMS)
    for i, layer in enumerate(model.layers):
        at = f"blocks.{i}.mlp"
        mask = masked[f"{at}.mask"]
        assert 0.1 < mask.mean() < 0.9
        assert np.array_equal(gathered[f"{at}.mask"], mask)
        for trace in (masked, gathered):
            expected = sum_over_neurons(trace[f"{at}.norm"], layer, mask)
            np.testing.assert_allclose(trace[f"{at}.out"], expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    ours, theirs = gathered["logits"], masked["logits"]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 * np.abs(theirs).max())
    assert not np.allclose(theirs, model.forward(IDS))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_in_chunks_as_in_one_pass_and_again_for_the_next_text(kind, form):
    model = tiny.model("llama")
    ffn = SelectedFFN(KINDS[kind](model), form)
    model.forward(IDS[::-1], ffn=ffn)  # another text first: its state must not show
    whole = model.forward(IDS, ffn=ffn)
    for chunks in ([IDS[:3], IDS[3:7], IDS[7:]], [[i] for i in IDS]):
        cache = KVCache(model.config, 16, np.float64)
        parts = np.concatenate([model.forward(chunk, cache, ffn) for chunk in chunks])
        np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-12 * np.abs(whole).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_reads_are_the_selected_neurons_and_the_gate_where_the_selector_reads_it_in_full(kind, form, dtype):
    model, meter = tiny.model("llama", dtype), SparsityMeter()
    seen = traced(model, IDS, ffn=SelectedFFN(KINDS[kind](model), form))
    for ids in (IDS, IDS[:3], IDS[:1]):
        model.forward(ids, ffn=SelectedFFN(KINDS[kind](model), form), tap=meter)
    masks = [seen[f"blocks.{i}.mlp.mask"] for i in range(L)]
    kept = pairs = 0
    for mask in masks:
        for count in (len(IDS), 3, 1):  # what is selected for a token does not depend on the tokens after it
            for t in range(count):
                kept, pairs = kept + sum(bool(mask[t, j]) for j in range(F)), pairs + F
    gate = 1 if kind == "predictor that reads the gate" else kept / pairs
    report = meter.report()
    assert report.read_exact == pytest.approx((gate, kept / pairs, kept / pairs), abs=1e-12)
    assert report.read_known_mask == pytest.approx((kept / pairs,) * 3, abs=1e-12)
    for i, mask in enumerate(masks):
        reads = seen[f"blocks.{i}.mlp.reads"]
        assert reads.shape == (len(IDS), 3) and reads.dtype == np.float64
        assert reads[:, 2].tolist() == pytest.approx([row.sum() / F for row in mask])


@pytest.mark.parametrize("kind", KINDS)
def test_a_traced_pass_and_a_plain_one_are_equal_bit_for_bit(kind):
    model = tiny.model("llama", np.float32)
    for form in FORMS:
        ffn = SelectedFFN(KINDS[kind](model), form)
        assert model.forward(IDS, ffn=ffn).tobytes() == traced(model, IDS, ffn=ffn)["logits"].tobytes()


@pytest.mark.parametrize("form", FORMS)
def test_a_guess_is_shown_and_changes_nothing(form):
    model = tiny.model()
    select, guess = StaticSet(drawn(L, F)), StaticSet(~drawn(L, F))
    seen = traced(model, IDS, ffn=SelectedFFN(select, form, guess=guess))
    assert np.array_equal(seen["blocks.1.mlp.mask_guess"], np.tile(~drawn(L, F)[1], (len(IDS), 1)))
    assert seen["logits"].tobytes() == model.forward(IDS, ffn=SelectedFFN(select, form)).tobytes()


def test_a_selector_that_is_its_own_guess_is_asked_once():
    model, calls = tiny.model(), []

    class Noted(StaticSet):
        def __call__(self, x, layer, position=0, tap=None):
            calls.append(layer.index)
            return super().__call__(x, layer, position, tap)

    select = Noted(drawn(L, F))
    model.forward(IDS, ffn=SelectedFFN(select, guess=select))
    assert calls == [0, 1]


def test_the_truth_is_the_mask_of_policy_mid_and_cuts_nothing():
    model = tiny.model()
    limits, select = cut(model, "mid").thresholds, StaticSet(drawn(L, F))
    seen = traced(model, IDS, ffn=SelectedFFN(select, truth=limits))
    for i in range(L):
        mid = seen[f"blocks.{i}.mlp.mid"]
        true = seen[f"blocks.{i}.mlp.mask_true"]
        assert np.array_equal(true, np.abs(mid) > 0.3) and np.array_equal(true, mid_mask(mid, limits, i))
    assert seen["logits"].tobytes() == model.forward(IDS, ffn=SelectedFFN(select)).tobytes()


def test_a_neuron_that_is_left_out_counts_as_its_mean_where_means_are_given():
    model = tiny.model()
    means = [np.linspace(-1, 1, F), np.linspace(2, 3, F)]
    seen = traced(model, IDS, ffn=SelectedFFN(StaticSet(drawn(L, F)), means=means))
    for i in range(L):
        mid, mid_cut, chosen = seen[f"blocks.{i}.mlp.mid"], seen[f"blocks.{i}.mlp.mid_cut"], drawn(L, F)[i]
        assert np.array_equal(mid_cut[:, chosen], mid[:, chosen])
        assert np.array_equal(mid_cut[:, ~chosen], np.tile(means[i][~chosen], (len(IDS), 1)))


def test_the_documents_are_those_of_the_selection_and_of_the_truth():
    limits = replace(cut(tiny.model(), "mid").thresholds, documents_sha256=("a",))
    select = StaticSet(drawn(L, F), calibrated_on=frozenset({"b"}))
    assert SelectedFFN(select, truth=limits).calibrated_on == {"a", "b"}
    assert SelectedFFN(select).calibrated_on == {"b"}


def test_what_does_not_belong_together_is_refused():
    select, limits = StaticSet(drawn(L, F)), cut(tiny.model(), "cats").thresholds
    with pytest.raises(MinillmError, match="form is 'fast', expected one of masked, gathered"):
        SelectedFFN(select, "fast")
    with pytest.raises(MinillmError, match="gathered.* means.* masked"):
        SelectedFFN(select, "gathered", means=[np.zeros(F)] * L)
    with pytest.raises(MinillmError, match="policy cats"):
        SelectedFFN(select, truth=limits)


@pytest.mark.parametrize("form", FORMS)
def test_a_text_that_is_longer_than_its_recorded_masks_is_refused(form):
    model = tiny.model()
    ffn, cache = SelectedFFN(Recorded(drawn(L, 4, F)), form), KVCache(tiny.config(), 16, np.float64)
    with pytest.raises(MinillmError, match="position 9, .* position 3"):
        model.forward(IDS, ffn=ffn)
    model.forward(IDS[:3], cache, ffn)
    with pytest.raises(MinillmError, match="position 4, .* position 3"):
        model.forward(IDS[3:5], cache, ffn)  # one row recorded, two rows asked for: it must not be repeated


def test_a_static_set_and_recorded_masks_say_what_they_are():
    assert (StaticSet(drawn(L, F)).name, Recorded(drawn(L, 1, F)).name) == ("static set", "recorded")
    recorded = drawn(L, 7, F)
    row = Recorded(recorded)(np.zeros((2, D)), tiny.model().layers[1], 5)
    assert np.array_equal(row, recorded[1, 5:7])
