"""The page of a study: ``page_of(study)`` gives the HTML that ``minillm report`` writes.

A section is a template (templates/NAME.html, the words) and a function (page_*.py: tables, figures and numbers for its
$names). No result is typed into the words; code puts it there. Every figure's caption carries its definition
(SparsitySpec), and under each part stands the command that makes this part alone. There is no date on the page.
"""

from __future__ import annotations

import math

from ..prefetch.clock import whole_token
from ..sparsity.policies import policy_named
from ..sparsity.spec import in_words
from ..study.costs import COMPARED_POLICIES, HALF, TARGETS
from ..study.prediction import difference_in_words
from ..study.summary import Study
from .html import commands, paragraph, template, terms, text, whole_page
from .page_buffer import buffer_parts
from .page_costs import cost_parts
from .page_model import distribution_parts, model_parts, natural_parts, protocol_parts
from .page_predictors import pattern_parts, predictor_parts
from .page_shared import paid, repeat_command


def page_of(study: Study) -> str:
    """The page; the same study gives the same page to the last byte."""
    short = [f'<li>{text(sentence)} <a href="#{name}">More</a></li>' for name, sentence in in_short(study)]
    lead = "\n".join([paragraph(study.headline, "lead"), '<ul class="short">', *short, "</ul>"])
    sections = [
        ("model", "The model", model_parts),
        ("protocol", "How the text was scored", protocol_parts),
        ("distributions", "The sizes of weights and activations", distribution_parts),
        ("natural", "Natural sparsity", natural_parts),
        ("costs", "What cutting costs", cost_parts),
        ("predictors", "Predicting active neurons", predictor_parts),
        ("patterns", "Activation patterns before and after an edit", pattern_parts),
        ("buffer", "The prefetch buffer", buffer_parts),
        ("words", "Terms, and how to repeat this page", word_parts),
    ]
    made = [(name, heading, template(name).substitute(parts(study))) for name, heading, parts in sections]
    return whole_page(f"{study.name}: a study of its activation sparsity", lead, made)


def in_short(s: Study) -> list[tuple[str, str]]:
    """(section, sentence): the results in a sentence each, and the section where they come from."""
    twice, most = whole_token(2, s.ffn_share), whole_token(math.inf, s.ffn_share)
    results = [
        ("model", f"The FFNs hold {s.ffn_share:.0%} of the weights that a token of the dense model reads. If half of "
                  f"them are read, a token is at most {twice:.2f} times as fast as dense; if none, {most:.2f} times."),
        ("protocol", f"Dense: perplexity {s.dense['perplexity']:.3f}, {s.dense['bits_per_byte']:.4f} bits per byte."),
    ]  # fmt: skip
    reads = TARGETS["reads"][1]
    for by, target, what in (
        ("neuron", HALF, f"{HALF:.0%} of the neurons cut"),
        ("reads", reads, f"{1 - reads:.0%} of the FFN weights read, those for the mask included"),
    ):
        cut = sorted((row for row in s.cuts[by] if row["target"] == target), key=lambda row: row["perplexity"])
        costs = ", ".join(f"{row['policy']} {paid(row, s.dense)}" for row in (cut[0], cut[1], cut[-1]))
        ends = "the two cheapest policies and the most expensive one"
        dense = f"Increase of perplexity over the dense model's {s.dense['perplexity']:.3f}"
        results.append(("costs", f"{dense}, with {what}: {costs} ({ends})."))
    oracle, *others = s.predictors
    best = min(others, key=lambda row: row["perplexity"])
    results.append((
        "predictors",
        f"The predictor with the lowest perplexity is {best['predictor']}: {best['perplexity']:.3f}, "
        f"{difference_in_words(best, 'over_oracle')} over the oracle's {oracle['perplexity']:.3f} (dense "
        f"{best['dense']:.3f}). With it a token reads {best['reads']:.0%} of the FFNs' {best['dense_bytes']:,} bytes "
        "(dense: all of them), its own tables included.",
    ))  # fmt: skip
    half = next(row for row in s.keepers if row["keeper"] == "lru" and row["capacity_share"] >= HALF)
    results.append((
        "buffer",
        f"A buffer that keeps the {half['capacity_share']:.0%} of neurons used last holds {half['hit_rate']:.0%} of "
        f"the requested ones, and a random fixed set of that size {half['random']:.0%}. Of the FFNs' "
        f"{half['dense_bytes']:,} bytes, which the dense model fetches for every token, {half['reads']:.0%} are "
        f"fetched with the buffer and {half['random_bytes'] / half['dense_bytes']:.0%} with the random set.",
    ))  # fmt: skip
    return results


def word_parts(s: Study) -> dict[str, str]:
    """The policies in words, and the page's own command."""
    rules = [policy_named(name) for name in COMPARED_POLICIES]
    kept = {rule.name: f"Keeps {in_words(rule.tensors, rule.comparison)} ({rule.source})." for rule in rules}
    whole = repeat_command(s, "report", "-o", "report.html", takes="text tokens prompt context seed method")
    return {"policies": terms(kept), "repeat": commands([whole])}
