"""What a buffer is worth: the table against the replay it is made of, and the page of speed and perplexity."""

import json

import numpy as np
import pytest
import tiny

from minillm.errors import MinillmError
from minillm.predictors.workshop import Workshop
from minillm.prefetch.clock import LARGE, Device, ffn_share, whole_token
from minillm.prefetch.kernels import expected_speedup
from minillm.prefetch.replay import ReplaySettings
from minillm.sparsity.calibrate import calibrate
from minillm.study.blocks import (
    JOINT_COLUMNS,
    BlockSettings,
    best_point,
    block_rows,
    cheaper_points,
    expected_speeds,
    joint_rows,
    joint_table,
    read_speeds,
    which_point,
)
from minillm.study.buffers import (
    ALL,
    OWN,
    TABLE_COLUMNS,
    buffer_rows,
    plan_of,
    plans_of,
    prefetch_rows,
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
def ways(model, thresholds):
    workshop = Workshop(model, thresholds, TRAINING[:9], TRAINING[9:], rank=3)
    return plans_of(workshop, ["shadow-4", "previous-token", "oracle"], 0.5)


@pytest.fixture(scope="module")
def rows(model, thresholds, ways):
    often = np.random.default_rng(0).random((2, 24))
    settings = ReplaySettings(shares=SHARES, hot_frequencies=often)
    return list(buffer_rows(model, thresholds, Sample(TEST), ways, settings, dropping=ways[1:2]))


# ---- the table -------------------------------------------------------------------------------------------------------


def test_a_way_says_what_each_predictor_can_do(model, thresholds, ways):
    shop = Workshop(model, thresholds, TRAINING[:9], TRAINING[9:], rank=3)
    found = {name: plan_of(shop.make(name))[1:] for name in ("chance", "static", "learned", "learned-ahead", "ahead-2")}
    assert found["chance"] == found["static"] == ("prefetch", "token")
    assert found["learned"] == ("select", "layer") and found["learned-ahead"] == found["ahead-2"] == ("both", "layer")
    assert [way[1:] for way in ways[1:]] == [("select", "layer"), ("prefetch", "token"), ("both", "layer")]
    assert all(way.predictor.cutoffs is not None for way in ways[1:])


def test_rows_are_those_of_the_replay_with_all_neurons_before_them(model, thresholds, ways, rows):
    assert [row["way"] for row in rows[::3]] == [
        ALL, OWN, "shadow 4-bit", f"{OWN}, guess: previous-token", "oracle", "shadow 4-bit", "shadow 4-bit",
    ]  # fmt: skip
    settings = ReplaySettings(("lru",), SHARES, bytes_per_number=4)  # loaded in float64, its file holds float32
    expected = list(prefetch_rows(model, thresholds, Sample(TEST), ways, settings))
    assert stored_size(model) == 4
    for row, theirs in zip(rows[3:15], expected, strict=True):
        assert {key: row[key] for key in theirs} == theirs
    assert {row["keeper"] for row in rows[:15]} == {"lru"}
    assert [row["keeper"] for row in rows[15:]] == ["lru", "hot"] * 3
    assert "shadow 4-bit" in text_table(rows, TABLE_COLUMNS)


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
    dense = plain(ALL, [4, 3, 2, 1])
    early = plain("ahead", [1.9, 2, 0.999, 1], "layer", [2, 2, 1, 1], "both")
    known, which = when_it_matters([*dense, *early])
    saved = "its being known early saves less than 1% of the time; below, up to 5% (at 0)"
    assert known == f"ahead: from 10 neurons per layer on, {saved}"
    assert which.startswith("ahead: from 30 neurons per layer on, knowing which neurons are needed saves less than 1%")
    assert which.endswith("below, up to 52% (at 0)")
    (never,) = when_it_matters([*dense, *plain("free", [2, 1, 1, 0.5])])
    saved = "knowing which neurons are needed saves 1% of the time or more; at most 67% (at 10)"
    assert never == f"free: even at the largest capacity tried, {saved}"
    (everywhere,) = when_it_matters(plain("guess", [2, 1], "token", [2, 1], "prefetch"))
    assert everywhere == "guess: from 0 neurons per layer on, its being known early saves less than 1% of the time"
    assert when_it_matters(plain("alone", [2, 1])) == []


def test_a_perfect_guess_matters_where_computing_takes_as_long_as_fetching(model, thresholds, ways):
    slow = Device("slow processor", bandwidth=1e12, latency=0, rate=1e3)
    found = list(
        buffer_rows(model, thresholds, Sample(TEST), [ways[3]], ReplaySettings(shares=(0.0, 1.0), device=slow))
    )
    assert found[2]["seconds_per_token"] < found[2]["lru_seconds"] and found[2]["device"] == "slow processor"


# ---- the page --------------------------------------------------------------------------------------------------------


SPEEDS = [
    {"method": "gather", "group": 1, "sparsity": 0.5, "speedup": 0.6, "low": 0.5, "high": 0.7},
    {"method": "tiled", "group": 1, "sparsity": 0.5, "speedup": 1.2, "low": 1.1, "high": 1.3, "whole_token": 1.1},
    {"method": "blocks", "group": 4, "sparsity": 0.5, "speedup": 1.8, "low": 1.7, "high": 1.9, "ffn_share": 0.5},
]  # fmt: skip


def test_each_row_joins_a_measured_perplexity_with_the_fastest_way(model):
    found = list(joint_rows(model, TRAINING, Sample(TEST), SPEEDS, BlockSettings((1, 4, 8), 100), (0.5,)))
    assert [(row["group"], row["order"], row["means"]) for row in found] == [
        (1, "stored", False), (1, "stored", True),
        (4, "stored", False), (4, "stored", True), (4, "clustered", False), (4, "clustered", True),
        (8, "stored", False), (8, "stored", True), (8, "clustered", False), (8, "clustered", True),
    ]  # fmt: skip
    theirs = block_rows(model, TRAINING, Sample(TEST), BlockSettings((1, 4, 8), 100), 0.5)
    assert [row["perplexity"] for row in found[::2]] == [row["perplexity"] for row in theirs]
    assert [row["increase"] for row in found[1::2]] == [row["increase_with_means"] for row in theirs]
    dense = perplexity(model, TEST).perplexity
    assert all(row["dense_perplexity"] == pytest.approx(dense) for row in found)
    assert (found[0]["method"], found[0]["speedup"], found[0]["whole_token"]) == ("tiled", 1.2, 1.1)
    assert found[2]["whole_token"] == pytest.approx(whole_token(1.8, 0.5)) and found[2]["ffn_share"] == 0.5
    assert found[6]["speedup"] is None and found[6]["method"] is None  # not measured, not made up
    assert len(cheaper_points(found)) == 3 and "clustered" in text_table(joint_table(found), JOINT_COLUMNS)


def test_without_a_measurement_the_table_of_the_kernels_stands_in(model):
    (row, *_) = joint_rows(model, TRAINING, Sample(TEST), None, BlockSettings((1,), 100), (0.9,))
    expected = expected_speedup((5632, 2048), 0.1)
    assert row["speedup"] == pytest.approx(max(expected["gather"], expected["tiled"]))
    assert "kernels.py" in row["speed_from"]
    assert row["whole_token"] == pytest.approx(whole_token(row["speedup"], ffn_share(LARGE)))
    assert row["whole_token"] < 1 / (1 - ffn_share(LARGE)) < row["speedup"]  # Amdahl's limit
    assert {row["method"] for row in expected_speeds((1, 8), (0.5,))} == {"gather", "tiled", "blocks"}


def point(group, speedup, increase, means=False):
    row = {"group": group, "order": "clustered", "means": means, "sparsity": 0.5, "increase": increase}
    return row | {"method": "blocks", "speedup": speedup, "whole_token": 1.1, "perplexity": 1.0}


def test_the_point_chosen_is_the_fastest_within_the_limit():
    rows = [point(1, 1.2, 0.002), point(8, 1.5, 0.009), point(32, 1.9, 0.04, True), point(32, 9, 0.2)]
    rows.append(point(4, None, 0))
    assert best_point(rows, 0.01)["speedup"] == 1.5 and best_point(rows, 0.05)["speedup"] == 1.9
    assert best_point(rows, 0.01, single=True)["speedup"] == 1.2 and best_point(rows, 0.001) is None
    first, second = which_point(rows, (0.001, 0.05))
    assert first == "For at most +0% of perplexity: nothing is faster than the dense FFN"
    assert "+5% of perplexity choose blocks of 32, clustered, means in place" in second
    assert "FFN 1.90 times as fast, whole token 1.10, perplexity +4.0%; the best of single neurons: " in second


def test_speeds_are_read_alone_or_in_their_result_and_nothing_else_is(tmp_path):
    for content in (SPEEDS, {"shape": "1 x 2", "ffn_share": 0.4, "rows": [{"method": "dense"}, *SPEEDS]}):
        (tmp_path / "speed.json").write_text(json.dumps(content), encoding="utf-8")
        found = read_speeds(tmp_path / "speed.json")
        assert [row["speedup"] for row in found] == [0.6, 1.2, 1.8]
        assert found[0].get("shape") == (None if isinstance(content, list) else "1 x 2")
    for wrong in ("[1]", "{}", "nothing", '[{"method": "gather"}]'):
        (tmp_path / "speed.json").write_text(wrong, encoding="utf-8")
        with pytest.raises(MinillmError, match="speed.json: cannot be read as speeds .* expected the JSON of `minillm"):
            read_speeds(tmp_path / "speed.json")
    with pytest.raises(MinillmError, match="absent.json: cannot be read"):
        read_speeds(tmp_path / "absent.json")


# ---- trained models --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.shared
def test_clustered_blocks_beat_the_trial_on_tinystories_656k(shared):
    """An independent trial kept half of the blocks at +6, +10, +16 and +24 % of perplexity."""
    import minillm
    from minillm.transformer.texts import first_tokens, split_documents

    model = minillm.load(shared / "models" / "tinystories-656k")
    training, valid = (
        split_documents((shared / "text" / f"tinystories-{part}.txt").read_text(encoding="utf-8"))
        for part in ("train", "valid")
    )
    test = first_tokens(model, valid, 10_000)
    rows = block_rows(model, training[:60], Sample(test), BlockSettings((4, 8, 16, 32), 3000))
    found = {row["group"]: row for row in rows if row["order"] == "clustered"}
    stored = {row["group"]: row for row in rows if row["order"] == "stored"}
    for group, trial in ((4, 0.06), (8, 0.10), (16, 0.16), (32, 0.24)):
        assert found[group]["increase"] < (trial if group > 4 else 1.05 * trial), group
        assert found[group]["increase_with_means"] < 0.9 * trial, group
        assert group == 4 or found[group]["increase"] < 0.8 * stored[group]["increase"], group
