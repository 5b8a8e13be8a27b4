"""Commands that run one model: generate and perplexity.

Each of them is dense unless --thresholds (and --predictor) say what to cut, and prints the same figures in both cases.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from typing import TYPE_CHECKING

from ..errors import show
from . import flags
from .shared import (
    enough_documents,
    load_ffn,
    load_model,
    new_tokens,
    prompt_ids,
    say,
    text_or_embedded,
    wrapped,
)

if TYPE_CHECKING:
    pass

TEXT = "\n\t"  # what a text may hold; all else that steers a terminal is shown escaped


def add(commands: flags.Commands) -> None:
    """Add the commands of this file."""
    cut, run = flags.cutting(), flags.running()
    prompt, sampling = flags.prompt(required=True), flags.sampling()
    flags.command(commands, "generate", command_generate, flags.model(), prompt, sampling, cut, run)

    protocol, context = flags.protocol(), flags.context()
    flags.command(commands, "perplexity", command_perplexity, flags.model(), flags.text(), cut, protocol, context,
                  flags.tokens("all of it"), run)  # fmt: skip


def command_generate(a: argparse.Namespace) -> int:
    """Continue a prompt."""
    import numpy as np

    from ..transformer.generation import generate

    model = load_model(a)
    ids = prompt_ids(model, a.prompt)
    count = new_tokens(a, model, ids, flags.GENERATED)
    ffn = load_ffn(a, model)
    rng = np.random.default_rng(a.seed)
    stream = generate(
        model, ids, count, temperature=a.temperature, top_k=a.top_k, top_p=a.top_p, min_p=a.min_p, rng=rng, ffn=ffn
    )
    how = "greedy" if a.temperature == 0 else f"temperature {a.temperature:g}"
    say(f"{how}, seed {a.seed}, prompt of {len(ids)} tokens")
    if not a.json:
        print(f"{show(a.prompt, keep=TEXT)}|", end="", flush=True)  # what follows the bar is the model's
    started, steps = time.perf_counter(), []
    for step in stream:
        steps.append(step)
        if not a.json:
            print(show(step.text, keep=TEXT), end="", flush=True)
    seconds = time.perf_counter() - started
    if a.json:
        text = "".join(step.text for step in steps)
        tokens, logprobs = [s.token for s in steps], [s.logprob for s in steps]
        print(json.dumps({"prompt": a.prompt, "text": text, "tokens": tokens, "logprobs": logprobs, "seed": a.seed}))
    else:
        print()
    say(f"{len(steps)} tokens in {seconds:.2f} s, {len(steps) / seconds:.0f} per second (prompt included)")
    return 0


def command_perplexity(a: argparse.Namespace) -> int:
    """Score a text."""
    from ..sparsity.spec import SparsityMeter
    from ..study.bootstrap import difference, in_words
    from ..transformer.evaluation import perplexity

    model = load_model(a)
    ffn, meter = load_ffn(a, model), SparsityMeter()
    text: str | list[str] = text_or_embedded(a.text, "test")
    if a.tokens:
        text = enough_documents([model], text, a.tokens, a.context)
    score = perplexity(model, text, a.protocol, a.context, ffn, meter)
    report = meter.report()
    dense = perplexity(model, text, a.protocol, a.context) if a.thresholds else score
    if a.json:
        of_score = ("protocol", "context", "bos", "nll", "tokens", "bytes", "perplexity", "bits_per_byte")
        of_report = ("neuron_sparsity", "read_exact", "read_known_mask", "union_density")
        fields = {key: getattr(score, key) for key in of_score} | {key: getattr(report, key) for key in of_report}
        fields |= {"dense_perplexity": dense.perplexity}
        fields["read_exact"] = [None if math.isnan(share) else share for share in report.read_exact]
        fields = {key: None if value == math.inf else value for key, value in fields.items()}  # JSON has no infinity
        thresholds = show(a.thresholds) if a.thresholds else None
        print(json.dumps({"model": model.name, "dtype": str(model.dtype), "thresholds": thresholds} | fields))
        return 0
    print(wrapped(str(score)))
    if a.thresholds:
        gate, up, down = report.read_exact
        added = in_words(*difference(score, dense), "+.4f")
        print(wrapped(f"dense: perplexity {dense.perplexity:.4f}; the cut adds {added}"))
        about = (
            f"neuron sparsity {report.neuron_sparsity:.4f}; weights read per token: gate {gate:.3f}, "
            f"up {'-' if math.isnan(up) else format(up, '.3f')}, "
            f"down {down:.3f} (exact), {report.read_known_mask[0]:.3f} each (mask known beforehand); "
            f"{report.union_window} successive tokens together need {report.union_density or 0:.3f} of the neurons"
        )
        print(wrapped(about))
    return 0
