"""Events, requests and counts: they add up, and bytes and hit rates follow from them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import replayed, traces

from minillm.prefetch.buffer import PrefetchBuffer
from minillm.prefetch.traffic import EVENT_COLUMNS, Event, Traffic, after, event_rows, first, unpacked

quick = settings(max_examples=30, derandomize=True, deadline=None)


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


def test_the_methods_of_traffic_written_out_by_hand():
    """One token, two layers: 4 needed of which 1 hit, 1 arrived, 2 missed (1 passed), 3 wasted; and nothing."""
    counts = Traffic(*(np.array([[count, 0]]) for count in (4, 1, 1, 2, 3, 1)))
    assert counts.prefetched.tolist() == [[4, 0]] and counts.hit_rate == 0.25
    assert counts.late().tolist() == [[2, 0]] and counts.late("drop").tolist() == [[1, 0]]
    assert counts.computed().tolist() == [[4, 0]] and counts.computed("drop").tolist() == [[2, 0]]
    assert Traffic(*(np.zeros((0, 2), int) for _ in range(6))).figures(10)["bytes_per_token"] == 0


@pytest.mark.parametrize("neurons", [1, 8, 9])
def test_unpacked_undoes_packing(neurons):
    trace = np.random.default_rng(neurons).random((5, 3, neurons)) < 0.5
    rows = [np.packbits(trace[:, layer], axis=1) for layer in range(3)]
    assert np.array_equal(unpacked(rows, neurons), trace)


@pytest.mark.parametrize("lookahead", ["layer", "token"])
def test_each_request_but_the_first_ones_has_exactly_one_request_before_it(lookahead):
    places = [(t, layer) for t in range(4) for layer in range(3)]
    ordered = [place for place in places if first(*place, lookahead)]
    ordered += [after(*place, lookahead) for place in places]
    assert sorted(place for place in ordered if place in places) == places


def test_an_event_is_a_row_of_the_table():
    (row,) = event_rows([Event(3, 1, 0, "miss", (2, 5))])
    assert list(row) == list(EVENT_COLUMNS)
    assert row == {"event": 3, "token": 1, "layer": 0, "what": "miss", "count": 2, "neurons": "2 5"}
