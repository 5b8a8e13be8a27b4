"""Blocks that a router chooses, for ``minillm bench ffn``: how long the choice takes belongs to the time of the FFN.

    score of the B blocks = W2 max(W1 x + h, 0) + c        W1 (H, D), W2 (B, H), H = D / 2; then the K largest scores

This is the router of predictors/router.py for one token, with its matrices stored row by row, as all others are here.
Random tables, whose numbers mean nothing. An FFN of three matrices (F, D) in blocks of g has B = F / g, so beside its
3 F D multiply-adds the router's D (D + F / g) / 2 are few, but they come first and cannot be left out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..loading.config import ModelConfig
from ..prefetch.kernels import ROUTER, Blocks, block_views
from ..sparsity.policies import largest
from ..transformer.linear import one_row


class Router(NamedTuple):
    """A router's tables: inner W1 (H, D) with h (H,), outer W2 (B, H) with c (B,)."""

    inner: np.ndarray
    h: np.ndarray
    outer: np.ndarray
    c: np.ndarray

    def blocks(self, x: np.ndarray, kept: int) -> np.ndarray:
        """The ``kept`` blocks with the largest scores.  x (D,)  ->  (kept,) indices, ascending."""
        hidden = np.maximum(one_row(x, self.inner) + self.h, 0)  # (H,)
        return np.flatnonzero(largest(one_row(hidden, self.outer) + self.c, kept))


def routed(x: np.ndarray, weights: Blocks, router: Router, kept: int) -> np.ndarray:
    """The FFN of one token from the blocks that its router chooses.  x (D,)  ->  y (D,)."""
    return block_views(x, weights, router.blocks(x, kept))


def router_numbers(config: ModelConfig) -> int:
    """How many numbers routers of one layer share: H (D + F), enough for blocks of any size."""
    return config.hidden_size // ROUTER * (config.hidden_size + config.intermediate_size)


def router_of(numbers: np.ndarray, hidden: int, blocks: int) -> Router:
    """A router of so many blocks, without a copy.  numbers (H (D + F),)."""
    H = hidden // ROUTER
    inner, outer = numbers[: H * hidden], numbers[H * hidden :][: blocks * H]
    nothing = np.zeros(max(H, blocks), numbers.dtype)
    return Router(inner.reshape(H, hidden), nothing[:H], outer.reshape(blocks, H), nothing[:blocks])
