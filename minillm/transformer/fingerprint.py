"""The fingerprint of a model: a short hash that tells it from its twins.

    fingerprint = SHA-256(the config's sizes and switches, and 64 numbers of each sampled piece of the weights)

A base model and its fine-tune have the same shapes: only their weights tell them apart. From each matrix three short
pieces are read, at its beginning, in its middle and at its end, as float32. So the fingerprint costs a few thousand
numbers, and is the same whether the file holds BF16 or float32 and the model runs in float32 or float64.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

import numpy as np

from ..errors import show
from ..identity import NAME_LIMIT, Fingerprint
from ..loading.config import ModelConfig
from .layer import FFN_MATRICES, Layer

PIECE = 64  # numbers
SAMPLED = ("q_proj", "k_proj", "v_proj", "o_proj", *FFN_MATRICES)


def fingerprint_of(name: str, config: ModelConfig, embed_tokens: np.ndarray, layers: Iterable[Layer]) -> Fingerprint:
    """The fingerprint of a model's config and weights.

    embed_tokens (V, D); of each layer the seven matrices, (out, in). Not hashed: what changes no sum (names, the
    longest text, special ids).
    """
    c, rope = config, config.rope
    sizes = [
        c.vocab_size, c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads,
        c.num_key_value_heads, c.head_dim, c.hidden_act, c.rms_norm_eps, rope.rope_type, rope.theta, rope.rotary_dim,
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(sizes).encode())
    digest.update(_pieces(embed_tokens))
    for layer in layers:
        for part in SAMPLED:
            digest.update(_pieces(getattr(layer, part)))
    return Fingerprint(
        show(name, NAME_LIMIT), (c.num_hidden_layers, c.hidden_size, c.intermediate_size), digest.hexdigest()
    )


def _pieces(matrix: np.ndarray) -> bytes:
    """The first numbers of the first, the middle and the last row, as float32, little end first."""
    rows = [0, len(matrix) // 2, len(matrix) - 1]
    return np.stack([matrix[row, :PIECE] for row in rows]).astype("<f4").tobytes()
