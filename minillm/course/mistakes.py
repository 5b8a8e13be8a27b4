"""The usual mistakes, written out: what the seven functions of ``minillm grade`` give when one thing is wrong.

A wrong answer that equals one of these on every case is no riddle any more: the sentence beside it says what happened.
Each entry takes the arguments of the function it spoils and gives the wrong result; a switch per mistake, so that the
right form (no switch) stands here, too, and a test compares it with the goldens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..transformer.ops import gelu_tanh, relu, rms_norm, silu, softmax
from ..transformer.rope import rotate_halves, rotate_interleaved
from .check import difference


class Call(NamedTuple):
    """What a function was given, what it gave, and what is right (to rtol of the largest value)."""

    arguments: tuple
    found: object
    expected: object
    rtol: float


def diagnose(name: str, calls: Sequence[Call]) -> str:
    """The mistakes that explain these results of a function; "" where none does.

    A result in float64 for float32 arguments is one; the values of all calls must equal those of one known mistake.
    """
    found = []
    with np.errstate(all="ignore"):
        if any(difference(*map(in_double, call[1:3]), call.rtol)[1] for call in calls):
            for words, wrong in MISTAKES[name]:
                spoiled = (wrong(*map(in_double, call.arguments)) for call in calls)
                if not any(
                    difference(in_double(c.found), value, c.rtol)[1] for c, value in zip(calls, spoiled, strict=True)
                ):
                    found.append(words)
                    break
    if any(leaks(call.found, call.expected) for call in calls):
        found.append("float32 goes in and float64 comes out (a table or a constant in it is float64)")
    return "; ".join(found)


def in_double(value: object) -> object:
    """The same value, floats in float64: which mistake it is does not depend on the width."""
    if isinstance(value, tuple):
        return tuple(map(in_double, value))
    return value.astype(np.float64) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value


def leaks(found: object, expected: object) -> bool:
    """Whether float64 was given where float32 was expected."""
    if isinstance(expected, tuple):
        return isinstance(found, tuple) and any(map(leaks, found, expected))
    widths = (getattr(value, "dtype", None) for value in (found, expected))
    return tuple(widths) == (np.float64, np.float32)


# ---- one switch per mistake ------------------------------------------------------------------------------------------
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
    q, k, v, *, scale=None, dealt=False, shift=0, start=None, fill=-np.inf, transposed=False, late=False, axis=-1,
    naive=False,
):  # fmt: skip
    """Causal attention with grouped heads: q (T, H, d), k and v (S, K, d)  ->  (T, H, d)."""
    (new, heads, d), (length, kv_heads, _) = q.shape, k.shape
    read = np.arange(heads) % kv_heads if dealt else np.arange(heads) // (heads // kv_heads)
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
    x, gate_proj, up_proj, down_proj, threshold, *, look="mid", size=np.abs, keep=np.greater, swap=False, dense=False
):
    """Thresholded SwiGLU, which also gives its mask (T, F)."""
    g, u = x @ gate_proj.T, x @ up_proj.T
    g, u = (u, g) if swap else (g, u)
    seen = {"mid": silu(g) * u, "gate_pre": g, "gate": silu(g), "up": u}
    mask = keep(size(seen[look]), threshold)
    return np.where(mask | dense, seen["mid"], 0) @ down_proj.T, mask


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
    """Which requests a buffer of ``capacity`` holds already; among the held ones, that with the least of these goes."""
    capacity, held, count, hits = capacity + more, {}, {}, []
    for now, neuron in enumerate(requests.tolist()):
        hit = neuron in held
        hits.append(hit)
        if not hit and len(held) >= capacity > 0:
            key = {"last": lambda n: held[n][1], "first": lambda n: held[n][0], "newest": lambda n: -held[n][1],
                   "count": lambda n: (count[n], held[n][recent])}[victim]  # fmt: skip
            gone = min(held, key=key)
            del held[gone]
            if forget:
                count[gone] = 0
        count[neuron] = count.get(neuron, 0) + 1
        if capacity > 0:
            held[neuron] = (held[neuron][0] if hit else now, now)
    return np.array(hits, bool)


RIGHT: dict[str, Callable] = {
    "rms_norm": normed, "rope": turned, "attention": attended, "swiglu": gated, "thresholded_swiglu": cut,
    "train_predictor": trained, "lru": replayed,
}  # fmt: skip


def spoiled(name: str, **switches) -> Callable:
    """A function with one thing wrong."""
    return lambda *arguments: RIGHT[name](*arguments, **switches)


LFU = "the least frequently used goes (LFU), expected the least recently used"
GROUPS = "heads of keys and values in the wrong order: query head h reads h % K (tile), expected h // (H/K) (repeat)"
SWAPPED = "gate and up are swapped: the activation belongs to the gate"
MISTAKES: dict[str, list[tuple[str, Callable]]] = {
    "rms_norm": [
        ("eps stands outside the root, expected sqrt(mean(x^2) + eps)", spoiled("rms_norm", outside=True)),
        ("eps is always 1e-6, expected the eps that is given", lambda x, weight, eps: rms_norm(x, weight, 1e-6)),
        ("eps is always 1e-5, expected the eps that is given", lambda x, weight, eps: rms_norm(x, weight, 1e-5)),
        ("eps is left out", lambda x, weight, eps: rms_norm(x, weight, 0.0)),
        ("the mean is over the tokens (axis 0), expected over the last axis", spoiled("rms_norm", axis=0)),
        ("the mean is over all values, expected one per row", spoiled("rms_norm", axis=None)),
        ("the squares are summed, expected their mean", spoiled("rms_norm", total=True)),
        ("the root is missing", spoiled("rms_norm", root=False)),
        ("the weight is left out", lambda x, weight, eps: rms_norm(x, np.ones_like(weight), eps)),
        ("the weight is 1 + weight (as in Gemma), expected weight", lambda x, w, eps: rms_norm(x, 1 + w, eps)),
        ("the mean is subtracted first (that is LayerNorm)", spoiled("rms_norm", centred=True)),
    ],
    "rope": [
        (
            "pairs are neighbours (0, 1), (2, 3) (interleaved), expected halves (0, d/2), (1, d/2 + 1)",
            spoiled("rope", rotate=rotate_interleaved),
        ),
        ("it turns backwards: the sign of the sine is wrong", spoiled("rope", sign=-1)),
        ("positions begin one too late", spoiled("rope", first=1)),
        (
            "the given positions are ignored (0, 1, 2, ... are used)",
            lambda x, positions, theta: turned(x, np.arange(len(x)), theta),
        ),
        ("theta is always 10000", lambda x, positions, theta: turned(x, positions, 10000.0)),
        ("the exponent is -j/d, expected -2j/d", spoiled("rope", exponent=1)),
        ("the exponent is positive, expected theta^(-2j/d)", spoiled("rope", exponent=-2)),
    ],
    "attention": [
        ("scores are not divided by sqrt(d)", spoiled("attention", scale=lambda heads, d: 1)),
        ("scores are divided by d, expected sqrt(d)", spoiled("attention", scale=lambda heads, d: 1 / d)),
        (
            "scores are divided by the root of the whole width H d, expected sqrt(d)",
            spoiled("attention", scale=lambda heads, d: 1 / math.sqrt(heads * d)),
        ),
        (GROUPS, spoiled("attention", dealt=True)),
        ("the mask is off by one: each token sees the next one", spoiled("attention", shift=1)),
        ("the mask is off by one: no token sees itself", spoiled("attention", shift=-1)),
        ("the mask is off by one: no token sees itself", spoiled("attention", shift=-1, fill=-1e9)),
        (
            "the mask counts the new tokens from position 0, expected from S - T",
            spoiled("attention", start=0),
        ),
        ("there is no mask: every token sees the whole text", spoiled("attention", shift=1 << 30)),
        ("the mask is upside down: tokens see what follows them", spoiled("attention", transposed=True)),
        ("the mask sets scores to 0, expected -inf", spoiled("attention", fill=0)),
        ("the mask comes after the softmax, so rows do not sum to 1", spoiled("attention", late=True)),
        ("the softmax is over the queries, expected over the keys (last axis)", spoiled("attention", axis=1)),
        ("the softmax is over the heads, expected over the keys (last axis)", spoiled("attention", axis=0)),
        ("exponentials overflow: subtract the largest score first", spoiled("attention", naive=True)),
    ],
    "swiglu": [
        (SWAPPED, spoiled("swiglu", swap=True)),
        ("the activation is missing", spoiled("swiglu", act=lambda x: x)),
        ("the activation is sigmoid(x), expected x sigmoid(x)", spoiled("swiglu", act=lambda x: 1 / (1 + np.exp(-x)))),
        ("the activation is ReLU, expected SiLU", spoiled("swiglu", act=relu)),
        ("the activation is GELU, expected SiLU", spoiled("swiglu", act=gelu_tanh)),
        ("the activation acts on gate * up, expected on the gate alone", spoiled("swiglu", last=True)),
        ("the activation acts on up, too, expected on the gate alone", spoiled("swiglu", both=True)),
    ],
    "thresholded_swiglu": [
        (
            "what equals the threshold stays (>=), expected > alone",
            spoiled("thresholded_swiglu", keep=np.greater_equal),
        ),
        ("compared without the absolute value", spoiled("thresholded_swiglu", size=lambda x: x)),
        (SWAPPED, spoiled("thresholded_swiglu", swap=True)),
        ("the mask is inverted: it cuts what should stay", spoiled("thresholded_swiglu", keep=np.less_equal)),
        (
            "the gate before its activation is compared, expected silu(gate) * up",
            spoiled("thresholded_swiglu", look="gate_pre"),
        ),
        ("the activated gate is compared, expected silu(gate) * up", spoiled("thresholded_swiglu", look="gate")),
        ("up is compared, expected silu(gate) * up", spoiled("thresholded_swiglu", look="up")),
        ("the mask is right, but y is not cut by it", spoiled("thresholded_swiglu", dense=True)),
        ("y is right, but the mask says what is cut, expected what is kept", lambda *a: (cut(*a)[0], ~cut(*a)[1])),
    ],
    "train_predictor": [
        ("it climbs: the sign of the gradient is wrong", spoiled("train_predictor", sign=-1)),
        ("the loss is a sum, expected the mean over all T F values", spoiled("train_predictor", over=lambda t, f: 1)),
        ("the loss is the mean over tokens alone, expected over all T F values",
         spoiled("train_predictor", over=lambda t, f: t)),
        ("the loss is the mean over neurons alone, expected over all T F values",
         spoiled("train_predictor", over=lambda t, f: f)),
        ("the gradient of A uses the B that was just changed", spoiled("train_predictor", late_A=True)),
        ("the gradient of B uses the A that was just changed", spoiled("train_predictor", late_B=True)),
        ("the sigmoid is missing: that is the gradient of a squared error", spoiled("train_predictor", squash=False)),
        ("c is not trained", spoiled("train_predictor", bias=False)),
        ("one step too many", spoiled("train_predictor", more=1)),
        ("one step too few", spoiled("train_predictor", more=-1)),
    ],
    "lru": [
        ("the first that came goes (FIFO): a hit must make a neuron the most recent", spoiled("lru", victim="first")),
        (LFU, spoiled("lru", victim="count")),
        (LFU, spoiled("lru", victim="count", recent=False)),
        (LFU, spoiled("lru", victim="count", forget=True)),
        (LFU, spoiled("lru", victim="count", recent=False, forget=True)),
        ("the most recently used goes, expected the least recently used", spoiled("lru", victim="newest")),
        ("it holds one neuron more than its capacity", spoiled("lru", more=1)),
        ("it holds one neuron less than its capacity", spoiled("lru", more=-1)),
        ("hits and misses are exchanged", lambda requests, capacity: ~replayed(requests, capacity)),
    ],
}  # fmt: skip
