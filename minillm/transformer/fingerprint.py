"""Which model is this? A short fingerprint, so that a file made from one model is not used with another unnoticed.

    fingerprint = SHA-256(the config's sizes and switches, and 64 numbers of each sampled piece of the weights)

Thresholds, predictors, bundles, traces and the records of sweeps hold the fingerprint of the model that they were made
from. A base model and its fine-tune have the same shapes: only their weights tell them apart. From each matrix three
short pieces are read, at its beginning, in its middle and at its end, as float32. So the fingerprint costs a few
thousand numbers, and is the same whether the file holds BF16 or float32 and the model runs in float32 or float64.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..errors import MinillmError, show
from ..loading.config import ModelConfig
from ..loading.fields import brief
from .layer import FFN_MATRICES, Layer

PIECE = 64  # numbers
NAME_LIMIT = 300  # characters
SAMPLED = ("q_proj", "k_proj", "v_proj", "o_proj", *FFN_MATRICES)


@dataclass(frozen=True)
class Fingerprint:
    """Of one model: its name (for people), its shape and the hash.

    shape: number of layers, hidden size, number of neurons of a layer. sha256: 64 hexadecimal digits.
    """

    name: str
    shape: tuple[int, int, int]
    sha256: str

    def __str__(self) -> str:
        return f"{self.name} ({self.sha256[:8]})"

    def asdict(self) -> dict[str, Any]:
        """As a file holds it: {"name": ..., "shape": [L, D, F], "sha256": ...}."""
        return asdict(self) | {"shape": list(self.shape)}

    def check(self, used: Fingerprint, what: str, error: type[MinillmError] = MinillmError) -> None:
        """Warn, in one sentence that names both, where ``what`` (a file) is of this model and is used with another.

        Raises error where their shapes differ: there it cannot be meant.
        """
        if self.shape != used.shape:
            shapes = (
                f"{layers} layers, hidden size {hidden}, {neurons} neurons"
                for layers, hidden, neurons in (self.shape, used.shape)
            )
            raise error(f"{what} was made for {self.name} ({next(shapes)}), expected the shape of {used.name}"
                        f" ({next(shapes)})")  # fmt: skip
        if self.sha256 != used.sha256:
            note = f"{what} was made for another model, {self}, and is used with {used}: its figures do not hold here"
            warnings.warn(show(note), stacklevel=3)


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


def read_fingerprint(fields: object, source: str, kind: type[MinillmError]) -> Fingerprint | None:
    """The fingerprint that a file holds, checked; None where the file is older than fingerprints (``fields`` None).

    Raises kind, naming source, for anything else.
    """
    if fields is None:
        return None
    good = isinstance(fields, dict) and set(fields) == {"name", "shape", "sha256"}
    if isinstance(fields, dict) and good:
        name, shape, digest = fields["name"], fields["shape"], fields["sha256"]
        good = type(name) is str and len(name) <= NAME_LIMIT and type(digest) is str and len(digest) == 64
        good = good and set(digest) <= set("0123456789abcdef") and type(shape) is list and len(shape) == 3
        if good and all(type(size) is int and 0 < size < 2**31 for size in shape):
            return Fingerprint(name, (shape[0], shape[1], shape[2]), digest)
    raise kind(f"{source}: model is {brief(fields)}, expected an object of name, shape [L, D, F] and sha256")
