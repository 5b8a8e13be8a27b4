"""TODO."""

import argparse
import json
import textwrap
from pathlib import Path

from ..errors import MinillmError
from .flags import (
    DEMO_CALIBRATION,
    DEMO_PREDICTION,
    load_model,
    mid_thresholds,
    new_tokens,
    prompt_ids,
    say,
    text_or_embedded,
    two_texts,
    wrapped,
    write_figure,
)

PREFETCH_TOKENS = 1_000  # replayed through a buffer
REAL_TOKENS = 200  # scored by `prefetch real`, one at a time and once per row
REAL_WORDS = (
    "ahead: the next layer's bundles are announced to the system one layer before. keeps: bundles per layer that a "
    "buffer keeps. cached: the largest share of a file that was in the system's cache before any token (0: cold). FFN, "
    "reading: milliseconds per token, in all FFNs and of these in reading. kB: read per token, and what really came "
    "from the disk. reads: share of all FFN weights. agreement: share of the likeliest next tokens that are those of "
    "the dense model in memory."
)


def command_bundle(a: argparse.Namespace) -> int:
    """Write a folder whose FFN weights lie neuron by neuron (or block by block), so that parts can be read alone."""
    from ..prefetch.bundle import open_bundle, write_bundle

    model = load_model(a)
    folder = write_bundle(model, a.folder, a.group, a.stored)
    bundle = open_bundle(folder)
    size = sum(file.stat().st_size for file in folder.iterdir())
    about = {"folder": str(folder), "group": a.group, "blocks": bundle.blocks, "neuron_bytes": bundle.neuron_bytes}
    said = f"{folder}: {bundle.blocks} blocks of {a.group} neurons per layer, {bundle.neuron_bytes:,} bytes per neuron"
    print(json.dumps(about | {"bytes": size}) if a.json else f"{said} ({a.stored}), {size:,} bytes in all")
    return 0


def command_prefetch(a: argparse.Namespace) -> int:
    """A small fast memory for neurons: follow one text through it (simulate), compare keepers and sizes (replay)...

    table: what predictors are worth with it. blocks: what whole blocks of neurons gain in speed and cost in perplexity.
    real: run the model of a bundle folder (of `minillm bundle`) whose FFN weights stay on disk.
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
    calibration = first_tokens(model, calibration, DEMO_CALIBRATION, context)
    test = first_tokens(model, test, a.tokens or (DEMO_PREDICTION if a.what == "blocks" else PREFETCH_TOKENS), context)
    if a.what == "blocks":
        return prefetch_blocks(a, model, calibration, test, context)
    if a.sparsity and len(a.sparsity) != 1:
        raise MinillmError(f"--sparsity has {len(a.sparsity)} values, of which only prefetch blocks takes several")
    (a.sparsity,) = a.sparsity or [0.5]
    thresholds = mid_thresholds(a) or calibrate(model, calibration, "mid", a.sparsity, context, "neuron")
    if a.what == "simulate":
        return prefetch_simulate(a, model, thresholds)
    return (prefetch_table if a.what == "table" else prefetch_replay)(a, model, thresholds, calibration, test, context)


def prefetch_simulate(a: argparse.Namespace, model, thresholds) -> int:
    """The events of a short generation, one line each, and what they cost on a device."""
    from ..predictors.select import sparse_ffn
    from ..prefetch.buffer import PrefetchBuffer
    from ..prefetch.clock import simulate, work_of
    from ..prefetch.record import Recorder
    from ..prefetch.traffic import EVENT_COLUMNS, event_rows
    from ..tables import text_table
    from ..transformer.generation import generate
    from ..transformer.model import shape_of

    ffn = sparse_ffn(model, thresholds)
    recorder, ids = Recorder.of(model), prompt_ids(model, a.prompt)
    steps = list(generate(model, ids, new_tokens(a, model, ids, 2), ffn=ffn, tap=recorder))
    layers, _, neurons = shape_of(model)
    if a.keeper not in ("lru", "lfu") and not a.keeper.startswith("window-"):
        raise MinillmError(f"keeper {a.keeper!r} needs a text to choose from, expected lru, lfu or window-K")
    capacity = round((a.capacity or [0.5])[-1] * neurons)
    buffer = PrefetchBuffer(layers, neurons, capacity, a.keeper)
    buffer.follow(recorder.needed)
    buffer.run()
    traffic, rows = buffer.traffic(), event_rows(buffer.events)
    timeline = simulate(traffic, a.device, work_of(model))
    figures = traffic.figures(work_of(model).neuron_bytes) | timeline.figures()
    if a.figure:
        from ..show.results_buffer import gantt

        write_figure(gantt(timeline.of_token(len(recorder.needed) - 1)), a.figure)
    if a.json:
        print(json.dumps({"events": rows, "figures": figures, "capacity": capacity, "keeper": a.keeper}))
        return 0
    for row in rows:
        row["neurons"] = textwrap.shorten(row["neurons"], 60, placeholder=" ...")
    print(text_table(rows, EVENT_COLUMNS))
    text = a.prompt + "".join(step.text for step in steps)
    print("\n" + wrapped(f"{len(recorder.needed)} tokens through {text!r}; {capacity} neurons per layer, {a.keeper}."))
    print("\n".join(f"{key:<24}{value:,.6g}" for key, value in figures.items()))
    return 0


def prefetch_real(a: argparse.Namespace) -> int:
    """A text through the model of a bundle, its FFN weights on disk: a row per way of fetching (study/disk.py)."""
    from ..bench.turns import environment
    from ..prefetch.bundle import open_bundle, resident_llama, whole_llama
    from ..prefetch.system import limit_memory
    from ..study import disk
    from ..tables import check_ending, json_rows, save_rows, text_table
    from ..transformer.texts import Run, default_context, runs

    if a.output:
        check_ending(a.output)
    if a.model != "default" or a.figure or len(a.sparsity or [0.5]) != 1:
        raise MinillmError("prefetch real runs the bundle's model, expected no --model, no --figure and one --sparsity")
    if a.memory and (a.thresholds or a.calibration or "hot" in (a.keepers or [])):
        raise MinillmError("--memory: the whole model is never there, expected no --thresholds, --calibration or hot")
    bundle = open_bundle(a.folder or a.bundle)
    (sparsity,) = a.sparsity or [0.5]
    whole, does_not_fit = None, ""
    if a.memory:
        limit_memory(a.memory)
        try:
            whole_llama(bundle, a.dtype)
        except (MemoryError, MinillmError) as problem:
            does_not_fit = str(problem) or "not enough memory"
    else:
        whole = whole_llama(bundle, a.dtype)
    model = resident_llama(bundle, a.dtype)
    context = a.context or default_context(model)
    if a.text:
        _, test = two_texts(a.text, a.calibration)
        texts, new = disk.cut_after(runs(model, test, "documents", context), a.tokens or REAL_TOKENS), 0
    else:
        ids = prompt_ids(model, a.prompt) if model.has_tokenizer else [model.config.bos_token_id or 0]
        texts, new = [Run(ids, len(ids), 0, 0)], new_tokens(a, model, ids, 40)
    ways, frequencies = real_ways(a, bundle, whole, texts, new, sparsity, context)

    rows, resident = [], None
    if whole:
        row, resident = disk.resident_row(whole, texts, new)
        rows.append(row)
        result = resident
    buffers = [(keeper, share) for share in a.capacity or [0, 0.5] if share for keeper in a.keepers or ["lru"]]
    for way in ways:
        for keeper, share in [(None, 0), *(buffers if way is not disk.EVERYTHING else [])]:
            if keeper == "belady" and whole and way.trace is None:
                continue  # the future is the oracle's alone
            for ahead in (False, True):
                row, result = disk.fetched_row(
                    model, bundle, texts, new, way, ahead, keeper=keeper, capacity=round(share * bundle.blocks),
                    hot_frequencies=frequencies, seed=a.seed, resident=resident,
                )  # fmt: skip
                rows.append(row)
                if new:
                    row["text"] = model.tokenizer.decode(result.guesses[0]) if model.has_tokenizer else None
    if whole and new:
        rows[0]["text"] = model.tokenizer.decode(resident.guesses[0]) if model.has_tokenizer else None
    if a.output:
        save_rows(a.output, rows)
    about = {"group": bundle.group, "blocks": bundle.blocks, "stored": bundle.dtype, "layers": len(bundle.layers)}
    about |= {"bytes": sum(info.nbytes for info in bundle.layers), "memory_limit_mb": a.memory}
    about |= {"loaded_whole": does_not_fit or True, "environment": environment(a.threads)}
    if a.json:
        print(f'{{"bundle": {json.dumps(about)},\n"rows": {json_rows(rows)}}}')
        return 0
    kind = f"{len(bundle.layers)} layers of {bundle.blocks} blocks of {bundle.group} neurons, {bundle.dtype}"
    print(wrapped(f"{bundle.folder}: {kind}, {about['bytes'] / 1e6:,.1f} MB of FFN weights"))
    if a.memory:
        print(wrapped(f"At most {a.memory} MB more than Python itself; loaded whole: {does_not_fit or 'it fits'}"))
    print("\n" + text_table(disk.as_shown(rows), disk.ROW_COLUMNS) + "\n")
    done = f"a prompt of {len(texts[0].ids)} continued greedily" if new else "scored"
    print(wrapped(f"{rows[-1]['tokens']:,} tokens, each alone, {done}. {REAL_WORDS}"))
    if (agree := disk.counters_agree(rows)) is not None:
        say(f"bytes: the system's own count is {'the same' if agree else 'ANOTHER ONE, see --json'} in every row")
    stories = {row["text"]: row["way"] for row in reversed(rows) if row.get("text")}
    for text, name in reversed(stories.items()):
        print(wrapped(" ".join(text.split()), f"  {name:<12}"))
    if any((row.get("cached") or 0) > 0.01 for row in rows):
        say("minillm: note: not cold, as this file system keeps its pages in memory: no time here is a disk's")
    return 0


def real_ways(a: argparse.Namespace, bundle, whole, texts, new: int, sparsity: float, context: int):
    """The ways of fetching that were asked for, and how often each block is wanted (None without the whole model)."""
    import numpy as np

    from ..predictors.baselines import Chance
    from ..predictors.cutoffs import fit_cutoffs
    from ..predictors.files import load_predictor
    from ..predictors.protocol import check_fits
    from ..predictors.workshop import Workshop
    from ..prefetch.bundle import resident_llama
    from ..sparsity.calibrate import calibrate
    from ..study import disk
    from ..study.prediction import TRAINING_SHARE
    from ..transformer.texts import as_documents, first_tokens, runs, split_text

    config = bundle.config
    if whole is None:
        ways = [disk.EVERYTHING]
        for name in a.predictor or []:
            if name == "chance":  # uniform numbers, whose quantiles are known
                predictor = Chance((config.num_hidden_layers, config.hidden_size, config.intermediate_size), a.seed)
                predictor.cutoffs = np.full(config.num_hidden_layers, sparsity)
            elif not Path(name).is_file():
                raise MinillmError(f"--memory leaves no room to make {name}, expected a predictor's file, or chance")
            else:
                check_fits(predictor := load_predictor(name), resident_llama(bundle))
            ways.append(disk.way_of(predictor, bundle, 1 - sparsity))
        return ways, None
    known = two_texts(a.text, a.calibration)[0] if a.text else text_or_embedded(a.calibration, "calibration")
    known = first_tokens(whole, as_documents(known), DEMO_CALIBRATION, context)
    thresholds = mid_thresholds(a) or calibrate(whole, known, "mid", sparsity, context, "neuron")
    training, held = split_text(known, TRAINING_SHARE)
    ffn = disk.oracle_ffn(whole, bundle, thresholds, 1 - sparsity)
    ways = [disk.EVERYTHING, disk.oracle(whole, bundle, ffn, texts, new)]
    workshop = Workshop(whole, thresholds, training, held, context, a.rank, a.seed)
    for name in a.predictor or ["shadow-4"]:
        check_fits(predictor := workshop.make(name), whole)
        if predictor.cutoffs is None and bundle.group == 1:
            fit_cutoffs(whole, predictor, thresholds, held, 1 - sparsity, context)
        ways.append(disk.way_of(predictor, bundle, 1 - sparsity))
    counted = "hot" in (a.keepers or [])
    pieces = runs(whole, known, "documents", context)
    return ways, disk.block_frequencies(whole, bundle, ffn, pieces) if counted else None


def known_neurons(a: argparse.Namespace, model, thresholds, calibration, context: int, wanted):
    """The ways to know a token's neurons (study/buffers.py) that are asked for, and each neuron's frequency."""
    from ..predictors.select import sparse_ffn
    from ..predictors.workshop import Workshop
    from ..prefetch.record import frequencies, record
    from ..study.buffers import ways_of
    from ..study.prediction import TRAINING_SHARE
    from ..transformer.texts import runs, split_text

    training, held = split_text(calibration, TRAINING_SHARE)
    ways = ways_of(Workshop(model, thresholds, training, held, context, a.rank, a.seed), wanted, a.sparsity)
    ffn = sparse_ffn(model, thresholds)
    return ways, frequencies(record(model, ffn, runs(model, calibration, "documents", context)).needed)


def prefetch_replay(a: argparse.Namespace, model, thresholds, calibration, test, context: int) -> int:
    """Keepers times capacities times predictors on one recorded text."""
    from ..prefetch.replay import KEEPERS, ROW_COLUMNS, SHARES
    from ..study.buffers import prefetch_rows, when_it_matters
    from ..tables import check_ending, json_rows, keys_as_headings, save_rows, text_table

    if a.output:
        check_ending(a.output)
    ways, often = known_neurons(a, model, thresholds, calibration, context, a.predictor or [])
    rows = list(
        prefetch_rows(
            model, thresholds, test, ways, shares=a.capacity or SHARES, keepers=a.keepers or KEEPERS, device=a.device,
            hot_frequencies=often, miss=a.miss, context=context, seed=a.seed,
        )
    )  # fmt: skip
    if a.output:
        save_rows(a.output, rows)
    if a.figure:
        from ..show.canvas import new_axes
        from ..show.results_buffer import bytes_by_capacity, hit_rate_by_capacity

        hits, fetched = new_axes(1, 2)
        last = [row for row in rows if row["predictor"] == rows[-1]["predictor"]]  # more curves than these hide another
        hit_rate_by_capacity(last, ax=hits).get_legend().remove()
        bytes_by_capacity(last, ax=fetched)
        write_figure(hits.figure, a.figure)
    if a.json:
        print(json_rows(rows))
        return 0
    columns = keys_as_headings({"predictor": "", "role": "", "perplexity": ".3f"}) | ROW_COLUMNS
    print(text_table(rows, columns))
    about = (
        f"{len(test)} documents, dense perplexity {rows[0]['dense_perplexity']:.3f}, {a.device}, misses: {a.miss}. "
        "capacity: neurons per layer. lru, belady, random: the hit rate of these keepers on the same requests, and "
        "their bytes and stall."
    )
    print("\n" + wrapped(about))
    for sentence in when_it_matters(rows):
        print(wrapped(f"{sentence}."))
    return 0


def prefetch_table(a: argparse.Namespace, model, thresholds, calibration, test, context: int) -> int:
    """What a buffer is worth with each way to know the neurons: hits, bytes, stall and perplexity in one table."""
    from ..prefetch.replay import SHARES
    from ..study.buffers import TABLE_COLUMNS, TABLE_PREDICTORS, buffer_rows, when_it_matters
    from ..tables import check_ending, json_rows, save_rows, text_table

    if a.output:
        check_ending(a.output)
    wanted = a.predictor or TABLE_PREDICTORS
    ways, often = known_neurons(a, model, thresholds, calibration, context, wanted)
    rows = []
    for row in buffer_rows(
        model, thresholds, test, ways, shares=a.capacity or SHARES, device=a.device, dropping=ways[1:2],
        hot_frequencies=often, context=context, seed=a.seed,
    ):  # fmt: skip
        rows.append(row)
        say(f"{row['way']}, misses {row['misses']}, {row['capacity']} neurons: {row['kB']:,.0f} kB per token")
        if a.output:
            save_rows(a.output, rows)
    sentences = when_it_matters(rows)
    if a.json:
        print(f'{{"rows": {json_rows(rows)},\n"sentences": {json.dumps(sentences)}}}')
        return 0
    print(text_table(rows, TABLE_COLUMNS))
    about = (
        f"{model.name}, {rows[0]['tokens']:,} tokens, dense perplexity {rows[0]['dense_perplexity']:.3f}; {a.device}, "
        "simulated. capacity: neurons kept per layer; fast kB: their bytes and the predictor's own tables. kB: fetched "
        "per token, in the bytes that the checkpoint stores. lru, belady, random: these keepers on the same requests "
        "without any guess: hit rate, kB, milliseconds of stall. The mask of mid is told for nothing when the layer is "
        "reached. Misses that are dropped leave the output out of step, so their perplexity is measured."
    )
    print("\n" + wrapped(about))
    for sentence in sentences:
        print(wrapped(f"{sentence}."))
    return 0


def prefetch_blocks(a: argparse.Namespace, model, calibration, test, context: int) -> int:
    """Speed at a large shape against perplexity of this model, for single neurons and blocks, and which to choose."""
    from tqdm.auto import tqdm

    from ..study import blocks
    from ..tables import check_ending, json_rows, save_rows, text_table

    if a.output:
        check_ending(a.output)
    speeds, rows = blocks.read_speeds(a.speed) if a.speed else None, []
    if not speeds:
        say("speed: the table in prefetch/kernels.py; --speed takes what `minillm bench ffn --json` measures here")
    how = {"groups": a.groups or blocks.GROUPS, "sparsities": a.sparsity or blocks.SPARSITIES}
    making = blocks.joint_rows(model, calibration, test, speeds, **how, context=context, seed=a.seed)
    for row in tqdm(making, desc="blocks", unit="row", leave=False, disable=None):
        rows.append(row)
        if a.output:
            save_rows(a.output, rows)
    if a.figure:
        points = blocks.cheaper_points(rows)
        if not points:
            raise MinillmError(f"{a.speed}: holds no speed of these groups and sparsities, expected one to draw")
        from ..show.canvas import new_axes
        from ..show.results_cuts import speed_against_perplexity

        panels = new_axes(1, 2)
        whole = f"a whole token (the FFNs hold {points[0]['ffn_share']:.0%} of its bytes)"
        for ax, token, what in zip(panels, (False, True), ("the FFN alone", whole), strict=True):
            speed_against_perplexity(points, token, ax=ax)
            ax.title.set_text(f"{model.name}: {what}")  # in the letters that the figure's style has
        panels[0].get_legend().remove()
        write_figure(panels[0].figure, a.figure)
    sentences = blocks.which_point(rows)
    if a.json:
        print(f'{{"rows": {json_rows(rows)},\n"sentences": {json.dumps(sentences)}}}')
        return 0
    print(text_table(blocks.joint_table(rows), blocks.JOINT_COLUMNS))
    about = (
        f"Perplexity: {model.name}, dense {rows[0]['dense_perplexity']:.3f}; an oracle keeps each token's best blocks, "
        "so it is a bound. clustered: neurons reordered so that what matters together lies together; in place: what a "
        f"neuron counts as when it is left out. Speed: one FFN of {rows[0]['shape']}, {rows[0]['speed_from']}; whole "
        f"token: where the FFNs hold {rows[0]['ffn_share']:.0%} of the bytes that a token reads."
    )
    print("\n" + wrapped(about))
    for sentence in sentences:
        print(wrapped(f"{sentence}."))
    return 0
