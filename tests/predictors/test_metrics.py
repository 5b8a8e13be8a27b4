"""Metrics by hand."""

import numpy as np
import pytest

from minillm.errors import MinillmError
from minillm.predictors.metrics import PredictionMeter


def test_the_metrics_by_hand_pooled_over_tokens_and_averaged_over_layers():
    meter = PredictionMeter()
    true = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], bool)
    chosen = np.array([[1, 0, 1, 0], [1, 0, 0, 0]], bool)
    for layer, mask in ((0, chosen), (1, true)):
        for row in range(2):  # in two pieces: pooled all the same
            meter(f"blocks.{layer}.mlp.mask_true", true[row : row + 1])
            meter(f"blocks.{layer}.mlp.mask", mask[row : row + 1])
    first, second = meter.layers()
    expected = {"recall": 2 / 3, "precision": 2 / 3, "f1": 2 / 3, "iou": 2 / 4, "selected": 3 / 8, "active": 3 / 8}
    assert first == pytest.approx(expected)
    assert second == pytest.approx({"recall": 1, "precision": 1, "f1": 1, "iou": 1, "selected": 3 / 8, "active": 3 / 8})
    assert meter.report()["iou"] == pytest.approx(0.75)
    with pytest.raises(MinillmError, match="no predicted mask"):
        PredictionMeter().report()


def test_only_a_mask_that_came_with_its_truth_is_counted():
    meter, mask = PredictionMeter(), np.ones((2, 4), bool)
    for name in ("embed", "blocks.0.mlp.mask", "blocks.0.mlp.mask_guess", "blocks.1.attn.out"):
        assert meter(name, mask) is mask
    assert meter.layers() == []
    meter("blocks.0.mlp.mask_true", ~mask)
    meter("blocks.1.mlp.mask", mask)  # of another layer
    assert meter.layers() == []
    meter("blocks.0.mlp.mask_guess", ~mask)  # a guess is not the mask
    meter("blocks.0.mlp.mask", mask)
    meter("blocks.0.mlp.mask", ~mask)  # the truth was used up
    assert meter.layers() == [{"recall": 0, "precision": 0, "f1": 0, "iou": 0, "selected": 1, "active": 0}]


def test_two_independent_halves_have_the_scores_of_chance():
    rng, meter = np.random.default_rng(0), PredictionMeter()
    meter("blocks.0.mlp.mask_true", rng.random((400, 500)) < 0.5)
    meter("blocks.0.mlp.mask", rng.random((400, 500)) < 0.5)
    found = meter.report()
    assert (found["recall"], found["precision"], found["iou"]) == pytest.approx((1 / 2, 1 / 2, 1 / 3), abs=0.01)
