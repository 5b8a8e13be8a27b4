"""Measuring in turns: each rival has its turn in every round, and only ratios within a round are reported.

A busy machine, a hot processor or another clock rate then slows all rivals of a round alike. The median of the ratios
and their middle half are what is shown.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turns(turns: dict[str, Callable[[], float]], rounds: int, unit: str) -> list[dict]:
    """Let each take its turn, ``rounds`` times after one for warming up; the first is the one that ratios are about.

    ratio: their time over ours in the same round, so above 1 means that we are faster.
    """
    times = seconds_in_turns(turns, rounds)
    ours = next(iter(times.values()))
    return [
        {"name": name, "milliseconds": statistics.median(series) * 1e3, "per": unit, **over(series, ours)}
        for name, series in times.items()
    ]


def seconds_in_turns(turns: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """The seconds of each, round by round, without those of the first round, which is for warming up."""
    from tqdm.auto import tqdm

    times: dict[str, list[float]] = {name: [] for name in turns}
    for number in tqdm(range(rounds + 1), desc="measuring", unit="round", leave=False, delay=2, disable=None):
        for name, turn in turns.items():
            seconds = turn()
            if number:
                times[name].append(seconds)
    return times


def over(theirs: list[float], ours: list[float]) -> dict[str, float]:
    """Their time over ours in the same round: the median, and the middle half of the rounds."""
    ratios = sorted(a / b for a, b in zip(theirs, ours, strict=True))
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    return {"ratio": statistics.median(ratios), "ratio_low": low, "ratio_high": high}


def environment(threads: int) -> dict:
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
