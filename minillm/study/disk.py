"""Real runs: a text through the model while its FFN weights stay on disk, and what each plan of fetching costs.

    resident      everything in memory: what the others are compared with
    everything    from disk, all bundles of every layer
    oracle        from disk, the bundles that will matter, recorded in a resident run before: a bound, no method
    a predictor   from disk, the bundles that it selects, before anything of the layer has been read

Each of the last three with or without WILLNEED one layer ahead, and with a buffer (buffer.py) or none. What is selected
are the neurons of policy mid where bundles hold one neuron, else a fixed share of each token's bundles: the oracle
knows their energy (reorder.py), a predictor sums the squares of its scores. The guess for the next layer is the
oracle's own record, or the predictor's selection for the next layer, made at this one: a predictor that was made to
look ahead gets the input that it was made for, any other gets this layer's input in place of the next one's. A wrong
guess costs time and never changes the result.

Every token passes alone (passes.py), those of the prompt, too. Before each token, the system's cache of the bundles is
emptied where that is possible, or the second token would come from memory; this is not part of the measured time.
``cached`` is the largest share of a file that is still in the cache, by mincore. Then

    bytes_per_token     counted by the reader
    system_bytes        counted by the system for the same reads: the two agree, or something is wrong
    disk_bytes          what really came from the disk, including what WILLNEED announced and no token used
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import MinillmError
from ..predictors.protocol import Predictor
from ..prefetch.buffer import PrefetchBuffer
from ..prefetch.bundle import Bundle
from ..prefetch.eviction import belady
from ..prefetch.fetched import FetchedFFN, predicted
from ..prefetch.reader import BundleReader
from ..prefetch.record import Recorder, frequencies, record
from ..prefetch.reorder import BlockOracle
from ..prefetch.replay import ReplaySettings
from ..prefetch.system import SystemReads, Unsupported, cached_share, system_reads
from ..sparsity.selected import Recorded, StaticSet
from ..sparsity.sparse import policy_ffn
from ..sparsity.thresholds import Thresholds
from ..transformer.ffn import FeedForward, Selector, swiglu
from ..transformer.model import Llama
from ..transformer.texts import Run
from .passes import Reading, Result, Stopwatch, one_by_one, run_texts


class DiskPlan(NamedTuple):
    """How the bundles that a token needs are chosen.

    select(number of the text) -> the Selector for it; None: all bundles. trace (T, L, B) bool: the bundles that all
    texts need, where that is known beforehand (the eviction policy belady needs it). ahead: whether the next layer's
    bundles are announced to the system one layer before.
    """

    name: str
    select: Callable[[int], Selector | None]
    trace: np.ndarray | None = None
    ahead: bool = False


EVERYTHING = DiskPlan("everything", lambda number: None)


@dataclass(frozen=True, eq=False)
class DiskBuffer:
    """A buffer of bundles in memory: an eviction policy by name, ``capacity`` bundles per layer.

    hot_frequencies (L, B): how often each bundle is needed on another text, for the policy hot. seed: of a random set.
    """

    eviction: str
    capacity: int
    hot_frequencies: np.ndarray | None = None
    seed: int = 0

    def buffer(self, bundle: Bundle, plan: DiskPlan) -> PrefetchBuffer:
        """The PrefetchBuffer. Raises MinillmError: belady without a trace, hot without frequencies."""
        layers, blocks = len(bundle.layers), bundle.blocks
        if self.eviction == "belady":
            if plan.trace is None:
                found = f"eviction policy belady must know the future, which {plan.name} does not"
                raise MinillmError(f"{found}, expected the oracle's plan")
            rule = belady(plan.trace)
        else:
            settings = ReplaySettings(hot_frequencies=self.hot_frequencies, seed=self.seed)
            rule = settings.eviction(self.eviction, self.capacity, layers, blocks)
        return PrefetchBuffer(layers, blocks, self.capacity, rule, log=False)


def disk_plan_of(predictor: Predictor, bundle: Bundle, share: float) -> DiskPlan:
    """The plan of a predictor: by its cutoffs where a bundle is one neuron, else the best ``share`` of the bundles."""
    select = predicted(predictor, bundle.group, None if bundle.group == 1 else share)
    return DiskPlan(predictor.name, lambda number: select)


def oracle_ffn(model: Llama, bundle: Bundle, thresholds: Thresholds, share: float) -> FeedForward:
    """The resident FFN whose masks are the oracle's: policy mid, or the best blocks of each token."""
    if bundle.group == 1:
        return policy_ffn(model, thresholds)
    thresholds.check_fits(model)  # blocks are chosen by their share; the thresholds count where predictors are made
    return BlockOracle(bundle.group, share).ffn()


def oracle(model: Llama, bundle: Bundle, ffn: FeedForward, reading: Reading) -> DiskPlan:
    """The oracle's plan: run the texts with everything in memory, and record which neurons they need."""
    masks = []
    for text in reading.texts:
        recorder = Recorder.of(model)
        one_by_one(model, text.ids, reading.new, ffn, recorder)
        masks.append(recorder.needed)  # (T, L, F)
    selects = [Recorded(mask.transpose(1, 0, 2)) for mask in masks]
    return DiskPlan("oracle", selects.__getitem__, in_blocks(np.concatenate(masks), bundle.group))


def block_frequencies(model: Llama, bundle: Bundle, ffn: FeedForward, texts: Sequence[Run]) -> np.ndarray:
    """How often each bundle is needed on a calibration text: (L, B)."""
    return frequencies(in_blocks(record(model, ffn, texts).needed, bundle.group))


def in_blocks(masks: np.ndarray, group: int) -> np.ndarray:
    """The blocks that hold a needed neuron.  (..., F) bool  ->  (..., B) bool."""
    return np.logical_or.reduceat(masks, np.arange(0, masks.shape[-1], group), axis=-1)


def resident_row(model: Llama, reading: Reading) -> tuple[dict, Result]:
    """The dense model with everything in memory: its row, and the result that the others are compared with."""
    watch = Stopwatch(swiglu)
    result = run_texts(model, reading, lambda number: watch)
    return _row("resident", watch, result, result), result


def fetched_row(
    model: Llama, bundle: Bundle, reading: Reading, plan: DiskPlan, buffered: DiskBuffer | None = None,
    resident: Result | None = None,
) -> tuple[dict, Result]:  # fmt: skip
    """Run the texts with the bundles on disk; the row says what that costs (module docstring).

    model: ``resident_llama(bundle)``. buffered: None: no buffer. resident: the dense model's result; None where the
    whole model was never in memory. Raises MinillmError as ``DiskBuffer.buffer`` does.
    """
    buffer = buffered.buffer(bundle, plan) if buffered else None
    shares: list[float | None] = []
    with BundleReader(bundle, model.dtype, buffer) as reader:
        preloaded, reader.bytes_read, reader.seconds = reader.bytes_read, 0, 0.0
        watch = Stopwatch(swiglu, lambda: shares.append(drop_page_cache(reader)))

        def ffn(number: int) -> Stopwatch:
            select = plan.select(number)
            watch.ffn = FetchedFFN(reader, select, (select or every_neuron(bundle)) if plan.ahead else None)
            return watch

        before = system_reads()
        result = run_texts(model, reading, ffn)
        system = bytes_between(before, system_reads())
    tokens, dense = watch.tokens, sum(info.nbytes for info in bundle.layers)
    cached = [share for share in shares if share is not None]
    row = _row(plan.name, watch, result, resident) | {
        "ahead": plan.ahead,
        "keeper": buffered.eviction if buffered else None,
        "capacity": buffered.capacity if buffered else None,
        "cached": max(cached) if len(cached) == len(shares) else None,
        "read_seconds": reader.seconds / tokens,
        "bytes_per_token": reader.bytes_read / tokens,
        "system_bytes": system and system[0] / tokens,
        "disk_bytes": system and system[1] / tokens,
        "reads": reader.bytes_read / tokens / dense,
        "hit_rate": buffer.traffic().hit_rate if buffer else None,
        "preloaded_bytes": preloaded,
    }
    return row, result


def bytes_between(before: SystemReads | None, after: SystemReads | None) -> tuple[int, int] | None:
    """Bytes read between two readings of the system's counters, and bytes from the disk; None without counters."""
    if before is None or after is None:
        return None
    return after.given - before.given - before.itself, after.disk - before.disk


def every_neuron(bundle: Bundle) -> StaticSet:
    """The Selector of all neurons: everything is announced where nothing is selected."""
    return StaticSet(np.ones((len(bundle.layers), bundle.config.intermediate_size), bool), "everything")


def _row(name: str, watch: Stopwatch, result: Result, resident: Result | None) -> dict:
    seconds, tokens = result.seconds - watch.outside, watch.tokens
    return {
        "way": name,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "ffn_seconds": watch.seconds / tokens,
        "perplexity": float(np.exp(result.nll / result.scored)) if result.scored else None,
        "agreement": result.agreement(resident) if resident else None,
    }


DISK_COLUMNS = {  # for text_table, of ``as_shown``
    "way": ("way", ""), "announced": ("ahead", ""), "keeper": ("keeper", ""), "capacity": ("keeps", "d"),
    "cached": ("cached", ".2f"), "tokens_per_second": ("tokens/s", ",.1f"), "ffn_ms": ("FFN ms", ".2f"),
    "read_ms": ("reading", ".2f"), "kB": ("kB", ",.0f"), "disk_kB": ("from disk", ",.0f"), "reads": ("reads", ".3f"),
    "hit_rate": ("hits", ".3f"), "perplexity": ("perplexity", ".3f"), "agreement": ("agreement", ".3f"),
}  # fmt: skip
UNITS = {  # {key of DISK_COLUMNS: (key of a row, factor)}
    "ffn_ms": ("ffn_seconds", 1e3), "read_ms": ("read_seconds", 1e3), "kB": ("bytes_per_token", 1e-3),
    "disk_kB": ("disk_bytes", 1e-3),
}  # fmt: skip


def as_shown(rows: Sequence[dict]) -> list[dict]:
    """The rows, with the columns that DISK_COLUMNS prints in other units: milliseconds and kB per token."""
    shown = []
    for row in rows:
        line = row | {"announced": "yes" if row.get("ahead") else None}
        line |= {key: None if row.get(name) is None else unit * row[name] for key, (name, unit) in UNITS.items()}
        shown.append(line)
    return shown


def counters_agree(rows: Sequence[dict]) -> bool | None:
    """Whether the reader and the system count the same bytes in every row; None where the system has no counters."""
    pairs = [(row["bytes_per_token"], row["system_bytes"]) for row in rows if row.get("system_bytes") is not None]
    return all(ours == theirs for ours, theirs in pairs) if pairs else None


def drop_page_cache(reader: BundleReader) -> float | None:
    """Empty the system's cache of the bundles, where that is possible.

    ->  the largest share of a file that is still in the cache; None where the system does not show its cache: then it
    is not known where the bytes come from.
    """
    try:
        with suppress(Unsupported):
            reader.drop_cache()
        return max(cached_share(info.path) for info in reader.bundle.layers)
    except Unsupported:
        return None
