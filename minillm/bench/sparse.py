"""Does it pay? A sparse FFN against our own dense one, by the clock: ``minillm bench ffn`` and ``bench disk``.

Random weights of a published shape, and a random set of neurons at each call: what is measured is how fast a share of
the weights can be touched, and says nothing about which share a model could do without. As in bench.py everything is
measured in turns, and only ratios within a round are reported: the median, and the middle half of the rounds.

**ffn**   One token through a few layers, by the ways of prefetch/kernels.py: dense, gather and tiled (any neurons),
blocks of g neighbours (views). Cold in cache: before each turn more than the caches hold is read elsewhere. (The
numbers mean nothing, so one array per layer plays every layout; what counts is how many bytes lie where.)

**disk**  One token through the layers of a bundle folder (prefetch/reader.py), computing included: everything, or some
bundles; read one after the other, or first announced (WILLNEED), when the layer is reached or one layer before. Cold on
disk: before each turn the system's cache of these files is emptied, and mincore must say so; a turn that was not cold
is an error and no figure. (Below the system there may be more caches: the disk's own, or those of the machine that
plays this one. They favour whoever reads the same bytes again, and here everybody does.)

    speedup       time of the dense way over this way's, in the same round (from disk: of everything, not announced;
                  over_announced: of everything, announced a layer ahead, the best that one can do without sparsity)
    whole_token   what that is worth to a token, of which the FFN is only a part (clock.py). In memory: the FFN's share
                  of the bytes that a token reads, at that shape. From disk: the rest of the token lies in memory and
                  takes as long as reading it takes, by a probe in the same rounds

The clock: with one thread and nothing to wait for (ffn) the processor's time of this process, which is the clock on the
wall unless another program takes the processor away (own_time says for which share of the time this one had it). Where
the system has no such fine clock, with more threads, and for disk, the clock on the wall.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import MinillmError
from ..loading.config import ModelConfig
from ..prefetch.clock import LARGE, ffn_share, whole_token
from ..prefetch.kernels import DENSITIES, Blocks, NeuronMajor, block_views, choose, gather, tiled_gather
from ..prefetch.reorder import kept_count
from ..tables import Columns, text_table
from ..transformer.ffn import swiglu
from ..transformer.layer import Layer
from ..transformer.ops import silu
from .model import SHAPES, random_fields
from .turns import environment, in_turns

GROUPS, SPARSITIES = (4, 8, 16, 32, 128), (0.3, 0.5, 0.7, 0.9, 0.95)
DISK_GROUPS, DISK_SPARSITIES, DISK_LAYERS = (32, 1), (0.5, 0.9), 4
TURN = 64_000_000  # bytes of weights that a turn goes through at least, so that the clock has something to measure
UNKNOWN_CACHE = 64 << 20  # where the system does not say how large its caches are


def config_at(shape: str | tuple[int, int]) -> ModelConfig:
    """The config of a preset ("15M", "110M", "1B": clock.LARGE), or of LARGE with another (hidden, intermediate).

    Its attention then grows with the hidden size: q and o are D x D, k and v D x D / 8. Raises MinillmError.
    """
    if shape in SHAPES:
        return ModelConfig.from_dict(random_fields(shape))
    if shape == "1B" or shape == (LARGE.hidden_size, LARGE.intermediate_size):
        return LARGE
    if isinstance(shape, str):
        raise MinillmError(f"shape {shape!r} is unknown, expected one of {', '.join(SHAPES)}, 1B or two sizes")
    hidden, intermediate = shape
    if hidden < 16 or intermediate < 1 or hidden % 16:
        raise MinillmError(f"shape is {hidden} {intermediate}, expected a multiple of 16, and a size of at least 1")
    heads = {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": hidden // 8}
    return replace(LARGE, hidden_size=hidden, intermediate_size=intermediate, **heads)


def in_words(config: ModelConfig) -> str:
    """What the whole token of a shape consists of."""
    keys = config.num_key_value_heads * config.head_dim
    return (
        f"{config.num_hidden_layers} layers with q and o {config.hidden_size} x {config.hidden_size}, k and v "
        f"{keys} x {config.hidden_size}, and a head of {config.vocab_size:,} x {config.hidden_size}"
    )


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


def about(what: str, config: ModelConfig, rounds: int, threads: int) -> dict:
    """The head of a result."""
    return {
        "what": what,
        "shape": f"{config.hidden_size} x {config.intermediate_size}",
        "rounds": rounds,
        "environment": environment(threads),
        "ffn_share": ffn_share(config),
        "token": in_words(config),
    }


def speeds(ratios: dict) -> dict[str, float]:
    """Speed-up and its spread from ratios (``over``) of times over the dense ones."""
    return {"speedup": 1 / ratios["ratio"], "low": 1 / ratios["ratio_high"], "high": 1 / ratios["ratio_low"]}


def bare_layer(config: ModelConfig, index: int, rows: np.ndarray) -> Layer:
    """A layer that has an FFN and nothing else, from an array of its size (3 F, D)."""
    count, nothing = config.intermediate_size, np.empty(0, rows.dtype)
    rest = dict.fromkeys(("input_layernorm", "q_proj", "k_proj", "v_proj", "o_proj"), nothing)
    rest["post_attention_layernorm"] = nothing
    gate, up, down = rows[:count], rows[count : 2 * count], rows[2 * count :].reshape(config.hidden_size, count)
    ffn = {"gate_proj": gate, "up_proj": up, "down_proj": down}
    return Layer(index, config.head_dim, config.rms_norm_eps, None, silu, **rest, **ffn)


def bench_ffn(
    shape: str | tuple[int, int] = "1B", sparsities: Sequence[float] = SPARSITIES, groups: Sequence[int] = GROUPS,
    rounds: int = 7, threads: int = 1, cache: int | None = None,
) -> dict:  # fmt: skip
    """Measure the ways of kernels.py in memory (module docstring). cache: bytes; None asks the system.

    Rows: method ("dense", "gather", "tiled", "blocks"), group, sparsity, touched (share of the neurons), milliseconds
    per layer, speedup, low, high, whole_token, chosen (whether kernels.choose would take this method there).
    Raises MinillmError.
    """
    config, rng = config_at(shape), np.random.default_rng(0)
    hidden, neurons = config.hidden_size, config.intermediate_size
    cache = largest_cache() if cache is None else cache
    nbytes = 3 * hidden * neurons * 4
    copies = max(2, -(-TURN // nbytes))
    check_memory(copies * nbytes + 2 * cache)
    elsewhere = np.ones(2 * cache // 8, np.int64)
    layers, scale = [], np.float32(hidden**-0.5)  # outputs near 1: no sums that become denormal
    for index in range(copies):
        rows = rng.standard_normal((3 * neurons, hidden), dtype=np.float32)
        rows *= scale
        layers.append((bare_layer(config, index, rows), rows))
    x, spent = rng.standard_normal(hidden, dtype=np.float32), np.zeros(2)  # by the processor's clock and by the wall's
    processor = threads == 1 and time.get_clock_info("process_time").resolution < 1e-6
    major = [NeuronMajor(rows[:neurons], rows[neurons : 2 * neurons], rows[2 * neurons :], silu) for _, rows in layers]

    def turn(calls: Callable[[], list[Callable[[], object]]]) -> Callable[[], float]:
        def seconds() -> float:
            ready = calls()
            np.bitwise_or.reduce(elsewhere)
            started = np.array([time.process_time(), time.perf_counter()])
            for call in ready:
                call()
            took = np.array([time.process_time(), time.perf_counter()]) - started
            spent[:] += took
            return float(took[0 if processor else 1]) / copies

        return seconds

    def drawn(kernel: Callable, weights: list, count: int, kept: int) -> Callable[[], float]:
        """A turn of one kernel, with new neurons (or blocks) at every call."""

        def calls() -> list[Callable[[], object]]:
            sets = [np.sort(rng.permutation(count)[:kept]) for _ in weights]
            return [lambda w=w, s=s: kernel(x, w, s) for w, s in zip(weights, sets, strict=True)]

        return turn(calls)

    turns = {"dense": turn(lambda: [lambda layer=layer: swiglu(x[None], layer) for layer, _ in layers])}
    rows = [{"method": "dense", "group": 1, "sparsity": 0.0, "touched": 1.0}]
    for sparsity in sparsities:
        for group in (1, *groups):
            blocks = -(-neurons // group)
            kept = kept_count(blocks, 1 - sparsity)
            if abs(kept / blocks - (1 - sparsity)) > 0.2 * (1 - sparsity):
                continue  # so few blocks that the share cannot be had
            if group == 1:
                ways = {"gather": (gather, major), "tiled": (tiled_gather, major)}
            else:
                ways = {"blocks": (block_views, [Blocks(rows, group, layer) for layer, rows in layers])}
            for method, (kernel, weights) in ways.items():
                row = {"method": method, "group": group, "sparsity": sparsity, "touched": kept / blocks}
                row["chosen"] = choose((neurons, hidden), kept / blocks, group) == method
                turns[f"{method} {group} {sparsity}"] = drawn(kernel, weights, blocks, kept)
                rows.append(row)
    for row, measured in zip(rows, in_turns(turns, rounds, "layer"), strict=True):
        row |= {"milliseconds": measured["milliseconds"], **speeds(measured)}
        row["whole_token"] = whole_token(row["speedup"], ffn_share(config))
    result = about("ffn", config, rounds, threads) | {"layers": copies, "cache": cache}
    result |= {"clock": "processor" if processor else "wall", "own_time": float(spent[0] / spent[1]), "rows": rows}
    return result | {"kernels": for_kernels(rows, nbytes)}


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


def for_kernels(rows: Sequence[dict], nbytes: int) -> dict:
    """This measurement as a line of the tables MEASURED and SMALL_BLOCKS in prefetch/kernels.py, for blocks of 32.

    A block more or less than the density asks for is reckoned out. {} where that was not measured at DENSITIES.
    """
    found: dict[tuple, dict[float, float]] = {}
    for row in rows:
        density = round(1 - row["sparsity"], 9)
        found.setdefault((row["method"], row["group"]), {})[density] = row["speedup"] * row["touched"] / density
    wanted = {"gather": ("gather", 1), "tiled": ("tiled", 1), "blocks": ("blocks", 32)}
    if not all(density in found.get(key, {}) for key in wanted.values() for density in DENSITIES):
        return {}
    line = {way: tuple(round(found[key][density], 2) for density in DENSITIES) for way, key in wanted.items()}
    small = {
        group: round(statistics.mean(speeds[d] / found["blocks", 32][d] for d in DENSITIES), 2)
        for (way, group), speeds in found.items()
        if way == "blocks" and group <= 32 and all(density in speeds for density in DENSITIES)
    }
    return {"megabytes": float(f"{nbytes / 1e6:.3g}"), "measured": line, "small_blocks": small}


def as_text(result: dict) -> str:
    """A result of ``bench_ffn`` or ``bench_disk`` as text."""
    head = f"{result['what']}, random {result['shape']}, {result['layers']} layers, {result['rounds']} rounds in turns"
    parts = [head, "", *(_ffn_text if result["what"] == "ffn" else _disk_text)(result), ""]
    parts.append("; ".join(f"{key} {value}" for key, value in result["environment"].items()))
    return "\n".join(parts)


def _spread(row: dict) -> str:
    return f"{row['speedup']:.2f} ({row['low']:.2f}-{row['high']:.2f})"


def _ffn_text(result: dict) -> list[str]:
    dense, *others = result["rows"]
    sparsities = sorted({row["sparsity"] for row in others})
    names = {"gather": "any neurons, gather", "tiled": "any neurons, tiled"}

    def table(cell: Callable[[dict], str]) -> str:
        lines: dict[tuple, dict] = {}
        for row in others:
            key = row["method"], row["group"]
            line = lines.setdefault(key, {"neurons": names.get(row["method"], f"blocks of {row['group']}")})
            line[str(row["sparsity"])] = cell(row)
        columns: Columns = {"neurons": ("", "")} | {str(s): (f"{s:.0%} cut", "") for s in sparsities}
        return text_table(list(lines.values()), columns)

    share = result["ffn_share"]
    parts = [
        f"dense: {dense['milliseconds']:.3f} ms per layer; cold: {2 * result['cache'] / 1e6:.0f} MB are read elsewhere "
        "before each turn",
        f"clock: the {result['clock']}'s; this process had a processor for {result['own_time']:.0%} of the time",
        "\nThe FFN alone: times as fast as the dense one, median (middle half of the rounds); *: kernels.choose",
        table(lambda row: _spread(row) + ("*" if row["chosen"] else "")),
        f"\nThe whole token, of whose bytes the FFN's are {share:.0%} ({result['token']})",
        table(lambda row: f"{row['whole_token']:.2f}"),
    ]
    if result["kernels"]:
        found = result["kernels"]
        line = f"{found['megabytes']:g}: {found['measured']}, SMALL_BLOCKS {found['small_blocks']}"
        parts.append(f"\nfor prefetch/kernels.py: MEASURED {line}")
    return parts


def _disk_text(result: dict) -> list[str]:
    shown = [
        row
        | {
            "read": row["method"] if row["method"] == "everything" else f"{1 - row['sparsity']:.0%}",
            "faster": _spread(row),
            "megabytes": row["bytes_per_token"] / 1e6,
            "disk_megabytes": None if row["disk_bytes"] is None else row["disk_bytes"] / 1e6,
        }
        for row in result["rows"]
    ]
    columns = {
        "read": ("read", ""), "group": ("group", "d"), "announced": ("announced", ""),
        "milliseconds": ("milliseconds", ".1f"), "faster": ("faster", ""), "over_announced": ("than announced", ".2f"),
        "whole_token": ("token", ".2f"), "megabytes": ("MB per token", ".1f"),
        "disk_megabytes": ("from the disk", ".1f"),
    }  # fmt: skip
    rounds = [max(shares) for shares in result["cached"]]
    return [
        text_table(shown, columns),
        "\nmilliseconds per layer, computing included; announced: WILLNEED, and when; faster: times as fast as "
        "everything, not announced, median (middle half of the rounds); than announced: as everything, announced a "
        "layer ahead",
        f"token: the same for the whole token, whose rest is in memory and takes {result['rest_milliseconds']:.0f} ms "
        f"at {result['read_gigabytes_per_second']:.1f} GB/s ({result['token']})",
        f"cold: largest share of a file in the system's cache before any turn, warming up and each round: "
        f"{' '.join(f'{share:.3f}' for share in rounds)}",
    ]
