"""The command line: ``minillm demo``, ``minillm generate`` and so on; ``minillm --help`` lists the commands.

Without --model it runs the embedded model, without --text the embedded texts, and without any word at all the demo.

Results go to stdout, everything else (progress, seeds, timings, notes) to stderr; ``--json`` makes the result one JSON
value. Exit status: 0 done, 1 bad input or (compare) a divergence, 2 wrong usage, 130 Ctrl-C.

NumPy is imported only inside the commands, after ``--threads`` has been read: BLAS looks at its environment once,
when it is loaded.
"""

import argparse
import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path

from .. import __version__
from ..errors import MinillmError
from ..loading.embedded import embedded_model
from .bench import command_bench
from .course import command_grade
from .cut import command_calibrate, command_sweep
from .demo import command_demo
from .flags import (
    DEMO_POLICIES,
    DEMO_PROMPT,
    POLICIES,
    check_output,
    names,
    positive,
    say,
    share,
    shares,
    shares_to_all,
    whole,
    wholes,
)
from .model import (
    command_compare,
    command_download,
    command_generate,
    command_inspect,
    command_perplexity,
    command_trace,
)
from .predict import command_predict
from .prefetch import command_bundle, command_prefetch
from .study import REPORT_TOKENS, command_patterns, command_report

SMALL_MODEL = 200_000_000  # bytes of weights


def parser() -> argparse.ArgumentParser:
    """Every command and flag; a flag means the same wherever it appears."""
    top = argparse.ArgumentParser(
        prog="minillm",
        description="Activation sparsity in large language models, in pure NumPy. Without any argument: the demo.",
    )
    top.add_argument("--version", action="version", version=f"minillm {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    flags = {
        "--model": (
            ("-m",),
            {
                "default": "default",
                "help": "embedded (default, default-relu, ...), a Hugging Face folder, or org/name[@revision] in the "
                "hub's cache",
            },
        ),
        "--text": (
            (),
            {
                "metavar": "FILE",
                "help": 'UTF-8 text; documents end at lines "<|endoftext|>" (default: the embedded text)',
            },
        ),
        "--prompt": (("-p",), {"default": DEMO_PROMPT}),
        "--max-new-tokens": (("-n",), {"type": positive}),
        "--temperature": (("--temp",), {"type": float, "default": 0.0, "help": "0 (the default) is greedy"}),
        "--top-k": ((), {"type": positive}),
        "--top-p": ((), {"type": float}),
        "--min-p": ((), {"type": float}),
        "--seed": (("-s",), {"type": whole, "default": 0}),
        "--thresholds": ((), {"metavar": "FILE", "help": "cut with these thresholds (ours or the paper's JSON)"}),
        "--predictor": ((), {"metavar": "FILE", "help": "select neurons with this predictor (of `minillm predict`)"}),
        "--form": ((), {"choices": ("masked", "gathered"), "default": "masked", "help": "how a cut FFN is computed"}),
        "--policy": ((), {"choices": POLICIES, "default": "dhar"}),
        "--sparsity": ((), {"type": share, "default": 0.5}),
        "--by": (
            (),
            {
                "choices": ("tensor", "neuron", "reads", "cett", "ppl"),
                "default": "tensor",
                "help": "what --sparsity counts: a share of each cut tensor, of the neurons, of the weights not read, "
                "of the output lost (policy cett), or the increase of perplexity",
            },
        ),
        "--protocol": ((), {"choices": ("documents", "stream"), "default": "documents"}),
        "--context": ((), {"type": positive, "help": "default: the smaller of the model's longest text and 2048"}),
        "--dtype": ((), {"choices": ("float32", "float64"), "default": "float32"}),
        "--threads": (
            (),
            {"type": positive, "help": "BLAS threads (default: 1 for models below 200 MB, else BLAS decides)"},
        ),
        "--output": (("-o",), {"metavar": "FILE"}),
        "--jobs": ((), {"type": positive, "default": 1, "help": "rows computed at once (needs joblib; default: 1)"}),
        "--figure": ((), {"metavar": "FILE", "help": "draw it, too: a .png or .svg (needs matplotlib)"}),
        "--json": ((), {"action": "store_true", "help": "the result as JSON"}),
    }

    def command(name: str, run, wanted: str, **changes: dict) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        for flag in (*wanted.split(), "json"):
            short, options = flags[f"--{flag}"]
            sub.add_argument(f"--{flag}", *short, **options | changes.get(flag.replace("-", "_"), {}))
        sub.set_defaults(run=run)
        return sub

    run = "dtype threads"  # of every command that runs a model
    sampling = "prompt max-new-tokens temperature top-k top-p min-p seed"
    command("demo", command_demo, f"model text prompt max-new-tokens context {run}")
    cut = "thresholds predictor form"  # of every command that can run a cut model
    command("generate", command_generate, f"model {sampling} {cut} {run}", prompt={"required": True})
    command("perplexity", command_perplexity, f"model text {cut} protocol context {run}")
    inspect = command("inspect", command_inspect, f"model text figure {run}", text={"help": "the text to count on"})
    inspect.add_argument("--natural", action="store_true", help="share of zeros and near-zeros per layer on a text")
    inspect.add_argument(
        "--distributions", action="store_true", help="how large weights and activations are, per layer on a text"
    )
    trace = command(
        "trace",
        command_trace,
        f"model prompt text {cut} output {run}",
        text={"help": "a text to trace instead of --prompt"},
        output={"help": "write an .npz for `minillm compare`"},
    )
    trace.add_argument(
        "--keep", action="append", metavar="PATTERN", help='steps to keep, as in "blocks.0.mlp.*"; repeatable'
    )
    trace.add_argument("--explain", metavar="STEP", help="say what a step is, and do nothing else")
    compare = command("compare", command_compare, "")
    compare.add_argument("ours", metavar="OURS.npz")
    compare.add_argument("theirs", metavar="THEIRS.npz")
    compare.add_argument("--rtol", type=float, help="default: 1e-10 where both are float64, else 1e-5")
    calibrate = command(
        "calibrate",
        command_calibrate,
        f"model text policy sparsity by context output {run}",
        output={"required": True},
    )
    calibrate.add_argument("--quantile", choices=("exact", "streaming"), help="default: exact where it fits in memory")
    calibrate.add_argument(
        "--allocation",
        choices=("uniform", "greedy"),
        default="uniform",
        help="teal, wina: one level for all, or each layer its own shares by what they cost (default: uniform)",
    )
    calibrate.add_argument("--paper", action="store_true", help="write the format of the paper's released files")
    sweep = command(
        "sweep",
        command_sweep,
        f"model text policy sparsity by protocol context seed jobs output figure {run}",
        model={"action": "append", "default": None, "help": "as for other commands; may be said several times"},
        policy={"type": names, "choices": None, "default": ",".join(DEMO_POLICIES), "help": "comma-separated"},
        sparsity={"type": shares, "default": "0.3,0.5,0.7", "help": "comma-separated"},
        seed={"help": "of the intervals (default: 0)"},
        output={"help": "write rows to a .csv or .json after every row; rows that it already holds are not computed"},
    )
    sweep.add_argument(
        "--calibration",
        metavar="FILE",
        help="text for thresholds (default: the first 40 %% of --text, or the embedded one)",
    )
    sweep.add_argument(
        "--baseline",
        metavar="POLICY",
        default="mid",
        help="with --by neuron or reads, the policy that the others are compared with (default: mid)",
    )
    predict = command(
        "predict",
        command_predict,
        f"model text predictor thresholds sparsity protocol context seed output figure {run}",
        text={"help": "train: the text to learn from; eval: the text to score (default: the embedded ones)"},
        predictor={
            "type": names,
            "metavar": "NAMES",
            "help": "comma-separated (default: train: learned; eval: most of them): files, or chance, static, "
            "previous-token, sign, svd, shadow-BITS, up-BITS (with the layer's own gate), ahead-BITS (one layer "
            "ahead), learned, learned-ahead, refined-BITS, library, clusters",
        },
        thresholds={"help": "the truth: thresholds of policy mid (default: found for --sparsity)"},
        sparsity={"type": shares, "default": "0.5", "help": "1 - the selected fraction; eval: several, with commas"},
        output={"help": "train: the predictor's file (.safetensors); eval: rows as .csv or .json, after every row"},
    )
    predict.add_argument("what", choices=("train", "eval"))
    predict.add_argument("--rank", type=positive, help="of svd and learned (default: a quarter of the hidden size)")
    predict.add_argument(
        "--calibration",
        metavar="FILE",
        help="eval: text to make predictors from (default: the first 40 %% of --text, or the embedded one)",
    )
    bundle = command("bundle", command_bundle, f"model {run}")
    bundle.add_argument("--output", "-o", dest="folder", required=True, metavar="FOLDER", help="must not exist yet")
    bundle.add_argument("--group", type=positive, default=32, help="neurons per block (default: 32)")
    bundle.add_argument("--stored", choices=("float32", "bfloat16"), default="float32", help="how weights are written")
    prefetch = command(
        "prefetch",
        command_prefetch,
        f"model text prompt max-new-tokens predictor thresholds sparsity context seed output figure {run}",
        text={"help": "the text to replay or to score (default: the embedded one; real: --prompt is continued)"},
        predictor={"type": names, "metavar": "NAMES", "help": "comma-separated, as for predict eval"},
        thresholds={"help": "thresholds of policy mid (default: found for --sparsity)"},
        sparsity={"type": shares, "default": None, "help": "default: 0.5; blocks: several, with commas"},
        output={"help": "rows as .csv or .json"},
        figure={"help": "draw it, too: simulate's last token, replay's curves, blocks' page; a .png or .svg"},
    )
    prefetch.add_argument("what", choices=("simulate", "replay", "table", "blocks", "real"))
    prefetch.add_argument("folder", nargs="?", metavar="FOLDER", help="real: a folder that `minillm bundle` wrote")
    prefetch.add_argument("--bundle", metavar="FOLDER", help="real: the same, as a flag")
    prefetch.add_argument(
        "--memory", type=positive, metavar="MB",
        help="real: allow this process so many MB beyond Python's own (RLIMIT_AS): the model need not fit (Linux)",
    )  # fmt: skip
    prefetch.add_argument("--capacity", type=shares_to_all, metavar="SHARES", help="of a layer's neurons, with commas")
    prefetch.add_argument("--keeper", default="lru", help="simulate: lru, lfu or window-K (default: lru)")
    prefetch.add_argument("--keepers", type=names, help="comma-separated (default: replay: all; real: lru)")
    prefetch.add_argument("--device", default="laptop NVMe", help='"phone UFS", "laptop NVMe" or "PCIe host to GPU"')
    prefetch.add_argument("--miss", choices=("wait", "drop"), default="wait", help="replay: what a miss does")
    prefetch.add_argument("--tokens", type=positive, help="of the text, about (default: 1000; blocks: 4000; real: 200)")
    prefetch.add_argument("--speed", metavar="FILE", help="blocks: the JSON of `minillm bench ffn`")
    prefetch.add_argument("--groups", type=wholes, help="blocks: neurons per block, with commas (default: 1 to 32)")
    prefetch.add_argument("--rank", type=positive, help="as for predict")
    prefetch.add_argument("--calibration", metavar="FILE", help="text for thresholds, predictors and frequencies")
    patterns = command(
        "patterns",
        command_patterns,
        f"model text thresholds sparsity context seed output {run}",
        text={"help": "the original text (default: the embedded test text)"},
        thresholds={"help": "thresholds of policy dhar (default: found on the calibration text at --sparsity)"},
        output={"help": "write a row per text, variant, scope and layer to a .csv or .json"},
    )
    patterns.add_argument(
        "--variant", action="append", metavar="FILE", help="an edited variant of --text; repeatable (default: made)"
    )
    patterns.add_argument(
        "--released", metavar="FILE", help="a perturbation file of the paper's release, or their folder"
    )
    patterns.add_argument(
        "--calibration", metavar="FILE", help="text for thresholds and frequencies (default: embedded)"
    )
    name = {"help": "with --template: the new file (default: print it)"}
    grade = command("grade", command_grade, "output", output=name)
    grade.add_argument(
        "file", nargs="?", metavar="FILE", help="a Python file; it is executed: grade only what you would run"
    )
    grade.add_argument("--template", action="store_true", help="write the file to fill in, and do nothing else")
    grade.add_argument(
        "--seconds", type=positive, default=20, help="a function that takes longer is given up (default: 20)"
    )
    report = command(
        "report",
        command_report,
        f"model text prompt context seed output {run}",
        prompt={"help": f"continued dense and cut (default: {DEMO_PROMPT!r})"},
        output={"required": True, "help": "the page, an .html (its figures need matplotlib)"},
    )
    report.add_argument(
        "--tokens",
        type=positive,
        default=REPORT_TOKENS,
        help=f"scored for each row of the cost tables; other parts read shares of it (default: {REPORT_TOKENS:,})",
    )
    download = command("download", command_download, "")
    download.add_argument("repository", metavar="ORG/NAME[@REVISION]")
    bench = command(
        "bench",
        command_bench,
        "model sparsity threads",
        model={"default": None, "help": "decode, perplexity, start: measure this model, not a random one"},
        sparsity={"type": shares, "default": None, "help": "ffn, disk: shares left out, with commas"},
        threads={"help": "BLAS threads (default: 1)"},
    )
    bench.add_argument("what", choices=("decode", "perplexity", "start", "ffn", "disk"))
    bench.add_argument(
        "--shape", nargs="+", metavar="SHAPE",
        help="of random weights: 260K, 15M (default) or 110M; ffn, disk: also 1B (default), or D F, as in 2048 5632",
    )  # fmt: skip
    bench.add_argument("--groups", type=wholes, help="ffn, disk: neurons per block, with commas")
    bench.add_argument("--layers", type=positive, help="disk: layers in the folder that is written (default: 4)")
    bench.add_argument("--rounds", type=positive, default=7)
    return top


def one_thread_is_best(arguments: argparse.Namespace) -> bool:
    """Whether BLAS is left with one thread where --threads does not say.

    The matrices of a small model are too small to share: two threads gain little on an idle machine, and where another
    program wants the second core they wait for each other and lose a factor of ten. Benchmarks always use one.
    """
    if arguments.command == "bench":
        return True
    if getattr(arguments, "jobs", 1) > 1:
        return True  # the jobs share the cores, and a row is the same whoever computes it
    sources, sizes = getattr(arguments, "model", None), []
    if folder := getattr(arguments, "folder", None) if arguments.command == "prefetch" else None:
        sources = folder
    for source in sources if isinstance(sources, list) else [sources or embedded_model("default")]:
        folder, size = embedded_model(source) or source, 0
        with suppress(OSError):  # a file that cannot be looked at is said by name when it is loaded
            size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors")) if folder else 0
        sizes.append(size)
    return all(0 < size < SMALL_MODEL for size in sizes)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # an emoji where the terminal's encoding has none
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        say("minillm demo on the embedded model; `minillm --help` lists all commands")
    arguments = parser().parse_args(argv or ["demo"])
    if getattr(arguments, "threads", 1) is None and one_thread_is_best(arguments):
        arguments.threads = 1
    if threads := getattr(arguments, "threads", None):
        for library in ("OMP", "OPENBLAS", "MKL", "VECLIB", "BLIS"):
            os.environ[f"{library}{'_MAXIMUM' if library == 'VECLIB' else '_NUM'}_THREADS"] = str(threads)
    warnings.showwarning = lambda message, *_, **__: say(f"minillm: note: {message}")
    try:
        for name in ("output", "figure"):
            if getattr(arguments, name, None) is not None:
                check_output(getattr(arguments, name))
        status = arguments.run(arguments)
        print(end="", flush=True)
        return status
    except MinillmError as error:
        say(f"minillm: {error}")
        return 1
    except KeyboardInterrupt:
        say("\nminillm: interrupted")
        return 130
    except MemoryError as error:
        say(f"minillm: there is not enough memory ({error or 'asked for by Python itself'})")
        return 1
    except OSError as error:
        # What is still buffered goes nowhere, or Python would try to write it once more at its end, and complain.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader of our output went away, as `head` does
            return 0
        say(f"minillm: {error.filename or 'output'}: {error.strerror or error}")  # a full disk, mostly
        return 1
