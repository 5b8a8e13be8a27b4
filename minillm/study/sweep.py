"""What a cut costs: policies times sparsities, one row each, with everything needed to compare it.

Two texts are needed, one to find thresholds on and one to score. With one text, its first 40 % of documents are the
first and the rest the second: they are never mixed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..errors import MinillmError
from ..sparsity.calibrate import Thresholds, calibrate, collect, sparse_ffn
from ..sparsity.policies import policy_named
from ..sparsity.spec import SparsityMeter, SparsityReport
from ..transformer.evaluation import Evaluation, as_documents, perplexity, runs
from ..transformer.model import Llama

CALIBRATION_SHARE = 0.4


def split_text(documents: str | Sequence[str], share: float = CALIBRATION_SHARE) -> tuple[list[str], list[str]]:
    """Calibration documents and test documents: the first ``share`` of them, and the rest.

    A text that is one single document is cut at the line end nearest to that share of its characters.
    Raises MinillmError when either part would be empty.
    """
    found = as_documents(documents)
    if len(found) == 1:
        text, at = found[0], int(len(found[0]) * share)
        ends = [i for i in (text.rfind("\n", 0, at), text.find("\n", at)) if i >= 0]
        cut = min(ends, key=lambda i: abs(i - at), default=at)
        found = [part for part in (text[:cut].strip(), text[cut:].strip()) if part]
        parts = found[:1], found[1:]
    else:
        count = round(len(found) * share)
        parts = found[:count], found[count:]
    if not parts[0] or not parts[1]:
        raise MinillmError(
            f"the text holds {len(found)} document(s), too few to calibrate on one part and score another"
        )
    return parts


def first_tokens(model: Llama, documents: Sequence[str], tokens: int, context: int | None = None) -> list[str]:
    """As many of the first documents as hold at least ``tokens`` scored tokens (all of them, where they hold fewer)."""
    scored, last = 0, 0
    for run in runs(model, documents, "documents", context):
        if scored >= tokens and run.document != last:
            break
        scored, last = scored + len(run.ids) - run.unscored, run.document
    return list(documents[: last + 1])


def sweep(
    model: Llama,
    calibration: Sequence[str],
    test: str | Sequence[str],
    policies: Sequence[str],
    sparsities: Sequence[float],
    by: str = "tensor",
    protocol: str = "documents",
    context: int | None = None,
) -> Iterator[dict]:
    """Score the dense model, then every policy at every sparsity; yields a row as soon as it is known.

    calibration, test: documents that must be disjoint. A row holds the spec in words, what was achieved on the test
    text, the accounting, and the score with its protocol.
    """
    tensors = {tensor for policy in policies for tensor in policy_named(policy).tensors}  # refuses an unknown name
    dense = perplexity(model, test, protocol, context)
    yield row(model, dense, dense)
    magnitudes = collect(model, calibration, sorted(tensors), context)
    for sparsity in sparsities:
        for policy in policies:
            thresholds = calibrate(model, calibration, policy, sparsity, context, by, magnitudes=magnitudes)
            yield score_cut(model, test, thresholds, dense)


def score_cut(model: Llama, test: str | Sequence[str], thresholds: Thresholds, dense: Evaluation) -> dict:
    """Score one set of thresholds under the protocol and context of the dense score; gives its row."""
    meter = SparsityMeter()
    score = perplexity(model, test, dense.protocol, dense.context, sparse_ffn(model, thresholds), meter)
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
    spec = spec and replace(spec, achieved=report.achieved(spec.by))  # on the text scored, not the calibration text
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
    }
