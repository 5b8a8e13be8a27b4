"""GRIFFIN: dense over the first tokens, then the neurons that they chose."""

import numpy as np
import pytest
import tiny

from minillm.errors import MinillmError
from minillm.predictors.select import sparse_ffn
from minillm.sparsity import griffin
from minillm.sparsity.calibrate import calibrate
from minillm.sparsity.griffin import Griffin
from minillm.sparsity.policies import POLICIES
from minillm.sparsity.spec import SparsityMeter, SparsitySpec
from minillm.sparsity.thresholds import Thresholds
from minillm.trace import Trace
from minillm.transformer.attention import KVCache

IDS = [1, 5, 3, 9, 30, 2, 7, 8, 11, 4]


@pytest.fixture(autouse=True)
def short_prompt(monkeypatch):
    monkeypatch.setattr(griffin, "PROMPT", 4)


def cut(model, share: float, form: str = "masked"):
    rule = POLICIES["griffin"]
    spec = SparsitySpec("griffin", rule.tensors, rule.comparison, "tensor", share)
    return sparse_ffn(model, Thresholds("griffin", "tensor", share, ({"mid": share},) * 2, spec), form=form)


def traced(model, ffn):
    with Trace() as trace:
        logits = model.forward(IDS, ffn=ffn, tap=trace)
    return logits, trace


@pytest.mark.parametrize("form", ["masked", "gathered"])
def test_the_prompt_is_dense_and_chooses_the_neurons_of_all_that_follows(form):
    model = tiny.model("llama")
    dense, before = traced(model, cut(model, 0.0))
    found, trace = traced(model, cut(model, 0.25, form))
    np.testing.assert_allclose(found[:4], dense[:4], rtol=1e-12)
    assert not np.allclose(found[4:], dense[4:])
    for layer in range(2):
        mask, mid = trace[f"blocks.{layer}.mlp.mask"], before[f"blocks.{layer}.mlp.mid"][:4]  # the prompt is untouched
        score = [sum((row[j] / np.sqrt((row**2).sum())) ** 2 for row in mid) for j in range(12)]
        chosen = set(np.argsort(score)[3:])
        assert mask[:4].all()
        assert all(set(np.flatnonzero(row)) == chosen for row in mask[4:])


def test_the_two_forms_agree_and_gathered_reads_only_what_was_chosen():
    model = tiny.model("llama")
    a, b = (model.forward(IDS, ffn=cut(model, 0.5, form)) for form in ("masked", "gathered"))
    np.testing.assert_allclose(b, a, rtol=0, atol=1e-12 * np.abs(a).max())
    meter = SparsityMeter()
    model.forward(IDS, ffn=cut(model, 0.5), tap=meter)
    assert meter.report().read_exact == pytest.approx((0.7,) * 3)  # 4 of 10 tokens dense, the others half


@pytest.mark.parametrize("form", ["masked", "gathered"])
def test_it_gives_the_same_token_by_token_and_in_chunks_as_in_one_pass_and_begins_afresh(form):
    model = tiny.model("llama")
    ffn = cut(model, 0.5, form)
    whole = model.forward(IDS, ffn=ffn)
    for chunks in ([IDS[:3], IDS[3:7], IDS[7:]], [[i] for i in IDS]):
        cache = KVCache(model.config, 16, np.float64)
        parts = np.concatenate([model.forward(chunk, cache, ffn) for chunk in chunks])
        np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-11)


def test_position_0_forgets_the_prompt_before_it():
    model, other = tiny.model("llama"), [7, 7, 2, 30, 1, 9]
    layer, rng = model.layers[0], np.random.default_rng(0)
    first, second = rng.standard_normal((2, 6, 8))
    fresh, used = Griffin([0.5, 0.5]), Griffin([0.5, 0.5])
    before = used(first, layer, 0)[5]
    assert np.array_equal(used(second, layer, 0), fresh(second, layer, 0))
    assert not np.array_equal(before, fresh(second, layer, 0)[5])  # the two prompts choose differently
    ffn = cut(model, 0.5)
    model.forward(other, ffn=ffn)
    assert model.forward(IDS, ffn=ffn).tobytes() == model.forward(IDS, ffn=cut(model, 0.5)).tobytes()


def test_a_text_whose_start_was_not_seen_is_refused():
    model = tiny.model()
    ffn, cache = cut(model, 0.5), KVCache(model.config, 16, np.float64)
    model.forward(IDS[:6], cache)  # the prompt, by another FFN
    with pytest.raises(MinillmError, match="position 6, expected 0"):
        model.forward(IDS[6:], cache, ffn)


def test_the_neurons_are_chosen_over_the_prompt_alone(monkeypatch):
    model, counted = tiny.model(), []
    choose = griffin.largest
    monkeypatch.setattr(griffin, "largest", lambda size, count: counted.append(count) or choose(size, count))
    ffn, cache = cut(model, 0.5), KVCache(model.config, 16, np.float64)
    for index in IDS:
        model.forward([index], cache, ffn)
    assert counted == [6] * 4 * 2  # once for each token of the prompt and layer, and for none after it


def test_a_share_of_zero_is_dense_bit_for_bit_and_a_text_within_the_prompt_is_dense():
    model = tiny.model("llama", np.float32)
    assert model.forward(IDS, ffn=cut(model, 0.0)).tobytes() == model.forward(IDS).tobytes()
    assert model.forward(IDS[:4], ffn=cut(model, 0.9)).tobytes() == model.forward(IDS[:4]).tobytes()


def test_calibrating_it_by_neurons_counts_the_dense_prompt(tmp_path):
    model = tiny.loaded(tmp_path / "m")
    thresholds = calibrate(model, tiny.STORIES * 3, "griffin", 0.5, by="neuron")
    assert thresholds.level > 0.5 and abs(thresholds.spec.achieved - 0.5) < 0.02
