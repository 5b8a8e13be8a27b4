"""Eviction policies: each is what it says, belady is never beaten, and hit rates known beforehand are reached."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import DEMAND, hits, replayed, traces

from minillm.errors import MinillmError
from minillm.prefetch.buffer import PrefetchBuffer
from minillm.prefetch.eviction import Eviction, belady, eviction_named, hot, lru, next_uses, random_set, window

quick = settings(max_examples=30, derandomize=True, deadline=None)

# ---- the policies, written a second time with dicts and sets ---------------------------------------------------------


def by_hand(sets: list[set[int]], capacity: int, rule: str) -> list[tuple[set, set]]:
    """(hits, kept afterwards) of each token, by sorting the candidates one at a time."""
    kept, last, count, found = set(), {}, {}, []
    for t, needed in enumerate(sets):
        hit = kept & needed
        for j in needed:
            last[j], count[j] = t, count.get(j, 0) + 1
        pool = kept | needed
        if rule.startswith("window"):
            pool = {j for j in pool if t - last[j] < int(rule[7:])}
        key = {"lfu": lambda j: (-count[j], -last[j])}.get(rule, lambda j: -last[j])  # noqa: B023
        kept = set(sorted(pool, key=lambda j: (key(j), j not in kept, j))[:capacity])  # noqa: B023
        found.append((hit, set(kept)))
    return found


@pytest.mark.parametrize("rule", DEMAND)
@quick
@given(trace=traces(), capacity=st.integers(0, 8))
def test_a_rule_keeps_what_the_same_rule_over_sets_keeps(rule, trace, capacity):
    buffer = PrefetchBuffer(1, trace.shape[2], capacity, rule)
    expected = by_hand([set(np.flatnonzero(row[0]).tolist()) for row in trace], min(capacity, trace.shape[2]), rule)
    for row, (hit, kept) in zip(trace, expected, strict=True):
        assert set(np.flatnonzero(buffer.request(0, row[0]).hit).tolist()) == hit
        assert set(np.flatnonzero(buffer.held[0]).tolist()) == kept


def test_lru_on_single_requests_is_the_textbook_queue():
    rng, queue, expected = np.random.default_rng(1), [], []
    asked = rng.integers(0, 9, 300).tolist()
    for j in asked:
        expected.append(j in queue)
        queue = [*(i for i in queue if i != j), j][-4:]
    buffer = PrefetchBuffer(1, 9, 4, "lru")
    assert [bool(buffer.request(0, [j]).hit.any()) for j in asked] == expected


@quick
@given(trace=traces(), k=st.integers(1, 4))
def test_a_window_loads_what_the_last_k_tokens_did_not_need(trace, k):
    # LLM in a Flash: |A_t minus the union of the last k| neurons, where there is room for all of them.
    missed = replayed(trace, trace.shape[2], window(k)).traffic().missed[:, 0]
    expected = [np.count_nonzero(row & ~trace[max(0, t - k) : t, 0].any(axis=0)) for t, row in enumerate(trace[:, 0])]
    assert missed.tolist() == expected


@quick
@given(trace=traces(), capacity=st.integers(0, 7))
def test_a_window_as_long_as_the_text_is_lru(trace, capacity):
    counts = [replayed(trace, capacity, rule).traffic() for rule in (window(len(trace)), lru())]
    assert all(np.array_equal(a, b) for a, b in zip(*counts, strict=True))


def test_a_static_set_is_there_from_the_start_and_never_changes():
    frequencies = np.array([[0.1, 0.9, 0.5, 0.7], [0.9, 0.1, 0.8, 0.2]])
    trace = np.random.default_rng(0).random((20, 2, 4)) < 0.5
    buffer = replayed(trace, 2, hot(frequencies, 2))
    expected = np.array([[0, 1, 0, 1], [1, 0, 1, 0]], bool)
    assert np.array_equal(buffer.start, expected) and np.array_equal(buffer.held, expected)
    assert np.array_equal(buffer.traffic().hit, (trace & expected).sum(axis=2))


# ---- belady ----------------------------------------------------------------------------------------------------------


def best_possible(sets: list[frozenset], capacity: int, start: frozenset) -> int:
    """The most hits of any way to keep, by trying every subset after every token."""
    best = {start: 0}
    for needed in sets:
        following: dict[frozenset, int] = {}
        for kept, score in best.items():
            pool, score = sorted(kept | needed), score + len(kept & needed)
            for size in range(min(capacity, len(pool)) + 1):
                for chosen in map(frozenset, combinations(pool, size)):
                    following[chosen] = max(following.get(chosen, 0), score)
        best = following
    return max(best.values())


@settings(max_examples=40, derandomize=True, deadline=None)
@given(trace=traces(tokens=6, neurons=5), capacity=st.integers(0, 3), seed=st.integers(0, 99))
def test_belady_finds_as_many_hits_as_trying_everything(trace, capacity, seed):
    capacity = min(capacity, trace.shape[2])
    start = random_set(1, trace.shape[2], capacity, np.random.default_rng(seed)).start
    sets = [frozenset(np.flatnonzero(row[0]).tolist()) for row in trace]
    expected = best_possible(sets, capacity, frozenset(np.flatnonzero(start[0]).tolist()))
    assert hits(trace, capacity, belady(trace), start) == expected


@quick
@given(trace=traces(layers=2), capacity=st.integers(0, 8), seed=st.integers(0, 99))
def test_no_rule_beats_belady_from_the_same_start(trace, capacity, seed):
    capacity = min(capacity, trace.shape[2])
    fixed = random_set(2, trace.shape[2], capacity, np.random.default_rng(seed))
    for start in (None, fixed.start):
        best = hits(trace, capacity, belady(trace), start)
        assert all(hits(trace, capacity, rule, start) <= best for rule in DEMAND)
    assert hits(trace, capacity, fixed) <= hits(trace, capacity, belady(trace), fixed.start)


@pytest.mark.parametrize("bug", ["last use", "farthest", "without bypass"])
def test_a_planted_bug_in_belady_is_seen(bug):
    rng = np.random.default_rng(3)
    for _ in range(200):
        trace = rng.random((6, 1, 5)) < 0.4
        right = belady(trace)
        value = {
            "last use": lru().value,
            "farthest": lambda b, layer: np.where(right.value(b, layer) < 0, -1, 99 - right.value(b, layer)),  # noqa: B023
            "without bypass": lambda b, layer: right.value(b, layer) + 100 * (b.last[layer] == b.time[layer]) + 1,  # noqa: B023
        }[bug]
        sets = [frozenset(np.flatnonzero(row[0]).tolist()) for row in trace]
        if hits(trace, 2, Eviction("bug", value)) < best_possible(sets, 2, frozenset()):
            return
    pytest.fail("the bug was not seen")


def test_belady_refuses_another_trace_than_its_own():
    trace = np.random.default_rng(0).random((4, 1, 5)) < 0.5
    buffer = PrefetchBuffer(1, 5, 2, belady(trace))
    with pytest.raises(MinillmError, match="another trace"):
        buffer.request(0, ~trace[0, 0])
    buffer = replayed(trace, 2, belady(trace))
    with pytest.raises(MinillmError, match="another trace"):
        buffer.request(0, trace[0, 0])


# ---- what is known beforehand ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [5, 10, 30])
def test_independent_single_requests_give_lru_a_hit_rate_of_capacity_over_n(capacity):
    neurons, requests = 40, 4000
    asked = np.random.default_rng(capacity).integers(0, neurons, requests)
    buffer = PrefetchBuffer(1, neurons, capacity, "lru", log=False)
    found = np.array([buffer.request(0, [j]).hit.any() for j in asked])[500:]
    expected = capacity / neurons
    assert abs(found.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / len(found))


def test_a_random_set_hits_capacity_over_n_of_any_trace_in_the_mean():
    # A trace with habits: some neurons are always needed, others with the token before.
    rng = np.random.default_rng(4)
    trace = (rng.random((30, 1, 40)) < np.linspace(0, 1, 40) ** 3) | (np.arange(30) % 7 < 3)[:, None, None] * (
        rng.random(40) < 0.3
    )
    rates = [replayed(trace, 10, random_set(1, 40, 10, rng)).traffic().hit_rate for _ in range(80)]
    assert abs(np.mean(rates) - 10 / 40) < 4 * np.std(rates) / np.sqrt(len(rates))
    assert hits(trace, 10, "lru") / trace.sum() > 0.4  # which a rule with a memory turns to account


def test_next_uses_written_out_by_hand():
    trace = np.array([[[1, 0, 1]], [[0, 0, 1]], [[1, 0, 0]]], bool)
    assert next_uses(trace)[:, 0].tolist() == [[2, 3, 1], [2, 3, 3], [3, 3, 3]]


def test_a_policy_is_named_or_refused_by_name():
    for name in ("lru", "lfu", "window-4"):
        assert eviction_named(name).name == name
    for name in ("belady", "hot", "window-", "window-x", "clock"):
        with pytest.raises(MinillmError, match=f"'{name}' is unknown"):
            eviction_named(name)
