"""Replay: what was recorded is what was needed, and a replayed row is what the buffer itself would have counted."""

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.errors import MinillmError
from minillm.predictors.ahead import Ahead
from minillm.predictors.baselines import PreviousToken, Static
from minillm.predictors.oracle import Oracle
from minillm.predictors.select import Predicted, sparse_ffn
from minillm.predictors.sign import Sign
from minillm.prefetch.buffer import PrefetchBuffer
from minillm.prefetch.clock import Device, work_of
from minillm.prefetch.eviction import belady, hot, random_set
from minillm.prefetch.feedforward import BufferedFFN
from minillm.prefetch.record import Recorder, frequencies
from minillm.prefetch.replay import ROW_COLUMNS, ReplaySettings, enough, kept_history, replay, traffic_of, working_space
from minillm.sparsity.calibrate import calibrate
from minillm.sparsity.selected import SelectedFFN
from minillm.sparsity.sparse import policy_selector
from minillm.study.buffers import FetchPlan, prefetch_rows
from minillm.tables import text_table
from minillm.trace import Trace
from minillm.transformer.evaluation import perplexity
from minillm.transformer.generation import generate
from minillm.transformer.texts import Sample

quick = settings(max_examples=20, derandomize=True, deadline=None)
RULES = ("lru", "lfu", "window-2", "hot", "random", "belady")
HALF = (0.0, 0.5, 1.0)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(model in float32, thresholds of mid at half of the neurons)."""
    model = tiny.loaded(tmp_path_factory.mktemp("small") / "model", "float32")
    return model, calibrate(model, tiny.STORIES[:2], "mid", 0.5, by="neuron")


def guesser(model, thresholds) -> PreviousToken:
    """What the token before needed: a guess that can be made a token ahead."""
    layers, neurons = model.config.num_hidden_layers, model.config.intermediate_size
    static = Static((layers, model.config.hidden_size, neurons), np.full((layers, neurons), 0.5, np.float32))
    found = PreviousToken(static)
    found.cutoffs = np.full(layers, 0.9)
    return found


def keeper(name: str, capacity: int, trace: np.ndarray):
    if name == "belady":
        return belady(trace)
    return ReplaySettings(hot_frequencies=trace.mean(axis=0), seed=5).eviction(name, capacity, *trace.shape[1:])


# ---- recording -------------------------------------------------------------------------------------------------------


def test_the_record_is_the_masks_of_the_pass(small):
    model, thresholds = small
    ffn = sparse_ffn(model, thresholds)
    recorder, ids = Recorder.of(model), model.tokenizer.encode("the cat sat.")
    with Trace(keep="*.mlp.mask") as trace:
        model.forward(ids, ffn=ffn, tap=lambda name, value: recorder(name, trace(name, value)))
    expected = np.stack([trace[f"blocks.{i}.mlp.mask"] for i in range(2)], axis=1)
    assert np.array_equal(recorder.needed, expected) and recorder.guessed is None


def test_a_generation_is_recorded_prompt_and_tokens_alike(small):
    model, thresholds = small
    ffn = sparse_ffn(model, thresholds)
    recorder, ids = Recorder.of(model), model.tokenizer.encode("a dog")
    steps = list(generate(model, ids, 5, ffn=ffn, tap=recorder, stop_at_eos=False))
    whole = Recorder.of(model)
    model.forward([*ids, *(step.token for step in steps[:-1])], ffn=ffn, tap=whole)
    assert np.array_equal(recorder.needed, whole.needed) and len(whole.needed) == len(ids) + 4


def test_in_the_role_of_a_prefetcher_a_predictor_changes_nothing_but_the_guesses(small):
    model, thresholds = small
    oracle = perplexity(model, tiny.STORIES[2:], ffn=sparse_ffn(model, thresholds, predictor=Oracle(model, thresholds)))
    alone = Recorder.of(model)
    perplexity(model, tiny.STORIES[2:], ffn=sparse_ffn(model, thresholds), tap=alone)
    guess = Predicted(guesser(model, thresholds), thresholds)
    ffn, recorder = SelectedFFN(policy_selector(model, thresholds), guess=guess), Recorder.of(model)
    found = perplexity(model, tiny.STORIES[2:], ffn=ffn, tap=recorder)
    assert found.nll == oracle.nll and np.array_equal(recorder.needed, alone.needed)
    first = {0, next(t for t in range(1, 99) if not recorder.guessed[t].any())}  # of each text: no token before
    for t in range(1, len(recorder.needed)):
        if t not in first:
            assert np.array_equal(recorder.guessed[t], recorder.needed[t - 1])


def test_the_role_both_records_the_predictors_mask_twice_and_select_once(small):
    model, thresholds = small
    for role in ("select", "both"):
        select, guess = FetchPlan(guesser(model, thresholds), role).selectors(model, thresholds)
        ffn, recorder = SelectedFFN(select, guess=guess), Recorder.of(model)
        model.forward(model.tokenizer.encode("a dog saw the sea."), ffn=ffn, tap=recorder)
        assert (recorder.guessed is None) == (role == "select")
        assert role == "select" or np.array_equal(recorder.guessed, recorder.needed)


def test_a_pass_without_masks_and_a_policy_that_cuts_inputs_are_refused(small):
    model, _ = small
    recorder = Recorder(2, 12)
    model.forward([1, 2], tap=recorder)
    with pytest.raises(MinillmError, match="no mask"):
        recorder.needed  # noqa: B018
    with pytest.raises(MinillmError, match="whole neurons"):
        policy_selector(model, calibrate(model, tiny.STORIES[:2], "teal", 0.5))


# ---- replaying -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@quick
@given(seed=st.integers(0, 10**6), capacity=st.integers(0, 9), guess=st.booleans())
def test_all_layers_at_once_count_what_the_buffer_counts_request_by_request(rule, seed, capacity, guess):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 9, 3))
    trace, guesses = rng.random(shape) < 0.4, rng.random(shape) < 0.4
    capacity = min(capacity, shape[2])
    buffer = PrefetchBuffer(shape[1], shape[2], capacity, keeper(rule, capacity, trace))
    for t in range(shape[0]):
        for layer in range(shape[1]):
            if guess:
                buffer.prefetch(layer, guesses[t, layer])
            buffer.request(layer, trace[t, layer])
    history = kept_history(trace, capacity, keeper(rule, capacity, trace))
    found = traffic_of(trace, history, guesses if guess else None)
    for name, expected in buffer.traffic()._asdict().items():
        assert np.array_equal(getattr(found, name), expected), name
    assert np.array_equal(history[-1], buffer.held)


def test_a_buffer_that_runs_in_the_model_counts_what_replay_foretells(small):
    model, thresholds = small
    ffn, ids = sparse_ffn(model, thresholds), model.tokenizer.encode("tom and ann had a red ball.")
    recorder = Recorder.of(model)
    model.forward(ids, ffn=ffn, tap=recorder)
    for rule in ("lru", "lfu", "belady"):
        buffered = BufferedFFN(
            policy_selector(model, thresholds), PrefetchBuffer(2, 12, 4, keeper(rule, 4, recorder.needed))
        )
        model.forward(ids, ffn=buffered)
        expected = traffic_of(recorder.needed, kept_history(recorder.needed, 4, keeper(rule, 4, recorder.needed)))
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
    assert text_table(rows, ROW_COLUMNS).count("\n") == len(rows)


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


# ---- a model ---------------------------------------------------------------------------------------------------------


def test_rows_of_a_model_carry_the_perplexity_of_what_was_computed(small):
    model, thresholds = small
    texts = tiny.STORIES[2:]
    plans = [
        FetchPlan(),
        FetchPlan(guesser(model, thresholds), "prefetch", "token"),
        FetchPlan(guesser(model, thresholds)),
        FetchPlan(Oracle(model, thresholds), "both"),
    ]
    rows = list(prefetch_rows(model, thresholds, Sample(texts), plans, ReplaySettings(("lru", "random"), HALF)))
    exact, watched, inside, perfect = (rows[i : i + 6] for i in range(0, 24, 6))
    assert [row["role"] for row in rows[::6]] == ["select", "prefetch", "select", "both"]
    cut = perplexity(model, texts, ffn=sparse_ffn(model, thresholds)).perplexity
    predicted = sparse_ffn(model, thresholds, predictor=guesser(model, thresholds))
    assert {row["perplexity"] for row in exact} == {cut} == {row["perplexity"] for row in watched}
    assert {row["perplexity"] for row in inside} == {perplexity(model, texts, ffn=predicted).perplexity} != {cut}
    assert {row["dense_perplexity"] for row in rows} == {perplexity(model, texts).perplexity}
    for plain, guessed, bound in zip(exact, watched, perfect, strict=True):
        assert plain["hit_rate"] == guessed["hit_rate"] == bound["hit_rate"]
        assert plain["bytes_per_token"] == bound["bytes_per_token"] <= guessed["bytes_per_token"]
        assert bound["seconds_per_token"] <= plain["seconds_per_token"] and bound["late_bytes"] == 0


def test_a_predictor_that_needs_the_layers_own_input_may_not_guess_ahead_of_it(small):
    model, thresholds = small
    sign, ahead = Sign.fit(model), Ahead.fit(model, thresholds, tiny.STORIES[:2], 4)
    assert [p.lookaheads for p in (sign, ahead, guesser(model, thresholds))] == [(), ("layer",), ("layer", "token")]
    for predictor in (sign, ahead):
        predictor.cutoffs = np.zeros(2)
    for way in (FetchPlan(sign, "both"), FetchPlan(sign, "prefetch", "token"), FetchPlan(ahead, "both", "token")):
        with pytest.raises(MinillmError, match="cannot guess one"):
            next(prefetch_rows(model, thresholds, Sample(tiny.STORIES[2:]), [way]))
    assert (
        next(prefetch_rows(model, thresholds, Sample(tiny.STORIES[2:]), [FetchPlan(ahead, "both")]))["late_bytes"] == 0
    )


def test_dropping_is_scored_anew_and_is_exact_with_room_for_all(small):
    model, thresholds = small
    texts, everything = tiny.STORIES[2:], np.full((2, 12), 0.5)
    settings = ReplaySettings(("lru", "hot", "belady"), HALF, hot_frequencies=everything, miss="drop")
    rows = list(prefetch_rows(model, thresholds, Sample(texts), settings=settings))
    assert [(row["keeper"], row["capacity"]) for row in rows] == [(k, c) for c in (0, 6, 12) for k in ("lru", "hot")]
    cut = perplexity(model, texts, ffn=sparse_ffn(model, thresholds)).perplexity
    assert rows[-1]["perplexity"] == pytest.approx(cut, rel=1e-5) and rows[-1]["dropped_share"] == 0
    assert rows[0]["dropped_share"] == 1 and rows[0]["bytes_per_token"] == 0
    assert len({row["perplexity"] for row in rows[::2]}) == 3
    assert all(row["hit_rate"] <= row["belady"] + 1e-12 for row in rows)
    assert all(row["stall_share"] == 0 for row in rows if row["keeper"] == "hot")


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
