"""TODO."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..errors import MinillmError
from ..sparsity.policies import largest

Layers = int | np.ndarray  # one layer's index, or those of several that are treated alike, (l,)


class Usage(Protocol):
    """What a rule may look at: the buffer's record of which token needed which neuron.

    last, count (L, N): the last token that needed a neuron (-1: none yet), and how many did. time (L,): the token that
    a layer's next request belongs to.
    """

    last: np.ndarray
    count: np.ndarray
    time: np.ndarray


@dataclass(frozen=True)
class Keeper:
    """A rule of what to keep: value(buffer, layer) gives a whole number per neuron, (N,), or (l, N) for l layers.

    The largest stay; a negative one never does. start (L, N): what lies in the buffer before the first token, if the
    rule says so.
    """

    name: str
    value: Callable[[Usage, Layers], np.ndarray]
    start: np.ndarray | None = None


def lru() -> Keeper:
    """Keep the most recently used."""
    return Keeper("lru", lambda buffer, layer: buffer.last[layer] + 1)


def lfu() -> Keeper:
    """Keep the most often used since the beginning; of equal ones, the more recent."""
    return Keeper("lfu", lambda buffer, layer: (buffer.count[layer] << 24) + buffer.last[layer] + 1)


def window(tokens: int) -> Keeper:
    """Keep what any of the last ``tokens`` tokens needed (arXiv 2312.11514); the most recent where that is too much."""

    def value(buffer: Usage, layer: Layers) -> np.ndarray:
        last = buffer.last[layer]
        return np.where(last > buffer.time[layer][..., None] - tokens, last + 1, -1)

    return Keeper(f"window-{tokens}", value)


def static(name: str, sets: np.ndarray) -> Keeper:
    """Keep the same set for ever: sets (L, N) bool, which is in the buffer from the start."""
    return Keeper(name, lambda buffer, layer: np.where(sets[layer], 1, -1), sets)


def hot(frequencies: np.ndarray, capacity: int) -> Keeper:
    """Keep the most frequent (arXiv 2312.12456): frequencies (L, N), counted on a text other than the one replayed."""
    return static("hot", largest(np.asarray(frequencies), capacity))


def random_set(layers: int, neurons: int, capacity: int, rng: np.random.Generator) -> Keeper:
    """Keep a random set: what any knowledge at all has to beat."""
    return static("random", largest(rng.random((layers, neurons)), capacity))


def next_uses(trace: np.ndarray) -> np.ndarray:
    """After token t, the next token that needs neuron j; T where none does.  (T, L, N) bool -> (T, L, N)."""
    tokens = len(trace)
    table = np.full(trace.shape, tokens, np.int16 if tokens < 1 << 15 else np.int32)
    for t in range(tokens - 1, 0, -1):
        table[t - 1] = np.where(trace[t], t, table[t])
    return table


def belady(trace: np.ndarray) -> Keeper:
    """Keep what is needed soonest, on the recorded trace (T, L, N) bool that will be replayed.

    Raises MinillmError when another request comes than the trace foretold.
    """
    following = next_uses(trace)

    def value(buffer: Usage, layer: Layers) -> np.ndarray:
        now = buffer.time[layer]
        used = buffer.last[layer] == now[..., None]
        if np.max(now) >= len(trace) or not np.array_equal(used, trace[now, layer]):
            raise MinillmError(f"belady was given another trace: it does not hold request {now} of layer {layer}")
        soon = following[now, layer].astype(np.int64)
        return np.where(soon < len(trace), len(trace) - soon, -1)

    return Keeper("belady", value)


def keeper_named(name: str) -> Keeper:
    """The keeper of a name that needs nothing else: lru, lfu, window-K. Raises MinillmError for any other."""
    if name in ("lru", "lfu"):
        return {"lru": lru, "lfu": lfu}[name]()
    kind, _, tokens = name.partition("-")
    if kind == "window" and tokens.isdecimal():
        return window(int(tokens))
    raise MinillmError(f"keeper {name!r} is unknown, expected lru, lfu, window-K, or a Keeper that is told more")
