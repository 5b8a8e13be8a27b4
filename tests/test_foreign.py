"""Weights of other kinds are named with the way out; a file of another kind is told by its first bytes."""

import json

import hostile
import pytest

from minillm.errors import ConfigError
from minillm.foreign import START, foreign_content, other_weights
from minillm.loading.config import ModelConfig


@pytest.mark.parametrize(("file", "named"), [
    ("pytorch_model.bin", "safe_serialization"), ("PYTORCH_MODEL-00001-of-00009.BIN", "safe_serialization"),
    ("llama-2-7b.Q4_K_M.gguf", "llama.cpp"), ("consolidated.00.pth", "Hugging Face"), ("adapter_model.bin", "LoRA"),
    ("model-00001-of-00002.safetensors", "model.safetensors.index.json"), ("mine.safetensors", "name it"),
    ("bundle.json", "minillm prefetch real"),
])  # fmt: skip
def test_the_file_and_the_way_out_are_named(file, named, tmp_path):
    (tmp_path / "README.md").touch()
    (tmp_path / file).touch()
    found = other_weights(tmp_path)
    assert found.startswith(f"holds {file}: ") and named in found


def test_the_weights_themselves_are_not_foreign(tmp_path):
    assert other_weights(tmp_path) is None and other_weights(tmp_path / "absent") is None
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "tokenizer.json").touch()
    assert other_weights(tmp_path) is None


def test_several_files_are_counted(tmp_path):
    for number in range(1, 4):
        (tmp_path / f"model-0000{number}-of-00003.safetensors").touch()
    assert other_weights(tmp_path).startswith("holds model-00001-of-00003.safetensors and 2 more such file(s): ")


@pytest.mark.parametrize("file", ["model.gguf", "consolidated.00.pth", "adapter_model.safetensors"])
def test_a_folder_without_config_json_is_told_what_it_holds(file, tmp_path):
    """These formats come without a config.json, which is read first."""
    (tmp_path / file).touch()
    with pytest.raises(ConfigError, match=rf"config\.json: is missing, .* holds {file}"):
        ModelConfig.from_folder(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(ConfigError, match=r"config\.json: is missing"):
        ModelConfig.from_folder(tmp_path)


def test_the_cache_s_own_folder_is_no_model(tmp_path):
    snapshot = hostile.hub_cache(tmp_path)
    with pytest.raises(ConfigError, match="snapshots"):
        ModelConfig.from_folder(snapshot.parents[1])


def test_a_model_s_own_files_are_not_foreign():
    for good in (json.dumps(hostile.CONFIG).encode(), hostile.GOOD, b"", b"{}", b"\xef\xbb\xbf{}", b"[1]", b"<"):
        assert foreign_content(good[:START], "a file") is None
    assert foreign_content(b"GGUF\3", "weights").startswith("is a GGUF file of llama.cpp, expected weights: ")
