"""The curve of activation ratio against training tokens is the training, stopped and measured at one CETT."""

import numpy as np
import pytest
import tiny

import minillm
from minillm.errors import MinillmError
from minillm.loading.config import ModelConfig
from minillm.loading.embedded import embedded_text
from minillm.sparsity.calibrate import calibrate
from minillm.sparsity.sparse import policy_ffn
from minillm.sparsity.spec import SparsityMeter
from minillm.study.checkpoints import Texts, curve
from minillm.study.natural import exact_zeros
from minillm.training.batches import batches_of
from minillm.training.fresh import RATE, fresh_fields, new_model
from minillm.training.trainer import Plan, Trainer, trainable
from minillm.transformer.documents import split_documents
from minillm.transformer.evaluation import perplexity

TEXTS = Texts(tiny.STORIES[:2], tiny.STORIES[2:])


@pytest.fixture
def made(tmp_path) -> Trainer:
    like = tiny.loaded(tmp_path / "a", "float32", hidden_act="relu", hidden_size=16, intermediate_size=24)
    model = trainable(new_model(like.config, 1, tmp_path / "a"))
    return Trainer(model, batches_of(model, tiny.STORIES[:2], 40), Plan(steps=8, rate=1e-2, warmup=2, average=0))


def test_a_curve_is_the_training_stopped_and_measured_at_one_cett(made, tmp_path):
    rows = curve(made, [1, 81, 240], TEXTS, cett=0.2)
    assert [row["tokens"] for row in rows] == [40, 120, 240]
    assert rows[0]["loss"] > rows[1]["loss"] > rows[2]["loss"]
    thresholds = calibrate(made.model, TEXTS.calibration, "cett", 0.2, by="cett")
    meter = SparsityMeter()
    cut = perplexity(made.model, TEXTS.test, ffn=policy_ffn(made.model, thresholds), tap=meter)
    dense = perplexity(made.model, TEXTS.test)
    expected = {"tokens": 240, "loss": np.log(dense.perplexity), "loss_cut": np.log(cut.perplexity)}
    assert rows[-1] == pytest.approx(
        expected | {"kept": 1 - meter.report().neuron_sparsity, "zeros": exact_zeros(made.model, TEXTS.test)}
    )
    assert all(0 < row["kept"] < 0.6 for row in rows)  # ReLU: about half are zero by themselves


def test_measuring_does_not_change_the_training(made):
    plain = Trainer(trainable(made.model), made.batches, made.plan)
    for _ in range(6):
        plain.step()
    curve(made, [80, 240], TEXTS, cett=0.2)
    assert all(np.array_equal(w, made.model.weights[name]) for name, w in plain.model.weights.items())


@pytest.mark.parametrize(
    ("at", "cett", "what"),
    [
        ([], 0.2, "at is .., expected rising"),
        ([80, 80], 0.2, "at is .80, 80., expected rising"),
        ([0, 80], 0.2, r"at\[0\] is 0"),
        ([80], 0.0, "cett is 0.0, expected a share"),
        ([80, 400], 0.2, "ends at 320 tokens, expected at least 400"),
    ],
)
def test_a_curve_that_cannot_be_measured_is_refused_in_one_sentence(made, at, cett, what):
    with pytest.raises(MinillmError, match=what):
        curve(made, at, TEXTS, cett)


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(("act", "key", "least"), [("relu", "zeros", 0.06), ("silu", "kept", 0.015)])
def test_a_relu_becomes_sparser_and_a_silu_denser(act, key, least, shared):
    """Measured: zeros of relu .650, .703, .737 at the three checkpoints, kept of silu .162, .183, .187."""
    like = minillm.load("default-relu")
    model = new_model(ModelConfig.from_dict(fresh_fields("twin", act, like)), 0, like.folder)
    stories = split_documents((shared / "text" / "stories260K-samples.txt").read_text(encoding="utf-8"))[:6000]
    known, test = (split_documents(embedded_text(name)) for name in ("calibration", "test"))
    trainer = Trainer(trainable(model), batches_of(model, stories), Plan(steps=300, rate=RATE, average=0))
    rows = curve(trainer, [120_000, 200_000, 300_000], Texts(known[:8], test[::12]), cett=0.2)
    values = [row[key] for row in rows]
    assert values[0] < values[1] < values[2] and values[2] - values[0] > least
