"""What a cut costs: policies and methods at several targets, on several models, one row each, ready to be compared.

    (policy, by, target)          thresholds on the calibration text         ->  Variant  ->  row
    (method, "weights", target)   fit on the calibration text                ->  Variant  ->  row      (score.py)

Two texts are needed, one to find thresholds (or the norms of inputs) on and one to score. With one text, its first
40 % of documents are the first and the rest the second: they are never mixed.

**A sweep may be stopped at any time.** Its output file is its only record (record.py): it is written whole after every
row, and a row found there is not computed again. What makes a row the same is in the row itself: the hashes of the
model's weights and of both texts, policy, target, by, protocol, context and dtype.

**In parallel** (``jobs``), joblib hands out one row at a time. No backend is named, so that
``joblib.parallel_config(backend="dask")`` around the call sends the rows to a cluster. The pass that collects
magnitudes is done once per model, before the rows. joblib's own processes get no copies of them: it writes each array
above 1 MB once to a file in shared memory, which every process maps (read-only, so they are sorted before). dask
sends one copy to each worker, because ``Shared`` tells its size. Rows are the same bit for bit, serial or parallel,
where the number of BLAS threads is the same: one in each worker, unless ``use_threads`` (threads.py) says another.

How sure the difference between two rows is: bootstrap.py.
"""

from __future__ import annotations

import hashlib
import io
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import MinillmError, show
from ..methods.base import Variant, fit, method_named
from ..sparsity.calibrate import calibrate
from ..sparsity.magnitudes import Magnitudes, collect
from ..sparsity.policies import policy_named
from ..threads import asked, use_threads
from ..transformer.evaluation import Evaluation, perplexity
from ..transformer.model import Llama
from ..transformer.texts import Sample, checked_context
from .record import DENSE, SAME, Record, key_of, named
from .score import evaluation_of, policy_variant, row, score_variant
from .sweep_rows import WEIGHTS


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
    """What makes one row of a model: a policy or a method, and its target. by "weights": policy is a method's name."""

    policy: str
    by: str
    target: float


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
        found = calibrate(*known, policy, target, self.dense.context, by, magnitudes=self.magnitudes)
        return policy_variant(self.model, found)

    def row(self, policy: str, by: str, target: float) -> dict:
        """One row: make the variant with one text, score it on the other."""
        return score_variant(self.variant(policy, by, target), self.test, self.dense)


@dataclass(frozen=True)
class Settings:
    """What all models of a sweep have in common. tensors: those that the policies cut."""

    calibration: str | Sequence[str]
    test: Sample
    cuts: Sequence[SweepPoint]
    tensors: Sequence[str]
    jobs: int | None

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
    on_row: Callable[[dict], None] = lambda row: None,
) -> list[dict]:
    """Score each dense model, then every policy and method at every target; gives the rows in that order.

    calibration, test: documents that must be disjoint. by: what a target of the policies counts; one of ``methods``
    (methods/base.py) counts weights. output: a .csv or .json that is the record of the sweep, to be continued where it
    was stopped. jobs: 1 computes row after row in this process, another number asks joblib for so many workers, None
    leaves it to ``joblib.parallel_config``. on_row is called with each row when it is computed. Raises MinillmError,
    for a file with rows of another model or text and an unknown policy or method before anything is computed.
    """
    models = [models] if isinstance(models, Llama) else list(models)
    tensors = sorted({tensor for policy in policies for tensor in policy_named(policy).tensors})
    for method in methods:
        method_named(method)
    kinds = [(policy, by) for policy in policies] + [(method, WEIGHTS) for method in methods]
    cuts = [SweepPoint(*kind, target) for target in dict.fromkeys(sparsities) for kind in dict.fromkeys(kinds)]
    settings = Settings(calibration, Sample(test, protocol, context), cuts, tensors, jobs)
    same = [settings.same(model) for model in models]
    plan = [key_of(s | identity) for s in same for identity in (DENSE, *(cut._asdict() for cut in cuts))]
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
        dense = record.add(row(model, score, score) | same)
    left = [cut for cut in settings.cuts if record.get(same | cut._asdict()) is None]
    magnitudes = None
    if any(cut.by != WEIGHTS for cut in left):
        magnitudes = collect(model, settings.calibration, settings.tensors, context)
    shared = Shared(model, settings.calibration, documents, magnitudes, evaluation_of(dense))
    for found in _computed(shared, left, settings) if left else ():
        record.add(found | same)


def _computed(shared: Shared, left: Sequence[SweepPoint], settings: Settings) -> Iterator[dict]:
    """The rows that are left, each as soon as it is known: one after the other, or by joblib's workers."""
    if settings.jobs == 1:
        yield from (shared.row(*cut) for cut in left)
        return
    try:
        from joblib import Parallel, delayed
    except ImportError:
        raise MinillmError("more than one job needs joblib: pip install '.[study]'") from None
    # In processes of joblib's own, the arrays are files that nobody may write to: what sorts them does it now.
    if shared.magnitudes is not None:
        shared.magnitudes.thresholds(settings.tensors, 0.5)
    # batch_size 1: each row comes back, and is recorded, when it is done.
    parallel = Parallel(n_jobs=settings.jobs, batch_size=1, return_as="generator_unordered")
    try:
        threads = asked() or 1  # of BLAS in each worker: the jobs share the cores
        for found, notes in parallel(delayed(_in_worker)(threads, shared, *cut) for cut in left):
            for note in notes:
                warnings.warn(note, stacklevel=3)
            yield found
    except BrokenExecutor:
        sentence = "a worker ended before its row was done (killed, perhaps for its memory); what is done is recorded"
        raise MinillmError(f"{sentence}: run the same sweep again, with fewer jobs") from None


def _in_worker(threads: int, shared: Shared, policy: str, by: str, target: float) -> tuple[dict, list[str]]:
    """A row, and the warnings that came with it, to be shown by the process that asked for it."""
    with use_threads(threads):
        if threading.current_thread() is not threading.main_thread():  # both of these are for a whole process
            return shared.row(policy, by, target), []
        with warnings.catch_warnings(record=True) as notes, redirect_stderr(io.StringIO()):  # no progress bars
            warnings.simplefilter("always")
            return shared.row(policy, by, target), sorted({str(note.message) for note in notes})
