"""LTE: balanced blocks, gates and their gradients, the price, the second stage, and the wall."""

import numpy as np
import pytest
import tiny
from gradients import IDS

import minillm
from minillm.errors import MinillmError
from minillm.methods.lte import Gates, Price, balanced_clusters, in_blocks, learn, settle, wall, with_gates
from minillm.sparsity.selected import SelectedFFN
from minillm.sparsity.spec import SparsityMeter
from minillm.training.batches import batches_of
from minillm.training.trainer import Plan
from minillm.transformer.evaluation import perplexity
from minillm.transformer.texts import as_documents

RNG = np.random.default_rng(0)


def model_and_gates(seed: int = 0):
    model = tiny.model()
    gates = Gates.new(model, 4)
    rng = np.random.default_rng(seed)
    for tables in gates.layers:
        for table in tables.values():
            table += rng.standard_normal(table.shape) * 0.1
    return model, gates


@pytest.mark.parametrize(("count", "group"), [(12, 4), (14, 4), (9, 3)])
def test_clusters_are_balanced_and_tighter_than_those_of_chance(count, group):
    centres = RNG.standard_normal((-(-count // group), 6)) * 3
    rows = centres[np.arange(count) % len(centres)] + 0.1 * RNG.standard_normal((count, 6))
    order = balanced_clusters(rows, group, np.random.default_rng(0))
    assert sorted(order.tolist()) == list(range(count))

    def spread(order):
        parts = [rows[order[a : a + group]] for a in range(0, count, group)]
        return sum(((part - part.mean(axis=0)) ** 2).sum() for part in parts)

    assert all(spread(order) <= spread(np.random.default_rng(s).permutation(count)) for s in range(20))


def test_another_order_of_the_neurons_is_the_same_model():
    model = tiny.model(intermediate_size=14)
    np.testing.assert_allclose(in_blocks(model, 4).forward(IDS), model.forward(IDS), rtol=1e-12, atol=1e-12)


def test_open_gates_give_the_dense_model_bit_for_bit():
    model, gates = model_and_gates()
    open_gates = Gates(gates.layers, 4, tau=-1.0)
    assert np.array_equal(model.forward(IDS, ffn=SelectedFFN(open_gates)), model.forward(IDS))
    for tables in gates.layers:
        tables["W"][:], tables["c"][:] = 0, 800  # G is exactly 1
    assert np.array_equal(model.forward(IDS, ffn=gates.soft_ffn), model.forward(IDS))


def test_hard_gates_are_a_selector():
    model, gates = model_and_gates()
    hard = model.forward(IDS, ffn=SelectedFFN(gates))
    gathered = model.forward(IDS, ffn=SelectedFFN(gates, "gathered"))
    np.testing.assert_allclose(gathered, hard, rtol=1e-12, atol=1e-12)
    meter = SparsityMeter()
    model.forward(IDS, ffn=SelectedFFN(gates), tap=meter)
    assert 0 < meter.report().neuron_sparsity < 1


@pytest.mark.parametrize("price", [Price(0.0), Price(0.7), Price(0.3, 2e-3)])
@pytest.mark.parametrize("part", ["W", "c"])
def test_the_gradients_of_soft_gates_and_of_their_price_are_those_of_central_differences(price, part):
    model, gates = model_and_gates()
    run, found = with_gates(gates, price, hard=False), {}

    def loss(tap=lambda name, d: d):
        return run(model, IDS, len(IDS) - 1, tap)

    loss(lambda name, d: found.setdefault(name, d))
    for index in (0, 1):
        table = gates.layers[index][part]
        v, before, losses = RNG.standard_normal(table.shape), table.copy(), []
        for h in (1e-6, -1e-6):
            table[...] = before + h * v
            losses.append(loss())
        table[...] = before
        assert (losses[0] - losses[1]) / 2e-6 == pytest.approx((found[f"gates.{index}.{part}"] * v).sum(), rel=1e-6)


def test_the_weights_below_soft_gates_learn_through_them():
    """A weight of layer 0 changes x of layer 1, and so its gates."""
    model, gates = model_and_gates()
    run, found, name = with_gates(gates, Price(0.5), hard=False), {}, "model.layers.0.mlp.down_proj.weight"
    run(model, IDS, len(IDS) - 1, lambda key, d: found.setdefault(key, d))
    weight = model.weights[name]
    v, before, losses = RNG.standard_normal(weight.shape), weight.copy(), []
    for h in (1e-6, -1e-6):
        weight[...] = before + h * v
        losses.append(run(model, IDS, len(IDS) - 1, lambda key, d: d))
    weight[...] = before
    assert (losses[0] - losses[1]) / 2e-6 == pytest.approx((found[name] * v).sum(), rel=1e-6)


def test_hard_gates_get_the_gradient_of_their_sigmoid():
    model, gates = model_and_gates()
    found = {}
    with_gates(gates, Price(0.0))(model, IDS, len(IDS) - 1, lambda key, d: found.setdefault(key, d))
    mid, d = None, found["blocks.1.mlp.mid_cut"]  # (T, F)
    saved = {}
    model.forward(IDS[:-1], ffn=SelectedFFN(gates), tap=lambda name, value: saved.setdefault(name, value))
    mid, x = saved["blocks.1.mlp.mid"], saved["blocks.1.mlp.norm"]
    G = gates.values(1, x)
    d_logits = 10 * (d * mid).reshape(len(x), -1, 4).sum(axis=2) * G * (1 - G)
    np.testing.assert_allclose(found["gates.1.W"], d_logits.T @ x, rtol=1e-12, atol=1e-15)
    assert not saved["blocks.1.mlp.mask"].all() and saved["blocks.1.mlp.mask"].any()


def test_the_slope_of_the_price_is_that_of_central_differences_away_from_tau():
    gates, price, h = RNG.random((4, 5)), Price(0.4, 1e-3), 1e-7
    gates[np.abs(gates - 0.5) < 0.02] = 0.9
    for g, slope in zip(gates.ravel(), price.slope(gates).ravel(), strict=True):
        both = [price.of(np.array([[g + sign * h]])) for sign in (1, -1)]
        assert (both[0] - both[1]) / (2 * h) == pytest.approx(slope, rel=1e-5)
    assert price.slope(np.array([[0.5]]))[0, 0] == pytest.approx(0.4)  # at tau, L_sep has none


def test_in_the_second_stage_the_gates_stay_as_they_are(tmp_path):
    model = tiny.loaded(tmp_path / "m", "float32")
    batches = batches_of(model, tiny.STORIES, 60)
    trained, gates = learn(model, batches, 4, Price(0.5), Plan(steps=3), hard=False)
    before = {name: table.copy() for name, table in gates.parameters().items()}
    settled = settle(trained.model, gates, batches, Plan(steps=3))
    assert all(np.array_equal(table, before[name]) for name, table in gates.parameters().items())
    assert not np.array_equal(settled.model.layers[0].up_proj, trained.model.layers[0].up_proj)
    assert gates.calibrated_on == batches.documents_sha256


def test_a_group_out_of_range():
    with pytest.raises(MinillmError, match="group is 13, expected 1 to 12"):
        Gates.new(tiny.model(), 13)


@pytest.fixture(scope="module")
def twin(request):
    """An embedded twin in blocks of 32, its batches, and stories to score."""
    model = minillm.load("default-silu")
    documents = as_documents(minillm.embedded_text("calibration"))
    return in_blocks(model, 32), batches_of(model, documents), as_documents(minillm.embedded_text("test"))[::8]


@pytest.mark.slow
def test_nothing_crosses_the_wall_of_the_separability_term(twin):
    """Without it more of the gates close at a higher price; with a weight of 5e-4, and of 0.5, hardly one does."""
    model, batches, scored = twin
    ids = np.array(model.tokenizer.encode(scored[0])[:200])
    rows = list(wall(model, batches, 32, Plan(steps=150), ids))
    kept = {(row["separability"], row["eta"]): row["kept"] for row in rows}
    assert kept[0.0, 1.0] < kept[0.0, 0.3] - 0.1
    assert min(kept[5e-4, 0.3], kept[0.5, 0.3], kept[0.5, 1.0]) > 0.99
    steep = [row for row in rows if row["separability"] == 0.5]
    assert all(row["upwards"] > 30 * row["downwards"] for row in steep)


@pytest.mark.slow
def test_gates_that_are_hard_from_the_start_need_no_second_stage(twin):
    """At about the same share of open gates, the loss is below that of soft gates that are made hard."""
    model, batches, scored = twin
    plan = Plan(steps=150)
    hard, gates = learn(model, batches, 32, Price(0.3), plan, teacher=model)
    soft, soft_gates = learn(model, batches, 32, Price(0.3), plan, hard=False, teacher=model)
    after = perplexity(hard.model, scored, ffn=SelectedFFN(gates)).perplexity
    jump = perplexity(soft.model, scored, ffn=SelectedFFN(soft_gates)).perplexity
    assert after < jump
