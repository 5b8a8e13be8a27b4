"""The demo: what the model is, one prompt continued dense and cut, and what cuts, predictors and a buffer cost.

Every part is measured by one function and put into words by another. ``parts`` yields the words as soon as they are
known, row by row, and collects the figures for ``--json``. All scores are of documents that no threshold and no
predictor has seen.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from . import flags
from .flags import DEMO_CALIBRATION, DEMO_POLICIES, DEMO_PREDICTION, DEMO_TOKENS
from .shared import load_model, new_tokens, prompt_ids, say, tell, two_texts, wrapped

if TYPE_CHECKING:
    from tqdm import tqdm

    from ..predictors.protocol import Predictor
    from ..sparsity.thresholds import Thresholds
    from ..transformer.model import Llama

DEMO_PREDICTORS = ("chance", "static", "previous-token", "shadow-4")
DEMO_BUFFER = 400  # tokens replayed through a buffer
DEMO_DEVICE = "laptop NVMe"
DEMO_SHARES = (0.3, 0.5, 0.7)
PLAN = [(policy, share, "neuron") for share in DEMO_SHARES for policy in DEMO_POLICIES]
PLAN += [("dhar", share, "tensor") for share in (0.3, 0.5)]
CUT_COLUMNS = {
    "policy": ("policy", ""), "target": ("target", ""), "neuron_sparsity": ("neurons cut", ".3f"),
    "read_exact": ("read", ".3f"), "read_known_mask": ("known", ".3f"), "perplexity": ("perplexity", ".3f"),
    "vs_dense": ("vs dense", ".3f"), "bits_per_byte": ("bits/byte", ".4f"),
}  # fmt: skip
PREDICTED_COLUMNS = {
    "predictor": ("predictor", ""), "recall": ("recall", ".3f"), "own_share_stored": ("own", ".3f"),
    "reads": ("read", ".3f"), "perplexity": ("perplexity", ".3f"), "over_oracle": ("over oracle", "+.3f"),
    "over_oracle_low": ("low", "+.3f"), "over_oracle_high": ("high", "+.3f"),
}  # fmt: skip
BUFFER_COLUMNS = {
    "way": ("selected by", ""), "unbuffered": ("no buffer", ",.0f"), "kB": ("last used", ",.0f"),
    "belady kB": ("belady", ",.0f"), "random kB": ("random", ",.0f"), "hit_rate": ("hit rate", ".3f"),
    "stall": ("stall", ".1%"), "stall ms": ("stall ms", ".2f"),
}  # fmt: skip
# A row as wide as most become: the columns of a table that grows.
WIDEST = dict.fromkeys(CUT_COLUMNS | PREDICTED_COLUMNS, 0.0) | {
    "policy": max(DEMO_POLICIES, key=len), "target": "neuron 50%", "predictor": max(DEMO_PREDICTORS, key=len),
    "perplexity": 1000.0, "over_oracle_low": 10.0, "over_oracle_high": 10.0,
}  # fmt: skip
STEPS = 1 + len(DEMO_POLICIES) + 1 + len(PLAN) + 1 + len(DEMO_PREDICTORS) + 1  # as ``parts`` counts them


class Given(NamedTuple):
    """What the demo works with: a model, a prompt as ids, the number of new tokens, and two sets of documents."""

    model: Llama
    ids: list[int]
    new: int
    calibration: list[str]
    test: list[str]
    context: int


FindThresholds = Callable[[str, float, str], "Thresholds"]  # (policy, sparsity, by) -> thresholds


def add(commands: flags.Commands) -> None:
    """Add the command of this file."""
    parents = (
        flags.model(),
        flags.text(),
        flags.prompt(),
        flags.length(flags.DEMO_NEW),
        flags.context(),
        flags.running(),
    )
    flags.command(commands, "demo", command_demo, *parents)


def command_demo(a: argparse.Namespace) -> int:
    """Show what the model is, continue a prompt dense and cut, and measure what the cuts cost."""
    from tqdm.auto import tqdm

    found: dict = {}
    started = time.perf_counter()
    given = given_by(a)
    with tqdm(total=STEPS, desc="demo", unit="step", leave=False, delay=2, disable=None) as bar:
        for words in parts(given, a, bar, found):
            if not a.json:
                tqdm.write(words)  # above the bar
                sys.stdout.flush()
    seconds = time.perf_counter() - started
    if a.json:
        print(json.dumps(found | {"seconds": seconds}, indent=1))
        return 0
    say(f"{seconds:.1f} s")
    return 0


def parts(given: Given, a: argparse.Namespace, bar: tqdm, found: dict) -> Iterator[str]:
    """The demo in words, each as soon as it is known; the figures go into ``found``, under the keys of the JSON."""
    from ..study.describe import describe, headline
    from ..tables import growing_table

    def kept(key: str, making: Iterable[dict]) -> Iterator[dict]:
        for row in making:
            found[key].append(row)
            bar.update()
            yield row

    def part(key: str) -> None:
        bar.set_description(f"demo: {key}")
        if a.json:
            tell(f"demo: {key}")

    found |= {"model": headline(given.model), "parts": describe(given.model), "prompt": a.prompt}
    found |= {"continuations": {}, "rows": [], "predictors": [], "buffer": []}
    yield about_model(given.model, a.prompt)
    part("continuations")
    cut = cutter(given)
    for policy, text in continuations(given, cut):
        found["continuations"][policy] = text
        bar.update()
        yield wrapped(" ".join(text.split()) or "(nothing)", f"  {policy:<7}")
    about = "at equal shares of neurons, then the paper's rule (dhar) at its own percentages of each tensor:"
    yield "\n" + wrapped(f"What the cuts cost, {about}") + "\n"
    part("policies")
    rows = (
        row | {"target": row["by"] and f"{row['by']} {row['target']:.0%}"}
        for row in kept("rows", demo_rows(given, cut))
    )
    yield from growing_table(rows, CUT_COLUMNS, WIDEST)
    yield about_costs(found["rows"], given, bool(a.text))
    about = "Each predictor selects half of them before the layer is read:"
    yield "\n" + wrapped(f"Can the neurons be predicted? {about}") + "\n"
    part("predictors")
    mid = cut("mid", 0.5, "neuron")
    made: dict[str, Predictor] = {}
    yield from growing_table(kept("predictors", predictor_rows(given, mid, made)), PREDICTED_COLUMNS, WIDEST)
    yield about_predictors(found["predictors"])
    part("buffer")
    found["buffer"] = buffered_rows(given, mid, made[DEMO_PREDICTORS[-1]])
    bar.update()
    yield about_buffer(found["buffer"])


# ---- measuring -------------------------------------------------------------------------------------------------------


def given_by(a: argparse.Namespace) -> Given:
    """The model, the prompt and the texts of the command line. Raises MinillmError for a prompt that is too long."""
    from ..transformer.generation import generate
    from ..transformer.texts import as_documents, default_context, first_tokens

    model = load_model(a)
    ids = prompt_ids(model, a.prompt)
    count = new_tokens(a, model, ids, flags.DEMO_NEW)
    generate(model, ids, count)  # computes nothing yet, but refuses a prompt that is too long
    calibration, test = map(as_documents, two_texts(a.text))
    context = a.context or default_context(model)
    calibration = first_tokens(model, calibration, DEMO_CALIBRATION, context)
    return Given(model, ids, count, calibration, first_tokens(model, test, DEMO_TOKENS, context), context)


def cutter(given: Given) -> FindThresholds:
    """A function that finds thresholds; magnitudes are collected once, and equal thresholds are found once."""
    from ..sparsity.calibrate import calibrate
    from ..sparsity.magnitudes import collect

    magnitudes = collect(given.model, given.calibration, context=given.context)

    @cache
    def cut(policy: str, sparsity: float, by: str) -> Thresholds:
        about = given.calibration, policy, sparsity, given.context, by
        return calibrate(given.model, *about, magnitudes=magnitudes)

    return cut


def continuations(given: Given, cut: FindThresholds) -> Iterator[tuple[str, str]]:
    """The prompt continued by the dense model, then with half of the neurons cut by each policy: (policy, text)."""
    from ..predictors.select import sparse_ffn
    from ..transformer.ffn import FeedForward, swiglu
    from ..transformer.generation import generate

    for policy in ("dense", *DEMO_POLICIES):
        dense = policy == "dense"
        ffn: FeedForward = swiglu if dense else sparse_ffn(given.model, cut(policy, 0.5, "neuron"))
        yield policy, "".join(step.text for step in generate(given.model, given.ids, given.new, ffn=ffn))


def demo_rows(given: Given, cut: FindThresholds) -> Iterator[dict]:
    """The cost of the dense model, then of each cut of PLAN."""
    from ..study.score import row, score_cut
    from ..transformer.evaluation import perplexity

    dense = perplexity(given.model, given.test, "documents", given.context)
    yield row(given.model, dense, dense)
    for policy, sparsity, by in PLAN:
        yield score_cut(given.model, given.test, cut(policy, sparsity, by), dense)


def predictor_rows(given: Given, mid: Thresholds, made: dict[str, Predictor]) -> Iterator[dict]:
    """The cost of selecting half of the neurons by the oracle, then by each predictor, which goes into ``made``."""
    from ..study.prediction import PredictionSettings, prediction_rows
    from ..transformer.texts import Sample, first_tokens

    sample = Sample(first_tokens(given.model, given.test, DEMO_PREDICTION, given.context), context=given.context)
    settings = PredictionSettings(0.5, mid)
    return prediction_rows(given.model, given.calibration, sample, DEMO_PREDICTORS, settings, made)


def buffered_rows(given: Given, mid: Thresholds, predictor: Predictor) -> list[dict]:
    """Without a buffer and with a small one: all neurons, those of the oracle and those that a predictor selects."""
    from ..prefetch.replay import ReplaySettings
    from ..study.buffers import FetchPlan, buffer_rows, plan_of
    from ..transformer.texts import Sample, first_tokens

    sample = Sample(first_tokens(given.model, given.test, DEMO_BUFFER, given.context), context=given.context)
    share = max(0.25, 1 / given.model.config.intermediate_size)  # room for one neuron, however few there are
    settings = ReplaySettings(shares=(0, share), device=DEMO_DEVICE)
    return list(buffer_rows(given.model, mid, sample, [FetchPlan(), plan_of(predictor)], settings))


# ---- in words --------------------------------------------------------------------------------------------------------


def about_model(model: Llama, prompt: str) -> str:
    """What the model is, and what follows: the prompt."""
    from ..study.describe import PART_COLUMNS, describe, headline
    from ..tables import text_table

    about = "continued greedily by the dense model, then with half of the neurons cut by each policy:"
    table = text_table(describe(model), PART_COLUMNS)
    return f"{wrapped(headline(model))}\n\n{table}\n\n" + wrapped(f"The prompt {prompt!r}, {about}") + "\n"


def about_costs(rows: list[dict], given: Given, own_text: bool) -> str:
    """What was scored, what each policy keeps, and what the columns mean."""
    from ..sparsity.policies import policy_named
    from ..sparsity.spec import in_words

    tokens, count = rows[0]["tokens"], len(given.calibration)
    too_few = "" if tokens >= DEMO_TOKENS else f" (the text holds no more; {DEMO_TOKENS:,} are better)"
    source = "other documents of the same file" if own_text else "documents of the embedded calibration text"
    rules = [policy_named(policy) for policy in DEMO_POLICIES]
    kept = [f"{rule.name} {in_words(rule.tensors, rule.comparison)} ({rule.source})" for rule in rules]
    scored = (
        f"Scored: {tokens:,} tokens{too_few}, protocol documents, context {given.context}, BOS {rows[0]['bos']}. "
        f"Thresholds: from {count} {source}."
    )
    columns = (
        "Neurons cut: share of (token, neuron) pairs. Read: share of the FFN's "
        f"{given.model.parameters['ffn']:,} weights that a token reads when the policy computes its own mask; "
        "known: when the mask is known beforehand. Vs dense: perplexity over that of the dense model, which is "
        f"{rows[0]['perplexity']:.3f} per token. More: minillm sweep."
    )
    return "\n" + "\n".join(map(wrapped, (scored, f"What each policy keeps: {'; '.join(kept)}.", columns)))


def about_predictors(rows: list[dict]) -> str:
    """What was scored, and what the columns mean."""
    from ..study.prediction import difference_in_words

    oracle, selected = rows[0], sorted(row["selected"] for row in rows)
    return "\n" + wrapped(
        f"Scored: {oracle['tokens']:,} tokens, of whose neurons {selected[0]:.3f} to {selected[-1]:.3f} were selected; "
        f"dense perplexity {oracle['dense']:.3f}, which the oracle raises by "
        f"{difference_in_words(oracle, 'increase')}. Recall: share of the neurons that matter most (the mask of "
        "mid) that were selected; with a recall near chance, little of the model is left, and its perplexity shows "
        "it. Own: bytes of the predictor's tables; read: what a token reads, tables included; both as shares of "
        f"the FFN's {oracle['dense_bytes'] / 1e3:,.0f} kB as stored. The oracle has no tables and reads nothing "
        "to know. Over oracle: perplexity minus the oracle's; low, high: its 95 % interval over documents. More: "
        "minillm predict eval."
    )


def about_buffer(rows: list[dict]) -> str:
    """The last table: kB per token without and with a small buffer, for each way to select the neurons."""
    from ..tables import text_table

    kept = f"the {rows[1]['capacity']} last used neurons of a layer"
    about = f"What is then fetched from slow memory when it is needed, without a buffer and with one that keeps {kept}:"
    names = {"all neurons": "dense", "mask of mid": "oracle"}
    shown = [
        row | {"way": names.get(row["way"], row["way"]), "unbuffered": without["kB"]}
        for without, row in zip(rows[::2], rows[1::2], strict=True)
    ]
    columns = (
        "No buffer, last used, belady, random: kB of FFN weights fetched per token, as stored (mean of "
        f"{rows[0]['tokens']:,} tokens), without a buffer, with the neurons that were used last, with the best "
        "ones (which takes knowing the future), and with a fixed random set: what this set saves as well is not "
        f"due to the choice of neurons. Hit rate: of the last used; of the random set: {rows[1]['random']:.3f}. "
        "Stall: time waiting for what is fetched, as a share of the token's time and in ms, on a simulated "
        f"{rows[0]['device']}. More: minillm prefetch table."
    )
    return f"\n{wrapped(about)}\n\n{text_table(shown, BUFFER_COLUMNS)}\n\n{wrapped(columns)}"
