"""Predictors come back from their files, and foreign files are refused."""

import json

import numpy as np
import pytest
import tiny
from made import MAKERS

from minillm.errors import CheckpointError, MinillmError
from minillm.loading.tensors import save_tensors
from minillm.predictors.cutoffs import fit_cutoffs
from minillm.predictors.files import load_predictor, save_predictor
from minillm.predictors.oracle import Oracle
from minillm.predictors.select import sparse_ffn


@pytest.mark.parametrize("kind", MAKERS)
def test_every_predictor_comes_back_from_its_file(kind, small, tmp_path):
    model, thresholds = small
    predictor = MAKERS[kind](model, thresholds)
    fit_cutoffs(model, predictor, thresholds, tiny.STORIES, 0.5)
    save_predictor(tmp_path / "p.safetensors", predictor)
    back = load_predictor(tmp_path / "p.safetensors")
    assert (back.name, back.shape, back.nbytes, back.trained_on) == (
        predictor.name, predictor.shape, predictor.nbytes, predictor.trained_on
    )  # fmt: skip
    assert [back.multiply_adds(i) for i in range(2)] == [predictor.multiply_adds(i) for i in range(2)]
    ids = model.tokenizer.encode("The cat sat.")
    logits = [model.forward(ids, ffn=sparse_ffn(model, thresholds, predictor=p)) for p in (predictor, back)]
    np.testing.assert_array_equal(*logits)


def test_the_oracle_cannot_be_saved(small, tmp_path):
    model, thresholds = small
    with pytest.raises(MinillmError, match="no tables of its own"):
        save_predictor(tmp_path / "o.safetensors", Oracle(model, thresholds))


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
