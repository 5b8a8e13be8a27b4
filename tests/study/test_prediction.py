"""The predictor table: the oracle first, honest accounting, three texts that never meet."""

import pytest
import tiny

from minillm.predictors.select import sparse_ffn
from minillm.predictors.workshop import Workshop
from minillm.sparsity.calibrate import calibrate
from minillm.study.prediction import PredictionSettings, ffn_bytes, prediction_rows, verdict
from minillm.transformer.evaluation import perplexity
from minillm.transformer.texts import Sample, document_hashes

TRAINING = [f"{story} And then he saw {i} red balls." for i in range(3) for story in tiny.STORIES]
TEST = tiny.STORIES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.folder(tmp_path_factory.mktemp("table") / "model", hidden_size=16, intermediate_size=24)


@pytest.fixture(scope="module")
def model(folder):
    return tiny.Llama.from_folder(folder, "float64")


@pytest.fixture(scope="module")
def rows(model):
    names = ["chance", "static", "shadow-4", "up-4", "ahead-4", "learned"]
    return list(prediction_rows(model, TRAINING, Sample(TEST), names, PredictionSettings(rank=4)))


def test_the_oracle_comes_first_and_is_policy_mid(model, rows):
    held = TRAINING[9:]  # the last quarter
    thresholds = calibrate(model, held, "mid", 0.5, by="neuron")
    score = perplexity(model, TEST, ffn=sparse_ffn(model, thresholds))
    assert rows[0]["predictor"] == "oracle" and rows[0]["perplexity"] == score.perplexity
    assert (rows[0]["recall"], rows[0]["own_bytes"]) == (1, 0)
    assert rows[0]["times_oracle"] in (1, None)  # None where cutting half of the neurons made this tiny model better


def test_the_row_of_a_shadow_is_its_accounting(model, rows):
    row = next(row for row in rows if row["predictor"] == "shadow 4-bit")
    numbers = 2 * 3 * 16 * 24
    own = 2 * (2 * 24 * 8 + 2 * 24 * 4)
    assert ffn_bytes(model) == (4 * numbers, 4 * numbers)  # the folder holds float32
    assert row["own_bytes"] == own and row["own_share_float32"] == own / (4 * numbers)
    assert row["bytes_per_token"] == pytest.approx(row["selected"] * 4 * numbers + own)
    assert row["reads"] == pytest.approx(row["bytes_per_token"] / (4 * numbers))
    assert row["own_multiply_adds"] == 2 * 2 * 24 * 16
    assert row["multiply_adds"] == pytest.approx(row["own_multiply_adds"] + row["selected"] * numbers)
    assert row["increase"] == row["perplexity"] - row["dense"] and row["kl"] > 0
    own_gate = next(row for row in rows if row["predictor"] == "gate and 4-bit up")
    assert own_gate["read_gate"] == 1 and own_gate["read_up"] == own_gate["selected"] < 0.7


def test_better_informed_predictors_find_more(rows):
    recall = {row["predictor"]: row["recall"] for row in rows}
    assert recall["oracle"] > recall["gate and 4-bit up"] > recall["shadow 4-bit"] - 0.02 > recall["chance"] + 0.2


def test_no_predictor_sees_the_test_text_and_the_cutoffs_none_of_the_training_text(model):
    thresholds = calibrate(model, TRAINING[9:], "mid", 0.5, by="neuron")
    shop = Workshop(model, thresholds, TRAINING[:9], TRAINING[9:], rank=3)
    for name in ("static", "learned"):
        assert not shop.make(name).trained_on & set(document_hashes(TEST))
    for name in ("shadow-4", "svd", "ahead-4", "refined-4"):
        assert set(document_hashes(TRAINING[:9])) <= shop.make(name).trained_on, name
    with pytest.warns(UserWarning, match="of the documents scored are among those"):
        list(prediction_rows(model, TEST, Sample(TEST), ["static"]))


def test_the_verdict_says_what_the_rows_say():
    def row(predictor, times, share=0.05, recall=0.6, perplexity=5.0):
        return {"predictor": predictor, "times_oracle": times, "own_share_float32": share, "recall": recall,
                "perplexity": perplexity}  # fmt: skip

    rows = [row("oracle", 1.0, 0), row("shadow 4-bit", 1.1, 0.09), row("shadow 3-bit", 1.3),
            row("shadow 4-bit, one layer ahead", 2.5, 0.2), row("learned rank 8", 9.0, 0.1, 0.65, 6.0),
            row("static", 20.0, 0.001, 0.7, 7.0)]  # fmt: skip
    assert verdict(rows) == [
        "Of at most 1/8 of the FFNs' float32 bytes: shadow 4-bit costs 1.10 times the oracle's increase (within 1.5)",
        "Of at most 1/16 of the FFNs' float32 bytes: shadow 3-bit costs 1.30 times the oracle's increase "
        "(not within 1.2)",
        "One layer ahead: shadow 4-bit, one layer ahead costs 2.50 times the oracle's increase (not within 2)",
        "learned rank 8 against static, the same fraction selected: does not beat it in recall and beats it in "
        "perplexity",
    ]


def test_where_the_oracle_costs_nothing_no_multiples_are_given():
    def row(predictor, share, increase):
        return {"predictor": predictor, "times_oracle": None, "own_share_float32": share, "increase": increase,
                "dense": 10.0, "recall": 0.9, "perplexity": 10.0 + increase}  # fmt: skip

    rows = [row("oracle", 0, 0.001), row("shadow 4-bit", 0.09, 0.009), row("shadow 2-bit", 0.05, 0.02),
            row("shadow 8-bit", 0.17, 0.001)]  # fmt: skip
    (said,) = verdict(rows)
    assert said.startswith("The oracle costs less than 0.1%") and said.endswith("float32 bytes: shadow 4-bit")
