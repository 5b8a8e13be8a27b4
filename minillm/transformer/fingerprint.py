"""The fingerprint of a model: a short hash that tells it from its twins.

    fingerprint = SHA-256(the config's sizes and switches, and 64 numbers of each sampled piece of the weights)

A base model and its fine-tune have the same shapes: only their weights tell them apart, and some fine-tunes train
nothing but norms, biases or the head. From each matrix and each vector three short pieces are read, at its beginning,
in its middle and at its end, as float32. So the fingerprint costs a few thousand numbers, and is the same whether the
file holds BF16 or float32 and the model runs in float32 or float64.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import MISSING, asdict
from dataclasses import fields as fields_of

import numpy as np

from ..errors import show
from ..identity import NAME_LIMIT, Fingerprint
from ..loading.config import ModelConfig
from .layer import Layer

PIECE = 64  # numbers
ORDER = """input_layernorm q_proj k_proj v_proj o_proj post_attention_layernorm gate_proj up_proj down_proj
    q_bias k_bias v_bias o_bias q_norm k_norm gate_bias up_bias down_bias""".split()  # then the parts no Llama has
YARN = ("beta_fast", "beta_slow", "truncate")
NOT_OF_LLAMA = [field.name for field in fields_of(ModelConfig) if field.default is not MISSING]


def fingerprint_of(name: str, config: ModelConfig, ends: Iterable[np.ndarray], layers: Iterable[Layer]) -> Fingerprint:
    """The fingerprint of a model's config and weights.

    ends: embedding (V, D), last norm (D,) and head (V, D). Not hashed: what changes no sum (names, the longest text,
    special ids).
    """
    import hashlib

    c, fields = config, asdict(config)
    sizes: list[object] = [
        c.vocab_size, c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads,
        c.num_key_value_heads, c.head_dim, c.hidden_act, c.rms_norm_eps, c.sliding_windows,
    ]  # fmt: skip
    sizes.append(
        {name: value for name, value in asdict(c.rope).items() if name not in YARN or c.rope.rope_type == "yarn"}
    )
    # What is not as in a Llama. Nothing is added for a Llama, so that older files still know their model.
    sizes += [[name, fields[name]] for name in NOT_OF_LLAMA if fields[name] != getattr(ModelConfig, name)]
    digest = hashlib.sha256(json.dumps(sizes).encode())
    for weight in ends:
        digest.update(_pieces(weight))
    for layer in layers:
        parts = {part: weight for part, weight in vars(layer).items() if isinstance(weight, np.ndarray)}
        for part in sorted(parts, key=lambda part: ORDER.index(part) if part in ORDER else len(ORDER)):
            digest.update(part.encode() + _pieces(parts[part]))
    return Fingerprint(
        show(name, NAME_LIMIT), (c.num_hidden_layers, c.hidden_size, c.intermediate_size), digest.hexdigest()
    )


def _pieces(weight: np.ndarray) -> bytes:
    """The first numbers of the first, the middle and the last row, as float32, little end first.

    weight (out, in), or a vector (in,), which is taken as one row.
    """
    matrix = np.atleast_2d(weight)
    rows = [0, len(matrix) // 2, len(matrix) - 1]
    return np.stack([matrix[row, :PIECE] for row in rows]).astype("<f4").tobytes()
