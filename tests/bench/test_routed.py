"""A router in front of the FFN's blocks: which blocks, which output, which numbers."""

import numpy as np
import pytest

from minillm.bench import routed as bench_routed
from minillm.bench import sparse as bench_sparse
from minillm.bench.routed import Router, routed, router_numbers, router_of
from minillm.bench.shapes import config_at
from minillm.bench.sparse import bench_ffn
from minillm.prefetch.kernels import Blocks, block_views

D, F, G = 16, 60, 8  # blocks of 8: the last of the 8 has 4 neurons
RNG = np.random.default_rng(0)


def test_the_router_chooses_the_blocks_with_the_largest_scores():
    inner, h, outer, c = (RNG.standard_normal(shape) for shape in ((3, 4), 3, (5, 3), 5))
    x = RNG.standard_normal(4)
    scores = [sum(w * max(0, a @ x + b) for w, a, b in zip(row, inner, h, strict=True)) for row in outer] + c
    best = sorted(np.argsort(-scores)[:2])
    assert Router(inner, h, outer, c).blocks(x, 2).tolist() == best


def test_the_ffn_is_that_of_the_blocks_that_were_chosen():
    layers = bench_sparse.RandomLayers.of(config_at((D, F)), 1, RNG)
    weights = Blocks(layers.arrays[0], G, layers.layers[0])
    router = router_of(layers.routers[0], D, 8)
    assert router.inner.shape == (8, 16) and router.outer.shape == (8, 8)
    assert not np.shares_memory(router.inner, router.outer)
    chosen = router.blocks(layers.x, 3)
    assert len(chosen) == 3
    np.testing.assert_array_equal(routed(layers.x, weights, router, 3), block_views(layers.x, weights, chosen))


def test_one_array_of_a_layer_is_enough_for_blocks_of_any_size():
    numbers = np.arange(router_numbers(config_at((D, F))))
    assert router_of(numbers, D, F).outer[-1, -1] == numbers[-1]


def test_the_router_is_timed_with_its_ffn_and_gets_another_input_each_time(monkeypatch):
    monkeypatch.setattr(bench_sparse, "TURN", 1)
    monkeypatch.setattr(bench_sparse, "largest_cache", lambda: 4096)
    seen, inside, real = [], [], bench_routed.Router.blocks

    def blocks(self, x, kept):
        inside.append(timing[-1])
        seen.append(x.tobytes())
        return real(self, x, kept)

    timing, clock = [False], bench_sparse.time.process_time

    def process_time():  # called before and after the calls of a turn
        timing.append(not timing[-1])
        return clock()

    monkeypatch.setattr(bench_routed.Router, "blocks", blocks)
    monkeypatch.setattr(bench_sparse.time, "process_time", process_time)
    result = bench_ffn((D, 64), (0.5,), (4,), rounds=2)
    assert len(seen) == len(set(seen)) == 2 * 3 and all(inside)  # two layers, two rounds and one for warming up
    row = result["rows"][-1]
    assert result["router"] == 8 and (row["method"], row["touched"]) == ("routed", pytest.approx(0.5))
