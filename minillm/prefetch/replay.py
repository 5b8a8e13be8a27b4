"""Replay: every buffer tried on one record of which neurons each token needs, without the model.

The record (record.py) is the trace A (T, L, N) and, where a predictor takes part, its guesses P (T, L, N). Each row
says what one eviction policy at one capacity C makes of it, and beside it, from the same contents at the start and
without any guess,

    lru       the policy that one would try first
    belady    the best that any policy can do (with bypass)
    random    a fixed random set: C / N in the mean, the hit rate without any knowledge

Guesses change neither the kept neurons nor the hit rate (buffer.py): compare them in bytes per token and stall. A row
with guesses never moves fewer bytes than belady.

The set of the policy hot is counted on another text than the one replayed (``frequencies`` in record.py). Texts follow
each other as in one long session, and the buffer stays warm between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import MinillmError
from .buffer import PrefetchBuffer
from .clock import Device, Work, device_named, simulate
from .eviction import Eviction, belady, eviction_named, hot, lru, random_set
from .traffic import Traffic

EVICTIONS = ("lru", "lfu", "window-4", "hot", "random", "belady")
SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)  # of a layer's neurons


def kept_history(
    trace: np.ndarray, capacity: int, eviction: Eviction | str, start: np.ndarray | None = None
) -> np.ndarray:
    """The neurons kept before each token, and after the last: trace (T, L, N) bool -> (T + 1, L, N) bool."""
    tokens, layers, neurons = trace.shape
    buffer = PrefetchBuffer(layers, neurons, capacity, eviction, start=start)
    history, every = np.empty((tokens + 1, layers, neurons), bool), np.arange(layers)
    history[0] = buffer.held
    for t in range(tokens):
        history[t + 1] = buffer.held = buffer.settle(every, trace[t])
    return history


def traffic_of(trace: np.ndarray, history: np.ndarray, guessed: np.ndarray | None = None) -> Traffic:
    """The traffic of a history of kept neurons (T + 1, L, N): all calls of ``PrefetchBuffer.request`` at once.

    trace, guessed (T, L, N) bool  ->  counts (T, L).
    """
    held, kept = history[:-1], history[1:]
    ordered = np.zeros_like(trace) if guessed is None else guessed & ~held
    missed = trace & ~held & ~ordered
    masks = (trace, trace & held, trace & ordered, missed, ordered & ~trace, missed & ~kept)
    return Traffic(*(np.count_nonzero(mask, axis=2) for mask in masks))


def working_space(traffic: Traffic, lookahead: str = "layer") -> int:
    """The largest number of neurons beside the kept ones at any time: the current layer's, and those guessed ahead."""
    ahead = traffic.prefetched  # (T, L)
    own = ahead + traffic.missed
    after = np.zeros_like(own)
    if lookahead == "layer":
        after[:, :-1] = ahead[:, 1:]
    else:  # all layers' guesses wait at once: this token's for the layers to come, the next one's for those done
        after += ahead.sum(axis=1, keepdims=True) - np.cumsum(ahead, axis=1)
        after[:-1] += np.cumsum(ahead[1:], axis=1)
    return int((own + after).max(initial=0))


@dataclass(frozen=True, eq=False)
class ReplaySettings:
    """Settings of a replay.

    evictions: names of eviction policies. shares: capacities, as shares of a layer's neurons. device: of the clock.
    hot_frequencies (L, N): share of another text's tokens that need each neuron, for the policy hot, which is left
    out without them. miss: "wait" or "drop". bytes_per_number: of a weight in slow memory; None: as the checkpoint
    stores it. seed: of the random set.
    """

    evictions: Sequence[str] = EVICTIONS
    shares: Sequence[float] = SHARES
    device: str | Device = "laptop NVMe"
    hot_frequencies: np.ndarray | None = None
    miss: str = "wait"
    bytes_per_number: int | None = None
    seed: int = 0

    def names(self) -> list[str]:
        """The eviction policies whose data are there."""
        return [name for name in self.evictions if name != "hot" or self.hot_frequencies is not None]

    def eviction(self, name: str, capacity: int, layers: int, neurons: int) -> Eviction:
        """The eviction policy of a name, with its data. Raises MinillmError where these are missing."""
        if name == "hot":
            frequencies = self.hot_frequencies
            found = "none" if frequencies is None else list(frequencies.shape)
            if frequencies is None or found != [layers, neurons]:
                expected = f"expected {[layers, neurons]}, of another text"
                raise MinillmError(f"eviction policy hot: frequencies are {found}, {expected}")
            return hot(frequencies, capacity)
        if name == "random":
            return random_set(layers, neurons, capacity, np.random.default_rng(self.seed))
        return eviction_named(name)


def replay(
    trace: np.ndarray, work: Work, capacities: Sequence[int], settings: ReplaySettings | None = None,
    guessed: np.ndarray | None = None, lookahead: str = "layer",
) -> Iterator[dict]:  # fmt: skip
    """One row for each capacity (neurons per layer) and eviction policy, baselines beside it (module docstring).

    trace, guessed: (T, L, N) bool, as recorded. lookahead: when the guesses are known. Misses are waited for. Raises
    MinillmError.
    """
    settings = settings or ReplaySettings()
    device, layers, neurons = device_named(settings.device), trace.shape[1], trace.shape[2]
    best = belady(trace)
    for capacity in sorted({min(capacity, neurons) for capacity in capacities}):
        fixed = settings.eviction("random", capacity, layers, neurons)
        chance = traffic_of(trace, kept_history(trace, capacity, fixed))
        known: dict[tuple[str, bytes], np.ndarray] = {}  # the same start gives the same history

        def history(eviction: Eviction, start: np.ndarray, capacity=capacity, known=known) -> np.ndarray:
            key = eviction.name, start.tobytes()
            if key not in known:
                known[key] = kept_history(trace, capacity, eviction, start)
            return known[key]

        for name in settings.names():
            eviction = best if name == "belady" else settings.eviction(name, capacity, layers, neurons)
            start = np.zeros((layers, neurons), bool) if eviction.start is None else eviction.start
            own = traffic_of(trace, history(eviction, start), guessed)
            beside = {rival.name: traffic_of(trace, history(rival, start)) for rival in (lru(), best)}
            beside["random"] = chance
            yield {
                "keeper": name,
                **figures_of(Replayed(own, capacity, neurons, int(start.sum()), lookahead), work, device),
                "guesses": None if guessed is None else lookahead,
                **baseline_figures(beside, work, device),
            }


class Replayed(NamedTuple):
    """A traffic, and the buffer behind it: capacity and neurons per layer, and the number of neurons preloaded in it.

    lookahead: when guesses are known, "layer" or "token". miss: "wait" or "drop".
    """

    traffic: Traffic
    capacity: int
    neurons: int
    preloaded: int
    lookahead: str = "layer"
    miss: str = "wait"


def figures_of(replayed: Replayed, work: Work, device: Device) -> dict:
    """The columns of one traffic: capacity, hits, bytes, time."""
    traffic, capacity, neurons, preloaded, lookahead, miss = replayed
    layers = traffic.requested.shape[1]
    dense = layers * neurons * work.neuron_bytes
    figures = traffic.figures(work.neuron_bytes, miss)
    timeline = simulate(traffic, device, work, lookahead=lookahead, miss=miss)
    return {
        "capacity": capacity,
        "capacity_share": capacity / neurons,  # the mean hit rate of a random set
        "neuron_bytes": work.neuron_bytes,
        "kept_bytes": layers * capacity * work.neuron_bytes,
        "preloaded_bytes": preloaded * work.neuron_bytes,
        "working_bytes": working_space(traffic, lookahead) * work.neuron_bytes,
        **figures,
        "dense_bytes": dense,
        "reads": figures["bytes_per_token"] / dense,
        "device": device.name,
        "miss": miss,
        **timeline.figures(),
        "tokens": len(traffic.requested),
    }


def baseline_figures(beside: dict[str, Traffic], work: Work, device: Device) -> dict[str, float]:
    """Hit rate, bytes and seconds per token, and stall of the baselines (honesty: every row carries them)."""
    figures = {name: traffic.hit_rate for name, traffic in beside.items()}
    for name, traffic in beside.items():
        timeline = simulate(traffic, device, work).figures()
        figures[f"{name}_bytes"] = traffic.figures(work.neuron_bytes)["bytes_per_token"]
        figures[f"{name}_seconds"], figures[f"{name}_stall"] = timeline["seconds_per_token"], timeline["stall_share"]
    return figures


def enough(demand: Sequence[dict], guessing: Sequence[dict], tolerance: float = 0.01) -> int | None:
    """The capacity from which on guesses no longer matter: they save less than ``tolerance`` of the time.

    demand, guessing: rows of one eviction policy, without and with guesses. ->  the smallest capacity for which
    this holds, there and at every larger one; None where it never does. Raises MinillmError for rows of different
    capacities.
    """
    plain, guessed = ({row["capacity"]: row["seconds_per_token"] for row in rows} for rows in (demand, guessing))
    if set(plain) != set(guessed) or len(plain) != len(demand) or len(guessed) != len(guessing):
        raise MinillmError("expected rows of one eviction policy each, with the same capacities")
    smallest = None
    for capacity in sorted(plain, reverse=True):
        if guessed[capacity] < (1 - tolerance) * plain[capacity]:
            break
        smallest = capacity
    return smallest
