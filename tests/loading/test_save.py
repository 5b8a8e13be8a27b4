"""A folder that is written is a model of Hugging Face: minillm loads it, and so does transformers."""

import errno
import json
import os

import numpy as np
import pytest
import tiny

from minillm.errors import CheckpointError
from minillm.loading.checkpoint import load_weights, split_fused
from minillm.loading.config import ModelConfig
from minillm.loading.save import fused, save_model, write_model
from minillm.transformer.model import Llama


def test_a_saved_model_loads_with_its_tokenizer_and_gives_the_same_logits(tmp_path):
    model = tiny.loaded(tmp_path / "source", "float32")
    (tmp_path / "source" / "generation_config.json").write_text('{"eos_token_id": [2, 5]}', encoding="utf-8")
    out = save_model(tmp_path / "out", model.weights, tmp_path / "source", more={"notes.json": "{}"})
    again = Llama.from_folder(out)
    ids = model.tokenizer.encode("the cat sat")
    assert again.tokenizer.encode("the cat sat") == ids and again.config.eos_token_ids == (2, 5)
    assert np.array_equal(again.forward(ids), model.forward(ids))
    assert (out / "notes.json").read_text(encoding="utf-8") == "{}"


@pytest.mark.parametrize("family", ["plain", *tiny.FAMILIES])
def test_every_family_comes_back_bit_for_bit(tmp_path, family):
    model = tiny.model(family, np.float32)
    fields = {**tiny.LLAMA, **tiny.FAMILIES.get(family, {})}
    write_model(tmp_path, fields, model.weights)
    back = load_weights(tmp_path, ModelConfig.from_folder(tmp_path))
    assert back.keys() == model.weights.keys()
    assert all(np.array_equal(back[name], w) for name, w in model.weights.items())


def test_fusing_is_the_inverse_of_splitting():
    config, rng = tiny.config("phi3"), np.random.default_rng(0)
    stored = {name: rng.standard_normal(shape) for name, shape in config.tensor_shapes().items()}
    again = fused(split_fused(stored, config), config)
    assert again.keys() == stored.keys() and all(np.array_equal(again[name], w) for name, w in stored.items())


def test_the_config_says_the_dtype_that_is_written_and_keeps_the_rest(tmp_path):
    source = tiny.folder(tmp_path / "source", torch_dtype="bfloat16", rope_theta=500.0)
    wide = Llama.from_folder(source, "float64")
    fields = json.loads((save_model(tmp_path / "out", wide.weights, source) / "config.json").read_text("utf-8"))
    assert fields["dtype"] == "float32" and "torch_dtype" not in fields and fields["rope_theta"] == 500.0
    assert Llama.from_folder(tmp_path / "out").weights["model.norm.weight"].dtype == np.float32


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_folder_that_exists_stays_and_one_that_fails_leaves_nothing(tmp_path, monkeypatch):
    model = tiny.loaded(tmp_path / "source", "float32")
    with pytest.raises(CheckpointError, match="source: exists already"):
        save_model(tmp_path / "source", model.weights, tmp_path / "source")
    monkeypatch.setattr("minillm.loading.save.save_tensors", full_disk)
    with pytest.raises(CheckpointError, match="out: cannot be written .No space left"):
        save_model(tmp_path / "out", model.weights, tmp_path / "source")
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parity
@pytest.mark.parametrize("family", ["qwen2", "phi3"])
def test_transformers_loads_what_is_written(tmp_path, family):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    fields = {**tiny.LLAMA, **tiny.FAMILIES[family], "hidden_size": 16, "pad_token_id": 0}
    config = ModelConfig.from_dict(fields)
    model = Llama(config, tiny.weights(config, np.float32))
    write_model(tmp_path, fields, model.weights)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    )
    ids = [1, 5, 3, 9, 30]
    with torch.no_grad():
        logits = theirs(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(model.forward(ids) - logits).max() < 1e-5 * np.abs(logits).max()
