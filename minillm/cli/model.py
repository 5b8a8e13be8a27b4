"""TODO."""

import argparse
import json
import time
from pathlib import Path

from ..errors import MinillmError
from .flags import (
    DEMO_TOKENS,
    load_ffn,
    load_model,
    new_tokens,
    prompt_ids,
    read_text,
    say,
    text_or_embedded,
    wrapped,
    write_figure,
)


def command_generate(a: argparse.Namespace) -> int:
    """Continue a prompt."""
    import numpy as np

    from ..transformer.generation import generate

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
    from ..sparsity.spec import SparsityMeter
    from ..transformer.evaluation import perplexity

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

    from ..loading.checkpoint import checkpoint_tensors
    from ..study.describe import PART_COLUMNS, describe, headline
    from ..tables import keys_as_headings, text_table

    wanted = a.natural or (a.text and not a.distributions), a.distributions
    if a.figure:
        from ..show.canvas import check_figure

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
    print(text_table(describe(model), PART_COLUMNS) + "\n")
    for key, value in asdict(model.config).items():
        print(f"{key:<26}{value}")
    if model.has_tokenizer:
        print(f"{'BOS that is put in front':<26}{list(model.tokenizer.bos_ids)}")
    for tensor in tensors:
        tensor["shape"] = " x ".join(map(str, tensor["shape"]))
    columns = keys_as_headings({"tensor": "", "dtype": "", "shape": "", "bytes": ",", "file": ""})
    print("\n" + text_table(tensors, columns))
    if natural:
        print(f"\nNatural sparsity: nothing is cut, {natural[0]['tokens']:,} tokens, BOS included.\n")
        print(text_table(natural, keys_as_headings({"layer": "d"} | dict.fromkeys(list(natural[0])[2:], ".4f"))))
        about = "Zeros are exact. Below 1 % (10 %): of the root mean square of the gates of the same token and layer."
        print("\n" + wrapped(about))
    if distributions:
        print_distributions(**distributions)
    return 0


def counted_documents(model, path: str | None) -> list[str]:
    """As much of a text as the demo scores."""
    from ..transformer.texts import as_documents, first_tokens

    return first_tokens(model, as_documents(text_or_embedded(path, "test")), DEMO_TOKENS)


def natural_rows(model, path: str | None, figure: str | None) -> list[dict]:
    """Natural sparsity per layer on a text, and its figure where one is asked for."""
    from ..study.natural import natural_sparsity

    rows = natural_sparsity(model, counted_documents(model, path))
    if figure:
        from ..show.results_distributions import natural_by_layer

        write_figure(natural_by_layer({model.name: rows}), figure)
    return rows


def distribution_rows(model, path: str | None, figure: str | None) -> dict[str, list[dict]]:
    """Tables of weight and activation magnitudes, and the activations' figure where one is asked for."""
    from ..study import distributions

    magnitudes = distributions.activation_magnitudes(model, counted_documents(model, path))
    if figure:
        from ..show.results_distributions import magnitudes_figure

        curves = {step: distributions.curve(magnitudes, step) for step in magnitudes.layers[0]}
        write_figure(magnitudes_figure(curves, model.name), figure)
    weights = distributions.weight_magnitudes(model)
    return {"weight_magnitudes": weights, "activation_magnitudes": distributions.activation_rows(magnitudes)}


def print_distributions(weight_magnitudes: list[dict], activation_magnitudes: list[dict]) -> None:
    """The two tables of ``distribution_rows``, with what one must know to read them."""
    from ..study.distributions import NEAR, normal_below
    from ..tables import keys_as_headings, text_table

    print("\nMagnitudes of the FFN's weights.\n")
    columns = {"layer": "d", "matrix": ""} | dict.fromkeys(list(weight_magnitudes[0])[3:], ".4f")
    print(text_table(weight_magnitudes, keys_as_headings(columns)) + "\n")
    normal = " and ".join(f"{normal_below(near):.4f}" for near in NEAR)
    about = "Zeros are exact. Below 1 % (10 %): of the matrix's own root mean square (rms)"
    print(wrapped(f"{about}; of a normal distribution {normal} would lie there."))
    print("\nMagnitudes of the FFN's activations: the share up to a magnitude, and the median.\n")
    columns = {"step": "", "layer": "d"} | dict.fromkeys(list(activation_magnitudes[0])[2:], ".3f")
    print(text_table(activation_magnitudes, keys_as_headings(columns | {"median": ".4f"})))


def command_trace(a: argparse.Namespace) -> int:
    """Record every intermediate of one pass."""
    from ..steps import explain, step_info
    from ..trace import Trace

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
    from ..trace import compare

    result = compare(a.ours, a.theirs, a.rtol)
    if a.json:
        print(json.dumps(result.asdict()))
    else:
        print(result)
    return 0 if result.first is None else 1


def command_download(a: argparse.Namespace) -> int:
    """Fetch a model into the hub's cache."""
    from ..loading.hub import download

    folder = download(a.repository)
    print(json.dumps({"folder": str(folder), "commit": folder.name}) if a.json else folder)
    say(f"commit {folder.name}: pin it as {a.repository.partition('@')[0]}@{folder.name}")
    return 0
