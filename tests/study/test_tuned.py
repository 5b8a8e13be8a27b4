"""Tuned folders: their figures, over the right dense model, joined with the right speed."""

import json

import fuzz
import pytest
import tuned as made
from speeds import SPEEDS

from minillm.errors import MinillmError
from minillm.prefetch.clock import whole_token
from minillm.prefetch.kernels import expected_speedup, with_router
from minillm.study.tuned import TUNED_COLUMNS, reached_in_words, read_tuned, tuned_rows, tuned_table
from minillm.tables import text_table

ROUTED = SPEEDS[2] | {"method": "routed", "speedup": 1.5, "low": 1.4, "high": 1.6}


def rows_of(tmp_path, speeds=(*SPEEDS, ROUTED), **others):
    return list(tuned_rows([made.write(tmp_path / "tuned", made.about(4, 0.5, **others))], speeds))


def test_a_tuned_model_stands_over_the_control_and_the_others_over_the_dense_model(tmp_path):
    rows = rows_of(tmp_path)
    found = [(row["chosen_by"], row["tuned"], row["dense_perplexity"], row["speedup"]) for row in rows]
    assert found == [
        ("oracle", False, 10, 1.8), ("router", False, 10, 1.5), ("oracle", True, 8, 1.8), ("router", True, 8, 1.5),
    ]  # fmt: skip
    assert [row["increase"] for row in rows] == pytest.approx([0.1, 0.3, 0.05, 0.1])
    row = rows[-1]
    assert (row["model"], row["group"], row["sparsity"], row["control"]) == ("small", 4, 0.5, True)
    assert (row["minutes"], row["tokens"], row["method"]) == (1.5, 100, "routed")
    assert row["whole_token"] == pytest.approx(whole_token(1.5, 0.5)) and (row["low"], row["high"]) == (1.4, 1.6)
    text = text_table(tuned_table(rows), TUNED_COLUMNS, names=4)
    assert "tuned, router" in text and "+10.0%" in text and text.count("1.5 ") == 2  # minutes of tuned rows alone


def test_a_control_that_became_worse_is_no_excuse(tmp_path):
    fields = made.about(4, 0.5)
    fields["scores"][1]["perplexity"] = 12.0
    rows = list(tuned_rows([made.write(tmp_path / "tuned", fields)], SPEEDS))
    assert {row["dense_perplexity"] for row in rows} == {10.0} and rows[-1]["increase"] == pytest.approx(8.8 / 10 - 1)


def test_without_a_control_or_a_router_the_rest_is_there(tmp_path):
    rows = rows_of(tmp_path, control=False, scores=(11.0,))
    assert [(row["chosen_by"], row["control"], row["dense_perplexity"]) for row in rows] == [("oracle", False, 10)]
    assert reached_in_words(rows) == []


def test_without_a_measurement_the_table_of_the_kernels_stands_in(tmp_path):
    rows, shape = rows_of(tmp_path, None), (5632, 2048)
    blocks = expected_speedup(shape, 0.5, 4)["blocks"]
    assert [row["speedup"] for row in rows[:2]] == pytest.approx([blocks, with_router(blocks, shape, 4)])
    assert "kernels.py" in rows[0]["speed_from"]


def test_a_speed_that_was_not_measured_is_none_and_counts_for_no_limit(tmp_path):
    rows = rows_of(tmp_path, SPEEDS)
    assert [row["speedup"] for row in rows] == [1.8, None, 1.8, None]
    assert all("no tuned model with a router is faster" in sentence for sentence in reached_in_words(rows, (0.5,)))
    text_table(tuned_table(rows), TUNED_COLUMNS, names=4)


def test_the_fastest_tuned_router_within_a_limit_is_named(tmp_path):
    near, far = reached_in_words(rows_of(tmp_path), (0.09, 0.1 + 1e-9))
    assert near == "small, at most +9% of perplexity: no tuned model with a router is faster than the dense FFN"
    assert "blocks of 4, 50% left out, tuned for 1.5 minutes: FFN 1.50 times as fast" in far and "+10.0%" in far


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"block": None}, "block is missing, expected a folder by `minillm tune --block`"),
        ({"block": 1}, "block is 1, expected an integer from 2"),
        ({"format": "minillm-thresholds"}, "format is 'minillm-thresholds'"),
        ({"version": 2}, "version is 2, expected at most 1"),
        ({"sparsity": 1.5}, "sparsity is 1.5"),
        ({"scores": []}, r"scores is \[\], expected a list of rows"),
        ({"scores": [{"model": "cut", "perplexity": 2, "neurons cut": 0}]}, "scores has no row 'dense'"),
        ({"scores": [{"model": "dense", "perplexity": 0.5, "neurons cut": 0}]}, "scores: row 1: perplexity is 0.5"),
        ({"curve": [3]}, "curve: row 1 is 3"),
        ({"began_with": 1}, "model is 1"),
    ],
)
def test_another_folder_is_one_sentence(tmp_path, wrong, says):
    folder = made.write(tmp_path / "tuned", made.about(4, 0.5) | wrong)
    with pytest.raises(MinillmError, match=rf"training\.json.*{says}"):
        read_tuned(folder)


@fuzz.examples
def test_a_broken_file_is_one_sentence_or_good_figures(examples, tmp_path):
    def read(path):
        return list(tuned_rows([path.parent]))

    def good(rows):
        assert all(row["perplexity"] >= 1 and row["group"] >= 2 and 0 < row["sparsity"] <= 1 for row in rows)
        json.dumps(rows, allow_nan=False)

    counts = fuzz.holds(examples, fuzz.json_files(made.about(4, 0.5)), tmp_path / "training.json", read, good)
    assert min(counts["accepted"], counts["refused"]) > examples / 50
