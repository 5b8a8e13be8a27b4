"""The action ``prefetch tuned``: what models that were tuned for blocks gain in speed and cost in perplexity."""

from __future__ import annotations

import argparse

from . import flags
from .shared import print_result, say, write_figure


def add_tuned(prefetch: flags.Commands) -> None:
    """Add ``prefetch tuned``, which takes the folders of several tunings."""
    tuned = flags.command(
        prefetch, "tuned", prefetch_tuned,
        flags.flag("--speed", metavar="FILE", help="of `minillm bench ffn --json` (default: a table in kernels.py)"),
        flags.output("rows as .csv or .json"),
        flags.figure("also draw speed against perplexity: a .png or .svg (needs matplotlib)"),
        example="minillm tune --block 32 --steps 2 --no-control -o tuned && minillm prefetch tuned tuned",
    )  # fmt: skip
    tuned.add_argument("folders", nargs="+", metavar="FOLDER", help="of `minillm tune --block`")


def prefetch_tuned(a: argparse.Namespace) -> int:
    """Compare what tuned models with a router gain in speed with what they cost in perplexity, beside no tuning."""
    from ..study import tuned
    from ..study.blocks import read_speeds
    from ..tables import check_ending, save_rows, text_table

    if a.output:
        check_ending(a.output)
    if a.figure:
        from ..show.canvas import check_figure

        check_figure(a.figure)
    speeds = read_speeds(a.speed) if a.speed else None
    rows = list(tuned.tuned_rows(a.folders, speeds))
    if speeds is None:
        say("speed: the table in prefetch/kernels.py; --speed takes what `minillm bench ffn --json` measures here")
    if a.output:
        save_rows(a.output, rows)
    if a.figure:
        draw_tuned(rows, a.figure)
    about = (
        "Perplexity: on the documents that each tuning held out. dense: the dense model as it was; in a tuned model's "
        "row the dense model that was trained further for the same time, where the folder has one and it is better. An "
        f"oracle's choice is a bound. speedup: times as fast as dense, of one FFN of {rows[0]['shape']}, "
        f"{rows[0]['speed_from']}, the router's time included; token: the same of a whole token, where the FFNs hold "
        f"{rows[0]['ffn_share']:.0%} of the bytes that a token reads."
    )
    table = text_table(tuned.tuned_table(rows), tuned.TUNED_COLUMNS, names=4)
    print_result(a, rows, table, about, tuned.reached_in_words(rows))
    return 0


def draw_tuned(rows: list[dict], path: str) -> None:
    """Speed against perplexity, a panel for each model."""
    from ..show.canvas import new_axes, plain_text
    from ..show.results_tuned import speed_after_tuning

    models = list(dict.fromkeys(row["model"] for row in rows))
    panels = new_axes(len(models), 1, (6.4, 3.8))
    for ax, model in zip(panels, models, strict=True):
        speed_after_tuning([row for row in rows if row["model"] == model], ax=ax)
        title = f"{plain_text(model)}\nnumbers: % of the neurons left out"
        ax.title.set_text(title)  # set_text keeps the font of the figure's style
    write_figure(path, *panels)
