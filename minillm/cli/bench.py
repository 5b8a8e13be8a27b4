"""The command that measures speed: whole models in memory, and sparse FFNs in memory or on disk."""

from __future__ import annotations

import argparse
import json

from ..errors import MinillmError
from . import flags


def add(commands: flags.Commands) -> None:
    """Add the command of this file."""
    bench = flags.command(
        commands, "bench", command_bench,
        flags.flag("--model", "-m", help="decode, perplexity, start: measure this model, not a random one"),
        flags.flag("--sparsity", type=flags.shares, help="ffn, disk: shares left out, with commas"),
        flags.threads("BLAS threads (default: 1)"),
    )  # fmt: skip
    bench.add_argument("what", choices=("decode", "perplexity", "start", "ffn", "disk"))
    bench.add_argument(
        "--shape", nargs="+", metavar="SHAPE",
        help="of random weights: 260K, 15M (default) or 110M; ffn, disk: also 1B (default), or D F, as in 2048 5632",
    )  # fmt: skip
    bench.add_argument("--groups", type=flags.wholes, help="ffn, disk: neurons per block, with commas")
    bench.add_argument("--layers", type=flags.positive, help="disk: layers in the folder that is written (default: 4)")
    bench.add_argument("--rounds", type=flags.positive, default=7, help="of measuring all in turns (default: 7)")


def command_bench(a: argparse.Namespace) -> int:
    """Measure speed, in turns with a limit and a rival: decode, perplexity, start, and sparse FFNs (ffn, disk).

    ffn: a share of the neurons against all of them, in memory. disk: the same, read from a folder of bundles.
    """
    from ..bench import disk, sparse
    from ..bench import model as bench
    from ..bench.shapes import SHAPES
    from ..loading.hub import resolve

    flags = {"sparsity": a.sparsity, "groups": a.groups, "layers": a.layers}
    taken = {"ffn": ("sparsity", "groups"), "disk": ("sparsity", "groups", "layers")}.get(a.what, ())
    if unused := [f"--{name}" for name, value in flags.items() if value and name not in taken]:
        raise MinillmError(f"bench {a.what} has no use for {unused[0]}")
    if a.what in ("ffn", "disk"):
        if a.model:
            raise MinillmError(f"bench {a.what} measures random weights of a --shape, expected no --model")
        given = {"sparsities": a.sparsity, "groups": a.groups, "layers": a.layers}
        given = {name: value for name, value in given.items() if value}
        in_memory = a.what == "ffn"
        measure, as_text = (sparse.bench_ffn, sparse.ffn_text) if in_memory else (disk.bench_disk, disk.disk_text)
        result = measure(sparse_shape(a.shape or ["1B"]), rounds=a.rounds, threads=a.threads, **given)
        print(json.dumps(result, indent=1) if a.json else as_text(result))
        return 0
    (shape,) = a.shape if a.shape and len(a.shape) == 1 else ["15M"] if not a.shape else [" ".join(a.shape)]
    if shape not in SHAPES:
        raise MinillmError(f"--shape is {shape}, expected one of {', '.join(SHAPES)} for bench {a.what}")
    result = bench.bench(a.what, shape, resolve(a.model) if a.model else None, a.rounds, a.threads)
    print(json.dumps(result, indent=1) if a.json else bench.model_text(result))
    return 0


def sparse_shape(words: list[str]) -> str | tuple[int, int]:
    """--shape of bench ffn and disk: a preset's name, or the sizes D and F."""
    if len(words) == 1 and not words[0].isdecimal():
        return words[0]
    if len(words) != 2 or not all(word.isdecimal() for word in words):
        raise MinillmError(f"--shape is {' '.join(words)}, expected a name, or a hidden and an intermediate size")
    return int(words[0]), int(words[1])
