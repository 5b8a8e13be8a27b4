"""Eviction policies: the rules that decide which neurons a small buffer keeps.

**A policy is one number per neuron; the C largest stay.** With t_j the last token that needed j, and n_j
the number of tokens that did:

    lru         t_j                                   evicts the least recently used
    lfu         n_j, then t_j                         evicts the least frequently used, counted from the beginning
    window-k    t_j, if j was needed in the last k    LLM in a Flash (arXiv 2312.11514): the union of the last k sets
    hot         1 for the most frequent, fixed        PowerInfer (arXiv 2312.12456): counted on a calibration text
    random      1 for a random set, fixed             hit rate C / N on any trace, in the mean: the least to expect
    belady      -(next token that needs j)            Belady 1966 with bypass: needs the future; no rule can do better

Of equal neurons, those already kept stay first, then those of lower index. "With bypass" means that a neuron needed now
need not be kept. Why belady is best: keeping j from one use to the next is an interval that earns one hit, at most C
intervals may overlap, and dropping the one that ends last, whenever there are too many, leaves the most of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..errors import MinillmError
from ..sparsity.policies import largest

Layers = int | np.ndarray  # one layer's index, or those of several that are treated alike, (l,)


class Usage(Protocol):
    """What an eviction policy may look at: the buffer's record of which token needed which neuron.

    last, count (L, N): the last token that needed a neuron (-1: none yet), and the number of tokens that did. time
    (L,): the token that a layer's next request belongs to.
    """

    last: np.ndarray
    count: np.ndarray
    time: np.ndarray


@dataclass(frozen=True)
class Eviction:
    """An eviction policy: value(buffer, layer) gives a whole number per neuron, (N,), or (l, N) for l layers.

    The neurons of the largest values stay; one of a negative value never does. start (L, N): the neurons that lie in
    the buffer before the first token, if the policy has such a set.
    """

    name: str
    value: Callable[[Usage, Layers], np.ndarray]
    start: np.ndarray | None = None


def lru() -> Eviction:
    """Keep the most recently used neurons."""
    return Eviction("lru", lambda buffer, layer: buffer.last[layer] + 1)


def lfu() -> Eviction:
    """Keep the neurons used most often since the beginning; of equal ones, the more recent."""
    return Eviction("lfu", lambda buffer, layer: (buffer.count[layer] << 24) + buffer.last[layer] + 1)


def window(tokens: int) -> Eviction:
    """Keep what any of the last ``tokens`` tokens needed (arXiv 2312.11514); the most recent where there is no room."""

    def value(buffer: Usage, layer: Layers) -> np.ndarray:
        last = buffer.last[layer]
        return np.where(last > buffer.time[layer][..., None] - tokens, last + 1, -1)

    return Eviction(f"window-{tokens}", value)


def static(name: str, sets: np.ndarray) -> Eviction:
    """Always keep the same set: sets (L, N) bool, which is in the buffer from the start."""
    return Eviction(name, lambda buffer, layer: np.where(sets[layer], 1, -1), sets)


def hot(frequencies: np.ndarray, capacity: int) -> Eviction:
    """Keep the most frequent neurons (arXiv 2312.12456): frequencies (L, N), counted on another text than replayed."""
    return static("hot", largest(np.asarray(frequencies), capacity))


def random_set(layers: int, neurons: int, capacity: int, rng: np.random.Generator) -> Eviction:
    """Keep a random set: the baseline without any knowledge."""
    return static("random", largest(rng.random((layers, neurons)), capacity))


def next_uses(trace: np.ndarray) -> np.ndarray:
    """After token t, the next token that needs neuron j; T where none does.  (T, L, N) bool -> (T, L, N)."""
    tokens = len(trace)
    table = np.full(trace.shape, tokens, np.int16 if tokens < 1 << 15 else np.int32)
    for t in range(tokens - 1, 0, -1):
        table[t - 1] = np.where(trace[t], t, table[t])
    return table


def belady(trace: np.ndarray) -> Eviction:
    """Keep what is needed soonest, on the recorded trace (T, L, N) bool that will be replayed.

    Raises MinillmError for a request that is not the trace's next one.
    """
    following = next_uses(trace)

    def value(buffer: Usage, layer: Layers) -> np.ndarray:
        now = buffer.time[layer]
        used = buffer.last[layer] == now[..., None]
        if np.max(now) >= len(trace) or not np.array_equal(used, trace[now, layer]):
            raise MinillmError(f"belady was given another trace: it does not hold request {now} of layer {layer}")
        soon = following[now, layer].astype(np.int64)
        return np.where(soon < len(trace), len(trace) - soon, -1)

    return Eviction("belady", value)


def eviction_named(name: str) -> Eviction:
    """The eviction policy of a name that needs no further data: lru, lfu, window-K. Raises MinillmError for others."""
    if name in ("lru", "lfu"):
        return {"lru": lru, "lfu": lfu}[name]()
    kind, _, tokens = name.partition("-")
    if kind == "window" and tokens.isdecimal():
        return window(int(tokens))
    raise MinillmError(
        f"eviction policy {name!r} is unknown, expected lru, lfu or window-K, or an Eviction with its own data"
    )
