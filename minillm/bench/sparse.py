"""Is a sparse FFN faster than our own dense one? Measured in memory: ``minillm bench ffn``.

Random weights of a published shape (shapes.py), and a random set of neurons at each call. So the figures say how fast a
share of the weights can be read. They do not say which share a model could do without. Everything is measured in turns,
and only ratios within a round are reported (turns.py).

One token passes through a few layers, by the ways of prefetch/kernels.py: dense, gather and tiled (any neurons), blocks
of g neighbours (views). The weights are cold in cache: before each turn, an array larger than the caches is read. (The
numbers mean nothing, so one array per layer serves every layout; what counts is how many bytes lie where.)

Somebody must choose the blocks. In the rows "routed" a router does so for each token and layer, and its time counts
(routed.py).

    speedup       time of the dense FFN over this one's, in the same round
    whole_token   what that is worth to a token, of which the FFN is only a part: the FFN's share s of the bytes that a
                  token reads, at that shape (clock.py):  1 / (1 - s + s / speedup)

The clock: with one thread there is nothing to wait for, so the processor's time of this process is taken. It equals the
clock on the wall unless another program takes the processor away (own_time is the share of the time in which this one
had it). Where the system has no such fine clock, and with more threads, the clock on the wall is taken.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MinillmError
from ..loading.config import ModelConfig
from ..prefetch.clock import ffn_share, whole_token
from ..prefetch.kernels import DENSITIES, ROUTER, Blocks, NeuronMajor, block_views, choose, gather, tiled_gather
from ..prefetch.reorder import kept_count
from ..tables import Columns, text_table
from ..threads import use_threads
from ..transformer.ffn import swiglu
from ..transformer.layer import Layer
from ..transformer.ops import silu
from .routed import Router, routed, router_numbers, router_of
from .shapes import config_at, resident_in_words
from .turns import environment, in_turns, largest_cache, speeds

FFN_GROUPS, FFN_SPARSITIES = (4, 8, 16, 32, 128), (0.3, 0.5, 0.7, 0.9, 0.95)
TURN = 64_000_000  # bytes of weights that a turn reads at least, so that its time is long enough for the clock
Calls = Sequence[Callable[[], object]]  # of one turn, one per layer


def bench_ffn(
    shape: str | tuple[int, int] = "1B", sparsities: Sequence[float] = FFN_SPARSITIES,
    groups: Sequence[int] = FFN_GROUPS, rounds: int = 7, threads: int = 1, cache: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure the ways of kernels.py in memory (module docstring). cache: bytes; None asks the system.

    Rows: method ("dense", "gather", "tiled", "blocks", "routed"), group, sparsity, touched (share of the neurons),
    milliseconds per layer, speedup, low, high, whole_token, chosen (whether kernels.choose would take this method
    there). Raises MinillmError.
    """
    config, rng = config_at(shape), np.random.default_rng(0)
    nbytes = 3 * config.hidden_size * config.intermediate_size * 4
    cache = largest_cache() if cache is None else cache
    copies = max(2, -(-TURN // nbytes))
    check_memory(copies * (nbytes + 4 * router_numbers(config)) + 2 * cache)
    clock = ColdClock(threads, cache, copies)
    layers = RandomLayers.of(config, copies, rng)
    rows: list[dict[str, Any]] = [{"method": "dense", "group": 1, "sparsity": 0.0, "touched": 1.0}]
    rows += sparse_rows((config.intermediate_size, config.hidden_size), sparsities, groups)
    turns = {str(n): partial(clock.seconds, partial(layers.calls, row, rng)) for n, row in enumerate(rows)}
    with use_threads(threads):
        times = in_turns(turns, rounds, "layer")
    for row, measured in zip(rows, times, strict=True):
        row |= {"milliseconds": measured["milliseconds"], **speeds(measured)}
        row["whole_token"] = whole_token(row["speedup"], ffn_share(config))
    result = result_head("ffn", config, rounds, threads) | {"layers": copies, "cache": cache}
    result |= {"clock": clock.name, "own_time": float(clock.spent[0] / clock.spent[1]), "rows": rows}
    return result | {"router": config.hidden_size // ROUTER, "kernels": for_kernels(rows, nbytes)}


def sparse_rows(shape: tuple[int, int], sparsities: Sequence[float], groups: Sequence[int]) -> list[dict[str, Any]]:
    """The rows to measure beside the dense one, without their times; shape (F, D).

    Left out are block sizes with so few blocks that the share cannot be had.
    """
    rows: list[dict[str, Any]] = []
    for sparsity in sparsities:
        for group in (1, *groups):
            blocks = -(-shape[0] // group)
            touched = kept_count(blocks, 1 - sparsity) / blocks
            if abs(touched - (1 - sparsity)) > 0.2 * (1 - sparsity):
                continue
            for method in ("gather", "tiled") if group == 1 else ("blocks", "routed"):
                row = {"method": method, "group": group, "sparsity": sparsity, "touched": touched}
                rows.append(row | {"chosen": choose(shape, touched, group) == method})
    return rows


class ColdClock:
    """The time of turns, cold in cache; spent (2,): all seconds so far, by the processor's clock and by the wall's."""

    def __init__(self, threads: int, cache: int, layers: int):
        self.processor = threads == 1 and time.get_clock_info("process_time").resolution < 1e-6
        self.name = "processor" if self.processor else "wall"
        self.spent = np.zeros(2)
        self._elsewhere, self._layers = np.ones(2 * cache // 8, np.int64), layers

    def seconds(self, prepare: Callable[[], Calls]) -> float:
        """Seconds per layer of one turn; ``prepare`` gives its calls, and its own time does not count."""
        calls = prepare()
        np.bitwise_or.reduce(self._elsewhere)  # nothing of the weights is in a cache any more
        started = np.array([time.process_time(), time.perf_counter()])
        for call in calls:
            call()
        took = np.array([time.process_time(), time.perf_counter()]) - started
        self.spent += took
        return float(took[0 if self.processor else 1]) / self._layers


@dataclass(frozen=True, eq=False)
class RandomLayers:
    """Random FFNs of one shape, and the input x (D,) of all: arrays holds one (3 F, D) per layer, for every layout.

    routers: one (H (D + F),) per layer, likewise.
    """

    layers: list[Layer]
    major: list[NeuronMajor]
    arrays: list[np.ndarray]
    routers: list[np.ndarray]
    x: np.ndarray

    @classmethod
    def of(cls, config: ModelConfig, count: int, rng: np.random.Generator) -> RandomLayers:
        """As many layers of a shape as asked for."""
        hidden, neurons = config.hidden_size, config.intermediate_size
        arrays, routers, scale = [], [], np.float32(hidden**-0.5)  # outputs near 1: no sums that become denormal
        for _ in range(count):
            rows = rng.standard_normal((3 * neurons, hidden), dtype=np.float32)
            rows *= scale
            arrays.append(rows)
            routers.append(scale * rng.standard_normal(router_numbers(config), dtype=np.float32))
        x = rng.standard_normal(hidden, dtype=np.float32)
        layers = [bare_layer(config, index, rows) for index, rows in enumerate(arrays)]
        major = [NeuronMajor(a[:neurons], a[neurons : 2 * neurons], a[2 * neurons :], silu) for a in arrays]
        return cls(layers, major, arrays, routers, x)

    def calls(self, row: dict[str, Any], rng: np.random.Generator) -> Calls:
        """The calls of one turn by a row's method; each layer uses other neurons (or blocks), drawn anew."""
        if row["method"] == "dense":
            return [partial(swiglu, self.x[None], layer) for layer in self.layers]
        group = row["group"]
        blocks = -(-len(self.major[0].gate) // group)
        kept = kept_count(blocks, 1 - row["sparsity"])
        if row["method"] == "routed":
            return [partial(routed, *each, kept) for each in self._with_routers(group, blocks, rng)]
        chosen = [np.sort(rng.permutation(blocks)[:kept]) for _ in self.layers]
        if row["method"] == "blocks":
            each = zip(self.arrays, self.layers, chosen, strict=True)
            return [partial(block_views, self.x, Blocks(rows, group, layer), some) for rows, layer, some in each]
        kernel = gather if row["method"] == "gather" else tiled_gather
        return [partial(kernel, self.x, weights, some) for weights, some in zip(self.major, chosen, strict=True)]

    def _with_routers(
        self, group: int, count: int, rng: np.random.Generator
    ) -> Iterator[tuple[np.ndarray, Blocks, Router]]:
        """For each layer another input, so that other blocks are chosen, its ``count`` blocks, and a router of them."""
        for layer, rows, numbers in zip(self.layers, self.arrays, self.routers, strict=True):
            x = rng.standard_normal(len(self.x), dtype=numbers.dtype)
            yield x, Blocks(rows, group, layer), router_of(numbers, len(x), count)


def bare_layer(config: ModelConfig, index: int, rows: np.ndarray) -> Layer:
    """A layer that has an FFN and nothing else, from an array of its size (3 F, D)."""
    count, nothing = config.intermediate_size, np.empty(0, rows.dtype)
    gate, up, down = rows[:count], rows[count : 2 * count], rows[2 * count :].reshape(config.hidden_size, count)
    attention = (nothing, nothing, nothing, nothing)  # q, k, v, o
    return Layer(index, config.head_dim, config.rms_norm_eps, None, silu, *attention, gate, down, up)


def check_memory(nbytes: int) -> None:
    """Raise MinillmError where the system says that so much memory is not free (Linux)."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return
    if nbytes > 0.9 * free:
        found = f"{free / 1e6:,.0f} MB of memory are free"
        raise MinillmError(f"{found}, expected {nbytes / 1e6:,.0f} MB for this shape: choose a smaller one")


# ---- results ---------------------------------------------------------------------------------------------------------


def result_head(what: str, config: ModelConfig, rounds: int, threads: int) -> dict[str, Any]:
    """The fields that the results of ``bench_ffn`` and ``bench_disk`` share."""
    return {
        "what": what,
        "shape": f"{config.hidden_size} x {config.intermediate_size}",
        "rounds": rounds,
        "environment": environment(threads),
        "ffn_share": ffn_share(config),
        "token": resident_in_words(config),
    }


def for_kernels(rows: Sequence[dict[str, Any]], nbytes: int) -> dict[str, Any]:
    """This measurement as a line of the tables MEASURED and SMALL_BLOCKS in prefetch/kernels.py, for blocks of 32.

    Where whole blocks touch a little more or less than the density asks for, the speed-up is corrected for it.
    {} where some density of DENSITIES was not measured.
    """
    speedups: dict[tuple[str, int], dict[float, float]] = {}  # (method, group) -> density -> speed-up
    for row in rows:
        density = round(1 - row["sparsity"], 9)
        corrected = row["speedup"] * row["touched"] / density
        speedups.setdefault((row["method"], row["group"]), {})[density] = corrected
    wanted = {"gather": ("gather", 1), "tiled": ("tiled", 1), "blocks": ("blocks", 32)}
    if not all(density in speedups.get(key, {}) for key in wanted.values() for density in DENSITIES):
        return {}
    line = {way: tuple(round(speedups[key][density], 2) for density in DENSITIES) for way, key in wanted.items()}
    small = {
        group: round(statistics.mean(at[d] / speedups["blocks", 32][d] for d in DENSITIES), 2)
        for (method, group), at in speedups.items()
        if method == "blocks" and group <= 32 and all(density in at for density in DENSITIES)
    }
    return {"megabytes": float(f"{nbytes / 1e6:.3g}"), "measured": line, "small_blocks": small}


def heading(result: dict[str, Any]) -> str:
    """The first line of a result's text: what was measured, at which shape, and how often."""
    sizes = f"random {result['shape']}, {result['layers']} layers"
    return f"{result['what']}, {sizes}, {result['rounds']} rounds in turns"


def environment_line(result: dict[str, Any]) -> str:
    """The last line of a result's text: what the figures depend on."""
    return "; ".join(f"{key} {value}" for key, value in result["environment"].items())


def speed_cell(row: dict[str, Any]) -> str:
    """The median speed-up of a row, and the middle half of its rounds."""
    return f"{row['speedup']:.2f} ({row['low']:.2f}-{row['high']:.2f})"


def ffn_text(result: dict[str, Any]) -> str:
    """A result of ``bench_ffn`` as text: two tables, of the FFN alone and of the whole token."""
    dense, *others = result["rows"]
    alone = _by_sparsity(others, lambda row: speed_cell(row) + ("*" if row["chosen"] else ""))
    whole = _by_sparsity(others, lambda row: f"{row['whole_token']:.2f}")
    parts = [
        heading(result),
        "",
        f"dense: {dense['milliseconds']:.3f} ms per layer; cold: {2 * result['cache'] / 1e6:.0f} MB are read elsewhere "
        "before each turn",
        f"clock: the {result['clock']}'s; this process had a processor for {result['own_time']:.0%} of the time",
        "\nThe FFN alone: times as fast as the dense one, median (middle half of the rounds); *: kernels.choose",
        f"routed: the blocks are chosen by a router with {result['router']} hidden numbers, and its time is included",
        alone,
        f"\nThe whole token; the FFN's are {result['ffn_share']:.0%} of the bytes that it reads ({result['token']})",
        whole,
    ]
    if result["kernels"]:
        kernels = result["kernels"]
        line = f"{kernels['megabytes']:g}: {kernels['measured']}, SMALL_BLOCKS {kernels['small_blocks']}"
        parts.append(f"\nfor prefetch/kernels.py: MEASURED {line}")
    return "\n".join([*parts, "", environment_line(result)])


def _by_sparsity(rows: Sequence[dict[str, Any]], cell: Callable[[dict[str, Any]], str]) -> str:
    """A table with a line per method and block size, and a column per sparsity."""
    names = {"gather": "any neurons, gather", "tiled": "any neurons, tiled"}
    lines: dict[tuple[str, int], dict[str, str]] = {}
    for row in rows:
        name = names.get(row["method"], f"blocks of {row['group']}" + ", routed" * (row["method"] == "routed"))
        line = lines.setdefault((row["method"], row["group"]), {"neurons": name})
        line[str(row["sparsity"])] = cell(row)
    sparsities = sorted({row["sparsity"] for row in rows})
    columns: Columns = {"neurons": ("", "")} | {str(s): (f"{s:.0%} cut", "") for s in sparsities}
    return text_table(list(lines.values()), columns)
