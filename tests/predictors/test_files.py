"""Predictors come back from their files, and foreign files are refused."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import tiny
from made import MAKERS

from minillm.errors import CheckpointError, MinillmError
from minillm.loading.tensors import save_tensors
from minillm.predictors.cutoffs import fit_cutoffs
from minillm.predictors.files import load_predictor, save_predictor
from minillm.predictors.oracle import Oracle
from minillm.predictors.select import Predicted, sparse_ffn


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


def test_a_predictor_that_selects_every_neuron_has_a_file_without_infinities(small, tmp_path):
    model, thresholds = small
    predictor = MAKERS["sign"](model, thresholds)
    assert (fit_cutoffs(model, predictor, thresholds, tiny.STORIES, 1.0) == -np.inf).all()
    save_predictor(tmp_path / "p.safetensors", predictor)
    back = load_predictor(tmp_path / "p.safetensors")
    assert np.isfinite(back.cutoffs).all()
    mask = Predicted(back)(np.ones((3, model.config.hidden_size), np.float32), model.layers[1])
    assert mask.all()


def test_what_could_not_be_read_back_is_not_written(small, tmp_path):
    predictor = MAKERS["shadow"](*small)
    predictor.tables["up_scale"][1, 3] = np.inf  # a weight too large for a float16
    with pytest.raises(CheckpointError, match=r"table.up_scale holds inf in layer 1, expected finite numbers above 0"):
        save_predictor(tmp_path / "p.safetensors", predictor)
    assert not list(tmp_path.iterdir())


# ---- whose they are --------------------------------------------------------------------------------------------------


def twin_of(small, tmp_path, **changes):
    return tiny.loaded(tmp_path / "twin", seed=9, hidden_size=16, intermediate_size=24, **changes)


@pytest.mark.parametrize("kind", MAKERS)
def test_every_predictor_names_its_model_and_a_twin_is_warned_of_once(kind, small, tmp_path):
    model, thresholds = small
    predictor, twin = MAKERS[kind](model, thresholds), twin_of(small, tmp_path)
    fit_cutoffs(model, predictor, thresholds, tiny.STORIES, 0.5)
    save_predictor(tmp_path / "p.safetensors", predictor)
    back = load_predictor(tmp_path / "p.safetensors")
    assert back.model == predictor.model == model.fingerprint
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparse_ffn(model, thresholds, predictor=back)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        twin.forward([1, 2, 3], ffn=sparse_ffn(twin, replace(thresholds, model=None), predictor=back))
    (note,) = notes
    assert back.name in str(note.message) and "small" not in str(note.message)
    assert f"another model, {model.fingerprint}, and is used with {twin.fingerprint}" in str(note.message)


def test_cutoffs_for_another_model_are_warned_of_and_leave_the_predictor_what_it_is(small, tmp_path):
    model, thresholds = small
    predictor, twin = MAKERS["shadow"](model, thresholds), twin_of(small, tmp_path)
    with pytest.warns(UserWarning, match="the predictor shadow 3-bit was made for another model"):
        fit_cutoffs(twin, predictor, replace(thresholds, model=None), tiny.STORIES, 0.5)
    assert predictor.model == model.fingerprint
    with pytest.warns(UserWarning, match="the set of mid thresholds was made for another model"):
        fit_cutoffs(twin, MAKERS["chance"](twin, thresholds), thresholds, tiny.STORIES, 0.5)


def test_an_older_file_without_a_model_is_read_in_silence(small, tmp_path):
    model, thresholds = small
    predictor = MAKERS["static"](model, thresholds)
    predictor.model = None
    fit_cutoffs(model, predictor, thresholds, tiny.STORIES, 0.5)
    save_predictor(tmp_path / "p.safetensors", predictor)
    back, twin = load_predictor(tmp_path / "p.safetensors"), twin_of(small, tmp_path)
    assert back.model is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparse_ffn(twin, replace(thresholds, model=None), predictor=back)


def test_an_older_file_of_a_learned_predictor_says_no_target_and_was_trained_on_the_mask(small, tmp_path):
    settings = []
    for kind in ("learned", "learned hidden"):
        save_predictor(tmp_path / "p.safetensors", predictor := MAKERS[kind](*small))
        settings.append(predictor.settings())
        assert load_predictor(tmp_path / "p.safetensors").target == predictor.target
    assert settings == [{"shape": (2, 16, 24), "ahead": 0}, {"shape": (2, 16, 24), "ahead": 0, "target": "mid"}]


# ---- foreign files ---------------------------------------------------------------------------------------------------


def metadata(kind="sign", **changes) -> dict:
    about = {"settings": {"shape": [1, 8, 2]}, "shape": [1, 8, 2], "trained_on": []} | changes.pop("about", {})
    return {"format": "minillm-predictor", "version": "1", "kind": kind, "predictor": json.dumps(about)} | changes


MODEL = {"name": "m", "shape": [1, 8, 2], "sha256": "0" * 64}
BITS = {"table.bits": np.zeros((1, 2, 1), np.uint8)}
FOREIGN = {
    "another format": (BITS, metadata(format="pt")),
    "no metadata": (BITS, None),
    "a later version": (BITS, metadata(version="2")),
    "a field of the metadata too many": (BITS, metadata(note="x")),
    "a field too many": (BITS, metadata(about={"note": 1})),
    "a setting too many": (BITS, metadata(about={"settings": {"shape": [1, 8, 2], "seed": 0}})),
    "a setting of another type": (BITS, metadata(about={"settings": {"shape": [1.0, 8, 2]}})),
    "a shape of true": (BITS, metadata(about={"shape": [True, 8, 2]})),
    "hashes that are none": (BITS, metadata(about={"trained_on": ["x"]})),
    "a model that is a name": (BITS, metadata(about={"model": "m"})),
    "a model of another shape": (BITS, metadata(about={"model": MODEL | {"shape": [1, 8, 3]}})),
    "a table too many": (BITS | {"table.more": np.zeros(1, np.float32)}, metadata()),
    "NaN as a cutoff": (BITS | {"cutoffs": np.array([np.nan])}, metadata()),
    "infinity as a cutoff": (BITS | {"cutoffs": np.array([-np.inf])}, metadata()),
    "shares above one": ({"table.shares": np.full((1, 2), 2, np.float32)}, metadata("static")),
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
    with pytest.raises(CheckpointError, match="is missing"):
        load_predictor(tmp_path / "absent")
    broken = {"empty": b"", "text": b"hello, this is no predictor", "half": b"\x10" + bytes(7) + b"{"}
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name}: the header "):
            load_predictor(tmp_path / name)
