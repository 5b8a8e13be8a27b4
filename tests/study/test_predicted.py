"""A predictor as a Variant: its tables count as reads and as stored bytes, and its target is met with them."""

import numpy as np
import pytest
import tiny

import minillm
from minillm.errors import MinillmError
from minillm.study.predicted import WithTables, is_predictor, predictor_variant
from minillm.study.record import read_record
from minillm.study.score import score_variant
from minillm.study.sweep import SweepPoint, sweep
from minillm.trace import Trace
from minillm.transformer.texts import split_text

STORIES = [f"{story} {number}" for number in range(8) for story in tiny.STORIES]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.loaded(tmp_path_factory.mktemp("predicted") / "m", "float32", intermediate_size=64)


@pytest.fixture(scope="module")
def texts():
    return split_text(STORIES, 0.7)


@pytest.mark.parametrize("name", ["sign", "shadow-2", "up-2"])
def test_the_target_is_met_with_the_tables_counted(model, texts, name):
    made = predictor_variant(name, model, texts[0], 0.3)
    row = score_variant(made, texts[1], minillm.perplexity(model, texts[1]))
    assert row["read_exact"] == pytest.approx(0.7, abs=0.05) and row["achieved"] == 1 - row["read_exact"]
    own = made.ffn.own
    weights = 3 * 64 * 8 * 2  # three matrices, F, D, L
    assert made.stored["dense"] == 2 * sum(model.parameters.values()) + round(own * 2 * weights)
    gate, up, down = row["read_gate"], row["read_up"], row["read_down"]
    assert up == pytest.approx(down) and gate == pytest.approx(1 + own if name.startswith("up-") else down)
    assert down - own == pytest.approx(row["read_known_mask"])
    assert set(made.calibrated_on) >= set(made.ffn.ffn.select.predictor.trained_on)


def test_only_the_reads_are_changed(model):
    ffn = WithTables(lambda x, layer, position, tap: tap("out", x + tap("reads", np.ones((2, 3))).mean()), 0.25)
    with Trace(keep="*") as trace:
        out = ffn(np.zeros((2, 8)), model.layers[0], 0, trace)
    assert np.array_equal(trace["reads"], np.full((2, 3), 1.25)) and out.shape == (2, 8)


def test_tables_that_are_more_than_may_be_read_are_refused(model, texts):
    with pytest.raises(MinillmError, match="the predictor shadow-8 reads 0.* expected less than 0.100"):
        predictor_variant("shadow-8", model, texts[0], 0.9)
    assert is_predictor("shadow-3") and not is_predictor("mid")


def test_a_predictor_is_a_row_of_a_sweep_by_reads_that_is_read_back(model, texts, tmp_path):
    output = tmp_path / "rows.csv"
    rows = sweep(model, *texts, ("teal", "sign"), (0.4,), "reads", output=output)
    assert [(row["policy"], row["by"]) for row in rows[1:]] == [("teal", "reads"), ("sign", "reads")]
    assert rows[2]["level"] is None and rows[2]["stored"] > 1 == rows[1]["stored"]
    assert read_record(output) == rows
    with pytest.raises(MinillmError, match="policy 'sign' is unknown"):
        sweep(model, *texts, ("sign",), (0.4,), "neuron")
    assert SweepPoint("sign", "reads", 0.4) == SweepPoint(*(rows[2][key] for key in ("policy", "by", "target")))
