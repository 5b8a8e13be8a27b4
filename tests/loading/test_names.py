"""Stored names become those that config.json asks for: a prefix is taken off, what is not used is left out."""

import json

import hostile
import numpy as np
import pytest
from hostile import EMBED, HEAD, INV_FREQ, NORM, Q1, TIED, changed, tiny_tensors, write_folder, write_index

from minillm.errors import CheckpointError
from minillm.loading.checkpoint import load_weights
from minillm.loading.config import ModelConfig
from minillm.loading.names import is_derived, plain_name


def load(folder):
    return load_weights(folder, ModelConfig.from_folder(folder))


def renamed(change, tied=False):
    return {change(name): array for name, array in tiny_tensors(tied=tied).items()}


def bare(name):
    return name.removeprefix("model.")


PREFIXES = {
    "model.model., the head inside": lambda name: f"model.{name}",
    "model.model., the head beside": lambda name: name if name == HEAD else f"model.{name}",
    "language_model": lambda name: f"language_model.{name}",
    "model.language_model": lambda name: name if name == HEAD else f"model.language_model.{bare(name)}",
    "peft": lambda name: f"base_model.model.{name}",
    "transformer": lambda name: name if name == HEAD else f"transformer.{bare(name)}",
    "data parallel": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "each layer compiled": lambda name: name.replace("layers.0.", "layers.0._orig_mod."),
    "fully sharded": lambda name: f"_fsdp_wrapped_module.{name}".replace(".mlp.", ".mlp._fsdp_wrapped_module."),
    "without model.": bare,
}


@pytest.mark.parametrize("case", PREFIXES)
@pytest.mark.parametrize("shards", [1, 2])
def test_names_with_a_known_prefix_are_read_with_a_note(case, shards, tmp_path):
    folder = write_folder(tmp_path, renamed(PREFIXES[case]), shards=shards)
    with pytest.warns(UserWarning, match=r"names of its tensors") as notes:
        weights = load(folder)
    assert len(notes) == 1 and weights.keys() == tiny_tensors().keys()
    for name, array in tiny_tensors().items():
        assert np.array_equal(weights[name], array), name


@pytest.mark.parametrize("left_out", [HEAD, EMBED])
def test_one_of_two_tied_matrices_is_enough_under_any_prefix(left_out, tmp_path):
    tensors = {f"module.{name}": array for name, array in tiny_tensors().items() if name != left_out}
    folder = write_folder(tmp_path, tensors, changed(TIED))
    with pytest.warns(UserWarning, match="'module.model.'"):
        weights = load(folder)
    assert np.array_equal(weights[EMBED], tiny_tensors()[EMBED if left_out == HEAD else HEAD])
    assert weights.keys() == hostile.tiny_shapes(tied=True).keys()


def test_a_model_saved_without_its_head_is_read_where_the_head_is_tied(tmp_path):
    fields = changed({**TIED, "architectures": ["LlamaModel"]})
    folder = write_folder(tmp_path, renamed(bare, tied=True), fields)
    with pytest.warns(UserWarning, match=r'lack the "model\." in front'):
        assert load(folder).keys() == hostile.tiny_shapes(tied=True).keys()


def test_names_that_are_as_expected_give_no_note(tmp_path, recwarn):
    load(write_folder(tmp_path, {**tiny_tensors(), INV_FREQ: np.zeros(2)}))
    assert not recwarn.list


UNUSED = {
    "position_ids": ("I64", [1, 4], bytes(32)), "model.counter": ("U8", [], b"\1"),
    "model.layers.0.self_attn.kv_cache.scale": ("F8_E4M3", [2, 2, 1], bytes(4)), "weight": ("BOOL", [2], bytes(2)),
    "vision.weight": ("F64", [1], bytes(8)),
}  # fmt: skip


def test_tensors_of_other_dtypes_that_no_matrix_has_are_left_out_with_one_note(tmp_path):
    tensors = {name: hostile.encode(array) for name, array in tiny_tensors().items()}
    folder = write_folder(tmp_path, {**tensors, **UNUSED})
    with pytest.warns(UserWarning, match=r"4 tensor\(s\) of BOOL, F64, F8_E4M3, U8 are not used") as notes:
        weights = load(folder)
    assert len(notes) == 1 and weights.keys() == tiny_tensors().keys()


@pytest.mark.parametrize("shards", [1, 2])
def test_index_and_shards_may_disagree_about_what_is_not_needed(shards, tmp_path, recwarn):
    """RoPE's frequencies, and a head that is tied: in the index, in a shard, in another shard than listed, in none."""
    kept = tiny_tensors(tied=True)
    head = {HEAD: kept[EMBED]}
    for i, (stored, listed) in enumerate([
        (kept, [*kept, INV_FREQ]), ({**kept, INV_FREQ: np.ones(2)}, kept),
        (kept, [*kept, HEAD]), (kept | head, kept), (kept | head, [*kept, HEAD]),
    ]):  # fmt: skip
        folder = write_folder(tmp_path / str(i), stored, changed(TIED), shards=2)
        last = "model-00002-of-00002.safetensors"
        index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        places = {name: index.get(name, last) for name in listed}
        if HEAD in places and HEAD in stored:
            places[HEAD] = "model-00001-of-00002.safetensors"
        if INV_FREQ in places and shards == 1:
            places[INV_FREQ] = "model-00003-of-00003.safetensors"  # which is not there
        write_index(folder, places, None)
        assert load(folder).keys() == kept.keys()
    assert not recwarn.list


def test_a_head_that_is_not_tied_is_needed(tmp_path):
    folder = write_folder(tmp_path, shards=2)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    tensors = {name: array for name, array in tiny_tensors().items() if name != HEAD}
    write_folder(folder, tensors, shards=2)
    write_index(folder, index)
    with pytest.raises(CheckpointError, match=r"lack 1 tensor\(s\) of config.json, first lm_head.weight"):
        load(folder)


def test_the_error_names_what_is_missing_and_what_was_found(tmp_path):
    for tensors, *named in (
        ({}, f"lack 21 tensor(s) of config.json, first {EMBED}", "hold 0"),
        ({NORM: np.ones(8)}, "lack 20", "they hold 1, first 'model.norm.weight'"),
        (renamed(lambda name: "blk." + name), "hold 21", f"'blk.{EMBED}'", f"first {EMBED}"),
        ({**tiny_tensors(), "more": np.ones(8)}, "hold 1", "'more'"),
    ):
        folder = write_folder(tmp_path / str(len(tensors)), tensors)
        with pytest.raises(CheckpointError) as refusal:
            load(folder)
        assert all(name in str(refusal.value) for name in named), refusal.value


def test_plain_names():
    assert plain_name(Q1) == ("model.", Q1) and plain_name(HEAD) == ("", HEAD)
    assert plain_name("norm.weight") == ("", NORM) and plain_name("model.model.norm.weight") == ("model.model.", NORM)
    assert plain_name("module.lm_head.weight") == ("module.", HEAD)
    assert plain_name("my_model.norm.weight") == ("", "model.my_model.norm.weight")  # no known prefix
    assert plain_name("") == ("", "model.")


def test_derived_tensors():
    assert is_derived("rotary_emb.inv_freq") and is_derived(INV_FREQ) and is_derived("transformer.h.0.attn.masked_bias")
    for name in (Q1, Q1.replace("weight", "bias"), "inv_freq", "my_rotary_emb.inv_freq", "attn.bias.x", "k_attn.bias"):
        assert not is_derived(name), name
