"""A router of blocks: its loss and gradients, the K blocks that it keeps, its file, and its accounting."""

import numpy as np
import pytest
import tiny

from minillm.errors import MinillmError
from minillm.predictors.files import load_predictor, save_predictor
from minillm.predictors.router import Router, block_sums, energies, route_loss
from minillm.predictors.select import Predicted
from minillm.prefetch.kernels import Blocks, block_views
from minillm.prefetch.reorder import retained
from minillm.sparsity.selected import SelectedFFN
from minillm.trace import Trace
from minillm.transformer.evaluation import perplexity

RNG = np.random.default_rng(0)


def random_router(group: int = 4, kept: int = 2, rank: int = 5) -> Router:
    router = Router.new((2, 8, 14), group, kept, rank, np.random.default_rng(1))
    for tables in router.layers:
        for name, table in tables.items():
            tables[name] = np.random.default_rng(len(name) + table.size).standard_normal(table.shape)
    return router


def test_block_sums_with_a_smaller_last_block():
    assert block_sums(np.arange(10.0)[None], 4).tolist() == [[6.0, 22.0, 17.0]]


@pytest.mark.parametrize("part", ["A", "h", "B", "c"])
def test_the_gradients_are_those_of_central_differences(part):
    router, x, energy = random_router(), RNG.standard_normal((6, 8)), RNG.random((6, 4))
    energy[2] = 0  # a token whose FFN gives nothing has no target
    _, found = router.gradients(0, x, energy, count=9)
    table, v = router.layers[0][part], RNG.standard_normal(router.layers[0][part].shape)
    before, losses = table.copy(), []
    for h in (1e-6, -1e-6):
        table[...] = before + h * v
        losses.append(router.gradients(0, x, energy, count=9)[0])
    table[...] = before
    assert (losses[0] - losses[1]) / 2e-6 == pytest.approx((found[f"router.0.{part}"] * v).sum(), rel=1e-6)


def test_the_loss_is_least_where_the_softmax_is_the_shares_of_energy():
    energy = RNG.random((5, 4)) + 0.1
    _, d = route_loss(np.log(energy), energy)
    assert np.abs(d).max() < 1e-15
    entropy = -(energy / energy.sum(1, keepdims=True) * np.log(energy / energy.sum(1, keepdims=True))).sum(1).mean()
    assert route_loss(np.log(energy), energy)[0] == pytest.approx(entropy)


@pytest.mark.parametrize("kept", [1, 2, 3, 4])
def test_each_token_keeps_the_k_blocks_of_the_largest_scores(kept):
    router, x = random_router(kept=kept), RNG.standard_normal((7, 8))
    mask = router.predict(1, 0, x) > 0
    best = np.argsort(-router.scores(1, x), axis=1)[:, :kept]
    for row, blocks in zip(mask, best, strict=True):
        assert {j // 4 for j in np.flatnonzero(row)} == set(blocks.tolist())
        assert row.sum() == sum(min(4, 14 - 4 * b) for b in blocks.tolist())


def test_the_mask_runs_in_the_block_kernel():
    model = tiny.model(intermediate_size=14)
    router, layer, x = random_router(), model.layers[0], RNG.standard_normal((1, 8))
    y = SelectedFFN(Predicted(router))(x, layer)
    mask = Predicted(router)(x, layer)[0]
    chosen = np.flatnonzero(block_sums(mask[None].astype(float), 4)[0])
    fast = block_views(x[0], Blocks.of(layer, 4), chosen)
    np.testing.assert_allclose(fast, y[0], rtol=1e-12, atol=1e-12)


def test_a_fitted_router_is_better_than_chance_and_worse_than_the_oracle(tmp_path):
    model = tiny.loaded(tmp_path / "m", "float32", intermediate_size=32, hidden_size=16)
    router = Router.fit(model, tiny.STORIES, 8, 2, rank=16)
    with Trace(keep="*.mlp.*") as trace:
        model.forward(model.tokenizer.encode(" ".join(tiny.STORIES))[:128], tap=trace)
    for layer in model.layers:
        x, mid = trace[f"blocks.{layer.index}.mlp.norm"], trace[f"blocks.{layer.index}.mlp.mid"]
        energy = energies(mid, layer, 8)
        share = energy / energy.sum(axis=1, keepdims=True)
        kept = (router.predict(layer.index, 0, x) > 0)[:, ::8]
        best = retained(share, np.arange(4), 1, 0.5)
        assert 0.5 + 0.5 * (best - 0.5) < (share * kept).sum(axis=1).mean() <= best
    assert router.model == model.fingerprint and router.trained_on
    cut = perplexity(model, tiny.STORIES[1:], ffn=SelectedFFN(Predicted(router))).perplexity
    assert np.isfinite(cut)


def test_its_file_gives_the_same_router_again(tmp_path):
    router = random_router().rounded()
    router.trained_on = frozenset({"a" * 64})
    save_predictor(tmp_path / "r.safetensors", router)
    again, x = load_predictor(tmp_path / "r.safetensors"), RNG.standard_normal((5, 8))
    assert np.array_equal(again.predict(1, 0, x), router.predict(1, 0, x))
    assert (again.name, again.trained_on, again.kept) == (router.name, router.trained_on, 2)
    assert again.nbytes == router.nbytes == 2 * sum(array.size for array in router.arrays().values())
    assert router.multiply_adds(0) == 5 * (8 + 4)
    assert (tmp_path / "r.safetensors").stat().st_size < router.nbytes + 2000


@pytest.mark.parametrize("wrong", [{"group": 0}, {"group": 15}, {"kept": 5}, {"kept": 0}, {"rank": 0}])
def test_numbers_out_of_range(wrong):
    with pytest.raises(MinillmError, match=f"{'hidden' if 'rank' in wrong else next(iter(wrong))} is "):
        Router.new(**{"shape": (2, 8, 14), "group": 4, "kept": 2, "rank": 5, "rng": RNG} | wrong)
