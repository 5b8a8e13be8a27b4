"""The study that a report shows: its rows are those of the chapters, and no scored text was calibrated on."""

import pytest
import reports
from reports import TEST, TRAINING

from minillm.prefetch.clock import whole_token
from minillm.sparsity import calibrate as calibrate_module
from minillm.study import summary as report
from minillm.study.score import score_cut
from minillm.transformer.evaluation import perplexity


@pytest.fixture(scope="module")
def folder():
    return reports.folder()


@pytest.fixture(scope="module")
def model():
    return reports.model()


@pytest.fixture(scope="module")
def study():
    return reports.study()


def test_the_rows_are_those_of_the_chapters(model, study):
    dense = perplexity(model, TEST)
    assert study.dense["perplexity"] == dense.perplexity and study.dense["tokens"] == dense.tokens
    row = next(row for row in study.cuts["neuron"] if (row["policy"], row["target"]) == ("mid", 0.5))
    known = TRAINING[: study.texts[1]["documents"]]
    again = score_cut(model, TEST, calibrate_module.calibrate(model, known, "mid", 0.5, by="neuron"), dense)
    assert row["perplexity"] == again["perplexity"]
    assert row["perplexity_low"] <= row["perplexity"] <= row["perplexity_high"]
    assert {row["predictor"] for row in study.predictors} >= {"oracle", "chance", "static", "previous-token"}
    assert [row["keeper"] for row in study.keepers[:6]] == ["lru", "lfu", "window-4", "hot", "random", "belady"]
    dropped = {row["perplexity"] for row in study.ways if row["misses"] == "drop"}
    assert len(dropped) > 1 and study.matters  # what is dropped depends on the capacity


def test_nothing_that_is_scored_was_calibrated_on(study, recwarn):
    assert {row["text"] for row in study.texts} == {"scored", "calibration"}
    assert not [w for w in recwarn if "calibrated on" in str(w.message)]
    tokens = {row["part"]: row["tokens"] for row in study.texts}
    assert tokens["buffer"] <= tokens["patterns"] <= tokens["predictors"] <= study.dense["tokens"]


def test_the_limit_is_amdahls():
    rows = report.amdahl_rows(0.75, (0.5, 0.0))
    assert [row["token_read"] for row in rows] == [0.625, 0.25] and [row["faster"] for row in rows] == [1.6, 4.0]
    assert rows[0]["faster"] == whole_token(2, 0.75)


def test_the_timelines_are_of_one_token_with_and_without_guesses(study):
    early, late = (set(bar.kind for bar in bars) for bars in reversed(study.timelines.values()))
    assert "prefetch" in early and "prefetch" not in late and "ffn" in early & late
    for bars in study.timelines.values():
        assert len({bar.token for bar in bars}) == 1
