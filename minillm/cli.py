"""The command line: ``minillm demo``, ``minillm generate`` and so on; ``minillm --help`` lists the commands.

Without --model it runs the embedded model, without --text the embedded texts, and without any word at all the demo.

Results go to stdout, everything else (progress, seeds, timings, notes) to stderr; ``--json`` makes the result one JSON
value. Exit status: 0 done, 1 bad input or (compare) a divergence, 2 wrong usage, 130 Ctrl-C.

NumPy is imported only inside the commands, after ``--threads`` has been read: BLAS looks at its environment once,
when it is loaded.
"""

import argparse
import json
import os
import shutil
import sys
import textwrap
import time
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

from . import __version__
from .errors import MinillmError
from .loading.embedded import embedded_model, embedded_text

POLICIES = ("dhar", "cats", "mid", "cett", "teal", "wina", "countdown", "griffin", "topk", "topp")
DEMO_POLICIES = ("dhar", "cats", "mid")
PREDICTORS = (
    "chance", "static", "previous-token", "sign", "svd", "shadow-2", "shadow-3", "shadow-4", "up-4", "refined-3",
    "learned", "learned-ahead", "ahead-4", "library", "clusters",
)  # fmt: skip
DEMO_PROMPT = "Once upon a time"
DEMO_TOKENS = 20_000  # scored per row of the demo's table
DEMO_PREDICTION = 3_000  # scored per predictor, which takes several passes for each
PREFETCH_TOKENS = 1_000  # replayed through a buffer
DEMO_PREDICTORS = ("chance", "static", "previous-token", "shadow-4")
DEMO_BUFFER = 400  # replayed through a buffer
DEMO_DEVICE = "laptop NVMe"
DEMO_CALIBRATION = 3_000  # read for its thresholds, several times over: each search for a share is a few passes
PATTERN_TOKENS = 4_000  # of a text, for which `patterns` makes variants
REPORT_TOKENS = 6_000  # scored for each row of the cost tables of `report`
PATTERN_WORDS = (
    "Prefix matches because the model is causal: same tokens, same past. Chance: independent bits of the same "
    "densities. Static: the neurons that are most often active on the calibration text. Unrelated: two positions of "
    "that text drawn at random. Whole text: prefix and rest, weighted by their lengths in the whole text."
)
REAL_TOKENS = 200  # scored by `prefetch real`, one at a time and once per row
REAL_WORDS = (
    "ahead: the next layer's bundles are announced to the system one layer before. keeps: bundles per layer that a "
    "buffer keeps. cached: the largest share of a file that was in the system's cache before any token (0: cold). FFN, "
    "reading: milliseconds per token, in all FFNs and of these in reading. kB: read per token, and what really came "
    "from the disk. reads: share of all FFN weights. agreement: share of the likeliest next tokens that are those of "
    "the dense model in memory."
)
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


def text_or_embedded(path: str | None, name: str) -> str:
    """The text of --text, or the embedded one of that name, which is then said."""
    if path:
        return read_text(path)
    text = embedded_text(name)
    say(f"text: the embedded {name} text")
    return text


def two_texts(path: str | None, calibration: str | None = None) -> tuple[str | list[str], str | list[str]]:
    """What to calibrate on and what to score: the parts of --text alone, else two texts, embedded where not given."""
    from .transformer.texts import split_text

    if path and not calibration:
        return split_text(read_text(path))
    return text_or_embedded(calibration, "calibration"), text_or_embedded(path, "test")


def check_output(path: str) -> None:
    """Refuse, before the work and not after it, a name that cannot be written; what is there stays as it is."""
    target = Path(path)
    try:
        # A device or a pipe would be replaced by a file: everything is written beside its target and then renamed.
        if not target.name or (target.exists() and not target.is_file()):
            raise MinillmError(f"{path!r}: is not a regular file, expected the name of a file to write")
        beside = target.with_name(target.name + ".partial")
        beside.touch()
        beside.unlink()
    except OSError as error:
        raise MinillmError(f"{path}: cannot be written ({error.strerror})") from None


def wrapped(text: str, first: str = "") -> str:
    """Text in lines that fit the terminal (at most 100 columns), the first one led by ``first``."""
    width = max(40, min(100, shutil.get_terminal_size().columns))
    return textwrap.fill(text, width, initial_indent=first, subsequent_indent=" " * len(first), break_on_hyphens=False)


def load_model(arguments: argparse.Namespace):
    """The model of --model in the dtype of --dtype."""
    import numpy as np

    import minillm

    # glibc hands the memory of each layer's scores back to the system and asks for it anew, page by page, until it has
    # once seen a larger block freed (mallopt(3): the dynamic M_MMAP_THRESHOLD). This is that block; nothing touches it.
    # The demo: 40 thousand page faults instead of 4.8 million, a seventh less time. Elsewhere it does nothing.
    np.empty(31 << 20, np.uint8)
    return minillm.load(arguments.model, dtype=arguments.dtype)


def load_ffn(arguments: argparse.Namespace, model):
    """The FeedForward of --thresholds, or the dense one."""
    from .predictors.select import sparse_ffn
    from .sparsity.thresholds import Thresholds
    from .transformer.ffn import swiglu

    if not arguments.thresholds:
        if arguments.predictor:
            raise MinillmError("--predictor needs --thresholds of policy mid, which say what is true")
        return swiglu
    thresholds = Thresholds.load(arguments.thresholds)
    if arguments.predictor:
        from .predictors.files import load_predictor

        predictor = load_predictor(arguments.predictor)
        say(f"neurons selected by {arguments.predictor}: {predictor.name}, {predictor.nbytes:,} bytes")
        return sparse_ffn(model, thresholds, predictor=predictor, form=arguments.form)
    ffn = sparse_ffn(model, thresholds, form=arguments.form)
    say(f"cut by {arguments.thresholds}: {thresholds.spec}")
    return ffn


def prompt_ids(model, prompt: str) -> list[int]:
    """The ids of a prompt; an empty one will do where the tokenizer adds a BOS."""
    ids = model.tokenizer.encode(prompt)
    if not ids:
        raise MinillmError("the prompt is empty and this tokenizer adds no BOS, expected at least one character")
    return ids


def new_tokens(arguments: argparse.Namespace, model, ids: list[int], default: int) -> int:
    """-n, or as many of ``default`` as the context has room for (one, where it has none: ``generate`` says so)."""
    room = model.config.max_position_embeddings - len(ids)
    return arguments.max_new_tokens or max(1, min(default, room))


# ---- the commands ----------------------------------------------------------------------------------------------------


def command_demo(a: argparse.Namespace) -> int:
    """What the model is, one prompt continued dense and cut, and what the cuts cost."""
    from tqdm.auto import tqdm

    from .predictors.select import sparse_ffn
    from .sparsity.calibrate import calibrate
    from .sparsity.magnitudes import collect
    from .sparsity.policies import policy_named
    from .sparsity.spec import in_words
    from .study.buffers import Way, buffer_rows, way_of
    from .study.describe import describe, headline
    from .study.prediction import prediction_rows
    from .study.sweep import row, score_cut
    from .tables import text_table
    from .transformer.evaluation import perplexity
    from .transformer.generation import generate
    from .transformer.texts import as_documents, default_context, first_tokens

    started = time.perf_counter()
    model = load_model(a)
    ids = prompt_ids(model, a.prompt)
    count = new_tokens(a, model, ids, 40)
    generate(model, ids, count)  # computes nothing yet, but refuses a prompt that is too long
    calibration, test = map(as_documents, two_texts(a.text))
    context = a.context or default_context(model)
    calibration = first_tokens(model, calibration, DEMO_CALIBRATION, context)
    test = first_tokens(model, test, DEMO_TOKENS, context)
    parts = describe(model)
    if not a.json:
        print(wrapped(headline(model)) + "\n")
        print(text_table(parts, {"part": "", "weights": ",", "share": ".1%", "MB": ".2f"}))
        about = "continued greedily by the dense model, then with half of the neurons cut by each policy:"
        print("\n" + wrapped(f"The prompt {a.prompt!r}, {about}") + "\n", flush=True)

    magnitudes = collect(model, calibration, context=context)

    def cut(policy: str, sparsity: float, by: str):
        return calibrate(model, calibration, policy, sparsity, context, by, magnitudes=magnitudes)

    half = {policy: cut(policy, 0.5, "neuron") for policy in DEMO_POLICIES}
    continuations = {}
    for policy in ("dense", *DEMO_POLICIES):
        ffn = {"ffn": sparse_ffn(model, half[policy])} if policy != "dense" else {}
        continuations[policy] = "".join(step.text for step in generate(model, ids, count, **ffn))
        if not a.json:
            print(wrapped(" ".join(continuations[policy].split()) or "(nothing)", f"  {policy:<7}"), flush=True)

    if not a.json:
        about = "at equal shares of neurons, then the paper's rule (dhar) at its own percentages of each tensor:"
        print("\n" + wrapped(f"What the cuts cost, {about}") + "\n", flush=True)
    plan = [(policy, share, "neuron") for share in SHARES for policy in DEMO_POLICIES]
    plan += [("dhar", share, "tensor") for share in (0.3, 0.5)]
    dense = perplexity(model, test, "documents", context)
    rows = [row(model, dense, dense)]
    for policy, sparsity, by in tqdm(plan, desc="policies", leave=False, delay=2, disable=None):
        thresholds = half[policy] if (sparsity, by) == (0.5, "neuron") else cut(policy, sparsity, by)
        rows.append(score_cut(model, test, thresholds, dense))
    few = first_tokens(model, test, DEMO_PREDICTION, context)
    making = tqdm(total=1 + len(DEMO_PREDICTORS), desc="predictors", leave=False, delay=2, disable=None)
    predicted, made = [], {}
    known = model, calibration, few, DEMO_PREDICTORS, 0.5, half["mid"]
    for line in prediction_rows(*known, context=context, made=made):
        predicted.append(line)
        making.update()
    making.close()
    ways = [Way(), way_of(made[DEMO_PREDICTORS[-1]])]
    fewer = first_tokens(model, test, DEMO_BUFFER, context)
    buffered = list(buffer_rows(model, half["mid"], fewer, ways, shares=(0, 0.25), device=DEMO_DEVICE, context=context))
    seconds = time.perf_counter() - started
    if a.json:
        result = {"model": headline(model), "parts": parts, "prompt": a.prompt, "continuations": continuations}
        result |= {"rows": rows, "predictors": predicted, "buffer": buffered, "seconds": seconds}
        print(json.dumps(result, indent=1))
        return 0
    columns = {"policy": "", "target": "", "neurons cut": ".3f", "read": ".3f", "known": ".3f", "perplexity": ".3f"}
    headings = {"neurons cut": "neuron_sparsity", "read": "read_exact", "known": "read_known_mask"}
    headings |= {"vs dense": "vs_dense", "bits/byte": "bits_per_byte"}
    for line in rows:
        line["target"] = line["by"] and f"{line['by']} {line['target']:.0%}"
        line.update({heading: line[key] for heading, key in headings.items()})
    print(text_table(rows, columns | {"vs dense": ".3f", "bits/byte": ".4f"}) + "\n")
    print(
        wrapped(
            f"Scored: {rows[0]['tokens']:,} tokens"
            + ("" if rows[0]["tokens"] >= DEMO_TOKENS else f" (the text holds no more; {DEMO_TOKENS:,} are better)")
            + f", protocol documents, context {context}, BOS {rows[0]['bos']}. "
            f"Thresholds from {len(calibration)} {'other ' if a.text else ''}document{'s'[: len(calibration) > 1]} of "
            + ("the same file." if a.text else "the embedded calibration text.")
        )
    )
    rules = [policy_named(policy) for policy in DEMO_POLICIES]
    kept = [f"{rule.name} {in_words(rule.tensors, rule.comparison)} ({rule.source})" for rule in rules]
    print(wrapped(f"What each policy keeps: {'; '.join(kept)}."))
    print(
        wrapped(
            "Neurons cut: share of (token, neuron) pairs. Read: share of the FFN's weights that a token reads when the "
            "policy computes its own mask; known: when the mask is known beforehand."
        )
    )
    about = "Who can know beforehand? Half of the neurons, selected by each before the layer is read:"
    print("\n" + wrapped(about) + "\n")
    columns = {"predictor": ""} | dict.fromkeys(("recall", "selected", "own", "read", "perplexity"), ".3f")
    for line in predicted:
        line |= {"own": line["own_share_stored"], "read": line["reads"]}
        line |= {"vs dense": line["perplexity"] / line["dense"], "x oracle": line["times_oracle"]}
    print(text_table(predicted, columns | {"vs dense": ".3f", "x oracle": ".2f"}) + "\n")
    print(
        wrapped(
            f"Scored: {predicted[0]['tokens']:,} tokens, dense {predicted[0]['dense']:.3f}. Recall: of the neurons "
            "that matter most (the mask of mid), those that were selected; who misses nearly as many as chance leaves "
            "little of the model, and its perplexity shows it. Own: bytes of the predictor's tables; read: what a "
            "token touches, tables included; both as shares of the FFN's bytes as stored. The oracle has no tables "
            "and reads nothing to know. x oracle: the increase of perplexity over that of the oracle. More: minillm "
            "predict eval."
        )
    )
    print_buffer(buffered)
    say(f"{seconds:.1f} s")
    return 0


def print_buffer(rows: list[dict]) -> None:
    """The demo's last table: kB per token without and with a small buffer, for each way to know the neurons."""
    from .tables import text_table

    kept = f"the {rows[1]['capacity']} last used neurons of a layer"
    about = f"What is then fetched from slow memory, by need, without a buffer and with one that keeps {kept}:"
    print("\n" + wrapped(about) + "\n")
    columns = {"who knows": ""} | dict.fromkeys(("unbuffered", "kB", "belady", "random"), ",.0f")
    columns |= {"hit rate": ".3f", "stall": ".1%", "stall ms": ".2f"}
    shown = []
    for without, line in zip(rows[::2], rows[1::2], strict=True):
        name = {"all neurons": "nobody: all", "mask of mid": "oracle"}.get(line["way"], line["way"])
        shown.append(line | {"who knows": name, "unbuffered": without["kB"], "hit rate": line["hit_rate"]})
        shown[-1] |= {rival: line[f"{rival} kB"] for rival in ("belady", "random")}
    print(text_table(shown, columns) + "\n")
    print(
        wrapped(
            f"kB: FFN weights fetched per token, as stored (mean of {rows[0]['tokens']:,}); belady, random: had the "
            "buffer kept what is best, knowing the future, or a fixed random set. Stall: waiting for what is fetched, "
            f"on a simulated {rows[0]['device']}. More: minillm prefetch table."
        )
    )


def command_generate(a: argparse.Namespace) -> int:
    """Continue a prompt."""
    import numpy as np

    from .transformer.generation import generate

    model = load_model(a)
    ids = prompt_ids(model, a.prompt)
    count = new_tokens(a, model, ids, 100)
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
    score = perplexity(model, text_or_embedded(a.text, "test"), a.protocol, a.context, ffn, meter)
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
    """What a checkpoint is: config, parts, tensors; on request its natural zeros, and how large its values are."""
    from dataclasses import asdict

    from .loading.checkpoint import checkpoint_tensors
    from .study.describe import describe, headline
    from .tables import text_table

    wanted = a.natural or (a.text and not a.distributions), a.distributions
    if a.figure:
        from .show.canvas import check_figure

        check_figure(a.figure)
        if sum(map(bool, wanted)) != 1:
            raise MinillmError("--figure draws what --natural or --distributions counts, expected one of the two")
    model = load_model(a)
    natural = natural_rows(model, a.text, a.figure) if wanted[0] else []
    distributions = distribution_rows(model, a.text, a.figure) if wanted[1] else {}
    tensors = [
        {"tensor": t.name, "dtype": t.dtype, "shape": list(t.shape), "bytes": t.nbytes, "file": Path(t.path).name}
        for t in checkpoint_tensors(model.folder).values()
    ]
    if a.json:
        result = {"model": model.name, "config": asdict(model.config), "parts": describe(model), "tensors": tensors}
        print(json.dumps(result | ({"natural": natural} if natural else {}) | distributions))
        return 0
    print(wrapped(headline(model)) + "\n")
    print(text_table(describe(model), {"part": "", "weights": ",", "share": ".1%", "MB": ".2f"}) + "\n")
    for key, value in asdict(model.config).items():
        print(f"{key:<26}{value}")
    if model.has_tokenizer:
        print(f"{'BOS that is put in front':<26}{list(model.tokenizer.bos_ids)}")
    for tensor in tensors:
        tensor["shape"] = " x ".join(map(str, tensor["shape"]))
    print("\n" + text_table(tensors, {"tensor": "", "dtype": "", "shape": "", "bytes": ",", "file": ""}))
    if natural:
        print(f"\nNatural sparsity: nothing is cut, {natural[0]['tokens']:,} tokens, BOS included.\n")
        print(text_table(natural, {"layer": "d"} | dict.fromkeys(list(natural[0])[2:], ".4f")))
        about = "Zeros are exact. Below 1 % (10 %): of the root mean square of the gates of the same token and layer."
        print("\n" + wrapped(about))
    if distributions:
        print_distributions(**distributions)
    return 0


def counted_documents(model, path: str | None) -> list[str]:
    """As much of a text as the demo scores."""
    from .transformer.texts import as_documents, first_tokens

    return first_tokens(model, as_documents(text_or_embedded(path, "test")), DEMO_TOKENS)


def natural_rows(model, path: str | None, figure: str | None) -> list[dict]:
    """Natural sparsity per layer on a text, and its figure where one is asked for."""
    from .study.natural import natural_sparsity

    rows = natural_sparsity(model, counted_documents(model, path))
    if figure:
        from .show.results import natural_by_layer

        write_figure(natural_by_layer({model.name: rows}), figure)
    return rows


def distribution_rows(model, path: str | None, figure: str | None) -> dict[str, list[dict]]:
    """Tables of weight and activation magnitudes, and the activations' figure where one is asked for."""
    from .study import distributions

    magnitudes = distributions.activation_magnitudes(model, counted_documents(model, path))
    if figure:
        from .show.results import magnitudes_figure

        curves = {step: distributions.curve(magnitudes, step) for step in magnitudes.layers[0]}
        write_figure(magnitudes_figure(curves, model.name), figure)
    weights = distributions.weight_magnitudes(model)
    return {"weight_magnitudes": weights, "activation_magnitudes": distributions.activation_rows(magnitudes)}


def print_distributions(weight_magnitudes: list[dict], activation_magnitudes: list[dict]) -> None:
    """The two tables of ``distribution_rows``, with what one must know to read them."""
    from .study.distributions import NEAR, normal_below
    from .tables import text_table

    print("\nMagnitudes of the FFN's weights.\n")
    columns = {"layer": "d", "matrix": ""} | dict.fromkeys(list(weight_magnitudes[0])[3:], ".4f")
    print(text_table(weight_magnitudes, columns) + "\n")
    normal = " and ".join(f"{normal_below(near):.4f}" for near in NEAR)
    about = "Zeros are exact. Below 1 % (10 %): of the matrix's own root mean square (rms)"
    print(wrapped(f"{about}; of a normal distribution {normal} would lie there."))
    print("\nMagnitudes of the FFN's activations: the share up to a magnitude, and what half of them do not exceed.\n")
    columns = {"step": "", "layer": "d"} | dict.fromkeys(list(activation_magnitudes[0])[2:], ".3f")
    print(text_table(activation_magnitudes, columns | {"median": ".4f"}))


def command_trace(a: argparse.Namespace) -> int:
    """Record every intermediate of one pass."""
    from .steps import explain, step_info
    from .trace import Trace

    if a.explain is not None:
        text = explain(a.explain)
        print(json.dumps({"step": a.explain, **step_info(a.explain)._asdict()}) if a.json else text)
        return 0
    model = load_model(a)
    ids = prompt_ids(model, read_text(a.text) if a.text else a.prompt)
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
        print(json.dumps(result.asdict()))
    else:
        print(result)
    return 0 if result.first is None else 1


def command_calibrate(a: argparse.Namespace) -> int:
    """Find thresholds and write them to a file."""
    from .sparsity.calibrate import calibrate

    model = load_model(a)
    text = text_or_embedded(a.text, "calibration")
    thresholds = calibrate(model, text, a.policy, a.sparsity, a.context, a.by, a.quantile, allocation=a.allocation)
    (thresholds.save_paper if a.paper else thresholds.save)(a.output)
    print(
        json.dumps(thresholds.spec.asdict())
        if a.json
        else f"{thresholds.spec}\nlevel {thresholds.level:.4f} -> {a.output}"
    )
    return 0


def command_sweep(a: argparse.Namespace) -> int:
    """Score policies at sparsities; -o makes a record, from which the same command goes on where it was stopped."""
    import numpy as np

    import minillm

    from .show.canvas import check_figure
    from .show.results import sweep_figure
    from .study.bootstrap import compare_policies, with_intervals
    from .study.sweep import sweep
    from .tables import check_ending, json_rows, text_table

    if a.output:
        check_ending(a.output)
    if a.figure:
        check_figure(a.figure)
    models = [minillm.load(source, dtype=a.dtype) for source in a.model or ["default"]]
    calibration, test = two_texts(a.text, a.calibration)
    if not a.text:
        test = enough_documents(models, test, DEMO_TOKENS, a.context)
        calibration = (
            calibration if a.calibration else enough_documents(models, calibration, DEMO_CALIBRATION, a.context)
        )

    def tell(row: dict) -> None:
        target = "" if row["target"] is None else f" {row['target']:.2f}"
        model = f"{row['model']} " if len(models) > 1 else ""
        say(f"{model}{row['policy']}{target}: perplexity {row['perplexity']:.3f}")

    what = (models, calibration, test, a.policy, a.sparsity, a.by, a.protocol, a.context)
    rows = sweep(*what, output=a.output, jobs=a.jobs, on_row=tell)
    rng = np.random.default_rng(a.seed)
    compared = compare_policies(rows, a.baseline, rng) if len(rows[0]["document_nll"]) > 1 else []
    if a.figure:
        drawn = with_intervals(rows, rng) if len(rows[0]["document_nll"]) > 1 else rows
        write_figure(sweep_figure(drawn), a.figure)
    if a.json:
        print(f'{{"rows": {json_rows(rows)},\n"comparison": {json_rows(compared)}}}')
        return 0
    columns = {"model": ""} if len(models) > 1 else {}
    columns |= {"policy": "", "by": "", "target": ".2f", "achieved": ".3f", "neuron_sparsity": ".3f"}
    columns |= dict.fromkeys(("read_gate", "read_up", "read_down", "read_exact", "read_known_mask"), ".3f")
    columns |= {"union_density": ".3f", "perplexity": ".3f", "vs_dense": ".3f", "bits_per_byte": ".4f"}
    print(text_table(rows, columns | {"tokens": ","}))
    print(f"protocol {rows[0]['protocol']}, context {rows[0]['context']}, BOS {rows[0]['bos']}")
    if compared:
        columns = {"model": ""} if len(models) > 1 else {}
        columns |= {"policy": "", "target": ".2f", "share": ".3f", "baseline_share": ".3f", "log_ratio": "+.4f"}
        print("\n" + text_table(compared, columns | {"low": "+.4f", "high": "+.4f", "verdict": ""}))
        equal = "neuron sparsity" if a.by == "neuron" else "weight reads"
        about = (
            f"log_ratio: ln of the perplexity over that of {a.baseline} at equal {equal} (share, baseline_share: what "
            f"it came to on this text); low, high: 95 % paired bootstrap interval over "
            f"{len(rows[0]['document_nll'])} documents, seed {a.seed}."
        )
        print(wrapped(about))
    return 0


def enough_documents(models: list, text: str, tokens: int, context: int | None) -> list[str]:
    """The first documents of an embedded text, as many as hold that many tokens for each of the models."""
    from .transformer.texts import as_documents, first_tokens

    documents = as_documents(text)
    count = max(len(first_tokens(model, documents, tokens, context)) for model in models)
    if count < len(documents):
        say(f"text: of {len(documents)} documents the first {count}, which hold {tokens:,} tokens")
    return documents[:count]


def command_predict(a: argparse.Namespace) -> int:
    """Make a predictor and write it to a file (train), or score predictors beside chance and the oracle (eval)."""
    return (predict_train if a.what == "train" else predict_eval)(a)


def mid_thresholds(a: argparse.Namespace):
    """The thresholds of --thresholds, or None."""
    from .sparsity.thresholds import Thresholds

    return Thresholds.load(a.thresholds) if a.thresholds else None


def predict_train(a: argparse.Namespace) -> int:
    """Make one predictor on three quarters of a text, and set its cutoffs on the rest."""
    from .predictors.cutoffs import fit_cutoffs
    from .predictors.files import save_predictor
    from .predictors.workshop import Workshop
    from .sparsity.calibrate import calibrate
    from .study.prediction import TRAINING_SHARE, ffn_bytes
    from .transformer.texts import split_text

    if not a.output:
        raise MinillmError("predict train writes a file, expected -o FILE")
    wanted = a.predictor or ["learned"]
    if len(wanted) != 1 or len(a.sparsity) != 1:
        raise MinillmError("predict train makes one predictor, expected one --predictor and one --sparsity")
    model, (name,), (sparsity,) = load_model(a), wanted, a.sparsity
    training, held = split_text(text_or_embedded(a.text or a.calibration, "calibration"), TRAINING_SHARE)
    thresholds = mid_thresholds(a) or calibrate(model, held, "mid", sparsity, a.context, "neuron")
    started = time.perf_counter()
    predictor = Workshop(model, thresholds, training, held, a.context, a.rank, a.seed).make(name)
    fit_cutoffs(model, predictor, thresholds, held, 1 - sparsity, a.context)
    save_predictor(a.output, predictor)
    say(f"{time.perf_counter() - started:.1f} s, seed {a.seed}")
    in_float32, as_stored = ffn_bytes(model)
    shares = {"own_share_float32": predictor.nbytes / in_float32, "own_share_stored": predictor.nbytes / as_stored}
    if a.json:
        about = {"predictor": predictor.name, "fraction": 1 - sparsity, "own_bytes": predictor.nbytes} | shares
        print(json.dumps(about | {"truth": thresholds.spec.asdict(), "file": a.output}))
    else:
        print(
            f"{predictor.name}: {predictor.nbytes:,} bytes, {shares['own_share_float32']:.4f} of the FFNs in float32 "
            f"({shares['own_share_stored']:.4f} as stored); selects {1 - sparsity:.3f} -> {a.output}"
        )
    return 0


def predict_eval(a: argparse.Namespace) -> int:
    """Score predictors at the same selected fraction; a row each, the oracle first."""
    from .study.prediction import prediction_rows, verdict
    from .tables import check_ending, json_rows, save_rows, text_table

    if a.output:
        check_ending(a.output)
    if a.figure:
        from .show.canvas import check_figure
        from .show.results import cost_of_predictors

        check_figure(a.figure)
    model = load_model(a)
    calibration, test = two_texts(a.text, a.calibration)
    if not a.text:
        test = enough_documents([model], test, DEMO_TOKENS, a.context)
    rows, thresholds, wanted = [], mid_thresholds(a), a.predictor or PREDICTORS
    for sparsity in a.sparsity:
        given = (calibration, test, wanted, sparsity, thresholds, a.protocol, a.context, a.rank, a.seed)
        for row in prediction_rows(model, *given):
            rows.append(row)
            say(f"{row['predictor']} at {row['fraction']:.2f}: perplexity {row['perplexity']:.3f}")
            if a.output:
                save_rows(a.output, rows)
    if a.figure:
        write_figure(cost_of_predictors(rows, rows[0]["dense"]), a.figure)
    verdicts = {1 - s: verdict([row for row in rows if row["fraction"] == 1 - s]) for s in a.sparsity}
    if a.json:
        print(f'{{"rows": {json_rows(rows)},\n"verdict": {json.dumps({f"{f:g}": v for f, v in verdicts.items()})}}}')
        return 0
    columns = {"predictor": ""} | dict.fromkeys(("recall", "precision", "f1", "iou", "selected"), ".3f")
    columns |= {"own_bytes": ",", "of float32": ".4f", "of stored": ".4f", "reads": ".3f", "multiply_adds": ",.0f"}
    columns |= {"perplexity": ".3f", "increase": ".3f", "x oracle": ".2f", "kl": ".4f"}
    short = {"of float32": "own_share_float32", "of stored": "own_share_stored", "x oracle": "times_oracle"}
    for fraction, sentences in verdicts.items():
        print(f"Dense {rows[0]['dense']:.3f}; {fraction:.0%} of the neurons selected:\n")
        shown = [row | {k: row[v] for k, v in short.items()} for row in rows if row["fraction"] == fraction]
        print(text_table(shown, columns) + "\n")
        for sentence in sentences:
            print(wrapped(f"{sentence}."))
        print()
    about = (
        f"{rows[0]['tokens']:,} tokens, protocol {rows[0]['protocol']}, context {rows[0]['context']}, BOS "
        f"{rows[0]['bos']}. Truth: {rows[0]['truth']}. Metrics pooled over tokens, mean over layers. own_bytes: the "
        "predictor's tables, and their share of the FFNs' bytes. reads: bytes touched per token, tables included, as a "
        "share of the FFNs' bytes as stored; the oracle's are those of a mask known for nothing. kl: nats per token, "
        "from the dense model."
    )
    print(wrapped(about))
    return 0


def write_figure(figure, path: str) -> None:
    """Write a figure, and say on stderr what it shows."""
    from .show.canvas import alt_text, save_figure

    save_figure(figure, path)
    say(f"figure: {path}: {alt_text(figure)}")


def command_bundle(a: argparse.Namespace) -> int:
    """Write a folder whose FFN weights lie neuron by neuron (or block by block), so that parts can be read alone."""
    from .prefetch.bundle import open_bundle, write_bundle

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
        from .show.canvas import check_figure

        if a.what == "table":
            raise MinillmError("prefetch table draws nothing, expected --figure with simulate, replay or blocks")
        check_figure(a.figure)
    from .sparsity.calibrate import calibrate
    from .transformer.texts import as_documents, default_context, first_tokens

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
    from .predictors.select import sparse_ffn
    from .prefetch.buffer import PrefetchBuffer
    from .prefetch.clock import simulate, work_of
    from .prefetch.record import recorder_for
    from .prefetch.traffic import EVENT_COLUMNS, event_rows
    from .tables import text_table
    from .transformer.generation import generate
    from .transformer.model import shape_of

    ffn = sparse_ffn(model, thresholds)
    recorder, ids = recorder_for(model, ffn), prompt_ids(model, a.prompt)
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
        from .show.results import gantt

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
    """A text through the model of a bundle, its FFN weights on disk: a row per way of fetching (prefetch/real.py)."""
    from .bench.turns import environment
    from .prefetch.bundle import open_bundle, resident_llama, whole_llama
    from .study import disk as real
    from .tables import check_ending, json_rows, save_rows, text_table
    from .transformer.texts import Run, default_context, runs

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
        real.limit_memory(a.memory)
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
        texts, new = real.cut_after(runs(model, test, "documents", context), a.tokens or REAL_TOKENS), 0
    else:
        ids = prompt_ids(model, a.prompt) if model.has_tokenizer else [model.config.bos_token_id or 0]
        texts, new = [Run(ids, len(ids), 0, 0)], new_tokens(a, model, ids, 40)
    ways, frequencies = real_ways(a, bundle, whole, texts, new, sparsity, context)

    rows, resident = [], None
    if whole:
        row, resident = real.resident_row(whole, texts, new)
        rows.append(row)
        result = resident
    buffers = [(keeper, share) for share in a.capacity or [0, 0.5] if share for keeper in a.keepers or ["lru"]]
    for way in ways:
        for keeper, share in [(None, 0), *(buffers if way is not real.EVERYTHING else [])]:
            if keeper == "belady" and whole and way.trace is None:
                continue  # the future is the oracle's alone
            for ahead in (False, True):
                row, result = real.fetched_row(
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
    print("\n" + text_table(real.as_shown(rows), real.ROW_COLUMNS) + "\n")
    done = f"a prompt of {len(texts[0].ids)} continued greedily" if new else "scored"
    print(wrapped(f"{rows[-1]['tokens']:,} tokens, each alone, {done}. {REAL_WORDS}"))
    if (agree := real.counters_agree(rows)) is not None:
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

    from .predictors.baselines import Chance
    from .predictors.cutoffs import fit_cutoffs
    from .predictors.files import load_predictor
    from .predictors.protocol import check_fits
    from .predictors.workshop import Workshop
    from .sparsity.calibrate import calibrate
    from .study import disk as real
    from .study.prediction import TRAINING_SHARE
    from .transformer.texts import as_documents, first_tokens, runs, split_text

    config = bundle.config
    if whole is None:
        ways = [real.EVERYTHING]
        for name in a.predictor or []:
            if name == "chance":  # uniform numbers, whose quantiles are known
                predictor = Chance((config.num_hidden_layers, config.hidden_size, config.intermediate_size), a.seed)
                predictor.cutoffs = np.full(config.num_hidden_layers, sparsity)
            elif not Path(name).is_file():
                raise MinillmError(f"--memory leaves no room to make {name}, expected a predictor's file, or chance")
            else:
                check_fits(predictor := load_predictor(name), real.resident_llama(bundle))
            ways.append(real.way_of(predictor, bundle, 1 - sparsity))
        return ways, None
    known = two_texts(a.text, a.calibration)[0] if a.text else text_or_embedded(a.calibration, "calibration")
    known = first_tokens(whole, as_documents(known), DEMO_CALIBRATION, context)
    thresholds = mid_thresholds(a) or calibrate(whole, known, "mid", sparsity, context, "neuron")
    training, held = split_text(known, TRAINING_SHARE)
    ffn = real.oracle_ffn(whole, bundle, thresholds, 1 - sparsity)
    ways = [real.EVERYTHING, real.oracle(whole, bundle, ffn, texts, new)]
    workshop = Workshop(whole, thresholds, training, held, context, a.rank, a.seed)
    for name in a.predictor or ["shadow-4"]:
        check_fits(predictor := workshop.make(name), whole)
        if predictor.cutoffs is None and bundle.group == 1:
            fit_cutoffs(whole, predictor, thresholds, held, 1 - sparsity, context)
        ways.append(real.way_of(predictor, bundle, 1 - sparsity))
    counted = "hot" in (a.keepers or [])
    pieces = runs(whole, known, "documents", context)
    return ways, real.block_frequencies(whole, bundle, ffn, pieces) if counted else None


def known_neurons(a: argparse.Namespace, model, thresholds, calibration, context: int, wanted):
    """The ways to know a token's neurons (study/prefetching.py) that are asked for, and each neuron's frequency."""
    from .predictors.select import sparse_ffn
    from .predictors.workshop import Workshop
    from .prefetch.record import frequencies, record
    from .study.buffers import ways_of
    from .study.prediction import TRAINING_SHARE
    from .transformer.texts import runs, split_text

    training, held = split_text(calibration, TRAINING_SHARE)
    ways = ways_of(Workshop(model, thresholds, training, held, context, a.rank, a.seed), wanted, a.sparsity)
    ffn = sparse_ffn(model, thresholds)
    return ways, frequencies(record(model, ffn, runs(model, calibration, "documents", context)).needed)


def prefetch_replay(a: argparse.Namespace, model, thresholds, calibration, test, context: int) -> int:
    """Keepers times capacities times predictors on one recorded text."""
    from .prefetch.replay import KEEPERS, ROW_COLUMNS, SHARES
    from .study.buffers import prefetch_rows, when_it_matters
    from .tables import check_ending, json_rows, save_rows, text_table

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
        from .show.canvas import new_axes
        from .show.results import bytes_by_capacity, hit_rate_by_capacity

        hits, fetched = new_axes(1, 2)
        last = [row for row in rows if row["predictor"] == rows[-1]["predictor"]]  # more curves than these hide another
        hit_rate_by_capacity(last, ax=hits).get_legend().remove()
        bytes_by_capacity(last, ax=fetched)
        write_figure(hits.figure, a.figure)
    if a.json:
        print(json_rows(rows))
        return 0
    print(text_table(rows, {"predictor": "", "role": "", "perplexity": ".3f"} | ROW_COLUMNS))
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
    from .prefetch.replay import SHARES
    from .study.buffers import TABLE_COLUMNS, TABLE_PREDICTORS, buffer_rows, when_it_matters
    from .tables import check_ending, json_rows, save_rows, text_table

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

    from .study import blocks as prefetching
    from .tables import check_ending, json_rows, save_rows, text_table

    if a.output:
        check_ending(a.output)
    speeds, rows = prefetching.read_speeds(a.speed) if a.speed else None, []
    if not speeds:
        say("speed: the table in prefetch/kernels.py; --speed takes what `minillm bench ffn --json` measures here")
    how = {"groups": a.groups or prefetching.GROUPS, "sparsities": a.sparsity or prefetching.SPARSITIES}
    making = prefetching.joint_rows(model, calibration, test, speeds, **how, context=context, seed=a.seed)
    for row in tqdm(making, desc="blocks", unit="row", leave=False, disable=None):
        rows.append(row)
        if a.output:
            save_rows(a.output, rows)
    if a.figure:
        points = prefetching.cheaper_points(rows)
        if not points:
            raise MinillmError(f"{a.speed}: holds no speed of these groups and sparsities, expected one to draw")
        from .show.canvas import new_axes
        from .show.results import speed_against_perplexity

        panels = new_axes(1, 2)
        whole = f"a whole token (the FFNs hold {points[0]['ffn_share']:.0%} of its bytes)"
        for ax, token, what in zip(panels, (False, True), ("the FFN alone", whole), strict=True):
            speed_against_perplexity(points, token, ax=ax)
            ax.title.set_text(f"{model.name}: {what}")  # in the letters that the figure's style has
        panels[0].get_legend().remove()
        write_figure(panels[0].figure, a.figure)
    sentences = prefetching.which_point(rows)
    if a.json:
        print(f'{{"rows": {json_rows(rows)},\n"sentences": {json.dumps(sentences)}}}')
        return 0
    print(text_table(prefetching.joint_table(rows), prefetching.JOINT_COLUMNS))
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


def command_patterns(a: argparse.Namespace) -> int:
    """Compare activation patterns of texts and edited variants (the paper's Table II), with controls."""
    import numpy as np

    from .sparsity.calibrate import calibrate
    from .sparsity.thresholds import Thresholds
    from .study.edits import SCOPES, predictability, published, reference
    from .study.variants import made_pairs, released_pairs, text_pairs
    from .tables import check_ending, save_rows, text_table
    from .transformer.texts import as_documents, default_context, document_hashes, first_tokens

    if a.output:
        check_ending(a.output)
    if a.variant and not a.text:
        raise MinillmError("--variant came without --text, expected the original text beside its variants")
    if a.released and a.text:
        raise MinillmError("--released and --text were both given, expected one of them")
    model = load_model(a)
    context = a.context or default_context(model)
    if a.released:
        pairs, about = released_pairs(model, a.released), f"the texts of {a.released}"
        texts = []
    elif a.variant:
        texts = [read_text(a.text)]
        pairs = text_pairs(model, Path(a.text).stem, texts[0], {Path(v).stem: read_text(v) for v in a.variant})
        about = f"{a.text} and the variants given"
    else:
        texts = first_tokens(model, as_documents(text_or_embedded(a.text, "test")), PATTERN_TOKENS, context)
        pairs = made_pairs(model, texts, np.random.default_rng(a.seed))
        about = f"{len(texts)} document{'s'[: len(texts) > 1]}, variants made with seed {a.seed}"
    known = as_documents(text_or_embedded(a.calibration, "calibration"))
    known = first_tokens(model, known, DEMO_CALIBRATION, context)
    if mixed := len(set(document_hashes(known)) & set(document_hashes(texts))):
        say(f"minillm: note: {mixed} of the documents are in the calibration text, too")
    if a.thresholds:
        thresholds = Thresholds.load(a.thresholds)
    else:
        thresholds = calibrate(model, known, "dhar", a.sparsity, context)
    measured = predictability(model, reference(model, thresholds, known, context), pairs, context)
    rows = measured.rows(by_text=True)
    if a.output:
        save_rows(a.output, rows)
    pooled, layers = measured.rows(by_layer=False), measured.rows()
    table_two = published(measured)
    if a.json:
        print(json.dumps({"model": model.name, "pooled": pooled, "layers": layers, "published": table_two}, indent=1))
        return 0
    headings = {"chance": "chance_match", "static": "static_match", "unrelated": "unrelated_match"}
    headings |= {"static recall": "static_recall", "chance IoU": "chance_iou", "IoU": "iou", "whole text": "whole_text"}
    for line in pooled:
        line.update({heading: line[key] for heading, key in headings.items()})
    columns = {"variant": "", "scope": "", "positions": ",", "density": ".3f", "match": ".4f"}
    columns |= dict.fromkeys(("chance", "static", "unrelated", "recall", "static recall", "IoU", "chance IoU"), ".3f")
    columns |= {"whole text": ".3f"}
    print(text_table(pooled, columns))
    per_layer = []
    scopes = [scope for scope in SCOPES if any(row["scope"] == scope for row in layers)]
    for row in measured.rows(by_variant=False):
        if row["layer"] == len(per_layer):
            per_layer.append({"layer": row["layer"]})
        per_layer[row["layer"]][row["scope"]] = row["match"]
        if row["scope"] == "window":  # the controls differ little between scopes: those of all positions are shown
            per_layer[row["layer"]] |= {kind: row[f"{kind}_match"] for kind in ("chance", "static", "unrelated")}
    print("\nMatch per layer, all variants together:\n")
    columns = {"layer": "d"} | dict.fromkeys([*scopes, "chance", "static", "unrelated"], ".4f")
    print(text_table(per_layer, columns))
    if any(line["our after"] is not None for line in table_two):
        forms = {key: "" if isinstance(value, str) else ".4f" for line in table_two for key, value in line.items()}
        print("\nTable II as published (Llama-3-8B, first layer), beside chance and what was measured here:\n")
        print(text_table(table_two, forms))
    print()
    print(wrapped(f"Read: {about}; window {context} with the first edit at its middle, BOS included. {PATTERN_WORDS}"))
    return 0


def command_grade(a: argparse.Namespace) -> int:
    """Grade seven functions that a student wrote; FILE is executed. Exit status 1 when something is wrong."""
    from .course.assignment import FUNCTIONS, POINTS, grade_file, template, write_template

    if a.template == bool(a.file):
        raise MinillmError("expected one of FILE and --template")
    if a.template:
        if a.output:
            write_template(a.output)
            say(f"to be filled in: {a.output}; then: minillm grade {a.output}")
        else:
            print(template(), end="")
        return 0
    if a.output:
        raise MinillmError("-o is the name for --template, expected FILE alone")
    report = grade_file(a.file, a.seconds)
    if a.json:
        print(json.dumps(report.asdict()))
        return 0 if report.all_right else 1
    width = max(map(len, FUNCTIONS))
    print(f"{'function':<{width}}    cases  points  what is wrong")
    for grade in report.grades:
        start = f"{grade.function:<{width}}  {grade.right:>2} of {grade.total:<2} {grade.points:>6.1f}  "
        print(wrapped(grade.diagnosis or grade.problem or "-", start))
    print(f"{'together':<{width}}           {report.points:>5.1f}  of {POINTS * len(FUNCTIONS)}\n")
    block = report.block
    if block is None:
        print(wrapped(f"The functions as one block: {report.trouble}."))
    elif len(block.replaced) == len(FUNCTIONS):
        print("There is nothing yet to run as one block.")
    else:
        if block.first:
            print(f"The functions as one block, step by step:\n\n{block.table}\n")
            print(wrapped(f"First wrong step: {block.first} ({block.function}): {block.how}."))
        else:
            print(f"The functions as one block: all {len(block.steps)} steps agree.")
        if block.replaced:
            print(wrapped(f"In the place of {', '.join(block.replaced)}: the right values."))
    return 0 if report.all_right else 1


def command_report(a: argparse.Namespace) -> int:
    """One page of HTML with the whole study of one model: costs, predictors, buffer; opens without a network."""
    from .show.html import check_page, write_page
    from .show.page import page_of
    from .study.summary import measure

    check_page(a.output)
    model = load_model(a)
    kept = {key: getattr(a, key) for key in ("model", "text", "tokens", "prompt", "context", "seed", "dtype")}
    how = {"tokens": a.tokens, "prompt": a.prompt, "context": a.context, "seed": a.seed}
    started = time.perf_counter()
    study = measure(model, *two_texts(a.text), kept, **how)
    write_page(a.output, page_of(study))
    say(f"{time.perf_counter() - started:.1f} s")
    size = Path(a.output).stat().st_size
    print(json.dumps({"file": a.output} | study.asdict()) if a.json else f"{a.output}: {size:,} bytes")
    return 0


def command_download(a: argparse.Namespace) -> int:
    """Fetch a model into the hub's cache."""
    from .loading.hub import download

    folder = download(a.repository)
    print(json.dumps({"folder": str(folder), "commit": folder.name}) if a.json else folder)
    say(f"commit {folder.name}: pin it as {a.repository.partition('@')[0]}@{folder.name}")
    return 0


def command_bench(a: argparse.Namespace) -> int:
    """Measure speed, in turns: decoding, scoring and starting beside a limit and a rival; sparse FFNs (ffn, disk).

    ffn: a share of the neurons against all of them, in memory. disk: the same, read from a folder of bundles.
    """
    from .bench import model as bench
    from .bench import sparse as bench_sparse
    from .loading.hub import resolve

    flags = {"sparsity": a.sparsity, "groups": a.groups, "layers": a.layers}
    sparse = {"ffn": ("sparsity", "groups"), "disk": ("sparsity", "groups", "layers")}.get(a.what, ())
    if unused := [f"--{name}" for name, value in flags.items() if value and name not in sparse]:
        raise MinillmError(f"bench {a.what} has no use for {unused[0]}")
    if a.what in ("ffn", "disk"):
        if a.model:
            raise MinillmError(f"bench {a.what} measures random weights of a --shape, expected no --model")
        given = {"sparsities": a.sparsity, "groups": a.groups, "layers": a.layers}
        given = {name: value for name, value in given.items() if value}
        measure = bench_sparse.bench_ffn if a.what == "ffn" else bench_sparse.bench_disk
        result = measure(sparse_shape(a.shape or ["1B"]), rounds=a.rounds, threads=a.threads, **given)
        print(json.dumps(result, indent=1) if a.json else bench_sparse.as_text(result))
        return 0
    (shape,) = a.shape if a.shape and len(a.shape) == 1 else ["15M"] if not a.shape else [" ".join(a.shape)]
    if shape not in bench.SHAPES:
        raise MinillmError(f"--shape is {shape}, expected one of {', '.join(bench.SHAPES)} for bench {a.what}")
    result = bench.bench(a.what, shape, resolve(a.model) if a.model else None, a.rounds, a.threads)
    print(json.dumps(result, indent=1) if a.json else bench.as_text(result))
    return 0


def sparse_shape(words: list[str]) -> str | tuple[int, int]:
    """--shape of bench ffn and disk: a preset's name, or the sizes D and F."""
    if len(words) == 1 and not words[0].isdecimal():
        return words[0]
    if len(words) != 2 or not all(word.isdecimal() for word in words):
        raise MinillmError(f"--shape is {' '.join(words)}, expected a name, or a hidden and an intermediate size")
    return int(words[0]), int(words[1])


# ---- the parser ------------------------------------------------------------------------------------------------------


def share(text: str) -> float:
    """A share from 0 to below 1."""
    with expecting("a share from 0 to below 1", text):
        value = float(text)
        if not 0 <= value < 1:
            raise ValueError
    return value


def whole(text: str, least: int = 0) -> int:
    """A whole number of at least ``least``."""
    with expecting(f"a whole number of at least {least}", text):
        value = int(text)
        if value < least:
            raise ValueError
    return value


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return whole(text, 1)


@contextmanager
def expecting(what: str, found: str):
    """Turn a ValueError inside into argparse's error, which says what was expected."""
    try:
        yield
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {found!r}, expected {what}") from None


def shares(text: str) -> list[float]:
    """Shares separated by commas."""
    return [share(part) for part in text.split(",")]


def shares_to_all(text: str) -> list[float]:
    """Shares separated by commas, 1 among them allowed."""
    return [1.0 if part.strip() in ("1", "1.0") else share(part) for part in text.split(",")]


def wholes(text: str) -> list[int]:
    """Whole numbers of at least 1, separated by commas."""
    return [positive(part) for part in text.split(",")]


def names(text: str) -> list[str]:
    """Names separated by commas."""
    return [part.strip() for part in text.split(",")]


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
