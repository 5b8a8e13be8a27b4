"""Causal self-attention with grouped queries, and the cache that makes generation cheap.

Each new position t attends to all positions s <= t (Vaswani et al. 2017, arXiv 1706.03762, eq. 1):

    z_t = sum_s softmax_s(q_t . k_s / sqrt(d)) v_s

H query heads share K key/value heads, H / K queries to each (Ainslie et al. 2023, arXiv 2305.13245).
Two letters for two lengths: T positions are new in this pass, S = (positions in the cache) + T are attended.
"""

from __future__ import annotations

import math

import numpy as np

from ..arguments import whole_number
from ..errors import MinillmError
from ..loading.config import ModelConfig
from ..trace import Tap, no_tap
from .finite import rows_are_numbers
from .layer import Layer
from .linear import linear
from .ops import softmax
from .rope import rope_table, rotate_halves


class KVCache:
    """Keys and values of the positions seen so far, in memory that is allocated once.

    keys, values: per layer (K, capacity, d); ``length`` positions are filled. tables: cos and sin of each of the
    model's rotations. In memory
    the keys lie the other way round, (K, d, capacity): a query meets all keys at once, coordinate by coordinate, so the
    positions of one coordinate should be neighbours.
    ``capacity`` is the largest length of the whole text. It also decides which of longrope's two lists of
    factors is used, so that a text gives the same numbers in one pass, in chunks, or token by token.
    Differs from transformers: there a longrope text changes lists (and recomputes its cache) while it grows
    past the original length; here the planned length decides from the start.

    A pass with a cache writes into it: the one place where minillm changes an argument.
    """

    def __init__(self, config: ModelConfig, capacity: int, dtype=np.float32):
        limit = config.max_position_embeddings
        capacity = whole_number("a cache's capacity", capacity, 1, limit)
        layers, kv_heads, d = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
        # empty, not zeros: the system hands out pages when they are first written, not before.
        self.keys = np.empty((layers, kv_heads, d, capacity), dtype).swapaxes(2, 3)  # a view: (L, K, capacity, d)
        self.values = np.empty((layers, kv_heads, capacity, d), dtype)
        self.tables = tuple(rope_table(rope, capacity, dtype) for rope in config.ropes)
        self.capacity, self.length = capacity, 0

    def append(self, layer: int, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Write the new rotated keys and values of one layer; give back all of them.

        k, v (T, K, d)  ->  keys, values (K, S, d), views into the cache. ``length`` moves on with ``advance``,
        once all layers have written.
        """
        end = self.length + len(k)
        self.keys[layer, :, self.length : end] = k.transpose(1, 0, 2)
        self.values[layer, :, self.length : end] = v.transpose(1, 0, 2)
        return self.keys[layer, :, :end], self.values[layer, :, :end]

    def check_room(self, count: int) -> None:
        """Raise MinillmError when ``count`` more positions do not fit."""
        if self.length + count > self.capacity:
            found = f"the cache holds {self.length} of {self.capacity} positions, {count} more do not fit"
            raise MinillmError(f"{found}; make a KVCache with a larger capacity")

    def advance(self, count: int) -> None:
        """Count ``count`` new positions as seen."""
        self.length += count

    def truncate(self, length: int) -> None:
        """Forget everything from position ``length`` on. Raises MinillmError outside 0 .. self.length."""
        if not 0 <= length <= self.length:
            raise MinillmError(f"cannot truncate a cache of {self.length} positions to {length}")
        self.length = length

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values: 2 L K capacity d times the size of a number."""
        return self.keys.nbytes + self.values.nbytes


def causal_mask(new: int, attended: int, window: int | None = None) -> np.ndarray:
    """Which positions a new position may attend to: True where position t may attend to position s.

        t - window < s <= t,   where t counts from the start of the text: t = S - T + (row)

    ->  (T, S) bool. A sliding window of w means: itself and the w - 1 positions before it (Mistral).

    One position is in the cache and two are new. The first new one attends to the cached one and to itself, the
    second to all three:

    >>> causal_mask(new=2, attended=3).astype(int)
    array([[1, 1, 0],
           [1, 1, 1]])

    With a window of two, a position attends to itself and to the one before it:

    >>> causal_mask(new=2, attended=4, window=2).astype(int)
    array([[0, 1, 1, 0],
           [0, 0, 1, 1]])
    """
    t = np.arange(attended - new, attended)[:, None]  # (T, 1)
    s = np.arange(attended)[None, :]  # (1, S)
    mask = s <= t
    if window is not None:
        mask &= s > t - window
    return mask


def attend(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None, tap: Tap = no_tap,
    scale: float | None = None, cap: float | None = None,
) -> np.ndarray:  # fmt: skip
    """Mix the values v of all positions, weighted by how well their keys k match the queries q.

        z = softmax(q k^T / sqrt(d) + mask) v        for each query head, with the keys and values of its group

    q (T, H, d); k, v (K, S, d); mask (T, S) bool, True where the score counts, -inf is added elsewhere
    ->  z (T, H, d). Query heads 0 .. H/K - 1 share the first key/value head, the next H/K the second, and so on.
    A mask (T, M) with M < S is for the last M positions: all before them are attended to. mask None: all are.
    scale: in place of 1 / sqrt(d). cap: Gemma 2's, scores become cap tanh(scores / cap).
    """
    (new, heads, d), (kv_heads, attended, _) = q.shape, k.shape
    # The query heads of a group meet the same keys: stack them as rows, so that no key is ever repeated.
    if new > 1:
        q = q.reshape(new, kv_heads, -1, d).transpose(1, 2, 0, 3)  # (K, H/K, T, d)
    q = q.reshape(kv_heads, -1, d)  # (K, H/K * T, d)
    scores = (q * (1 / math.sqrt(d) if scale is None else scale)) @ k.transpose(0, 2, 1)  # (K, H/K * T, S)
    scores = scores.reshape(heads, new, attended)
    if cap is not None:
        scores = cap * np.tanh(scores / cap)
    edited = tap("scores", scores)  # (H, T, S)
    scores = scores if edited is scores else edited.copy()  # what a tap returned may be its own: never write into it
    if mask is not None:
        np.copyto(scores[:, :, -mask.shape[1] :], -np.inf, where=~mask)
    pattern = tap("pattern", softmax(scores, out=scores))  # (H, T, S)
    z = pattern.reshape(kv_heads, -1, attended) @ v  # (K, H/K * T, d)
    return z.reshape(heads, new, d).transpose(1, 0, 2)  # (T, H, d)


def head_norm(x: np.ndarray, weight: np.ndarray, layer: Layer) -> np.ndarray:
    """The norm of each head: x (T, heads, d), weight (d,)  ->  (T, heads, d). NaN where squares outgrow the dtype.

    The norm would give zeros there, and attention would hide them. A NaN ends the pass (finite.py). A weight of
    (heads * d,) norms all heads at once (OLMo 2).
    """
    y = layer.norm(x.reshape(len(x), -1, len(weight)), weight, layer.eps).reshape(x.shape)
    return y if rows_are_numbers(x) else np.full_like(y, np.nan)


def attention(
    x: np.ndarray, layer: Layer, cos: np.ndarray, sin: np.ndarray, cache: KVCache | None = None, tap: Tap = no_tap
) -> np.ndarray:
    """Let each new position gather values from the positions before it (module docstring; Hugging Face's names).

        q, k, v = x W_q^T, x W_k^T, x W_v^T          (+ biases; Qwen3 norms q and k per head)
        z = softmax(R q (R k)^T / sqrt(d) + mask) v
        out = z W_o^T

    x (T, D) normed input; cos, sin (T, rotary_dim / 2) of the new positions  ->  out (T, D).
    """
    new, d = len(x), layer.head_dim
    q = linear(x, layer.q_proj, layer.q_bias).reshape(new, -1, d)  # (T, H, d)
    k = linear(x, layer.k_proj, layer.k_bias).reshape(new, -1, d)  # (T, K, d)
    v = linear(x, layer.v_proj, layer.v_bias).reshape(new, -1, d)  # (T, K, d)
    if layer.q_norm is not None and layer.k_norm is not None:
        q, k = head_norm(q, layer.q_norm, layer), head_norm(k, layer.k_norm, layer)
    q, k, v = tap("q", q), tap("k", k), tap("v", v)
    rotated = rotate_halves(np.concatenate([q, k], axis=1), cos, sin)  # (T, H + K, d), both in one go
    q = tap("rot_q", rotated[:, : q.shape[1]])  # (T, H, d)
    k = tap("rot_k", rotated[:, q.shape[1] :])  # (T, K, d)

    keys, values = cache.append(layer.index, k, v) if cache else (k.transpose(1, 0, 2), v.transpose(1, 0, 2))
    mask: np.ndarray | None
    if layer.window is not None:
        mask = causal_mask(new, keys.shape[1], layer.window)  # (T, S)
    else:  # all before the new positions are attended to; a single new one attends to all
        mask = causal_mask(new, new) if new > 1 else None  # (T, T)
    z = tap("z", attend(q, keys, values, mask, tap, layer.scale, layer.cap))  # (T, H, d)
    return tap("out", linear(z.reshape(new, -1), layer.o_proj, layer.o_bias))  # (T, D)
