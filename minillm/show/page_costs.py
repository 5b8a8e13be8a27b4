"""The page's section on what cutting costs: at equal neurons, at equal reads, by the paper's rule, and in a text.

The words are those of templates/costs.html.
"""

from __future__ import annotations

from ..study.summary import (
    HALF,
    NEW_TOKENS,
    POLICIES,
    TARGETS,
    Study,
)
from .html import beside, commands, figure, table, terms, text
from .page_shared import command, definition, joined, protocol, under
from .results_cuts import beside_the_paper, cost_of_cuts

READS = {"gate": "gate", "up": "up", "down": "down", "all": "exact", "mask known": "known_mask"}
COST_COLUMNS = {"policy": ("policy", ""), "target": ("target", ".0%"), "achieved": ("achieved", ".3f")}
COST_COLUMNS |= under("perplexity", {"found": ("perplexity", ".3f"), "of dense": ("vs_dense", ".3f")})
COST_COLUMNS |= under("perplexity", {end: (f"perplexity_{end}", ".3f") for end in ("low", "high")})
COST_COLUMNS |= {"bits per byte": ("bits_per_byte", ".4f"), "neurons cut": ("neuron_sparsity", ".3f")}
COST_COLUMNS |= under("weights read per token", {heading: (f"read_{key}", ".3f") for heading, key in READS.items()})
COST_COLUMNS |= {"needed by 16 tokens": ("union_density", ".3f")}
AGAINST = {"policy": ("policy", ""), "target": ("target", ".0%")}
AGAINST |= under("came to", {"itself": ("share", ".3f"), "mid": ("baseline_share", ".3f")})
AGAINST |= under("ln of the ratio to mid", {"found": ("log_ratio", "+.4f")})
AGAINST |= under("ln of the ratio to mid", {end: (end, "+.4f") for end in ("low", "high")})
AGAINST |= {"verdict": ("verdict", "")}


def cost_parts(s: Study) -> dict[str, str]:
    """Cost curves at equal neurons, at equal reads, the paper's own; and what it does to a text."""
    parts = {"prompt": text(s.prompt), "half": f"{HALF:.0%}"}
    ending = "Low and high: 95 % interval of the cost over documents." if s.compared else "One document: no intervals."
    for by, heading in (("neuron", "Cost at equal neuron sparsity"), ("reads", "Cost at equal weight reads"),
                        ("tensor", "Cost of the paper's rule")):  # fmt: skip
        rows, x = s.cuts[by], "read_exact" if by == "reads" else "neuron_sparsity"
        if by == "tensor":
            drawn = beside_the_paper(rows)
            words = "The three published models: figure 8 of arXiv 2412.12178, read off by eye; other texts and "
            words += "tokenizers, so each is relative to its own dense model."
        else:
            drawn = cost_of_cuts(rows, x)
            words = "Bands: 95 % intervals of the cost over documents." if s.compared else ""
        caption = f"{words} {definition(rows)} Scored: {protocol(s.dense)}."
        pieces = [beside(figure(drawn, f"cost-{by}", heading, caption))]
        pieces.append(table(rows, COST_COLUMNS, heading, ending, "" if by == "tensor" else "target"))
        if s.compared.get(by):
            about = "Paired bootstrap over documents, 95 %. Better, worse: the interval leaves out 0. Not equal: what "
            about += "should be equal came out too different."
            pieces.append(table(s.compared[by], AGAINST, f"{heading}: each policy against mid", about, "target"))
        names = "dhar" if by == "tensor" else joined(POLICIES)
        how = ("--by", by, "--policy", names, "--sparsity", joined(TARGETS[by]))
        pieces.append(commands([command(s, "sweep", *how, "-o", f"{by}.csv", "--figure", f"{by}.svg")]))
        parts[by] = "\n".join(pieces)
    parts["stories"] = terms({policy: " ".join((s.prompt + said).split()) for policy, said in s.stories.items()})
    calibrate = ("--policy", "mid", "--sparsity", HALF, "--by", "neuron", "-o", "mid.json")
    generate = ("--prompt", s.prompt, "-n", NEW_TOKENS, "--thresholds", "mid.json")
    lines = [command(s, "calibrate", *calibrate, takes="text context"), command(s, "generate", *generate, takes="")]
    return parts | {"repeat": commands(lines)}
