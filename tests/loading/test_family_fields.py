"""What each family has of its own, and what it refuses by name."""

import pytest
import tiny

from minillm.errors import ConfigError
from minillm.loading.config import ModelConfig
from minillm.loading.families import FAMILIES

LLAMA = ModelConfig.from_dict(tiny.LLAMA)
OWN = """wiring norm final_norm gated qk_norm qk_norm_whole attention_scale attention_cap embedding_size
    learned_positions embedding_scale residual_scale head_bias logit_divisor logit_cap qkv_bias o_bias mlp_bias
    other_rope_layers""".split()


def differences(family: str) -> dict:
    """The fields in which a tiny model of the family is no Llama."""
    config = tiny.config(family)
    return {name: getattr(config, name) for name in OWN if getattr(config, name) != getattr(LLAMA, name)}


BIASES = dict.fromkeys(("qkv_bias", "o_bias", "mlp_bias"), True)
OPT = {"norm": "layer", "gated": False, "learned_positions": True, **BIASES}


@pytest.mark.parametrize(
    ("family", "expected"),
    {
        "granite": {"wiring": "scaled", "attention_scale": 0.2, "embedding_scale": 12.0, "residual_scale": 0.22,
                    "logit_divisor": 8.0},
        "smollm3": {"other_rope_layers": (0,)},
        "olmo2": {"wiring": "norm_after", "qk_norm": True, "qk_norm_whole": True},
        "gemma": {"norm": "rms_from_one", "embedding_scale": 8**0.5},
        "gemma2": {"norm": "rms_from_one", "embedding_scale": 8**0.5, "wiring": "sandwich", "attention_scale": 6**-0.5,
                   "attention_cap": 50.0, "logit_cap": 30.0},
        "gemma3_text": {"norm": "rms_from_one", "embedding_scale": 8**0.5, "wiring": "sandwich",
                        "attention_scale": 256**-0.5, "qk_norm": True, "other_rope_layers": (0,)},
        "stablelm": {"norm": "layer", "qkv_bias": True},
        "gpt_neox": {"norm": "layer", "gated": False, "wiring": "parallel", **BIASES},
        "phi": {"norm": "layer", "gated": False, "wiring": "parallel_one_norm", "head_bias": True, **BIASES},
        "opt": OPT,
        "opt_350m": {**OPT, "wiring": "post_norm", "final_norm": False, "embedding_size": 6},
    }.items(),
)  # fmt: skip
def test_how_a_family_differs_from_a_llama(family, expected):
    assert differences(family) == expected


def test_windows_by_layer():
    assert tiny.config("gemma2", num_hidden_layers=4).sliding_windows == (3, None, 3, None)
    assert tiny.config("gemma3_text", num_hidden_layers=4, sliding_window_pattern=3).sliding_windows == (3, 3, None, 3)
    windowed = {"use_sliding_window": True, "sliding_window": 5, "num_hidden_layers": 4, "no_rope_layers": None}
    assert tiny.config("smollm3", **windowed).sliding_windows == (None, None, None, 5)  # where positions turn nothing
    assert tiny.config("smollm3", **windowed).other_rope_layers == (3,)
    kinds = ["full_attention", "sliding_attention"]
    assert tiny.config("gemma2", layer_types=kinds).sliding_windows == (None, 3)


def test_gemma_3_has_a_rotation_for_each_kind_of_layer():
    old = tiny.config("gemma3_text", rope_theta=1e5, rope_local_base_freq=500.0,
                      rope_scaling={"rope_type": "linear", "factor": 8.0})  # fmt: skip
    new = tiny.config("gemma3_text", rope_parameters={
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0}})  # fmt: skip
    assert old.ropes == new.ropes and old.rope.factor == 8.0 and old.ropes[1].theta == 500.0
    absent = tiny.config("gemma3_text")
    assert [rope.theta for rope in absent.ropes] == [1e6, 1e4]


@pytest.mark.parametrize(
    ("family", "changes", "found"),
    [
        ("opt", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine is False"),
        ("opt", {"head_dim": 4}, "head_dim is 4"),
        ("opt", {"ffn_dim": 0}, "ffn_dim is 0"),
        ("opt", {"activation_function": "tanh"}, "activation_function is 'tanh'"),
        ("phi", {"qk_layernorm": True}, "qk_layernorm is True"),
        ("phi", {"layer_norm_eps": "x"}, "layer_norm_eps is 'x'"),
        ("stablelm", {"qk_layernorm": True}, "qk_layernorm is True"),
        ("gpt_neox", {"rotary_pct": 2.0}, "partial_rotary_factor is 2.0"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("gemma2", {"attn_logit_softcapping": -1.0}, "attn_logit_softcapping is -1.0"),
        ("granite", {"residual_multiplier": 0}, "residual_multiplier is 0"),
        ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers is [1]"),
        ("smollm3", {"no_rope_layers": [True, False]}, "no_rope_layers is [True, False]"),
        ("olmo2", {"sliding_window": 5}, "sliding_window is 5"),
        ("granite", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ],
)
def test_what_is_not_implemented_is_refused_by_the_name_in_the_file(family, changes, found):
    with pytest.raises(ConfigError) as problem:
        tiny.config(family, **changes)
    assert found in str(problem.value)


def test_every_family_has_a_tiny_model():
    assert {tiny.config(name).model_type for name in [*tiny.FAMILIES, *tiny.OTHERS]} == FAMILIES.keys()
