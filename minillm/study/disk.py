"""Real runs: a text through the model while its FFN weights stay on disk, and what each way of fetching costs.

    resident      everything in memory: what the others are compared with
    everything    from disk, all bundles of every layer
    oracle        from disk, the bundles that turn out to count, recorded in a resident run before: a bound, no method
    a predictor   from disk, the bundles that it selects, before anything of the layer has been read

Each of the last three with or without WILLNEED one layer ahead, and with a buffer (buffer.py) or none. What is selected
are the neurons of policy mid where bundles hold one neuron, else a fixed share of each token's bundles: the oracle
knows their energy (reorder.py), a predictor sums the squares of its scores. The guess for the next layer is the
oracle's own record, or what the predictor says of the next layer at this one: a predictor that was made to look ahead
then sees what it was made for, any other takes this layer's input in the next one's place. A wrong guess costs time
and never changes the result.

Every token goes through alone, those of the prompt, too, as a buffer sees them come. Before each, the system's cache of
the bundles is emptied where that can be done, outside the time that is taken, or the second token would be served from
memory; ``cached`` is the largest share that was found in it all the same, by mincore. Then

    bytes_per_token     counted by the reader
    system_bytes        counted by the system for the same reads: the two agree, or something is wrong
    disk_bytes          what really came from the disk, also what WILLNEED asked for and nobody used
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
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
from ..trace import Tap, no_tap
from ..transformer.attention import KVCache
from ..transformer.ffn import FeedForward, Selector, swiglu
from ..transformer.layer import Layer
from ..transformer.model import Llama
from ..transformer.ops import log_softmax
from ..transformer.texts import Run


class DiskPlan(NamedTuple):
    """How the bundles of a token come to be known.

    select(number of the text) -> what is wanted in it; None: everything. trace (T, L, B) bool: the bundles that all
    texts ask for, where that is known beforehand (the eviction policy belady needs it). ahead: whether the next layer's
    bundles are announced to the system one layer before.
    """

    name: str
    select: Callable[[int], Selector | None]
    trace: np.ndarray | None = None
    ahead: bool = False


EVERYTHING = DiskPlan("everything", lambda number: None)


class Reading(NamedTuple):
    """What goes through the model: texts, and how many tokens each is continued by (0: the texts are scored)."""

    texts: Sequence[Run]
    new: int = 0


@dataclass(frozen=True, eq=False)
class DiskBuffer:
    """A buffer of bundles in memory: an eviction policy by name, ``capacity`` bundles per layer.

    hot_frequencies (L, B): how often each bundle is wanted on another text, for the policy hot. seed: of a random set.
    """

    eviction: str
    capacity: int
    hot_frequencies: np.ndarray | None = None
    seed: int = 0

    def buffer(self, bundle: Bundle, plan: DiskPlan) -> PrefetchBuffer:
        """The buffer itself. Raises MinillmError: belady without a trace, hot without frequencies."""
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


def plan_of(predictor: Predictor, bundle: Bundle, share: float) -> DiskPlan:
    """What a predictor selects: by its cutoffs where a bundle is one neuron, else that share of the bundles."""
    select = predicted(predictor, bundle.group, None if bundle.group == 1 else share)
    return DiskPlan(predictor.name, lambda number: select)


def oracle_ffn(model: Llama, bundle: Bundle, thresholds: Thresholds, share: float) -> FeedForward:
    """The resident FFN whose masks are the oracle's: policy mid, or the best blocks of each token."""
    return policy_ffn(model, thresholds) if bundle.group == 1 else BlockOracle(bundle.group, share).ffn()


def oracle(model: Llama, bundle: Bundle, ffn: FeedForward, reading: Reading) -> DiskPlan:
    """Run the texts with everything in memory and write down what is wanted."""
    masks = []
    for text in reading.texts:
        recorder = Recorder.of(model)
        one_by_one(model, text.ids, reading.new, ffn, recorder)
        masks.append(recorder.needed)  # (T, L, F)
    selects = [Recorded(mask.transpose(1, 0, 2)) for mask in masks]
    return DiskPlan("oracle", selects.__getitem__, in_blocks(np.concatenate(masks), bundle.group))


def block_frequencies(model: Llama, bundle: Bundle, ffn: FeedForward, texts: Sequence[Run]) -> np.ndarray:
    """How often each bundle is wanted on a calibration text: (L, B)."""
    return frequencies(in_blocks(record(model, ffn, texts).needed, bundle.group))


def in_blocks(masks: np.ndarray, group: int) -> np.ndarray:
    """Which blocks hold a neuron that is wanted.  (..., F) bool  ->  (..., B) bool."""
    return np.logical_or.reduceat(masks, np.arange(0, masks.shape[-1], group), axis=-1)


def one_by_one(
    model: Llama, ids: Sequence[int], new: int = 0, ffn: FeedForward = swiglu, tap: Tap = no_tap
) -> tuple[list[int], np.ndarray]:
    """Pass a text through the model token by token, and greedily go on for ``new`` more.

    ->  the likeliest next token after each one, the last ``new`` of which continue the text, and -ln p of each id
    after the first (n - 1,), float64. Stops early at the end of a sequence.
    """
    ids, given = list(ids), len(ids)
    cache, guesses, nll = KVCache(model.config, given + new, model.dtype), [], []
    for t in range(given + new - 1):
        logits = model.forward(ids[t : t + 1], cache, ffn, tap)[0]  # (V,)
        guesses.append(int(logits.argmax()))
        if t + 1 < given:
            nll.append(-log_softmax(logits.astype(np.float64))[ids[t + 1]])
            continue
        ids.append(guesses[-1])
        if guesses[-1] in model.config.eos_token_ids:
            break
    return guesses, np.array(nll)


@dataclass
class Stopwatch:
    """A FeedForward around another, which counts tokens and the seconds spent in it.

    before: called once per pass, before its first layer; its own seconds are kept apart, in ``outside``.
    """

    ffn: FeedForward
    before: Callable[[], None] = lambda: None
    seconds: float = 0.0
    outside: float = 0.0
    tokens: int = 0

    def __call__(self, x: np.ndarray, layer: Layer, position: int = 0, tap: Tap = no_tap) -> np.ndarray:
        """x (T, D)  ->  y (T, D)."""
        started = time.perf_counter()
        if layer.index == 0:
            self.tokens += len(x)
            self.before()
            started, before = time.perf_counter(), started
            self.outside += started - before
        y = self.ffn(x, layer, position, tap)
        self.seconds += time.perf_counter() - started
        return y


@dataclass
class Result:
    """What came of the texts: the guesses after each token, nll and number of the tokens scored, and all seconds."""

    guesses: list[list[int]]
    nll: float
    scored: int
    seconds: float

    def agreement(self, other: Result) -> float:
        """The share of the other's guesses that are the same here, at the same place."""
        pairs = list(zip(self.guesses, other.guesses, strict=True))
        same = sum(a == b for mine, theirs in pairs for a, b in zip(mine, theirs, strict=False))
        return same / sum(len(theirs) for _, theirs in pairs)


def run_texts(model: Llama, reading: Reading, ffn: Callable[[int], FeedForward]) -> Result:
    """All texts, one after the other. With new tokens only these are guesses, else every position is."""
    result, started = Result([], 0.0, 0, 0.0), time.perf_counter()
    for number, text in enumerate(reading.texts):
        guesses, nll = one_by_one(model, text.ids, reading.new, ffn(number))
        result.guesses.append(guesses[len(text.ids) - 1 if reading.new else text.unscored - 1 :])
        if not reading.new:
            result.nll += float(nll[text.unscored - 1 :].sum())
            result.scored += max(0, len(nll) - (text.unscored - 1))
    result.seconds = time.perf_counter() - started
    return result


def cut_after(texts: Sequence[Run], tokens: int) -> list[Run]:
    """The first texts, as many as hold so many scored tokens; the last one is cut."""
    found = []
    for text in texts:
        if tokens > 0:
            found.append(replace(text, ids=text.ids[: text.unscored + tokens]))
            tokens -= len(found[-1].ids) - text.unscored
    return found


def resident_row(model: Llama, reading: Reading) -> tuple[dict, Result]:
    """The dense model with everything in memory: its row, and what the others are compared with."""
    watch = Stopwatch(swiglu)
    result = run_texts(model, reading, lambda number: watch)
    return _row("resident", watch, result, result), result


def fetched_row(
    model: Llama, bundle: Bundle, reading: Reading, plan: DiskPlan, buffered: DiskBuffer | None = None,
    resident: Result | None = None,
) -> tuple[dict, Result]:  # fmt: skip
    """Run the texts with the bundles on disk; the row says what it cost (module docstring).

    model: ``resident_llama(bundle)``. buffered: None: no buffer. resident: None where the whole model never was in
    memory. Raises MinillmError as ``DiskBuffer.buffer`` does.
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
    """Bytes that the system gave between two readings of its counters, and of these from the disk; None without."""
    if before is None or after is None:
        return None
    return after.given - before.given - before.itself, after.disk - before.disk


def every_neuron(bundle: Bundle) -> StaticSet:
    """Wanted is everything: what is announced where nothing is selected."""
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


ROW_COLUMNS = {  # for text_table, of ``as_shown``
    "way": ("way", ""), "announced": ("ahead", ""), "keeper": ("keeper", ""), "capacity": ("keeps", "d"),
    "cached": ("cached", ".2f"), "tokens_per_second": ("tokens/s", ",.1f"), "ffn_ms": ("FFN ms", ".2f"),
    "read_ms": ("reading", ".2f"), "kB": ("kB", ",.0f"), "disk_kB": ("from disk", ",.0f"), "reads": ("reads", ".3f"),
    "hit_rate": ("hits", ".3f"), "perplexity": ("perplexity", ".3f"), "agreement": ("agreement", ".3f"),
}  # fmt: skip
UNITS = {  # {key of ROW_COLUMNS: (key of a row, factor)}
    "ffn_ms": ("ffn_seconds", 1e3), "read_ms": ("read_seconds", 1e3), "kB": ("bytes_per_token", 1e-3),
    "disk_kB": ("disk_bytes", 1e-3),
}  # fmt: skip


def as_shown(rows: Sequence[dict]) -> list[dict]:
    """The rows, and what ROW_COLUMNS print in other units: milliseconds and kB per token."""
    shown = []
    for row in rows:
        line = row | {"announced": "yes" if row.get("ahead") else None}
        line |= {key: None if row.get(name) is None else unit * row[name] for key, (name, unit) in UNITS.items()}
        shown.append(line)
    return shown


def counters_agree(rows: Sequence[dict]) -> bool | None:
    """Whether the reader's count of bytes is the system's own in every row; None where the system has none."""
    pairs = [(row["bytes_per_token"], row["system_bytes"]) for row in rows if row.get("system_bytes") is not None]
    return all(ours == theirs for ours, theirs in pairs) if pairs else None


def drop_page_cache(reader: BundleReader) -> float | None:
    """Empty the system's cache of the bundles, where it can be; the largest share of a file that is in it all the same.

    None where the system shows no such thing: then nothing is known about where the bytes come from.
    """
    try:
        with suppress(Unsupported):
            reader.drop_cache()
        return max(cached_share(info.path) for info in reader.bundle.layers)
    except Unsupported:
        return None
