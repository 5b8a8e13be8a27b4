"""A model to train from scratch: sizes by name, a given activation, the tokenizer of another model.

The weights are those of the usual initialisation: matrices normal with deviation 0.02, norms 1, biases 0.

A model from scratch needs a larger rate of Adam than a trained one, RATE. Measured, size twin with relu, nats per
token of stories that were not trained on:

    after tokens     60,000    200,000    600,000
    rate 0.001         5.83       4.70       3.98
    rate 0.003         5.62       4.41       3.73
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MinillmError
from ..loading.config import ModelConfig
from ..transformer.model import Llama, random_weights

RATE = 3e-3  # Adam's, from scratch
SIZES = {  # of the embedded models: 1.7 and 0.4 million weights with a vocabulary of 1,024
    "default": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 8}
    | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32},
    "twin": {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 6}
    | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
}


def fresh_fields(size: str, act: str, like: Llama) -> dict[str, Any]:
    """The config.json of a new Llama with the vocabulary, the context and the special ids of another model.

    Raises MinillmError for an unknown size.
    """
    if size not in SIZES:
        raise MinillmError(f"size is {size!r}, expected one of {', '.join(SIZES)}")
    config = like.config
    fields: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **SIZES[size]}
    fields |= {"vocab_size": config.vocab_size, "max_position_embeddings": config.max_position_embeddings}
    fields |= {"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": act, "tie_word_embeddings": True}
    eos = list(config.eos_token_ids)
    fields |= {"bos_token_id": config.bos_token_id, "eos_token_id": eos[0] if len(eos) == 1 else eos or None}
    return fields


def new_model(config: ModelConfig, seed: int = 0, folder: Path | None = None) -> Llama:
    """A model with new weights (module docstring). folder: of its tokenizer."""
    weights = random_weights(config, np.random.default_rng(seed))
    for name, w in weights.items():
        if w.ndim == 1:
            w.fill(1 if "norm" in name else 0)
    return Llama(config, weights, folder)
