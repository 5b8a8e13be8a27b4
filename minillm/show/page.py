"""The page of a study: ``page_of(study)`` gives the HTML that ``minillm report`` writes.

A section is a Template (the words) and a function (what stands for its $names: tables, figures, numbers). No result is
typed into the words; code puts it there. Every figure's caption carries the definition behind it (SparsitySpec), and
under each part stands the command that makes it alone. There is no date on the page.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence

from ..prefetch.clock import whole_token
from ..sparsity.policies import policy_named
from ..sparsity.spec import in_words
from ..study.distributions import NEAR, normal_below
from ..study.summary import (
    BUFFER_PREDICTORS,
    CAPACITIES,
    DEVICE,
    HALF,
    NEW_TOKENS,
    POLICIES,
    PREDICTORS,
    PROMPT,
    STEPS,
    TARGETS,
    TOKENS,
    Study,
)
from . import results as plots
from .html import Columns, beside, bullets, commands, figure, paragraph, table, template, terms, text, whole_page

NEAR_DENSE = 1.1  # times the dense perplexity: what the second figure of predictors shows


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


# ---- what several sections need --------------------------------------------------------------------------------------
UNSAID = {"text": None, "context": None, "seed": 0, "dtype": "float32", "prompt": PROMPT, "tokens": TOKENS}


def command(study: Study, words: str, *more: object, takes: str = "text context seed") -> str:
    """A command line on the same model: its words, those of the page's own options that it takes, and more."""
    line = [*shlex.split(words), "--model", study.options.get("model", study.name)]
    for flag in ("dtype", *takes.split()):
        if (value := study.options.get(flag)) not in (None, UNSAID[flag]):
            line += [f"--{flag}", value]
    return "minillm " + " ".join(shlex.quote(str(word)) for word in (*line, *more))


def joined(values: Sequence[object]) -> str:
    """Values as a command takes them: with commas."""
    return ",".join(map(str, values))


def protocol(scored: Mapping) -> str:
    """What a figure was measured on, in words."""
    where = "{tokens:,} tokens, protocol {protocol}, context {context}, BOS {bos}, {dtype}"
    return where.format(**scored)


def definition(rows: Sequence[Mapping]) -> str:
    """The SparsitySpec behind a figure of costs: one row's in full, and what the other policies keep instead."""
    cut = [row for row in rows if row["policy"] != "dense"]
    targets = sorted({row["target"] for row in cut})
    names = list(dict.fromkeys(row["policy"] for row in cut))
    shown = "mid" if "mid" in names else names[0]
    one = next(row for row in cut if row["policy"] == shown and row["target"] == targets[len(targets) // 2])
    rules = [policy_named(name) for name in names if name != shown]
    others = "; ".join(f"{rule.name} {in_words(rule.tensors, rule.comparison)}" for rule in rules)
    others = f" The other policies are defined alike, but keep: {others}." if rules else ""
    return f"Definition, here of {shown} at its middle target: {one['spec']}.{others}"


def paid(row: Mapping, dense: Mapping) -> str:
    """What a cut costs, in words: "+1.2 % (+1.0 to +1.4 %)"."""
    cost = f"{100 * (row['vs_dense'] - 1):+.1f} %"
    if "perplexity_low" not in row:
        return cost
    low, high = (100 * (row[f"perplexity_{end}"] / dense["perplexity"] - 1) for end in ("low", "high"))
    return f"{cost} ({low:+.1f} to {high:+.1f} %)"


def under(group: str, columns: Columns) -> Columns:
    """Columns under one heading."""
    return {f"{group}/{heading}": column for heading, column in columns.items()}


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


# ---- the sections ----------------------------------------------------------------------------------------------------


def model_parts(s: Study) -> dict[str, str]:
    """Config, parts, and what the FFNs' share of them means."""
    columns = {"part": ("part", ""), "weights": ("weights", ","), "share": ("share", ".1%"), "MB": ("MB", ".2f")}
    limit = {"FFN weights read": ("ffn_read", ".0%"), "of all weights": ("token_read", ".1%")}
    limit |= {"times as fast, at most": ("faster", ".2f")}
    parts = table(s.parts, columns, "Where the weights are", "MB: as loaded.")
    limit = table(s.amdahl, limit, "The limit", "For a token that takes as long as its weights take to be read.")
    return {
        "tables": beside(
            table(s.config, {"field": ("field", ""), "value": ("value", "")}, "Config"),
            f"<div>\n{parts}\n{limit}\n</div>",
        ),
        "repeat": commands([command(s, "inspect", takes="")]),
    }


def protocol_parts(s: Study) -> dict[str, str]:
    """The protocol in words, and which part read which text."""
    file = s.options.get("text")
    origin = f"Both texts are parts of {file}: what comes first calibrates, the rest is scored." if file else ""
    columns = {"part": ("part", ""), "text": ("text", ""), "documents": ("documents", ","), "tokens": ("tokens", ",")}
    return {
        "perplexity": f"{s.dense['perplexity']:.4f}",
        "bits": f"{s.dense['bits_per_byte']:.4f}",
        "bytes": f"{s.dense['bytes']:,}",
        "protocol": text(protocol(s.dense)),
        "origin": text(origin or "Both texts are those that come with minillm; they share no document."),
        "read": table(s.texts, columns, "What each part read"),
        "repeat": commands([command(s, "perplexity", takes="text context")]),
    }


MEANING = {
    "gate_pre": "x W_gate^T, the gate before its activation function",
    "up": "x W_up^T",
    "mid": "act(gate_pre) times up, the coefficient of each neuron",
    "out": "mid W_down^T, what the FFN adds",
}


def by_layer(rows: Sequence[Mapping], key: str, values: Sequence[str]) -> list[dict]:
    """Rows per layer and ``key`` as one row per layer, with the values under "key value"."""
    found: dict[int, dict] = {}
    for row in rows:
        found.setdefault(row["layer"], {"layer": row["layer"]}).update({f"{row[key]} {v}": row[v] for v in values})
    return list(found.values())


def distribution_parts(s: Study) -> dict[str, str]:
    """Weights and activations by layer."""
    weights, activations = {"layer": ("layer", "d")}, {"layer": ("layer", "d")}
    near = {"below 1 %": "below_1_percent", "below 10 %": "below_10_percent", "r.m.s.": "rms"}
    for matrix in dict.fromkeys(row["matrix"] for row in s.weights):
        weights |= under(matrix, {heading: (f"{matrix} {key}", ".4f") for heading, key in near.items()})
    sizes = {"median": "median", "up to 0.1": "below_0.1", "up to 1": "below_1"}
    for step in STEPS:
        activations |= under(step, {heading: (f"{step} {key}", ".3f") for heading, key in sizes.items()})
    where = f"Nothing is cut: every value of every token and BOS, all layers; {protocol(s.dense)}."
    drawn = [
        figure(
            plots.magnitudes_by_layer(at, shares, step), f"size-{step}", f"Magnitudes of {step}",
            f"{step} = {MEANING[step]}. For each layer, the share of values up to a magnitude; where a curve reaches "
            f"50 %, a threshold there would cut half. {where}",
        )
        for step, (at, shares) in s.curves.items()
    ]  # fmt: skip
    return {
        "zeros": f"{max(row['zeros'] for row in s.weights):.4f}",
        "normal": " and ".join(f"{normal_below(share):.4f}" for share in NEAR),
        "weights": table(
            by_layer(s.weights, "matrix", list(near.values())), weights, "Weights of the FFNs",
            "Shares below 1 % and 10 % of the matrix's own root mean square (r.m.s.).",
        ),
        "figures": beside(*drawn),
        "activations": table(
            by_layer(s.activations, "step", list(sizes.values())), activations, "Magnitudes of the activations",
            "The one that half of the values do not exceed, and the shares up to 0.1 and 1.",
        ),
        "repeat": commands([command(s, "inspect --distributions", "--figure", "sizes.svg", takes="text")]),
    }  # fmt: skip


def natural_parts(s: Study) -> dict[str, str]:
    """What is zero, or nearly, when nothing is cut."""
    columns = {"layer": ("layer", "d"), "gate/exactly 0": ("gate_zeros", ".4f")}
    columns |= {f"gate/below {n} %": (f"gate_below_{n}_percent", ".4f") for n in (1, 10)}
    columns["mid/exactly 0"] = ("mid_zeros", ".4f")
    about = "Gate: act(gate_pre); 1 % and 10 %: of the root mean square of the gates of the same token and layer."
    caption = f"{about} Nothing is cut: every token and BOS, all neurons, all layers; {protocol(s.dense)}."
    drawn = plots.natural_by_layer({s.name: s.natural})
    return {
        "figures": beside(figure(drawn, "natural-zeros", "Natural sparsity by layer", caption)),
        "rows": table(s.natural, columns, "Natural sparsity, as shares", about),
        "repeat": commands([command(s, "inspect --natural", "--figure", "natural.svg", takes="text")]),
    }


COST_COLUMNS = {"policy": ("policy", ""), "target": ("target", ".0%"), "achieved": ("achieved", ".3f")}
COST_COLUMNS |= under("perplexity", {"found": ("perplexity", ".3f"), "of dense": ("vs_dense", ".3f")})
COST_COLUMNS |= under("perplexity", {end: (f"perplexity_{end}", ".3f") for end in ("low", "high")})
COST_COLUMNS |= {"bits per byte": ("bits_per_byte", ".4f"), "neurons cut": ("neuron_sparsity", ".3f")}
READS = {"gate": "gate", "up": "up", "down": "down", "all": "exact", "mask known": "known_mask"}
COST_COLUMNS |= under("weights read per token", {heading: (f"read_{key}", ".3f") for heading, key in READS.items()})
COST_COLUMNS |= {"needed by 16 tokens": ("union_density", ".3f")}
AGAINST = {"policy": ("policy", ""), "target": ("target", ".0%")}
AGAINST |= under("came to", {"itself": ("share", ".3f"), "mid": ("baseline_share", ".3f")})
AGAINST |= under("ln of the ratio to mid", {"found": ("log_ratio", "+.4f")})
AGAINST |= under("ln of the ratio to mid", {end: (end, "+.4f") for end in ("low", "high")})
AGAINST |= {"verdict": ("verdict", "")}


def cost_parts(s: Study) -> dict[str, str]:
    """Cost curves at equal neurons, at equal reads, the paper's own; and what it does to a text."""
    found = {"prompt": text(s.prompt), "half": f"{HALF:.0%}"}
    ending = "Low and high: 95 % interval of the cost over documents." if s.compared else "One document: no intervals."
    for by, heading in (("neuron", "Cost at equal neuron sparsity"), ("reads", "Cost at equal weight reads"),
                        ("tensor", "Cost of the paper's rule")):  # fmt: skip
        rows, x = s.cuts[by], "read_exact" if by == "reads" else "neuron_sparsity"
        if by == "tensor":
            drawn = plots.beside_the_paper(rows)
            words = "The three published models: figure 8 of arXiv 2412.12178, read off by eye; other texts and "
            words += "tokenizers, so each is relative to its own dense model."
        else:
            drawn = plots.cost_of_cuts(rows, x)
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
        found[by] = "\n".join(pieces)
    found["stories"] = terms({policy: " ".join((s.prompt + said).split()) for policy, said in s.stories.items()})
    how = ("--policy", "mid", "--sparsity", HALF, "--by", "neuron", "-o", "mid.json")
    told = ("--prompt", s.prompt, "-n", NEW_TOKENS, "--thresholds", "mid.json")
    lines = [command(s, "calibrate", *how, takes="text context"), command(s, "generate", *told, takes="")]
    return found | {"repeat": commands(lines)}


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
    drawn = [figure(plots.cost_of_predictors(s.predictors, one["dense"]), "bytes", "Bytes against perplexity", caption)]
    if 1 < len(near) < len(s.predictors):
        title = f"The same, within {NEAR_DENSE - 1:.0%} of the dense model"
        drawn.append(figure(plots.cost_of_predictors(near, one["dense"]), "bytes-near", title, caption))
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
        "figures": beside(figure(plots.match_by_position(rows), "match", title, caption)),
        "rows": table(rows, columns, title, about),
        "repeat": commands([command(s, "patterns", "-o", "patterns.csv")]),
    }


RIVALS = {"LRU": "lru", "Belady": "belady", "random": "random"}
BUFFERED = {"capacity": ("capacity", "d"), "perplexity": ("perplexity", ".3f")}
BUFFERED |= under("hit rate", {"found": ("hit_rate", ".3f")} | {name: (key, ".3f") for name, key in RIVALS.items()})
BUFFERED |= under("kB per token", {"found": ("kB", ",.0f")} | {n: (f"{key} kB", ",.0f") for n, key in RIVALS.items()})
BUFFERED |= under("stall, ms", {"found": ("stall ms", ".3f")} | {n: (f"{key} ms", ".3f") for n, key in RIVALS.items()})
BUFFERED |= {"stall": ("stall", ".0%")}


def buffer_parts(s: Study) -> dict[str, str]:
    """Hits and bytes against capacity, one token's timeline, the table, and where prediction stops mattering."""
    where = f"Definition: {s.specs['buffer']}. Read: {s.texts[-1]['tokens']:,} tokens, context {s.dense['context']}."
    device = f"Simulated on the device {DEVICE!r} of prefetch/clock.py, not measured."
    said = (
        "A layer's neurons become known when the layer is reached, so it waits for all that is missing.",
        "A layer's neurons are guessed one layer before, so that fetching goes on behind the computing.",
    )
    timelines = [
        figure(
            plots.gantt(bars), f"timeline-{n}", f"One token, {name}",
            f"What is computed (above) and fetched (below) for the last token read, layer by layer, with a buffer for "
            f"{HALF:.0%} of the neurons, LRU. {said[n]} {device} {where}",
        )
        for n, (name, bars) in enumerate(s.timelines.items())
    ]  # fmt: skip
    hits = "Requests that the buffer answers, by keeper (hot: neurons most often needed on the calibration text)."
    about = (
        "Keeper LRU; capacity: neurons kept per layer. LRU, Belady, random: these keepers on the same requests without "
        "any guess. Misses are waited for (exact) or dropped, which changes the output, so its perplexity is measured. "
        f"kB: fetched per token, as stored. {device}"
    )
    told = "{way}; known: {known}; misses: {misses}"
    rows = [row | {"told": told.format(**row).replace(" known: -;", "")} for row in s.ways]
    ways = ("--predictor", joined(BUFFER_PREDICTORS), "--capacity", joined(CAPACITIES), "-o", "buffer.csv")
    return {
        "figures": beside(
            figure(plots.hit_rate_by_capacity(s.keepers), "hits", "Hit rate against capacity", f"{hits} {where}"),
            figure(
                plots.bytes_by_capacity(s.keepers), "fetched", "Bytes against capacity",
                f"Fetched from slow memory per token, as stored, by keeper. {where}",
            ),
        ),
        "timelines": "\n".join(timelines),
        "ways": table(rows, BUFFERED, "What the buffer is worth, by how the neurons are known", about, within="told"),
        "matters": bullets([f"{sentence}." for sentence in s.matters]),
        "repeat": commands([
            command(s, "prefetch replay", "-o", "keepers.csv"),
            command(s, "prefetch table", *ways),
            command(s, "prefetch simulate", takes="context"),
        ]),
    }  # fmt: skip


def word_parts(s: Study) -> dict[str, str]:
    """The policies in words, and the page's own command."""
    rules = [policy_named(name) for name in POLICIES]
    kept = {rule.name: f"Keeps {in_words(rule.tensors, rule.comparison)} ({rule.source})." for rule in rules}
    whole = command(s, "report", "-o", "report.html", takes="text tokens prompt context seed")
    return {"policies": terms(kept), "repeat": commands([whole])}
