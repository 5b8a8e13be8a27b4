"""The demo: what the model is, one prompt continued dense and cut, and what cuts, predictors and a buffer cost.

Every part is measured by one function and printed by another, so that ``--json`` gives the same figures. All scores are
of documents that no threshold and no predictor has seen.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from . import flags
from .flags import DEMO_CALIBRATION, DEMO_POLICIES, DEMO_PREDICTION, DEMO_TOKENS
from .shared import load_model, new_tokens, prompt_ids, say, two_texts, wrapped

if TYPE_CHECKING:
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
    from ..study.describe import describe, headline

    started = time.perf_counter()
    given = given_by(a)
    if not a.json:
        print_start(given.model, a.prompt)
    cut, texts = cutter(given), {}
    for policy, text in continuations(given, cut):
        texts[policy] = text
        if not a.json:
            print(wrapped(" ".join(text.split()) or "(nothing)", f"  {policy:<7}"), flush=True)
    if not a.json:
        about = "at equal shares of neurons, then the paper's rule (dhar) at its own percentages of each tensor:"
        print("\n" + wrapped(f"What the cuts cost, {about}") + "\n", flush=True)
    rows = demo_rows(given, cut)
    mid = cut("mid", 0.5, "neuron")
    predicted, buffered = predictor_and_buffer_rows(given, mid)
    seconds = time.perf_counter() - started
    if a.json:
        result = {"model": headline(given.model), "parts": describe(given.model), "prompt": a.prompt}
        result |= {"continuations": texts, "rows": rows, "predictors": predicted, "buffer": buffered}
        print(json.dumps(result | {"seconds": seconds}, indent=1))
        return 0
    print_costs(rows, given, bool(a.text))
    print_predicted(predicted)
    print_buffer(buffered)
    say(f"{seconds:.1f} s")
    return 0


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


def demo_rows(given: Given, cut: FindThresholds) -> list[dict]:
    """The cost of the dense model, then of each cut of PLAN."""
    from tqdm.auto import tqdm

    from ..study.score import row, score_cut
    from ..transformer.evaluation import perplexity

    dense = perplexity(given.model, given.test, "documents", given.context)
    rows = [row(given.model, dense, dense)]
    for policy, sparsity, by in tqdm(PLAN, desc="policies", leave=False, delay=2, disable=None):
        rows.append(score_cut(given.model, given.test, cut(policy, sparsity, by), dense))
    return rows


def predictor_and_buffer_rows(given: Given, mid: Thresholds) -> tuple[list[dict], list[dict]]:
    """Predictors that select half of the neurons, and a small buffer: for all neurons, the oracle and the last one."""
    from tqdm.auto import tqdm

    from ..predictors.protocol import Predictor
    from ..prefetch.replay import ReplaySettings
    from ..study.buffers import FetchPlan, buffer_rows, plan_of
    from ..study.prediction import PredictionSettings, prediction_rows
    from ..transformer.texts import Sample, first_tokens

    model, context = given.model, given.context
    few, fewer = (first_tokens(model, given.test, tokens, context) for tokens in (DEMO_PREDICTION, DEMO_BUFFER))
    made: dict[str, Predictor] = {}
    plan = model, given.calibration, Sample(few, context=context), DEMO_PREDICTORS
    making = prediction_rows(*plan, PredictionSettings(0.5, mid), made)
    count = 1 + len(DEMO_PREDICTORS)  # the oracle comes first
    predicted = list(tqdm(making, total=count, desc="predictors", leave=False, delay=2, disable=None))
    plans = [FetchPlan(), plan_of(made[DEMO_PREDICTORS[-1]])]
    share = max(0.25, 1 / model.config.intermediate_size)  # room for one neuron, however few there are
    settings = ReplaySettings(shares=(0, share), device=DEMO_DEVICE)
    return predicted, list(buffer_rows(model, mid, Sample(fewer, context=context), plans, settings))


# ---- printing --------------------------------------------------------------------------------------------------------


def print_start(model: Llama, prompt: str) -> None:
    """What the model is, and what follows: the prompt."""
    from ..study.describe import PART_COLUMNS, describe, headline
    from ..tables import text_table

    print(wrapped(headline(model)) + "\n")
    print(text_table(describe(model), PART_COLUMNS))
    about = "continued greedily by the dense model, then with half of the neurons cut by each policy:"
    print("\n" + wrapped(f"The prompt {prompt!r}, {about}") + "\n", flush=True)


def print_costs(rows: list[dict], given: Given, own_text: bool) -> None:
    """What the cuts cost, and what each policy keeps."""
    from ..sparsity.policies import policy_named
    from ..sparsity.spec import in_words
    from ..tables import text_table

    shown = [row | {"target": row["by"] and f"{row['by']} {row['target']:.0%}"} for row in rows]
    print(text_table(shown, CUT_COLUMNS) + "\n")
    tokens, count = rows[0]["tokens"], len(given.calibration)
    too_few = "" if tokens >= DEMO_TOKENS else f" (the text holds no more; {DEMO_TOKENS:,} are better)"
    source = "other documents of the same file" if own_text else "documents of the embedded calibration text"
    print(
        wrapped(
            f"Scored: {tokens:,} tokens{too_few}, protocol documents, context {given.context}, BOS {rows[0]['bos']}. "
            f"Thresholds: from {count} {source}."
        )
    )
    rules = [policy_named(policy) for policy in DEMO_POLICIES]
    kept = [f"{rule.name} {in_words(rule.tensors, rule.comparison)} ({rule.source})" for rule in rules]
    print(wrapped(f"What each policy keeps: {'; '.join(kept)}."))
    print(
        wrapped(
            "Neurons cut: share of (token, neuron) pairs. Read: share of the FFN's "
            f"{given.model.parameters['ffn']:,} weights that a token reads when the policy computes its own mask; "
            "known: when the mask is known beforehand. Vs dense: perplexity over that of the dense model, which is "
            f"{rows[0]['perplexity']:.3f} per token."
        )
    )


def print_predicted(rows: list[dict]) -> None:
    """What it costs to select neurons by a prediction."""
    from ..study.prediction import difference_in_words
    from ..tables import text_table

    oracle, selected = rows[0], sorted(row["selected"] for row in rows)
    share = f"half of them (on this text {selected[0]:.3f} to {selected[-1]:.3f})"
    print("\n" + wrapped(f"Can the neurons be predicted? Each predictor selects {share} before the layer is read:"))
    print("\n" + text_table(rows, PREDICTED_COLUMNS) + "\n")
    print(
        wrapped(
            f"Scored: {oracle['tokens']:,} tokens; dense perplexity {oracle['dense']:.3f}, which the oracle raises by "
            f"{difference_in_words(oracle, 'increase')}. Recall: share of the neurons that matter most (the mask of "
            "mid) that were selected; with a recall near chance, little of the model is left, and its perplexity shows "
            "it. Own: bytes of the predictor's tables; read: what a token reads, tables included; both as shares of "
            f"the FFN's {oracle['dense_bytes'] / 1e3:,.0f} kB as stored. The oracle has no tables and reads nothing "
            "to know. Over oracle: perplexity minus the oracle's; low, high: its 95 % interval over documents. More: "
            "minillm predict eval."
        )
    )


def print_buffer(rows: list[dict]) -> None:
    """The last table: kB per token without and with a small buffer, for each way to select the neurons."""
    from ..tables import text_table

    kept = f"the {rows[1]['capacity']} last used neurons of a layer"
    about = f"What is then fetched from slow memory when it is needed, without a buffer and with one that keeps {kept}:"
    print("\n" + wrapped(about) + "\n")
    names = {"all neurons": "dense", "mask of mid": "oracle"}
    shown = [
        row | {"way": names.get(row["way"], row["way"]), "unbuffered": without["kB"]}
        for without, row in zip(rows[::2], rows[1::2], strict=True)
    ]
    print(text_table(shown, BUFFER_COLUMNS) + "\n")
    print(
        wrapped(
            "No buffer, last used, belady, random: kB of FFN weights fetched per token, as stored (mean of "
            f"{rows[0]['tokens']:,} tokens), without a buffer, with the neurons that were used last, with the best "
            "ones (which takes knowing the future), and with a fixed random set: what this set saves as well is not "
            f"due to the choice of neurons. Hit rate: of the last used; of the random set: {rows[1]['random']:.3f}. "
            "Stall: time waiting for what is fetched, as a share of the token's time and in ms, on a simulated "
            f"{rows[0]['device']}. More: minillm prefetch table."
        )
    )
