"""From a policy and thresholds to a FeedForward or a Selector."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
from cutting import NEURON_POLICIES
from passes import cut, traced

from minillm.errors import MinillmError, ThresholdsError
from minillm.predictors.select import sparse_ffn
from minillm.sparsity.calibrate import calibrate
from minillm.sparsity.griffin import Griffin
from minillm.sparsity.selected import SelectedFFN
from minillm.sparsity.sparse import policy_ffn, policy_selector
from minillm.sparsity.spec import SparsityMeter, SparsitySpec
from minillm.sparsity.thresholds import Thresholds
from minillm.trace import Trace
from minillm.transformer.attention import KVCache

IDS = [1, 5, 3, 9, 30, 2, 7]
FORMS = ("masked", "gathered")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("policy", NEURON_POLICIES)
def test_a_threshold_above_everything_leaves_the_attention_alone(form, policy):
    model = tiny.model("mistral")
    ffn = cut(model, policy, 1e9, form)
    silent = model.forward(IDS, ffn=lambda x, layer, position, tap: np.zeros_like(x))
    np.testing.assert_allclose(model.forward(IDS, ffn=ffn), silent, rtol=1e-13)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("policy", NEURON_POLICIES)
def test_a_cut_model_gives_the_same_token_by_token_as_in_one_pass(form, policy):
    model = tiny.model("llama")
    ffn, cache = cut(model, policy, 0.4, form), KVCache(model.config, 8, np.float64)
    steps = np.concatenate([model.forward([index], cache, ffn) for index in IDS])
    np.testing.assert_allclose(steps, model.forward(IDS, ffn=ffn), rtol=0, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("policy", NEURON_POLICIES)
def test_a_float32_model_stays_float32(form, policy):
    model = tiny.model("llama", np.float32)
    with Trace() as trace:
        model.forward(IDS, ffn=cut(model, policy, 0.4, form), tap=trace)
    values = [value for name, value in trace.items() if not name.endswith(".reads")]  # a report, and float64
    assert {value.dtype for value in values} == {np.dtype(np.float32), np.dtype(bool)}


@pytest.mark.parametrize("form", FORMS)
def test_a_neuron_that_an_edit_takes_out_of_the_mask_is_gone(form):
    model = tiny.model("llama")
    ffn = cut(model, "dhar", 0.2, form)

    def without_the_first_six(mask: np.ndarray) -> np.ndarray:
        mask[:, :6] = False
        return mask

    with Trace(keep="blocks.0.mlp.mid_cut", edits={"blocks.0.mlp.mask": without_the_first_six}) as trace:
        model.forward(IDS, ffn=ffn, tap=trace)
    assert not trace["blocks.0.mlp.mid_cut"][:, :6].any() and trace["blocks.0.mlp.mid_cut"][:, 6:].any()


def test_an_unknown_form_and_thresholds_of_another_model_are_refused(model):
    thresholds = calibrate(model, ["a cat"], "mid", 0.5)
    with pytest.raises(MinillmError, match="form is 'fast', expected one of masked, gathered"):
        sparse_ffn(model, thresholds, form="fast")
    with pytest.raises(ThresholdsError, match="for 2 layers, the model has 3"):
        sparse_ffn(tiny.model(num_hidden_layers=3), thresholds)


# ---- a policy as a free oracle ---------------------------------------------------------------------------------------

WHOLE_NEURONS = ["mid", "cats", "cett", "countdown", "topk", "topp", "statistical"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("family", ["plain", "llama", "mistral"])
@pytest.mark.parametrize("policy", WHOLE_NEURONS)
def test_a_policy_as_a_selector_in_the_masked_form_is_the_policys_own_ffn_bit_for_bit(policy, family, dtype):
    model = tiny.model(family, dtype)
    own = cut(model, policy)
    seen, expected = (
        traced(model, IDS, ffn=SelectedFFN(policy_selector(model, own.thresholds))),
        traced(model, IDS, ffn=own),
    )
    for name in seen:
        assert name.endswith(".reads") or seen[name].tobytes() == expected[name].tobytes(), name
    assert 0.1 < seen["blocks.0.mlp.mask"].mean() < 0.95
    assert not np.allclose(seen["logits"], model.forward(IDS))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("policy", WHOLE_NEURONS)
def test_a_free_oracle_reads_the_kept_neurons_alone_and_the_policy_itself_more(policy, form):
    model, free, own = tiny.model(), SparsityMeter(), SparsityMeter()
    ffn = cut(model, policy, form=form)
    model.forward(IDS, ffn=SelectedFFN(policy_selector(model, ffn.thresholds), form), tap=free)
    model.forward(IDS, ffn=ffn, tap=own)
    assert free.report().read_exact == pytest.approx(own.report().read_known_mask)
    assert free.report().weight_reads < own.report().weight_reads


def test_a_policy_as_a_selector_taps_nothing_and_says_what_it_is():
    model, names = tiny.model(), []
    limits = replace(cut(model, "mid").thresholds, documents_sha256=("a",))
    select = policy_selector(model, limits)

    def tap(name, value):
        names.append(name)
        return value

    mask = select(np.random.default_rng(0).standard_normal((3, 8)), model.layers[0], 0, tap)
    assert mask.shape == (3, 12) and mask.dtype == bool and not names
    assert (select.name, select.calibrated_on, select.reads) == ("mask of mid", {"a"}, frozenset())


@pytest.mark.parametrize(("policy", "tensors"), [("teal", "in_gate, in_up"), ("wina", "in_gate_norm"), ("dhar", "out")])
def test_a_policy_that_cuts_other_things_than_neurons_is_no_selector(policy, tensors):
    model = tiny.model()
    with pytest.raises(MinillmError, match=f"policy {policy} cuts {tensors}"):
        policy_selector(model, cut(model, policy).thresholds)


def test_dhar_without_a_cut_of_the_output_is_a_selector():
    model = tiny.model()
    whole = cut(model, "dhar").thresholds
    limits = replace(whole, layers=tuple({t: v for t, v in layer.items() if t != "out"} for layer in whole.layers))
    ours = model.forward(IDS, ffn=SelectedFFN(policy_selector(model, limits)))
    assert ours.tobytes() == model.forward(IDS, ffn=policy_ffn(model, limits)).tobytes()


def test_griffin_is_a_selector_of_its_own():
    model = tiny.model()
    spec = SparsitySpec("griffin", ("mid",), "prompt", "tensor", 0.5)
    limits = Thresholds("griffin", "tensor", 0.5, ({"mid": 0.5},) * 2, spec, documents_sha256=("a",))
    select = policy_selector(model, limits)
    assert isinstance(select, Griffin) and list(select.shares) == [0.5, 0.5] and select.calibrated_on == {"a"}
    assert policy_ffn(model, limits).calibrated_on == {"a"}


def test_thresholds_of_another_model_are_no_selector():
    with pytest.raises(ThresholdsError, match="for 2 layers, the model has 3"):
        policy_selector(tiny.model(num_hidden_layers=3), cut(tiny.model(), "mid").thresholds)
