"""The command about a small fast memory for neurons, and its actions replay, table and blocks.

``prefetch simulate`` is in simulate.py, ``prefetch tuned`` in tuned.py. ``prefetch real`` runs from disk instead of
simulating; it is in disk.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from ..errors import MinillmError
from . import flags
from .disk import add_real
from .shared import load_model, mid_thresholds, print_result, print_words, say, tell, two_texts, write_figure
from .simulate import add_simulate
from .tuned import add_tuned

if TYPE_CHECKING:
    import numpy as np

    from ..sparsity.thresholds import Thresholds
    from ..study.buffers import FetchPlan
    from ..transformer.model import Llama

PREFETCH_TOKENS = 1_000  # replayed through a buffer


class Texts(NamedTuple):
    """Documents to calibrate on and documents to replay or score, and the longest run of tokens."""

    calibration: list[str]
    test: list[str]
    context: int


def add(commands: flags.Commands) -> None:
    """Add the command of this file, with its six actions."""
    prefetch = flags.actions(
        commands, "prefetch", "Keep neurons in a small fast memory: simulate it, or run a model from a disk."
    )
    add_simulate(prefetch)
    add_replay_and_table(prefetch)
    add_blocks(prefetch)
    add_tuned(prefetch)
    add_real(prefetch)


def tokens_of_text(count: int) -> flags.Parser:
    """--tokens: how much of the text is read."""
    return flags.flag("--tokens", type=flags.positive, default=count, help=f"of the text, about (default: {count})")


def add_replay_and_table(prefetch: flags.Commands) -> None:
    """Add ``prefetch replay`` and ``prefetch table``, which share most of their flags."""
    text = flags.text("the text to replay (default: the embedded one)")
    shared = (
        flags.calibration("text for thresholds, predictors and frequencies (default: the first 40 %% of --text, or the "
                          "embedded one)"),
        flags.mid_truth(), flags.context(), flags.seed(), flags.output("rows as .csv or .json"), flags.rank(),
        flags.capacity("0,0.1,0.25,0.5,0.75,1"), flags.device(), tokens_of_text(PREFETCH_TOKENS),
        flags.calibration_tokens(f"{flags.DEMO_CALIBRATION:,}"), flags.running(),
    )  # fmt: skip
    about = "comma-separated names or files, as for `minillm predict eval`"
    replay = flags.command(
        prefetch, "replay", prefetch_replay, flags.model(), text,
        flags.flag("--predictor", type=flags.names, metavar="NAMES", default=(),
                   help=f"{about} (default: none, the policy's own mask alone)"),
        flags.figure("also draw hit rate and bytes against capacity: a .png or .svg (needs matplotlib)"), *shared,
        example="minillm prefetch replay --capacity 0.25,0.5 --keepers lru,belady",
    )  # fmt: skip
    replay.add_argument(
        "--keepers", type=flags.names, metavar="NAMES",
        help="eviction policies, comma-separated (default: lru,lfu,window-4,hot,random,belady)",
    )  # fmt: skip
    replay.add_argument(
        "--miss", choices=("wait", "drop"), default="wait",
        help="wait for what is missing, or compute without it (default: wait)",
    )  # fmt: skip
    flags.command(
        prefetch, "table", prefetch_table, flags.model(), text,
        flags.flag("--predictor", type=flags.names, metavar="NAMES",
                   help=f"{about} (default: shadow-4,learned,ahead-4,previous-token,oracle)"),
        *shared, example="minillm prefetch table --predictor shadow-4 --capacity 0,0.25",
    )  # fmt: skip


def add_blocks(prefetch: flags.Commands) -> None:
    """Add ``prefetch blocks``, which takes several sparsities and block sizes."""
    flags.command(
        prefetch, "blocks", prefetch_blocks, flags.model(),
        flags.text("the text to score (default: the embedded one)"),
        flags.flag("--sparsity", type=flags.shares, metavar="SHARES",
                   help="shares left out, with commas (default: 0.5,0.7,0.9)"),
        flags.flag("--groups", type=flags.wholes,
                   help="neurons per block, with commas; each size is clustered for each share (default: 1,8,32)"),
        flags.flag("--speed", metavar="FILE", help="of `minillm bench ffn --json` (default: a table in kernels.py)"),
        flags.calibration("text that neurons are clustered on (default: the first 40 %% of --text, or the embedded "
                          "one)"),
        flags.context(), flags.seed("of the clustering (default: 0)"), flags.output("rows as .csv or .json"),
        flags.figure("also draw speed against perplexity: a .png or .svg (needs matplotlib)"),
        tokens_of_text(flags.DEMO_PREDICTION), flags.calibration_tokens(f"{flags.DEMO_CALIBRATION:,}"), flags.running(),
        example="minillm prefetch blocks --groups 1,16 --sparsity 0.5 --tokens 500",
    )  # fmt: skip


def read_texts(a: argparse.Namespace, model: Llama) -> Texts:
    """The texts of --text and --calibration, cut to the budgets of calibration and of --tokens."""
    from ..transformer.texts import as_documents, default_context, first_tokens

    context = a.context or default_context(model)
    calibration, test = map(as_documents, two_texts(a.text, a.calibration))
    known = first_tokens(model, calibration, a.calibration_tokens or flags.DEMO_CALIBRATION, context)
    return Texts(known, first_tokens(model, test, a.tokens, context), context)


# ---- replay and table ------------------------------------------------------------------------------------------------


def known_neurons(
    a: argparse.Namespace, model: Llama, thresholds: Thresholds, texts: Texts, wanted: Iterable[str]
) -> tuple[list[FetchPlan], np.ndarray]:
    """Plans to know a token's neurons (study/buffers.py), and how often each neuron is needed (L, F)."""
    from ..predictors.select import sparse_ffn
    from ..prefetch.record import frequencies, record
    from ..study.buffers import plans_of
    from ..study.prediction import PredictionSettings, workshop_of
    from ..transformer.texts import runs

    settings = PredictionSettings(a.sparsity, thresholds, a.rank, a.seed)
    workshop = workshop_of(model, texts.calibration, settings, texts.context)
    plans = plans_of(workshop, list(wanted), a.sparsity)
    ffn = sparse_ffn(model, thresholds)
    known = runs(model, texts.calibration, "documents", texts.context)
    return plans, frequencies(record(model, ffn, known).needed)


def prefetch_replay(a: argparse.Namespace) -> int:
    """Compare eviction policies and sizes of the buffer: a row per predictor, capacity and policy, on one text."""
    from ..prefetch.replay import EVICTIONS, SHARES, ReplaySettings
    from ..study.buffers import REPLAY_COLUMNS, TABLE_NAMES, prefetch_rows, readable, when_it_matters
    from ..tables import json_rows, save_rows, text_table
    from ..transformer.texts import Sample
    from ..units import in_bytes

    check_names(a)
    model = load_model(a)
    texts = read_texts(a, model)
    thresholds = mid_thresholds(a, model, texts.calibration, texts.context)
    plans, counted = known_neurons(a, model, thresholds, texts, a.predictor)
    settings = ReplaySettings(a.keepers or EVICTIONS, a.capacity or SHARES, a.device, counted, a.miss, seed=a.seed)
    rows = list(prefetch_rows(model, thresholds, Sample(texts.test, context=texts.context), plans, settings))
    if a.output:
        save_rows(a.output, rows)
    if a.figure:
        draw_replay(rows, a.figure)
    if a.json:
        print(json_rows(rows))
        return 0
    print(text_table([readable(row) for row in rows], REPLAY_COLUMNS, TABLE_NAMES))
    about = (
        f"{len(texts.test)} documents, dense perplexity {rows[0]['dense_perplexity']:.3f}, {a.device}, misses: "
        f"{a.miss}. capacity: neurons per layer. kB: fetched per token, as the checkpoint stores its weights; all "
        f"FFNs hold {in_bytes(rows[0]['dense_bytes'])}, which the dense model needs for every token. token ms, stall "
        "ms: simulated milliseconds per token, and those of them that are spent waiting. lru, belady, random: these "
        "eviction policies on the same requests."
    )
    print_words(about, when_it_matters(rows))
    return 0


def draw_replay(rows: list[dict], path: str) -> None:
    """Hit rates and bytes by capacity, of the last predictor only: more curves would cover each other."""
    from ..show.canvas import new_axes, plain_text
    from ..show.results_buffer import bytes_by_capacity, hit_rate_by_capacity

    hits, fetched = new_axes(1, 2)
    last = [row for row in rows if row["predictor"] == rows[-1]["predictor"]]
    if legend := hit_rate_by_capacity(last, ax=hits).get_legend():
        legend.remove()
    bytes_by_capacity(last, ax=fetched)
    hits.title.set_text(f"{plain_text(rows[-1]['predictor'])}: hit rate (dotted: capacity / N)")
    write_figure(path, hits, fetched)


def prefetch_table(a: argparse.Namespace) -> int:
    """Show what predictors are worth with a buffer: hits, bytes, stall and perplexity in one table."""
    from ..prefetch.replay import SHARES, ReplaySettings
    from ..study.buffers import TABLE_COLUMNS, TABLE_NAMES, TABLE_PREDICTORS, buffer_rows, when_it_matters
    from ..tables import text_table
    from ..transformer.texts import Sample

    check_names(a)
    model = load_model(a)
    texts = read_texts(a, model)
    thresholds = mid_thresholds(a, model, texts.calibration, texts.context)
    plans, counted = known_neurons(a, model, thresholds, texts, a.predictor or TABLE_PREDICTORS)
    settings = ReplaySettings(shares=a.capacity or SHARES, device=a.device, hot_frequencies=counted, seed=a.seed)
    sample = Sample(texts.test, context=texts.context)
    making = buffer_rows(model, thresholds, sample, plans, settings, dropping=plans[1:2])

    def report(row: dict) -> None:
        say(f"{row['way']}, misses {row['misses']}, {row['capacity']} neurons: {row['kB']:,.0f} kB per token")

    rows = kept(making, a.output, report)
    about = (
        f"{model.name}, {rows[0]['tokens']:,} tokens, dense perplexity {rows[0]['dense_perplexity']:.3f}; {a.device}, "
        "simulated. capacity: neurons kept per layer; fast kB: their bytes and the predictor's own tables. kB: fetched "
        "per token, in the bytes that the checkpoint stores. lru, belady, random: these eviction policies on the same "
        "requests without guesses: hit rate, kB, milliseconds of stall. The mask of mid is known at no cost when "
        "the layer is reached. A miss that is dropped changes the output, so the perplexity is measured."
    )
    print_result(a, rows, text_table(rows, TABLE_COLUMNS, TABLE_NAMES), about, when_it_matters(rows))
    return 0


# ---- blocks ----------------------------------------------------------------------------------------------------------


def prefetch_blocks(a: argparse.Namespace) -> int:
    """Compare what whole blocks of neurons gain in speed with what they cost in perplexity, beside single neurons."""
    from ..study import blocks
    from ..tables import text_table
    from ..transformer.texts import Sample

    check_names(a)
    model = load_model(a)
    texts = read_texts(a, model)
    speeds = blocks.read_speeds(a.speed) if a.speed else None
    if not speeds:
        say("speed: the table in prefetch/kernels.py; --speed takes what `minillm bench ffn --json` measures here")
    settings = blocks.BlockSettings(a.groups or blocks.GROUPS, seed=a.seed)
    sample, sparsities = Sample(texts.test, context=texts.context), a.sparsity or blocks.SPARSITIES
    making = blocks.joint_rows(model, texts.calibration, sample, speeds, settings, sparsities)

    def report(row: dict) -> None:
        left_out = f"{row['sparsity']:.0%} left out, {'means' if row['means'] else 'zero'} in place"
        tell(f"blocks of {row['group']}, {row['order']}, {left_out}: perplexity {row['perplexity']:.3f}")

    rows = kept(making, a.output, report)
    if a.figure:
        points = blocks.cheaper_points(rows)
        if not points:
            raise MinillmError(f"{a.speed}: holds no speed of these groups and sparsities, expected one to draw")
        draw_blocks(points, model.name, a.figure)
    about = (
        f"Perplexity: {model.name}, dense {rows[0]['dense_perplexity']:.3f}; an oracle keeps each token's best blocks "
        "at no cost, so every line is a bound, not a choice: a method must first find out which blocks to keep. "
        "clustered: neurons that matter together are stored together; in place: the value of a neuron that is left "
        f"out. speedup: times as fast as dense, of one FFN of {rows[0]['shape']}, {rows[0]['speed_from']}; token: the "
        f"same of a whole token, where the FFNs hold {rows[0]['ffn_share']:.0%} of the bytes that a token reads."
    )
    table = text_table(blocks.joint_table(rows), blocks.JOINT_COLUMNS, names=4)
    print_result(a, rows, table, about, blocks.bounds_in_words(rows))
    return 0


def draw_blocks(points: list[dict], name: str, path: str) -> None:
    """Speed against perplexity: of the FFN alone, and of a whole token."""
    from ..show.canvas import new_axes, plain_text
    from ..show.results_cuts import speed_against_perplexity

    panels = new_axes(1, 2)
    whole = f"a whole token (the FFNs hold {points[0]['ffn_share']:.0%} of its bytes)"
    for ax, token, what in zip(panels, (False, True), ("the FFN alone", whole), strict=True):
        speed_against_perplexity(points, token, ax=ax)
        words = f"{plain_text(name)}: {what}\nnumbers: % of the neurons left out, by an oracle (a bound)"
        ax.title.set_text(words)  # set_text keeps the font of the figure's style
    if legend := panels[0].get_legend():
        legend.remove()
    write_figure(path, *panels)


# ---- rows and words --------------------------------------------------------------------------------------------------


def check_names(a: argparse.Namespace) -> None:
    """Refuse the names of -o and --figure that nothing can be written to, before the work."""
    from ..tables import check_ending

    if a.output:
        check_ending(a.output)
    if getattr(a, "figure", None):
        from ..show.canvas import check_figure

        check_figure(a.figure)


def kept(making: Iterable[dict], output: str | None, report: Callable[[dict], None] | None = None) -> list[dict]:
    """All rows; the file is written after each of them, so that an interrupted run loses nothing."""
    from ..tables import save_rows

    rows: list[dict] = []
    for row in making:
        rows.append(row)
        if report:
            report(row)
        if output:
            save_rows(output, rows)
    return rows
