"""Cutoffs that hit their fraction in the loop."""

import numpy as np
import pytest
import tiny
from made import MAKERS, measured

from minillm.errors import MinillmError
from minillm.predictors.copies import Shadow
from minillm.predictors.cutoffs import _cutoff, fit_cutoffs
from minillm.predictors.oracle import Oracle
from minillm.predictors.select import sparse_ffn
from minillm.transformer.texts import document_hashes


@pytest.mark.parametrize("kind", MAKERS)
def test_every_predictor_selects_the_fraction_it_is_set_to(kind, small):
    model, thresholds = small
    predictor = MAKERS[kind](model, thresholds)
    # Shares of so short a text have ties, and a static score gives every token the same neurons, of which there are 24.
    tolerance = {"static": 1 / 24 + 1e-9, "previous-token": 0.02}.get(kind, 5e-3)
    for fraction in (0.25, 0.5):
        fit_cutoffs(model, predictor, thresholds, tiny.STORIES, fraction)
        for layer in measured(model, predictor, thresholds).layers():
            assert layer["selected"] == pytest.approx(fraction, abs=tolerance)
    assert set(document_hashes(tiny.STORIES)) <= predictor.trained_on


def test_a_fraction_of_1_is_the_dense_model_bit_for_bit(small):
    model, thresholds = small
    predictor = Shadow.fit(model, 2)
    assert np.isneginf(fit_cutoffs(model, predictor, thresholds, tiny.STORIES, 1.0)).all()
    ids = model.tokenizer.encode("The cat sat.")
    ffn = sparse_ffn(model, thresholds, predictor=predictor)
    np.testing.assert_array_equal(model.forward(ids, ffn=ffn), model.forward(ids))


def test_cutoffs_are_found_in_the_loop_and_not_on_the_dense_model(small):
    """A tenth of the neurons: what the second layer sees is then quite another thing."""
    model, thresholds = small
    predictor = Oracle(model)
    found = fit_cutoffs(model, predictor, thresholds, tiny.STORIES, 0.1, tolerance=1e-9).copy()
    dense = fit_cutoffs(model, predictor, thresholds, tiny.STORIES, 0.1, tolerance=1.0)  # content with no cutoff at all
    assert np.isneginf(dense).all()
    predictor.cutoffs = found
    assert measured(model, predictor, thresholds).report()["selected"] == pytest.approx(0.1, abs=2e-3)


@pytest.mark.parametrize(
    ("values", "fraction", "selected"),
    [
        ([1, 2, 3, 4], 0.5, 2),
        ([4, 3, 2, 1], 0.25, 1),
        ([1, 2, 2, 2, 2, 2, 2, 3], 0.25, 1),  # 1 or 7 of 8: 1 is nearer to 2
        ([1, 2, 2, 2, 2, 2, 2, 3], 0.75, 7),
        ([5, 5, 5, 5], 0.75, 4),  # all or none
        ([5, 5, 5, 5], 0.25, 0),
        ([1, 2, 3, 4], 1.0, 4),
    ],
)
def test_a_cutoff_has_the_fraction_above_it_and_of_ties_takes_the_nearer_side(values, fraction, selected):
    values = np.array(values, float)
    assert np.count_nonzero(values > _cutoff(values, fraction)) == selected


def test_a_fraction_must_be_above_0(small):
    model, thresholds = small
    with pytest.raises(MinillmError, match="fraction is 0"):
        fit_cutoffs(model, Oracle(model), thresholds, tiny.STORIES, 0)
