"""One page with the whole study of one model: ``minillm report``.

    measure(model, ...)  ->  Study     here: every row and curve of the page; nothing is drawn
    page_of(study)       ->  str       page.py: the figures, tables and words, as HTML (markup.py)

Nothing is measured here that has no chapter of its own: the rows are those of sweep, natural, distributions,
prediction, patterns and prefetching. Nothing is timed either, so the same call gives the same study.

What a page costs is set by one number, the tokens that are scored for each row of the cost tables; the other parts read
a stated share of it (BUDGET).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace

import numpy as np

from ..loading.checkpoint import checkpoint_tensors
from ..predictors.workshop import Workshop
from ..prefetch.clock import Interval, ffn_share, simulate, whole_token, work_of
from ..prefetch.record import frequencies, record
from ..prefetch.replay import KEEPERS, kept_history, traffic_of
from ..sparsity.calibrate import calibrate
from ..sparsity.magnitudes import collect
from ..sparsity.policies import policy_named
from ..sparsity.selected import SelectedFFN
from ..sparsity.sparse import policy_ffn
from ..transformer.evaluation import Evaluation, perplexity
from ..transformer.ffn import FeedForward
from ..transformer.generation import generate
from ..transformer.model import Llama
from ..transformer.texts import as_documents, default_context, first_tokens, runs, split_text
from .bootstrap import compare_policies, with_intervals
from .buffers import OWN, Way, buffer_rows, prefetch_rows, stored_size, ways_of, when_it_matters
from .describe import describe, headline
from .distributions import activation_magnitudes, activation_rows, curve, weight_magnitudes
from .edits import predictability, reference
from .natural import natural_sparsity
from .prediction import TRAINING_SHARE, prediction_rows, verdict
from .score import row, score_cut
from .variants import made_pairs

TOKENS = 6_000  # scored for each row of the cost tables
BUDGET = {"calibration": 0.75, "making": 2, "predictors": 0.6, "patterns": 0.25, "buffer": 0.15}  # of other parts
POLICIES = ("dhar", "cats", "mid", "countdown", "teal")
TARGETS = {"neuron": (0.3, 0.5, 0.7), "reads": (0.1, 0.2, 0.3), "tensor": (0.3, 0.4, 0.5)}  # tensor: dhar alone
HALF = 0.5  # what the continuations, predictors, patterns and the buffer leave out
PREDICTORS = ("chance", "static", "previous-token", "svd", "shadow-3", "shadow-4", "up-4", "learned", "ahead-4")
BUFFER_PREDICTORS = ("shadow-4", "ahead-4")  # the last one is known a layer before
CAPACITIES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)  # of a layer's neurons
DEVICE = "laptop NVMe"
STEPS = ("gate_pre", "up", "mid", "out")  # whose distributions are shown
PROMPT, NEW_TOKENS = "Once upon a time", 40
SHRUNK = (0.7, 0.5, 0.3, 0.1, 0.0)  # shares of the FFNs that are still read


# ---- what a model is -------------------------------------------------------------------------------------------------
def config_rows(model: Llama) -> list[dict]:
    """The config as rows of field and value; of a long list of windows, how many layers have one."""
    c = model.config
    windows = sorted({window for window in c.sliding_windows if window})
    found = {key: value for key, value in asdict(c).items() if key not in ("rope", "sliding_windows")}
    found |= {f"rope.{key}": value for key, value in asdict(c.rope).items() if value not in (None, ())}
    if windows:
        with_one = sum(window is not None for window in c.sliding_windows)
        found["sliding_windows"] = f"{', '.join(map(str, windows))} in {with_one} of {c.num_hidden_layers} layers"
    if model.folder is not None:
        tensors = checkpoint_tensors(model.folder).values()
        kinds = ", ".join(sorted({tensor.dtype for tensor in tensors}))
        found["stored"] = f"{sum(tensor.nbytes for tensor in tensors):,} bytes of {kinds}"
    return [{"field": k, "value": ", ".join(map(str, v)) if isinstance(v, tuple) else str(v)} for k, v in found.items()]


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

    options: of the command, as typed, so that it can be repeated. texts: what each part read. dense: the uncut model's
    row. cuts, compared: rows by "neuron", "reads" and "tensor". stories: continuations of the prompt. timelines: the
    intervals of one token. specs: the definition (SparsitySpec) of the parts whose rows carry none.
    """

    name: str
    headline: str
    options: dict[str, object]
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
        found = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "curves"}
        return found | {"timelines": {name: [i._asdict() for i in bars] for name, bars in self.timelines.items()}}


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
) -> Study:
    """Measure everything; a progress bar on stderr tells how far it is.

    calibration, test: documents that must be disjoint. tokens: the budget (module docstring). Raises MinillmError.
    """
    from tqdm.auto import tqdm

    context = default_context(model) if context is None else context
    calibration, test, texts = as_documents(calibration), as_documents(test), []
    rows_of_cuts = len(POLICIES) * (len(TARGETS["neuron"]) + len(TARGETS["reads"])) + len(TARGETS["tensor"])
    bar = tqdm(total=rows_of_cuts + 1 + len(PREDICTORS) + 7, desc="report", leave=False, disable=None)

    def first(documents: Sequence[str], share: float, part: str, text: str) -> list[str]:
        """The first documents of a text that hold this share of the budget; noted for the page."""
        found = first_tokens(model, documents, math.ceil(share * tokens), context)
        scored = sum(len(run.ids) - run.unscored for run in runs(model, found, "documents", context))
        texts.append({"part": part, "text": text, "documents": len(found), "tokens": scored})
        return found

    def done(what: str) -> None:
        bar.set_postfix_str(what)
        bar.update()

    ids = model.tokenizer.encode(prompt)
    room = max(1, min(NEW_TOKENS, model.config.max_position_embeddings - len(ids)))
    generate(model, ids, room)  # computes nothing yet, but refuses a prompt that is empty or too long

    scored = first(test, 1, "distributions, natural sparsity, costs", "scored")
    known = first(calibration, BUDGET["calibration"], "thresholds of the policies, frequencies", "calibration")
    dense = perplexity(model, scored, "documents", context)
    cuts, half = cost_rows(model, known, scored, dense, done)
    several = np.count_nonzero(dense.document_tokens) > 1  # for an interval over documents
    compared = {by: compare_policies(cuts[by], "mid", np.random.default_rng(seed)) for by in TARGETS if several}
    cuts = {by: with_intervals(rows, np.random.default_rng(seed)) if several else rows for by, rows in cuts.items()}
    made = {"dense": generate(model, ids, room)}
    made |= {policy: generate(model, ids, room, ffn=ffn) for policy, ffn in half.items()}
    stories = {policy: "".join(step.text for step in steps) for policy, steps in made.items()}
    done("continuations")
    magnitudes = activation_magnitudes(model, scored, context, STEPS)
    done("distributions")
    natural = natural_sparsity(model, scored, context)
    done("natural sparsity")

    learnt = first(calibration, BUDGET["making"], "making predictors, and their thresholds", "calibration")
    judged = first(test, BUDGET["predictors"], "predictors", "scored")
    predictors = []
    for line in prediction_rows(model, learnt, judged, PREDICTORS, HALF, context=context, seed=seed):
        predictors.append(line)
        done(line["predictor"])

    pairs = made_pairs(model, first(test, BUDGET["patterns"], "patterns", "scored"), np.random.default_rng(seed))
    pairs = [pair for pair in pairs if pair.original != pair.edited]  # two documents may have the same end
    thresholds = calibrate(model, known, "dhar", HALF, context)
    patterns = predictability(model, reference(model, thresholds, known, context), pairs, context)
    done("patterns")

    walked = first(test, BUDGET["buffer"], "buffer", "scored")
    training, held = split_text(learnt, TRAINING_SHARE)
    mid = calibrate(model, held, "mid", HALF, context, "neuron")
    buffer = buffer_study(Workshop(model, mid, training, held, context, None, seed), known, walked, done)
    bar.close()
    return Study(
        name=model.name, headline=headline(model), options=dict(options or {}), config=config_rows(model),
        parts=describe(model), ffn_share=ffn_share(model.config), amdahl=amdahl_rows(ffn_share(model.config)),
        texts=texts, dense=cuts["neuron"][0], weights=weight_magnitudes(model), activations=activation_rows(magnitudes),
        curves={step: curve(magnitudes, step) for step in STEPS}, natural=natural, cuts=cuts, compared=compared,
        prompt=prompt, stories=stories, predictors=predictors, verdict=verdict(predictors),
        patterns=patterns.rows(by_variant=False, by_layer=False),
        **buffer | {"specs": buffer["specs"] | {"patterns": str(thresholds.spec)}},
    )  # fmt: skip


def cost_rows(
    model: Llama, known: Sequence[str], scored: Sequence[str], dense: Evaluation, done: Callable[[str], None]
) -> tuple[dict[str, list[dict]], dict[str, FeedForward]]:
    """Rows of score_cut by what is equal between policies; and two FFNs that cut half of the neurons."""
    tensors = sorted({tensor for policy in POLICIES for tensor in policy_named(policy).tensors})
    magnitudes = collect(model, known, tensors, dense.context)
    cuts, half = {}, {}
    for by, targets in TARGETS.items():
        cuts[by] = [row(model, dense, dense)]
        for target in targets:
            for policy in ("dhar",) if by == "tensor" else POLICIES:
                thresholds = calibrate(model, known, policy, target, dense.context, by, magnitudes=magnitudes)
                cuts[by].append(score_cut(model, scored, thresholds, dense))
                if (by, target) == ("neuron", HALF) and policy in ("mid", "dhar"):
                    half[policy] = policy_ffn(model, thresholds)
                done(f"{policy} by {by} {target:.0%}")
    return cuts, {policy: half[policy] for policy in ("mid", "dhar")}


def buffer_study(
    workshop: Workshop, known: Sequence[str], walked: Sequence[str], done: Callable[[str], None]
) -> dict[str, object]:
    """The fields of a Study that are about the buffer: keepers compared, ways to know compared, two timelines."""
    model, mid, context = workshop.model, workshop.thresholds, workshop.context
    counted = record(model, policy_ffn(model, mid), runs(model, known, "documents", context)).needed
    how = {"shares": CAPACITIES, "device": DEVICE, "context": context, "seed": workshop.seed}
    often, size = frequencies(counted), stored_size(model)
    keepers = list(
        prefetch_rows(model, mid, walked, keepers=KEEPERS, hot_frequencies=often, bytes_per_number=size, **how)
    )
    done("keepers")
    ways = ways_of(workshop, BUFFER_PREDICTORS, HALF)
    rows = list(buffer_rows(model, mid, walked, ways, dropping=ways[1:2], **how))
    done("ways to know")
    timelines, needed = {}, []
    for way in (ways[0], ways[-1]):
        select, guess = way.selectors(model, mid)
        ffn = SelectedFFN(select, guess=guess)
        seen = record(model, ffn, runs(model, walked, "documents", context), "recording")
        needed.append(seen.needed)
        name = OWN if way.predictor is None else way.predictor.name
        timelines[name] = last_token(model, seen.needed, seen.guessed, way)
    done("timelines")
    spec = replace(mid.spec, achieved=float(1 - needed[0].mean()))
    return {
        "keepers": keepers, "ways": rows, "matters": when_it_matters(rows), "timelines": timelines,
        "specs": {"buffer": str(spec)},
    }  # fmt: skip


def last_token(model: Llama, needed: np.ndarray, guessed: np.ndarray | None, way: Way) -> list[Interval]:
    """What the two lanes do for the last token of a record (T, L, N), with an LRU buffer of half of the neurons."""
    tokens, layers, neurons = needed.shape
    traffic = traffic_of(needed, kept_history(needed, round(HALF * neurons), "lru"), guessed)
    own = np.mean([way.predictor.multiply_adds(i) for i in range(layers)]) if way.predictor else 0
    timeline = simulate(traffic, DEVICE, work_of(model, stored_size(model), predictor=own), lookahead=way.lookahead)
    return timeline.of_token(tokens - 1)
