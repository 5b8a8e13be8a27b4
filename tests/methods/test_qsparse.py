"""Q-Sparse: K by hand and in every row, what is read, both ways back; on a twin: blocks, and what training is worth."""

from functools import cache

import numpy as np
import pytest
import tiny
from gradients import IDS, direction, slope_of_step, slope_of_weight

import minillm
from minillm.errors import MinillmError
from minillm.loading.config import ModelConfig
from minillm.loading.embedded import embedded_text
from minillm.methods import qsparse
from minillm.methods.base import INPUTS
from minillm.methods.qsparse import groups_of, kept_count, kept_inputs, sparse_language, top_inputs
from minillm.study.score import score_variant
from minillm.trace import Trace, chained, no_tap
from minillm.training.backward import Saved
from minillm.training.batches import batches_of
from minillm.training.fresh import RATE, fresh_fields, new_model
from minillm.training.trainer import Plan, train
from minillm.transformer.documents import split_documents
from minillm.transformer.evaluation import perplexity
from minillm.transformer.ffn import swiglu
from minillm.transformer.model import Llama

FAMILIES = ["plain", *tiny.FAMILIES]


def gradients(model: Llama, groups, straight: bool) -> dict[str, np.ndarray]:
    """The gradients of one pass, of steps and of weights alike."""
    found = Saved()
    sparse_language(groups, straight)(model, IDS, len(IDS) - 1, found)
    return found


# ---- the rule --------------------------------------------------------------------------------------------------------
def test_a_token_by_hand():
    x = np.array([[0.1, -3.0, 2.0, 0.0, 1.0, -1.5]])
    assert kept_inputs(x, 2, 6).tolist() == [[False, True, True, False, False, False]]
    assert kept_inputs(x, 1, 2).tolist() == [[False, True, True, False, False, True]]
    assert kept_inputs(x.reshape(1, 3, 2), 2, 6).tolist() == [[[False, True], [True, False], [False, False]]]


def test_of_equal_magnitudes_the_first_stays_and_they_are_compared_in_float32():
    assert kept_inputs(np.array([[1.0, -2.0, 2.0, -2.0]]), 2, 4).tolist() == [[False, True, True, False]]
    assert kept_inputs(np.zeros((2, 4)), 3, 4).sum(axis=1).tolist() == [3, 3]
    assert kept_inputs(np.array([[1.0, 1.0 + 1e-12]]), 1, 2).tolist() == [[True, False]]  # equal as float32


@pytest.mark.parametrize(
    ("inputs", "target", "count"),
    [(10, 0.9, 1), (64, 0.6, 25), (64, 0.5, 32), (100, 0.71, 29), (7, 0.5, 3), (64, 0.0, 64)],
)
def test_the_count_is_the_floor_of_the_share_that_stays(inputs, target, count):
    assert kept_count(inputs, target) == count
    x = np.random.default_rng(0).standard_normal((9, inputs))
    assert (kept_inputs(x, count, inputs).sum(axis=1) == count).all()


def test_a_target_that_keeps_nothing_and_a_pattern_that_does_not_fit_are_refused():
    model = tiny.model()
    with pytest.raises(MinillmError, match=r"target is 0\.95: of 8 inputs none would stay"):
        groups_of(model, 0.95)
    with pytest.raises(MinillmError, match=r"the pattern is 2:4, expected one that keeps 0\.7 of M"):
        groups_of(model, 0.3, (2, 4))
    with pytest.raises(MinillmError, match="the pattern is 0:4"):
        groups_of(model, 1.0, (0, 4))
    with pytest.raises(MinillmError, match=r"mlp\.mid has 12 inputs, expected a multiple of 8 for 4:8"):
        groups_of(model, 0.5, (4, 8))


# ---- a whole model, every family -------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pattern", [None, (2, 4)])
def test_every_matrix_sees_exactly_k_inputs_of_each_token(family, pattern):
    model = tiny.model(family)
    made, trace = qsparse.fit(model, "", 0.5, pattern=pattern), Trace()
    model.forward(IDS, tap=chained(made.tap, trace))
    for layer in model.layers:
        for name, step in INPUTS.items():
            x = trace[f"blocks.{layer.index}.{step}"].reshape(len(IDS), -1)
            inputs = getattr(layer, name).shape[1]
            assert x.shape[1] == inputs and (np.count_nonzero(x, axis=1) == inputs // 2).all()
            if pattern:
                assert (np.count_nonzero(x.reshape(len(IDS), -1, 4), axis=2) == 2).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_where_all_stays_the_logits_and_gradients_are_those_of_the_dense_model(family):
    model = tiny.model(family)
    made = qsparse.fit(model, "", 0.0)
    assert np.array_equal(model.forward(IDS, tap=made.tap), model.forward(IDS))
    straight, masked = (gradients(model, groups_of(model, 0.0), way) for way in (True, False))
    assert all(np.array_equal(straight[name], d) for name, d in masked.items())
    assert made.spec.achieved == 0 and all(read.exact == read.dense for read in made.reads.values())


def test_one_token_at_a_time_gives_the_logits_of_the_whole_text():
    model = tiny.model("qwen3")
    tap, cache = qsparse.fit(model, "", 0.5).tap, minillm.KVCache(model.config, len(IDS), model.dtype)
    rows = [model.forward(IDS[i : i + 1], cache, tap=tap)[0] for i in range(len(IDS))]
    np.testing.assert_allclose(rows, model.forward(IDS, tap=tap), rtol=0, atol=1e-10)


def test_what_is_read_are_k_columns_of_each_matrix(tmp_path):
    model = tiny.loaded(tmp_path / "m")  # D 8, H d 16, K d 8, F 12
    made = qsparse.fit(model, "", 0.7)
    kept = {"attn.norm": 2, "attn.z": 4, "mlp.norm": 2, "mlp.mid": 3}  # of 8, 16, 8, 12: floors of 2.4, 4.8, 2.4, 3.6
    rows = {"q_proj": 16, "k_proj": 8, "v_proj": 8, "o_proj": 8, "gate_proj": 12, "up_proj": 12, "down_proj": 8}
    for name, read in made.reads.items():
        assert read.exact == read.known_mask == 2 * 2 * rows[name] * kept[INPUTS[name]]  # 2 layers, 2 bytes
    total, read = (sum(getattr(r, which) for r in made.reads.values()) for which in ("dense", "exact"))
    assert made.spec.achieved == pytest.approx(1 - read / total, abs=1e-12)
    scored = score_variant(made, tiny.STORIES, perplexity(model, tiny.STORIES))
    assert scored["read_exact"] == pytest.approx((2 / 8 + 2 / 8 + 3 / 12) / 3, abs=1e-12)
    assert (
        scored["neuron_sparsity"] == 1 - 3 / 12
        and scored["achieved"] == pytest.approx(0.75)
        and scored["vs_dense"] != 1
    )
    assert made.stored["dense"] == made.stored["bitmap"] == 2 * sum(model.parameters.values())


# ---- the way back ----------------------------------------------------------------------------------------------------
def wrong_masked(family: str, straight: bool = False) -> list[str]:
    """The gradients that disagree with central differences of the cut model; straight-through ones must."""
    model = tiny.model(family)
    groups, dense = groups_of(model, 0.5), model.forward
    found = gradients(model, groups, straight)
    model.forward = lambda ids, ffn=swiglu, tap=None: dense(
        ids, ffn=ffn, tap=chained(*[tap] * bool(tap), top_inputs(groups))
    )
    bad = []
    for name, g in found.items():
        if name.endswith("scores") or (straight and name not in model.weights):
            continue
        slope = slope_of_weight if name in model.weights else slope_of_step
        v = direction(g.shape, 0)
        if not abs(slope(model, name, v) - (g * v).sum()) <= 1e-6 * max(np.linalg.norm(g) / np.sqrt(g.size), 1e-3):
            bad.append(name)
    return bad


@pytest.mark.parametrize("family", ["plain", "llama", "qwen3"])
def test_the_masked_gradient_is_that_of_the_cut_model(family):
    assert not wrong_masked(family)


def test_the_straight_through_gradient_is_another_one_but_for_what_follows_the_last_cut():
    bad = wrong_masked("plain", straight=True)
    assert "model.layers.0.self_attn.q_proj.weight" in bad and "model.embed_tokens.weight" in bad
    assert not {"model.norm.weight", "lm_head.weight", "model.layers.1.mlp.down_proj.weight"} & set(bad)


def test_masked_gradients_are_zero_where_the_input_was_cut_and_straight_ones_are_not():
    model = tiny.model()
    groups, masks = groups_of(model, 0.5), {}
    model.forward(IDS[:-1], tap=top_inputs(groups, masks))
    straight, masked = (gradients(model, groups, way) for way in (True, False))
    assert masks.keys() == groups.keys()
    last = "blocks.1.mlp.mid"  # nothing behind it differs between the two
    assert np.array_equal(masked[last], straight[last] * masks[last]) and straight[last].all()
    assert np.array_equal(
        masked["model.layers.1.mlp.down_proj.weight"], straight["model.layers.1.mlp.down_proj.weight"]
    )


@pytest.mark.parity
@pytest.mark.parametrize("straight", [True, False])
@pytest.mark.parametrize("family", ["plain", "llama", "qwen3"])
def test_the_gradients_are_those_of_torch(family, straight, monkeypatch):
    """Straight-through in torch: x + (cut x - x).detach(), in front of every matrix of a block."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from scripts import load_script

    reference, model = load_script("weights_scripts/torch_reference.py"), tiny.model(family)
    whole = reference.linear

    def linear(x, weight, name):
        rows = x.detach().abs().float()
        cut = x * torch.zeros_like(x).scatter(1, rows.topk(x.shape[1] // 2, dim=1).indices, 1.0)
        return whole(x + (cut - x).detach() if straight else cut, weight, name)

    monkeypatch.setattr(reference, "linear", linear)
    leaves = {name: torch.tensor(w, requires_grad=True) for name, w in model.weights.items()}
    config = transformers.AutoConfig.for_model(**{**tiny.LLAMA, **tiny.FAMILIES.get(family, {})})
    steps = {}
    reference.torch64.__wrapped__(config, leaves.get, IDS[:-1].tolist(), steps.__setitem__)
    torch.nn.functional.cross_entropy(steps["logits"], torch.from_numpy(IDS[1:])).backward()
    ours = gradients(model, groups_of(model, 0.5), straight)
    for name, leaf in leaves.items():
        assert np.abs(ours[name] - leaf.grad.numpy()).max() < 1e-12 * leaf.grad.abs().max().item(), name


# ---- training, and the twin with a squared ReLU ----------------------------------------------------------------------
def twin_nll(model: Llama, tap) -> float:
    """Nats per token on every eighth story of the embedded test text, with cut inputs."""
    score = perplexity(model, split_documents(embedded_text("test"))[::8], tap=tap)
    return score.nll / score.tokens


def test_smaller_blocks_cost_more():
    """Measured on these stories: all inputs 3.117, 16:32 3.175, 8:16 3.238, 2:4 3.565; dense 2.706."""
    model = minillm.load("default-relu2")
    patterns = [None, (16, 32), (8, 16), (2, 4)]
    nll = [twin_nll(model, qsparse.fit(model, "", 0.5, pattern=pattern).tap) for pattern in patterns]
    assert nll == sorted(nll) and nll[3] > nll[1] + 0.2
    assert nll[0] == pytest.approx(3.117, abs=0.01)


@pytest.fixture(scope="module")
def trained():
    """The twin after 40 steps on the calibration text, with cut inputs or (target 0) dense: a function of the cut."""
    model = minillm.load("default-relu2")
    batches, plan = batches_of(model, embedded_text("calibration")), Plan(steps=40, average=0)

    @cache
    def of(target: float, pattern: tuple[int, int] | None = None, straight: bool = True) -> Llama:
        one_pass = sparse_language(groups_of(model, target, pattern), straight) if target else None
        return train(model, batches, plan, one_pass).model

    return of


def cut_nll(model: Llama, target: float, pattern: tuple[int, int] | None = None) -> float:
    return twin_nll(model, top_inputs(groups_of(model, target, pattern)))


@pytest.mark.slow
def test_training_with_the_cut_lowers_the_nll_by_more_than_training_alone(trained):
    """Measured: with six tenths cut 3.644 before; dense 2.706 before and 2.223 after, so the text alone gives 0.48."""
    model = minillm.load("default-relu2")
    before, dense = cut_nll(model, 0.6), twin_nll(model, no_tap)
    assert before == pytest.approx(3.644, abs=0.01)
    gained = before - cut_nll(trained(0.6), 0.6)
    assert gained > 0.2 + dense - twin_nll(trained(0), no_tap) > 0.5


@pytest.mark.slow
def test_with_three_quarters_kept_both_ways_back_are_alike(trained):
    """Measured: 2.2571 straight-through, 2.2574 masked; dense, trained as long, 2.223."""
    straight, masked = (cut_nll(trained(0.25, None, way), 0.25) for way in (True, False))
    assert straight == pytest.approx(masked, abs=0.01) and masked - twin_nll(trained(0), no_tap) < 0.06


@pytest.mark.slow
def test_smaller_blocks_cost_more_after_training_too(trained):
    """Measured: 16:32 2.509, 8:16 2.518, 2:4 2.695."""
    nll = [cut_nll(trained(0.5, pattern), 0.5, pattern) for pattern in ((16, 32), (8, 16), (2, 4))]
    assert nll == sorted(nll) and nll[2] > nll[1] + 0.1


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_from_scratch_masked_gradients_are_better(seed, shared):
    """Measured after 30 steps, half of the inputs kept: 0.037, 0.090 and 0.096 nats."""
    like, nll = minillm.load("default-relu2"), []
    stories = split_documents((shared / "text" / "stories260K-samples.txt").read_text(encoding="utf-8"))[:2000]
    new = new_model(ModelConfig.from_dict(fresh_fields("twin", "relu2", like)), seed, like.folder)
    batches, plan = batches_of(new, stories, seed=seed), Plan(steps=30, rate=RATE, average=0)
    for straight in (True, False):
        made = train(new, batches, plan, sparse_language(groups_of(new, 0.5), straight))
        nll.append(cut_nll(made.model, 0.5))
    assert nll[1] < nll[0] < 6.2


@pytest.mark.parametrize("straight", [True, False])
def test_a_few_steps_of_training_lower_the_loss_of_the_cut_model(tmp_path, straight):
    model = tiny.loaded(tmp_path / "m", "float32")
    groups, batches = groups_of(model, 0.5), batches_of(model, tiny.STORIES, 40)
    made = train(model, batches, Plan(steps=15, rate=1e-2, warmup=2, average=0), sparse_language(groups, straight))
    before, after = (perplexity(m, tiny.STORIES, tap=top_inputs(groups)) for m in (model, made.model))
    assert after.nll / after.tokens < before.nll / before.tokens - 0.3
