"""Sparse FFNs from a folder of bundles on a real disk, cold, against reading all of it: ``minillm bench disk``.

One token passes through the layers of a bundle folder (prefetch/fetched.py), computing included. Random weights and a
random choice of blocks, as in sparse.py. A row reads

    everything, or some blocks (bundles)
    one read after the other, or announced first (WILLNEED): when the layer is reached, or one layer before

The files are cold: before each turn the system's cache of them is emptied, and mincore must confirm it. A turn that was
not cold is an error and gives no figure. (Below the system there may be more caches: the disk's own, or those of the
host of a virtual machine. They favour reading the same bytes again, which here every row does alike.)

    speedup          time of "everything, not announced" over this row's, in the same round
    over_announced   the same over "everything, announced a layer ahead", the best that one can do without sparsity
    whole_token      what the speed-up is worth to a whole token. The rest of the token lies in memory, and takes as
                     long as reading it takes, by a probe in the same rounds

The clock is the one on the wall, since a read has to be waited for.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

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
from ..study.disk import drop_page_cache, every_neuron
from ..tables import Columns, text_table
from ..threads import use_threads
from ..transformer.layer import Layer
from .shapes import config_at, fields_of
from .sparse import environment_line, heading, result_head, speed_cell
from .turns import largest_cache, over, read_seconds, seconds_in_turns, speeds

DISK_GROUPS, DISK_SPARSITIES, DISK_LAYERS = (32, 1), (0.5, 0.9), 4
ANNOUNCED = ("no", "when reached", "a layer ahead")
DISK_COLUMNS: Columns = {
    "read": ("read", ""), "group": ("group", "d"), "announced": ("announced", ""),
    "milliseconds": ("milliseconds", ".1f"), "faster": ("faster", ""), "over_announced": ("than announced", ".2f"),
    "whole_token": ("token", ".2f"), "megabytes": ("MB per token", ".1f"), "disk_megabytes": ("from the disk", ".1f"),
}  # fmt: skip
COLD = 0.01  # the largest share of a file in the system's cache with which a round still counts as cold


def bench_disk(
    shape: str | tuple[int, int] = "1B", sparsities: Sequence[float] = DISK_SPARSITIES,
    groups: Sequence[int] = DISK_GROUPS, rounds: int = 7, threads: int = 1, layers: int = DISK_LAYERS,
) -> dict[str, Any]:  # fmt: skip
    """Measure reading from disk (module docstring), in a folder for temporary files that is removed in any case.

    Rows: method ("everything", "blocks"), group, sparsity, announced (ANNOUNCED), milliseconds per layer, speedup, low,
    high, over_announced, whole_token, bytes_per_token (counted by the reader) and disk_bytes (by the system), of the
    layers measured; everything is read in bundles of the first group. cached: the largest share found in the system's
    cache before each turn, a list per round. Raises MinillmError: no room, or no disk that could be cold.
    """
    config = config_at(shape)
    written = replace(config, num_hidden_layers=layers, vocab_size=8)
    parent = Path(tempfile.gettempdir())
    check_room(parent, written, len(groups))
    with tempfile.TemporaryDirectory(prefix="minillm-", dir=parent) as temporary, use_threads(threads):
        readers: list[BundleReader] = []
        try:
            for group in groups:
                folder = Path(temporary) / f"blocks-of-{group}"
                write_random_bundle(fields_of(written), folder, group, std=config.hidden_size**-0.5)
                readers.append(BundleReader(open_bundle(folder)))
            return result_head("disk", config, rounds, threads) | _measured(config, readers, sparsities, rounds)
        finally:
            for reader in readers:
                reader.close()


def check_room(folder: Path, config: ModelConfig, bundles: int) -> None:
    """Raise MinillmError where a folder has no room for so many bundle folders of a random model."""
    hidden, layers = config.hidden_size, config.num_hidden_layers
    ffn, rest = 12 * hidden * config.intermediate_size, 8 * hidden * hidden * 4  # bytes, and more than the rest takes
    free, expected = shutil.disk_usage(folder).free, 1.1 * layers * (ffn + rest) * bundles
    if free < expected:
        found = f"{folder}: {free / 1e6:,.0f} MB are free"
        raise MinillmError(f"{found}, expected {expected / 1e6:,.0f} MB (--layers, --shape and --groups decide)")


@dataclass(frozen=True, eq=False)
class RandomToken:
    """What all turns share: an input x (1, D), the layers it passes, and the chance that draws blocks."""

    x: np.ndarray
    layers: Sequence[Layer]
    rng: np.random.Generator


@dataclass(frozen=True, eq=False)
class Fetching:
    """One row of the table: how all layers of a token are read. ``seconds`` is one turn of it.

    bytes_read, disk_bytes, cached: of every turn so far, the first of which warms up.
    """

    token: RandomToken
    reader: BundleReader
    method: str
    sparsity: float
    announced: str
    bytes_read: list[int] = field(default_factory=list)
    disk_bytes: list[int | None] = field(default_factory=list)
    cached: list[float] = field(default_factory=list)

    def seconds(self) -> float:
        """Seconds per layer of one turn, with other blocks than in the last one; cold, or MinillmError."""
        reader, layers = self.reader, self.token.layers
        select = self._drawn() if self.method == "blocks" else None
        known = select or every_neuron(reader.bundle)
        ffn = FetchedFFN(reader, select, known if self.announced == "a layer ahead" else None)
        self.cached.append(cold_or_error(reader))
        reader.announce, reader.bytes_read, before = self.announced != "no", 0, system_reads()
        started = time.perf_counter()
        for layer in layers:
            ffn(self.token.x, layer)
        took, after = time.perf_counter() - started, system_reads()
        self.bytes_read.append(reader.bytes_read)
        self.disk_bytes.append(after.disk - before.disk if before and after else None)
        return took / len(layers)

    def _drawn(self) -> Recorded:
        """A random choice of blocks for every layer."""
        bundle, rng = self.reader.bundle, self.token.rng
        kept = np.zeros((len(self.token.layers), bundle.blocks), bool)
        for mask in kept:
            mask[rng.permutation(bundle.blocks)[: kept_count(bundle.blocks, 1 - self.sparsity)]] = True
        neurons = np.repeat(kept, bundle.group, axis=1)[:, : bundle.config.intermediate_size]  # (L, F)
        return Recorded(neurons[:, None])

    def row(self, seconds: list[float]) -> dict[str, Any]:
        """What this row is, its milliseconds and its bytes, without the turn that warmed up."""
        known = [value for value in self.disk_bytes[1:] if value is not None]
        return {
            "method": self.method,
            "group": self.reader.bundle.group,
            "sparsity": self.sparsity,
            "announced": self.announced,
            "bytes_per_token": statistics.mean(self.bytes_read[1:]),
            "disk_bytes": statistics.mean(known) if known else None,
            "milliseconds": statistics.median(seconds) * 1e3,
        }


def _measured(
    config: ModelConfig, readers: Sequence[BundleReader], sparsities: Sequence[float], rounds: int
) -> dict[str, Any]:
    """Measure every row in turns, with the probe of memory beside them."""
    rng = np.random.default_rng(0)
    layers = resident_llama(readers[0].bundle).layers
    token = RandomToken(rng.standard_normal((1, config.hidden_size), dtype=np.float32), layers, rng)
    plans: list[Fetching] = []
    for reader in readers:
        methods = [("everything", 0.0)] if reader is readers[0] else []
        methods += [("blocks", sparsity) for sparsity in sparsities]
        plans += [Fetching(token, reader, *method, announced) for method in methods for announced in ANNOUNCED]
    probe = [np.ones(2 * largest_cache() // 4, np.float32)]
    turns = {f"{number}": plan.seconds for number, plan in enumerate(plans)}
    times = seconds_in_turns(turns | {"probe": lambda: read_seconds(probe)}, rounds)
    reading = statistics.median(times.pop("probe"))
    everything = dict(zip(ANNOUNCED, times.values(), strict=False))  # the first three rows

    work, count = work_at(config), config.num_hidden_layers
    rest = (count * work.layer + work.token) * 4 * reading / probe[0].nbytes  # seconds
    dense = count * statistics.median(everything["no"])
    rows = []
    for plan, series in zip(plans, times.values(), strict=True):
        row = plan.row(series) | speeds(over(series, everything["no"]))
        row["over_announced"] = speeds(over(series, everything["a layer ahead"]))["speedup"]
        row["whole_token"] = (dense + rest) / (dense / row["speedup"] + rest)
        rows.append(row)
    return {
        "layers": len(layers),
        "rest_milliseconds": rest * 1e3,
        "read_gigabytes_per_second": probe[0].nbytes / reading / 1e9,
        "cached": [list(shares) for shares in zip(*(plan.cached for plan in plans), strict=True)],
        "rows": rows,
    }


def cold_or_error(reader: BundleReader, attempts: int = 3) -> float:
    """Empty the system's cache of the bundles; the largest share found in it. Raises MinillmError for more than COLD.

    Pages that another process is just writing back or reading may stay, so it is tried a few times.
    """
    for attempt in range(attempts):
        share = drop_page_cache(reader)
        if share is None or not hasattr(os, "posix_fadvise"):
            raise Unsupported("this system does not let its cache be emptied and shown, expected Linux")
        if share <= COLD:
            return share
        time.sleep(0.1 * attempt)
    folder = reader.bundle.folder.parent
    found = f"{share:.0%} of a file stays in the system's cache"
    raise MinillmError(f"{folder}: {found}, expected none (a file system in memory? TMPDIR names another folder)")


def disk_text(result: dict[str, Any]) -> str:
    """A result of ``bench_disk`` as text: a table, and what its columns mean."""
    shown = [
        row
        | {
            "read": row["method"] if row["method"] == "everything" else f"{1 - row['sparsity']:.0%}",
            "faster": speed_cell(row),
            "megabytes": row["bytes_per_token"] / 1e6,
            "disk_megabytes": None if row["disk_bytes"] is None else row["disk_bytes"] / 1e6,
        }
        for row in result["rows"]
    ]
    rounds = [max(shares) for shares in result["cached"]]
    parts = [
        heading(result),
        "",
        text_table(shown, DISK_COLUMNS),
        "\nmilliseconds: per layer, computing included; announced: by WILLNEED, and when; faster: times as fast as "
        "everything, not announced, median (middle half of the rounds); than announced: times as fast as everything, "
        "announced a layer ahead",
        f"token: times as fast for the whole token, whose rest is in memory and takes "
        f"{result['rest_milliseconds']:.0f} ms at {result['read_gigabytes_per_second']:.1f} GB/s ({result['token']})",
        f"cold: largest share of a file in the system's cache before any turn, of the warm-up and of each round: "
        f"{' '.join(f'{share:.3f}' for share in rounds)}",
        "",
        environment_line(result),
    ]
    return "\n".join(parts)
