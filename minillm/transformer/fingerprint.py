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
from dataclasses import asdict

import numpy as np

from ..errors import show
from ..identity import NAME_LIMIT, Fingerprint
from ..loading.config import ModelConfig
from .layer import Layer

PIECE = 64  # numbers


def fingerprint_of(name: str, config: ModelConfig, ends: Iterable[np.ndarray], layers: Iterable[Layer]) -> Fingerprint:
    """The fingerprint of a model's config and weights.

    ends: embedding (V, D), last norm (D,) and head (V, D). Not hashed: what changes no sum (names, the longest text,
    special ids).
    """
    import hashlib

    c = config
    sizes = [
        c.vocab_size, c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads,
        c.num_key_value_heads, c.head_dim, c.hidden_act, c.rms_norm_eps, c.sliding_windows, asdict(c.rope),
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(sizes).encode())
    for weight in ends:
        digest.update(_pieces(weight))
    for layer in layers:
        for part, weight in vars(layer).items():
            if isinstance(weight, np.ndarray):
                digest.update(part.encode() + _pieces(weight))
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
