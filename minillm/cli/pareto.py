"""The command of the one picture: pareto scores every family of methods at the same share of bytes."""

from __future__ import annotations

import argparse
import json

from . import flags
from .shared import models_of, say, two_samples, wrapped, write_figure

TOKENS = 10_000  # scored, and as many to calibrate on: three small models take a few minutes
COLUMNS = {
    "family": ("family", ""), "policy": ("best of it", ""), "target": ("target", ".3f"), "read": ("read", ".3f"),
    "stored": ("stored", ".3f"), "perplexity": ("perplexity", ".3f"), "over": ("over dense (95 %)", ""),
}  # fmt: skip
CLAIMS = {
    "first": ("better", ""), "second": ("than", ""), "source": ("says", ""), "holds": ("holds", ""),
    "fails": ("fails", ""), "undecided": ("undecided", ""), "ratio": ("perplexity / the other's", ""),
}  # fmt: skip


def add(commands: flags.Commands) -> None:
    """Add the command of this file."""
    about = "1 - the shares of the FFNs' bytes that a token reads, with commas (default: 0.25,0.5,0.75)"
    flags.command(
        commands, "pareto", command_pareto, flags.models(), flags.text(),
        flags.flag("--sparsity", type=flags.shares, default="0.25,0.5,0.75", help=about),
        flags.protocol(), flags.context(), flags.seed("of the intervals (default: 0)"), flags.workers(),
        flags.output("rows as .csv or .json, written after every row; rows that the file has are not computed again"),
        flags.figure(), flags.running(),
        flags.calibration("text to fit methods on (default: the first 40 %% of --text, or the embedded one)"),
        flags.tokens(f"{TOKENS:,}"), flags.calibration_tokens(f"{TOKENS:,}"),
        example="minillm pareto --sparsity 0.5 --tokens 2000 --figure pareto.png",
    )  # fmt: skip


def command_pareto(a: argparse.Namespace) -> int:
    """Why not simply prune? Every family of methods on one page: bytes read per token against perplexity."""
    import numpy as np

    from ..show.canvas import check_figure
    from ..show.results_pareto import pareto_figure
    from ..study.bootstrap import with_intervals
    from ..study.pareto import best, findings, orderings, pareto, points
    from ..study.workers import Workers
    from ..tables import check_ending, json_rows
    from ..transformer.texts import Sample

    if a.output:
        check_ending(a.output)
    if a.figure:
        check_figure(a.figure)
    models = models_of(a)
    calibration, test = two_samples(a, models, TOKENS)

    def report(row: dict) -> None:
        target = "" if row["target"] is None else f" {row['target']:.3f}"
        say(f"{row['model']} {row['policy']}{target}: perplexity {row['perplexity']:.3f}")

    sample, workers = Sample(test, a.protocol, a.context), Workers(a.jobs, a.cluster)
    rows = pareto(models, calibration, sample, a.sparsity, output=a.output, workers=workers, on_row=report)
    rng = np.random.default_rng(a.seed)
    found = points(with_intervals(rows, rng) if len(test) > 1 else rows, rng)
    dense = {row["model_sha256"]: row["perplexity"] for row in rows if row["policy"] == "dense"}
    page = [row for model in dense for row in best(found, model)]
    said, claims = findings(found, rng=rng), orderings(rows, rng)
    if a.figure:
        write_figure(a.figure, pareto_figure(page, dense))
    if a.json:
        print(f'{{"rows": {json_rows(found)},\n"page": {json_rows(page)},')
        print(f'"orderings": {json_rows(claims)},\n"findings": {json.dumps(said)}}}')
    else:
        print_page(page, said, claims, dense)
    return 0


def print_page(page: list[dict], said: list[str], claims: list[dict], dense: dict[str, float]) -> None:
    """A table for each model, the sentences that follow from the rows, and what holds of published orderings."""
    from ..study.pareto import with_limits
    from ..tables import text_table

    shown = [row | {"over": with_limits(row, "over_dense")} for row in page]
    for model, perplexity in dense.items():
        rows = [row for row in shown if row["model_sha256"] == model]
        print(f"{rows[0]['model']}, dense perplexity {perplexity:.3f}:\n\n{text_table(rows, COLUMNS, 2)}\n")
    for sentence in said:
        print(wrapped(f"{sentence}."))
    if claims:
        ratios = [claim | {"ratio": f"{claim['lowest']:.2f} to {claim['highest']:.2f}"} for claim in claims]
        print("\nWhat holds of published orderings, counted in pairs of a model and a target:\n")
        print(text_table(ratios, CLAIMS) + "\n")
    about = (
        f"{page[0]['tokens']:,} tokens, protocol {page[0]['protocol']}, context {page[0]['context']}, BOS "
        f"{page[0]['bos']}. Read: bytes of the FFNs' weights that a token reads, over the dense model's; 16 bits per "
        "weight, bitmaps and a predictor's tables counted; the oracle knows its mask at no cost. Stored: bytes of the "
        "whole file in its smallest form, over the dense model's. Intervals: 95 % paired bootstrap over documents."
    )
    print(wrapped(about))
