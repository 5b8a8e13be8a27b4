"""The usual mistakes as code: the results of the seven functions of ``minillm grade`` when one thing is wrong.

    diagnosis = the first mistake m with  found == m(arguments)  on every case

When a wrong answer equals one of these on every case, its cause is known, and the sentence beside the mistake says it.
Each function below computes the right result, and a keyword argument for each mistake makes it wrong in one way. So a
test can compare the right form (no keyword) with the goldens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ..transformer.ops import gelu_tanh, relu, rms_norm, silu, softmax
from ..transformer.rope import rotate_halves, rotate_interleaved
from .differences import difference


class Call(NamedTuple):
    """One call of a student's function: arguments, result, expected result, and tolerance."""

    arguments: tuple
    result: object
    expected: object
    rtol: float


def diagnose(name: str, calls: Sequence[Call]) -> str:
    """The mistakes that explain these results of a function, in words; "" where none does.

    Two things are looked for: one known mistake that gives the values of all calls, and float64 results for float32
    arguments.
    """
    causes = []
    with np.errstate(all="ignore"):
        if not agree(calls, [call.expected for call in calls]):
            for words, mistake in MISTAKES[name]:
                if agree(calls, (mistake(*map(in_double, call.arguments)) for call in calls)):
                    causes.append(words)
                    break
    if any(leaks(call.result, call.expected) for call in calls):
        causes.append("float32 goes in and float64 comes out (a table or a constant in it is float64)")
    return "; ".join(causes)


def agree(calls: Sequence[Call], values: Iterable[object]) -> bool:
    """Whether the result of every call equals the value of the same place, compared in float64."""
    pairs = zip(calls, values, strict=True)
    return not any(difference(in_double(call.result), in_double(value), call.rtol)[1] for call, value in pairs)


def in_double(value: object) -> object:
    """The same value with its floats in float64: a mistake is recognised by its values, whatever their precision."""
    if isinstance(value, tuple):
        return tuple(map(in_double, value))
    return value.astype(np.float64) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value


def leaks(result: object, expected: object) -> bool:
    """Whether a result is float64 where float32 was expected."""
    if isinstance(expected, tuple):
        return isinstance(result, tuple) and any(map(leaks, result, expected))
    dtypes = (getattr(value, "dtype", None) for value in (result, expected))
    return tuple(dtypes) == (np.float64, np.float32)


# ---- one keyword per mistake -----------------------------------------------------------------------------------------
def normed(x, weight, eps, *, outside=False, axis=-1, total=False, root=True, centred=False):
    """RMSNorm: x (T, D), weight (D,)  ->  (T, D)."""
    x = x - x.mean(axis=-1, keepdims=True) if centred else x
    square = (np.sum if total else np.mean)(x * x, axis=axis, keepdims=True)
    if outside:
        return x / (np.sqrt(square) + eps) * weight
    return x / (np.sqrt(square + eps) if root else square + eps) * weight


def turned(x, positions, theta, *, rotate=rotate_halves, exponent=2, first=0, sign=1):
    """Rotary embedding: x (T, heads, d), positions (T,)  ->  (T, heads, d)."""
    d = x.shape[-1]
    angles = np.outer(positions + first, theta ** (-exponent * np.arange(d // 2) / d))  # (T, d/2)
    return rotate(x, np.cos(angles), sign * np.sin(angles))


def attended(
    q, k, v, *, scale=None, tiled=False, shift=0, start=None, fill=-np.inf, transposed=False, late=False, axis=-1,
    naive=False,
):  # fmt: skip
    """Causal attention with grouped heads: q (T, H, d), k and v (S, K, d)  ->  (T, H, d)."""
    (new, heads, d), (length, kv_heads, _) = q.shape, k.shape
    read = np.arange(heads) % kv_heads if tiled else np.arange(heads) // (heads // kv_heads)
    scores = np.einsum("thd,shd->hts", q, k[:, read]) * (1 / math.sqrt(d) if scale is None else scale(heads, d))
    t = np.arange(new)[:, None] + (length - new if start is None else start)  # (T, 1)
    s = np.arange(length)[None, :]  # (1, S)
    mask = (s >= t) if transposed else (s <= t + shift)  # (T, S)
    if late:
        pattern = np.where(mask, softmax(scores), 0)
    else:
        scores = np.moveaxis(np.where(mask, scores, fill), axis, -1)
        pattern = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True) if naive else softmax(scores)
        pattern = np.moveaxis(pattern, -1, axis)
    return np.einsum("hts,shd->thd", pattern, v[:, read])


def gated(x, gate_proj, up_proj, down_proj, *, act=silu, swap=False, last=False, both=False):
    """SwiGLU: x (T, D), gate_proj and up_proj (F, D), down_proj (D, F)  ->  (T, D)."""
    g, u = x @ gate_proj.T, x @ up_proj.T
    g, u = (u, g) if swap else (g, u)
    mid = act(g * u) if last else act(g) * (act(u) if both else u)
    return mid @ down_proj.T


def cut(
    x,
    gate_proj,
    up_proj,
    down_proj,
    threshold,
    *,
    compared="mid",
    size=np.abs,
    keep=np.greater,
    swap=False,
    dense=False,
):
    """Thresholded SwiGLU: x (T, D)  ->  y (T, D), mask (T, F)."""
    g, u = x @ gate_proj.T, x @ up_proj.T
    g, u = (u, g) if swap else (g, u)
    values = {"mid": silu(g) * u, "gate_pre": g, "gate": silu(g), "up": u}
    mask = keep(size(values[compared]), threshold)
    return np.where(mask | dense, values["mid"], 0) @ down_proj.T, mask


def trained(
    x, mask, A, B, c, rate, steps, *, sign=1, over=lambda tokens, inner: tokens * inner, late_A=False, late_B=False,
    squash=True, bias=True, more=0,
):  # fmt: skip
    """Gradient descent on the binary cross entropy of x A B + c: x (T, D), mask (T, F)  ->  A, B, c."""
    for _ in range(steps + more):
        z = x @ A @ B + c
        p = 1 / (1 + np.exp(-z)) if squash else z
        d = sign * (p - mask) / over(*mask.shape)  # (T, F)
        new_A, new_B = A - rate * x.T @ (d @ B.T), B - rate * (x @ A).T @ d
        if late_A:
            new_A = A - rate * x.T @ (d @ new_B.T)
        if late_B:
            new_B = B - rate * (x @ new_A).T @ d
        A, B, c = new_A, new_B, c - rate * d.sum(axis=0) * bias
    return A, B, c


def replayed(requests, capacity, *, victim="last", forget=False, recent=True, more=0):
    """Replay requests (N,) in a buffer of ``capacity`` neurons  ->  hits (N,); ``victim``: what is evicted first."""
    capacity, held, count, hits = capacity + more, {}, {}, []
    for now, neuron in enumerate(requests.tolist()):
        hit = neuron in held
        hits.append(hit)
        if not hit and len(held) >= capacity > 0:
            key = {"last": lambda n: held[n][1], "first": lambda n: held[n][0], "newest": lambda n: -held[n][1],
                   "count": lambda n: (count[n], held[n][recent])}[victim]  # fmt: skip
            evicted = min(held, key=key)
            del held[evicted]
            if forget:
                count[evicted] = 0
        count[neuron] = count.get(neuron, 0) + 1
        if capacity > 0:
            held[neuron] = (held[neuron][0] if hit else now, now)
    return np.array(hits, bool)


RIGHT: dict[str, Callable] = {
    "rms_norm": normed, "rope": turned, "attention": attended, "swiglu": gated, "thresholded_swiglu": cut,
    "train_predictor": trained, "lru": replayed,
}  # fmt: skip


def mistaken(name: str, **mistake: object) -> Callable:
    """One of the functions above with one thing wrong."""
    return lambda *arguments: RIGHT[name](*arguments, **mistake)


LFU = "it evicts the least frequently used neuron (LFU), expected the least recently used"
TILED_HEADS = "query heads read the wrong key/value heads: head h reads h % K (tile), expected h // (H/K) (repeat)"
SWAPPED = "gate and up are swapped: the activation belongs on the gate"
MISTAKES: dict[str, list[tuple[str, Callable]]] = {
    "rms_norm": [
        ("eps is outside the root, expected sqrt(mean(x^2) + eps)", mistaken("rms_norm", outside=True)),
        ("eps is always 1e-6, expected the eps that is given", lambda x, weight, eps: rms_norm(x, weight, 1e-6)),
        ("eps is always 1e-5, expected the eps that is given", lambda x, weight, eps: rms_norm(x, weight, 1e-5)),
        ("eps is left out", lambda x, weight, eps: rms_norm(x, weight, 0.0)),
        ("the mean is over the tokens (axis 0), expected over the last axis", mistaken("rms_norm", axis=0)),
        ("there is one mean over all values, expected one mean per row", mistaken("rms_norm", axis=None)),
        ("the squares are summed, expected their mean", mistaken("rms_norm", total=True)),
        ("the root is missing", mistaken("rms_norm", root=False)),
        ("the weight is left out", lambda x, weight, eps: rms_norm(x, np.ones_like(weight), eps)),
        ("the factor is 1 + weight (as in Gemma), expected weight", lambda x, w, eps: rms_norm(x, 1 + w, eps)),
        ("the mean is subtracted first (that is LayerNorm)", mistaken("rms_norm", centred=True)),
    ],
    "rope": [
        (
            "pairs are neighbours (0, 1), (2, 3) (interleaved), expected halves (0, d/2), (1, d/2 + 1)",
            mistaken("rope", rotate=rotate_interleaved),
        ),
        ("it rotates backwards: the sign of the sine is wrong", mistaken("rope", sign=-1)),
        ("every position is one too large", mistaken("rope", first=1)),
        (
            "the given positions are ignored (0, 1, 2, ... are used)",
            lambda x, positions, theta: turned(x, np.arange(len(x)), theta),
        ),
        ("theta is always 10000", lambda x, positions, theta: turned(x, positions, 10000.0)),
        ("the exponent is -j/d, expected -2j/d", mistaken("rope", exponent=1)),
        ("the exponent is positive, expected theta^(-2j/d)", mistaken("rope", exponent=-2)),
    ],
    "attention": [
        ("scores are not divided by sqrt(d)", mistaken("attention", scale=lambda heads, d: 1)),
        ("scores are divided by d, expected sqrt(d)", mistaken("attention", scale=lambda heads, d: 1 / d)),
        (
            "scores are divided by the root of the whole width H d, expected sqrt(d)",
            mistaken("attention", scale=lambda heads, d: 1 / math.sqrt(heads * d)),
        ),
        (TILED_HEADS, mistaken("attention", tiled=True)),
        ("the mask is off by one: each token sees the next one", mistaken("attention", shift=1)),
        ("the mask is off by one: no token sees itself", mistaken("attention", shift=-1)),
        ("the mask is off by one: no token sees itself", mistaken("attention", shift=-1, fill=-1e9)),
        (
            "the mask places the first new token at position 0, expected S - T",
            mistaken("attention", start=0),
        ),
        ("there is no mask: every token sees the whole text", mistaken("attention", shift=1 << 30)),
        ("the mask is reversed: each token sees the tokens after it", mistaken("attention", transposed=True)),
        ("the mask sets scores to 0, expected -inf", mistaken("attention", fill=0)),
        ("the mask comes after the softmax, so rows do not sum to 1", mistaken("attention", late=True)),
        ("the softmax is over the queries, expected over the keys (last axis)", mistaken("attention", axis=1)),
        ("the softmax is over the heads, expected over the keys (last axis)", mistaken("attention", axis=0)),
        ("the exponentials overflow: subtract the largest score of the row first", mistaken("attention", naive=True)),
    ],
    "swiglu": [
        (SWAPPED, mistaken("swiglu", swap=True)),
        ("the activation is missing", mistaken("swiglu", act=lambda x: x)),
        ("the activation is sigmoid(x), expected x sigmoid(x)", mistaken("swiglu", act=lambda x: 1 / (1 + np.exp(-x)))),
        ("the activation is ReLU, expected SiLU", mistaken("swiglu", act=relu)),
        ("the activation is GELU, expected SiLU", mistaken("swiglu", act=gelu_tanh)),
        ("the activation is applied to gate * up, expected to the gate alone", mistaken("swiglu", last=True)),
        ("the activation is applied to up, too, expected to the gate alone", mistaken("swiglu", both=True)),
    ],
    "thresholded_swiglu": [
        (
            "values equal to the threshold are kept (>=), expected >",
            mistaken("thresholded_swiglu", keep=np.greater_equal),
        ),
        ("the values are compared without the absolute value", mistaken("thresholded_swiglu", size=lambda x: x)),
        (SWAPPED, mistaken("thresholded_swiglu", swap=True)),
        ("the mask is inverted: it cuts what should be kept", mistaken("thresholded_swiglu", keep=np.less_equal)),
        (
            "the gate before its activation is compared, expected silu(gate) * up",
            mistaken("thresholded_swiglu", compared="gate_pre"),
        ),
        ("the activated gate is compared, expected silu(gate) * up", mistaken("thresholded_swiglu", compared="gate")),
        ("up is compared, expected silu(gate) * up", mistaken("thresholded_swiglu", compared="up")),
        ("the mask is right, but y is computed without it", mistaken("thresholded_swiglu", dense=True)),
        ("y is right, but the mask is True for what is cut, expected True for what is kept",
         lambda *a: (cut(*a)[0], ~cut(*a)[1])),
    ],
    "train_predictor": [
        ("the loss grows: the sign of the gradient is wrong", mistaken("train_predictor", sign=-1)),
        ("the loss is a sum, expected the mean over all T F values", mistaken("train_predictor", over=lambda t, f: 1)),
        ("the loss is the mean over tokens alone, expected over all T F values",
         mistaken("train_predictor", over=lambda t, f: t)),
        ("the loss is the mean over neurons alone, expected over all T F values",
         mistaken("train_predictor", over=lambda t, f: f)),
        ("the gradient of A uses the B that was just changed", mistaken("train_predictor", late_A=True)),
        ("the gradient of B uses the A that was just changed", mistaken("train_predictor", late_B=True)),
        ("the sigmoid is missing (this is the gradient of a squared error)", mistaken("train_predictor", squash=False)),
        ("c is not trained", mistaken("train_predictor", bias=False)),
        ("one step too many", mistaken("train_predictor", more=1)),
        ("one step too few", mistaken("train_predictor", more=-1)),
    ],
    "lru": [
        ("it evicts the neuron that was loaded first (FIFO): a hit must make a neuron the most recent",
         mistaken("lru", victim="first")),
        (LFU, mistaken("lru", victim="count")),
        (LFU, mistaken("lru", victim="count", recent=False)),
        (LFU, mistaken("lru", victim="count", forget=True)),
        (LFU, mistaken("lru", victim="count", recent=False, forget=True)),
        ("it evicts the most recently used neuron, expected the least recently used", mistaken("lru", victim="newest")),
        ("it holds one neuron more than its capacity", mistaken("lru", more=1)),
        ("it holds one neuron less than its capacity", mistaken("lru", more=-1)),
        ("hits and misses are swapped", lambda requests, capacity: ~replayed(requests, capacity)),
    ],
}  # fmt: skip
