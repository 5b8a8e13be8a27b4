"""The plan against every other plan, trust computed and simulated, and hidden states of low rank."""

import itertools
import math

import numpy as np
import pytest
import tiny

import minillm
from minillm.errors import MinillmError
from minillm.methods.pipeline import (
    LEAST_TRUST,
    Server,
    Slice,
    Trust,
    bases_of,
    cut_places,
    excluded_within,
    is_right,
    layer_costs,
    low_rank_variant,
    partition,
    stage_time,
)

IDS = [1, 5, 3, 9, 30]


# ---- the plan --------------------------------------------------------------------------------------------------------
def slowest(servers, costs, slices, sent=100) -> float:
    """Seconds of the slowest stage."""
    return max(stage_time(s, costs[a:b], sent) for s, (a, b) in zip(servers, slices, strict=True))


def drawn(rng, count, layers):
    """Servers of different speeds, memories and bandwidths, and layers of different costs."""
    servers = [Server(str(i), *(10 ** rng.uniform(0, 1, 3) * (1e6, 400, 1e4))) for i in range(count)]
    return servers, [(float(rng.uniform(1e4, 1e5)), int(rng.integers(20, 100))) for _ in range(layers)]


def test_no_other_plan_is_faster():
    rng, possible = np.random.default_rng(0), 0
    for _ in range(100):
        servers, costs = drawn(rng, 3, 6)
        every = [
            [Slice(0, a), Slice(a, b), Slice(b, 6)] for a, b in itertools.combinations_with_replacement(range(7), 2)
        ]
        least = min(slowest(servers, costs, slices) for slices in every)
        if math.isinf(least):
            with pytest.raises(MinillmError, match="the 3 servers cannot hold the 6 layers"):
                partition(servers, costs, 100)
            continue
        found = partition(servers, costs, 100)
        assert slowest(servers, costs, found) == least <= slowest(servers, costs, [(0, 2), (2, 4), (4, 6)])
        assert [found[0].first, *(each.last for each in found)] == sorted([0, *(each.last for each in found)])
        assert all(one.last == other.first for one, other in itertools.pairwise(found)) and found[-1].last == 6
        possible += 1
    assert possible > 50


def test_twice_the_speed_is_twice_the_layers_and_a_useless_server_gets_none():
    costs = [(1e6, 1)] * 9
    assert partition([Server("a", 1e9), Server("b", 2e9)], costs, 0) == [(0, 3), (3, 9)]
    assert partition([Server("a", 1e9), Server("b", 1.0), Server("c", 1e9)], costs, 0)[1] in [(4, 4), (5, 5)]
    model = tiny.model("plain")
    flops, size = layer_costs(model)[0]
    assert flops == 2 * (8 * 16 + 2 * 8 * 8 + 16 * 8 + 3 * 8 * 12) and size == 8 * (flops / 2 + 2 * 8)


# ---- trust -----------------------------------------------------------------------------------------------------------
def test_an_honest_server_is_never_excluded_and_a_liar_is():
    trust = Trust()
    for _ in range(10_000):
        trust.add(True)
    assert not trust.lost and trust.value == pytest.approx(1) and excluded_within(1_000, 0.0)[-1] == 0
    for _ in range(2):
        trust.add(False)
    assert trust.lost and trust.value < LEAST_TRUST and (trust.checks, trust.wrong) == (10_002, 2)


def test_who_lies_with_probability_0_3_is_excluded_with_99_percent_as_computed_and_simulated():
    rng, checks, servers = np.random.default_rng(0), 60, 4_000
    within = np.zeros(checks)
    for _ in range(servers):
        trust = Trust()
        for check, lie in enumerate(rng.random(checks) < 0.3):
            trust.add(not lie)
            if trust.lost:
                within[check:] += 1
                break
    computed = excluded_within(checks, 0.3)
    np.testing.assert_allclose(within / servers, computed, atol=0.03)  # four deviations of a share of 4,000
    assert computed[-1] > 0.99 < within[-1] / servers
    assert (np.diff(computed) >= 0).all() and computed[0] == 0  # one wrong answer is not enough


def test_what_is_right_is_within_the_tolerance_and_a_number():
    own = np.linspace(1, 2, 7)
    assert is_right(own, own) and is_right(own * (1 + 1e-7), own) and not is_right(own * (1 + 1e-5), own)
    for bad in (np.nan, np.inf):
        assert not is_right(np.where(own > 1.5, bad, own), own)


# ---- hidden states of low rank ---------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.loaded(tmp_path_factory.mktemp("pipeline") / "m", num_hidden_layers=3)


def test_the_whole_rank_loses_nothing_and_less_loses_more(model):
    places = cut_places([Slice(0, 1), Slice(1, 1), Slice(1, 3)])
    assert places == [0, 1, 3]
    dense, errors = model.forward(IDS), []
    for rank in (8, 7, 4):
        bases = bases_of(model, tiny.STORIES, places, rank)
        assert sorted(bases) == places
        for basis in bases.values():
            np.testing.assert_allclose(basis.T @ basis, np.eye(rank), atol=1e-12)
        made = low_rank_variant(model, bases, tiny.STORIES)
        errors.append(np.abs(model.forward(IDS, tap=made.tap) - dense).max())
    assert errors[0] < 1e-10 < errors[1] and len(made.calibrated_on) == 4
    assert minillm.perplexity(model, ["The end."], tap=made.tap).perplexity > 0


def test_no_other_directions_keep_more_of_the_hidden_states(model):
    with minillm.Trace(keep="blocks.1.resid_pre") as trace:
        model.forward(model.tokenizer.encode(tiny.STORIES[0])[:-1], tap=trace)
    h = trace["blocks.1.resid_pre"]
    basis = bases_of(model, tiny.STORIES[:1], [1], 3)[1]

    def lost(b):
        return np.linalg.norm(h - h @ b @ b.T)

    rng = np.random.default_rng(0)
    assert all(lost(basis) < lost(np.linalg.qr(rng.normal(size=(8, 3)))[0]) for _ in range(20))


@pytest.mark.parametrize("rank", [0, 9])
def test_a_rank_out_of_range_is_refused(model, rank):
    with pytest.raises(MinillmError, match=f"rank is {rank}, expected 1 to 8"):
        bases_of(model, tiny.STORIES, [0], rank)
