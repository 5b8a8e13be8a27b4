"""The way back through each part of the forward pass: one function for each, with its equation.

``d`` is always dL / d(output of the part). Each function takes it back to the part's inputs. Read them beside
transformer/ops.py and attention.py; blocks.py puts them together, and backward.py runs the whole way.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..trace import Tap, no_tap
from ..transformer.rope import rotate_halves


def linear_back(d: np.ndarray, x: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """y = x W^T (+ b):    dx = d W    dW = d^T x    (db = sum_t d_t)

    d (T, out), x (T, in), weight (out, in)  ->  dx (T, in), dW (out, in).
    """
    return d @ weight, d.T @ x


def rms_norm_back(d: np.ndarray, x: np.ndarray, weight: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """y = u * w, u = r x, r = 1 / sqrt(mean(x^2) + eps):    dw = sum_t d * u    dx = r (g - u mean(g * u)), g = d * w

    d, x (..., n), weight (n,)  ->  dx (..., n), dw (n,). The second term of dx is there because r depends on x, too.
    """
    n = x.shape[-1]
    r = 1 / np.sqrt(np.vecdot(x, x)[..., None] / n + eps)  # (..., 1)
    u = x * r  # (..., n)
    g = d * weight  # (..., n)
    d_weight = (d * u).reshape(-1, n).sum(axis=0)  # (n,)
    return r * (g - u * (np.vecdot(g, u)[..., None] / n)), d_weight


def rms_norm_from_one_back(
    d: np.ndarray, x: np.ndarray, weight: np.ndarray, eps: float
) -> tuple[np.ndarray, np.ndarray]:
    """Gemma's form of ``rms_norm_back``: the factor is 1 + w, and its gradient is that of w."""
    return rms_norm_back(d, x, 1 + weight, eps)


def layer_norm_back(d: np.ndarray, x: np.ndarray, weight: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """y = rms_norm(x - mean(x)) (+ b):    dx = dc - mean(dc), dc back through the norm of the centred x

    d, x (..., n), weight (n,)  ->  dx (..., n), dw (n,).    (db = sum_t d_t)
    """
    d_centred, d_weight = rms_norm_back(d, x - x.mean(axis=-1, keepdims=True), weight, eps)
    return d_centred - d_centred.mean(axis=-1, keepdims=True), d_weight


NormBack = Callable[[np.ndarray, np.ndarray, np.ndarray, float], tuple[np.ndarray, np.ndarray]]
NORMS_BACK: dict[str, NormBack] = {  # one for each of ops.NORMS
    "rms": rms_norm_back,
    "rms_from_one": rms_norm_from_one_back,
    "layer": layer_norm_back,
}


def cap_back(d: np.ndarray, y: np.ndarray, cap: float) -> np.ndarray:
    """y = cap tanh(x / cap):    dx = d (1 - (y / cap)^2).    d, y (...)  ->  dx (...)."""
    return d * (1 - np.square(y / cap))


def softmax_back(d: np.ndarray, p: np.ndarray) -> np.ndarray:
    """p = softmax(x):    dx_i = p_i (d_i - sum_j d_j p_j)

    d, p (..., n)  ->  dx (..., n). Where p is 0 (a masked position), dx is 0.
    """
    d_x = d - np.vecdot(d, p)[..., None]  # (..., n)
    d_x *= p
    return d_x


def rotate_back(d: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """y = R x, a rotation of each pair by its angle:    dx = R^T d, the rotation by the opposite angle

    d (T, heads, d), cos and sin (T, rotary_dim / 2)  ->  dx (T, heads, d).
    """
    return rotate_halves(d, cos, -sin)


def attend_back(
    d: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    pattern: np.ndarray,
    tap: Tap = no_tap,
    scale: float | None = None,
    cap: float | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z = P v, P = softmax(S), S = q k^T / sqrt(d):

        dv = P^T dz    dP = dz v^T    dS = softmax_back(dP)    dq = dS k / sqrt(d)    dk = dS^T q / sqrt(d)

    d (T, H, d) for each query head; q (T, H, d); k, v (T, K, d); pattern (H, T, T)  ->  dq, dk, dv. The H / K query
    heads of a group share one key and value head, so dk and dv are sums over the group: its heads are stacked as rows.
    scale, cap: as for ``attend``; with a cap, S is taken back through it first.
    """
    (new, heads, size), kv_heads = q.shape, k.shape[1]
    scale = 1 / math.sqrt(size) if scale is None else scale

    def stacked(x: np.ndarray) -> np.ndarray:
        return x.reshape(new, kv_heads, -1, size).transpose(1, 2, 0, 3).reshape(kv_heads, -1, size)

    d, q, k, v = stacked(d), stacked(q), k.transpose(1, 0, 2), v.transpose(1, 0, 2)  # (K, H/K * T, d), (K, T, d)
    p = pattern.reshape(kv_heads, -1, new)  # (K, H/K * T, T)
    d_v = p.transpose(0, 2, 1) @ d  # (K, T, d)
    d_pattern = tap("pattern", (d @ v.transpose(0, 2, 1)).reshape(pattern.shape))  # (H, T, T)
    d_scores = tap("scores", softmax_back(d_pattern, pattern)).reshape(p.shape)  # (K, H/K * T, T)
    if cap is not None:
        capped = cap * np.tanh((q * scale) @ k.transpose(0, 2, 1) / cap)  # (K, H/K * T, T)
        d_scores = cap_back(d_scores, capped, cap)
    d_q = (d_scores @ k) * scale  # (K, H/K * T, d)
    d_k = d_scores.transpose(0, 2, 1) @ (q * scale)  # (K, T, d)
    d_q = d_q.reshape(heads, new, size).transpose(1, 0, 2)  # (T, H, d)
    return d_q, d_k.transpose(1, 0, 2), d_v.transpose(1, 0, 2)


def embedding_back(d: np.ndarray, ids: np.ndarray, vocabulary: int) -> np.ndarray:
    """x_t = E[id_t]:    dE[i] = sum of d_t over the t where id_t is i

    d (T, D), ids (T,)  ->  dE (V, D).
    """
    d_embedding = np.zeros((vocabulary, d.shape[1]), d.dtype)
    np.add.at(d_embedding, ids, d)
    return d_embedding
