"""The table of families: defaults as transformers has them, and names of files that come back."""

import doctest

import pytest
import tiny

from minillm.loading import families
from minillm.loading.families import FAMILIES, NORMS_OF, file_name
from minillm.transformer.blocks import WIRINGS


def test_the_examples_of_the_docstrings_are_right():
    assert doctest.testmod(families) == (0, 1)


def test_each_wiring_has_its_norms():
    assert NORMS_OF.keys() == WIRINGS.keys()


@pytest.mark.parametrize(
    ("family", "name", "expected"),
    [
        ("llama", "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"),
        ("opt", "model.embed_tokens.weight", "model.decoder.embed_tokens.weight"),
        ("opt", "model.layers.1.input_layernorm.bias", "model.decoder.layers.1.self_attn_layer_norm.bias"),
        ("opt", "model.layers.1.post_attention_layernorm.weight", "model.decoder.layers.1.final_layer_norm.weight"),
        ("opt", "model.norm.weight", "model.decoder.final_layer_norm.weight"),
        ("opt", "model.layers.1.self_attn.o_proj.weight", "model.decoder.layers.1.self_attn.out_proj.weight"),
        ("phi", "model.layers.1.mlp.down_proj.bias", "model.layers.1.mlp.fc2.bias"),
        ("phi", "lm_head.bias", "lm_head.bias"),
        ("gpt_neox", "lm_head.weight", "embed_out.weight"),
        ("gpt_neox", "model.layers.1.self_attn.v_proj.bias", "gpt_neox.layers.1.attention.query_key_value.bias"),
        ("phi3", "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.gate_up_proj.weight"),
    ],
)
def test_names_in_files(family, name, expected):
    assert file_name(family, name) == expected


@pytest.mark.parametrize("family", [*tiny.FAMILIES, *tiny.OTHERS])
def test_the_tensors_of_a_file_hold_each_weight_once(family):
    config = tiny.config(family)
    stored, weights = config.tensor_shapes(), config.weight_shapes()
    assert {config.file_name(name) for name in weights} == stored.keys()
    assert sum(rows for rows, *_ in stored.values()) == sum(rows for rows, *_ in weights.values())


@pytest.mark.parity
@pytest.mark.parametrize("name", FAMILIES)
def test_the_defaults_are_those_of_transformers(name):
    transformers = pytest.importorskip("transformers")
    theirs, family = transformers.AutoConfig.for_model(name), FAMILIES[name]
    own = family.fields
    for field in ("max_position_embeddings", "rms_norm_eps", "bos_token_id", "eos_token_id", "tie_word_embeddings"):
        if (name, field) != ("opt", "rms_norm_eps"):  # OPT has torch's own
            assert getattr(theirs, own.get(field, field)) == getattr(family, field), field
    assert getattr(theirs, own.get("hidden_act", "hidden_act")) == family.hidden_act
    heads = theirs.num_attention_heads
    if name not in ("opt", "gpt_neox"):  # which know no grouped queries
        assert theirs.num_key_value_heads == family.num_key_value_heads or family.num_key_value_heads is None
    assert (getattr(theirs, "head_dim", None) or theirs.hidden_size // heads) == (
        family.head_dim or theirs.hidden_size // heads
    )
    if name not in ("qwen2", "qwen3", "smollm3"):  # theirs drop it, as use_sliding_window is false by default
        assert getattr(theirs, "sliding_window", None) == family.sliding_window
    if name == "opt":
        return
    rope = theirs.rope_parameters["full_attention"] if name == "gemma3_text" else theirs.rope_parameters
    assert rope["rope_theta"] == family.rope_theta
    assert rope.get("partial_rotary_factor", 1.0) == (family.partial_rotary_factor or 1.0)
