"""Chance is what probability says, static is a count, the previous token's mask is that."""

import numpy as np
import pytest
import tiny

from minillm.predictors.baselines import Chance, PreviousToken, Static
from minillm.predictors.cutoffs import fit_cutoffs
from minillm.predictors.metrics import PredictionMeter
from minillm.predictors.select import sparse_ffn
from minillm.trace import Trace
from minillm.transformer.evaluation import pass_over
from minillm.transformer.texts import runs


def test_chance_is_the_same_for_a_seed_layer_and_position_however_the_text_is_cut():
    x, chance = np.zeros((6, 3), np.float32), Chance((2, 3, 50), seed=4)
    whole = chance.predict(1, 0, x)
    np.testing.assert_array_equal(whole, np.concatenate([chance.predict(1, 0, x[:2]), chance.predict(1, 2, x[2:])]))
    others = [chance.predict(0, 0, x), chance.predict(1, 1, x), Chance((2, 3, 50), seed=5).predict(1, 0, x)]
    assert all(np.abs(whole - other).max() > 0.1 for other in others) and whole.dtype == x.dtype
    assert len(np.unique(whole)) > 250  # not the same row again and again


def test_chance_has_a_recall_of_the_fraction_it_selects(small):
    model, thresholds = small
    chance, meter = Chance((2, 16, 24)), PredictionMeter()
    fit_cutoffs(model, chance, thresholds, tiny.STORIES, 0.3)
    pass_over(model, runs(model, tiny.STORIES), meter, sparse_ffn(model, thresholds, predictor=chance))
    report = meter.report()
    assert report["recall"] == pytest.approx(0.3, abs=0.05)
    assert report["precision"] == pytest.approx(report["active"], abs=0.05)


def test_static_counts_how_often_policy_mid_keeps_each_neuron(small):
    model, thresholds = small
    masks = [[], []]
    for run in runs(model, tiny.STORIES):
        with Trace(keep="blocks.*.mlp.mask") as trace:
            model.forward(run.ids, ffn=sparse_ffn(model, thresholds), tap=trace)
        for i in range(2):
            masks[i].append(trace[f"blocks.{i}.mlp.mask"])
    static = Static.fit(model, thresholds, tiny.STORIES)
    for i in range(2):
        np.testing.assert_allclose(static.shares[i], np.concatenate(masks[i]).mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(static.predict(1, 7, np.zeros((3, 16))), static.shares[[1, 1, 1]])
    assert static.nbytes == 2 * 24 * 4


def test_the_previous_tokens_mask_comes_first_and_the_static_share_orders_the_rest():
    static = Static((1, 4, 3), np.array([[0.2, 1.0, 0.6]], np.float32))
    predictor, x = PreviousToken(static), np.zeros((1, 4), np.float32)
    first = predictor.predict(0, 0, x)
    np.testing.assert_allclose(first, 0.999 * static.shares)
    predictor.observe(0, 0, x, np.array([[True, False, False]]))
    after = predictor.predict(0, 1, x)[0]
    assert after[0] > after[1] > after[2] and after[1] < 1  # an active one stands above a share of 1
    np.testing.assert_array_equal(predictor.predict(0, 0, x), first)  # a new text knows nothing of the last one
    assert predictor.nbytes == 3 * 4 + 1
