"""TODO."""

import argparse
import json

from .flags import (
    DEMO_CALIBRATION,
    DEMO_TOKENS,
    enough_documents,
    load_model,
    say,
    text_or_embedded,
    two_texts,
    wrapped,
    write_figure,
)


def command_calibrate(a: argparse.Namespace) -> int:
    """Find thresholds and write them to a file."""
    from ..sparsity.calibrate import calibrate

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

    from ..show.canvas import check_figure
    from ..show.results_cuts import sweep_figure
    from ..study.bootstrap import compare_policies, with_intervals
    from ..study.sweep import sweep
    from ..tables import check_ending, json_rows, keys_as_headings, text_table

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
    first = keys_as_headings({"model": ""} if len(models) > 1 else {})
    columns = first | {
        "policy": ("policy", ""), "by": ("by", ""), "target": ("target", ".2f"), "achieved": ("achieved", ".3f"),
        "neuron_sparsity": ("neurons cut", ".3f"), "read_gate": ("read gate", ".3f"), "read_up": ("read up", ".3f"),
        "read_down": ("read down", ".3f"), "read_exact": ("read", ".3f"), "read_known_mask": ("known mask", ".3f"),
        "union_density": ("union", ".3f"), "perplexity": ("perplexity", ".3f"), "vs_dense": ("vs dense", ".3f"),
        "bits_per_byte": ("bits/byte", ".4f"), "tokens": ("tokens", ","),
    }  # fmt: skip
    print(text_table(rows, columns))
    print(f"protocol {rows[0]['protocol']}, context {rows[0]['context']}, BOS {rows[0]['bos']}")
    if compared:
        columns = first | {
            "policy": ("policy", ""), "target": ("target", ".2f"), "share": ("share", ".3f"),
            "baseline_share": ("baseline share", ".3f"), "log_ratio": ("log ratio", "+.4f"), "low": ("low", "+.4f"),
            "high": ("high", "+.4f"), "verdict": ("verdict", ""),
        }  # fmt: skip
        print("\n" + text_table(compared, columns))
        equal = "neuron sparsity" if a.by == "neuron" else "weight reads"
        about = (
            f"log ratio: ln of the perplexity over that of {a.baseline} at equal {equal} (share, baseline share: what "
            f"it came to on this text); low, high: 95 % paired bootstrap interval over "
            f"{len(rows[0]['document_nll'])} documents, seed {a.seed}."
        )
        print(wrapped(about))
    return 0
