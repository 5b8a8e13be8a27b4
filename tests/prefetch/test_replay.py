"""Replay: what was recorded is what was needed, and a replayed row is what the buffer itself would have counted."""

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.errors import MinillmError
from minillm.predictors.select import sparse_ffn
from minillm.prefetch.buffer import PrefetchBuffer
from minillm.prefetch.clock import Device, work_of
from minillm.prefetch.eviction import belady, hot, random_set
from minillm.prefetch.feedforward import BufferedFFN
from minillm.prefetch.record import Recorder, frequencies
from minillm.prefetch.replay import ReplaySettings, enough, kept_history, replay, traffic_of, working_space
from minillm.sparsity.sparse import policy_selector

quick = settings(max_examples=20, derandomize=True, deadline=None)
RULES = ("lru", "lfu", "window-2", "hot", "random", "belady")


def eviction(name: str, capacity: int, trace: np.ndarray):
    if name == "belady":
        return belady(trace)
    return ReplaySettings(hot_frequencies=trace.mean(axis=0), seed=5).eviction(name, capacity, *trace.shape[1:])


# ---- replaying -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@quick
@given(seed=st.integers(0, 10**6), capacity=st.integers(0, 9), guess=st.booleans())
def test_all_layers_at_once_count_what_the_buffer_counts_request_by_request(rule, seed, capacity, guess):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 9, 3))
    trace, guesses = rng.random(shape) < 0.4, rng.random(shape) < 0.4
    capacity = min(capacity, shape[2])
    buffer = PrefetchBuffer(shape[1], shape[2], capacity, eviction(rule, capacity, trace))
    for t in range(shape[0]):
        for layer in range(shape[1]):
            if guess:
                buffer.prefetch(layer, guesses[t, layer])
            buffer.request(layer, trace[t, layer])
    history = kept_history(trace, capacity, eviction(rule, capacity, trace))
    found = traffic_of(trace, history, guesses if guess else None)
    for name, expected in buffer.traffic()._asdict().items():
        assert np.array_equal(getattr(found, name), expected), name
    assert np.array_equal(history[-1], buffer.held)


def test_a_buffer_that_runs_in_the_model_counts_what_replay_counts(small):
    model, thresholds = small
    ffn, ids = sparse_ffn(model, thresholds), model.tokenizer.encode("tom and ann had a red ball.")
    recorder = Recorder.of(model)
    model.forward(ids, ffn=ffn, tap=recorder)
    for rule in ("lru", "lfu", "belady"):
        buffered = BufferedFFN(
            policy_selector(model, thresholds), PrefetchBuffer(2, 12, 4, eviction(rule, 4, recorder.needed))
        )
        model.forward(ids, ffn=buffered)
        expected = traffic_of(recorder.needed, kept_history(recorder.needed, 4, eviction(rule, 4, recorder.needed)))
        assert all(np.array_equal(a, b) for a, b in zip(buffered.buffer.traffic(), expected, strict=True))


def test_the_working_space_is_what_lies_beside_the_kept_by_hand():
    history = np.zeros((3, 2, 6), bool)
    trace, guessed = np.zeros((2, 2, 6), bool), np.zeros((2, 2, 6), bool)
    trace[0, 0, :3], trace[1, 1, :2] = True, True  # 3 missed; 2 needed of which 1 was guessed
    guessed[0, 1, :1], guessed[1, 0, 2:4], guessed[1, 1, 1:3] = True, True, True  # 1, 2 and 2 fetched ahead
    traffic = traffic_of(trace, history, guessed)
    # a layer ahead: 3 missed + 1 for layer 1; then 2 at layer 0 + 2 for layer 1; then 1 missed + 2 there
    assert working_space(traffic, "layer") == 4
    # a token ahead: at layer 0, 3 missed + 1 waiting for layer 1 + 2 for the next token's layer 0
    assert working_space(traffic, "token") == 6


@pytest.mark.parametrize("lookahead", ["layer", "token"])
@pytest.mark.parametrize("guess", [False, True])
def test_every_row_has_its_baselines_and_belady_is_never_beaten(lookahead, guess):
    rng = np.random.default_rng(0)
    trace = rng.random((20, 3, 16)) < rng.random(16) ** 2
    guessed = rng.random(trace.shape) < 0.3 if guess else None
    work = work_of(tiny.model())
    known = (rng.random((9, 3, 16)) < 0.4).mean(axis=0)
    rows = list(replay(trace, work, (0, 4, 8, 99), ReplaySettings(hot_frequencies=known), guessed, lookahead))
    assert [row["capacity"] for row in rows[::6]] == [0, 4, 8, 16]
    assert [row["keeper"] for row in rows[:6]] == ["lru", "lfu", "window-4", "hot", "random", "belady"]
    for row in rows:
        assert row["hit_rate"] <= row["belady"] + 1e-12 and row["lru"] <= row["belady"] + 1e-12
        assert row["bytes_per_token"] >= row["belady_bytes"] - 1e-9
        assert row["capacity_share"] == row["capacity"] / 16 and row["dense_bytes"] == 3 * 16 * work.neuron_bytes
        assert row["guesses"] == (lookahead if guess else None)
        if row["keeper"] in ("lru", "belady", "random"):
            assert row["hit_rate"] == row[row["keeper"]]
            for own, beside in (
                ("bytes_per_token", "bytes"),
                ("seconds_per_token", "seconds"),
                ("stall_share", "stall"),
            ):
                assert guess or row[own] == row[f"{row['keeper']}_{beside}"]
    none, *_, full = rows[::6]
    assert none["hit_rate"] == none["lru"] == none["belady"] == none["random"] == 0
    cold = trace.any(axis=0).sum() * work.neuron_bytes / 20
    assert full["bytes_per_token"] == pytest.approx(cold) or guess


def test_random_is_capacity_over_n_on_a_long_trace():
    rng = np.random.default_rng(1)
    trace = rng.random((30, 4, 64)) < rng.random((4, 64)) ** 2
    rates = [
        traffic_of(trace, kept_history(trace, 16, random_set(4, 64, 16, np.random.default_rng(seed)))).hit_rate
        for seed in range(60)
    ]
    assert abs(np.mean(rates) - 16 / 64) < 4 * np.std(rates) / np.sqrt(60)


def test_frequencies_are_counted_and_hot_needs_them():
    trace = np.array([[[1, 0, 1]], [[1, 0, 0]]], bool)
    assert frequencies(trace).tolist() == [[1.0, 0.0, 0.5]]
    assert hot(frequencies(trace), 2).start.tolist() == [[True, False, True]]
    with pytest.raises(MinillmError, match="frequencies are none"):
        ReplaySettings().eviction("hot", 2, 1, 3)
    with pytest.raises(MinillmError, match="expected \\[1, 3\\]"):
        ReplaySettings(hot_frequencies=np.zeros((1, 4))).eviction("hot", 2, 1, 3)
    assert [row["keeper"] for row in replay(trace, work_of(tiny.model()), [1], ReplaySettings(("hot", "lru")))] == [
        "lru"
    ]


# ---- where guesses matter --------------------------------------------------------------------------------------------


def test_prediction_stops_mattering_where_it_saves_less_than_the_tolerance_and_ever_after():
    def rows(seconds):
        return [{"capacity": c, "seconds_per_token": s} for c, s in zip((0, 1, 2, 3), seconds, strict=True)]

    assert enough(rows([10, 8, 6, 4]), rows([5, 7.99, 5, 3.99])) == 3
    assert enough(rows([10, 8, 6, 4]), rows([10, 8, 7, 4])) == 0  # wrong guesses may cost time
    assert enough(rows([10, 8, 6, 4]), rows([5, 5, 5, 3])) is None
    with pytest.raises(MinillmError, match="same capacities"):
        enough(rows([1, 1, 1, 1]), rows([1, 1, 1, 1])[1:])


def test_on_a_device_that_computes_slowly_a_perfect_guess_hides_all_but_the_first_layer():
    trace = np.random.default_rng(0).random((10, 2, 8)) < 0.5
    slow = Device("slow processor", bandwidth=1e12, latency=0, rate=1)
    plain, guessed = (
        next(replay(trace, work_of(tiny.model()), [0], ReplaySettings(["lru"], device=slow), g)) for g in (None, trace)
    )
    assert 0 < guessed["stall_share"] < 0.8 * plain["stall_share"]
