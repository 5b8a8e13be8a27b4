"""The slope of each gated activation: where the gate moves by a little, how much does its activation move?

    a = act(g)        da/dg = act'(g)

One function for each of transformer/ops.py's activations, element by element: x (...)  ->  (...), in x's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..transformer.ops import erfc


def silu_slope(x: np.ndarray) -> np.ndarray:
    """silu'(x) = s + x s (1 - s) with s = 1 / (1 + exp(-x)).  x (...)  ->  (...)."""
    s = np.exp(-np.maximum(x, -88))  # as in ops.silu, exp must not overflow
    s += 1
    np.divide(1, s, out=s)  # (...)
    slope = 1 - s
    slope *= x
    slope += 1
    slope *= s
    return slope


def relu_slope(x: np.ndarray) -> np.ndarray:
    """1 where x > 0, else 0."""
    return (x > 0).astype(x.dtype)


def relu2_slope(x: np.ndarray) -> np.ndarray:
    """2 max(x, 0)."""
    return 2 * np.maximum(x, 0)


def gelu_slope(x: np.ndarray) -> np.ndarray:
    """(1 + erf(x / sqrt 2)) / 2 + x exp(-x^2 / 2) / sqrt(2 pi): the normal distribution's function, and its density."""
    density = np.exp(-0.5 * (x * x)) * (1 / math.sqrt(2 * math.pi))
    return 0.5 * erfc(x * (-1 / math.sqrt(2))) + x * density


def gelu_tanh_slope(x: np.ndarray) -> np.ndarray:
    """(1 + t) / 2 + x/2 (1 - t^2) a (1 + 3 b x^2) with t = tanh(a (x + b x^3)), a = sqrt(2/pi), b = 0.044715."""
    a, b = math.sqrt(2 / math.pi), 0.044715
    t = np.tanh(a * (x + b * (x * x * x)))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * (a * (1 + 3 * b * (x * x)))


SLOPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # one for each of ops.ACTIVATIONS
    "silu": silu_slope,
    "relu": relu_slope,
    "relu2": relu2_slope,
    "gelu": gelu_slope,
    "gelu_pytorch_tanh": gelu_tanh_slope,
}
