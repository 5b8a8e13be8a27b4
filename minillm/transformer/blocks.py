"""One block of the model: how attention and the feed-forward network are wired around the residual stream.

    h = h + attention(rms_norm(h))
    h = h + feed_forward(rms_norm(h))

The residual stream h has one row of D numbers for each token. Each part reads a normed copy of it and adds its result
to it (pre-normalisation: Touvron et al. 2023, arXiv 2302.13971, section 2.2), so h itself is never replaced.

That is ``pre_norm``, and all of a plain Llama. Behind it stand the wirings of other families, one function each, so
that one page shows how they differ. The input of attention is always the step attn.norm, that of the FFN mlp.norm,
also where no norm stands in front of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

from ..loading.config import ModelConfig
from ..trace import Tap, scoped
from .attention import KVCache, attention
from .ffn import FeedForward
from .layer import Layer
from .rope import rope_table

Table: TypeAlias = tuple[np.ndarray, np.ndarray]  # cosines and sines


class Positions(NamedTuple):
    """Where the T new tokens of a pass stand; every block gets the same.

    first: the position of the first new token, 0 at the start of a text. tables: cos and sin of each of the model's
    rotations, (T, rotary_dim / 2); most models have one. cache: the keys and values of the tokens before them; None
    where there are none.
    """

    first: int
    tables: tuple[Table, ...]
    cache: KVCache | None = None


def positions_of(config: ModelConfig, count: int, dtype: np.dtype, cache: KVCache | None = None) -> Positions:
    """The positions of ``count`` new tokens: those behind a cache's, or from 0 on."""
    first = cache.length if cache else 0
    if cache is None:
        return Positions(0, tuple(rope_table(rope, count, dtype) for rope in config.ropes))
    return Positions(first, tuple((cos[first:][:count], sin[first:][:count]) for cos, sin in cache.tables), cache)


def normed(h: np.ndarray, layer: Layer, name: str) -> np.ndarray:
    """The layer's norm of this name, of each row.  h (T, D)  ->  (T, D)."""
    weight, bias = getattr(layer, name), getattr(layer, f"{name}_bias", None)
    return layer.norm(h, weight, layer.eps) if bias is None else layer.norm(h, weight, layer.eps, bias)


def attended(x: np.ndarray, layer: Layer, positions: Positions, tap: Tap) -> np.ndarray:
    """Attention of a block.  x (T, D)  ->  (T, D)."""
    return attention(x, layer, *positions.tables[layer.rope], positions.cache, scoped(tap, "attn"))


def pre_norm(h: np.ndarray, layer: Layer, positions: Positions, ffn: FeedForward, tap: Tap) -> np.ndarray:
    """A Llama's block: attention, then the feed-forward network, each on a normed copy and added back.

        h = h + attention(norm(h))        h = h + ffn(norm(h))

    h (T, D)  ->  (T, D).
    """
    h = tap("resid_pre", h)  # (T, D)
    x = tap("attn.norm", normed(h, layer, "input_layernorm"))  # (T, D)
    h = tap("resid_mid", h + attended(x, layer, positions, tap))  # (T, D)
    x = tap("mlp.norm", normed(h, layer, "post_attention_layernorm"))  # (T, D)
    return tap("resid_post", h + ffn(x, layer, positions.first, scoped(tap, "mlp")))  # (T, D)


# ---- the wirings of other families -----------------------------------------------------------------------------------


def scaled(h: np.ndarray, layer: Layer, positions: Positions, ffn: FeedForward, tap: Tap) -> np.ndarray:
    """Granite's: as a Llama's, with what is added scaled by a number s.

    h = h + s attention(norm(h))        h = h + s ffn(norm(h))
    """
    s = h.dtype.type(layer.residual_scale)
    h = tap("resid_pre", h)  # (T, D)
    x = tap("attn.norm", normed(h, layer, "input_layernorm"))  # (T, D)
    h = tap("resid_mid", h + s * attended(x, layer, positions, tap))  # (T, D)
    x = tap("mlp.norm", normed(h, layer, "post_attention_layernorm"))  # (T, D)
    return tap("resid_post", h + s * ffn(x, layer, positions.first, scoped(tap, "mlp")))  # (T, D)


def parallel(h: np.ndarray, layer: Layer, positions: Positions, ffn: FeedForward, tap: Tap) -> np.ndarray:
    """GPT-NeoX's (Pythia): both parts read the same stream, each through a norm of its own.

    h = h + attention(norm_1(h)) + ffn(norm_2(h))
    """
    h = tap("resid_pre", h)  # (T, D)
    x = tap("attn.norm", normed(h, layer, "input_layernorm"))  # (T, D)
    gathered = attended(x, layer, positions, tap)  # (T, D)
    x = tap("mlp.norm", normed(h, layer, "post_attention_layernorm"))  # (T, D)
    return tap("resid_post", h + gathered + ffn(x, layer, positions.first, scoped(tap, "mlp")))  # (T, D)


def parallel_one_norm(h: np.ndarray, layer: Layer, positions: Positions, ffn: FeedForward, tap: Tap) -> np.ndarray:
    """Phi-2's: both parts read the same normed copy.

    x = norm(h)        h = h + attention(x) + ffn(x)
    """
    h = tap("resid_pre", h)  # (T, D)
    x = tap("attn.norm", normed(h, layer, "input_layernorm"))  # (T, D)
    gathered = attended(x, layer, positions, tap)  # (T, D)
    x = tap("mlp.norm", x)  # (T, D)
    return tap("resid_post", h + gathered + ffn(x, layer, positions.first, scoped(tap, "mlp")))  # (T, D)


def post_norm(h: np.ndarray, layer: Layer, positions: Positions, ffn: FeedForward, tap: Tap) -> np.ndarray:
    """OPT-350m's (Vaswani et al. 2017, arXiv 1706.03762): the norm stands behind each sum.

    h = norm(h + attention(h))        h = norm(h + ffn(h))
    """
    h = tap("resid_pre", h)  # (T, D)
    x = tap("attn.norm", h)  # (T, D): what attention reads
    h = h + attended(x, layer, positions, tap)  # (T, D)
    h = tap("resid_mid", normed(h, layer, "input_layernorm"))  # (T, D)
    x = tap("mlp.norm", h)  # (T, D): what the FFN reads
    h = h + ffn(x, layer, positions.first, scoped(tap, "mlp"))  # (T, D)
    return tap("resid_post", normed(h, layer, "post_attention_layernorm"))  # (T, D)


def norm_after(h: np.ndarray, layer: Layer, positions: Positions, ffn: FeedForward, tap: Tap) -> np.ndarray:
    """OLMo 2's (arXiv 2501.00656): each part reads the stream itself, and its result is normed before it is added.

    h = h + norm(attention(h))        h = h + norm(ffn(h))
    """
    h = tap("resid_pre", h)  # (T, D)
    y = attended(tap("attn.norm", h), layer, positions, tap)  # (T, D)
    y = tap("attn.out_norm", normed(y, layer, "post_attention_layernorm"))  # (T, D)
    h = tap("resid_mid", h + y)  # (T, D)
    y = ffn(tap("mlp.norm", h), layer, positions.first, scoped(tap, "mlp"))  # (T, D)
    y = tap("mlp.out_norm", normed(y, layer, "post_feedforward_layernorm"))  # (T, D)
    return tap("resid_post", h + y)  # (T, D)


def sandwich(h: np.ndarray, layer: Layer, positions: Positions, ffn: FeedForward, tap: Tap) -> np.ndarray:
    """Gemma 2's and 3's: a norm in front of each part and one behind it.

    h = h + norm(attention(norm(h)))        h = h + norm(ffn(norm(h)))
    """
    h = tap("resid_pre", h)  # (T, D)
    x = tap("attn.norm", normed(h, layer, "input_layernorm"))  # (T, D)
    y = attended(x, layer, positions, tap)  # (T, D)
    y = tap("attn.out_norm", normed(y, layer, "post_attention_layernorm"))  # (T, D)
    h = tap("resid_mid", h + y)  # (T, D)
    x = tap("mlp.norm", normed(h, layer, "pre_feedforward_layernorm"))  # (T, D)
    y = ffn(x, layer, positions.first, scoped(tap, "mlp"))  # (T, D)
    y = tap("mlp.out_norm", normed(y, layer, "post_feedforward_layernorm"))  # (T, D)
    return tap("resid_post", h + y)  # (T, D)


Wiring: TypeAlias = Callable[[np.ndarray, Layer, Positions, FeedForward, Tap], np.ndarray]
WIRINGS: dict[str, Wiring] = {
    f.__name__: f for f in (pre_norm, scaled, parallel, parallel_one_norm, post_norm, norm_after, sandwich)
}


def block(h: np.ndarray, layer: Layer, positions: Positions, ffn: FeedForward, tap: Tap) -> np.ndarray:
    """One layer, wired as its family is.  h (T, D)  ->  (T, D)."""
    return WIRINGS[layer.wiring](h, layer, positions, ffn, tap)
