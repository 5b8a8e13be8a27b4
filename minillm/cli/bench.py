"""The command that measures speed: whole models, sparse FFNs in memory or on disk, whole tokens with a sparse FFN."""

from __future__ import annotations

import argparse
import json

from ..errors import MinillmError
from . import flags
from .shared import in_lines, say, two_texts

PRESETS = ("260K", "15M", "110M")  # of bench/shapes.py, which imports NumPy; a test holds the two together

# Tokens of the trained models of ``bench token``: for the predictors' tables, for grouping into blocks, and scored.
TOKEN_CALIBRATION, TOKEN_GROUPING, TOKEN_TEST = 6_000, 500, 4_000


def add(commands: flags.Commands) -> None:
    """Add the command of this file, with its actions."""
    bench = flags.actions(
        commands, "bench", "Measure speed in turns, as ratios to a limit and a rival in the same run."
    )
    rounds = flags.flag("--rounds", type=flags.positive, default=7, help="of measuring all in turns (default: 7)")
    own = rounds, flags.threads("BLAS threads (default: 1)")
    model = flags.flag("--model", "-m", help="measure this model (default: random weights of --shape)")
    shape = flags.flag("--shape", choices=PRESETS, default="15M", help="of random weights (default: 15M)")
    for name, run in (("decode", bench_decode), ("perplexity", bench_perplexity), ("start", bench_start)):
        flags.command(bench, name, run, model, shape, *own, example=f"minillm bench {name} --shape 260K --rounds 3")
    flags.command(bench, "train", bench_train, flags.model(), *own, example="minillm bench train --rounds 3")
    flags.command(bench, "linear", bench_linear, *own, example="minillm bench linear --rounds 3")
    ffn = flags.command(
        bench, "ffn", bench_ffn, *own, *shares_and_groups("0.3,0.5,0.7,0.9,0.95", "4,8,16,32,128"),
        example="minillm bench ffn --shape 15M --sparsity 0.5 --rounds 3",
    )  # fmt: skip
    disk = flags.command(
        bench, "disk", bench_disk, *own, *shares_and_groups("0.5,0.9", "32,1"),
        example="minillm bench disk --shape 15M --sparsity 0.5 --rounds 3",
    )  # fmt: skip
    about = f"of random weights: {', '.join(PRESETS)}, 1B, or two sizes D F, as in 2048 5632 (default: 1B)"
    for action in (ffn, disk):
        action.add_argument("--shape", nargs="+", metavar="SHAPE", default=["1B"], help=about)
    add_token(bench, *own)
    disk.add_argument("--layers", type=flags.positive, default=4, help="in the folder that is written (default: 4)")


def add_token(bench: flags.Commands, rounds: flags.Parser, threads: flags.Parser) -> None:
    """Add ``bench token``, which measures a random model and scores trained ones."""
    quality = flags.flag(
        "--quality", nargs="+", metavar="MODEL", default=("default",),
        help="trained models: what the same choice costs there, in perplexity (default: the embedded model)",
    )  # fmt: skip
    flags.command(
        bench, "token", bench_token, rounds, threads, *shares_and_groups("0.5,0.75,0.9", "8,32"), quality,
        flags.flag("--shape", choices=PRESETS, default="110M", help="of random weights (default: 110M)"),
        flags.text("the text that the trained models read and are scored on"),
        flags.tokens(f"scored for each row and trained model (default: {TOKEN_TEST:,})"),
        example="minillm bench token --shape 260K --rounds 3 --sparsity 0.5 --groups 32 --tokens 500",
    )  # fmt: skip


def shares_and_groups(sparsities: str, groups: str) -> tuple[flags.Parser, flags.Parser]:
    """--sparsity and --groups of the sparse FFNs, with their defaults."""
    about = f"shares left out, with commas (default: {sparsities})"
    sparsity = flags.flag("--sparsity", type=flags.shares, metavar="SHARES", default=sparsities, help=about)
    about = f"neurons per block, with commas (default: {groups})"
    return sparsity, flags.flag("--groups", type=flags.wholes, default=groups, help=about)


# ---- whole models ----------------------------------------------------------------------------------------------------


def bench_decode(a: argparse.Namespace) -> int:
    """Measure tokens per second of generating, beside reading the same weights and transformers where installed."""
    return bench_model(a)


def bench_perplexity(a: argparse.Namespace) -> int:
    """Measure the scoring of a text, beside transformers where it is installed."""
    return bench_model(a)


def bench_start(a: argparse.Namespace) -> int:
    """Measure whole processes from nothing to the first new token, beside `import numpy`."""
    return bench_model(a)


def bench_model(a: argparse.Namespace) -> int:
    """Measure what the action says, of a model or of random weights."""
    from ..bench import model as bench
    from ..loading.hub import resolve

    result = bench.bench(a.what, a.shape, resolve(a.model) if a.model else None, a.rounds, a.threads or 1)
    print(json.dumps(result, indent=1) if a.json else in_lines(bench.model_text(result)))
    return 0


def bench_train(a: argparse.Namespace) -> int:
    """Measure a training step (forward, backward, AdamW) of a model, beside torch where it is installed."""
    from ..bench.model import model_text
    from ..bench.train import bench_train
    from ..loading.hub import resolve

    result = bench_train(resolve(a.model), a.rounds, a.threads or 1)
    print(json.dumps(result, indent=1) if a.json else in_lines(model_text(result)))
    return 0


def bench_linear(a: argparse.Namespace) -> int:
    """Measure one row times a weight matrix in every form, and show which one is taken on this machine."""
    from ..bench import linear

    result = linear.bench_linear(rounds=a.rounds, threads=a.threads or 1)
    print(json.dumps(result, indent=1) if a.json else in_lines(linear.linear_text(result)))
    return 0


def bench_token(a: argparse.Namespace) -> int:
    """Measure whole tokens whose FFN is sparse, the choice of the neurons included, and what the choice costs."""
    import minillm

    from ..bench import token
    from ..study.blocks import BlockSettings
    from ..transformer.texts import Sample, as_documents, default_context, first_tokens

    models = [minillm.load(name) for name in a.quality]  # before minutes of measuring: a name may be wrong
    calibration, test = map(as_documents, two_texts(a.text))
    result = token.bench_token(a.shape, a.sparsity, a.groups, a.rounds, a.threads or 1)
    for model in models:
        say(f"perplexity of {model.name}: grouping neurons into blocks, and scoring")
        context = default_context(model)
        known = first_tokens(model, calibration, TOKEN_CALIBRATION, context)
        sample = Sample(first_tokens(model, test, a.tokens or TOKEN_TEST, context), "documents", context)
        token.add_quality(result, model, known, sample, BlockSettings(a.groups, TOKEN_GROUPING))
    print(json.dumps(result, indent=1) if a.json else in_lines(token.token_text(result)))
    return 0


# ---- sparse FFNs -----------------------------------------------------------------------------------------------------


def bench_ffn(a: argparse.Namespace) -> int:
    """Measure FFNs that compute a share of their neurons against one that computes all of them, in memory."""
    from ..bench import sparse

    result = sparse.bench_ffn(
        sparse_shape(a.shape), rounds=a.rounds, threads=a.threads or 1, sparsities=a.sparsity, groups=a.groups
    )
    print(json.dumps(result, indent=1) if a.json else in_lines(sparse.ffn_text(result)))
    return 0


def bench_disk(a: argparse.Namespace) -> int:
    """Measure the same read from a folder of bundles on a disk whose cache is emptied before every turn."""
    from ..bench import disk

    given = {"sparsities": a.sparsity, "groups": a.groups, "layers": a.layers}
    result = disk.bench_disk(sparse_shape(a.shape), rounds=a.rounds, threads=a.threads or 1, **given)
    print(json.dumps(result, indent=1) if a.json else in_lines(disk.disk_text(result)))
    return 0


def sparse_shape(words: list[str]) -> str | tuple[int, int]:
    """--shape of bench ffn and disk: a preset's name, or the sizes D and F."""
    if len(words) == 1 and not words[0].isdecimal():
        return words[0]
    if len(words) != 2 or not all(word.isdecimal() for word in words):
        raise MinillmError(f"--shape is {' '.join(words)}, expected a name, or a hidden and an intermediate size")
    return int(words[0]), int(words[1])
