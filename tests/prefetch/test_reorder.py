"""Reordering neurons: the same function, and blocks that hold more of what counts."""

from copy import copy
from dataclasses import replace
from itertools import combinations, permutations

import numpy as np
import pytest
import tiny

from minillm.prefetch.kernels import NeuronMajor, gather
from minillm.prefetch.reorder import (
    BlockOracle,
    block_energy,
    clustered,
    dropped_means,
    energy_shares,
    neuron_energy,
    recorded_mid,
    retained,
)
from minillm.trace import Trace
from minillm.transformer.ffn import swiglu
from minillm.transformer.model import Llama

IDS = [1, 5, 3, 9, 30, 2, 7]
F = 12


def shares(tokens=60, neurons=8, seed=0):
    energy = np.random.default_rng(seed).exponential(size=(tokens, neurons)) ** 3
    return energy / energy.sum(axis=1, keepdims=True)


def permuted(model: Llama, orders) -> Llama:
    """The same function with each layer's neurons in another order: place k holds what was neuron order[k]."""
    other = copy(model)
    other.layers = []
    for layer, order in zip(model.layers, orders, strict=True):
        rows = {name: getattr(layer, name) for name in ("gate_proj", "up_proj", "gate_bias", "up_bias")}
        rows = {name: None if array is None else array[order] for name, array in rows.items()}
        other.layers.append(replace(layer, **rows, down_proj=layer.down_proj[:, order]))
    return other


def test_what_is_retained_written_out_by_hand():
    energy = np.array([[0.5, 0.1, 0.1, 0.3], [0.0, 0.6, 0.2, 0.2]])
    assert retained(energy, np.arange(4), 2) == pytest.approx((0.6 + 0.6) / 2)
    assert retained(energy, np.array([0, 3, 1, 2]), 2) == pytest.approx((0.8 + 0.8) / 2)
    assert retained(energy, np.arange(4), 1) == pytest.approx((0.8 + 0.8) / 2)
    assert np.allclose(block_energy(energy, np.arange(4), 3), [[0.7, 0.3], [0.8, 0.2]])  # a shorter last block


def best_exchange_by_trying(energy, order, group):
    """The largest gain of any exchange of two neurons, by computing the objective again for each."""
    now, gains = retained(energy, order, group), [0.0]
    for p, q in combinations(range(len(order)), 2):
        other = order.copy()
        other[[p, q]] = other[[q, p]]
        gains.append(retained(energy, other, group) - now)
    return max(gains)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("neurons", "group"), [(8, 2), (8, 4), (12, 3), (11, 4), (9, 2)])
def test_no_exchange_of_two_neurons_could_keep_more(neurons, group, seed):
    """So the gains are exact: an error in any of their cases would stop at another place."""
    energy = shares(40, neurons, seed)
    order = clustered(energy, group, np.random.default_rng(seed))
    assert np.array_equal(np.sort(order), np.arange(neurons))
    assert best_exchange_by_trying(energy, order, group) < 1e-5


def test_planted_groups_are_found():
    """Four groups of four neurons, two groups active per token: half of the blocks can hold everything."""
    rng = np.random.default_rng(0)
    place, energy = rng.permutation(16), np.zeros((200, 16))
    for t in range(200):
        for group in rng.choice(4, 2, replace=False):
            energy[t, place[4 * group : 4 * group + 4]] = rng.exponential(size=4)
    energy /= energy.sum(axis=1, keepdims=True)
    best = max(retained(energy, clustered(energy, 4, np.random.default_rng(s)), 4) for s in range(4))
    assert best == pytest.approx(1, abs=1e-6) and retained(energy, np.arange(16), 4) < 0.85


def test_small_cases_come_near_the_best_of_all_partitions():
    energy = shares(30, 6, 1)
    best = max(retained(energy, np.array(order), 2) for order in permutations(range(6)))
    found = max(retained(energy, clustered(energy, 2, np.random.default_rng(s)), 2) for s in range(5))
    assert best - 1e-6 <= found <= best + 1e-6


def test_one_block_or_a_share_of_all_needs_no_search():
    for group, share in ((8, 0.5), (2, 1.0)):
        order = clustered(shares(), group, np.random.default_rng(0), share)
        assert np.array_equal(np.sort(order), np.arange(8))


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_the_block_oracle_keeps_the_best_blocks_of_the_permuted_model(family):
    model, rng = tiny.model(family), np.random.default_rng(0)
    orders = [rng.permutation(F) for _ in model.layers]
    with Trace(keep="*.mlp.*") as trace:
        found = model.forward(IDS, ffn=BlockOracle(4, 0.5, orders).ffn(), tap=trace)
    other = permuted(model, orders).forward(IDS, ffn=BlockOracle(4, 0.5).ffn())
    np.testing.assert_allclose(found, other, rtol=0, atol=1e-12 * np.abs(other).max())
    for layer in model.layers:
        mask, mid = (trace[f"blocks.{layer.index}.mlp.{name}"] for name in ("mask", "mid"))
        blocks = block_energy(neuron_energy(mid, layer), orders[layer.index], 4)  # (T, 3), of which 2 are kept
        assert (mask.sum(axis=1) == 8).all()
        dropped = mask[:, orders[layer.index][::4]]
        assert np.array_equal(blocks.argmin(axis=1), dropped.argmin(axis=1))


def test_means_stand_for_what_is_left_out_and_no_weight_is_read_for_them():
    """c + sum of kept (m - mean) down, the sum that reads the kept columns alone, is what the oracle computes."""
    layer, rng = tiny.model("llama").layers[0], np.random.default_rng(0)
    mids = rng.standard_normal((50, F)) + 3 * rng.standard_normal(F)
    order, x = rng.permutation(F), rng.standard_normal((5, 8))
    means = dropped_means(mids, layer, order, 3)
    with Trace(keep="*") as trace:
        found = BlockOracle(3, 0.5, [order], [means]).ffn()(x, layer, 0, trace)
    c = layer.down_proj @ means + layer.down_bias
    kept_alone = np.where(trace["mask"], trace["mid"] - means, 0) @ layer.down_proj.T + c
    np.testing.assert_allclose(found, kept_alone, rtol=0, atol=1e-12 * np.abs(found).max())
    assert (trace["mask"].sum(axis=1) == 6).all()
    kept = np.zeros((50, F), bool)  # the means written out
    for t in range(50):
        one = mids[t] ** 2 * (layer.down_proj**2).sum(axis=0)
        energy = [one[order[b : b + 3]].sum() for b in (0, 3, 6, 9)]
        for b in np.argsort(energy)[2:]:
            kept[t, order[3 * b : 3 * b + 3]] = True
    expected = [mids[~kept[:, j], j].mean() if (~kept[:, j]).any() else 0 for j in range(F)]
    np.testing.assert_allclose(means, expected, rtol=1e-12)


def test_blocks_of_all_neurons_are_the_dense_model():
    model = tiny.model("llama")
    expected = model.forward(IDS)
    found = model.forward(IDS, ffn=BlockOracle(4, 1.0).ffn())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_token_without_any_energy_has_shares_of_zero():
    model = tiny.model()
    mid = np.zeros((2, model.config.intermediate_size))
    mid[1, 3] = 2.0
    shares = energy_shares(mid, model.layers[0])
    assert not shares[0].any() and shares[1, 3] == 1 and shares[1].sum() == 1


def test_energies_are_the_neurons_shares_of_the_dense_output(tmp_path):
    model = tiny.loaded(tmp_path / "model")
    found = recorded_mid(model, tiny.STORIES, tokens=60)
    assert [array.shape[1] for array in found] == [F, F] and 60 <= len(found[0]) == len(found[1]) < 150
    np.testing.assert_allclose(energy_shares(found[0], model.layers[0]).sum(axis=1), 1, rtol=1e-12)
    x, layer = np.random.default_rng(0).standard_normal((1, 8)), model.layers[0]
    with Trace(keep="mid") as trace:
        swiglu(x, layer, tap=trace)
    alone = [gather(x[0], NeuronMajor.of(layer), np.array([j])) for j in range(F)]
    np.testing.assert_allclose(neuron_energy(trace["mid"], layer)[0], [y @ y for y in alone], rtol=1e-10)
