"""Commands that study a whole model: patterns compares texts with edited variants, report writes a page of HTML."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MinillmError, show
from . import flags
from .shared import given_thresholds, load_model, read_text, say, text_or_embedded, two_texts, wrapped

if TYPE_CHECKING:
    from ..study.edits import Measured
    from ..study.variants import Pair
    from ..transformer.model import Llama

PATTERN_TOKENS = 4_000  # of a text, for which `patterns` makes variants
REPORT_TOKENS = 6_000  # scored for each row of the cost tables of `report`
PATTERN_COLUMNS = {
    "variant": ("variant", ""), "scope": ("scope", ""), "positions": ("positions", ","), "density": ("density", ".3f"),
    "match": ("match", ".4f"), "chance_match": ("chance", ".3f"), "static_match": ("static", ".3f"),
    "unrelated_match": ("unrelated", ".3f"), "recall": ("recall", ".3f"), "static_recall": ("static recall", ".3f"),
    "iou": ("IoU", ".3f"), "chance_iou": ("chance IoU", ".3f"), "whole_text": ("whole text", ".3f"),
}  # fmt: skip
PATTERN_WORDS = (
    "The prefix matches because the model is causal: same tokens, same past. Chance: independent bits of the same "
    "densities. Static: the neurons that are most often active on the calibration text. Unrelated: two positions of "
    "that text drawn at random. Whole text: prefix and rest, weighted by their lengths in the whole text."
)


def add(commands: flags.Commands) -> None:
    """Add the commands of this file."""
    patterns = flags.command(
        commands, "patterns", command_patterns, flags.model(),
        flags.text("the original text (default: the embedded test text)"),
        flags.flag(
            "--thresholds", metavar="FILE",
            help="thresholds of policy dhar (default: found on the calibration text at --sparsity)",
        ),
        flags.flag("--sparsity", type=flags.share, default=0.5, help="share of the gate that is cut (default: 0.5)"),
        flags.context(), flags.seed("of the variants that are made (default: 0)"),
        flags.output("write a row per text, variant, scope and layer to a .csv or .json"), flags.running(),
        flags.calibration("text for thresholds and frequencies (default: the embedded one)"),
        flags.tokens(f"{PATTERN_TOKENS:,}"), flags.calibration_tokens(f"{flags.DEMO_CALIBRATION:,}"),
    )  # fmt: skip
    patterns.add_argument(
        "--variant",
        action="append",
        metavar="FILE",
        help="an edited variant of --text; repeatable (default: made)",
    )
    patterns.add_argument(
        "--released", metavar="FILE", help="a perturbation file of the paper's release, or a folder of them"
    )
    report = flags.command(
        commands, "report", command_report, flags.model(), flags.text(),
        flags.prompt("a text that the dense and the cut model continue"),
        flags.method(), flags.context(), flags.seed(),
        flags.output("the page, an .html (its figures need matplotlib)", required=True), flags.running(),
    )  # fmt: skip
    report.add_argument(
        "--tokens", type=flags.positive, default=REPORT_TOKENS,
        help=f"scored for each row of the cost tables; other parts read fewer (default: {REPORT_TOKENS:,})",
    )  # fmt: skip


# ---- patterns --------------------------------------------------------------------------------------------------------


def command_patterns(a: argparse.Namespace) -> int:
    """Compare activation patterns of texts and edited variants (the paper's Table II), with controls."""
    from ..sparsity.calibrate import calibrate
    from ..study.edits import predictability, published
    from ..study.overlap import reference
    from ..tables import check_ending, save_rows
    from ..transformer.texts import as_documents, default_context, document_hashes, first_tokens, seen_documents

    if a.output:
        check_ending(a.output)
    if a.variant and not a.text:
        raise MinillmError("--variant came without --text, expected the original text beside its variants")
    if a.released and a.text:
        raise MinillmError("--released and --text were both given, expected one of them")
    model = load_model(a)
    context = a.context or default_context(model)
    pairs, texts, about = pattern_pairs(a, model, context)
    known = as_documents(text_or_embedded(a.calibration, "calibration"))
    known = first_tokens(model, known, a.calibration_tokens or flags.DEMO_CALIBRATION, context)
    if mixed := seen_documents(texts, document_hashes(known)):
        say(f"minillm: note: {mixed} of the documents are also in the calibration text")
    thresholds = given_thresholds(a) or calibrate(model, known, "dhar", a.sparsity, context)
    measured = predictability(model, reference(model, thresholds, known, context), pairs, context)
    if a.output:
        save_rows(a.output, measured.rows(by_text=True))
    if a.json:
        result = {"model": model.name, "pooled": measured.rows(by_layer=False), "layers": measured.rows()}
        print(json.dumps(result | {"published": published(measured)}, indent=1))
        return 0
    print_patterns(measured)
    print(wrapped(f"Read: {about}; window {context} with the first edit at its middle, BOS included. {PATTERN_WORDS}"))
    return 0


def pattern_pairs(a: argparse.Namespace, model: Llama, context: int) -> tuple[list[Pair], list[str], str]:
    """Pairs of an original and a variant, the original texts (none where they are released ids), and both in words."""
    import numpy as np

    from ..study.variants import made_pairs, released_pairs, text_pairs
    from ..transformer.texts import as_documents, first_tokens

    if a.released:
        return released_pairs(model, a.released), [], f"the texts of {a.released}"
    if a.variant:
        text, variants = read_text(a.text), {Path(path).stem: read_text(path) for path in a.variant}
        return text_pairs(model, Path(a.text).stem, text, variants), [text], f"{a.text} and the variants given"
    texts = first_tokens(model, as_documents(text_or_embedded(a.text, "test")), a.tokens or PATTERN_TOKENS, context)
    about = f"{len(texts)} document{'s'[: len(texts) > 1]}, variants made with seed {a.seed}"
    return made_pairs(model, texts, np.random.default_rng(a.seed)), texts, about


def print_patterns(measured: Measured) -> None:
    """Three tables: all layers together, per layer, and the published Table II where it was measured too."""
    from ..study.edits import SCOPES, published
    from ..tables import keys_as_headings, text_table

    together = [row | {"variant": "all"} for row in measured.rows(by_variant=False, by_layer=False)]
    print(text_table([*measured.rows(by_layer=False), *together], PATTERN_COLUMNS, names=2))
    by_layer = measured.rows(by_variant=False)
    scopes = [scope for scope in SCOPES if any(row["scope"] == scope for row in by_layer)]
    controls = ("chance", "static", "unrelated")
    lines: dict[int, dict[str, Any]] = {}
    for row in by_layer:
        line = lines.setdefault(row["layer"], {"layer": row["layer"]})
        line[row["scope"]] = row["match"]
        if row["scope"] == "window":  # controls differ little between scopes: those of all positions are shown
            line |= {control: row[f"{control}_match"] for control in controls}
    print("\nMatch per layer, all variants together:\n")
    columns = {"layer": "d"} | dict.fromkeys([*scopes, *controls], ".4f")
    print(text_table(list(lines.values()), keys_as_headings(columns)))
    table_two = published(measured)
    if any(line["our after"] is not None for line in table_two):
        forms = {key: "" if isinstance(value, str) else ".4f" for line in table_two for key, value in line.items()}
        print("\nTable II as published (Llama-3-8B, first layer), beside chance and what was measured here:\n")
        print(text_table(table_two, keys_as_headings(forms), names=3))
    print()


# ---- report ----------------------------------------------------------------------------------------------------------


def command_report(a: argparse.Namespace) -> int:
    """Write one page of HTML with the whole study of one model: costs, predictors, buffer. It needs no network."""
    from ..show.html import check_page, write_page
    from ..show.page import page_of
    from ..study.summary import measure

    check_page(a.output)
    model = load_model(a)
    kept = {key: getattr(a, key) for key in ("model", "text", "tokens", "prompt", "context", "seed", "dtype")}
    kept |= {"method": ",".join(a.method)} if a.method else {}
    started = time.perf_counter()
    study = measure(
        model,
        *two_texts(a.text),
        kept,
        tokens=a.tokens,
        prompt=a.prompt,
        context=a.context,
        seed=a.seed,
        methods=a.method,
    )
    write_page(a.output, page_of(study))
    say(f"{time.perf_counter() - started:.1f} s")
    size = Path(a.output).stat().st_size
    file = show(a.output)
    print(json.dumps({"file": file} | study.asdict()) if a.json else f"{file}: {size:,} bytes")
    return 0
