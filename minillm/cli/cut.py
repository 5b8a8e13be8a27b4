"""Commands about cutting: calibrate finds thresholds for one policy, sweep scores policies at several sparsities."""

from __future__ import annotations

import argparse
import json

from . import flags
from .shared import enough_documents, load_model, models_of, say, text_or_embedded, two_texts, wrapped, write_figure

SWEEP_COLUMNS = {
    "policy": ("policy", ""), "by": ("by", ""), "target": ("target", ".2f"), "achieved": ("achieved", ".3f"),
    "neuron_sparsity": ("neurons cut", ".3f"), "perplexity": ("perplexity", ".3f"), "vs_dense": ("vs dense", ".3f"),
    "bits_per_byte": ("bits/byte", ".4f"), "tokens": ("tokens", ","), "union_density": ("union", ".3f"),
    "read_gate": ("read gate", ".3f"), "read_up": ("read up", ".3f"), "read_down": ("read down", ".3f"),
    "read_exact": ("read", ".3f"), "read_known_mask": ("known mask", ".3f"),
}  # fmt: skip
COMPARISON_COLUMNS = {
    "policy": ("policy", ""), "target": ("target", ".2f"), "share": ("share", ".3f"),
    "baseline_share": ("baseline share", ".3f"), "log_ratio": ("log ratio", "+.4f"), "low": ("low", "+.4f"),
    "high": ("high", "+.4f"), "verdict": ("verdict", ""),
}  # fmt: skip


def add(commands: flags.Commands) -> None:
    """Add the commands of this file."""
    policy = flags.flag("--policy", choices=flags.POLICY_NAMES, default="dhar", help="what to cut by (default: dhar)")
    sparsity = flags.flag("--sparsity", type=flags.share, default=0.5, help="the target (default: 0.5)")
    output = flags.output("the thresholds' file (JSON)", required=True)
    inputs = flags.model(), flags.text()
    calibrate = flags.command(
        commands, "calibrate", command_calibrate,
        *inputs, policy, sparsity, flags.by(), flags.context(), flags.tokens("all of it"), output, flags.running(),
    )  # fmt: skip
    calibrate.add_argument(
        "--quantile",
        choices=("exact", "streaming"),
        help="of values (default: exact where all of them fit in memory)",
    )
    calibrate.add_argument(
        "--allocation", choices=("uniform", "greedy"), default="uniform",
        help="teal, wina: one level for all layers, or to each layer the shares that cost it least (default: uniform)",
    )  # fmt: skip
    calibrate.add_argument("--paper", action="store_true", help="write the format of the paper's released files")
    add_sweep(commands)


def add_sweep(commands: flags.Commands) -> None:
    """Add ``minillm sweep``, which takes several models, policies and sparsities."""
    sweep = flags.command(
        commands, "sweep", command_sweep,
        flags.models(), flags.text(),
        flags.flag("--policy", type=flags.names, default=",".join(flags.DEMO_POLICIES), help="comma-separated"),
        flags.flag("--sparsity", type=flags.shares, default="0.3,0.5,0.7", help="comma-separated"),
        flags.by(), flags.method(), flags.protocol(), flags.context(), flags.seed("of the intervals (default: 0)"),
        flags.workers(),
        flags.output("rows as .csv or .json, written after every row; rows that the file has are not computed again"),
        flags.figure(), flags.running(),
        flags.calibration("text for thresholds (default: the first 40 %% of --text, or the embedded one)"),
        flags.tokens(f"all of --text, {flags.DEMO_TOKENS:,} of the embedded one"),
        flags.calibration_tokens(f"all of a file, {flags.DEMO_CALIBRATION:,} of the embedded one"),
    )  # fmt: skip
    sweep.add_argument(
        "--baseline", metavar="POLICY", default="mid",
        help="with --by neuron or reads, the policy that the others are compared with (default: mid)",
    )  # fmt: skip


def command_calibrate(a: argparse.Namespace) -> int:
    """Find thresholds and write them to a file."""
    from ..sparsity.calibrate import calibrate

    model = load_model(a)
    text: str | list[str] = text_or_embedded(a.text, "calibration")
    if a.tokens:
        text = enough_documents([model], text, a.tokens, a.context)
    thresholds = calibrate(model, text, a.policy, a.sparsity, a.context, a.by, a.quantile, allocation=a.allocation)
    (thresholds.save_paper if a.paper else thresholds.save)(a.output)
    in_words = f"{wrapped(str(thresholds.spec))}\n{wrapped(f'level {thresholds.level:.4f} -> {a.output}')}"
    print(json.dumps(thresholds.spec.asdict()) if a.json else in_words)
    return 0


def command_sweep(a: argparse.Namespace) -> int:
    """Score policies and methods at several sparsities; a stopped sweep continues from the rows in its -o file."""
    import numpy as np

    from ..show.canvas import check_figure
    from ..show.results_cuts import sweep_figure
    from ..study.bootstrap import compare_policies, with_intervals
    from ..study.sweep import sweep
    from ..tables import check_ending, json_rows

    if a.output:
        check_ending(a.output)
    if a.figure:
        check_figure(a.figure)
    models = models_of(a)
    calibration, test = two_texts(a.text, a.calibration)
    if tokens := a.tokens or (None if a.text else flags.DEMO_TOKENS):
        test = enough_documents(models, test, tokens, a.context)
    if tokens := a.calibration_tokens or (None if a.text or a.calibration else flags.DEMO_CALIBRATION):
        calibration = enough_documents(models, calibration, tokens, a.context)

    def report(row: dict) -> None:
        target = "" if row["target"] is None else f" {row['target']:.2f}"
        model = f"{row['model']} " if len(models) > 1 else ""
        say(f"{model}{row['policy']}{target}: perplexity {row['perplexity']:.3f}")

    policies = [name for name in a.policy if name]  # --policy '': methods alone
    plan = (models, calibration, test, policies, a.sparsity, a.by, a.protocol, a.context)
    rows = sweep(*plan, methods=a.method, output=a.output, jobs=a.jobs, cluster=a.cluster, on_row=report)
    rng = np.random.default_rng(a.seed)
    several = len(rows[0]["document_nll"]) > 1  # documents, of which an interval needs more than one
    compared = compare_policies(rows, a.baseline, rng) if several else []
    if a.figure:
        write_figure(a.figure, sweep_figure(with_intervals(rows, rng) if several else rows))
    if a.json:
        print(f'{{"rows": {json_rows(rows)},\n"comparison": {json_rows(compared)}}}')
    else:
        print_sweep(rows, compared, a, len(models) > 1)
    return 0


def print_sweep(rows: list[dict], compared: list[dict], a: argparse.Namespace, name_models: bool) -> None:
    """The rows of a sweep as a table, and where there is one the comparison with the baseline as a second table."""
    from ..tables import keys_as_headings, text_table

    first = keys_as_headings({"model": ""} if name_models else {})
    print(text_table(rows, first | SWEEP_COLUMNS, len(first) + 3))
    where = f"protocol {rows[0]['protocol']}, context {rows[0]['context']}, BOS {rows[0]['bos']}"
    print(wrapped(f"{where}; vs dense: over the perplexity in the dense row"))
    if not compared:
        return
    print("\n" + text_table(compared, first | COMPARISON_COLUMNS, len(first) + 2))
    equal = "neuron sparsity" if compared[0]["by"] == "neuron" else "weight reads"
    about = (
        f"log ratio: ln of the perplexity over that of {a.baseline} at equal {equal} (share, baseline share: measured "
        f"on this text); low, high: 95 % paired bootstrap interval over {len(rows[0]['document_nll'])} documents, "
        f"seed {a.seed}."
    )
    print(wrapped(about))
