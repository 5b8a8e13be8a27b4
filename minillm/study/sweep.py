"""What a cut costs: policies times sparsities times models, one row each, with everything needed to compare it.

Two texts are needed, one to find thresholds on and one to score. With one text, its first 40 % of documents are the
first and the rest the second: they are never mixed.

**A sweep may be stopped at any time.** Its output file is its only record: it is written whole after every row, and a
row found there is not computed again. What makes a row the same is in the row itself: the hashes of the model's weights
and of both texts, policy, target, by, protocol, context and dtype. A file with any other row is refused before the
work, since writing it anew would lose that row.

**In parallel** (``jobs``), joblib hands out one row at a time. No backend is named, so that
``joblib.parallel_config(backend="dask")`` around the call sends the rows to a cluster. The pass that collects
magnitudes is done once per model, before the rows. joblib's own processes get no copies of them: it writes each array
above 1 MB once to a file in shared memory, which every process maps (read-only, so they are sorted before). dask
sends one copy to each worker, because ``Shared`` tells its size. Rows are the same bit for bit, serial or parallel,
where the number of BLAS threads is the same.

How sure the difference between two rows is: bootstrap.py.
"""

import hashlib
import io
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import MinillmError
from ..sparsity.calibrate import calibrate
from ..sparsity.magnitudes import Magnitudes, collect
from ..sparsity.policies import policy_named
from ..sparsity.sparse import policy_ffn
from ..sparsity.spec import SparsityMeter, SparsityReport
from ..sparsity.thresholds import Thresholds
from ..tables import load_rows, save_rows
from ..transformer.evaluation import Evaluation, perplexity
from ..transformer.model import Llama
from ..transformer.texts import default_context

TEXT_COLUMNS = {"model", "policy", "by", "protocol", "bos", "dtype", "spec"}
TEXT_COLUMNS |= {"model_sha256", "calibration_sha256", "test_sha256"}
SAME = ("model", "model_sha256", "calibration_sha256", "test_sha256", "protocol", "context", "dtype")
IDENTITY = (*SAME, "policy", "by", "target")  # rows that agree in these are the same row


def score_cut(model: Llama, test: str | Sequence[str], thresholds: Thresholds, dense: Evaluation) -> dict:
    """Score one set of thresholds under the protocol and context of the dense score; gives its row."""
    meter = SparsityMeter()
    score = perplexity(model, test, dense.protocol, dense.context, policy_ffn(model, thresholds), meter)
    return row(model, score, dense, meter.report(), thresholds)


def row(
    model: Llama,
    score: Evaluation,
    dense: Evaluation,
    report: SparsityReport | None = None,
    thresholds: Thresholds | None = None,
) -> dict:
    """Everything that is known about one score, under the keys of the CSV; without thresholds, the dense model's."""
    report = report or SparsityMeter().report()
    spec = thresholds and thresholds.spec
    if spec:  # on the text scored, not the calibration text
        paid = score.perplexity / dense.perplexity - 1
        spec = replace(spec, achieved=paid if spec.by == "ppl" else report.achieved(spec.by))
    return {
        "model": model.name,
        "policy": spec.policy if spec else "dense",
        "by": spec and spec.by,
        "target": spec and spec.target,
        "achieved": spec and spec.achieved,
        "level": thresholds and thresholds.level,
        "neuron_sparsity": report.neuron_sparsity,
        "tensor_sparsity": report.tensor_sparsity,
        "read_gate": report.read_exact[0],
        "read_up": report.read_exact[1],
        "read_down": report.read_exact[2],
        "read_exact": report.weight_reads,
        "read_known_mask": report.weight_reads_known_mask,
        "union_density": report.union_density,
        "union_window": report.union_window,
        "perplexity": score.perplexity,
        "vs_dense": score.perplexity / dense.perplexity,
        "bits_per_byte": score.bits_per_byte,
        "nll": score.nll,
        "tokens": score.tokens,
        "bytes": score.bytes,
        "protocol": score.protocol,
        "context": score.context,
        "bos": score.bos,
        "dtype": str(model.dtype),
        "spec": str(spec) if spec else "dense: nothing is cut",
        "document_nll": score.document_nll.tolist(),
        "document_tokens": score.document_tokens.tolist(),
    }


def _evaluation(row: dict) -> Evaluation:
    """The score that a row was made of."""
    fields = {key: row[key] for key in ("protocol", "context", "bos", "nll", "tokens", "bytes")}
    return Evaluation(
        **fields, document_nll=np.array(row["document_nll"]), document_tokens=np.array(row["document_tokens"])
    )


def fingerprint(model: Llama) -> str:
    """SHA-256 of all that a score depends on: config, tokenizer and every weight, in the dtype it is run in."""
    digest = hashlib.sha256(repr(sorted(asdict(model.config).items())).encode())
    if model.has_tokenizer:
        digest.update((model.folder / "tokenizer.json").read_bytes())
    blocks = [array for layer in model.layers for array in vars(layer).values() if isinstance(array, np.ndarray)]
    for array in (model.embed_tokens, *blocks, model.norm, model.lm_head):
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def text_digest(documents: str | Sequence[str]) -> str:
    """SHA-256 of a text, or of a list of documents with their ends."""
    whole = documents if isinstance(documents, str) else "\0".join([*documents, ""])
    return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, eq=False)
class Shared:
    """What all rows of one model have in common, and workers are given once."""

    model: Llama
    calibration: str | Sequence[str]
    test: str | Sequence[str]
    magnitudes: Magnitudes
    dense: Evaluation
    by: str

    def __sizeof__(self) -> int:
        """Its bytes, or about that: dask sends an argument above 1000 once to each worker, and others with each row."""
        return sum(self.model.parameters.values()) * self.model.dtype.itemsize

    def row(self, policy: str, sparsity: float) -> dict:
        """One row: find the thresholds on one text, score the other."""
        context = self.dense.context
        found = calibrate(
            self.model, self.calibration, policy, sparsity, context, self.by, magnitudes=self.magnitudes
        )  # fmt: skip
        return score_cut(self.model, self.test, found, self.dense)


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
    output: str | Path | None = None,
    jobs: int | None = 1,
    on_row: Callable[[dict], None] = lambda row: None,
) -> list[dict]:
    """Score each dense model, then every policy at every sparsity; gives the rows in that order (module docstring).

    calibration, test: documents that must be disjoint. output: a .csv or .json that is the record of the sweep, to
    be continued where it was stopped. jobs: 1 computes row after row in this process, another number asks joblib for
    so many workers, None leaves it to ``joblib.parallel_config``. on_row is called with each row when it is computed.
    Raises MinillmError, for a file with other rows and an unknown policy before anything is computed.
    """
    models = [models] if isinstance(models, Llama) else list(models)
    policies, sparsities = (list(dict.fromkeys(values)) for values in (policies, sparsities))
    tensors = sorted({tensor for policy in policies for tensor in policy_named(policy).tensors})
    same = [
        dict(zip(SAME, (model.name, fingerprint(model), text_digest(calibration), text_digest(test), protocol,
                        default_context(model) if context is None else context, str(model.dtype)), strict=True))
        for model in models
    ]  # fmt: skip
    cuts = [(policy, by, sparsity) for sparsity in sparsities for policy in policies]
    plan = [_key(s | _cut(*cut)) for s in same for cut in [("dense", None, None), *cuts]]
    rows = {key: None for key in plan} | _recorded(output, plan)

    def take(s: dict, found: dict) -> dict:
        """Record a new row."""
        found |= {key: s[key] for key in SAME}
        rows[_key(found)] = found
        if output is not None:
            save_rows(output, [row for row in rows.values() if row])
        on_row(found)
        return found

    for model, s in zip(models, same, strict=True):
        dense = rows[_key(s | _cut("dense", None, None))]
        if dense is None:
            score = perplexity(model, test, protocol, context)
            dense = take(s, row(model, score, score))
        left = [(policy, target) for policy, by, target in cuts if rows[_key(s | _cut(policy, by, target))] is None]
        if left:
            magnitudes = collect(model, calibration, tensors, context)
            shared = Shared(model, calibration, test, magnitudes, _evaluation(dense), by)
            for found in _computed(shared, left, tensors, jobs):
                take(s, found)
    return [rows[key] for key in plan]


def _cut(policy: str, by: str | None, target: float | None) -> dict:
    return {"policy": policy, "by": by, "target": target}


def _key(row: dict) -> tuple:
    return tuple(row[key] for key in IDENTITY)


def _recorded(output: str | Path | None, plan: Sequence[tuple]) -> dict[tuple, dict]:
    """The rows that the output file already holds. Raises MinillmError where one of them is not in the plan."""
    if output is None or not Path(output).exists():
        return {}
    anew = "to begin anew, name another file or remove this one"
    found = {}
    for number, row in enumerate(load_rows(output, TEXT_COLUMNS), start=1):
        if missing := [key for key in (*IDENTITY, "document_nll", "document_tokens") if key not in row]:
            raise MinillmError(f"{output}: row {number} has no {missing[0]}, expected the rows of a sweep; {anew}")
        key = _key(row)
        if key not in plan:
            nearest = max(plan, key=lambda known: sum(a == b for a, b in zip(known, key, strict=True)))
            differs = [
                f"{name} {_short(theirs)}, expected {_short(ours)}"
                for name, theirs, ours in zip(IDENTITY, key, nearest, strict=True)
                if theirs != ours
            ]
            raise MinillmError(
                f"{output}: row {number} is of another sweep (it has {'; '.join(differs)}) and would be lost; {anew}"
            )
        found[key] = row
    return found


def _short(value: object) -> str:
    text = str(value)
    return text[:12] + "..." if len(text) == 64 else text  # a SHA-256


def _computed(
    shared: Shared, left: Sequence[tuple[str, float]], tensors: Sequence[str], jobs: int | None
) -> Iterator[dict]:
    """The rows that are left, each as soon as it is known: one after the other, or by joblib's workers."""
    if jobs == 1:
        yield from (shared.row(*cut) for cut in left)
        return
    try:
        from joblib import Parallel, delayed
    except ImportError:
        raise MinillmError("more than one job needs joblib: pip install '.[study]'") from None
    # In processes of joblib's own, the arrays are files that nobody may write to: what sorts them does it now.
    shared.magnitudes.thresholds(tensors, 0.5)
    # batch_size 1: each row comes back, and is recorded, when it is done.
    parallel = Parallel(n_jobs=jobs, batch_size=1, return_as="generator_unordered")
    try:
        for found, notes in parallel(delayed(_in_worker)(shared, *cut) for cut in left):
            for note in notes:
                warnings.warn(note, stacklevel=3)
            yield found
    except BrokenExecutor:
        sentence = "a worker ended before its row was done (killed, perhaps for its memory); what is done is recorded"
        raise MinillmError(f"{sentence}: run the same sweep again, with fewer jobs") from None


def _in_worker(shared: Shared, policy: str, sparsity: float) -> tuple[dict, list[str]]:
    """A row, and the warnings that came with it, to be shown by the process that asked for it."""
    if threading.current_thread() is not threading.main_thread():  # both of these are for a whole process
        return shared.row(policy, sparsity), []
    with warnings.catch_warnings(record=True) as notes, redirect_stderr(io.StringIO()):  # no progress bars
        warnings.simplefilter("always")
        return shared.row(policy, sparsity), sorted({str(note.message) for note in notes})
