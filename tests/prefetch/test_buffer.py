"""The buffer: each rule of what to keep is what it says, belady is never beaten, and the events add up."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.errors import MinillmError
from minillm.prefetch.buffer import PrefetchBuffer
from minillm.prefetch.eviction import Eviction, belady, eviction_named, hot, lru, random_set, static, window
from minillm.prefetch.traffic import EVENT_COLUMNS, event_rows
from minillm.tables import text_table

quick = settings(max_examples=30, derandomize=True, deadline=None)
DEMAND = ("lru", "lfu", "window-0", "window-1", "window-3")


@st.composite
def traces(draw, layers: int = 1, tokens: int = 12, neurons: int = 7):
    shape = draw(st.integers(1, tokens)), layers, draw(st.integers(1, neurons))
    share, seed = draw(st.sampled_from([0.1, 0.3, 0.6, 0.9])), draw(st.integers(0, 10**6))
    return np.random.default_rng(seed).random(shape) < share


def replayed(trace: np.ndarray, capacity: int, keeper, start=None, guesses=None) -> PrefetchBuffer:
    buffer = PrefetchBuffer(trace.shape[1], trace.shape[2], capacity, keeper, start=start)
    buffer.follow(trace, guesses)
    buffer.run()
    return buffer


def hits(trace: np.ndarray, capacity: int, keeper, start=None) -> int:
    return int(replayed(trace, capacity, keeper, start).traffic().hit.sum())


# ---- the rules, written a second time with dicts and sets ------------------------------------------------------------


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


@quick
@given(trace=traces(layers=2), rule=st.sampled_from(["lru", "lfu"]))
def test_with_room_for_all_only_the_first_use_is_a_miss(trace, rule):
    traffic = replayed(trace, 100, rule).traffic()
    assert traffic.missed.sum() == trace.any(axis=0).sum() and not traffic.wasted.any()


@quick
@given(trace=traces(layers=2), rule=st.sampled_from([*DEMAND, "belady"]))
def test_no_capacity_is_no_buffer(trace, rule):
    traffic = replayed(trace, 0, belady(trace) if rule == "belady" else rule).traffic()
    assert not traffic.hit.any() and np.array_equal(traffic.missed, trace.sum(axis=2))
    assert np.array_equal(traffic.passed, traffic.missed)


# ---- prefetching -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lookahead", ["layer", "token"])
@quick
@given(trace=traces(layers=3), capacity=st.integers(0, 8), rule=st.sampled_from(DEMAND), seed=st.integers(0, 99))
def test_a_guess_changes_what_is_fetched_when_and_never_what_is_kept(lookahead, trace, capacity, rule, seed):
    guesses = np.random.default_rng(seed).random(trace.shape) < 0.4
    plain, guessed = (PrefetchBuffer(3, trace.shape[2], capacity, rule) for _ in range(2))
    plain.follow(trace)
    guessed.follow(trace, guesses, lookahead)
    plain.run()
    guessed.run()
    a, b = plain.traffic(), guessed.traffic()
    assert np.array_equal(plain.held, guessed.held) and np.array_equal(a.hit, b.hit)
    assert np.array_equal(a.missed, b.arrived + b.missed)
    assert np.array_equal(b.requested, b.hit + b.arrived + b.missed)
    assert np.array_equal(guessed.trace(), trace) and not guessed.waiting.any()


@quick
@given(trace=traces(layers=2), capacity=st.integers(0, 8))
def test_a_perfect_guess_leaves_no_miss_and_wastes_nothing(trace, capacity):
    traffic = replayed(trace, capacity, "lru", guesses=trace).traffic()
    assert not traffic.missed.any() and not traffic.wasted.any()


def test_what_is_kept_or_under_way_is_not_ordered_again():
    buffer = PrefetchBuffer(1, 6, 2, static("mine", np.array([[1, 1, 0, 0, 0, 0]], bool)))
    assert np.flatnonzero(buffer.prefetch(0, [0, 2, 3])).tolist() == [2, 3]
    assert np.flatnonzero(buffer.prefetch(0, [3, 4])).tolist() == [4]
    found = buffer.request(0, [1, 3, 5])
    expected = {"requested": [1, 3, 5], "hit": [1], "arrived": [3], "missed": [5], "wasted": [2, 4], "passed": [5]}
    assert {name: np.flatnonzero(mask).tolist() for name, mask in found._asdict().items()} == expected


# ---- events ----------------------------------------------------------------------------------------------------------


def test_two_tokens_can_be_walked_through_by_hand():
    trace = np.array([[[1, 1, 0, 0]], [[0, 1, 1, 1]]], bool)  # two tokens, one layer, four neurons
    guesses = np.array([[[0, 0, 0, 0]], [[1, 0, 1, 0]]], bool)
    buffer = PrefetchBuffer(1, 4, 2, "lru", log=False)
    buffer.follow(trace, guesses, "token")
    told = []
    while event := buffer.step():
        told.append((event.token, event.kind, event.neurons, tuple(np.flatnonzero(buffer.held[0]).tolist())))
    assert told == [
        (0, "request", (0, 1), ()),
        (0, "miss", (0, 1), ()),
        (0, "keep", (0, 1), (0, 1)),
        (1, "prefetch", (2,), (0, 1)),  # 0 is there already
        (1, "request", (1, 2, 3), (0, 1)),
        (1, "hit", (1,), (0, 1)),
        (1, "arrived", (2,), (0, 1)),
        (1, "miss", (3,), (0, 1)),
        (1, "evict", (0,), (1,)),
        (1, "keep", (2,), (1, 2)),
        (1, "pass", (3,), (1, 2)),
    ]
    assert buffer.step() is None
    table = text_table(event_rows(buffer.events), EVENT_COLUMNS).splitlines()
    assert len(table) == 12 and table[4].split() == ["3", "1", "0", "prefetch", "1", "2"]


@quick
@given(trace=traces(layers=2), capacity=st.integers(0, 8), seed=st.integers(0, 99))
def test_the_events_add_up_to_the_counts_and_to_the_state(trace, capacity, seed):
    guesses = np.random.default_rng(seed).random(trace.shape) < 0.4
    buffer = replayed(trace, capacity, "lru", guesses=guesses)
    count = dict.fromkeys(("prefetch", "request", "hit", "arrived", "miss", "wasted", "evict", "keep", "pass"), 0)
    for event in buffer.events:
        count[event.kind] += len(event.neurons)
    traffic = buffer.traffic()
    expected = {"request": traffic.requested, "hit": traffic.hit, "arrived": traffic.arrived, "miss": traffic.missed}
    expected |= {"wasted": traffic.wasted, "prefetch": traffic.prefetched}
    assert {kind: count[kind] for kind in expected} == {kind: int(v.sum()) for kind, v in expected.items()}
    assert count["keep"] - count["evict"] == buffer.held.sum()
    assert count["arrived"] + count["miss"] == count["keep"] + count["pass"]
    assert [event.number for event in buffer.events] == list(range(len(buffer.events)))


def test_requests_and_the_script_tell_the_same_and_reset_begins_anew():
    trace = np.random.default_rng(0).random((5, 2, 6)) < 0.5
    buffer = replayed(trace, 3, "lfu")
    told, held = list(buffer.events), buffer.held.copy()
    buffer.reset()
    assert not buffer.held.any() and not buffer.events
    for t in range(5):
        for layer in range(2):
            buffer.request(layer, np.flatnonzero(trace[t, layer]).tolist())
    assert buffer.events == told and np.array_equal(buffer.held, held)


def test_figures_are_counted_in_bytes_by_hand():
    buffer = PrefetchBuffer(1, 4, 25, "lru", unit="bytes", bytes_per_neuron=10)  # two whole neurons
    buffer.prefetch(0, [0, 3])
    buffer.request(0, [0, 1, 2])  # 0 arrived, 1 and 2 missed, 3 wasted; 0 and 1 stay
    buffer.request(0, [0, 1])
    assert buffer.capacity == 2
    found = buffer.traffic().figures(10)
    expected = {"hit_rate": 2 / 5, "bytes_per_token": 20.0, "late_bytes": 10.0, "wasted_bytes": 5.0, "dropped_share": 0}
    assert found == expected
    dropping = buffer.traffic().figures(10, "drop")  # 1 is fetched behind, since it will be kept; 2 is not
    expected |= {"bytes_per_token": 15.0, "late_bytes": 5.0, "dropped_share": 2 / 5}
    assert dropping == expected


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"capacity": -1}, "capacity"),
        ({"unit": "blocks"}, "unit"),
        ({"bytes_per_neuron": 0}, "bytes_per_neuron"),
        ({"start": np.ones((2, 5), bool)}, "with at most 3"),
        ({"start": np.zeros((2, 4), bool)}, r"expected \[2, 5\]"),
        ({"eviction": "clock"}, "'clock' is unknown"),
        ({"eviction": "window-x"}, "unknown"),
    ],
)
def test_a_buffer_that_cannot_be_is_refused(change, word):
    with pytest.raises(MinillmError, match=word):
        PrefetchBuffer(**{"layers": 2, "neurons": 5, "capacity": 3, **change})


def test_requests_and_traces_that_do_not_fit_are_refused():
    buffer = PrefetchBuffer(2, 5, 3)
    for neurons in ([5], [-1], [0.5], np.ones(4, bool)):
        with pytest.raises(MinillmError, match="from 0 to 4"):
            buffer.request(0, neurons)
    with pytest.raises(MinillmError, match="expected bool"):
        buffer.follow(np.zeros((3, 2, 4), bool))
    with pytest.raises(MinillmError, match="the guesses are"):
        buffer.follow(np.zeros((3, 2, 5), bool), np.zeros((2, 2, 5), bool))
    with pytest.raises(MinillmError, match="lookahead"):
        buffer.follow(np.zeros((3, 2, 5), bool), lookahead="text")
    buffer.request(0, [])
    for read in (buffer.traffic, buffer.trace):
        with pytest.raises(MinillmError, match="under way"):
            read()
    assert eviction_named("window-4").name == "window-4"
