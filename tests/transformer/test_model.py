"""The model around its blocks: ids in, logits out, what it says of itself, and what it refuses."""

import numpy as np
import pytest
import tiny

from minillm.errors import MinillmError, TokenizerError
from minillm.transformer.attention import KVCache
from minillm.transformer.blocks import Positions, block
from minillm.transformer.ffn import swiglu
from minillm.transformer.model import Llama, random_weights, shape_of
from minillm.transformer.ops import rms_norm
from minillm.transformer.rope import rope_table

IDS = [1, 5, 3, 9]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_logits_are_the_head_of_the_normed_stream_behind_all_blocks(family):
    model = tiny.model(family)
    h, positions = model.embed_tokens[IDS], Positions(0, (rope_table(model.config.rope, 4, np.float64),))
    for layer in model.layers:
        h = block(h, layer, positions, swiglu, lambda name, value: value)
    hidden = rms_norm(h, model.norm, model.config.rms_norm_eps)
    assert np.array_equal(model.hidden(IDS), hidden)
    assert np.array_equal(model.forward(IDS), hidden @ model.lm_head.T)


def test_a_tied_head_is_the_embedding_and_is_counted_once():
    tied, untied = tiny.model("qwen2"), tiny.model("llama")
    assert tied.lm_head is tied.embed_tokens and tied.parameters["head"] == 0
    assert untied.lm_head is not untied.embed_tokens and untied.parameters["head"] == 31 * 8
    for model in (tied, untied):
        weights = random_weights(model.config, np.random.default_rng(0))
        assert sum(model.parameters.values()) == sum(array.size for array in weights.values())


def test_parameters_are_counted_by_part():
    plain = tiny.model()  # D 8, F 12, H 4, K 2, d 4, V 31, L 2
    attention, ffn = 2 * (16 * 8 + 8 * 8 + 8 * 8 + 8 * 16), 2 * 3 * 12 * 8
    assert plain.parameters == {"embedding": 248, "attention": attention, "ffn": ffn, "norms": 5 * 8, "head": 248}
    assert shape_of(plain) == (2, 8, 12)


@pytest.mark.parametrize("ids", [[], [31], [-1], [[1, 2]], [[1], [2, 3]], [1.5], ["a"], 3])
def test_what_is_no_list_of_token_ids_is_refused(ids):
    with pytest.raises(MinillmError, match="token id"):
        tiny.model().forward(ids)


def test_a_text_longer_than_the_context_is_refused_with_and_without_a_cache():
    model = tiny.model(max_position_embeddings=4)
    assert model.forward(IDS).shape == (4, 31)
    with pytest.raises(MinillmError, match="5 tokens, the model takes at most 4"):
        model.forward([*IDS, 1])
    cache = KVCache(model.config, 4, np.float64)
    model.forward(IDS, cache)
    with pytest.raises(MinillmError, match="4 of 4 positions, 1 more"):
        model.forward([1], cache)


def test_a_model_is_named_after_its_folder_or_its_repository_and_a_random_one_has_no_tokenizer(tmp_path):
    folder = tiny.folder(tmp_path / "small")
    assert Llama.from_folder(folder).name == "small"
    snapshot = tiny.folder(tmp_path / "models--org--name" / "snapshots" / "0123abc")
    assert Llama.from_folder(snapshot, "float64").name == "org/name"
    random = tiny.model("qwen3")
    assert random.name == "random qwen3" and not random.has_tokenizer
    with pytest.raises(TokenizerError, match="no tokenizer"):
        _ = random.tokenizer
    (folder / "tokenizer.json").unlink()
    assert Llama.from_folder(snapshot).has_tokenizer and not Llama.from_folder(folder).has_tokenizer


def test_random_weights_have_the_names_that_load_weights_gives_and_no_part_that_leaves_no_trace():
    config = tiny.config("phi3", num_hidden_layers=1)
    weights = random_weights(config, np.random.default_rng(0), np.float64)
    assert "model.layers.0.self_attn.q_proj.weight" in weights and not any("qkv" in name for name in weights)
    assert all(array.dtype == np.float64 for array in weights.values())
    norm, matrix = weights["model.norm.weight"], weights["model.layers.0.mlp.up_proj.weight"]
    assert abs(norm.mean() - 1) < 0.1 and abs(matrix.mean()) < 0.01 and 0 < norm.std() < 0.1
