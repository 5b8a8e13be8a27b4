"""TODO."""

import argparse
import json
import time
from pathlib import Path

from ..errors import MinillmError
from .flags import DEMO_CALIBRATION, load_model, read_text, say, text_or_embedded, two_texts, wrapped

PATTERN_TOKENS = 4_000  # of a text, for which `patterns` makes variants
REPORT_TOKENS = 6_000  # scored for each row of the cost tables of `report`
PATTERN_WORDS = (
    "Prefix matches because the model is causal: same tokens, same past. Chance: independent bits of the same "
    "densities. Static: the neurons that are most often active on the calibration text. Unrelated: two positions of "
    "that text drawn at random. Whole text: prefix and rest, weighted by their lengths in the whole text."
)


def command_patterns(a: argparse.Namespace) -> int:
    """Compare activation patterns of texts and edited variants (the paper's Table II), with controls."""
    import numpy as np

    from ..sparsity.calibrate import calibrate
    from ..sparsity.thresholds import Thresholds
    from ..study.edits import SCOPES, predictability, published
    from ..study.overlap import reference
    from ..study.variants import made_pairs, released_pairs, text_pairs
    from ..tables import check_ending, keys_as_headings, save_rows, text_table
    from ..transformer.texts import as_documents, default_context, document_hashes, first_tokens

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
    columns = keys_as_headings({"variant": "", "scope": "", "positions": ",", "density": ".3f", "match": ".4f"})
    columns |= {
        "chance_match": ("chance", ".3f"), "static_match": ("static", ".3f"), "unrelated_match": ("unrelated", ".3f"),
        "recall": ("recall", ".3f"), "static_recall": ("static recall", ".3f"), "iou": ("IoU", ".3f"),
        "chance_iou": ("chance IoU", ".3f"), "whole_text": ("whole text", ".3f"),
    }  # fmt: skip
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
    print(text_table(per_layer, keys_as_headings(columns)))
    if any(line["our after"] is not None for line in table_two):
        forms = {key: "" if isinstance(value, str) else ".4f" for line in table_two for key, value in line.items()}
        print("\nTable II as published (Llama-3-8B, first layer), beside chance and what was measured here:\n")
        print(text_table(table_two, keys_as_headings(forms)))
    print()
    print(wrapped(f"Read: {about}; window {context} with the first edit at its middle, BOS included. {PATTERN_WORDS}"))
    return 0


def command_report(a: argparse.Namespace) -> int:
    """One page of HTML with the whole study of one model: costs, predictors, buffer; opens without a network."""
    from ..show.html import check_page, write_page
    from ..show.page import page_of
    from ..study.summary import measure

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
