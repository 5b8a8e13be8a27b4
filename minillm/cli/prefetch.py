"""The command about a small fast memory for neurons: prefetch replay, table and blocks, with the flags of all.

``prefetch simulate`` is in simulate.py. ``prefetch real`` runs from disk instead of simulating; it is in disk.py.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from ..errors import MinillmError
from . import flags
from .disk import add_real_flags, prefetch_real
from .shared import given_thresholds, load_model, say, two_texts, wrapped, write_figure
from .simulate import prefetch_simulate

if TYPE_CHECKING:
    import numpy as np

    from ..sparsity.thresholds import Thresholds
    from ..study.buffers import FetchPlan
    from ..tables import Columns
    from ..transformer.model import Llama

PREFETCH_TOKENS = 1_000  # replayed through a buffer


class Texts(NamedTuple):
    """Documents to calibrate on and documents to replay or score, and the longest run of tokens."""

    calibration: list[str]
    test: list[str]
    context: int


def add(commands: flags.Commands) -> None:
    """Add the command of this file."""
    prefetch = flags.command(
        commands, "prefetch", command_prefetch, flags.model(),
        flags.text("the text to replay or to score (default: the embedded one; real: --prompt is continued)"),
        flags.prompt(), flags.length(),
        flags.flag("--predictor", type=flags.names, metavar="NAMES", help="comma-separated, as for predict eval"),
        flags.flag("--thresholds", metavar="FILE", help="thresholds of policy mid (default: found for --sparsity)"),
        flags.flag("--sparsity", type=flags.shares, help="default: 0.5; blocks: several, with commas"),
        flags.context(), flags.seed(), flags.output("rows as .csv or .json"),
        flags.figure("also draw it: simulate's last token, replay's curves, blocks' page; a .png or .svg"),
        flags.running(), flags.rank("as for predict"),
        flags.calibration("text for thresholds, predictors and frequencies"),
    )  # fmt: skip
    prefetch.add_argument("what", choices=("simulate", "replay", "table", "blocks", "real"))
    add_real_flags(prefetch)
    devices = '"phone UFS", "laptop NVMe" or "PCIe host to GPU" (default: laptop NVMe)'
    shares = "sizes of the buffer: shares of a layer's neurons, with commas"
    policies = "eviction policies, comma-separated (default: replay: all; real: lru)"
    prefetch.add_argument("--capacity", type=flags.shares_to_all, metavar="SHARES", help=shares)
    prefetch.add_argument(
        "--keeper", default="lru", help="simulate: eviction policy lru, lfu or window-K (default: lru)"
    )
    prefetch.add_argument("--keepers", type=flags.names, help=policies)
    prefetch.add_argument("--device", default="laptop NVMe", help=devices)
    prefetch.add_argument(
        "--miss", choices=("wait", "drop"), default="wait",
        help="replay: wait for what is missing, or compute without it (default: wait)",
    )  # fmt: skip
    prefetch.add_argument(
        "--tokens", type=flags.positive, help="of the text, about (default: 1000; blocks: 4000; real: 200)"
    )
    prefetch.add_argument("--speed", metavar="FILE", help="blocks: the JSON of `minillm bench ffn`")
    prefetch.add_argument(
        "--groups", type=flags.wholes, help="blocks: neurons per block, with commas (default: 1 to 32)"
    )


def command_prefetch(a: argparse.Namespace) -> int:
    """Keep neurons in a small fast memory: simulate, replay, table, blocks; or run a model from disk: real.

    simulate: follow one text through a buffer. replay: compare eviction policies (keepers) and sizes. table: what
    predictors are worth with a buffer. blocks: what whole blocks of neurons gain in speed and cost in perplexity. real:
    run the model of a folder of `minillm bundle`, whose FFN weights stay on disk.
    """
    if (a.what == "real") != bool(a.folder or a.bundle) or (a.folder and a.bundle):
        expected = "one folder of `minillm bundle`, FOLDER or --bundle FOLDER" if a.what == "real" else "no folder"
        raise MinillmError(f"prefetch {a.what}: found {a.folder or a.bundle or 'no folder'}, expected {expected}")
    if a.what == "real":
        return prefetch_real(a)
    if a.memory:
        raise MinillmError(f"prefetch {a.what} loads the whole model, expected --memory with prefetch real only")
    if a.figure:
        from ..show.canvas import check_figure

        if a.what == "table":
            raise MinillmError("prefetch table draws nothing, expected --figure with simulate, replay or blocks")
        check_figure(a.figure)
    from ..sparsity.calibrate import calibrate
    from ..transformer.texts import as_documents, default_context, first_tokens

    model = load_model(a)
    context = a.context or default_context(model)
    calibration, test = map(as_documents, two_texts(a.text, a.calibration))
    calibration = first_tokens(model, calibration, flags.DEMO_CALIBRATION, context)
    tokens = a.tokens or (flags.DEMO_PREDICTION if a.what == "blocks" else PREFETCH_TOKENS)
    texts = Texts(calibration, first_tokens(model, test, tokens, context), context)
    if a.what == "blocks":
        return prefetch_blocks(a, model, texts)
    if a.sparsity and len(a.sparsity) != 1:
        raise MinillmError(f"--sparsity has {len(a.sparsity)} values, of which only prefetch blocks takes several")
    (a.sparsity,) = a.sparsity or [0.5]
    thresholds = given_thresholds(a) or calibrate(model, calibration, "mid", a.sparsity, context, "neuron")
    if a.what == "simulate":
        return prefetch_simulate(a, model, thresholds)
    return (prefetch_table if a.what == "table" else prefetch_replay)(a, model, thresholds, texts)


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


def prefetch_replay(a: argparse.Namespace, model: Llama, thresholds: Thresholds, texts: Texts) -> int:
    """A row per predictor, capacity and eviction policy, on one recorded text."""
    from ..prefetch.replay import EVICTIONS, ROW_COLUMNS, SHARES, ReplaySettings
    from ..study.buffers import prefetch_rows, when_it_matters
    from ..tables import check_ending, json_rows, keys_as_headings, save_rows, text_table
    from ..transformer.texts import Sample

    if a.output:
        check_ending(a.output)
    plans, counted = known_neurons(a, model, thresholds, texts, a.predictor or [])
    settings = ReplaySettings(a.keepers or EVICTIONS, a.capacity or SHARES, a.device, counted, a.miss, seed=a.seed)
    rows = list(prefetch_rows(model, thresholds, Sample(texts.test, context=texts.context), plans, settings))
    if a.output:
        save_rows(a.output, rows)
    if a.figure:
        draw_replay(rows, a.figure)
    if a.json:
        print(json_rows(rows))
        return 0
    columns = keys_as_headings({"predictor": "", "role": "", "perplexity": ".3f"}) | ROW_COLUMNS
    print(text_table(rows, columns))
    about = (
        f"{len(texts.test)} documents, dense perplexity {rows[0]['dense_perplexity']:.3f}, {a.device}, misses: "
        f"{a.miss}. capacity: neurons per layer. lru, belady, random: hit rate, bytes and stall of these eviction "
        "policies on the same requests."
    )
    print_words(about, when_it_matters(rows))
    return 0


def draw_replay(rows: list[dict], path: str) -> None:
    """Hit rates and bytes by capacity, of the last predictor only: more curves would cover each other."""
    from ..show.canvas import new_axes
    from ..show.results_buffer import bytes_by_capacity, hit_rate_by_capacity

    hits, fetched = new_axes(1, 2)
    last = [row for row in rows if row["predictor"] == rows[-1]["predictor"]]
    if legend := hit_rate_by_capacity(last, ax=hits).get_legend():
        legend.remove()
    bytes_by_capacity(last, ax=fetched)
    write_figure(path, hits, fetched)


def prefetch_table(a: argparse.Namespace, model: Llama, thresholds: Thresholds, texts: Texts) -> int:
    """What a buffer is worth with each plan to know the neurons: hits, bytes, stall and perplexity in one table."""
    from ..prefetch.replay import SHARES, ReplaySettings
    from ..study.buffers import TABLE_COLUMNS, TABLE_PREDICTORS, buffer_rows, when_it_matters
    from ..tables import check_ending
    from ..transformer.texts import Sample

    if a.output:
        check_ending(a.output)
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
    print_result(a, rows, rows, TABLE_COLUMNS, about, when_it_matters(rows))
    return 0


# ---- blocks ----------------------------------------------------------------------------------------------------------


def prefetch_blocks(a: argparse.Namespace, model: Llama, texts: Texts) -> int:
    """Speed at a large shape against this model's perplexity, for single neurons and blocks, and which to choose."""
    from tqdm.auto import tqdm

    from ..study import blocks
    from ..tables import check_ending
    from ..transformer.texts import Sample

    if a.output:
        check_ending(a.output)
    speeds = blocks.read_speeds(a.speed) if a.speed else None
    if not speeds:
        say("speed: the table in prefetch/kernels.py; --speed takes what `minillm bench ffn --json` measures here")
    settings = blocks.BlockSettings(a.groups or blocks.GROUPS, seed=a.seed)
    sample, sparsities = Sample(texts.test, context=texts.context), a.sparsity or blocks.SPARSITIES
    making = blocks.joint_rows(model, texts.calibration, sample, speeds, settings, sparsities)
    rows = kept(tqdm(making, desc="blocks", unit="row", leave=False, disable=None), a.output)
    if a.figure:
        points = blocks.cheaper_points(rows)
        if not points:
            raise MinillmError(f"{a.speed}: holds no speed of these groups and sparsities, expected one to draw")
        draw_blocks(points, model.name, a.figure)
    about = (
        f"Perplexity: {model.name}, dense {rows[0]['dense_perplexity']:.3f}; an oracle keeps each token's best blocks, "
        "so it is a bound. clustered: neurons that matter together are stored together; in place: the value of a "
        f"neuron that is left out. Speed: one FFN of {rows[0]['shape']}, {rows[0]['speed_from']}; whole "
        f"token: where the FFNs hold {rows[0]['ffn_share']:.0%} of the bytes that a token reads."
    )
    print_result(a, rows, blocks.joint_table(rows), blocks.JOINT_COLUMNS, about, blocks.which_point(rows))
    return 0


def draw_blocks(points: list[dict], name: str, path: str) -> None:
    """Speed against perplexity: of the FFN alone, and of a whole token."""
    from ..show.canvas import new_axes
    from ..show.results_cuts import speed_against_perplexity

    panels = new_axes(1, 2)
    whole = f"a whole token (the FFNs hold {points[0]['ffn_share']:.0%} of its bytes)"
    for ax, token, what in zip(panels, (False, True), ("the FFN alone", whole), strict=True):
        speed_against_perplexity(points, token, ax=ax)
        ax.title.set_text(f"{name}: {what}")  # set_text keeps the font of the figure's style
    if legend := panels[0].get_legend():
        legend.remove()
    write_figure(path, *panels)


# ---- rows and words --------------------------------------------------------------------------------------------------


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


def print_result(
    a: argparse.Namespace, rows: list[dict], shown: list[dict], columns: Columns, about: str, sentences: list[str]
) -> None:
    """Print rows and sentences as JSON, or the shown rows as a table, its explanation and the sentences."""
    from ..tables import json_rows, text_table

    if a.json:
        print(f'{{"rows": {json_rows(rows)},\n"sentences": {json.dumps(sentences)}}}')
        return
    print(text_table(shown, columns))
    print_words(about, sentences)


def print_words(about: str, sentences: list[str]) -> None:
    """Print the explanation of a table, and the sentences that follow from it."""
    print("\n" + wrapped(about))
    for sentence in sentences:
        print(wrapped(f"{sentence}."))
