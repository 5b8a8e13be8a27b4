"""A whole token in real seconds, with somebody who must choose the neurons: ``minillm bench token``.

``bench ffn`` measures the FFN alone, with neurons drawn at random, and so gives a bound of what sparsity can save. Here
the whole step is timed: one token through the model with its cache, the head, and the greedy choice of the next token.
The choice of the neurons is a part of the step:

    seconds of a token = attention + norms + head      the same in every row
                       + choosing                      scores of all F neurons, and the best K blocks of them
                       + FFN from what was chosen      kernels.py: any neurons (tiled), or whole blocks (views)

    dense           nothing is chosen; the FFN of transformer/ffn.py
    oracle          the mask is given, free of charge: a bound, and no choice that a program could make
    4-bit unpacked  a shadow of gate and up, its codes unpacked once to float32 and kept: two products of F D numbers
    4-bit, 2-bit packed   the shadow's codes as they are, by AND and popcount (predictors/planes.py)

All rows decode the same ids, in turns (turns.py), with random weights of a published shape: the time depends on sizes
alone. The predictors' tables are random, too; so the masks mean nothing, and quality is measured elsewhere: the same
rules of choice, with tables fitted for it, on a model that was trained (study/choice.py).

Bytes of a token: all weights but the FFN's once, of the FFN's what the accounting says (sparsity/spec.py), and the
predictor's tables in the form that is read:

    (W - 3 L F D 4) + mean(reads of gate, up, down) 3 L F D 4 + tables
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..predictors.copies import Shadow
from ..predictors.protocol import Predictor
from ..prefetch.fetched import PredictedBlocks
from ..prefetch.kernels import Blocks, NeuronMajor, block_views, tiled_gather
from ..prefetch.record import Recorder
from ..prefetch.reorder import BlockOracle
from ..sparsity.selected import Recorded, SelectedFFN, tap_selected_reads
from ..sparsity.spec import SparsityMeter
from ..study.blocks import BlockSettings
from ..study.bootstrap import in_words
from ..study.choice import BITS, ORACLE, choice_rows, choosers
from ..tables import Columns, text_table
from ..threads import use_threads
from ..trace import Tap, no_tap
from ..transformer.attention import KVCache
from ..transformer.ffn import FeedForward, Selector, swiglu
from ..transformer.generation import Sampling, next_token
from ..transformer.layer import Layer
from ..transformer.model import Llama, random_weights, shape_of
from ..transformer.texts import Sample, as_documents
from .model import weights_per_token
from .shapes import SHAPES, config_at
from .sparse import check_memory, environment_line, sparse_rows, speed_cell
from .turns import environment, in_turns, speeds

SPARSITIES, GROUPS = (0.5, 0.75, 0.9), (8, 32)
Row = dict[str, Any]


# ---- one token -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TokenFFN:
    """A FeedForward for one token at a time: it reads only the neurons, or whole blocks, that a Selector wants.

    weights: per layer, with a row per neuron (any neurons), or as bundles (a mask then holds whole blocks).
    """

    select: Selector
    weights: Sequence[NeuronMajor | Blocks]

    def __call__(self, x: np.ndarray, layer: Layer, position: int = 0, tap: Tap = no_tap) -> np.ndarray:
        """x (1, D)  ->  y (1, D). Taps mask, reads and out."""
        mask = tap("mask", self.select(x, layer, position, tap))  # (1, F)
        tap_selected_reads(tap, self.select, mask)
        weights = self.weights[layer.index]
        if isinstance(weights, Blocks):
            y = block_views(x[0], weights, np.flatnonzero(mask[0, :: weights.group]))  # (D,)
        else:
            y = tiled_gather(x[0], weights, np.flatnonzero(mask[0]))  # (D,)
        return tap("out", y[None])


class Watched:
    """The same Selector, and the seconds that it has taken so far."""

    def __init__(self, select: Selector):
        self.select, self.seconds = select, 0.0
        self.name, self.calibrated_on, self.reads = select.name, select.calibrated_on, select.reads

    def __call__(self, x: np.ndarray, layer: Layer, position: int = 0, tap: Tap = no_tap) -> np.ndarray:
        """x (T, D)  ->  mask (T, F)."""
        start = time.perf_counter()
        mask = self.select(x, layer, position, tap)
        self.seconds += time.perf_counter() - start
        return mask


def decode(model: Llama, ids: Sequence[int], ffn: FeedForward, tap: Tap = no_tap) -> list[int]:
    """Pass ids through the model one by one, with a cache; gives the likeliest next token after each."""
    cache, found = KVCache(model.config, len(ids), model.dtype), []
    for token in ids:
        logits = model.forward([token], cache, ffn, tap)  # (1, V)
        found.append(next_token(logits[0], Sampling(), None))
    return found


# ---- what is measured ------------------------------------------------------------------------------------------------


def random_shadow(model: Llama, bits: int, rng: np.random.Generator) -> Shadow:
    """A shadow of the model's shape with random tables: its scores mean nothing and take as long as real ones."""
    (layers, hidden, neurons), tables = shape_of(model), {}
    for part in ("gate", "up"):
        tables[f"{part}_codes"] = rng.integers(0, 256, (layers, neurons, -(-hidden * bits // 8)), np.uint8)
        tables[f"{part}_scale"] = rng.uniform(0.5, 1, (layers, neurons)).astype(np.float16) / np.float16(hidden)
        tables[f"{part}_error"] = rng.uniform(0, 0.1, (layers, neurons)).astype(np.float16)
        if getattr(model.layers[0], f"{part}_bias") is not None:
            tables[f"{part}_bias"] = np.zeros((layers, neurons), np.float16)
    return Shadow(shape_of(model), model.config.hidden_act, bits, bits, tables)


def table_bytes(predictor: Predictor, model: Llama) -> int:
    """Bytes of a predictor's tables in the form that it reads for a token: packed, or unpacked to the model's dtype."""
    if not isinstance(predictor, Shadow):
        return predictor.nbytes
    layers, hidden, neurons = shape_of(model)
    codes = sum(table.nbytes for name, table in predictor.tables.items() if name.endswith("_codes"))
    return predictor.nbytes - codes + 2 * layers * neurons * hidden * model.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Measured:
    """The model that is measured, the ids that it decodes, and its FFN weights as each block size (1: any) needs them.

    predictors: by the names of the table.
    """

    model: Llama
    ids: list[int]
    weights: dict[int, list[NeuronMajor | Blocks]]
    predictors: dict[str, Predictor]

    @classmethod
    def of(cls, model: Llama, tokens: int, groups: Sequence[int], rng: np.random.Generator) -> Measured:
        """With random ids and random predictors."""
        ids = rng.integers(3, model.config.vocab_size, tokens).tolist()
        weights: dict[int, list[NeuronMajor | Blocks]] = {1: [NeuronMajor.of(layer) for layer in model.layers]}
        weights |= {group: [Blocks.of(layer, group) for layer in model.layers] for group in groups}
        return cls(model, ids, weights, choosers({bits: random_shadow(model, bits, rng) for bits in BITS}))

    def select(self, row: Row) -> Selector:
        """Who chooses in this row. The oracle's masks are made here, before anything is timed."""
        group, share = row["group"], 1 - row["sparsity"]
        if row["chosen_by"] != ORACLE:
            return PredictedBlocks(self.predictors[row["chosen_by"]], group, share)
        recorder = Recorder.of(self.model)
        self.model.hidden(self.ids, ffn=SelectedFFN(BlockOracle(group, share)), tap=recorder)
        return Recorded(recorder.needed.transpose(1, 0, 2))

    def ffn(self, row: Row, select: Selector) -> FeedForward:
        """The FeedForward of this row."""
        return TokenFFN(select, self.weights[row["group"]])

    def bytes_of(self, row: Row, ffn: FeedForward) -> dict[str, float]:
        """weight_bytes, predictor_bytes and bytes_per_token of a row (module docstring), and touched."""
        meter = SparsityMeter()
        decode(self.model, self.ids, ffn, meter)
        report = meter.report()
        whole = sum(array.nbytes for array in weights_per_token(self.model))
        layers, hidden, neurons = shape_of(self.model)
        of_ffns = 3 * layers * hidden * neurons * self.model.dtype.itemsize
        weights = whole - of_ffns + report.weight_reads * of_ffns
        predictor = self.predictors.get(row["chosen_by"])
        tables = 0 if predictor is None else table_bytes(predictor, self.model)
        found = {"touched": 1 - report.neuron_sparsity, "weight_bytes": weights, "predictor_bytes": tables}
        return found | {"bytes_per_token": weights + tables}


def token_rows(measured: Measured, sparsities: Sequence[float], rounds: int) -> list[Row]:
    """Measure all rows in turns (keys: ``bench_token``)."""
    _, hidden, neurons = shape_of(measured.model)
    groups = [group for group in measured.weights if group > 1]
    ways = [row for row in sparse_rows((neurons, hidden), sparsities, groups) if row["method"] in ("tiled", "blocks")]
    rows: list[Row] = [{"method": "dense", "group": 1, "chosen_by": "", "sparsity": 0.0}]
    for way in ways:
        found = {key: way[key] for key in ("method", "group", "sparsity")}
        rows += [found | {"chosen_by": name} for name in (ORACLE, *measured.predictors)]
    turns: dict[str, Callable[[], float]] = {}
    choosing: list[list[float]] = [[] for _ in rows]  # the share of each turn
    for number, row in enumerate(rows):
        select = None if row["method"] == "dense" else Watched(measured.select(row))
        ffn = swiglu if select is None else measured.ffn(row, select)
        row |= measured.bytes_of(row, ffn)
        turns[str(number)] = partial(_turn, measured, ffn, select, choosing[number])
    for row, times, shares in zip(rows, in_turns(turns, rounds, "token"), choosing, strict=True):
        row |= {"milliseconds": times["milliseconds"], **speeds(times)}
        row["bound"] = row["chosen_by"] == ORACLE
        row["choosing"] = statistics.median(shares[1:]) if row["chosen_by"] in measured.predictors else None
        row["quality"] = []
    return rows


def _turn(measured: Measured, ffn: FeedForward, select: Watched | None, shares: list[float]) -> float:
    """Seconds per token of one turn; the share of them that the choice took is added to ``shares``."""
    before, start = select.seconds if select else 0.0, time.perf_counter()
    decode(measured.model, measured.ids, ffn)
    took = time.perf_counter() - start
    shares.append((select.seconds - before if select else 0.0) / took)
    return took / len(measured.ids)


def bench_token(
    shape: str = "110M", sparsities: Sequence[float] = SPARSITIES, groups: Sequence[int] = GROUPS, rounds: int = 7,
    threads: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """Measure whole tokens of a random model of a preset shape (module docstring).

    Rows: method ("dense", "tiled", "blocks"), group, chosen_by ("" for dense), bound (whether that is an oracle),
    sparsity, touched, milliseconds per token, speedup, low, high, choosing (the predictor's share of the time, None
    where nobody chooses), weight_bytes, predictor_bytes, bytes_per_token, quality (filled by ``add_quality``). Raises
    MinillmError.
    """
    config, rng = config_at(shape), np.random.default_rng(0)
    ffns = 3 * config.num_hidden_layers * config.hidden_size * config.intermediate_size * 4
    check_memory(round(ffns * (3 + len(groups))) + 2 * config.vocab_size * config.hidden_size * 4)
    tokens = max(2, SHAPES[shape].new_tokens // 4)
    with use_threads(threads):
        measured = Measured.of(Llama(config, random_weights(config, rng)), tokens, groups, rng)
        rows = token_rows(measured, sparsities, rounds)
    about = {"what": "token", "model": f"random {shape}", "rounds": rounds, "tokens": tokens, "quality": []}
    stored = {name: predictor.nbytes for name, predictor in measured.predictors.items()}
    return about | {"stored_bytes": stored, "environment": environment(threads), "rows": rows}


def add_quality(
    result: dict[str, Any], model: Llama, calibration: str | Sequence[str], test: Sample, settings: BlockSettings
) -> None:
    """Put beside each row what the same rule of choice costs on a trained model: study/choice.py."""
    choice = [row for row in result["rows"] if row["method"] != "dense"]
    sparsities = list(dict.fromkeys(row["sparsity"] for row in choice))
    rows = {(row["chosen_by"], row["group"], row["sparsity"]): row for row in choice}
    dense = None
    for found in choice_rows(model, calibration, test, sparsities, settings):
        dense = found["dense_perplexity"]
        if row := rows.get((found["chosen_by"], found["group"], found["sparsity"])):
            kept = ("perplexity", "increase", "increase_low", "increase_high")
            row["quality"].append({"model": model.name} | {key: found[key] for key in kept})
    documents = len(as_documents(test.documents))
    result["quality"].append({"model": model.name, "dense_perplexity": dense, "documents": documents})


# ---- the table -------------------------------------------------------------------------------------------------------

NOTES = """\
ms: of one whole token (attention, FFNs, head, greedy choice; the cache grows from empty), median of the rounds.
times as fast: dense over this row in the same round, median (middle half of the rounds).
choosing: the predictor's share of that time: scores of all neurons, and the selection.
MB: read per token: the weights, and the predictor's tables in the form that is read.
oracle (bound): the mask is given free of charge. It bounds what a predictor can reach, and is no choice to be had.
unpacked: the codes lie in memory as float32. packed: they are used as stored, by AND and popcount, input rounded.
Speed is that of random weights of this shape. Perplexity is that of trained models, whose blocks were grouped on a
calibration text for all choosers alike. The two columns say nothing about one and the same model."""


def token_text(result: dict[str, Any]) -> str:
    """A result of ``bench_token`` as text: a table for each share that is cut, and what its figures mean."""
    dense, *others = result["rows"]
    lines = [f"token, {result['model']}, {result['rounds']} rounds in turns, {result['tokens']} tokens in each turn"]
    megabytes = dense["bytes_per_token"] / 1e6
    lines.append(f"dense: {dense['milliseconds']:.2f} ms per token, which reads {megabytes:.1f} MB of weights")
    models = [about["model"] for about in result["quality"]]
    columns: Columns = {
        "by": ("FFN by", ""), "who": ("chosen by", ""), "milliseconds": ("ms", ".2f"),
        "speed": ("times as fast", ""), "choosing": ("choosing", ".0%"), "megabytes": ("MB", ".1f"),
    } | {f"cost {n}": (f"perplexity, {name}", "") for n, name in enumerate(models)}  # fmt: skip
    for sparsity in dict.fromkeys(row["sparsity"] for row in others):
        rows = [_shown(row) for row in others if row["sparsity"] == sparsity]
        lines += ["", f"{sparsity:.0%} of the neurons left out", text_table(rows, columns, names=2)]
    lines += ["", NOTES]
    read = {row["chosen_by"]: row["predictor_bytes"] / 1e6 for row in others}
    stored = [f"{name} {size / 1e6:.1f} ({read[name]:.1f})" for name, size in result["stored_bytes"].items()]
    lines.append(f"The predictors' tables in MB as they are stored (as they are read): {', '.join(stored)}.")
    for about in result["quality"]:
        where = f"{about['model']} (dense {about['dense_perplexity']:.3f}, {about['documents']} documents)"
        lines.append(f"perplexity, {where}: its increase by the same rule of choice (95 % over documents).")
    return "\n".join([*lines, environment_line(result)])


def _shown(row: Row) -> Row:
    """A row with the columns that the table prints."""
    shown = row | {"speed": speed_cell(row), "megabytes": row["bytes_per_token"] / 1e6}
    shown["by"] = "any neurons" if row["method"] == "tiled" else f"blocks of {row['group']}"
    shown["who"] = f"{ORACLE} (bound)" if row["bound"] else row["chosen_by"]
    for number, cost in enumerate(row["quality"]):
        limits = cost["increase_low"], cost["increase_high"]
        shown[f"cost {number}"] = in_words(cost["increase"], *limits, "+.1%" if cost["increase"] < 1 else "+.0%")
    return shown
