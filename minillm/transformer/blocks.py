"""TODO."""

from __future__ import annotations

import numpy as np

from ..trace import Tap, scoped
from .attention import KVCache, attention
from .ffn import FeedForward
from .layer import Layer
from .ops import rms_norm


def block(
    h: np.ndarray, layer: Layer, cos: np.ndarray, sin: np.ndarray, position: int,
    cache: KVCache | None, ffn: FeedForward, tap: Tap,
) -> np.ndarray:  # fmt: skip
    """One layer: attention, then the feed-forward network, each on a normed copy and added back.

    h (T, D)  ->  (T, D).
    """
    attn_tap, mlp_tap = scoped(tap, "attn"), scoped(tap, "mlp")
    h = tap("resid_pre", h)  # (T, D)
    x = tap("attn.norm", rms_norm(h, layer.input_layernorm, layer.eps))
    h = tap("resid_mid", h + attention(x, layer, cos, sin, cache, attn_tap))
    x = tap("mlp.norm", rms_norm(h, layer.post_attention_layernorm, layer.eps))
    return tap("resid_post", h + ffn(x, layer, position, mlp_tap))
