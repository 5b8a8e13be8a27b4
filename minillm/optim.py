"""Gradient descent: Adam, schedules for its step size, clipping of gradients, and the running average of weights.

    m = b1 m + (1 - b1) g          v = b2 v + (1 - b2) g^2
    p = p - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) - lr decay p

(Kingma and Ba 2014, arXiv 1412.6980, algorithm 1; the last term is decoupled weight decay, Loshchilov and Hutter 2017,
arXiv 1711.05101.) m and v begin at zero and so are too small at first, by just the factors that they are divided by:
the first step of every parameter has the length lr.

Everything here works in place and on some rows of an array at a time. So a step allocates next to nothing, and the rows
stay in the processor's cache from one operation to the next.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

AT_ONCE = 1 << 14  # numbers of an array that are worked on at a time: 64 KB of float32


def pieces_of(array: np.ndarray) -> Iterator[slice]:
    """Slices of an array's first axis, each of about AT_ONCE numbers."""
    rows = max(1, AT_ONCE * len(array) // max(1, array.size))
    yield from (slice(a, a + rows) for a in range(0, len(array), rows))


class Adam:
    """Adam's two averages for named arrays; ``step`` changes those arrays in place.

    parameters {name: array}. lr, betas, eps, decay: the symbols of the module's docstring.
    """

    def __init__(
        self, parameters: Mapping[str, np.ndarray], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, decay: float = 0.0,
    ):  # fmt: skip
        self.parameters, self.lr, self.betas, self.eps, self.decay, self.t = parameters, lr, betas, eps, decay, 0
        self.m = {name: np.zeros_like(p) for name, p in parameters.items()}
        self.v = {name: np.zeros_like(p) for name, p in parameters.items()}

    def step(self, gradients: Mapping[str, np.ndarray], scale: float = 1.0) -> None:
        """One step; gradients {name: array like the parameter}, scale: the factor of lr that a schedule gives."""
        self.t += 1
        for name, p in self.parameters.items():
            for rows in pieces_of(p):
                self._step(p[rows], gradients[name][rows], self.m[name][rows], self.v[name][rows], self.lr * scale)

    def _step(self, p: np.ndarray, g: np.ndarray, m: np.ndarray, v: np.ndarray, lr: float) -> None:
        """The equations, for some rows of one array; p, m and v are views that are written to."""
        b1, b2 = self.betas
        change = g - m
        change *= 1 - b1
        m += change
        np.multiply(g, g, out=change)
        change -= v
        change *= 1 - b2
        v += change
        size = v / (1 - b2**self.t)
        np.sqrt(size, out=size)
        size += self.eps
        np.divide(m, 1 - b1**self.t, out=change)
        change /= size
        if self.decay:
            np.multiply(p, self.decay, out=size)
            change += size
        change *= lr
        p -= change


def clip(gradients: Mapping[str, np.ndarray], limit: float) -> float:
    """Scale all gradients down together, in place, where their common length exceeds the limit; gives that length.

        norm = sqrt(sum of g^2 over all numbers of all arrays)        g = g limit / norm   where norm > limit

    (Pascanu, Mikolov and Bengio 2012, arXiv 1211.5063, algorithm 1.)
    """
    norm = math.sqrt(sum(float(np.vdot(g[rows], g[rows])) for g in gradients.values() for rows in pieces_of(g)))
    if norm > limit:
        for g in gradients.values():
            g *= limit / norm
    return norm


def average_in(average: Mapping[str, np.ndarray], parameters: Mapping[str, np.ndarray], step: int, over: int) -> None:
    """Move the running average of weights towards the weights after a step; in place.

        a = a + (p - a) / min(step, over)

    step: from 1. The average of all weights so far, and from ``over`` steps on one whose memory is about that long
    (Polyak and Juditsky 1992). Where a rate stays constant, the weights wander around a good place: their average is
    nearer to it than any of them.
    """
    for name, p in parameters.items():
        for rows in pieces_of(p):
            change = p[rows] - average[name][rows]
            change /= min(step, over)
            average[name][rows] += change


def cosine(step: int, steps: int, warmup: int = 0, least: float = 0.0) -> float:
    """The factor of lr at one of ``steps`` steps: a linear rise over ``warmup`` steps, then half a cosine.

        least + (1 - least) (1 + cos(pi t)) / 2        t = (step - warmup) / (steps - warmup), at most 1

    (Loshchilov and Hutter 2016, arXiv 1608.03983, eq. 5.)
    """
    if step < warmup:
        return (step + 1) / warmup
    return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


def constant(step: int, warmup: int = 0) -> float:
    """The factor of lr at a step: a linear rise over ``warmup`` steps, then 1."""
    return min(1.0, (step + 1) / max(1, warmup))
