"""One row per model that is scored: it holds what the parts say when they are called directly."""

import numpy as np
import pytest
import tiny

import minillm
from minillm.methods.base import Variant, fit
from minillm.study.score import accounted, evaluation_of, policy_variant, row, score_cut, score_variant
from minillm.study.sweep import sweep
from minillm.transformer.texts import split_text

STORIES = [f"{story} {number}" for number in range(3) for story in tiny.STORIES]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.loaded(tmp_path_factory.mktemp("score") / "m")


@pytest.mark.parametrize("protocol", ["documents", "stream"])
def test_a_row_is_what_calibrate_and_perplexity_say_when_called_directly(model, protocol):
    calibration, test = split_text(STORIES)
    dense, cut = sweep(model, calibration, test, ("dhar",), (0.5,), "neuron", protocol, 32)
    direct = minillm.perplexity(model, test, protocol, 32)
    assert (dense["nll"], dense["tokens"], dense["bytes"]) == (direct.nll, direct.tokens, direct.bytes)
    thresholds = minillm.calibrate(model, calibration, "dhar", 0.5, 32, by="neuron")
    meter = minillm.SparsityMeter()
    direct = minillm.perplexity(model, test, protocol, 32, minillm.sparse_ffn(model, thresholds), meter)
    report = meter.report()
    assert (cut["nll"], cut["perplexity"], cut["bits_per_byte"]) == (
        direct.nll, direct.perplexity, direct.bits_per_byte
    )  # fmt: skip
    assert cut["neuron_sparsity"] == cut["achieved"] == report.neuron_sparsity  # on the text scored
    assert cut["level"] == thresholds.level
    assert (cut["read_gate"], cut["read_up"], cut["read_down"]) == report.read_exact
    assert 1 == cut["read_gate"] > cut["read_up"] > cut["read_down"]
    assert cut["read_exact"] == sum(report.read_exact) / 3
    assert f"target 0.500, achieved {report.neuron_sparsity:.3f}" in cut["spec"]


def test_what_is_achieved_is_that_of_the_text_scored_and_not_of_the_calibration_text(model):
    calibration, test = STORIES[:2], ["zzz zzz zzz. zzz qqq."]
    thresholds = minillm.calibrate(model, calibration, "mid", 0.5)
    dense = minillm.perplexity(model, test)
    found = score_cut(model, test, thresholds, dense)
    assert thresholds.spec.achieved == pytest.approx(0.5, abs=0.02)
    assert found["achieved"] == found["neuron_sparsity"]
    assert found["achieved"] != thresholds.spec.achieved
    assert row(model, dense, dense)["spec"] == "dense: nothing is cut"


def test_a_policy_is_scored_on_the_same_path_as_any_other_variant(model):
    calibration, test = split_text(STORIES)
    dense = minillm.perplexity(model, test)
    thresholds = minillm.calibrate(model, calibration, "cats", 0.5)
    variant = policy_variant(model, thresholds)
    assert variant.model is model and variant.reads is None and variant.calibrated_on
    assert score_variant(variant, test, dense) == score_cut(model, test, thresholds, dense)


def test_a_variant_without_changes_has_the_score_of_the_dense_model(model):
    dense = minillm.perplexity(model, STORIES)
    found = score_variant(Variant("same", model), STORIES, dense)
    expected = row(model, dense, dense)
    assert found == expected | {"policy": "same"}
    assert evaluation_of(expected).nll == dense.nll
    assert np.array_equal(evaluation_of(expected).document_nll, dense.document_nll)


def test_the_tap_of_a_variant_is_used_and_the_meter_sees_what_it_gives(model):
    dense = minillm.perplexity(model, STORIES)

    def without_ffn(name, value):
        return value * 0 if name.endswith("mlp.out") else value

    found = score_variant(Variant("no FFN", model, tap=without_ffn), STORIES, dense)
    assert found["nll"] == minillm.perplexity(model, STORIES, tap=without_ffn).nll != dense.nll


def test_masks_are_accounted_by_the_meter_and_removed_weights_by_the_variant(model):
    measured = minillm.SparsityMeter().report()
    assert accounted(Variant("same", model), measured) is measured
    made = fit("magnitude", model, STORIES, 0.5)
    report = accounted(made, measured)
    assert report.weight_reads == report.weight_reads_known_mask < 1 and report.tokens == measured.tokens
    assert report.achieved("weights") == made.spec.achieved
