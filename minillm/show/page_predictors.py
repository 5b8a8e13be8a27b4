"""The page's sections on predictors and on patterns that survive an edit.

The words are those of templates/predictors.html and templates/patterns.html.
"""

from __future__ import annotations

from ..study.summary import (
    HALF,
    PREDICTORS,
    Study,
)
from .html import beside, bullets, commands, figure, table
from .page_shared import command, joined, protocol, under
from .results_predictors import cost_of_predictors, match_by_position

NEAR_DENSE = 1.1  # times the dense perplexity: what the second figure of predictors shows
PREDICTED = {"predictor": ("predictor", "")}
PREDICTED |= {key: (key, ".3f") for key in ("recall", "precision")} | {"IoU": ("iou", ".3f")}
PREDICTED |= {"selected": ("selected", ".3f")}
PREDICTED |= under("its own tables", {"bytes": ("own_bytes", ","), "of float32": ("own_share_float32", ".4f")})
PREDICTED |= under("its own tables", {"of stored": ("own_share_stored", ".4f")})
PREDICTED |= under("touched per token", {"bytes": ("bytes_per_token", ",.0f"), "of FFN": ("reads", ".3f")})
PREDICTED |= under("perplexity", {"found": ("perplexity", ".3f"), "increase": ("increase", "+.3f")})
PREDICTED |= under("perplexity", {"× oracle": ("times_oracle", ",.2f")})
PREDICTED |= {"KL": ("kl", ".4f"), "same token": ("agreement", ".3f")}


def predictor_parts(s: Study) -> dict[str, str]:
    """The table, bytes against perplexity, and what it says in words."""
    one, near = s.predictors[0], [row for row in s.predictors if row["perplexity"] <= NEAR_DENSE * row["dense"]]
    caption = (
        "Perplexity with the predictor in the loop against the bytes that a token touches in all FFNs, the predictor's "
        f"own tables included, as stored. Definition of the truth: {one['truth']}. Scored: {protocol(one)}."
    )
    drawn = [
        figure(
            cost_of_predictors(s.predictors, one["dense"]),
            "bytes",
            "Bytes against perplexity",
            caption,
        )
    ]
    if 1 < len(near) < len(s.predictors):
        title = f"The same, within {NEAR_DENSE - 1:.0%} of the dense model"
        drawn.append(figure(cost_of_predictors(near, one["dense"]), "bytes-near", title, caption))
    about = (
        "Recall, precision and IoU against the mask of policy mid, pooled over tokens, mean over layers. × oracle: the "
        "increase over the oracle's; a dash where that is next to nothing. KL: nats per token, from the dense model. "
        "Same token: positions where both find the same token likeliest. Selected: what cutoffs set on calibration "
        "text came to on this text."
    )
    how = ("--predictor", joined(PREDICTORS), "--sparsity", HALF, "-o", "predictors.csv")
    return {
        "half": f"{1 - HALF:.0%}",
        "figures": beside(*drawn),
        "rows": table(s.predictors, PREDICTED, "Predictors", about),
        "verdict": bullets([f"{sentence}." for sentence in s.verdict]),
        "repeat": commands([command(s, "predict eval", *how, "--figure", "predictors.svg")]),
    }


PLACES = {"prefix": "before", "window": "all"}
GUESSES = {"this text": "", "static": "static_", "chance": "chance_", "unrelated": "unrelated_"}


def pattern_parts(s: Study) -> dict[str, str]:
    """Table II of the paper with its controls, pooled over edits and layers."""
    rows = [row | {"group": PLACES.get(row["scope"], row["scope"])} for row in s.patterns]
    columns = {"positions": ("group", ""), "number": ("positions", ","), "active": ("density", ".3f")}
    for heading, rate in (("match", "match"), ("recall", "recall"), ("IoU", "iou")):
        columns |= under(heading, {guess: (f"{key}{rate}", ".3f") for guess, key in GUESSES.items()})
    title = "Patterns before and after an edit"
    caption = (
        "Share of neurons that are alike, active or not, in a text and its edited variant; pooled over layers, texts "
        f"and eight kinds of edits. Definition: {s.specs['patterns']}. Read: protocol documents, context "
        f"{s.dense['context']}, BOS {s.dense['bos']}."
    )
    about = (
        "Before, after: positions before the first edit, and from it on. Of the latter, changed: another token in the "
        "same place; unchanged: the same token there; aligned: the same token, maybe moved. Static: the neurons most "
        "often active on the calibration text. Chance: independent bits of the same densities. Unrelated: two "
        "positions of the calibration text drawn at random."
    )
    return {
        "figures": beside(figure(match_by_position(rows), "match", title, caption)),
        "rows": table(rows, columns, title, about),
        "repeat": commands([command(s, "patterns", "-o", "patterns.csv")]),
    }
