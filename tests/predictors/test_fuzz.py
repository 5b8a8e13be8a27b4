"""Predictor files that are right but for one or two things: one sentence, or a predictor whose every table is right."""

import json
import math
import re

import fuzz
import fuzz_arrays
import numpy as np
import pytest
import tiny
from made import MAKERS

from minillm.predictors.clusters import Clusters, ClusterSettings
from minillm.predictors.cutoffs import fit_cutoffs
from minillm.predictors.files import load_predictor, save_predictor
from minillm.predictors.memory import Library, LibrarySettings
from minillm.sparsity.calibrate import calibrate

ALL = MAKERS | {
    "informed": lambda m, t: MAKERS["shadow"](m, t).fit(m, 4, np.stack([np.eye(m.config.hidden_size)] * 2)),
    "library": lambda m, t: Library.fit(m, t, tiny.STORIES, np.random.default_rng(0), LibrarySettings(20, 3)),
    "clusters": lambda m, t: Clusters.fit(m, t, tiny.STORIES, np.random.default_rng(0), ClusterSettings(4)),
}
TOGETHER = ({"table.gate_error", "table.up_error"}, {"table.gate_bias", "table.up_bias"}, {"table.h"}, {"cutoffs"})
SHARES = ("table.shares", "table.frequency")


@pytest.fixture(scope="module")
def biased(tmp_path_factory):
    """(model with biases, thresholds of mid)."""
    model = tiny.loaded(tmp_path_factory.mktemp("biased") / "model", mlp_bias=True)
    return model, calibrate(model, tiny.STORIES, "mid", 0.5)


def once(pairs: list) -> dict:
    """The fields of an object. Fails for a name that stands twice."""
    assert len({name for name, _ in pairs}) == len(pairs)
    return dict(pairs)


def contents(raw: bytes) -> tuple[dict, dict]:
    """The metadata's JSON and the header of a file, by a reader of its own."""
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")], object_pairs_hook=once)
    metadata = header.pop("__metadata__")
    assert set(metadata) == {"format", "version", "kind", "predictor"} and metadata["version"] == "1"
    return json.loads(metadata["predictor"], object_pairs_hook=once), header


def valid_tables(found, header: dict, was: dict, raw: bytes) -> None:
    data = raw[8 + int.from_bytes(raw[:8], "little") :]
    missing = set(was) - set(header)
    assert set(header) <= set(was) and all(missing & group in (set(), group & set(was)) for group in TOGETHER)
    assert missing <= set().union(*TOGETHER)
    for name, entry in header.items():
        assert (entry["dtype"], entry["shape"]) == (was[name]["dtype"], was[name]["shape"]), name
        if entry["dtype"] == "U8":
            continue
        array = np.frombuffer(data[slice(*entry["data_offsets"])], fuzz_arrays.NUMBERS[entry["dtype"]])
        assert np.isfinite(array).all(), name
        assert not name.endswith("_scale") or (array > 0).all(), name
        assert not name.endswith("_error") or (array >= 0).all(), name
        assert name not in SHARES or ((array >= 0) & (array <= 1)).all(), name
        if name == "cutoffs":
            assert np.array_equal(found.cutoffs, array)


def check_against(path, good: bytes):
    """A check of what was read: as in the good file, but for values that may differ."""
    about_was, was = contents(good)

    def valid(found) -> None:
        raw = path.read_bytes()
        about, header = contents(raw)
        assert set(about) | {"model"} == set(about_was) and about["shape"] == about_was["shape"] == list(found.shape)
        assert set(about["settings"]) | {"target"} == set(about_was["settings"]) | {"target"}  # older files have none
        for name, value in about["settings"].items():
            assert type(value) is type(about_was["settings"][name]) or name == "level", name
            if name in ("k", "level", "seed"):
                assert math.isfinite(value) and 0 <= value and (name == "level" or value < 2**64)
            elif name in ("hidden_act", "act"):
                assert value in ("silu", "relu", "relu2", "gelu", "gelu_pytorch_tanh"), value
            elif name == "target":
                assert value in ("mask", "mid")
            elif name != "ahead":
                assert value == about_was["settings"][name], name
        assert all(re.fullmatch("[0-9a-f]{64}", each) for each in about["trained_on"])
        assert found.trained_on == set(about["trained_on"])
        if (model := about.get("model")) is not None:
            assert set(model) == {"name", "shape", "sha256"} and model["shape"] == about["shape"]
            assert re.fullmatch("[0-9a-f]{64}", model["sha256"]) and found.model.sha256 == model["sha256"]
        valid_tables(found, header, was, raw)
        with np.errstate(all="ignore"):
            x = np.ones((1, found.shape[1]))
            assert [found.predict(i, 0, x).shape for i in range(found.shape[0])] == [(1, found.shape[2])] * 2

    return valid


@fuzz.examples
@pytest.mark.parametrize("kind", ALL)
def test_a_changed_file_gives_one_sentence_or_a_predictor_that_is_right(kind, examples, biased, tmp_path):
    predictor = ALL[kind](*biased)
    predictor.attach(biased[0])
    fit_cutoffs(biased[0], predictor, biased[1], tiny.STORIES, 0.5)
    save_predictor(path := tmp_path / "p.safetensors", predictor)
    good = path.read_bytes()

    def parse(path):
        found = load_predictor(path)
        found.attach(biased[0])
        return found

    files = fuzz_arrays.safetensors_files(good, "predictor")
    counts = fuzz.holds(examples // 3, files, path, parse, check_against(path, good))
    assert counts["accepted"] and counts["refused"] > examples // 6, counts


ABOUT = {"settings": {"shape": [1, 8, 2]}, "shape": [1, 8, 2], "trained_on": []}
METADATA = {"format": "minillm-predictor", "version": "1", "kind": "sign", "predictor": json.dumps(ABOUT)}
HUGE = {
    "a table that the kind lacks": {"table.bits": ("U8", [1, 2, 1]), "table.other": ("F32", [500_000_000])},
    "cutoffs without end": {"table.bits": ("U8", [1, 2, 1]), "cutoffs": ("F64", [250_000_000])},
    "a table of another shape": {"table.bits": ("U8", [1, 2, 1_000_000_000])},
    "a table of another dtype": {"table.bits": ("F64", [1, 2, 1, 125_000_000])},
}


@pytest.mark.parametrize("what", HUGE)
def test_two_gigabytes_that_do_not_belong_there_are_refused_before_they_are_read(what, tmp_path):
    raw = fuzz_arrays.declared(METADATA, HUGE[what])
    rest = sum(fuzz_arrays.SIZES[dtype] * math.prod(shape) for dtype, shape in HUGE[what].values())
    path = fuzz.huge(tmp_path / "p.safetensors", raw, len(raw) + rest)
    with pytest.raises(Exception, match="tensor (table.other|cutoffs|table.bits|'table.other')"):
        load_predictor(path)
    assert fuzz.memory_of(load_predictor, path) < 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("unit", ['{"":{}},', "[],", '{"":0},'])
def test_a_header_made_to_take_memory_takes_little(unit, tmp_path):
    text = '{"settings": [' + unit * (7_900_000 // len(unit)) + "0]}"
    path = tmp_path / "p.safetensors"
    for raw in (
        fuzz_arrays.with_header('{"__metadata__": ' + text + "}", b""),
        fuzz_arrays.declared(METADATA | {"predictor": text}, {}),
    ):
        path.write_bytes(raw)
        assert fuzz.parsed(load_predictor, path, lambda found: False) == "refused"
        assert fuzz.memory_of(load_predictor, path) < fuzz.MEMORY
