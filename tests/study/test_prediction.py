"""The predictor table: the oracle first, honest accounting, three texts that never meet."""

from dataclasses import replace

import numpy as np
import pytest
import tiny

from minillm.predictors.select import sparse_ffn
from minillm.predictors.workshop import Workshop
from minillm.sparsity.calibrate import calibrate
from minillm.study.bootstrap import difference
from minillm.study.prediction import (
    PredictionSettings,
    beside_oracle,
    difference_in_words,
    ffn_bytes,
    is_clear,
    prediction_rows,
    verdict,
)
from minillm.study.score import evaluation_of
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
    assert own_gate["read_gate"] == 1 and own_gate["selected"] < 0.7
    assert own_gate["read_up"] == pytest.approx(own_gate["selected"])


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


DOCUMENTS = 40


def scored(predictor, perplexity, spread=0.0, share=0.05, recall=0.6):
    """A row as ``predictor_row`` makes it, of documents whose costs differ from each other by ``spread`` nats."""
    sign = np.where(np.arange(DOCUMENTS) % 2, 1.0, -1.0)
    nll = 10 * (np.log(perplexity) + spread * sign)
    row = {"predictor": predictor, "own_share_float32": share, "recall": recall, "dense": 5.0, "perplexity": perplexity}
    row |= {"document_nll": nll.tolist(), "document_tokens": [10] * DOCUMENTS, "nll": float(nll.sum()), "bytes": 1000}
    row |= {"tokens": 10 * DOCUMENTS, "protocol": "documents", "context": 64, "bos": "1"}
    dense = replace(evaluation_of(row), nll=400 * np.log(5.0), document_nll=np.full(DOCUMENTS, 10 * np.log(5.0)))
    return row | dict(
        zip(("increase", "increase_low", "increase_high"), difference(evaluation_of(row), dense), strict=True)
    )


def table(oracle, *others):
    return [beside_oracle(row, oracle) for row in (oracle, *others)]


def test_the_verdict_says_what_the_rows_say():
    rows = table(
        scored("oracle", 5.5, share=0), scored("shadow 4-bit", 5.55, share=0.09), scored("shadow 3-bit", 5.65),
        scored("shadow 4-bit, one layer ahead", 6.25, share=0.2), scored("learned rank 8", 6.0, share=0.1, recall=0.65),
        scored("static", 7.0, share=0.001, recall=0.7),
    )  # fmt: skip
    eighth, sixteenth, ahead, against = verdict(rows)
    assert "1/8" in eighth and "shadow 4-bit" in eighth and "1.10 times" in eighth and "(within 1.5)" in eighth
    assert "+0.050 (+0.050 to +0.050)" in eighth and "dense 5.000" in eighth
    assert "1/16" in sixteenth and "shadow 3-bit" in sixteenth and "1.30 times" in sixteenth
    assert "(not within 1.2)" in sixteenth and "2.50 times" in ahead and "(not within 2)" in ahead
    assert "static" in against and "recall 0.650 against 0.700" in against and against.endswith(": better")


def test_where_the_oracle_costs_nothing_no_multiples_are_given():
    cheap = scored("oracle", 5.001, share=0)  # a clear increase, but a tiny one
    rows = table(cheap, scored("shadow 4-bit", 5.004, share=0.09), scored("shadow 2-bit", 5.01))
    assert is_clear(scored("oracle", 5.5)) and not is_clear(cheap)
    assert [row["times_oracle"] for row in rows] == [None] * 3
    first, *rest = verdict(rows)
    assert "+0.001" in first and "dense 5.000" in first and not any("times the oracle" in line for line in rest)
    assert any("shadow 4-bit" in line and "+0.0006" in line and "nats" in line for line in rest)  # ln(5.004 / 5.001)


def test_multiples_begin_at_half_a_percent_and_below_it_stands_the_difference_in_nats():
    rows = {size: table(scored("oracle", 5 * size), scored("shadow 4-bit", 5.1)) for size in (1.0049, 1.0051)}
    assert rows[1.0049][1]["times_oracle"] is None
    assert rows[1.0051][1]["times_oracle"] == pytest.approx(0.02 / 0.0051)
    (line,) = (line for line in verdict(rows[1.0049]) if line.startswith("Of at most 1/16"))
    assert "+0.0149" in line and "nats" in line


def test_regression_is_compared_with_classification_of_the_same_size():
    rows = table(scored("oracle", 5.5), scored("learned rank 8", 6.0), scored("learned rank 8 from |mid|", 5.8))
    assert "learned rank 8 from |mid| against learned rank 8," in verdict(rows)[-1]
    assert verdict(rows)[-1].endswith(": better")


def test_an_increase_within_its_own_noise_divides_nothing():
    noisy = scored("oracle", 5.02, spread=0.05, share=0)
    assert noisy["increase_low"] < 0 < noisy["increase"] < noisy["increase_high"]
    rows = table(noisy, scored("shadow 4-bit", 5.12, spread=0.05, share=0.09), scored("static", 9.0, recall=0.5))
    assert [row["times_oracle"] for row in rows] == [None] * 3
    # Noise that both share cancels in their difference: it is known far better than either increase.
    assert rows[1]["over_oracle"] == pytest.approx(0.10) and rows[1]["over_oracle_low"] == pytest.approx(0.10)
    assert not any("times the oracle" in line for line in verdict(rows))


def test_a_difference_that_may_be_of_either_sign_is_undecided():
    rows = table(scored("oracle", 5.5), scored("learned rank 8", 6.0), scored("static", 6.01, spread=0.05))
    assert verdict(rows)[-1].endswith(": undecided")


def test_one_document_gives_differences_but_no_interval_and_no_multiple(model):
    rows = list(prediction_rows(model, TRAINING, Sample(TEST[:1]), ["chance"]))
    for row in rows:
        assert row["increase_low"] is row["over_oracle_high"] is row["times_oracle"] is None
    assert rows[1]["over_oracle"] == rows[1]["perplexity"] - rows[0]["perplexity"]
    assert "one document" in verdict(rows)[0]


def test_the_differences_are_those_of_the_documents_scored(model, rows):
    for row in rows:
        again = difference(evaluation_of(row), evaluation_of(rows[0]), np.random.default_rng(0))
        assert (row["over_oracle"], row["over_oracle_low"], row["over_oracle_high"]) == again
        assert row["dense_bytes"] == ffn_bytes(model)[1]
        assert difference_in_words(row, "increase").startswith(f"{row['increase']:+.3f} (")
