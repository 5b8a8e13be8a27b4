"""The page of a study: ``page_of(study)`` gives the HTML that ``minillm report`` writes.

A section is a Template (the words) and a function (what stands for its $names: tables, figures, numbers). No result is
typed into the words; code puts it there. Every figure's caption carries the definition behind it (SparsitySpec), and
under each part stands the command that makes it alone. There is no date on the page.
"""

from __future__ import annotations

import math

from ..prefetch.clock import whole_token
from ..sparsity.policies import policy_named
from ..sparsity.spec import in_words
from ..study.summary import (
    HALF,
    POLICIES,
    TARGETS,
    Study,
)
from .html import commands, paragraph, template, terms, text, whole_page
from .page_buffer import buffer_parts
from .page_costs import cost_parts
from .page_model import distribution_parts, model_parts, natural_parts, protocol_parts
from .page_predictors import pattern_parts, predictor_parts
from .page_shared import command, paid


def page_of(study: Study) -> str:
    """The page; the same study gives the same page to the last byte."""
    short = [f'<li>{text(said)} <a href="#{name}">More</a></li>' for name, said in in_short(study)]
    lead = "\n".join([paragraph(study.headline, "lead"), '<ul class="short">', *short, "</ul>"])
    sections = [
        ("model", "What it is", model_parts),
        ("protocol", "How its text was scored", protocol_parts),
        ("distributions", "How large its weights and activations are", distribution_parts),
        ("natural", "What is zero by nature", natural_parts),
        ("costs", "What cutting costs", cost_parts),
        ("predictors", "Who can know beforehand", predictor_parts),
        ("patterns", "Whether patterns survive an edit", pattern_parts),
        ("buffer", "The prefetch buffer", buffer_parts),
        ("words", "Words, and how to repeat this page", word_parts),
    ]
    made = [(name, heading, template(name).substitute(parts(study))) for name, heading, parts in sections]
    return whole_page(f"{study.name}: a study of its activation sparsity", lead, made)


def in_short(s: Study) -> list[tuple[str, str]]:
    """The results, a sentence each, with the section that they are from."""
    twice, most = whole_token(2, s.ffn_share), whole_token(math.inf, s.ffn_share)
    found = [
        ("model", f"The FFNs hold {s.ffn_share:.0%} of the weights that a token reads. Where half of them are read, a "
                  f"token is at most {twice:.2f} times as fast; where none, {most:.2f} times."),
        ("protocol", f"Uncut: perplexity {s.dense['perplexity']:.3f}, {s.dense['bits_per_byte']:.4f} bits per byte."),
    ]  # fmt: skip
    reads = TARGETS["reads"][1]
    for by, target, what in (
        ("neuron", HALF, f"{HALF:.0%} of the neurons cut"),
        ("reads", reads, f"{1 - reads:.0%} of the FFN weights read, to know the mask included"),
    ):
        cut = sorted((row for row in s.cuts[by] if row["target"] == target), key=lambda row: row["perplexity"])
        costs = ", ".join(f"{row['policy']} {paid(row, s.dense)}" for row in (cut[0], cut[1], cut[-1]))
        found.append(("costs", f"Increase of perplexity with {what}: {costs} (the two cheapest and the dearest)."))
    best = min((row for row in s.predictors if row["predictor"] != "oracle"), key=lambda row: row["perplexity"])
    found.append((
        "predictors",
        f"Nearest to the oracle (perplexity {s.predictors[0]['perplexity']:.3f}, dense {best['dense']:.3f}) comes the "
        f"predictor {best['predictor']}: {best['perplexity']:.3f}. With it a token touches {best['reads']:.0%} of the "
        "FFN bytes, its own tables included.",
    ))  # fmt: skip
    half = next(row for row in s.keepers if row["keeper"] == "lru" and row["capacity_share"] >= HALF)
    found.append((
        "buffer",
        f"A buffer that keeps the {half['capacity_share']:.0%} of neurons used last holds {half['hit_rate']:.0%} of "
        f"what is asked for; {half['reads']:.0%} of the FFN bytes are fetched per token.",
    ))  # fmt: skip
    return found


def word_parts(s: Study) -> dict[str, str]:
    """The policies in words, and the page's own command."""
    rules = [policy_named(name) for name in POLICIES]
    kept = {rule.name: f"Keeps {in_words(rule.tensors, rule.comparison)} ({rule.source})." for rule in rules}
    whole = command(s, "report", "-o", "report.html", takes="text tokens prompt context seed")
    return {"policies": terms(kept), "repeat": commands([whole])}
