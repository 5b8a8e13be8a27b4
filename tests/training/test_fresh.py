"""A new model has the size of its name, the usual initial weights and the vocabulary of the model that it is like."""

import pytest
import tiny

import minillm
from minillm.errors import MinillmError
from minillm.loading.config import ModelConfig
from minillm.training.fresh import SIZES, fresh_fields, new_model


def test_norms_are_one_and_there_are_no_biases():
    made = new_model(tiny.config("llama", hidden_size=32))
    for name, w in made.weights.items():
        assert (w == ("norm" in name)).all() if w.ndim == 1 else 0.015 < w.std() < 0.025


@pytest.mark.parametrize(("size", "embedded"), [("default", "default"), ("twin", "default-relu")])
def test_the_sizes_are_those_of_the_embedded_models(size, embedded):
    like = minillm.load(embedded)
    config = ModelConfig.from_dict(fresh_fields(size, like.config.hidden_act, like))
    assert config.tensor_shapes() == like.config.tensor_shapes()
    assert (config.hidden_act, config.rope) == (like.config.hidden_act, like.config.rope)
    assert (config.bos_token_id, config.eos_token_ids) == (like.config.bos_token_id, like.config.eos_token_ids)


def test_an_unknown_size_is_refused_and_named():
    with pytest.raises(MinillmError, match=f"size is 'huge', expected one of {', '.join(SIZES)}"):
        fresh_fields("huge", "silu", tiny.model())
