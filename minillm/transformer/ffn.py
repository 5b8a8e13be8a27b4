"""The feed-forward network, and the two seams where every method of this project enters.

SwiGLU (Shazeer 2020, arXiv 2002.05202, eq. 6) is a sum over F neurons. Neuron j owns row j of the gate and
up matrices and column j of the down matrix:

    y = sum_j  silu(x . gate_j) (x . up_j)  down_j
               `----- mid_j: the coefficient of neuron j -----'

In a network without a gate (OPT, Phi-2) up is 1: mid = act(x . gate_j), and a neuron owns two vectors.

A neuron whose mid is zero adds nothing, and none of its vectors had to be read. All that follows in the
chapters on cutting, predicting and fetching is about which neurons those are.

A *FeedForward* is any function (x, layer, position, tap) -> y. Dense, thresholded, predicted, prefetched: each is
one such function, given to ``Llama.forward(ids, ffn=...)``, and nothing else in the model changes.

A *Selector* is any function (x, layer, position, tap) -> mask. It answers "which neurons?" before the layer is
computed: a policy as a free oracle, a predictor with cutoffs, recorded masks, a static set, GRIFFIN's prompt. The
FeedForwards that execute its answer (masked, gathered, from a buffer, from a disk) do not care which of them it is.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ..trace import Tap, no_tap
from .layer import Layer
from .linear import linear


class FeedForward(Protocol):
    """x (T, D) normed input, layer the weights and layer.index, position of x's first row  ->  y (T, D).

    position 0 starts a new text: a FeedForward with state (the previous token's mask, say) starts afresh there.
    """

    def __call__(self, x: np.ndarray, layer: Layer, position: int, tap: Tap) -> np.ndarray: ...


class Selector(Protocol):
    """x (T, D) normed input, layer, position of x's first row  ->  mask (T, F) bool, True = neuron wanted.

    name: for tables. calibrated_on: hashes of the documents that it has seen. reads: the matrices of the layer
    ("gate", "up") that it reads in full to know its answer; what a free oracle reads is not counted, so it names none.
    position 0 starts a new text: a Selector with state starts afresh there.
    """

    @property
    def name(self) -> str: ...

    @property
    def calibrated_on(self) -> frozenset[str]: ...

    @property
    def reads(self) -> frozenset[str]: ...

    def __call__(self, x: np.ndarray, layer: Layer, position: int, tap: Tap) -> np.ndarray: ...


def swiglu(x: np.ndarray, layer: Layer, position: int = 0, tap: Tap = no_tap) -> np.ndarray:
    """The dense gated feed-forward network (arXiv 2002.05202, eq. 6; any gated activation in SiLU's place).

        gate = act(x W_gate^T)    up = x W_up^T    mid = gate * up    out = mid W_down^T

    x (T, D); gate_proj, up_proj (F, D); down_proj (D, F)  ->  (T, D).
    """
    gate_pre = tap("gate_pre", linear(x, layer.gate_proj, layer.gate_bias))  # (T, F)
    gate = tap("gate", layer.act(gate_pre))  # (T, F)
    if layer.up_proj is None:  # up is 1
        mid = tap("mid", gate)  # (T, F)
    else:
        up = tap("up", linear(x, layer.up_proj, layer.up_bias))  # (T, F)
        mid = tap("mid", gate * up)  # (T, F)
    return tap("out", linear(mid, layer.down_proj, layer.down_bias))  # (T, D)


def mid_of(x: np.ndarray, layer: Layer, tap: Tap = no_tap) -> np.ndarray:
    """The first four lines of swiglu alone: the coefficient of every neuron.  x (T, D)  ->  mid (T, F)."""
    gate_pre = tap("gate_pre", linear(x, layer.gate_proj, layer.gate_bias))  # (T, F)
    gate = tap("gate", layer.act(gate_pre))  # (T, F)
    if layer.up_proj is None:
        return tap("mid", gate)  # (T, F)
    up = tap("up", linear(x, layer.up_proj, layer.up_bias))  # (T, F)
    return tap("mid", gate * up)  # (T, F)
