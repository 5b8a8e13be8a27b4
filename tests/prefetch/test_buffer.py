"""The buffer: guesses change what is fetched and never what is kept, step by step and all at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import DEMAND, replayed, traces

from minillm.errors import MinillmError
from minillm.prefetch.buffer import PrefetchBuffer
from minillm.prefetch.eviction import belady, static
from minillm.prefetch.traffic import EVENT_COLUMNS, event_rows
from minillm.tables import text_table

quick = settings(max_examples=30, derandomize=True, deadline=None)


# ---- what is known beforehand ----------------------------------------------------------------------------------------


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
