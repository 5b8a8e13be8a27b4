"""What a cut costs: policies and methods at several targets, on several models, one row each, ready to be compared.

    (policy, by, target)          thresholds on the calibration text         ->  Variant  ->  row
    (method, "weights", target)   fit on the calibration text                ->  Variant  ->  row      (score.py)
    (predictor, "reads", target)  tables and cutoffs on the same text        ->  Variant  ->  row      (predicted.py)

Two texts are needed, one to find thresholds (or the norms of inputs) on and one to score. With one text, its first
40 % of documents are the first and the rest the second: they are never mixed.

**A sweep may be stopped at any time.** Its output file is its only record (record.py): it is written whole after every
row, and a row found there is not computed again. What makes a row the same is in the row itself: the hashes of the
model's weights and of both texts, policy, target, by, protocol, context and dtype.

**In parallel** (``jobs``, ``cluster``): workers.py. The pass that collects magnitudes is done once per model, before
the rows. joblib's own processes get no copies of them, but map one file (read-only, so they are sorted before).

How sure the difference between two rows is: bootstrap.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import show
from ..methods.base import Variant, fit, stored_bytes
from ..sparsity.calibrate import calibrate
from ..sparsity.magnitudes import Magnitudes, collect
from ..sparsity.policies import policy_named
from ..transformer.evaluation import Evaluation, perplexity
from ..transformer.model import Llama
from ..transformer.texts import Sample, checked_context
from .predicted import is_predictor, predictor_variant
from .record import DENSE, SAME, Record, key_of, named
from .score import evaluation_of, policy_variant, row, score_variant
from .sweep_rows import WEIGHTS, known
from .workers import HERE, Workers, computed


def model_digest(model: Llama) -> str:
    """SHA-256 of all that a score depends on: config, tokenizer and every weight, in the dtype it is run in."""
    digest = hashlib.sha256(repr(sorted(asdict(model.config).items())).encode())
    if model.folder is not None and model.has_tokenizer:
        digest.update((model.folder / "tokenizer.json").read_bytes())
    blocks = [array for layer in model.layers for array in vars(layer).values() if isinstance(array, np.ndarray)]
    for array in (model.embed_tokens, *blocks, model.norm, model.lm_head):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def text_digest(documents: str | Sequence[str]) -> str:
    """SHA-256 of a text, or of a list of documents with their ends."""
    whole = documents if isinstance(documents, str) else "\0".join([*documents, ""])
    return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()


class SweepPoint(NamedTuple):
    """What makes one row of a model: a policy, a method (by "weights") or a predictor (by "reads"), and its target."""

    policy: str
    by: str
    target: float


def needs_magnitudes(cut: SweepPoint) -> bool:
    """Whether a row is made from thresholds: that of a policy."""
    return cut.by != WEIGHTS and not is_predictor(cut.policy)


@dataclass(frozen=True, eq=False)
class Shared:
    """What all rows of one model have in common, and workers are given once. magnitudes: None without policies."""

    model: Llama
    calibration: str | Sequence[str]
    test: str | Sequence[str]
    magnitudes: Magnitudes | None
    dense: Evaluation

    def __sizeof__(self) -> int:
        """Its bytes, or about that: dask sends an argument above 1000 once to each worker, and others with each row."""
        return sum(self.model.parameters.values()) * self.model.dtype.itemsize

    def variant(self, policy: str, by: str, target: float) -> Variant:
        """What is scored for one row: made with the calibration text alone."""
        known = self.model, self.calibration
        if by == WEIGHTS:
            return fit(policy, *known, target, self.dense.context)
        if is_predictor(policy):
            return predictor_variant(policy, *known, target, self.dense.context)
        found = calibrate(*known, policy, target, self.dense.context, by, magnitudes=self.magnitudes)
        return policy_variant(self.model, found)

    def row(self, policy: str, by: str, target: float) -> dict:
        """One row: make the variant with one text, score it on the other."""
        variant = self.variant(policy, by, target)
        return score_variant(variant, self.test, self.dense) | {"stored": stored_share(self.model, variant)}


def stored_share(model: Llama, variant: Variant) -> float:
    """Bytes of the variant's file in its smallest form, over those of the dense model's at 16 bits per weight."""
    dense = stored_bytes(model, model.layers)["dense"]
    return min((variant.stored or {"dense": dense}).values()) / dense


@dataclass(frozen=True)
class Settings:
    """What all models of a sweep have in common: two texts, the rows to compute, and who computes them."""

    calibration: str | Sequence[str]
    test: Sample
    cuts: Sequence[SweepPoint]
    workers: Workers = HERE

    @cached_property
    def tensors(self) -> list[str]:
        """The tensors that the policies cut."""
        policies = [policy_named(cut.policy) for cut in self.cuts if needs_magnitudes(cut)]
        return sorted({tensor for policy in policies for tensor in policy.tensors})

    def same(self, model: Llama) -> dict:
        """The values under the keys SAME and the fingerprint, which all rows of one model share."""
        documents, protocol, context = self.test
        context = checked_context(model, context)
        texts, name = (text_digest(self.calibration), text_digest(documents)), show(model.name)
        values = (name, model_digest(model), *texts, protocol, context, str(model.dtype))
        return dict(zip(SAME, values, strict=True)) | {"fingerprint": model.fingerprint.asdict() | {"name": name}}


def sweep(
    models: Llama | Sequence[Llama],
    calibration: str | Sequence[str],
    test: str | Sequence[str],
    policies: Sequence[str],
    sparsities: Sequence[float],
    by: str = "tensor",
    protocol: str = "documents",
    context: int | None = None,
    *,
    methods: Sequence[str] = (),
    output: str | Path | None = None,
    jobs: int | None = 1,
    cluster: str | None = None,
    on_row: Callable[[dict], None] = lambda row: None,
) -> list[dict]:
    """Score each dense model, then every policy and method at every target; gives the rows in that order.

    calibration, test: documents that must be disjoint. by: what a target of the policies counts; one of ``methods``
    (methods/base.py) counts weights. output: a .csv or .json that is the record of the sweep, to be continued where it
    was stopped. jobs, cluster: who computes (workers.py). on_row is called with each row when it is computed. Raises
    MinillmError, for a file with rows of another model or text and an unknown policy or method before the work.
    """
    kinds = [(policy, by) for policy in policies] + [(method, WEIGHTS) for method in methods]
    cuts = [SweepPoint(*kind, target) for target in dict.fromkeys(sparsities) for kind in dict.fromkeys(kinds)]
    settings = Settings(calibration, Sample(test, protocol, context), cuts, Workers(jobs, cluster))
    return score_cuts([models] if isinstance(models, Llama) else models, settings, output, on_row)


def score_cuts(
    models: Sequence[Llama], settings: Settings, output: str | Path | None = None,
    on_row: Callable[[dict], None] = lambda row: None,
) -> list[dict]:  # fmt: skip
    """Score each dense model, then all cuts of the settings; as ``sweep``, which says what the arguments mean."""
    for cut in settings.cuts:
        known(cut.policy, cut.by)
    same = [settings.same(model) for model in models]
    plan = [key_of(s | identity) for s in same for identity in (DENSE, *(cut._asdict() for cut in settings.cuts))]
    names = {tuple(s[key] for key in SAME): named(s) for s in same}
    record = Record(plan, names, output, on_row)
    for model, s in zip(models, same, strict=True):
        _sweep_model(model, settings, s, record)
    return record.known()


def _sweep_model(model: Llama, settings: Settings, same: dict, record: Record) -> None:
    """Compute the rows of one model that are not recorded yet."""
    documents, protocol, context = settings.test
    dense = record.get(same | DENSE)
    if dense is None:
        score = perplexity(model, documents, protocol, context)
        dense = record.add(row(model, score, score) | {"stored": 1.0} | same)
    left = [cut for cut in settings.cuts if record.get(same | cut._asdict()) is None]
    magnitudes = None
    if any(map(needs_magnitudes, left)):
        magnitudes = collect(model, settings.calibration, settings.tensors, context)
        if not settings.workers.here:  # in other processes nobody may write to the arrays: what sorts them does it now
            magnitudes.thresholds(settings.tensors, 0.5)
    shared = Shared(model, settings.calibration, documents, magnitudes, evaluation_of(dense))
    for found in computed(shared, left, settings.workers):
        record.add(found | same)
