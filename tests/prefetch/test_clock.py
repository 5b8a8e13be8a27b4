"""Simulated time: three events by hand, and what must hold for any traffic."""

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.errors import MinillmError
from minillm.prefetch.buffer import PrefetchBuffer
from minillm.prefetch.clock import DEVICES, Device, Work, device_named, simulate, work_of
from minillm.prefetch.traffic import Traffic

quick = settings(max_examples=40, derandomize=True, deadline=None)
# A neuron of 8 bytes takes 1 + 8 / 4 = 3 s to fetch and 2 s to compute; a layer's rest 1 s, a head 5 s.
SLOW = Device("by hand", bandwidth=4, latency=1, rate=2)
WORK = Work(neuron_bytes=8, neuron=4, layer=2, token=10)


def traffic(**counts) -> Traffic:
    """Counts (T, L) by name; the others are zero, and what was requested follows."""
    shape = np.shape(next(iter(counts.values())))
    found = {name: np.array(counts.get(name, np.zeros(shape)), int) for name in Traffic._fields}
    return Traffic(**found | {"requested": found["hit"] + found["arrived"] + found["missed"]})


def bars(timeline) -> list[tuple]:
    return [tuple(interval) for interval in timeline.intervals]


def test_three_events_by_hand_a_hit_a_miss_and_a_prefetch():
    # Layer 0 has one hit and one miss; while it fetches and computes, the guess for layer 1 follows.
    found = simulate(traffic(hit=[[1, 0]], missed=[[1, 0]], arrived=[[0, 1]], wasted=[[0, 1]]), SLOW, WORK)
    assert bars(found) == [
        (0, 0, "rest", 0, 1),
        (0, 0, "fetch", 1, 4),
        (0, 1, "prefetch", 4, 10),  # two neurons, one of them for nothing; the miss goes before them
        (0, 0, "stall", 1, 4),
        (0, 0, "ffn", 4, 8),
        (0, 1, "rest", 8, 9),
        (0, 1, "stall", 9, 10),
        (0, 1, "ffn", 10, 12),
        (0, 2, "head", 12, 17),
    ]
    assert found.figures() == {"seconds_per_token": 17, "stall_share": 4 / 17, "fetch_share": 9 / 17}
    assert found.rows()[1] == {"token": 0, "layer": 0, "kind": "fetch", "start": 1, "end": 4}


def test_without_overlap_the_time_is_the_sum_of_both_lanes():
    counts = traffic(hit=[[1, 0], [2, 1]], missed=[[1, 0], [0, 3]], arrived=[[0, 1], [1, 1]], wasted=[[0, 1], [2, 0]])
    found = simulate(counts, SLOW, WORK, overlap=False)
    computing = 2 * (2 * 1 + 5) + 2 * int(counts.requested.sum())
    assert found.seconds == computing + 3 * int((counts.prefetched + counts.missed).sum())
    assert found.total("stall") == found.total("fetch", "prefetch")


def test_a_guess_one_token_ahead_is_fetched_behind_a_whole_token():
    counts = traffic(arrived=[[0, 0], [1, 1]], hit=[[1, 1], [0, 0]])
    by_token, by_layer = (simulate(counts, SLOW, WORK, lookahead=name) for name in ("token", "layer"))
    assert by_token.total("stall") == 0 and by_token.seconds == by_token.total("rest", "ffn", "head")
    assert [b[:3] for b in bars(by_token) if b[2] == "prefetch"] == [(1, 0, "prefetch"), (1, 1, "prefetch")]
    # A layer ahead, the first layer's has nothing to hide behind; the second's 3 s hide behind an FFN (2 s) and a rest.
    assert [b[:2] for b in bars(by_layer) if b[2] == "stall"] == [(1, 0)] and by_layer.total("stall") == 3


def test_what_is_dropped_is_fetched_behind_where_it_is_kept_and_nobody_waits():
    counts = traffic(missed=[[5]], passed=[[3]], hit=[[1]])
    found = simulate(counts, SLOW, WORK, miss="drop")
    assert bars(found) == [(0, 0, "rest", 0, 1), (0, 0, "fetch", 1, 7), (0, 0, "ffn", 1, 3), (0, 1, "head", 3, 8)]
    twice = simulate(traffic(missed=[[9], [0]], hit=[[1], [1]]), SLOW, WORK, miss="drop")
    assert twice.total("stall") == 28 - 9  # 9 neurons are there at 28; the next token's FFN could have begun at 9


@st.composite
def traffics(draw):
    shape = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    buffer = PrefetchBuffer(shape[1], shape[2], draw(st.integers(0, 6)))
    buffer.follow(rng.random(shape) < 0.5, rng.random(shape) < 0.4)
    buffer.run()
    return buffer.traffic()


@quick
@given(counts=traffics(), lookahead=st.sampled_from(["layer", "token"]), miss=st.sampled_from(["wait", "drop"]))
def test_each_lane_does_one_thing_at_a_time_and_the_compute_lane_is_never_idle(counts, lookahead, miss):
    found = simulate(counts, SLOW, WORK, lookahead=lookahead, miss=miss)
    fetching = [b for b in found.intervals if b.kind in ("fetch", "prefetch")]
    computing = [b for b in found.intervals if b.kind not in ("fetch", "prefetch")]
    assert computing[0].start == 0 and computing[-1].end == found.seconds == found.ends[-1]
    assert all(a.end == b.start for a, b in zip(computing, computing[1:], strict=False))
    assert all(a.end <= b.start for a, b in zip(fetching, fetching[1:], strict=False))
    moved = counts.prefetched.sum() + counts.late(miss).sum()
    assert found.total("fetch", "prefetch") == pytest.approx(3 * moved)
    assert found.total("ffn") == pytest.approx(2 * counts.computed(miss).sum())
    # No neuron is computed before it is there.
    done = {(b.token, b.layer, b.kind): b.end for b in fetching}
    for b in computing:
        if b.kind == "ffn":
            needed = ["prefetch", "fetch"] if miss == "wait" else ["prefetch"]
            assert all(done.get((b.token, b.layer, kind), 0) <= b.start for kind in needed)


@quick
@given(counts=traffics(), lookahead=st.sampled_from(["layer", "token"]))
def test_overlap_never_costs_time_and_never_saves_more_than_there_is_to_hide(counts, lookahead):
    found = simulate(counts, SLOW, WORK, lookahead=lookahead)
    plain = simulate(counts, SLOW, WORK, lookahead=lookahead, overlap=False)
    computing = found.total("rest", "ffn", "head")
    assert max(computing, found.total("fetch", "prefetch")) <= found.seconds + 1e-9 <= plain.seconds + 2e-9


def test_an_infinitely_fast_memory_never_stalls():
    counts = traffic(missed=[[5, 4], [3, 2]])
    assert simulate(counts, Device("fast", np.inf, 0, 2), WORK).figures()["stall_share"] == 0


def test_the_work_of_a_model_is_counted_by_hand():
    model = tiny.model()  # D 8, H 4, K 2, d 4, V 31, float64
    found = work_of(model, positions=10, predictor=7)
    assert found == Work(3 * 8 * 8, 3 * 8, 2 * 8 * (16 + 8) + 2 * 10 * 16 + 7, 31 * 8)
    assert work_of(model, bytes_per_number=2).neuron_bytes == 3 * 8 * 2
    gate = model.layers[0]
    parts = gate.gate_proj.size + gate.up_proj.size + gate.down_proj.size
    assert found.neuron * model.config.intermediate_size == parts
    attention = sum(getattr(gate, f"{name}_proj").size for name in "qkvo")
    assert work_of(model).layer == attention


def test_presets_are_devices_and_what_cannot_be_is_refused():
    assert all(device_named(name) is device for name, device in DEVICES.items())
    assert device_named(SLOW) is SLOW
    counts = traffic(hit=[[1]])
    for wrong, word in (
        (lambda: device_named("tape"), "phone UFS"),
        (lambda: Device("x", 0, 0, 1), "positive bandwidth"),
        (lambda: Device("x", 1, -1, 1), "latency >= 0"),
        (lambda: simulate(counts, SLOW, WORK, lookahead="text"), "lookahead"),
        (lambda: simulate(counts, SLOW, WORK, miss="cry"), "miss"),
    ):
        with pytest.raises(MinillmError, match=word):
            wrong()
