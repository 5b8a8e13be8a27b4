"""The page's section on what cutting costs: at equal neurons, at equal reads, by the paper's rule, and in a text.

The words are those of templates/costs.html.
"""

from __future__ import annotations

from ..study.costs import COMPARED_POLICIES, HALF, TARGETS, WEIGHT_TARGETS
from ..study.summary import NEW_TOKENS, Study
from .html import beside, commands, figure, table, template, terms, text
from .page_shared import INTERVAL, definition, from_the_start, joined, repeat_command, scored_on, tokens_of, under
from .results_cuts import beside_the_paper, cost_of_cuts

READS = {"gate": "gate", "up": "up", "down": "down", "exact": "all", "known_mask": "mask known"}
COST_COLUMNS = {"policy": ("policy", ""), "target": ("target", ".0%"), "achieved": ("achieved", ".3f")}
COST_COLUMNS |= under("perplexity", {"perplexity": ("measured", ".3f"), "vs_dense": ("of dense", ".3f")})
COST_COLUMNS |= under("perplexity", {f"perplexity_{end}": (end, ".3f") for end in INTERVAL})
COST_COLUMNS |= {"bits_per_byte": ("bits per byte", ".4f"), "neuron_sparsity": ("neurons cut", ".3f")}
COST_COLUMNS |= under("weights read per token", {f"read_{key}": (heading, ".3f") for key, heading in READS.items()})
COST_COLUMNS |= {"union_density": ("needed by 16 tokens", ".3f")}
AGAINST = {"policy": ("policy", ""), "target": ("target", ".0%")}
AGAINST |= under("achieved by", {"share": ("the policy", ".3f"), "baseline_share": ("mid", ".3f")})
AGAINST |= under("ln of the ratio to mid", {"log_ratio": ("measured", "+.4f")})
AGAINST |= under("ln of the ratio to mid", {end: (end, "+.4f") for end in INTERVAL})
AGAINST |= {"verdict": ("verdict", "")}


def cost_parts(s: Study) -> dict[str, str]:
    """Cost curves at equal neurons, at equal reads and by the paper's rule; and continuations of a text."""
    parts = {"prompt": text(s.prompt), "half": f"{HALF:.0%}"}
    ending = "Low and high: 95 % interval of the cost over documents." if s.compared else "One document: no intervals."
    for by, heading in (("neuron", "Cost at equal neuron sparsity"), ("reads", "Cost at equal weight reads"),
                        ("tensor", "Cost of the paper's rule")):  # fmt: skip
        rows, x = s.cuts[by], "read_exact" if by == "reads" else "neuron_sparsity"
        if by == "tensor":
            drawn = beside_the_paper(rows)
            words = "The three published models: figure 8 of arXiv 2412.12178, read off by eye; their texts "
            words += "and tokenizers differ, so each curve is relative to its own dense model."
        else:
            drawn = cost_of_cuts(rows, x)
            words = "Bands: 95 % intervals of the cost over documents." if s.compared else ""
        caption = f"{words} {definition(rows)} Scored: {scored_on(s.dense)}."
        pieces = [beside(figure(drawn, f"cost-{by}", heading, caption))]
        pieces.append(table(rows, COST_COLUMNS, heading, ending, "" if by == "tensor" else "target"))
        if s.compared.get(by):
            about = "Paired bootstrap over documents, 95 %. Better, worse: the interval does not contain 0. Not equal: "
            about += "the two shares that should be equal differ too much."
            pieces.append(table(s.compared[by], AGAINST, f"{heading}: each policy against mid", about, "target"))
        names = "dhar" if by == "tensor" else joined(COMPARED_POLICIES)
        how = ("--by", by, "--policy", names, "--sparsity", joined(TARGETS[by]), *tokens_of(s))
        pieces.append(commands([repeat_command(s, "sweep", *how, "-o", f"{by}.csv", "--figure", f"{by}.svg")]))
        parts[by] = "\n".join(pieces)
    parts["stories"] = terms({policy: " ".join(f"{s.prompt}|{story}".split()) for policy, story in s.stories.items()})
    calibrate = ("--policy", "mid", "--sparsity", HALF, "--by", "neuron", "--tokens", s.budget["calibration"])
    generate = ("--prompt", s.prompt, "-n", NEW_TOKENS, "--thresholds", "mid.json")
    lines = [
        repeat_command(s, "calibrate", *calibrate, "-o", "mid.json", takes="text context"),
        repeat_command(s, "generate", *generate, takes=""),
    ]
    return parts | {"weights": weights_part(s), "repeat": from_the_start(s, lines)}


def weights_part(s: Study) -> str:
    """The table of methods that remove weights for good; nothing where the study has none."""
    rows = s.cuts.get("weights")
    if not rows:
        return ""
    about = "Target, achieved: the share of weights that are removed. Read: each matrix dense, or with a bitmap of its "
    about += "zeros, whichever is smaller; a weight counts as 16 bits. Definitions, at one target: "
    about += "; ".join(row["spec"] for row in rows if row["target"] == WEIGHT_TARGETS[1]) + "."
    names = list(dict.fromkeys(row["policy"] for row in rows if row["policy"] != "dense"))
    how = ("--policy", "", "--method", joined(names), "--sparsity", joined(WEIGHT_TARGETS), *tokens_of(s))
    shown = table(rows, COST_COLUMNS, "Cost of removed weights", about, "target")
    return template("weights").substitute(
        rows=shown, repeat=commands([repeat_command(s, "sweep", *how, "-o", "weights.csv")])
    )
