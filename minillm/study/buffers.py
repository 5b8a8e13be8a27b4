"""What the prefetch buffer is worth to a model: one table of plans, capacities and eviction policies.

A row (``buffer_rows``) is a plan to know the neurons of a token, at one capacity of the buffer:

    all neurons                nothing is known: every token needs every neuron (the dense model)
    mask of mid                the policy's own mask, known at no cost when the layer is reached
    a predictor                it selects the neurons; known when the layer is reached, or a layer before
    a baseline (static, ...)   too poor to select by: the mask is mid's, the baseline only says what to prefetch

with hit rate, bytes and stall on a stated device, LRU, Belady and a random set on the same requests beside it, and the
perplexity: with misses that are waited for it is the cut's own, with dropped ones it is measured in the model. Bytes
are counted as the checkpoint stores its weights. ``when_it_matters`` says from which capacity on it no longer matters
what is known, or how early.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ..errors import MinillmError
from ..predictors.cutoffs import fit_cutoffs
from ..predictors.protocol import Predictor, check_fits
from ..predictors.select import Predicted
from ..predictors.workshop import Workshop
from ..prefetch.buffer import PrefetchBuffer
from ..prefetch.clock import Work, device_named, work_of
from ..prefetch.eviction import belady, lru
from ..prefetch.feedforward import BufferedFFN
from ..prefetch.record import Recorder
from ..prefetch.replay import (
    Replayed,
    ReplaySettings,
    baseline_figures,
    enough,
    figures_of,
    kept_history,
    replay,
    traffic_of,
)
from ..sparsity.selected import SelectedFFN, check_truth
from ..sparsity.sparse import policy_selector
from ..sparsity.thresholds import Thresholds
from ..tables import keys_as_headings
from ..transformer.evaluation import perplexity
from ..transformer.ffn import Selector
from ..transformer.model import Llama, shape_of
from ..transformer.texts import Sample
from .prediction import ffn_bytes

ROLES = ("select", "prefetch", "both")


class FetchPlan(NamedTuple):
    """A plan to know the neurons of a token.

    predictor None: the policy's own mask, free of charge and at the last moment. role: the use of a predictor's mask.
    lookahead: how early it is known; "layer" or "token" for a role that prefetches.

        role        needed       guessed      for
        select      its mask     -            the policy's own mask, or a predictor that selects the neurons
        prefetch    policy's     its mask     the predictor only prefetches: the output is that of the policy
        both        its mask     its mask     a predictor that knows early enough to prefetch what it selects
    """

    predictor: Predictor | None = None
    role: str = "select"
    lookahead: str = "layer"

    def selectors(self, model: Llama, thresholds: Thresholds) -> tuple[Selector, Selector | None]:
        """The Selector of the needed neurons, and that of the guess to prefetch (None: no guess). Raises MinillmError.

        thresholds: of policy mid, where a predictor takes part.
        """
        predictor, role = self.predictor, self.role
        if role not in ROLES:
            raise MinillmError(f"role is {role!r}, expected one of {', '.join(ROLES)}")
        if predictor is None:
            if role != "select":
                raise MinillmError(f"role {role} needs a guess, expected a predictor")
            return policy_selector(model, thresholds), None
        if role != "select" and self.lookahead not in predictor.lookaheads:
            found = f"{predictor.name} cannot guess one {self.lookahead} ahead"
            raise MinillmError(f"{found}: it looks at the layer's own input, expected role select")
        thresholds.check_fits(model)
        check_truth(thresholds)
        check_fits(predictor, model)
        own = Predicted(predictor, thresholds)
        if role == "prefetch":
            return policy_selector(model, thresholds), own
        return own, own if role == "both" else None

    def own_work(self, layers: int) -> float:
        """Multiply-adds of the predictor per layer and token, on average; 0 for one that is free."""
        predictor = self.predictor
        if predictor is None or predictor.free:
            return 0.0
        return float(np.mean([predictor.multiply_adds(i) for i in range(layers)]))

    def about(self) -> dict:
        """The columns of a row that name the predictor and its role."""
        predictor = self.predictor
        return {
            "predictor": "policy's own mask" if predictor is None else predictor.name,
            "role": self.role,
            "own_bytes": 0 if predictor is None else predictor.nbytes,
        }


def prefetch_rows(
    model: Llama, thresholds: Thresholds, sample: Sample, plans: Sequence[FetchPlan] = (FetchPlan(),),
    settings: ReplaySettings | None = None,
) -> Iterator[dict]:  # fmt: skip
    """Replay's rows for a model: each plan, capacity and eviction policy, with its perplexity.

    miss "wait": the sample is scored once per plan, and that pass is the record. miss "drop": dropped neurons change
    the tokens that follow, so the sample is scored again for each row, by an FFN that computes from the buffer alone.
    There belady, which needs the future, has no row of its own, and the baselines are those of the row's own requests.
    A predictor's own bytes are resident and its work counts (an oracle's is free). Raises MinillmError, also for a
    predictor that cannot guess as early as its plan says (its lookaheads).
    """
    settings = settings or ReplaySettings()
    layers, _, neurons = shape_of(model)
    dense = perplexity(model, *sample).perplexity
    capacities = sorted({round(share * neurons) for share in settings.shares})
    for plan in plans:
        selectors = plan.selectors(model, thresholds)
        size = settings.bytes_per_number or stored_size(model)
        work = work_of(model, size, predictor=plan.own_work(layers))
        about = {"model": model.name, **plan.about(), "dense_perplexity": dense}
        if settings.miss == "drop":
            for capacity in capacities:
                for name in settings.names():
                    if name != "belady":
                        buffer = PrefetchBuffer(
                            layers, neurons, capacity, settings.eviction(name, capacity, layers, neurons), log=False
                        )  # fmt: skip
                        score = perplexity(model, *sample, BufferedFFN(selectors[0], buffer, "drop", selectors[1]))
                        row = dropped_row(buffer, name, plan, work, settings)
                        yield about | {"perplexity": score.perplexity} | row
            continue
        recorder = Recorder.of(model)
        score = perplexity(model, *sample, SelectedFFN(selectors[0], guess=selectors[1]), recorder)
        rows = replay(recorder.needed, work, capacities, settings, recorder.guessed, plan.lookahead)
        for row in rows:
            yield about | {"perplexity": score.perplexity} | row


def dropped_row(
    buffer: PrefetchBuffer, name: str, plan: FetchPlan, work: Work, settings: ReplaySettings
) -> dict:  # fmt: skip
    """The row of a buffer after a text with misses dropped; its baselines wait for theirs, on the same requests."""
    trace, start, capacity, device = buffer.trace(), buffer.start, buffer.capacity, device_named(settings.device)
    chance = settings.eviction("random", capacity, buffer.layers, buffer.neurons)
    rivals = ((lru(), start), (belady(trace), start), (chance, None))
    beside = {r.name: traffic_of(trace, kept_history(trace, capacity, r, begin)) for r, begin in rivals}
    own = Replayed(buffer.traffic(), capacity, buffer.neurons, int(start.sum()), plan.lookahead, "drop")
    return {
        "keeper": name,
        **figures_of(own, work, device),
        "guesses": None if plan.role == "select" else plan.lookahead,
        **baseline_figures(beside, work, device),
    }


TABLE_PREDICTORS = ("shadow-4", "learned", "ahead-4", "previous-token", "oracle")
ALL, OWN = "all neurons", "mask of mid"


def plan_of(predictor: Predictor) -> FetchPlan:
    """The best plan of a predictor: one that can guess early does so, and one that selects badly only prefetches."""
    early = predictor.lookaheads
    if not predictor.selects:
        return FetchPlan(predictor, "prefetch", early[-1])
    return FetchPlan(predictor, "both", early[0]) if early else FetchPlan(predictor)


def plans_of(workshop: Workshop, names: Sequence[str], sparsity: float) -> list[FetchPlan]:
    """The policy's own mask, then a plan for each name of a predictor, with cutoffs for 1 - sparsity of the neurons."""
    plans = [FetchPlan()]
    for name in names:
        predictor = workshop.make(name)
        if predictor.cutoffs is None:
            given = workshop.model, predictor, workshop.thresholds, workshop.held
            fit_cutoffs(*given, 1 - sparsity, workshop.context)
        plans.append(plan_of(predictor))
    return plans


def stored_size(model: Llama) -> int:
    """Bytes of one FFN weight, as the checkpoint stores it."""
    return round(ffn_bytes(model)[1] / model.parameters["ffn"])


def buffer_rows(
    model: Llama, thresholds: Thresholds, sample: Sample, plans: Sequence[FetchPlan] = (FetchPlan(),),
    settings: ReplaySettings | None = None, dropping: Sequence[FetchPlan] = (),
) -> Iterator[dict]:  # fmt: skip
    """Rows of ``prefetch_rows`` for each plan and capacity, with the keys of TABLE_COLUMNS added.

    thresholds: of policy mid. settings: three of them are replaced: the eviction policy is lru, misses are waited for,
    and bytes are as the checkpoint stores its weights. dropping: plans that are scored again with dropped misses: one
    pass per capacity for lru, and one for a hot set where its frequencies are given. The rows of ALL come first.
    """
    layers, _, neurons = shape_of(model)
    size, first = stored_size(model), True
    waiting = replace(settings or ReplaySettings(), evictions=("lru",), miss="wait", bytes_per_number=size)
    drop = replace(waiting, evictions=("lru", "hot"), miss="drop")
    for chosen, each in ((plans, waiting), (dropping, drop)):
        for row in prefetch_rows(model, thresholds, sample, chosen, each):
            if first:  # the number of tokens is known only now
                about = {key: row[key] for key in ("model", "dense_perplexity")}
                about |= {"predictor": ALL, "role": "select", "own_bytes": 0, "perplexity": row["dense_perplexity"]}
                asked = np.ones((row["tokens"], layers, neurons), bool)
                capacities = [round(share * neurons) for share in waiting.shares]
                for dense in replay(asked, work_of(model, size), capacities, waiting):
                    yield readable(about | dense)
                first = False
            yield readable(row)


def readable(row: dict) -> dict:
    """A row of ``prefetch_rows``, with the columns that the tables print: kB as stored, and milliseconds."""
    known = {None: "at the layer", "layer": "a layer before", "token": "a token before"}[row["guesses"]]
    plan = OWN if row["predictor"] == "policy's own mask" else row["predictor"]
    if row["role"] == "prefetch":
        plan = f"{OWN}, guess: {plan}"
    wide = {"way": plan, "known": "-" if plan == ALL else known, "misses": row["miss"]}
    wide |= {"kB": row["bytes_per_token"] / 1e3, "stall": row["stall_share"]}
    wide["fast kB"] = (row["kept_bytes"] + row["own_bytes"]) / 1e3
    wide |= {"wasted kB": row["wasted_bytes"] / 1e3, "token ms": row["seconds_per_token"] * 1e3}
    wide["stall ms"] = row["stall_share"] * row["seconds_per_token"] * 1e3
    for name in ("lru", "belady", "random"):
        wide[f"{name} kB"] = row[f"{name}_bytes"] / 1e3
        wide[f"{name} ms"] = row[f"{name}_stall"] * row[f"{name}_seconds"] * 1e3
    return row | wide


TABLE_NAMES = 4  # the first columns, which name a row
TABLE_COLUMNS = keys_as_headings(dict.fromkeys(("way", "misses", "keeper"), "") | {"capacity": "d", "known": ""})
TABLE_COLUMNS |= {"fast kB": ("fast kB", ",.0f"), "perplexity": ("perplexity", ".3f")}
HIT_COLUMNS = {"hit_rate": ("hit rate", ".3f")} | keys_as_headings(dict.fromkeys(("lru", "belady", "random"), ".3f"))
KB_COLUMNS = keys_as_headings(dict.fromkeys(("kB", "lru kB", "belady kB", "random kB"), ",.0f"))
MS_COLUMNS = keys_as_headings(dict.fromkeys(("stall ms", "lru ms", "belady ms", "random ms"), ".3f"))
TABLE_COLUMNS |= HIT_COLUMNS | KB_COLUMNS | {"stall": ("stall", ".1%")} | MS_COLUMNS

REPLAY_COLUMNS = keys_as_headings(dict.fromkeys(("predictor", "role"), ""))
REPLAY_COLUMNS |= {"keeper": ("eviction", ""), "capacity": ("capacity", "d"), "perplexity": ("perplexity", ".3f")}
REPLAY_COLUMNS |= HIT_COLUMNS | KB_COLUMNS | keys_as_headings({"wasted kB": ",.0f", "token ms": ".3f"}) | MS_COLUMNS


def when_it_matters(rows: Sequence[dict], tolerance: float = 0.01) -> list[str]:
    """From which capacity on it no longer matters which neurons are known, and how early: sentences.

    rows of ``buffer_rows`` or ``prefetch_rows``; those of eviction policy lru count, with misses waited for. Guesses
    are compared with the same requests without guesses, and known neurons with fetching all of them, where the rows
    hold ALL. Time is that of the whole token: known neurons save computing, too, even where everything fits.
    """
    counted = [row for row in rows if row["miss"] == "wait" and row["keeper"] == "lru"]
    groups: dict[tuple, list[dict]] = {}
    for row in counted:
        groups.setdefault((row.get("way", row["predictor"]), row["role"], row["guesses"]), []).append(row)
    dense, sentences = groups.pop((ALL, "select", None), None), []
    for (name, role, early), known in groups.items():
        if early:
            sentences.append(f"{name}: {_enough(known, _without_guesses(known), 'its being known early', tolerance)}")
        if dense and role != "prefetch":
            sentences.append(f"{name}: {_enough(known, dense, 'knowing which neurons are needed', tolerance)}")
    return sentences


def _enough(known: Sequence[dict], rivals: Sequence[dict], what: str, tolerance: float) -> str:
    """One sentence: the capacity from which on ``what`` saves too little time, and the most that it saves."""
    at, before = enough(rivals, known, tolerance), {row["capacity"]: row["seconds_per_token"] for row in rivals}
    saved, where = max((1 - row["seconds_per_token"] / before[row["capacity"]], row["capacity"]) for row in known)
    most = f"{saved:.0%} of {1e3 * before[where]:.3g} ms per token (at {where})"
    if at is None:
        return f"even at the largest capacity tried, {what} saves {tolerance:.0%} of the time or more; at most {most}"
    below = f"; below, up to {most}" if saved >= tolerance else ""
    return f"from {at} neurons per layer on, {what} saves less than {tolerance:.0%} of the time{below}"


def _without_guesses(rows: Sequence[dict]) -> list[dict]:
    """The same requests with lru and no guesses: the baseline that each row carries."""
    return [{"capacity": row["capacity"], "seconds_per_token": row["lru_seconds"]} for row in rows]
