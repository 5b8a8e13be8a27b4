"""One page with the whole study of one model: ``minillm report``.

    measure(model, ...)  ->  Study     here: every row and curve of the page; nothing is drawn
    page_of(study)       ->  str       page.py: the figures, tables and words, as HTML (html.py)

Nothing is measured here that has no chapter of its own: the rows are those of costs, natural, distributions,
prediction, edits and buffers. Nothing is timed either, so the same call gives the same study.

What a page costs is set by one number, the tokens that are scored for each row of the cost tables; the other parts read
a stated share of it (BUDGET).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from ..methods.base import method_named
from ..prefetch.clock import Interval, ffn_share, simulate, whole_token, work_of
from ..prefetch.record import frequencies, record
from ..prefetch.replay import ReplaySettings, kept_history, traffic_of
from ..sparsity.calibrate import calibrate
from ..sparsity.selected import SelectedFFN
from ..sparsity.sparse import policy_ffn
from ..transformer.evaluation import perplexity
from ..transformer.ffn import FeedForward
from ..transformer.generation import generate
from ..transformer.model import Llama
from ..transformer.texts import Sample, as_documents, default_context, first_tokens, runs
from .bootstrap import compare_policies, with_intervals
from .buffers import OWN, FetchPlan, buffer_rows, plans_of, prefetch_rows, stored_size, when_it_matters
from .costs import COMPARED_POLICIES, HALF, TARGETS, WEIGHT_TARGETS, cost_rows, method_rows
from .describe import config_rows, describe, headline
from .distributions import activation_magnitudes, activation_rows, curve, weight_magnitudes
from .edits import predictability
from .natural import natural_sparsity
from .overlap import reference
from .prediction import PredictionSettings, prediction_rows, verdict, workshop_of
from .variants import made_pairs

TOKENS = 6_000  # scored for each row of the cost tables
BUDGET = {"calibration": 0.75, "making": 2, "predictors": 0.6, "patterns": 0.25, "buffer": 0.15}  # of other parts
PREDICTORS = ("chance", "static", "previous-token", "svd", "shadow-3", "shadow-4", "up-4", "learned", "ahead-4")
BUFFER_PREDICTORS = ("shadow-4", "ahead-4")  # the last one is known a layer before
CAPACITIES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)  # of a layer's neurons
DEVICE = "laptop NVMe"
SHOWN_STEPS = ("gate_pre", "up", "mid", "out")  # whose distributions are shown
PROMPT, NEW_TOKENS = "Once upon a time", 40
SHRUNK = (0.7, 0.5, 0.3, 0.1, 0.0)  # shares of the FFNs that are still read


def amdahl_rows(share: float, shrunk: Sequence[float] = SHRUNK) -> list[dict]:
    """What reading a part of the FFNs is worth at most to a whole token whose weights are FFNs to this share."""
    return [
        {"ffn_read": r, "token_read": 1 - share + share * r, "faster": whole_token(1 / r if r else np.inf, share)}
        for r in shrunk
    ]


# ---- measuring -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Study:
    """Everything that the page shows, as rows under the keys of the chapters that make them.

    options: of the command, as typed, so that it can be repeated. budget: the tokens asked for, by the parts of BUDGET
    and "scored". texts: what each part read. dense: the uncut model's row. cuts, compared: rows by "neuron", "reads"
    and "tensor", and by "weights" where methods were asked for. stories: continuations of the prompt. timelines: the
    intervals of one token. specs: the definition (SparsitySpec) of the parts whose rows carry none.
    """

    name: str
    headline: str
    options: dict[str, object]
    budget: dict[str, int]
    config: list[dict]
    parts: list[dict]
    ffn_share: float
    amdahl: list[dict]
    texts: list[dict]
    dense: dict
    weights: list[dict]
    activations: list[dict]
    curves: dict[str, tuple[np.ndarray, np.ndarray]]
    natural: list[dict]
    cuts: dict[str, list[dict]]
    compared: dict[str, list[dict]]
    prompt: str
    stories: dict[str, str]
    predictors: list[dict]
    verdict: list[str]
    patterns: list[dict]
    keepers: list[dict]
    ways: list[dict]
    matters: list[str]
    timelines: dict[str, list[Interval]]
    specs: dict[str, str]

    def asdict(self) -> dict:
        """As JSON values: all of it but the curves."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "curves"}
        return found | {"timelines": {name: [i._asdict() for i in bars] for name, bars in self.timelines.items()}}


@dataclass(frozen=True, eq=False)
class StudyInput:
    """What all parts of a study need: the model, its two texts, the budget, and whom to tell that a row is done.

    documents: by "calibration" and "scored". texts: what each part has read so far, as rows for the page.
    """

    model: Llama
    documents: Mapping[str, Sequence[str]]
    tokens: int
    context: int
    seed: int
    done: Callable[[str], None]
    texts: list[dict] = field(default_factory=list)

    def budget(self) -> dict[str, int]:
        """The tokens that each part asks for."""
        return {"scored": self.tokens} | {part: math.ceil(share * self.tokens) for part, share in BUDGET.items()}

    def first(self, documents: str, budget: str, part: str) -> list[str]:
        """The first documents of a text that hold the tokens of a budget; noted for the page."""
        found = first_tokens(self.model, self.documents[documents], self.budget()[budget], self.context)
        scored = sum(len(run.ids) - run.unscored for run in runs(self.model, found, "documents", self.context))
        self.texts.append({"part": part, "text": documents, "documents": len(found), "tokens": scored})
        return found

    def rng(self) -> np.random.Generator:
        """A new generator with the study's seed: every part draws from one of its own."""
        return np.random.default_rng(self.seed)


def measure(
    model: Llama,
    calibration: str | Sequence[str],
    test: str | Sequence[str],
    options: Mapping[str, object] | None = None,
    *,
    tokens: int = TOKENS,
    prompt: str = PROMPT,
    context: int | None = None,
    seed: int = 0,
    methods: Sequence[str] = (),
) -> Study:
    """Measure everything; a progress bar on stderr tells how far it is.

    calibration, test: documents that must be disjoint. tokens: the budget (module docstring). methods: names of
    methods/base.py, which get a table of costs of their own ("weights"). Raises MinillmError.
    """
    from tqdm.auto import tqdm

    for name in methods:
        method_named(name)
    context = default_context(model) if context is None else context
    rows_of_cuts = len(COMPARED_POLICIES) * (len(TARGETS["neuron"]) + len(TARGETS["reads"])) + len(TARGETS["tensor"])
    rows_of_cuts += len(methods) * len(WEIGHT_TARGETS)
    bar = tqdm(total=rows_of_cuts + 1 + len(PREDICTORS) + 7, desc="report", leave=False, disable=None)

    def done(what: str) -> None:
        bar.set_postfix_str(what)
        bar.update()

    documents = {"calibration": as_documents(calibration), "scored": as_documents(test)}
    work = StudyInput(model, documents, tokens, context, seed, done)
    ids = model.tokenizer.encode(prompt)
    room = max(1, min(NEW_TOKENS, model.config.max_position_embeddings - len(ids)))
    generate(model, ids, room)  # computes nothing yet, but refuses a prompt that is empty or too long
    scored = work.first("scored", "scored", "distributions, natural sparsity, costs")
    known = work.first("calibration", "calibration", "thresholds, frequencies, all for the buffer")
    costs, half = cost_study(work, known, scored, methods)
    made = {"dense": generate(model, ids, room)}
    made |= {policy: generate(model, ids, room, ffn=ffn) for policy, ffn in half.items()}
    stories = {policy: "".join(step.text for step in steps) for policy, steps in made.items()}
    done("continuations")
    values = value_study(work, scored)
    learnt = work.first("calibration", "making", "making predictors, and their thresholds")
    predicted = predictor_study(work, learnt)
    patterns, pattern_spec = pattern_study(work, known)
    buffer, buffer_spec = buffer_study(work, known)
    bar.close()
    share = ffn_share(model.config)
    return Study(
        name=model.name, headline=headline(model), options=dict(options or {}), budget=work.budget(),
        config=config_rows(model),
        parts=describe(model), ffn_share=share, amdahl=amdahl_rows(share), texts=work.texts, prompt=prompt,
        stories=stories, patterns=patterns, specs={"buffer": buffer_spec, "patterns": pattern_spec},
        **costs, **values, **predicted, **buffer,
    )  # fmt: skip


def cost_study(
    work: StudyInput, known: Sequence[str], scored: Sequence[str], methods: Sequence[str]
) -> tuple[dict[str, Any], dict[str, FeedForward]]:
    """The fields of a Study that are about costs; and two FFNs that cut half of the neurons."""
    dense = perplexity(work.model, scored, "documents", work.context)
    by_weights = method_rows(work.model, known, scored, dense, methods, work.done)  # first: it may refuse a target
    cuts, half = cost_rows(work.model, known, scored, dense, work.done)
    cuts |= by_weights
    compared = {}
    if np.count_nonzero(dense.document_tokens) > 1:  # for an interval over documents
        compared = {by: compare_policies(cuts[by], "mid", work.rng()) for by in TARGETS}
        cuts = {by: with_intervals(rows, work.rng()) for by, rows in cuts.items()}
    return {"dense": cuts["neuron"][0], "cuts": cuts, "compared": compared}, half


def value_study(work: StudyInput, scored: Sequence[str]) -> dict[str, Any]:
    """The fields of a Study that are about the sizes of weights and activations."""
    magnitudes = activation_magnitudes(work.model, scored, work.context, SHOWN_STEPS)
    work.done("distributions")
    natural = natural_sparsity(work.model, scored, work.context)
    work.done("natural sparsity")
    return {
        "weights": weight_magnitudes(work.model), "activations": activation_rows(magnitudes),
        "curves": {step: curve(magnitudes, step) for step in SHOWN_STEPS}, "natural": natural,
    }  # fmt: skip


def predictor_study(work: StudyInput, learnt: Sequence[str]) -> dict[str, Any]:
    """The fields of a Study that are about predictors."""
    judged = work.first("scored", "predictors", "predictors")
    rows = []
    sample, settings = Sample(judged, context=work.context), PredictionSettings(HALF, seed=work.seed)
    for line in prediction_rows(work.model, learnt, sample, PREDICTORS, settings):
        rows.append(line)
        work.done(line["predictor"])
    return {"predictors": rows, "verdict": verdict(rows)}


def pattern_study(work: StudyInput, known: Sequence[str]) -> tuple[list[dict], str]:
    """The rows about patterns of edited texts, and the definition of the masks."""
    pairs = made_pairs(work.model, work.first("scored", "patterns", "patterns"), work.rng())
    thresholds = calibrate(work.model, known, "dhar", HALF, work.context)
    known_masks = reference(work.model, thresholds, known, work.context)
    measured = predictability(work.model, known_masks, pairs, work.context) if pairs else None
    work.done("patterns")
    return measured.rows(by_variant=False, by_layer=False) if measured else [], str(thresholds.spec)


def buffer_study(work: StudyInput, known: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The fields of a Study that are about the buffer (keepers compared, ways to know compared, two timelines), and
    the definition of what is needed.

    Thresholds, predictors and frequencies are all made from ``known``, as ``minillm prefetch`` makes them.
    """
    model, context = work.model, work.context
    walked = work.first("scored", "buffer", "buffer")
    mid = calibrate(model, known, "mid", HALF, context, "neuron")
    workshop = workshop_of(model, known, PredictionSettings(HALF, mid, seed=work.seed), context)
    counted = record(model, policy_ffn(model, mid), runs(model, known, "documents", context)).needed
    sample = Sample(walked, context=context)
    settings = ReplaySettings(
        shares=CAPACITIES, device=DEVICE, hot_frequencies=frequencies(counted), bytes_per_number=stored_size(model),
        seed=work.seed,
    )  # fmt: skip
    keepers = list(prefetch_rows(model, mid, sample, settings=settings))
    work.done("keepers")
    plans = plans_of(workshop, BUFFER_PREDICTORS, HALF)
    never_hot = replace(settings, hot_frequencies=None)
    rows = list(buffer_rows(model, mid, sample, plans, never_hot, dropping=plans[1:2]))
    work.done("ways to know")
    timelines, needed = {}, []
    for plan in (plans[0], plans[-1]):
        select, guess = plan.selectors(model, mid)
        ffn = SelectedFFN(select, guess=guess)
        seen = record(model, ffn, runs(model, walked, "documents", context), "recording")
        needed.append(seen.needed)
        name = OWN if plan.predictor is None else plan.predictor.name
        timelines[name] = last_token(model, seen.needed, seen.guessed, plan)
    work.done("timelines")
    spec = replace(mid.spec, achieved=float(1 - needed[0].mean()))
    found = {"keepers": keepers, "ways": rows, "matters": when_it_matters(rows), "timelines": timelines}
    return found, str(spec)


def last_token(model: Llama, needed: np.ndarray, guessed: np.ndarray | None, plan: FetchPlan) -> list[Interval]:
    """What the two lanes do for the last token of a record (T, L, N), with an LRU buffer of half of the neurons."""
    tokens, layers, neurons = needed.shape
    traffic = traffic_of(needed, kept_history(needed, round(HALF * neurons), "lru"), guessed)
    work = work_of(model, stored_size(model), predictor=plan.own_work(layers))
    timeline = simulate(traffic, DEVICE, work, lookahead=plan.lookahead)
    return timeline.of_token(tokens - 1)
