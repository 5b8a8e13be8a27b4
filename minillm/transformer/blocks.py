"""One block of the model: how attention and the feed-forward network are wired around the residual stream.

    h = h + attention(rms_norm(h))
    h = h + feed_forward(rms_norm(h))

The residual stream h has one row of D numbers for each token. Each part reads a normed copy of it and adds its result
to it (pre-normalisation: Touvron et al. 2023, arXiv 2302.13971, section 2.2), so h itself is never replaced.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..trace import Tap, scoped
from .attention import KVCache, attention
from .ffn import FeedForward
from .layer import Layer
from .ops import rms_norm


class Positions(NamedTuple):
    """Where the T new tokens of a pass stand; every block gets the same.

    first: the position of the first new token, 0 at the start of a text. cos, sin: their rows of the rotary table,
    (T, rotary_dim / 2). cache: the keys and values of the tokens before them; None where there are none.
    """

    first: int
    cos: np.ndarray
    sin: np.ndarray
    cache: KVCache | None = None


def block(h: np.ndarray, layer: Layer, positions: Positions, ffn: FeedForward, tap: Tap) -> np.ndarray:
    """One layer: attention, then the feed-forward network, each on a normed copy and added back.

    h (T, D)  ->  (T, D).
    """
    attn_tap, mlp_tap = scoped(tap, "attn"), scoped(tap, "mlp")
    first, cos, sin, cache = positions
    h = tap("resid_pre", h)  # (T, D)
    x = tap("attn.norm", rms_norm(h, layer.input_layernorm, layer.eps))  # (T, D)
    h = tap("resid_mid", h + attention(x, layer, cos, sin, cache, attn_tap))  # (T, D)
    x = tap("mlp.norm", rms_norm(h, layer.post_attention_layernorm, layer.eps))  # (T, D)
    return tap("resid_post", h + ffn(x, layer, first, mlp_tap))  # (T, D)
