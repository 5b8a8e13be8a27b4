"""Every gradient by central differences in float64; planted bugs, each found at the step where it was made."""

from functools import partial

import numpy as np
import pytest
import tiny
from gradients import IDS, direction, passed, wrong
from passes import cut
from planted import plant

import minillm.training.backward as module
from minillm.sparsity.selected import SelectedFFN, StaticSet
from minillm.trace import Trace, chained
from minillm.training import blocks, parts
from minillm.training.backward import Saved, backward
from minillm.training.losses import cross_entropy, distillation
from minillm.transformer.ops import ACTIVATIONS

# ---- dense -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["plain", *tiny.FAMILIES, *tiny.OTHERS])
def test_every_gradient_of_every_family_is_that_of_central_differences(family):
    model = tiny.model(family)
    saved, found = passed(model)
    assert set(found.weights) == set(model.weights)
    assert set(found.steps) == set(saved)
    assert {name: g.shape for name, g in found.weights.items()} == {n: w.shape for n, w in model.weights.items()}
    assert {name: d.shape for name, d in found.steps.items()} == {name: value.shape for name, value in saved.items()}
    assert wrong(model) == []


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_every_gradient_with_every_activation_is_that_of_central_differences(act):
    model = tiny.model(hidden_act=act, num_hidden_layers=1)
    saved, _ = passed(model)
    assert np.abs(saved["blocks.0.mlp.gate_pre"]).min() > 1e-4  # no kink of ReLU is crossed
    assert wrong(model) == []


def test_a_single_token_and_a_trace_in_place_of_saved_values():
    model, ids = tiny.model("qwen3"), IDS[:2]
    assert wrong(model, ids) == []
    with Trace() as trace:
        model.forward(IDS[:-1], tap=trace)
    _, found = passed(model)
    again = backward(model, IDS[:-1], IDS[1:], trace)
    assert all(np.array_equal(again.weights[name], g) for name, g in found.weights.items())


def test_the_gradients_of_float32_are_float32_and_those_of_float64():
    wide, narrow = (passed(tiny.model("qwen2", dtype))[1] for dtype in (np.float64, np.float32))
    for name, g in wide.weights.items():
        assert narrow.weights[name].dtype == np.float32
        assert np.abs(narrow.weights[name] - g).max() <= 2e-5 * np.abs(g).max(), name


def test_nothing_that_was_saved_is_changed():
    model = tiny.model("llama")
    saved, _ = passed(model)
    before = {name: value.copy() for name, value in saved.items()}
    backward(model, IDS[:-1], IDS[1:], saved)
    assert all(np.array_equal(saved[name], value) for name, value in before.items())


# ---- losses, taps, batches -------------------------------------------------------------------------------------------


def test_any_loss_of_the_logits_can_be_given():
    model, teacher = tiny.model(), tiny.model(seed=1)
    logits = teacher.forward(IDS[:-1])
    _, found = passed(model, targets=partial(distillation, teacher=logits))
    name, weight = "model.layers.0.mlp.up_proj.weight", model.weights["model.layers.0.mlp.up_proj.weight"]
    v, before, losses = direction(weight.shape, 3), weight.copy(), []
    for h in (1e-5, -1e-5):
        weight[...] = before + h * v
        losses.append(distillation(model.forward(IDS[:-1]), logits).value)
    weight[...] = before
    assert (losses[0] - losses[1]) / 2e-5 == pytest.approx((found.weights[name] * v).sum(), rel=1e-6)


def test_a_model_that_is_its_own_teacher_has_no_gradient():
    model = tiny.model()
    _, found = passed(model, targets=partial(distillation, teacher=model.forward(IDS[:-1])))
    assert abs(found.loss) < 1e-14
    assert max(np.abs(g).max() for g in found.weights.values()) < 1e-13


def test_passes_whose_gradients_are_added_by_the_tap_give_the_gradient_of_the_batch():
    model, texts = tiny.model("qwen2"), [IDS, IDS[3:7]]
    count = sum(len(ids) - 1 for ids in texts)
    total: dict[str, np.ndarray] = {}

    def add(name, d):
        if name in model.weights:
            total[name] = total.get(name, 0) + d
        return d

    losses = [
        passed(model, ids, targets=partial(cross_entropy, targets=ids[1:], count=count), tap=add)[1].loss
        for ids in texts
    ]
    alone = [passed(model, ids)[1] for ids in texts]
    shares = [(len(ids) - 1) / count for ids in texts]
    assert sum(losses) == pytest.approx(sum(s * one.loss for s, one in zip(shares, alone, strict=True)))
    for name, g in total.items():
        mean = sum(s * one.weights[name] for s, one in zip(shares, alone, strict=True))
        np.testing.assert_allclose(g, mean, rtol=0, atol=1e-14)


def test_a_tap_sees_every_gradient_once_and_its_edit_goes_on():
    model = tiny.model()
    saved, whole = passed(model)
    with Trace(edits={"blocks.1.mlp.out": np.zeros_like}) as trace:
        found = backward(model, IDS[:-1], IDS[1:], saved, tap=trace)
    assert set(trace) == {*whole.steps, *whole.weights} == {*saved, *model.weights}
    assert found.steps == {}
    assert not found.weights["model.layers.1.mlp.up_proj.weight"].any()
    assert found.weights["model.layers.1.self_attn.o_proj.weight"].any()


# ---- cuts ------------------------------------------------------------------------------------------------------------


def test_a_cut_at_threshold_zero_has_the_gradients_of_the_dense_model():
    model = tiny.model("llama")
    _, dense = passed(model)
    for straight in (False, True):
        _, found = passed(model, ffn=cut(model, "mid", 0.0), straight=straight)
        assert all(np.array_equal(found.weights[name], g) for name, g in dense.weights.items())


@pytest.mark.parametrize("policy", ["mid", "dhar", "cats", "teal", "wina", "cett", "countdown"])
def test_the_masked_gradient_of_a_policy_is_that_of_central_differences(policy):
    model = tiny.model("llama")
    ffn = cut(model, policy, 0.12)
    saved, _ = passed(model, ffn=ffn)
    masks = {name: value for name, value in saved.items() if "mask" in name}
    assert any(not value.all() for value in masks.values()) and any(value.any() for value in masks.values())
    assert wrong(model, ffn=ffn) == []


@pytest.mark.parametrize("policy", ["mid", "cats", "teal", "countdown", "dhar"])
@pytest.mark.parametrize("straight", [False, True])
def test_the_gathered_form_has_the_gradients_of_the_masked_form(policy, straight):
    model = tiny.model("llama")
    masked, gathered = (
        passed(model, ffn=cut(model, policy, 0.12, form), straight=straight)[1] for form in ("masked", "gathered")
    )
    for name, g in masked.weights.items():
        assert np.abs(gathered.weights[name] - g).max() <= 1e-12 * np.abs(g).max(), name


def test_a_selector_and_means_in_place_of_zeros():
    model = tiny.model()
    sets = np.random.default_rng(0).random((2, 12)) < 0.5
    for means in (None, np.full((2, 12), 0.3)):
        ffn = SelectedFFN(StaticSet(sets), means=means)
        assert wrong(model, ffn=ffn) == []
    _, found = passed(model, ffn=SelectedFFN(StaticSet(sets)))
    assert not found.steps["blocks.0.mlp.mid"][:, ~sets[0]].any()
    assert not found.weights["model.layers.0.mlp.up_proj.weight"][~sets[0]].any()
    _, through = passed(model, ffn=SelectedFFN(StaticSet(sets)), straight=True)
    assert np.array_equal(through.steps["blocks.0.mlp.mid"], through.steps["blocks.0.mlp.mid_cut"])


def test_a_tap_that_changes_values_is_trained_through_with_a_tap_that_changes_gradients():
    """Inputs cut by a tap (as in Q-Sparse): the masked gradient is an edit of the gradient at the same step."""
    model, masks = tiny.model(), {}

    def cut_inputs(name, value):
        if not name.endswith(("attn.norm", "mlp.norm")):
            return value
        masks[name] = np.abs(value) > 0.4
        return value * masks[name]

    saved = Saved()
    model.forward(IDS[:-1], tap=chained(cut_inputs, saved))
    found = backward(model, IDS[:-1], IDS[1:], saved, tap=lambda name, d: d * masks.get(name, True))
    name = "model.layers.0.input_layernorm.weight"
    weight, losses = model.weights[name], []
    v, before = direction(weight.shape, 0), weight.copy()
    for h in (1e-6, -1e-6):
        weight[...] = before + h * v
        losses.append(cross_entropy(model.forward(IDS[:-1], tap=cut_inputs), IDS[1:]).value)
    weight[...] = before
    assert (losses[0] - losses[1]) / 2e-6 == pytest.approx((found.weights[name] * v).sum(), rel=1e-6)


# ---- planted bugs ----------------------------------------------------------------------------------------------------

EMBEDDING = "model.embed_tokens.weight"
BUGS = {  # function, old, new, family, the first gradient that must be wrong
    "rms_norm without its second term": (
        "rms_norm_back", "(g - u * (np.vecdot(g, u)[..., None] / n))", "g", "plain", "blocks.1.resid_post"),
    "rope turned forwards": ("rotate_back", "-sin", "sin", "plain", "blocks.1.attn.k"),
    "values of one head of each group": (
        "attend_back", "p.transpose(0, 2, 1) @ d", "p[:, :new].transpose(0, 2, 1) @ d[:, :new]", "plain",
        "blocks.1.attn.v"),
    "keys of one head of each group": (
        "attend_back", "d_scores.transpose(0, 2, 1) @ (q * scale)",
        "d_scores[:, :new].transpose(0, 2, 1) @ (q[:, :new] * scale)", "plain", "blocks.1.attn.rot_k"),
    "softmax without its sum": (
        "softmax_back", "d - np.vecdot(d, p)[..., None]", "d.copy()", "plain", "blocks.1.attn.scores"),
    "scale left out": ("attend_back", "(d_scores @ k) * scale", "d_scores @ k", "plain", "blocks.1.attn.rot_q"),
    "norms of queries left out": (
        "attention_back", "if layer.q_norm is not None", "if False", "qwen3", "blocks.1.attn.norm"),
    "tied head counted once": ("backward", "d_embedding += d_head", "pass", "qwen2", EMBEDDING),
    "a token that comes twice counted once": (
        "embedding_back", "np.add.at(d_embedding, ids, d)", "d_embedding[ids] = d", "plain", EMBEDDING),
    "residual around the FFN left out": ("pre_norm_back", "d + at.norm_back(\"post", "at.norm_back(\"post", "plain",
                                         "blocks.1.resid_mid"),
    "gate and up exchanged": ("ffn_back", '"mlp.up", d_mid * gate', '"mlp.up", d_mid * up', "plain", "blocks.1.mlp.up"),
    "LayerNorm without its mean": ("layer_norm_back", "- d_centred.mean(axis=-1, keepdims=True)", "", "stablelm",
                                   "blocks.1.resid_post"),
    "Gemma's factor is w": ("rms_norm_from_one_back", "1 + weight", "weight", "gemma", "blocks.1.resid_post"),
    "cap of the scores left out": (
        "attend_back", "if cap is not None", "if False", "gemma2", "blocks.1.attn.rot_k"),
    "the FFN of a parallel block left out": (
        "parallel_back", "d + d_ffn + d_attention", "d + d_attention", "gpt_neox", "blocks.1.resid_pre"),
    "one norm for two parts, once": (
        "parallel_one_norm_back", "d_x + attention_back", "attention_back", "phi", "blocks.1.attn.norm"),
    "positions counted from row 0": ("embed_back", "d_positions[2 : 2", "d_positions[0 : 0", "opt",
                                     "model.embed_positions.weight"),
    "slope of the activation left out": (
        "ffn_back", "d_gate * at.slope(gate_pre)", "d_gate", "plain", "blocks.1.mlp.gate_pre"),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_central_differences_name_the_gradient_of(monkeypatch, bug):
    name, old, new, family, first = BUGS[bug]
    owner = next(part for part in (parts, blocks, module) if vars(part).get(name, plant).__module__ == part.__name__)
    plant(monkeypatch, owner, name, old, new)
    if name == "backward":
        monkeypatch.setattr("gradients.backward", module.backward)
    assert wrong(tiny.model(family))[0] == first
