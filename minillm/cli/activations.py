"""The command activations: which activation suits sparse inference, on the three axes of ReLU^2 Wins."""

from __future__ import annotations

import argparse
import json

from . import flags
from .shared import say, two_samples, with_bos, wrapped, write_figure

MODELS = ("default-silu", "default-gelu", "default-relu", "default-relu2")  # they differ in the activation alone
TRADEOFF_COLUMNS = {
    "model": ("model", ""), "policy": ("policy", ""), "by": ("by", ""), "target": ("target", ".2f"),
    "neuron_sparsity": ("neurons cut", ".3f"), "zeros": ("exact zeros", ".3f"), "perplexity": ("perplexity", ".3f"),
    "vs_dense": ("vs dense", ".3f"),
}  # fmt: skip
PREDICTION_COLUMNS = {
    "model": ("model", ""), "predictor": ("predictor", ""), "active": ("active", ".3f"),
    "selected": ("selected", ".3f"), "recall": ("recall", ".3f"), "precision": ("precision", ".3f"),
    "perplexity": ("perplexity", ".3f"), "vs_dense": ("vs dense", ".3f"),
}  # fmt: skip


def add(commands: flags.Commands) -> None:
    """Add the command of this file."""
    flags.command(
        commands, "activations", command_activations,
        flags.flag("--model", "-m", action="append", help=f"repeatable (default: {', '.join(MODELS)})"), flags.text(),
        flags.flag("--by", choices=("cett", "neuron", "ppl"), default="cett",
                   help="what --sparsity counts: the output lost, neurons, or the increase of perplexity "
                   "(default: cett)"),
        flags.flag("--sparsity", type=flags.share, default=0.2,
                   help="the target of policy cett for predictors and reuse (default: 0.2)"),
        flags.context(), flags.seed(), flags.figure(), flags.running(),
        flags.calibration("text for thresholds and predictors (default: the first 40 %% of --text, or the embedded "
                          "one)"),
        flags.tokens(f"{flags.DEMO_TOKENS:,}"), flags.calibration_tokens(f"{flags.DEMO_TOKENS:,}"),
        example="minillm activations --by neuron --sparsity 0.8",
    )  # fmt: skip


def command_activations(a: argparse.Namespace) -> int:
    """Compare activations for sparse inference: sparsity against perplexity, predictors, reuse (ReLU^2 Wins)."""
    import minillm

    from ..study import relu2
    from ..study.checkpoints import Texts
    from ..tables import json_rows

    if a.figure:
        from ..show.canvas import check_figure

        check_figure(a.figure)
    models = [with_bos(a, minillm.load(source, dtype=a.dtype)) for source in a.model or MODELS]
    known, test = two_samples(a, models, flags.DEMO_TOKENS)
    texts, level = Texts(known, test, a.context), relu2.Level(a.by, a.sparsity)
    say("sparsity against performance")
    tradeoff = relu2.tradeoff_rows(models, texts)
    predictivity, affinity = [], []
    for model in models:
        say(f"{model.name}: predictors and reuse")
        predictivity += relu2.predictivity_rows(model, texts, level, seed=a.seed)
        affinity.append(relu2.affinity_row(model, texts, level))
    if a.figure:
        from ..show.results_activations import activations_figure

        write_figure(a.figure, activations_figure(tradeoff, predictivity, affinity))
    if a.json:
        parts = {"tradeoff": tradeoff, "predictivity": predictivity, "affinity": affinity}
        print("{" + ",\n".join(f"{json.dumps(name)}: {json_rows(rows)}" for name, rows in parts.items()) + "}")
        return 0
    print_axes(tradeoff, predictivity, affinity, f"policy cett by {a.by}, target {a.sparsity:g}")
    return 0


def print_axes(tradeoff: list[dict], predictivity: list[dict], affinity: list[dict], level: str) -> None:
    """The three tables, each with what one must know to read it."""
    from ..tables import keys_as_headings, text_table

    print("1. Sparsity against performance\n")
    print(text_table(tradeoff, TRADEOFF_COLUMNS))
    about = (
        "Cut is every neuron whose part of the output, |mid| times the length of its column, is below its layer's "
        "threshold. By cett: the share of the output that is lost; by ppl: the increase of perplexity, on the "
        "calibration text."
    )
    print(wrapped(about) + f"\n\n2. Predictivity ({level})\n")
    rows = [row | {"vs_dense": row["perplexity"] / row["dense"]} for row in predictivity]
    print(text_table(rows, PREDICTION_COLUMNS, names=2))
    about = (
        "Each predictor selects as many neurons as are active at that level, on the calibration text. True is the mask "
        "of policy mid with as many neurons. Perplexity is with the predicted mask."
    )
    print(wrapped(about) + f"\n\n3. Hardware affinity ({level})\n")
    print(text_table(affinity, keys_as_headings({"model": ""} | dict.fromkeys(list(affinity[0])[4:], ".3f"))))
    about = (
        "reuse_k: share of a token's active neurons that the last k tokens had, too; chance_k: the same for tokens "
        "that draw neurons at random, with the same frequencies; hot_q: what the most frequent q % of the neurons have "
        "of all activations; gini: 0 where all neurons are equally frequent. Fewer active neurons are reused less for "
        "that reason alone: --by neuron compares at equal sparsity."
    )
    print(wrapped(about))
