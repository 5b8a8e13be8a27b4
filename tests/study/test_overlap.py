"""Activation patterns: the rates of two bit patterns by hand, chance, the static mask, and what a pattern is."""

import numpy as np
import pytest
from edited import reference_of, small_model, texts

from minillm.errors import ThresholdsError
from minillm.sparsity.calibrate import calibrate
from minillm.sparsity.policies import largest
from minillm.study.overlap import Count, Overlap, Reference, pattern, patterns, reference
from minillm.transformer.model import Llama


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Llama:
    return small_model(tmp_path_factory.mktemp("patterns") / "model")


@pytest.fixture(scope="module")
def known(model) -> Reference:
    return reference_of(model)


def test_rates_of_two_small_masks_by_hand():
    found = Overlap.of(np.array([1, 1, 1, 0, 0, 0], bool), np.array([1, 0, 0, 0, 0, 1], bool))
    assert found == (6, 3, 2, 1)
    assert (found.match, found.recall, found.iou) == (3 / 6, 1 / 3, 1 / 4)
    assert found.plus(found).match == found.match


def test_independent_masks_of_one_half_match_by_one_half_with_an_iou_of_one_third():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 400, 500)) < 0.5
    found = Overlap.of(a, b)
    assert found.match == pytest.approx(0.5, abs=5e-3) and found.iou == pytest.approx(1 / 3, abs=5e-3)
    exact = Overlap(100, 50, 50, 0).chance()
    assert (exact.match, exact.recall, exact.iou) == (0.5, 0.5, pytest.approx(1 / 3))


def test_chance_follows_the_densities_and_nothing_is_divided_by_nothing():
    rng = np.random.default_rng(1)
    found = Overlap.of(rng.random(100_000) < 0.2, rng.random(100_000) < 0.7)
    for rate in ("match", "recall", "iou"):
        assert getattr(found, rate) == pytest.approx(getattr(found.chance(), rate), abs=0.01)
    assert (Overlap().match, Overlap(4, 0, 1, 0).recall, Overlap(4, 0, 0, 0).iou) == (None, None, None)


def test_a_count_has_the_rates_of_its_guess_and_of_its_three_controls():
    truth, original = np.array([[1, 1, 0, 0], [1, 0, 0, 1]], bool), np.array([[1, 0, 0, 1], [1, 0, 0, 1]], bool)
    frequency, static = np.array([1.0, 0.5, 0.0, 0.5]), np.array([1, 1, 0, 0], bool)
    found = Count.of(truth, original, frequency, static)
    rates = found.rates()
    assert (rates["match"], rates["recall"], rates["iou"]) == (6 / 8, 3 / 4, 3 / 5)
    assert (rates["chance_match"], rates["static_match"], rates["static_recall"]) == (0.5, 6 / 8, 3 / 4)
    assert rates["unrelated_match"] == (8 - 2 * 4 + 2 * 2 * 1.5) / 8  # per position: sum f = 2, sum f^2 = 1.5
    assert found.plus(found).rates() == rates and found.plus(Count()) == found


def test_the_static_mask_is_the_most_frequent_neurons_and_as_dense_as_the_patterns(known):
    assert largest(np.array([0.1, 0.9, 0.5, 0.9]), 2).tolist() == [False, True, False, True]
    for frequency, static in zip(known.frequency, known.static, strict=True):
        assert static.sum() == pytest.approx(frequency.sum(), abs=0.51)
        assert frequency[static].min() >= frequency[~static].max()


def test_a_pattern_is_the_gate_before_its_activation_at_or_above_the_threshold(model, known):
    found = patterns(model, model.tokenizer.encode("the cat sat"), known.thresholds)
    assert found.shape == (3, 12, 96) and found.dtype == bool
    layer = known.thresholds.layers[0]
    edge = np.array([layer["gate_pre"], -layer["gate_pre"], 0], np.float64)
    assert pattern(edge, known.thresholds, 0).tolist() == [True, True, False]


def test_thresholds_without_a_gate_are_refused(model):
    with pytest.raises(ThresholdsError, match="policy mid, expected dhar's"):
        reference(model, calibrate(model, texts(2), "mid", 0.5), texts(2))
