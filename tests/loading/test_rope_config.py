"""The rotations of a config.json: yarn and dynamic (the others are in test_config.py and test_hostile.py)."""

import math

import pytest
import tiny

from minillm.transformer.rope import rope_frequencies

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def test_yarn_with_the_defaults_of_transformers():
    rope = tiny.config("qwen3", rope_scaling=YARN).rope
    assert (rope.beta_fast, rope.beta_slow, rope.truncate, rope.factor) == (32.0, 1.0, True, 4.0)
    assert rope.attention_factor == pytest.approx(0.1 * math.log(4) + 1, rel=1e-15)
    assert tiny.config("qwen3", rope_scaling={**YARN, "attention_factor": 1.5}).rope.attention_factor == 1.5
    scales = {"mscale": 2.0, "mscale_all_dim": 0.5}
    expected = (0.2 * math.log(4) + 1) / (0.05 * math.log(4) + 1)
    assert tiny.config("qwen3", rope_scaling={**YARN, **scales}).rope.attention_factor == pytest.approx(expected)


def test_a_key_that_transformers_does_not_read_is_noted():
    """DeepSeek-R1-0528-Qwen3-8B has attn_factor in its file; transformers reads attention_factor alone."""
    with pytest.warns(UserWarning, match="attn_factor is not looked at"):
        rope = tiny.config("qwen3", rope_scaling={**YARN, "attn_factor": 0.88}).rope
    assert rope.attention_factor == pytest.approx(0.1 * math.log(4) + 1)


def test_dynamic_changes_nothing_up_to_the_models_context():
    plain, scaled = tiny.config("plain"), tiny.config("plain", rope_scaling={"type": "dynamic", "factor": 4.0})
    assert scaled.rope.rope_type == "dynamic"
    assert rope_frequencies(plain.rope, 64).tolist() == rope_frequencies(scaled.rope, 64).tolist()
