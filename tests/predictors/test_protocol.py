"""Cutoffs that hit their fraction in the loop, metrics by hand, and files that come back or are refused."""

import json

import numpy as np
import pytest
import tiny

from minillm.errors import CheckpointError, MinillmError
from minillm.loading.tensors import save_tensors
from minillm.predictors.ahead import Ahead
from minillm.predictors.baselines import Chance, PreviousToken, Static
from minillm.predictors.catalogue import KINDS
from minillm.predictors.copies import LowRank, Shadow, Sign
from minillm.predictors.cutoffs import fit_cutoffs
from minillm.predictors.files import load_predictor, save_predictor
from minillm.predictors.learned import train
from minillm.predictors.metrics import PredictionMeter
from minillm.predictors.oracle import Oracle
from minillm.predictors.select import sparse_ffn
from minillm.transformer.evaluation import pass_over
from minillm.transformer.model import shape_of
from minillm.transformer.texts import document_hashes, runs

MAKERS = {
    "chance": lambda m, t: Chance(shape_of(m), 7),
    "static": lambda m, t: Static.fit(m, t, tiny.STORIES),
    "previous-token": lambda m, t: PreviousToken(Static.fit(m, t, tiny.STORIES)),
    "sign": lambda m, t: Sign.fit(m),
    "svd": lambda m, t: LowRank.fit(m, 4),
    "shadow": lambda m, t: Shadow.fit(m, 3),
    "own gate": lambda m, t: Shadow.fit(m, 3, gate_bits=0),
    "ahead": lambda m, t: Ahead.fit(m, t, tiny.STORIES, 4),
    "learned": lambda m, t: train(m, t, tiny.STORIES[:3], tiny.STORIES[3:], 3, epochs=1),
    "learned ahead": lambda m, t: train(m, t, tiny.STORIES[:3], tiny.STORIES[3:], 3, ahead=1, epochs=1),
    "refined": lambda m, t: train(m, t, tiny.STORIES[:3], tiny.STORIES[3:], 2, Shadow.fit(m, 2), epochs=1),
}


def measured(model, predictor, thresholds, documents=tiny.STORIES) -> PredictionMeter:
    meter = PredictionMeter()
    pass_over(model, runs(model, documents), meter, sparse_ffn(model, thresholds, predictor=predictor))
    return meter


@pytest.mark.parametrize("kind", MAKERS)
def test_every_predictor_selects_the_fraction_it_is_set_to_and_comes_back_from_its_file(kind, small, tmp_path):
    model, thresholds = small
    predictor = MAKERS[kind](model, thresholds)
    # Shares of so short a text have ties, and a static score gives every token the same neurons, of which there are 24.
    tolerance = {"static": 1 / 24 + 1e-9, "previous-token": 0.02}.get(kind, 5e-3)
    for fraction in (0.25, 0.5):
        fit_cutoffs(model, predictor, thresholds, tiny.STORIES, fraction)
        for layer in measured(model, predictor, thresholds).layers():
            assert layer["selected"] == pytest.approx(fraction, abs=tolerance)
    assert set(document_hashes(tiny.STORIES)) <= predictor.trained_on
    save_predictor(tmp_path / "p.safetensors", predictor)
    back = load_predictor(tmp_path / "p.safetensors")
    assert (back.name, back.shape, back.nbytes, back.trained_on) == (
        predictor.name, predictor.shape, predictor.nbytes, predictor.trained_on
    )  # fmt: skip
    assert [back.multiply_adds(i) for i in range(2)] == [predictor.multiply_adds(i) for i in range(2)]
    ids = model.tokenizer.encode("The cat sat.")
    logits = [model.forward(ids, ffn=sparse_ffn(model, thresholds, predictor=p)) for p in (predictor, back)]
    np.testing.assert_array_equal(*logits)


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


def test_the_oracle_finds_all_and_only_the_active_neurons(small):
    model, thresholds = small
    report = measured(model, Oracle(model, thresholds), thresholds).report()
    assert (report["recall"], report["precision"], report["iou"]) == (1, 1, 1)
    assert report["selected"] == report["active"]


def test_the_oracle_is_no_file_and_a_fraction_must_be_one(small, tmp_path):
    model, thresholds = small
    with pytest.raises(MinillmError, match="no tables of its own"):
        save_predictor(tmp_path / "o.safetensors", Oracle(model, thresholds))
    with pytest.raises(MinillmError, match="fraction is 0"):
        fit_cutoffs(model, Oracle(model), thresholds, tiny.STORIES, 0)
    with pytest.raises(MinillmError, match="belongs to another model"):
        fit_cutoffs(model, Chance((3, 16, 24)), thresholds, tiny.STORIES, 0.5)


def metadata(kind="sign", **changes) -> dict:
    about = {"settings": {"shape": [1, 8, 2]}, "shape": [1, 8, 2], "trained_on": []} | changes.pop("about", {})
    return {"format": "minillm-predictor", "version": "1", "kind": kind, "predictor": json.dumps(about)} | changes


BITS = {"table.bits": np.zeros((1, 2, 1), np.uint8)}
FOREIGN = {
    "another format": (BITS, metadata(format="pt")),
    "no metadata": (BITS, None),
    "a later version": (BITS, metadata(version="2")),
    "an unknown kind": (BITS, metadata("magic")),
    "no JSON": (BITS, metadata(predictor="{")),
    "no settings": (BITS, metadata(about={"settings": None})),
    "no table": ({"other": np.zeros(1)}, metadata()),
    "a table of another shape": ({"table.bits": np.zeros((1, 3, 1), np.uint8)}, metadata()),
    "a table of another dtype": ({"table.bits": np.zeros((1, 2, 1), np.float32)}, metadata()),
    "another shape": (BITS, metadata(about={"shape": [1, 9, 2]})),
    "cutoffs for two layers": (BITS | {"cutoffs": np.zeros(2)}, metadata()),
    "a shadow without scales": ({"table.gate_codes": np.zeros((1, 2, 3), np.uint8)},
                                metadata("shadow", about={"settings": {"shape": [1, 8, 2], "hidden_act": "silu",
                                                                       "gate_bits": 3, "up_bits": 3}})),
}  # fmt: skip


@pytest.mark.parametrize("what", FOREIGN)
def test_a_foreign_file_is_refused_in_one_sentence_that_names_it(what, tmp_path):
    save_tensors(tmp_path / "p.safetensors", *FOREIGN[what])
    with pytest.raises(CheckpointError, match=r"p\.safetensors(: | \(predictor\): )") as error:
        load_predictor(tmp_path / "p.safetensors")
    assert "\n" not in str(error.value)


def test_the_file_that_the_foreign_ones_are_made_from_is_good(tmp_path):
    save_tensors(tmp_path / "p.safetensors", BITS, metadata())
    assert load_predictor(tmp_path / "p.safetensors").shape == (1, 8, 2)


def test_files_that_are_no_safetensors_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load_predictor(tmp_path / "absent")
    broken = {"empty": b"", "text": b"hello, this is no predictor", "half": b"\x10" + bytes(7) + b"{"}
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name}: is no safetensors"):
            load_predictor(tmp_path / name)


def test_every_kind_that_a_file_may_name_is_a_class():
    from importlib import import_module

    for place in KINDS.values():
        module, name = place.split(":")
        assert hasattr(getattr(import_module(f"minillm.predictors.{module}"), name), "from_arrays")
