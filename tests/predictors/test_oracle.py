"""The oracle is the bound: it finds all and only the active neurons."""

import numpy as np
import pytest
from made import measured

from minillm.errors import MinillmError
from minillm.predictors.oracle import Oracle
from minillm.trace import Trace


def test_the_oracle_finds_all_and_only_the_active_neurons(small):
    model, thresholds = small
    report = measured(model, Oracle(model, thresholds), thresholds).report()
    assert (report["recall"], report["precision"], report["iou"]) == (1, 1, 1)
    assert report["selected"] == report["active"]


def test_the_oracle_scores_the_magnitude_of_mid(small):
    model, _ = small
    with Trace(keep=["blocks.1.mlp.norm", "blocks.1.mlp.mid"]) as trace:
        model.forward(model.tokenizer.encode("The cat sat."), tap=trace)
    scores = Oracle(model).predict(1, 0, trace["blocks.1.mlp.norm"])
    np.testing.assert_array_equal(scores, np.abs(trace["blocks.1.mlp.mid"]))
    assert Oracle(model).cutoffs is None and Oracle(model).multiply_adds(0) == 2 * 24 * 16


def test_the_oracle_is_made_from_a_model_and_not_from_tables():
    with pytest.raises(MinillmError, match="no tables of its own"):
        Oracle.from_arrays({}, {})
