"""The page's sections on predictors and on patterns that survive an edit.

The words are those of templates/predictors.html and templates/patterns.html.
"""

from __future__ import annotations

from ..study.costs import HALF
from ..study.summary import PREDICTORS, Study
from .html import beside, bullets, commands, figure, table
from .page_shared import INTERVAL, from_the_start, joined, repeat_command, scored_on, tokens_of, under
from .results_predictors import cost_of_predictors, match_by_position

NEAR_DENSE = 1.1  # times the dense perplexity: what the second figure of predictors shows
PREDICTED = {"predictor": ("predictor", "")}
PREDICTED |= {key: (key, ".3f") for key in ("recall", "precision")} | {"iou": ("IoU", ".3f")}
PREDICTED |= {"selected": ("selected", ".3f")}
PREDICTED |= under("its own tables", {"own_bytes": ("bytes", ","), "own_share_float32": ("of float32", ".4f")})
PREDICTED |= under("its own tables", {"own_share_stored": ("of stored", ".4f")})
PREDICTED |= under("read per token", {"bytes_per_token": ("bytes", ",.0f"), "reads": ("of FFN", ".3f")})
PREDICTED |= under("perplexity", {"perplexity": ("measured", ".3f"), "increase": ("increase", "+.3f")})
PREDICTED |= under("over the oracle's", {"over_oracle": ("measured", "+.3f")})
PREDICTED |= under("over the oracle's", {f"over_oracle_{end}": (end, "+.3f") for end in INTERVAL})
PREDICTED |= {"times_oracle": ("× oracle", ",.2f")}
PREDICTED |= {"kl": ("KL", ".4f"), "agreement": ("same token", ".3f")}


def predictor_parts(s: Study) -> dict[str, str]:
    """The table, the figure of bytes against perplexity, and the conclusions in words."""
    one, near = s.predictors[0], [row for row in s.predictors if row["perplexity"] <= NEAR_DENSE * row["dense"]]
    caption = (
        "Perplexity with the predictor in the loop against the bytes that a token reads in all FFNs, the predictor's "
        f"own tables included, as stored. Definition of the truth: {one['truth']}. Scored: {scored_on(one)}."
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
        f"Dense: perplexity {one['dense']:.3f}, {one['dense_bytes']:,} bytes of FFN weights as stored. Recall, "
        "precision and IoU against the mask of policy mid, pooled over tokens, mean over layers. Increase: perplexity "
        "over the dense model's. Over the oracle's: difference of the perplexities; low and high: its 95 % interval "
        "over documents. × oracle: the increase divided by the oracle's; a dash where the oracle's is not clearly "
        "above 0. KL: nats per token, from the dense model. "
        "Same token: positions where both models find the same token likeliest. Selected: the share that cutoffs from "
        "calibration text select on this text."
    )
    how = ("--predictor", joined(PREDICTORS), "--sparsity", HALF, *tokens_of(s, "predictors", "making"))
    how += ("-o", "predictors.csv")
    return {
        "half": f"{1 - HALF:.0%}",
        "figures": beside(*drawn),
        "rows": table(s.predictors, PREDICTED, "Predictors", about),
        "verdict": bullets([f"{sentence}." for sentence in s.verdict]),
        "repeat": commands([repeat_command(s, "predict eval", *how, "--figure", "predictors.svg")]),
    }


SCOPES = {"prefix": "before", "window": "all"}
GUESSES = {"": "this text", "static_": "static", "chance_": "chance", "unrelated_": "unrelated"}


def pattern_parts(s: Study) -> dict[str, str]:
    """Table II of the paper with its controls, pooled over edits and layers."""
    rows = [row | {"group": SCOPES.get(row["scope"], row["scope"])} for row in s.patterns]
    columns = {"group": ("positions", ""), "positions": ("number", ","), "density": ("active", ".3f")}
    for heading, rate in (("match", "match"), ("recall", "recall"), ("IoU", "iou")):
        columns |= under(heading, {f"{prefix}{rate}": (guess, ".3f") for prefix, guess in GUESSES.items()})
    title = "Patterns before and after an edit"
    caption = (
        "Share of neurons that are equal, active or not, in a text and its edited variant; pooled over layers, texts "
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
        "repeat": from_the_start(s, [repeat_command(s, "patterns", *tokens_of(s, "patterns"), "-o", "patterns.csv")]),
    }
