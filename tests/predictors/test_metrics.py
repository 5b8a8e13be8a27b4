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
