"""What a buffer is worth: rows of a model, and the table against the replay that it is made of."""

import numpy as np
import pytest
import tiny
from traces import guesser

from minillm.errors import MinillmError
from minillm.predictors.ahead import Ahead
from minillm.predictors.oracle import Oracle
from minillm.predictors.select import sparse_ffn
from minillm.predictors.sign import Sign
from minillm.predictors.workshop import Workshop
from minillm.prefetch.clock import Device
from minillm.prefetch.record import Recorder
from minillm.prefetch.replay import ReplaySettings
from minillm.sparsity.calibrate import calibrate
from minillm.sparsity.selected import SelectedFFN
from minillm.study.buffers import (
    ALL,
    OWN,
    REPLAY_COLUMNS,
    TABLE_COLUMNS,
    TABLE_NAMES,
    FetchPlan,
    buffer_rows,
    plan_of,
    plans_of,
    prefetch_rows,
    readable,
    stored_size,
    when_it_matters,
)
from minillm.tables import text_table
from minillm.transformer.evaluation import perplexity
from minillm.transformer.texts import Sample

TRAINING = [f"{story} And then he saw {i} red balls." for i in range(3) for story in tiny.STORIES]
TEST = tiny.STORIES
SHARES = (0.0, 0.5, 1.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.loaded(tmp_path_factory.mktemp("buffer") / "model", hidden_size=16, intermediate_size=24)


@pytest.fixture(scope="module")
def thresholds(model):
    return calibrate(model, TRAINING, "mid", 0.5, by="neuron")


@pytest.fixture(scope="module")
def plans(model, thresholds):
    workshop = Workshop(model, thresholds, TRAINING[:9], TRAINING[9:], rank=3)
    return plans_of(workshop, ["shadow-4", "previous-token", "oracle"], 0.5)


@pytest.fixture(scope="module")
def rows(model, thresholds, plans):
    frequencies = np.random.default_rng(0).random((2, 24))
    settings = ReplaySettings(shares=SHARES, hot_frequencies=frequencies)
    return list(buffer_rows(model, thresholds, Sample(TEST), plans, settings, dropping=plans[1:2]))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(model in float32, thresholds of mid at half of the neurons)."""
    model = tiny.loaded(tmp_path_factory.mktemp("small") / "model", "float32")
    return model, calibrate(model, tiny.STORIES[:2], "mid", 0.5, by="neuron")


# ---- rows of a model -------------------------------------------------------------------------------------------------


def test_the_role_both_records_the_predictors_mask_twice_and_select_once(small):
    model, thresholds = small
    for role in ("select", "both"):
        select, guess = FetchPlan(guesser(model), role).selectors(model, thresholds)
        ffn, recorder = SelectedFFN(select, guess=guess), Recorder.of(model)
        model.forward(model.tokenizer.encode("a dog saw the sea."), ffn=ffn, tap=recorder)
        assert (recorder.guessed is None) == (role == "select")
        assert role == "select" or np.array_equal(recorder.guessed, recorder.needed)


def test_a_plan_without_a_guess_to_prefetch_or_of_another_role_is_refused_and_an_oracle_works_for_free(small):
    model, thresholds = small
    for role in ("prefetch", "both"):
        with pytest.raises(MinillmError, match=f"role {role} needs a guess"):
            FetchPlan(role=role).selectors(model, thresholds)
    with pytest.raises(MinillmError, match="role is 'guess', expected one of select, prefetch, both"):
        FetchPlan(guesser(model), "guess").selectors(model, thresholds)
    assert FetchPlan().own_work(2) == FetchPlan(Oracle(model, thresholds)).own_work(2) == 0
    assert FetchPlan(Sign.fit(model)).own_work(2) == np.mean([Sign.fit(model).multiply_adds(i) for i in range(2)]) > 0


def test_rows_of_a_model_carry_the_perplexity_of_what_was_computed(small):
    model, thresholds = small
    texts = tiny.STORIES[2:]
    plans = [
        FetchPlan(),
        FetchPlan(guesser(model), "prefetch", "token"),
        FetchPlan(guesser(model)),
        FetchPlan(Oracle(model, thresholds), "both"),
    ]
    rows = list(prefetch_rows(model, thresholds, Sample(texts), plans, ReplaySettings(("lru", "random"), SHARES)))
    exact, watched, inside, perfect = (rows[i : i + 6] for i in range(0, 24, 6))
    assert [row["role"] for row in rows[::6]] == ["select", "prefetch", "select", "both"]
    cut = perplexity(model, texts, ffn=sparse_ffn(model, thresholds)).perplexity
    predicted = sparse_ffn(model, thresholds, predictor=guesser(model))
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
    assert [p.lookaheads for p in (sign, ahead, guesser(model))] == [(), ("layer",), ("layer", "token")]
    for predictor in (sign, ahead):
        predictor.cutoffs = np.zeros(2)
    for plan in (FetchPlan(sign, "both"), FetchPlan(sign, "prefetch", "token"), FetchPlan(ahead, "both", "token")):
        with pytest.raises(MinillmError, match="cannot guess one"):
            next(prefetch_rows(model, thresholds, Sample(tiny.STORIES[2:]), [plan]))
    assert (
        next(prefetch_rows(model, thresholds, Sample(tiny.STORIES[2:]), [FetchPlan(ahead, "both")]))["late_bytes"] == 0
    )


def test_dropping_is_scored_anew_and_is_exact_with_room_for_all(small):
    model, thresholds = small
    texts, everything = tiny.STORIES[2:], np.full((2, 12), 0.5)
    settings = ReplaySettings(("lru", "hot", "belady"), SHARES, hot_frequencies=everything, miss="drop")
    rows = list(prefetch_rows(model, thresholds, Sample(texts), settings=settings))
    assert [(row["keeper"], row["capacity"]) for row in rows] == [(k, c) for c in (0, 6, 12) for k in ("lru", "hot")]
    cut = perplexity(model, texts, ffn=sparse_ffn(model, thresholds)).perplexity
    assert rows[-1]["perplexity"] == pytest.approx(cut, rel=1e-5) and rows[-1]["dropped_share"] == 0
    assert rows[0]["dropped_share"] == 1 and rows[0]["bytes_per_token"] == 0
    assert len({row["perplexity"] for row in rows[::2]}) == 3
    assert all(row["hit_rate"] <= row["belady"] + 1e-12 for row in rows)
    assert all(row["stall_share"] == 0 for row in rows if row["keeper"] == "hot")


# ---- the table -------------------------------------------------------------------------------------------------------


def test_a_plan_says_what_each_predictor_can_do(model, thresholds, plans):
    shop = Workshop(model, thresholds, TRAINING[:9], TRAINING[9:], rank=3)
    found = {name: plan_of(shop.make(name))[1:] for name in ("chance", "static", "learned", "learned-ahead", "ahead-2")}
    assert found["chance"] == found["static"] == ("prefetch", "token")
    assert found["learned"] == ("select", "layer") and found["learned-ahead"] == found["ahead-2"] == ("both", "layer")
    assert [plan[1:] for plan in plans[1:]] == [("select", "layer"), ("prefetch", "token"), ("both", "layer")]
    assert all(plan.predictor.cutoffs is not None for plan in plans[1:])


def test_rows_are_those_of_the_replay_with_all_neurons_before_them(model, thresholds, plans, rows):
    assert [row["way"] for row in rows[::3]] == [
        ALL, OWN, "shadow 4-bit", f"{OWN}, guess: previous-token", "oracle", "shadow 4-bit", "shadow 4-bit",
    ]  # fmt: skip
    settings = ReplaySettings(("lru",), SHARES)  # loaded in float64, its file holds float32
    expected = list(prefetch_rows(model, thresholds, Sample(TEST), plans, settings))
    assert stored_size(model) == 4 and {row["neuron_bytes"] for row in expected} == {3 * 4 * model.config.hidden_size}
    for row, theirs in zip(rows[3:15], expected, strict=True):
        assert {key: row[key] for key in theirs} == theirs
    assert {row["keeper"] for row in rows[:15]} == {"lru"}
    assert [row["keeper"] for row in rows[15:]] == ["lru", "hot"] * 3
    for rows_shown, columns in ((rows, TABLE_COLUMNS), ([readable(row) for row in expected], REPLAY_COLUMNS)):
        table = text_table(rows_shown, columns, TABLE_NAMES)
        assert "shadow 4-bit" in table and max(map(len, table.splitlines())) <= 100


def test_every_row_carries_its_baselines_and_adds_up(rows):
    for row in rows:
        assert row["belady"] >= row["lru"] - 1e-12 and row["belady kB"] <= row["lru kB"] + 1e-12
        assert row["kB"] == pytest.approx(row["bytes_per_token"] / 1e3)
        assert row["stall ms"] == pytest.approx(1e3 * row["seconds_per_token"] * row["stall_share"])
        assert row["fast kB"] == pytest.approx((2 * row["capacity"] * 3 * 16 * 4 + row["own_bytes"]) / 1e3)


def test_where_nothing_is_known_the_buffer_saves_its_own_size_and_nothing_else(model, rows):
    dense, tokens = perplexity(model, TEST).perplexity, rows[0]["tokens"]
    for row, share in zip(rows[:3], SHARES, strict=True):
        assert row["hit_rate"] == pytest.approx(share * (tokens - 1) / tokens)  # cold at first
        assert row["bytes_per_token"] == pytest.approx(row["dense_bytes"] * (1 - row["hit_rate"]))
        assert row["perplexity"] == dense


def test_what_waits_is_exact_and_what_drops_is_measured(rows):
    for name in (OWN, "oracle", f"{OWN}, guess: previous-token"):
        assert len({row["perplexity"] for row in rows if row["way"] == name}) == 1
    own, oracle = (next(row for row in rows if row["way"] == name) for name in (OWN, "oracle"))
    assert own["perplexity"] == oracle["perplexity"] != own["dense_perplexity"]
    waiting = {row["perplexity"] for row in rows if row["way"] == "shadow 4-bit" and row["miss"] == "wait"}
    dropping = {row["perplexity"] for row in rows if row["miss"] == "drop"}
    missing = {row["perplexity"] for row in rows if row["miss"] == "drop" and row["capacity"] < 24}  # of 24 neurons
    assert len(waiting) == 1 and len(dropping) >= 3 and missing and not waiting & missing
    assert all(row["stall_share"] == 0 for row in rows if row["miss"] == "drop" and row["keeper"] == "hot")


def plain(name, seconds, guesses=None, lru=None, role="select"):
    """Rows with only what the sentences look at."""
    lru = lru or seconds
    return [
        {"way": name, "predictor": name, "role": role, "guesses": guesses, "miss": "wait", "keeper": "lru"}
        | {"capacity": 10 * i, "seconds_per_token": s, "lru_seconds": r}
        for i, (s, r) in enumerate(zip(seconds, lru, strict=True))
    ]


def test_the_sentences_say_from_where_on_nothing_is_gained():
    dense = plain(ALL, [0.004, 0.003, 0.002, 0.001])
    early = plain("ahead", [0.0019, 0.002, 0.000999, 0.001], "layer", [0.002, 0.002, 0.001, 0.001], "both")
    known, which = when_it_matters([*dense, *early])
    saved = "its being known early saves less than 1% of the time; below, up to 5% of 2 ms per token (at 0)"
    assert known == f"ahead: from 10 neurons per layer on, {saved}"
    assert which.startswith("ahead: from 30 neurons per layer on, knowing which neurons are needed saves less than 1%")
    assert which.endswith("below, up to 52% of 4 ms per token (at 0)")
    (never,) = when_it_matters([*dense, *plain("free", [0.002, 0.001, 0.001, 0.0005])])
    saved = "knowing which neurons are needed saves 1% of the time or more; at most 67% of 3 ms per token (at 10)"
    assert never == f"free: even at the largest capacity tried, {saved}"
    (everywhere,) = when_it_matters(plain("guess", [2, 1], "token", [2, 1], "prefetch"))
    assert everywhere == "guess: from 0 neurons per layer on, its being known early saves less than 1% of the time"
    assert when_it_matters(plain("alone", [2, 1])) == []


def test_a_perfect_guess_matters_where_computing_takes_as_long_as_fetching(model, thresholds, plans):
    slow = Device("slow processor", bandwidth=1e12, latency=0, rate=1e3)
    found = list(
        buffer_rows(model, thresholds, Sample(TEST), [plans[3]], ReplaySettings(shares=(0.0, 1.0), device=slow))
    )
    assert found[2]["seconds_per_token"] < found[2]["lru_seconds"] and found[2]["device"] == "slow processor"
