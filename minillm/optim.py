"""Gradient descent for the predictors: Adam, and a schedule for its step size.

    m = b1 m + (1 - b1) g          v = b2 v + (1 - b2) g^2
    p = p - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) - lr decay p

(Kingma and Ba 2014, arXiv 1412.6980, algorithm 1; the last term is decoupled weight decay, Loshchilov and Hutter 2017,
arXiv 1711.05101.) m and v begin at zero and so are too small at first, by just the factors that they are divided by:
the first step of every parameter has the length lr.
"""

import math

import numpy as np


class Adam:
    """Adam's two averages for named arrays; ``step`` changes those arrays in place.

    parameters {name: array}. lr, betas, eps, decay: the symbols of the module's docstring.
    """

    def __init__(
        self, parameters: dict[str, np.ndarray], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, decay: float = 0.0,
    ):  # fmt: skip
        self.parameters, self.lr, self.betas, self.eps, self.decay, self.t = parameters, lr, betas, eps, decay, 0
        self.m = {name: np.zeros_like(p) for name, p in parameters.items()}
        self.v = {name: np.zeros_like(p) for name, p in parameters.items()}

    def step(self, gradients: dict[str, np.ndarray], scale: float = 1.0) -> None:
        """One step; gradients {name: array like the parameter}, scale: the factor of lr that a schedule gives."""
        self.t += 1
        (b1, b2), lr = self.betas, self.lr * scale
        for name, p in self.parameters.items():
            g, m, v = gradients[name], self.m[name], self.v[name]
            m += (1 - b1) * (g - m)
            v += (1 - b2) * (g * g - v)
            p -= lr * ((m / (1 - b1**self.t)) / (np.sqrt(v / (1 - b2**self.t)) + self.eps) + self.decay * p)


def cosine(step: int, steps: int, warmup: int = 0, least: float = 0.0) -> float:
    """The factor of lr at one of ``steps`` steps: a linear rise over ``warmup`` steps, then half a cosine.

        least + (1 - least) (1 + cos(pi t)) / 2        t = (step - warmup) / (steps - warmup), at most 1

    (Loshchilov and Hutter 2016, arXiv 1608.03983, eq. 5.)
    """
    if step < warmup:
        return (step + 1) / warmup
    return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))
