"""Gradients of a loss by central differences, and which of a backward pass's gradients first disagrees with them.

A gradient g of a tensor is compared along a random direction v of length 1:  (L(x + h v) - L(x - h v)) / 2h = g . v.
"""

import numpy as np

from minillm.training.backward import Gradients, Saved, backward
from minillm.training.losses import cross_entropy
from minillm.transformer.ffn import swiglu
from minillm.transformer.model import Llama

IDS = np.array([1, 5, 3, 9, 30, 4, 4, 2, 7])  # the last is only a target; one id comes twice
STEP = 1e-5


def passed(model: Llama, ids=IDS, ffn=swiglu, targets=None, **options) -> tuple[Saved, Gradients]:
    """A forward and a backward pass."""
    saved = Saved()
    model.forward(ids[:-1], ffn=ffn, tap=saved)
    return saved, backward(model, ids[:-1], ids[1:] if targets is None else targets, saved, **options)


def direction(shape: tuple[int, ...], seed: int) -> np.ndarray:
    v = np.random.default_rng(seed).standard_normal(shape)
    return v / np.linalg.norm(v)


def slope_of_step(model: Llama, name: str, v: np.ndarray, ids=IDS, ffn=swiglu) -> float:
    """dL along v, where v is added to a step of the forward pass."""

    def moved(h: float) -> float:
        def tap(step: str, value: np.ndarray) -> np.ndarray:
            return value + h * v if step == name else value

        return cross_entropy(model.forward(ids[:-1], ffn=ffn, tap=tap), ids[1:]).value

    return (moved(STEP) - moved(-STEP)) / (2 * STEP)


def slope_of_weight(model: Llama, name: str, v: np.ndarray, ids=IDS, ffn=swiglu) -> float:
    """dL along v, where v is added to a weight."""
    weight, losses = model.weights[name], []
    before = weight.copy()
    for h in (STEP, -STEP):
        weight[...] = before + h * v
        losses.append(cross_entropy(model.forward(ids[:-1], ffn=ffn), ids[1:]).value)
    weight[...] = before
    return (losses[0] - losses[1]) / (2 * STEP)


def wrong(model: Llama, ids=IDS, ffn=swiglu, tolerance: float = 1e-6) -> list[str]:
    """The steps and weights whose gradients disagree with central differences, in the order of the backward pass.

    tolerance: of the gradient's length. Two directions are tried for each.
    """
    _, found = passed(model, ids, ffn)
    bad = []
    for slope, gradients in ((slope_of_step, found.steps), (slope_of_weight, found.weights)):
        for name, g in gradients.items():
            for seed in (0, 1):
                v = direction(g.shape, seed)
                size = max(np.linalg.norm(g) / np.sqrt(g.size), 1e-4)
                if not abs(slope(model, name, v, ids, ffn) - (g * v).sum()) <= tolerance * size:
                    bad.append(name)
                    break
    return bad
