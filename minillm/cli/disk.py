"""Commands that leave the FFN weights on disk: bundle writes a folder of them, prefetch real runs a model from it.

``prefetch real`` gives a row per plan of fetching (every neuron, the oracle, each predictor), with and without
announcing the next layer's bundles. With --memory the whole model is never loaded: then there is no oracle, and no row
of the dense model to compare with.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import MinillmError, show
from . import flags
from .shared import given_thresholds, load_model, new_tokens, prompt_ids, say, text_or_embedded, two_texts, wrapped

if TYPE_CHECKING:
    import numpy as np

    from ..predictors.protocol import Predictor
    from ..prefetch.bundle import Bundle
    from ..study.disk import DiskPlan
    from ..study.passes import Reading, Result
    from ..transformer.model import Llama

REAL_TOKENS = 200  # scored by `prefetch real`, one at a time and once per row
REAL_WORDS = (
    "ahead: the next layer's bundles are announced to the system one layer before. keeps: bundles per layer that a "
    "buffer keeps. cached: the largest share of a file that was in the system's cache before any token (0: cold). FFN, "
    "reading: milliseconds per token, in all FFNs, and the part of it spent reading. kB: read per token, and the part "
    "that came from the disk. reads: share of all FFN weights. agreement: share of the likeliest next tokens that are "
    "those of the dense model in memory."
)


class Loaded(NamedTuple):
    """A folder of bundles, its model with the FFN weights on disk, and the whole model.

    whole: None under --memory; why_not then says why it could not be loaded ("": it fitted).
    """

    bundle: Bundle
    model: Llama
    whole: Llama | None
    why_not: str


def add(commands: flags.Commands) -> None:
    """Add the command of this file; the flags of ``prefetch real`` are in ``add_real_flags``."""
    bundle = flags.command(commands, "bundle", command_bundle, flags.model(), flags.running())
    bundle.add_argument("--output", "-o", dest="folder", required=True, metavar="FOLDER", help="must not exist yet")
    bundle.add_argument("--group", type=flags.positive, default=32, help="neurons per block (default: 32)")
    bundle.add_argument(
        "--stored",
        choices=("float32", "bfloat16"),
        default="float32",
        help="type of the written weights (default: float32)",
    )


def add_real_flags(prefetch: argparse.ArgumentParser) -> None:
    """Add what only ``prefetch real`` takes."""
    prefetch.add_argument("folder", nargs="?", metavar="FOLDER", help="real: a folder that `minillm bundle` wrote")
    prefetch.add_argument("--bundle", metavar="FOLDER", help="real: the same, as a flag")
    prefetch.add_argument(
        "--memory", type=flags.positive, metavar="MB",
        help="real: let this process use this many MB beyond Python's own (RLIMIT_AS, Linux); the model need not fit",
    )  # fmt: skip


def command_bundle(a: argparse.Namespace) -> int:
    """Write a folder with each neuron's FFN weights (or a block's) in one piece, so that parts can be read alone."""
    from ..prefetch.bundle import open_bundle, write_bundle

    model = load_model(a)
    folder = write_bundle(model, a.folder, a.group, a.stored)
    bundle = open_bundle(folder)
    size = sum(file.stat().st_size for file in folder.iterdir())
    about = {"folder": show(folder), "group": a.group, "blocks": bundle.blocks, "neuron_bytes": bundle.neuron_bytes}
    in_words = f"{show(folder)}: {bundle.blocks} blocks of {a.group} neurons per layer, {bundle.neuron_bytes:,} bytes per neuron"
    print(json.dumps(about | {"bytes": size}) if a.json else f"{in_words} ({a.stored}), {size:,} bytes in all")
    return 0


def prefetch_real(a: argparse.Namespace) -> int:
    """Run a text through the model of a bundle, whose FFN weights stay on disk: a row per plan of fetching."""
    from ..bench.turns import environment
    from ..study import disk
    from ..tables import check_ending, json_rows, save_rows

    if a.output:
        check_ending(a.output)
    if a.model != "default" or a.figure or len(a.sparsity or [0.5]) != 1:
        raise MinillmError("prefetch real runs the bundle's model, expected no --model, no --figure and one --sparsity")
    if a.memory and (a.thresholds or a.calibration or "hot" in (a.keepers or [])):
        raise MinillmError("--memory: the whole model is never there, expected no --thresholds, --calibration or hot")
    (a.sparsity,) = a.sparsity or [0.5]
    loaded = load_real(a)
    reading = reading_of(a, loaded.model)
    if loaded.whole is None:
        plans, frequencies = plans_without_model(a, loaded.bundle), None
    else:
        plans, frequencies = plans_with_model(a, loaded.bundle, loaded.whole, reading)
    rows = real_rows(a, loaded, reading, plans, frequencies)
    if a.output:
        save_rows(a.output, rows)
    if a.json:
        about = about_bundle(loaded) | {"memory_limit_mb": a.memory, "loaded_whole": loaded.why_not or True}
        about |= {"environment": environment(a.threads)}
        print(f'{{"bundle": {json.dumps(about)},\n"rows": {json_rows(rows)}}}')
        return 0
    print_real(a, loaded, reading, rows)
    if (agree := disk.counters_agree(rows)) is not None:
        say(f"bytes: the system's own count is {'the same' if agree else 'DIFFERENT, see --json'} in every row")
    if any((row.get("cached") or 0) > 0.01 for row in rows):
        say("minillm: note: not cold, as this file system keeps its pages in memory: no time here is a disk's")
    return 0


# ---- measuring -------------------------------------------------------------------------------------------------------


def load_real(a: argparse.Namespace) -> Loaded:
    """Open the folder; under --memory, limit the memory first and see whether the whole model can be loaded."""
    from ..prefetch.bundle import open_bundle, resident_llama, whole_llama
    from ..prefetch.system import limit_memory

    bundle = open_bundle(a.folder or a.bundle)
    whole, why_not = None, ""
    if a.memory:
        limit_memory(a.memory)
        try:
            whole_llama(bundle, a.dtype)
        except (MemoryError, MinillmError) as problem:
            why_not = str(problem) or "not enough memory"
    else:
        whole = whole_llama(bundle, a.dtype)
    return Loaded(bundle, resident_llama(bundle, a.dtype), whole, why_not)


def reading_of(a: argparse.Namespace, model: Llama) -> Reading:
    """The text of --text, to be scored, or else the prompt, to be continued."""
    from ..study.passes import Reading, cut_after
    from ..transformer.texts import Run, runs

    if a.text:
        _, test = two_texts(a.text, a.calibration)
        return Reading(cut_after(runs(model, test, "documents", a.context), a.tokens or REAL_TOKENS))
    ids = prompt_ids(model, a.prompt) if model.has_tokenizer else [model.config.bos_token_id or 0]
    return Reading([Run(ids, len(ids), 0, 0)], new_tokens(a, model, ids, 40))


def plans_without_model(a: argparse.Namespace, bundle: Bundle) -> list[DiskPlan]:
    """Plans of fetching under --memory: everything, and predictors that need only their file."""
    import numpy as np

    from ..predictors.baselines import Chance
    from ..predictors.files import load_predictor
    from ..predictors.protocol import check_fits
    from ..prefetch.bundle import resident_llama
    from ..study import disk

    config, plans = bundle.config, [disk.EVERYTHING]
    for name in a.predictor or []:
        predictor: Predictor
        if name == "chance":  # uniform numbers, whose quantiles are known
            predictor = Chance((config.num_hidden_layers, config.hidden_size, config.intermediate_size), a.seed)
            predictor.cutoffs = np.full(config.num_hidden_layers, a.sparsity)
        elif not Path(name).is_file():
            raise MinillmError(f"--memory leaves no room to make {name}, expected a predictor's file, or chance")
        else:
            check_fits(predictor := load_predictor(name), resident_llama(bundle))
        plans.append(disk.disk_plan_of(predictor, bundle, 1 - a.sparsity))
    return plans


def plans_with_model(
    a: argparse.Namespace, bundle: Bundle, whole: Llama, reading: Reading
) -> tuple[list[DiskPlan], np.ndarray | None]:
    """Plans of fetching: everything, the oracle, predictors; and each block's frequency where ``hot`` needs it."""
    from ..predictors.cutoffs import fit_cutoffs
    from ..predictors.protocol import check_fits
    from ..predictors.workshop import Workshop
    from ..sparsity.calibrate import calibrate
    from ..study import disk
    from ..study.prediction import TRAINING_SHARE
    from ..transformer.texts import as_documents, default_context, first_tokens, runs, split_text

    context, share = a.context or default_context(whole), 1 - a.sparsity
    text = two_texts(a.text, a.calibration)[0] if a.text else text_or_embedded(a.calibration, "calibration")
    known = first_tokens(whole, as_documents(text), flags.DEMO_CALIBRATION, context)
    thresholds = given_thresholds(a) or calibrate(whole, known, "mid", a.sparsity, context, "neuron")
    training, held = split_text(known, TRAINING_SHARE)
    ffn = disk.oracle_ffn(whole, bundle, thresholds, share)
    plans = [disk.EVERYTHING, disk.oracle(whole, bundle, ffn, reading)]
    workshop = Workshop(whole, thresholds, training, held, context, a.rank, a.seed)
    for name in a.predictor or ["shadow-4"]:
        check_fits(predictor := workshop.make(name), whole)
        if predictor.cutoffs is None and bundle.group == 1:
            fit_cutoffs(whole, predictor, thresholds, held, share, context)
        plans.append(disk.disk_plan_of(predictor, bundle, share))
    if "hot" not in (a.keepers or []):
        return plans, None
    return plans, disk.block_frequencies(whole, bundle, ffn, runs(whole, known, "documents", context))


def real_rows(
    a: argparse.Namespace, loaded: Loaded, reading: Reading, plans: list[DiskPlan], frequencies: np.ndarray | None
) -> list[dict[str, Any]]:
    """Rows: the dense model where it is in memory, then each plan without and with buffers, not ahead and ahead."""
    from ..study import disk

    model, bundle = loaded.model, loaded.bundle
    rows, resident = [], None

    def keep(row: dict[str, Any], result: Result) -> None:
        if reading.new:
            row["text"] = model.tokenizer.decode(result.guesses[0]) if model.has_tokenizer else None
        rows.append(row)

    if loaded.whole:
        row, resident = disk.resident_row(loaded.whole, reading)
        keep(row, resident)
    buffers: list[disk.DiskBuffer | None] = [None]
    for share in a.capacity or [0, 0.5]:
        if share:
            count = round(share * bundle.blocks)
            buffers += [disk.DiskBuffer(name, count, frequencies, a.seed) for name in a.keepers or ["lru"]]
    for plan in plans:
        for buffered in buffers if plan is not disk.EVERYTHING else [None]:
            if buffered and buffered.eviction == "belady" and loaded.whole and plan.trace is None:
                continue  # only the oracle knows the future
            for ahead in (False, True):
                keep(*disk.fetched_row(model, bundle, reading, plan._replace(ahead=ahead), buffered, resident))
    return rows


# ---- printing --------------------------------------------------------------------------------------------------------


def about_bundle(loaded: Loaded) -> dict[str, Any]:
    """What the folder holds: the layout, the type of the weights, and the bytes of all FFN weights."""
    bundle = loaded.bundle
    about = {"group": bundle.group, "blocks": bundle.blocks, "stored": bundle.dtype, "layers": len(bundle.layers)}
    return about | {"bytes": sum(info.nbytes for info in bundle.layers)}


def print_real(a: argparse.Namespace, loaded: Loaded, reading: Reading, rows: list[dict[str, Any]]) -> None:
    """The rows as a table, and each different continuation of the prompt once."""
    from ..study import disk
    from ..tables import text_table

    bundle = loaded.bundle
    kind = f"{len(bundle.layers)} layers of {bundle.blocks} blocks of {bundle.group} neurons, {bundle.dtype}"
    print(wrapped(f"{bundle.folder}: {kind}, {about_bundle(loaded)['bytes'] / 1e6:,.1f} MB of FFN weights"))
    if a.memory:
        print(wrapped(f"At most {a.memory} MB more than Python itself; loaded whole: {loaded.why_not or 'it fits'}"))
    print("\n" + text_table(disk.as_shown(rows), disk.DISK_COLUMNS) + "\n")
    done = f"a prompt of {len(reading.texts[0].ids)} continued greedily" if reading.new else "scored"
    print(wrapped(f"{rows[-1]['tokens']:,} tokens, one at a time, {done}. {REAL_WORDS}"))
    first_way = {row["text"]: row["way"] for row in reversed(rows) if row.get("text")}
    for text, way in reversed(first_way.items()):
        print(wrapped(" ".join(text.split()), f"  {way:<12}"))
