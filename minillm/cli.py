"""The command line: ``minillm demo``, ``minillm generate`` and so on; ``minillm --help`` lists the commands.

Results go to stdout, everything else (progress, seeds, timings, notes) to stderr; ``--json`` makes the result one JSON
value. Exit status: 0 done, 1 bad input or (compare) a divergence, 2 wrong usage, 130 Ctrl-C.

NumPy is imported only inside the commands, after ``--threads`` has been read: BLAS looks at its environment once,
when it is loaded.
"""

import argparse
import json
import os
import sys
import time
import warnings
from pathlib import Path

from . import __version__
from .errors import MinillmError

POLICIES = ("dhar", "cats", "mid")
DEMO_PROMPT = "Once upon a time"
DEMO_TOKENS = 20_000  # scored per row of the demo's table; the calibration text is cut to as many
SHARES = (0.3, 0.5, 0.7)
SMALL_MODEL = 200_000_000  # bytes of weights


def say(*words: object) -> None:
    """Print on stderr: what is not the result."""
    print(*words, file=sys.stderr, flush=True)


def read_text(path: str) -> str:
    """The text of a UTF-8 file; one sentence for a file that is missing, empty or of another encoding."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise MinillmError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise MinillmError(f"{path}: byte {error.start} is not UTF-8, expected a UTF-8 text") from None
    if not text.strip():
        raise MinillmError(f"{path}: is empty, expected a text")
    return text


def load_model(arguments: argparse.Namespace):
    """The model of --model in the dtype of --dtype."""
    import minillm

    return minillm.load(arguments.model, dtype=arguments.dtype)


def load_ffn(arguments: argparse.Namespace, model):
    """The FeedForward of --thresholds, or the dense one."""
    from .sparsity.calibrate import Thresholds, sparse_ffn
    from .transformer.ffn import swiglu

    if not arguments.thresholds:
        return swiglu
    thresholds = Thresholds.load(arguments.thresholds)
    say(f"cut by {arguments.thresholds}: {thresholds.spec}")
    return sparse_ffn(model, thresholds, arguments.form)


def describe(model) -> list[dict]:
    """Where the weights are: a row per part of the model."""
    total = sum(model.parameters.values())
    return [
        {
            "part": part if part != "head" or count else "head (tied to the embedding)",
            "weights": count,
            "share": count / total,
            "MB": count * model.dtype.itemsize / 1e6,
        }
        for part, count in model.parameters.items()
    ]


def headline(model) -> str:
    """One line that says what a model is."""
    c = model.config
    total, ffn = sum(model.parameters.values()), model.parameters["ffn"]
    return (
        f"{model.name}: {c.model_type}, {total:,} weights ({ffn / total:.0%} in the FFNs), "
        f"{c.num_hidden_layers} layers, hidden {c.hidden_size}, intermediate {c.intermediate_size} ({c.hidden_act}), "
        f"{c.num_attention_heads} query and {c.num_key_value_heads} key/value heads of {c.head_dim}, "
        f"vocabulary {c.vocab_size:,}, context {c.max_position_embeddings:,}, {model.dtype}"
    )


# ---- the commands ----------------------------------------------------------------------------------------------------


def command_demo(a: argparse.Namespace) -> int:
    """What the model is, one prompt continued dense and cut, and what the cuts cost."""
    from tqdm.auto import tqdm

    from .sparsity.calibrate import calibrate, collect, sparse_ffn
    from .study.sweep import first_tokens, row, score_cut, split_text
    from .study.tables import text_table
    from .transformer.evaluation import default_context, perplexity
    from .transformer.generation import generate

    started = time.perf_counter()
    model = load_model(a)
    calibration, test = split_text(read_text(a.text))
    context = a.context or default_context(model)
    calibration = first_tokens(model, calibration, DEMO_TOKENS, context)
    test = first_tokens(model, test, DEMO_TOKENS, context)
    parts = describe(model)
    if not a.json:
        print(headline(model) + "\n")
        print(text_table(parts, {"part": "", "weights": ",", "share": ".1%", "MB": ".2f"}))
        print(f"\nThe same prompt, continued greedily: {a.prompt!r}\n")

    ids = model.tokenizer.encode(a.prompt)
    room = model.config.max_position_embeddings - len(ids)
    count = min(40, room) if a.max_new_tokens is None else a.max_new_tokens
    magnitudes = collect(model, calibration, context=context)

    def cut(policy: str, sparsity: float, by: str):
        return calibrate(model, calibration, policy, sparsity, context, by, magnitudes=magnitudes)

    half = {policy: cut(policy, 0.5, "neuron") for policy in POLICIES}
    continuations = {}
    for policy in ("dense", *POLICIES):
        ffn = {"ffn": sparse_ffn(model, half[policy])} if policy != "dense" else {}
        continuations[policy] = "".join(step.text for step in generate(model, ids, count, **ffn))
        if not a.json:
            label = "dense" if policy == "dense" else f"{policy}, half of the neurons cut"
            print(f"  {label + ':':<32}{' '.join(continuations[policy].split())}")

    if not a.json:
        print("\nWhat the cuts cost: at equal neuron sparsity, then the paper's rule (dhar) at its own percentages.\n")
    plan = [(policy, share, "neuron") for share in SHARES for policy in POLICIES]
    plan += [("dhar", share, "tensor") for share in (0.3, 0.5)]
    dense = perplexity(model, test, "documents", context)
    rows = [row(model, dense, dense)]
    for policy, sparsity, by in tqdm(plan, desc="policies", leave=False, delay=2, disable=None):
        thresholds = half[policy] if (sparsity, by) == (0.5, "neuron") else cut(policy, sparsity, by)
        rows.append(score_cut(model, test, thresholds, dense))
    seconds = time.perf_counter() - started
    if a.json:
        result = {"model": headline(model), "parts": parts, "prompt": a.prompt, "continuations": continuations}
        print(json.dumps(result | {"rows": rows, "seconds": seconds}, indent=1))
        return 0
    for line in rows:
        line["sparse by"] = line["by"] and f"{line['by']} {line['target']:.0%}"
    columns = {"policy": "", "sparse by": "", "neuron_sparsity": ".3f", "read_exact": ".3f", "read_known_mask": ".3f"}
    print(text_table(rows, columns | {"perplexity": ".3f", "vs_dense": ".3f", "bits_per_byte": ".4f", "tokens": ","}))
    print(
        f"\nscored: {rows[0]['tokens']:,} tokens (protocol documents, context {context}, BOS {rows[0]['bos']}); "
        f"thresholds from {len(calibration)} other documents of the same file"
        + ("" if rows[0]["tokens"] >= DEMO_TOKENS else f"; fewer than {DEMO_TOKENS:,} tokens: the text holds no more")
        + "\nneuron_sparsity: share of (token, neuron) pairs cut. read_exact: share of the FFN's weights read per token"
        "\nwhen the policy computes its own mask; read_known_mask: when the mask is known beforehand."
    )
    say(f"{seconds:.1f} s")
    return 0


def command_generate(a: argparse.Namespace) -> int:
    """Continue a prompt."""
    import numpy as np

    from .transformer.generation import generate

    model = load_model(a)
    ids = model.tokenizer.encode(a.prompt)
    count = a.max_new_tokens
    if count is None:
        count = max(1, min(100, model.config.max_position_embeddings - len(ids)))
    ffn = load_ffn(a, model)
    sampling = {"temperature": a.temperature, "top_k": a.top_k, "top_p": a.top_p, "min_p": a.min_p}
    steps = generate(model, ids, count, **sampling, rng=np.random.default_rng(a.seed), ffn=ffn)
    how = "greedy" if a.temperature == 0 else f"temperature {a.temperature:g}"
    say(f"{how}, seed {a.seed}, prompt of {len(ids)} tokens")
    if not a.json:
        print(a.prompt, end="", flush=True)
    started, found = time.perf_counter(), []
    for step in steps:
        found.append(step)
        if not a.json:
            print(step.text, end="", flush=True)
    seconds = time.perf_counter() - started
    if a.json:
        text = "".join(step.text for step in found)
        tokens, logprobs = [s.token for s in found], [s.logprob for s in found]
        print(json.dumps({"prompt": a.prompt, "text": text, "tokens": tokens, "logprobs": logprobs, "seed": a.seed}))
    else:
        print()
    say(f"{len(found)} tokens in {seconds:.2f} s, {len(found) / seconds:.0f} per second (prompt included)")
    return 0


def command_perplexity(a: argparse.Namespace) -> int:
    """Score a text."""
    from .sparsity.spec import SparsityMeter
    from .transformer.evaluation import perplexity

    model = load_model(a)
    ffn, meter = load_ffn(a, model), SparsityMeter()
    score = perplexity(model, read_text(a.text), a.protocol, a.context, ffn, meter)
    report = meter.report()
    if a.json:
        fields = {
            k: getattr(score, k)
            for k in ("protocol", "context", "bos", "nll", "tokens", "bytes", "perplexity", "bits_per_byte")
        }
        fields |= {k: getattr(report, k) for k in ("neuron_sparsity", "read_exact", "read_known_mask", "union_density")}
        print(json.dumps({"model": model.name, "dtype": str(model.dtype), "thresholds": a.thresholds} | fields))
        return 0
    print(score)
    if a.thresholds:
        gate, up, down = report.read_exact
        print(
            f"neuron sparsity {report.neuron_sparsity:.4f}; weights read per token: gate {gate:.3f}, up {up:.3f}, "
            f"down {down:.3f} (exact), {report.read_known_mask[0]:.3f} each (mask known beforehand); "
            f"{report.union_window} successive tokens together need {report.union_density or 0:.3f} of the neurons"
        )
    return 0


def command_inspect(a: argparse.Namespace) -> int:
    """What a checkpoint is: config, parts, tensors."""
    from dataclasses import asdict

    from .loading.checkpoint import checkpoint_tensors
    from .study.tables import text_table

    model = load_model(a)
    tensors = [
        {"tensor": t.name, "dtype": t.dtype, "shape": list(t.shape), "bytes": t.nbytes, "file": Path(t.path).name}
        for t in checkpoint_tensors(model.folder).values()
    ]
    if a.json:
        print(
            json.dumps(
                {"model": model.name, "config": asdict(model.config), "parts": describe(model), "tensors": tensors}
            )
        )
        return 0
    print(headline(model) + "\n")
    print(text_table(describe(model), {"part": "", "weights": ",", "share": ".1%", "MB": ".2f"}) + "\n")
    for key, value in asdict(model.config).items():
        print(f"{key:<26}{value}")
    if model.has_tokenizer:
        print(f"{'BOS that is put in front':<26}{list(model.tokenizer.bos_ids)}")
    for tensor in tensors:
        tensor["shape"] = " x ".join(map(str, tensor["shape"]))
    print("\n" + text_table(tensors, {"tensor": "", "dtype": "", "shape": "", "bytes": ",", "file": ""}))
    return 0


def command_trace(a: argparse.Namespace) -> int:
    """Record every intermediate of one pass."""
    from .trace import Trace, explain

    if a.explain:
        print(explain(a.explain))
        return 0
    if not a.model:
        raise MinillmError("trace needs --model (or --explain STEP)")
    model = load_model(a)
    ids = model.tokenizer.encode(read_text(a.text) if a.text else a.prompt)
    with Trace(keep=a.keep or "*") as trace:
        model.forward(ids, ffn=load_ffn(a, model), tap=trace)
    if a.output:
        trace.save(a.output)
        say(f"{len(trace)} steps, {trace.nbytes:,} bytes -> {a.output}")
    if a.json:
        print(json.dumps({name: {"shape": value.shape, "dtype": str(value.dtype)} for name, value in trace.items()}))
    elif not a.output:
        trace.show()
    return 0


def command_compare(a: argparse.Namespace) -> int:
    """Compare two traces; exit status 1 when they diverge."""
    from .trace import compare

    result = compare(a.ours, a.theirs, a.rtol)
    if a.json:
        rows = [row._asdict() for row in result.rows]
        print(json.dumps({"first": result.first, "tolerance": result.tolerance, "rows": rows}).replace("NaN", "null"))
    else:
        print(result)
    return 0 if result.first is None else 1


def command_calibrate(a: argparse.Namespace) -> int:
    """Find thresholds and write them to a file."""
    from .sparsity.calibrate import calibrate

    model = load_model(a)
    thresholds = calibrate(model, read_text(a.text), a.policy, a.sparsity, a.context, a.by, a.quantile)
    (thresholds.save_paper if a.paper else thresholds.save)(a.output)
    print(
        json.dumps(thresholds.spec.asdict())
        if a.json
        else f"{thresholds.spec}\nlevel {thresholds.level:.4f} -> {a.output}"
    )
    return 0


def command_sweep(a: argparse.Namespace) -> int:
    """Score policies at sparsities."""
    from .study.sweep import split_text, sweep
    from .study.tables import save_rows, text_table

    model = load_model(a)
    text = read_text(a.text)
    if a.output:
        save_rows(a.output, [])  # a name that cannot be written is better known now than after the work
    calibration, test = (read_text(a.calibration), text) if a.calibration else split_text(text)
    rows = []
    for row in sweep(model, calibration, test, a.policy, a.sparsity, a.by, a.protocol, a.context):
        rows.append(row)
        say(f"{row['policy']} {row['target'] if row['target'] is not None else ''}: perplexity {row['perplexity']:.3f}")
        if a.output:
            save_rows(a.output, rows)
    if a.json:
        print(json.dumps(rows, indent=1))
    else:
        columns = {"policy": "", "by": "", "target": ".2f", "achieved": ".3f", "neuron_sparsity": ".3f"}
        columns |= {
            "read_gate": ".3f",
            "read_up": ".3f",
            "read_down": ".3f",
            "read_exact": ".3f",
            "read_known_mask": ".3f",
        }
        columns |= {
            "union_density": ".3f",
            "perplexity": ".3f",
            "vs_dense": ".3f",
            "bits_per_byte": ".4f",
            "tokens": ",",
        }
        for row in rows:
            row["by"], row["target"] = row["by"] or "-", row["target"]
        print(text_table(rows, columns))
        print(f"protocol {rows[0]['protocol']}, context {rows[0]['context']}, BOS {rows[0]['bos']}")
    return 0


def command_download(a: argparse.Namespace) -> int:
    """Fetch a model into the hub's cache."""
    from .loading.hub import download

    folder = download(a.repository)
    print(folder)
    say(f"commit {folder.name}: pin it as {a.repository.partition('@')[0]}@{folder.name}")
    return 0


def command_bench(a: argparse.Namespace) -> int:
    """Measure speed, in turns with a read-bandwidth probe and, where it is installed, transformers."""
    from .loading.hub import resolve
    from .study import bench

    result = bench.bench(a.what, a.shape, resolve(a.model) if a.model else None, a.rounds, a.threads)
    print(json.dumps(result, indent=1) if a.json else bench.as_text(result))
    return 0


# ---- the parser ------------------------------------------------------------------------------------------------------


def share(text: str) -> float:
    """A share from 0 to below 1 (argparse names this function in its message)."""
    value = float(text)
    if not 0 <= value < 1:
        raise ValueError
    return value


def positive(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def shares(text: str) -> list[float]:
    """Shares separated by commas."""
    return [share(part) for part in text.split(",")]


def names(text: str) -> list[str]:
    """Names separated by commas."""
    return [part.strip() for part in text.split(",")]


def parser() -> argparse.ArgumentParser:
    """Every command and flag; a flag means the same wherever it appears."""
    top = argparse.ArgumentParser(
        prog="minillm", description="Activation sparsity in large language models, in pure NumPy."
    )
    top.add_argument("--version", action="version", version=f"minillm {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    flags = {
        "--model": (
            ("-m",),
            {"required": True, "help": "a Hugging Face folder, or org/name[@revision] in the hub's cache"},
        ),
        "--text": (
            (),
            {"required": True, "metavar": "FILE", "help": 'UTF-8 text; documents end at lines "<|endoftext|>"'},
        ),
        "--prompt": (("-p",), {"default": DEMO_PROMPT}),
        "--max-new-tokens": (("-n",), {"type": positive}),
        "--temperature": (("--temp",), {"type": float, "default": 0.0, "help": "0 (the default) is greedy"}),
        "--top-k": ((), {"type": positive}),
        "--top-p": ((), {"type": float}),
        "--min-p": ((), {"type": float}),
        "--seed": (("-s",), {"type": int, "default": 0}),
        "--thresholds": ((), {"metavar": "FILE", "help": "cut with these thresholds (ours or the paper's JSON)"}),
        "--form": ((), {"choices": ("masked", "gathered"), "default": "masked", "help": "how a cut FFN is computed"}),
        "--policy": ((), {"choices": POLICIES, "default": "dhar"}),
        "--sparsity": ((), {"type": share, "default": 0.5}),
        "--by": ((), {"choices": ("tensor", "neuron"), "default": "tensor", "help": "what --sparsity counts"}),
        "--protocol": ((), {"choices": ("documents", "stream"), "default": "documents"}),
        "--context": ((), {"type": positive, "help": "default: the smaller of the model's longest text and 2048"}),
        "--dtype": ((), {"choices": ("float32", "float64"), "default": "float32"}),
        "--threads": (
            (),
            {"type": positive, "help": "BLAS threads (default: 1 for models below 200 MB, else BLAS decides)"},
        ),
        "--output": (("-o",), {"metavar": "FILE"}),
        "--json": ((), {"action": "store_true", "help": "the result as JSON"}),
    }

    def command(name: str, run, wanted: str, **changes: dict) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        for flag in (*wanted.split(), "dtype", "threads", "json"):
            short, options = flags[f"--{flag}"]
            sub.add_argument(f"--{flag}", *short, **options | changes.get(flag.replace("-", "_"), {}))
        sub.set_defaults(run=run)
        return sub

    sampling = "prompt max-new-tokens temperature top-k top-p min-p seed"
    command("demo", command_demo, "model text prompt max-new-tokens context")
    command("generate", command_generate, f"model {sampling} thresholds form", prompt={"required": True})
    command("perplexity", command_perplexity, "model text thresholds form protocol context")
    command("inspect", command_inspect, "model")
    trace = command(
        "trace",
        command_trace,
        "model prompt text thresholds form output",
        model={"required": False},
        text={"required": False, "help": "a text to trace instead of --prompt"},
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
        "calibrate", command_calibrate, "model text policy sparsity by context output", output={"required": True}
    )
    calibrate.add_argument("--quantile", choices=("exact", "streaming"), help="default: exact where it fits in memory")
    calibrate.add_argument("--paper", action="store_true", help="write the format of the paper's released files")
    sweep = command(
        "sweep",
        command_sweep,
        "model text policy sparsity by protocol context output",
        policy={"type": names, "choices": None, "default": ",".join(POLICIES), "help": "comma-separated"},
        sparsity={"type": shares, "default": "0.3,0.5,0.7", "help": "comma-separated"},
        output={"help": "write rows to a .csv or .json, after every row"},
    )
    sweep.add_argument("--calibration", metavar="FILE", help="text for thresholds (default: the first 40 %% of --text)")
    download = command("download", command_download, "")
    download.add_argument("repository", metavar="ORG/NAME[@REVISION]")
    bench = command(
        "bench", command_bench, "model", model={"required": False, "help": "measure this model, not a random one"}
    )
    bench.add_argument("what", choices=("decode", "perplexity", "start"))
    bench.add_argument("--shape", choices=("260K", "15M", "110M"), default="15M", help="size of the random model")
    bench.add_argument("--rounds", type=positive, default=7)
    return top


def one_thread_is_best(arguments: argparse.Namespace) -> bool:
    """Whether BLAS is left with one thread where --threads does not say.

    The matrices of a small model are too small to share: two threads gain little on an idle machine, and where another
    program wants the second core they wait for each other and lose a factor of ten. Benchmarks always use one.
    """
    if arguments.command == "bench":
        return True
    folder = getattr(arguments, "model", None)
    sizes = [file.stat().st_size for file in Path(folder).glob("*.safetensors")] if folder else []
    return 0 < sum(sizes) < SMALL_MODEL


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = parser().parse_args(argv)
    if arguments.threads is None and one_thread_is_best(arguments):
        arguments.threads = 1
    if arguments.threads is not None:
        for library in ("OMP", "OPENBLAS", "MKL", "VECLIB", "BLIS"):
            os.environ[f"{library}{'_MAXIMUM' if library == 'VECLIB' else '_NUM'}_THREADS"] = str(arguments.threads)
    warnings.showwarning = lambda message, *_, **__: say(f"minillm: note: {message}")
    try:
        status = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except MinillmError as error:
        say(f"minillm: {error}")
        return 1
    except KeyboardInterrupt:
        say("\nminillm: interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, mostly: everything expected has been said by name above
        say(f"minillm: {error.filename or 'output'}: {error.strerror or error}")
        return 1
