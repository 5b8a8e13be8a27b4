"""Blocks of neurons: perplexity measured, speeds joined, and the point chosen within a limit."""

import json

import fuzz
import pytest
import tiny
from speeds import SPEEDS

from minillm.bench.sparse import bench_ffn
from minillm.errors import MinillmError
from minillm.prefetch.clock import LARGE, ffn_share, whole_token
from minillm.prefetch.kernels import expected_speedup
from minillm.study.blocks import (
    BLOCK_COLUMNS,
    JOINT_COLUMNS,
    SPEED_COLUMNS,
    BlockSettings,
    best_point,
    block_rows,
    bounds_in_words,
    cheaper_points,
    expected_speeds,
    joint_rows,
    joint_table,
    read_speeds,
)
from minillm.tables import text_table
from minillm.transformer.evaluation import perplexity
from minillm.transformer.texts import Sample

TRAINING = [f"{story} And then he saw {i} red balls." for i in range(3) for story in tiny.STORIES]
TEST = tiny.STORIES


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.loaded(tmp_path_factory.mktemp("blocks") / "model", hidden_size=16, intermediate_size=24)


def test_the_rows_of_the_study_show_that_clustering_keeps_more(tmp_path):
    model = tiny.loaded(tmp_path / "model")
    rows = block_rows(model, tiny.STORIES[:2], Sample(tiny.STORIES[2:]), BlockSettings([1, 4], 4000))
    assert [(row["group"], row["order"]) for row in rows] == [(1, "stored"), (4, "stored"), (4, "clustered")]
    assert rows[0]["kept_energy"] > rows[2]["kept_energy"] > rows[1]["kept_energy"]
    assert all(list(row) == list(BLOCK_COLUMNS) for row in rows)
    assert all(row["increase"] != row["increase_with_means"] for row in rows)


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
    assert {row["method"] for row in expected_speeds((1, 8), (0.5,))} == {"gather", "tiled", "blocks", "routed"}


def point(group, speedup, increase, means=False):
    row = {"group": group, "order": "clustered", "means": means, "sparsity": 0.5, "increase": increase}
    return row | {"method": "blocks", "speedup": speedup, "whole_token": 1.1, "perplexity": 1.0}


def test_the_bound_is_the_fastest_point_within_the_limit():
    rows = [point(1, 1.2, 0.002), point(8, 1.5, 0.009), point(32, 1.9, 0.04, True), point(32, 9, 0.2)]
    rows.append(point(4, None, 0))
    assert best_point(rows, 0.01)["speedup"] == 1.5 and best_point(rows, 0.05)["speedup"] == 1.9
    assert best_point(rows, 0.01, single=True)["speedup"] == 1.2 and best_point(rows, 0.001) is None
    first, second = bounds_in_words(rows, (0.001, 0.05))
    assert first == "Bound for at most +0% of perplexity: nothing is faster than the dense FFN"
    assert "Bound for at most +5% of perplexity: blocks of 32, clustered, means in place" in second
    assert "FFN 1.90 times as fast, whole token 1.10, perplexity +4.0%; the bound of single neurons: " in second
    assert "choose" not in first + second  # an oracle's mask recommends nothing


DENSE_ROW = {"method": "dense", "group": 1, "sparsity": 0.0, "speedup": 1.0, "low": 0.9, "high": 1.1}
RESULT = {"what": "ffn", "shape": "1 x 2", "ffn_share": 0.5, "environment": {"cpu": "x"}, "rows": [DENSE_ROW, *SPEEDS]}
RESULT["rows"][2] = {key: value for key, value in SPEEDS[1].items() if key != "whole_token"}


def test_speeds_are_read_alone_or_in_their_result(tmp_path):
    for content in (SPEEDS, RESULT):
        text = json.dumps(content)
        (tmp_path / "speed.json").write_text("\ufeff" + text, encoding="utf-8")
        found = read_speeds(tmp_path / "speed.json")
        assert [row["speedup"] for row in found] == [0.6, 1.2, 1.8]
        assert found[0].get("shape") == (None if isinstance(content, list) else "1 x 2")
    with pytest.raises(MinillmError, match="absent.json: is missing"):
        read_speeds(tmp_path / "absent.json")


def test_an_oracle_s_row_takes_no_speed_that_holds_a_router_s_time(model):
    routed = SPEEDS[2] | {"method": "routed", "speedup": 9.0, "low": 9.0, "high": 9.0}
    for speeds, expected in (([*SPEEDS, routed], 1.8), ([routed], None)):
        (row, *_) = joint_rows(model, TRAINING, Sample(TEST), speeds, BlockSettings((4,), 100), (0.5,))
        assert row["speedup"] == expected


def test_what_the_bench_writes_is_read(tmp_path):
    result = bench_ffn((16, 64), (0.5,), (4,), rounds=1, cache=0)
    (tmp_path / "speed.json").write_text(json.dumps(result), encoding="utf-8")
    found = read_speeds(tmp_path / "speed.json")
    about = {"shape": result["shape"], "ffn_share": result["ffn_share"]}
    assert found == [about | row for row in result["rows"][1:]]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("[1]", r"row 1 is 1, expected an object"),
        ("{}", "rows is None, expected the rows of"),
        ('{"rows": [], "shape": ""}', "shape is ''"),
        ('{"rows": [], "speed": 1}', "the result holds 'speed'"),
        ("nothing", "is not valid JSON"),
        ('[{"method": "gather"}]', "row 1 has no group"),
        ([SPEEDS[0] | {"sparsity": 1.5}], "row 1: sparsity is 1.5"),
        ([SPEEDS[0] | {"speedup": float("nan")}], "not finite"),
        ([SPEEDS[0] | {"speedup": 0.8}], "row 1: low, speedup and high are 0.5, 0.8 and 0.7"),
        ([SPEEDS[0] | {"speed": 0.8}], "row 1 holds 'speed'"),
        ([SPEEDS[0] | {"group": 4}], "row 1: group is 4 of gather"),
        ([SPEEDS[0] | {"method": "routed"}], "row 1: group is 1 of routed"),
        ([SPEEDS[0], SPEEDS[0]], "row 2: gather, group 1, sparsity 0.5 was there before"),
        ([SPEEDS[1] | {"ffn_share": 0.5}], "row 1: whole_token is 1.1, expected 1.09"),
    ],
)
def test_a_file_that_holds_no_speeds_is_one_sentence(tmp_path, wrong, says):
    (tmp_path / "speed.json").write_text(wrong if isinstance(wrong, str) else json.dumps(wrong), encoding="utf-8")
    with pytest.raises(MinillmError, match=rf"speed\.json.*{says}"):
        read_speeds(tmp_path / "speed.json")


def valid_speeds(rows):
    assert len({(row["method"], row["group"], row["sparsity"]) for row in rows}) == len(rows)
    for row in rows:
        assert set(row) <= set(SPEED_COLUMNS) and 0 <= row["sparsity"] <= 1 and row["group"] >= 1
        assert 0 < row["low"] <= row["speedup"] <= row["high"] < 1e9


@fuzz.examples
def test_a_broken_file_of_speeds_is_one_sentence_or_good_speeds(examples, tmp_path):
    counts = fuzz.holds(examples, fuzz.json_files(RESULT), tmp_path / "speed.json", read_speeds, valid_speeds)
    assert min(counts["accepted"], counts["refused"]) > examples / 50


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
