"""The page's sections on the model as it is: its parts, how its text is scored, the sizes of its values, natural zeros.

A section is a template (templates/NAME.html, the words) and a function here (what stands for its $names).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..study.describe import PART_COLUMNS
from ..study.distributions import normal_below
from ..study.natural import NEAR_ZERO
from ..study.summary import SHOWN_STEPS, Study
from .html import beside, commands, figure, table, text
from .page_shared import from_the_start, repeat_command, scored_on, tokens_of, under
from .results_distributions import magnitudes_by_layer, natural_by_layer


def model_parts(s: Study) -> dict[str, str]:
    """Config, parts, and the limit that the FFNs' share sets."""
    bounds = {"ffn_read": ("FFN weights read", ".0%"), "token_read": ("of all weights", ".1%")}
    bounds |= {"faster": ("times as fast, at most", ".2f")}
    parts = table(s.parts, PART_COLUMNS, "Where the weights are")
    limit = table(s.amdahl, bounds, "The limit", "For a token that takes as long as its weights take to be read.")
    return {
        "tables": beside(
            table(s.config, {"field": ("field", ""), "value": ("value", "")}, "Config"),
            f"<div>\n{parts}\n{limit}\n</div>",
        ),
        "repeat": commands([repeat_command(s, "inspect", takes="")]),
    }


def protocol_parts(s: Study) -> dict[str, str]:
    """The protocol in words, and which part of the page read which text."""
    file = s.options.get("text")
    origin = f"Both texts are parts of {file}: the first part calibrates, the rest is scored." if file else ""
    tokens = tokens_of(s, calibration=None)
    columns = {"part": ("part", ""), "text": ("text", ""), "documents": ("documents", ","), "tokens": ("tokens", ",")}
    return {
        "perplexity": f"{s.dense['perplexity']:.4f}",
        "bits": f"{s.dense['bits_per_byte']:.4f}",
        "bytes": f"{s.dense['bytes']:,}",
        "protocol": text(scored_on(s.dense)),
        "origin": text(origin or "Both texts are those that come with minillm; no document is in both."),
        "read": table(s.texts, columns, "What each part read"),
        "repeat": from_the_start(s, [repeat_command(s, "perplexity", *tokens, takes="text context")]),
    }


def inspect_command(s: Study, what: str, figure: str) -> str:
    """The command that counts what the two sections below show."""
    how = (*tokens_of(s, calibration=None), "--figure", figure)
    return repeat_command(s, f"inspect {what}", *how, takes="text context")


MEANING = {
    "gate_pre": "x W_gate^T, the gate before its activation function",
    "up": "x W_up^T",
    "mid": "act(gate_pre) times up, the coefficient of each neuron",
    "out": "mid W_down^T, what the FFN adds",
}


def by_layer(rows: Sequence[Mapping], key: str, values: Sequence[str]) -> list[dict]:
    """Rows per layer and ``key`` as one row per layer, with the values under "key value"."""
    lines: dict[int, dict] = {}
    for row in rows:
        lines.setdefault(row["layer"], {"layer": row["layer"]}).update({f"{row[key]} {v}": row[v] for v in values})
    return list(lines.values())


def distribution_parts(s: Study) -> dict[str, str]:
    """Weights and activations by layer."""
    weights, activations = {"layer": ("layer", "d")}, {"layer": ("layer", "d")}
    near = {"below_1_percent": "below 1 %", "below_10_percent": "below 10 %", "rms": "r.m.s."}
    for matrix in dict.fromkeys(row["matrix"] for row in s.weights):
        weights |= under(matrix, {f"{matrix} {key}": (heading, ".4f") for key, heading in near.items()})
    sizes = {"median": "median", "below_0.1": "up to 0.1", "below_1": "up to 1"}
    for step in SHOWN_STEPS:
        activations |= under(step, {f"{step} {key}": (heading, ".3f") for key, heading in sizes.items()})
    where = f"Nothing is cut: every value of every token and BOS, all layers; {scored_on(s.dense)}."
    drawn = [
        figure(
            magnitudes_by_layer(at, shares, step), f"size-{step}", f"Magnitudes of {step}",
            f"{step} = {MEANING[step]}. For each layer, the share of values up to a magnitude. A threshold where a "
            f"curve reaches 50 % would cut half of the values. {where}",
        )
        for step, (at, shares) in s.curves.items()
    ]  # fmt: skip
    return {
        "zeros": f"{max(row['zeros'] for row in s.weights):.4f}",
        "normal": " and ".join(f"{normal_below(share):.4f}" for share in NEAR_ZERO),
        "weights": table(
            by_layer(s.weights, "matrix", list(near)), weights, "Weights of the FFNs",
            "Shares below 1 % and 10 % of the matrix's own root mean square (r.m.s.).",
        ),
        "figures": beside(*drawn),
        "activations": table(
            by_layer(s.activations, "step", list(sizes)), activations, "Magnitudes of the activations",
            "The median of the magnitudes, and the shares of values up to 0.1 and 1.",
        ),
        "repeat": from_the_start(s, [inspect_command(s, "--distributions", "sizes.svg")]),
    }  # fmt: skip


def natural_parts(s: Study) -> dict[str, str]:
    """The shares of values that are zero, or nearly, when nothing is cut."""
    columns = {"layer": ("layer", "d"), "gate_zeros": ("gate/exactly 0", ".4f")}
    columns |= {f"gate_below_{n}_percent": (f"gate/below {n} %", ".4f") for n in (1, 10)}
    columns["mid_zeros"] = ("mid/exactly 0", ".4f")
    about = "Gate: act(gate_pre); 1 % and 10 %: of the root mean square of the gates of the same token and layer."
    caption = f"{about} Nothing is cut: every token and BOS, all neurons, all layers; {scored_on(s.dense)}."
    drawn = natural_by_layer({s.name: s.natural})
    return {
        "figures": beside(figure(drawn, "natural-zeros", "Natural sparsity by layer", caption)),
        "rows": table(s.natural, columns, "Natural sparsity, as shares", about),
        "repeat": from_the_start(s, [inspect_command(s, "--natural", "natural.svg")]),
    }
