"""The command that removes weights: prune fits a method on a text and writes the changed model as a folder."""

from __future__ import annotations

import argparse
import json

from ..errors import show
from . import flags
from .shared import check_new, enough_documents, learnt_and_held_out, load_model, say, wrapped

FITTED = 20_000  # tokens of the calibration text that a method is fitted on, where --calibration-tokens is not given
COLUMNS = {"model": ("model", ""), "perplexity": ("perplexity", ".3f"), "read": ("FFN bytes read", ".3f")}
FORMS = {"form": ("stored as", ""), "bytes": ("bytes", ","), "share": ("of the dense model", ".3f")}


def add(commands: flags.Commands) -> None:
    """Add the command of this file."""
    method = flags.flag("method", metavar="METHOD", help="wanda, magnitude, ...: METHODS in methods/base.py")
    folder = flags.flag("--output", "-o", dest="folder", metavar="FOLDER",
                        help="where to write the model; must not exist yet (default: only score it)")  # fmt: skip
    target = flags.flag("--sparsity", type=flags.share, default=0.5, help="share of what goes (default: 0.5)")
    text = flags.text("the calibration text; a tenth of its documents is held out and scored "
                      "(default: the embedded texts)")  # fmt: skip
    flags.command(
        commands, "prune", command_prune, method, flags.model(), text, flags.calibration_tokens(f"{FITTED:,}"), target,
        flags.context(), folder, flags.running(), example="minillm prune wanda --sparsity 0.5 -o pruned",
    )  # fmt: skip


def command_prune(a: argparse.Namespace) -> int:
    """Remove weights by a method, score the model before and after, and write it as a Hugging Face folder."""
    from ..methods.base import fit, method_named, stored_bytes
    from ..methods.saved import check_writable, save_variant
    from ..study.score import row, score_variant
    from ..tables import json_rows, text_table
    from ..transformer.evaluation import perplexity

    method_named(a.method)
    if a.folder:
        check_new(a.folder)
    model = load_model(a)
    known, held = learnt_and_held_out(a.text, model, a.context)
    known = enough_documents([model], known, a.calibration_tokens or FITTED, a.context)
    variant = fit(a.method, model, known, a.sparsity, a.context)
    if a.folder:
        check_writable(variant)
    dense = perplexity(model, held, context=a.context)
    scored = [row(model, dense, dense), score_variant(variant, held, dense)]
    rows = [
        {"model": name, "perplexity": each["perplexity"], "read": each["read_exact"]}
        for name, each in zip(("dense", "pruned"), scored, strict=True)
    ]
    before = stored_bytes(model, model.layers)["dense"]
    stored = {form: {"bytes": size, "share": size / before} for form, size in (variant.stored or {}).items()}
    achieved = scored[1]["achieved"]
    if a.folder:
        about = {"tokens_scored": dense.tokens, "scores": rows}
        save_variant(a.folder, variant, model, about)
        say(f"written: {a.folder}")
    if a.json:
        facts = {
            "folder": a.folder and show(a.folder), "method": a.method, "target": a.sparsity, "achieved": achieved,
            "spec": scored[1]["spec"], "dense_bytes": before, "stored": stored,
        }  # fmt: skip
        print(f'{json.dumps(facts)[:-1]},\n"rows": {json_rows(rows)}}}')
        return 0
    print(text_table(rows, COLUMNS))
    print("\n" + text_table([{"form": form, **size} for form, size in stored.items()], FORMS))
    print("\n" + wrapped(scored[1]["spec"]))
    print(wrapped(f"scored on {dense.tokens:,} tokens of documents that were held out; a weight counts as 16 bits"))
    return 0
