"""Sparse FFNs from a folder of bundles on a real disk, cold, against reading all of it: ``minillm bench disk``."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import MinillmError
from ..loading.config import ModelConfig
from ..prefetch.bundle import open_bundle, resident_llama, write_random_bundle
from ..prefetch.clock import work_at
from ..prefetch.fetched import FetchedFFN
from ..prefetch.reader import BundleReader
from ..prefetch.reorder import kept_count
from ..prefetch.system import Unsupported, system_reads
from ..sparsity.selected import Recorded
from ..study.disk import every_neuron, made_cold
from .model import read_seconds
from .sparse import DISK_GROUPS, DISK_LAYERS, DISK_SPARSITIES, about, config_at, largest_cache, speeds
from .turns import over, seconds_in_turns

ANNOUNCED = ("no", "when reached", "a layer ahead")
COLD = 0.01  # the largest share of a file in the system's cache with which a round still counts as cold


def bench_disk(
    shape: str | tuple[int, int] = "1B", sparsities: Sequence[float] = DISK_SPARSITIES,
    groups: Sequence[int] = DISK_GROUPS, rounds: int = 7, threads: int = 1, layers: int = DISK_LAYERS,
) -> dict:  # fmt: skip
    """Measure reading from disk (module docstring), in a folder for temporary files that is removed in any case.

    Rows: method ("everything", "blocks"), group, sparsity, announced (ANNOUNCED), milliseconds per layer, speedup, low,
    high, over_announced, whole_token, bytes_per_token (counted by the reader) and disk_bytes (by the system), of the
    layers measured; everything is read in bundles of the first group. cached: the largest share found in the system's
    cache before each turn, a list per round. Raises MinillmError: no room, or no disk that could be cold.
    """
    shaped = config_at(shape)
    config = replace(shaped, num_hidden_layers=layers, vocab_size=8)
    hidden, neurons = config.hidden_size, config.intermediate_size
    parent = Path(tempfile.gettempdir())
    one = layers * 12 * hidden * neurons + 8 * layers * hidden * hidden * 4  # bytes, and more than the rest takes
    free = shutil.disk_usage(parent).free
    if free < 1.1 * one * len(groups):
        found = f"{parent}: {free / 1e6:,.0f} MB are free"
        raise MinillmError(
            f"{found}, expected {1.1 * one * len(groups) / 1e6:,.0f} MB (--layers, --shape and --groups decide)"
        )
    with tempfile.TemporaryDirectory(prefix="minillm-", dir=parent) as temporary:
        readers: list[BundleReader] = []
        try:
            for group in groups:
                folder = Path(temporary) / f"blocks-of-{group}"
                write_random_bundle(fields_of(config), folder, group, std=hidden**-0.5)
                readers.append(BundleReader(open_bundle(folder)))
            return about("disk", shaped, rounds, threads) | _disk_rows(shaped, readers, sparsities, rounds)
        finally:
            for reader in readers:
                reader.close()


def fields_of(config: ModelConfig) -> dict:
    """A config.json of that shape."""
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim",
            "num_key_value_heads", "max_position_embeddings", "rms_norm_eps")  # fmt: skip
    return {"model_type": "llama", "hidden_act": "silu", "tie_word_embeddings": True, "bos_token_id": 1} | {
        name: getattr(config, name) for name in same
    }


def _disk_rows(shaped: ModelConfig, readers: Sequence[BundleReader], sparsities: Sequence[float], rounds: int) -> dict:
    rng, cached = np.random.default_rng(0), []
    hidden, neurons = shaped.hidden_size, shaped.intermediate_size
    layers = resident_llama(readers[0].bundle).layers
    x = rng.standard_normal((1, hidden), dtype=np.float32)
    probe = [np.ones(2 * largest_cache() // 4, np.float32)]

    def turn(row: dict, reader: BundleReader) -> Callable[[], float]:
        group, blocks, everything = row["group"], reader.bundle.blocks, every_neuron(reader.bundle)

        def seconds() -> float:
            select = None
            if row["method"] == "blocks":
                kept = np.zeros((len(layers), blocks), bool)
                for mask in kept:
                    mask[rng.permutation(blocks)[: kept_count(blocks, 1 - row["sparsity"])]] = True
                select = Recorded(np.repeat(kept, group, axis=1)[:, None, :neurons])
            ffn = FetchedFFN(reader, select, (select or everything) if row["announced"] == "a layer ahead" else None)
            cached.append(cold_or_error(reader))
            reader.announce, reader.bytes_read, before = row["announced"] != "no", 0, system_reads()
            started = time.perf_counter()
            for layer in layers:
                ffn(x, layer)
            took, after = time.perf_counter() - started, system_reads()
            row["bytes_per_token"].append(reader.bytes_read)
            row["disk_bytes"].append(after.disk - before.disk if before and after else None)
            return took / len(layers)

        return seconds

    rows, turns = [], {}
    for reader in readers:
        plan = [("everything", 0.0)] if reader is readers[0] else []
        for method, sparsity in plan + [("blocks", sparsity) for sparsity in sparsities]:
            for announced in ANNOUNCED:
                row = {"method": method, "group": reader.bundle.group, "sparsity": sparsity, "announced": announced}
                rows.append(row | {"bytes_per_token": [], "disk_bytes": []})
                turns[str(row)] = turn(rows[-1], reader)
    turns["probe"] = lambda: read_seconds(probe)
    *times, reading = seconds_in_turns(turns, rounds).values()
    plain, announced = times[ANNOUNCED.index("no")], times[ANNOUNCED.index("a layer ahead")]
    work, count = work_at(shaped), shaped.num_hidden_layers
    rest = (count * work.layer + work.token) * 4 * statistics.median(reading) / probe[0].nbytes  # seconds
    dense = count * statistics.median(plain)
    for row, series in zip(rows, times, strict=True):
        row |= {"milliseconds": statistics.median(series) * 1e3, **speeds(over(series, plain))}
        row["over_announced"] = speeds(over(series, announced))["speedup"]
        row["whole_token"] = (dense + rest) / (dense / row["speedup"] + rest)
        for name in ("bytes_per_token", "disk_bytes"):  # the first is the warming up
            known = [value for value in row[name][1:] if value is not None]
            row[name] = statistics.mean(known) if known else None
    each = len(rows)
    return {
        "layers": len(layers),
        "rest_milliseconds": rest * 1e3,
        "read_gigabytes_per_second": probe[0].nbytes / statistics.median(reading) / 1e9,
        "cached": [cached[first : first + each] for first in range(0, len(cached), each)],
        "rows": rows,
    }


def cold_or_error(reader: BundleReader, attempts: int = 3) -> float:
    """Empty the system's cache of the bundles; the largest share found in it. Raises MinillmError for more than COLD.

    Pages that another process is just writing back or reading may stay: it is tried a few times.
    """
    for attempt in range(attempts):
        share = made_cold(reader)
        if share is None or not hasattr(os, "posix_fadvise"):
            raise Unsupported("this system does not let its cache be emptied and shown, expected Linux")
        if share <= COLD:
            return share
        time.sleep(0.1 * attempt)
    folder = reader.bundle.folder.parent
    found = f"{share:.0%} of a file stays in the system's cache"
    raise MinillmError(f"{folder}: {found}, expected none (a file system in memory? TMPDIR names another folder)")
