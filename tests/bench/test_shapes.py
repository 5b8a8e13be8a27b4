"""The shapes that are measured: their sizes are the published ones, and the random models of them load."""

import pytest

from minillm.bench.shapes import (
    SHAPES,
    config_at,
    fields_of,
    resident_in_words,
    write_made_up_tokenizer,
    write_random_model,
)
from minillm.errors import MinillmError
from minillm.loading.config import ModelConfig
from minillm.loading.tokenizer import Tokenizer
from minillm.prefetch.clock import LARGE, ffn_share
from minillm.transformer.model import Llama


def test_the_random_model_has_the_published_shape_and_loads(tmp_path):
    model = Llama.from_folder(write_random_model(tmp_path, "260K"))
    assert sum(model.parameters.values()) == 260_032 and model.parameters["head"] == 0  # llama2.c's stories260K
    sizes = {  # the same from the shapes alone, for the large ones
        name: v * d + n * (2 * d * d + 2 * d * d * k // h + 3 * d * f + 2 * d) + d
        for name, (d, n, h, k, f, v, _) in SHAPES.items()
    }
    assert sizes == {"260K": 260_032, "15M": 15_191_712, "110M": 109_529_856}


@pytest.mark.parametrize("vocabulary", [512, 32000])
def test_the_made_up_tokenizer_has_as_many_tokens_as_a_real_one(tmp_path, vocabulary):
    write_made_up_tokenizer(tmp_path, vocabulary)
    tokenizer = Tokenizer.from_folder(tmp_path, vocabulary)
    tokenizer.decode([vocabulary - 1])
    assert tokenizer.decode(tokenizer.encode("once upon")) == "once upon"


def test_the_ffns_share_of_a_token_at_the_published_shapes():
    found = {name: round(ffn_share(config_at(name)), 2) for name in ("15M", "110M", "1B")}
    assert found == {"15M": 0.26, "110M": 0.52, "1B": 0.74}


def test_a_shape_of_ones_own_is_the_large_one_with_other_sizes():
    config = config_at((16, 64))
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (16, 64, 22)
    attention, ffn = 22 * (2 * 16 * 16 + 2 * 2 * 16), 22 * 3 * 16 * 64
    assert ffn_share(config) == ffn / (ffn + attention + 32000 * 16)
    assert config_at((2048, 5632)) is LARGE and config_at("1B") is LARGE
    for wrong in ("2B", (8, 64), (24, 64), (16, 0)):
        with pytest.raises(MinillmError, match="expected"):
            config_at(wrong)
    assert all(config_at(name).hidden_size == sizes.hidden for name, sizes in SHAPES.items())


def test_the_config_json_of_a_shape_reads_back_as_that_shape():
    config = config_at((16, 64))
    found = ModelConfig.from_dict(fields_of(config))
    assert (found.hidden_size, found.intermediate_size, found.num_hidden_layers) == (16, 64, 22)
    assert (found.num_attention_heads, found.num_key_value_heads, found.head_dim) == (8, 1, 2)
    assert "22 layers with q and o 16 x 16, k and v 2 x 16" in resident_in_words(found)
    assert "head of 32,000 x 16" in resident_in_words(found)
