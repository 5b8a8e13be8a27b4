"""Measuring in turns: every program that is compared has its turn in every round.

A time in seconds says more about the machine and its other users than about the code. A busy machine, a hot processor
or another clock rate slows all turns of one round alike. So only ratios within one round are reported:

    ratio      = median over rounds of (time of one / time of the first, in the same round)
    low, high  = the middle half of these ratios

One more round comes first, to warm up, and does not count. Two facts about the machine are measured here, too: how fast
it reads arrays at all (``read_seconds``, the limit of a pass that must read its weights), and how large its caches are.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

UNKNOWN_CACHE = 64 << 20  # bytes, where the system does not say how large its caches are


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call, by the clock on the wall."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turns(turns: Mapping[str, Callable[[], float]], rounds: int, unit: str) -> list[dict[str, Any]]:
    """Measure all turns in ``rounds`` rounds: a row per turn, with ratios over the first turn.

    turns: name -> a function that runs once and gives its seconds per ``unit``. ratio: this turn's time over that of
    the first turn in the same round. Above 1 means that the first one is faster.
    """
    times = seconds_in_turns(turns, rounds)
    first = next(iter(times.values()))
    return [
        {"name": name, "milliseconds": statistics.median(series) * 1e3, "per": unit, **over(series, first)}
        for name, series in times.items()
    ]


def seconds_in_turns(turns: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """The seconds of every turn, round by round, without the first round, which warms up."""
    from tqdm.auto import tqdm

    times: dict[str, list[float]] = {name: [] for name in turns}
    for number in tqdm(range(rounds + 1), desc="measuring", unit="round", leave=False, delay=2, disable=None):
        for name, turn in turns.items():
            seconds = turn()
            if number:
                times[name].append(seconds)
    return times


def over(times: list[float], base: list[float]) -> dict[str, float]:
    """The ratios times / base of the same rounds: their median, and the ends of their middle half."""
    ratios = sorted(a / b for a, b in zip(times, base, strict=True))
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    return {"ratio": statistics.median(ratios), "ratio_low": low, "ratio_high": high}


def speeds(ratios: dict[str, Any]) -> dict[str, float]:
    """Speed-up and its spread: the inverse of ratios (``over``) of times, so the low end comes from the high one."""
    return {"speedup": 1 / ratios["ratio"], "low": 1 / ratios["ratio_high"], "high": 1 / ratios["ratio_low"]}


# ---- the machine -----------------------------------------------------------------------------------------------------


def read_seconds(arrays: list[np.ndarray]) -> float:
    """The shortest time in which this machine reads these arrays once: the best of three reductions over all."""
    reductions: list[Callable[[np.ndarray], object]] = [
        lambda a: np.dot(a, a),  # BLAS
        lambda a: np.add.reduce(a),
        lambda a: np.bitwise_or.reduce(a.view(np.int64) if a.size % 2 == 0 else a.view(np.int32)),
    ]
    times = []
    for reduction in reductions:
        start = time.perf_counter()
        for array in arrays:
            reduction(array)
        times.append(time.perf_counter() - start)
    return min(times)


def largest_cache() -> int:
    """Bytes of the processor's largest cache, as far as the system says (Linux)."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            text = path.read_text(encoding="ascii").strip()
            sizes.append(int(text.rstrip("KM")) * {"K": 1 << 10, "M": 1 << 20}.get(text[-1], 1))
        except (OSError, ValueError):
            continue
    return max(sizes, default=UNKNOWN_CACHE)


def environment(threads: int) -> dict[str, Any]:
    """What the figures depend on: processor, BLAS, versions, threads."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return {
        "cpu": f"{cpu}, {os.cpu_count()} cores",
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": f"{blas.get('name')} {blas.get('version')}",
        "threads": threads,
    }
