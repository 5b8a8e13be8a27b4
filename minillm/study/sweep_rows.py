"""A row of a sweep: what each of its columns holds, and which of its figures follow from others.

    nll = sum of document_nll          tokens = sum of document_tokens
    perplexity = exp(nll / tokens)     bits_per_byte = nll / ln 2 / bytes     vs_dense = perplexity / the dense model's
    read_exact = mean of read_gate, read_up, read_down        read_known_mask = 1 - neuron_sparsity (of a policy)
    stored = 1 (of a policy), or bytes of the smallest form over the dense model's
    achieved: what ``by`` counts, taken from the columns before        spec: policy, target and achieved in words

score.py makes such rows, record.py reads them back. A cell that somebody has changed, or that a program has cut off,
shows itself in two ways: it is not what COLUMNS says, or it contradicts the rest of its row (``contradictions``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from ..errors import MinillmError
from ..fields import brief
from ..identity import read_fingerprint
from ..methods.base import method_named
from ..rows import (
    FINITE,
    NOT_NEGATIVE,
    SHARE,
    TEXT,
    Kind,
    list_of,
    matching,
    number_between,
    numbers,
    one_of,
    whole,
)
from ..sparsity.policies import policy_named
from ..sparsity.spec import SparsityReport
from .predicted import is_predictor
from .score import evaluation_of

WEIGHTS = "weights"  # what the target of a method counts, and the mark of a method's row


def known(policy: str, by: str) -> None:
    """Raise MinillmError for a name that is no policy's and no method's (by weights) or predictor's (by reads)."""
    if by == WEIGHTS:
        method_named(policy)
    elif not (by == "reads" and is_predictor(policy)):
        policy_named(policy)


def _share_per_tensor(value: object) -> dict[str, float]:
    if not isinstance(value, dict):
        raise ValueError
    return {name: number_between(share, 0, 1) for name, share in value.items()}


def _of_a_model(value: object) -> dict:
    found = read_fingerprint(value, "", MinillmError)
    if found is None:
        raise ValueError
    return found.asdict()


SHA256 = matching("[0-9a-f]{64}", "a SHA-256, 64 hexadecimal digits")
READS = numbers(0, 8, "a share of the weights")  # of a method it may be above 1: indices are read, too
COLUMNS = {
    "model": TEXT,
    "policy": TEXT,
    "by": one_of("tensor", "neuron", "reads", "cett", "ppl", WEIGHTS).or_empty(),
    "target": NOT_NEGATIVE.or_empty(),
    "achieved": FINITE.or_empty(),
    "level": SHARE.or_empty(),
    "neuron_sparsity": SHARE,
    "tensor_sparsity": Kind("an object with a share from 0 to 1 per tensor", _share_per_tensor),
    "read_gate": READS,
    "read_up": READS.or_empty(),  # of an FFN without a gate: there is no up
    "read_down": READS,
    "read_exact": READS,
    "read_known_mask": READS,
    "union_density": SHARE.or_empty(),
    "union_window": whole(1),
    "perplexity": numbers(1, math.inf, "a finite number, at least 1"),
    "vs_dense": NOT_NEGATIVE,
    "bits_per_byte": NOT_NEGATIVE,
    "nll": NOT_NEGATIVE,
    "tokens": whole(1),
    "bytes": whole(1),
    "protocol": one_of("documents", "stream"),
    "context": whole(2),
    "bos": TEXT,
    "dtype": one_of("float32", "float64"),
    "spec": TEXT,
    "document_nll": list_of(NOT_NEGATIVE, "a list of finite numbers, at least 0"),
    "document_tokens": list_of(whole(0), "a list of whole numbers"),
    "stored": numbers(0, 8, "a share of the dense model's bytes").or_absent(),
    "model_sha256": SHA256,
    "calibration_sha256": SHA256,
    "test_sha256": SHA256,
    "fingerprint": Kind("an object of name, shape [L, D, F] and sha256", _of_a_model).or_absent(),
}


def contradictions(row: dict) -> Iterable[str]:
    """What in a row contradicts the rest of it, in words."""
    yield from _of_the_cut(row)
    yield from _of_the_score(row)
    yield from _of_the_reads(row)
    if "stored" in row and row["by"] != WEIGHTS and not is_predictor(row["policy"]):
        yield from unequal(row, {"stored": 1.0})
    if "fingerprint" in row and row["fingerprint"]["name"] != row["model"]:
        yield f"fingerprint names {row['fingerprint']['name']}, expected {row['model']}, as model says"


def _of_the_cut(row: dict) -> Iterable[str]:
    """What contradicts the policy or method, what its target counts, and the words that describe them."""
    policy, by, target = row["policy"], row["by"], row["target"]
    if policy == "dense":
        for key in ("by", "target", "achieved", "level", "tensor_sparsity", "union_density"):
            if row[key] not in (None, {}):
                yield f"{key} is {row[key]}, expected nothing for the dense model"
        if not row["spec"].startswith("dense: "):
            yield f"spec is {brief(row['spec'])}, expected one with 'dense: '"
        return
    if by is None or target is None:
        yield f"policy {policy} has by {by} and target {target}, expected both"
        return
    try:
        known(policy, by)
    except MinillmError as problem:
        yield str(problem)
    if not row["tensor_sparsity"]:
        yield "tensor_sparsity is empty, expected a share for each tensor that is cut"
    if (row["level"] is None) != (by == WEIGHTS or is_predictor(policy)):
        yield f"level is {row['level']}, expected a share for a policy and nothing for a method or a predictor"
    if by == WEIGHTS and row["union_density"] is not None:
        yield f"union_density is {row['union_density']}, expected nothing for a method"
    if by == "tensor":
        yield from unequal(row, {"level": target})
    achieved = "" if row["achieved"] is None else f"achieved {row['achieved']:.3f}"
    for words in (f"{policy}: ", f"target {target:.3f}", achieved):
        if words not in row["spec"]:
            yield f"spec is {brief(row['spec'])}, expected one with {words!r}, as the other columns say"


def _of_the_score(row: dict) -> Iterable[str]:
    """What contradicts the scores of the documents."""
    if len(row["document_nll"]) != len(row["document_tokens"]):
        counts = f"{len(row['document_nll'])} and {len(row['document_tokens'])} numbers"
        yield f"document_nll and document_tokens have {counts}, expected one for each document"
    if not row["nll"] / row["tokens"] < 709:  # whose exponential is no finite float64
        yield f"nll is {row['nll']}, expected less than 709 per token"
        return
    score = evaluation_of(row)
    yield from unequal(row, {
        "nll": sum(row["document_nll"]), "tokens": sum(row["document_tokens"]), "perplexity": score.perplexity,
        "bits_per_byte": score.bits_per_byte,
    })  # fmt: skip


def _of_the_reads(row: dict) -> Iterable[str]:
    """What contradicts the accounting of masks and reads."""
    by, report = row["by"], report_of(row)
    if by is None:
        ones = [key for key in ("read_gate", "read_up", "read_down", "vs_dense") if row[key] is not None]
        yield from unequal(row, dict.fromkeys(ones, 1.0))
        yield from unequal(row, {"neuron_sparsity": 0.0})
    elif by == "ppl":
        yield from unequal(row, {"achieved": row["vs_dense"] - 1})
    else:
        yield from unequal(row, {"achieved": report.achieved(by)})
    yield from unequal(row, {"read_exact": report.weight_reads})
    if by == WEIGHTS:
        if row["read_known_mask"] > row["read_exact"] + 1e-7:
            yield f"read_known_mask is {row['read_known_mask']}, expected at most read_exact, {row['read_exact']}"
    else:  # (of a method the indices are read, too)
        yield from unequal(row, {"read_known_mask": 1 - row["neuron_sparsity"]})
        if above := [key for key in ("read_gate", "read_up", "read_down") if (row[key] or 0) > 1]:
            yield f"{above[0]} is {row[above[0]]}, expected a share from 0 to 1"
    if "mid" in row["tensor_sparsity"] and row["tensor_sparsity"]["mid"] != row["neuron_sparsity"]:
        yield from unequal(row, {"neuron_sparsity": row["tensor_sparsity"]["mid"]})


def report_of(row: dict) -> SparsityReport:
    """The accounting that a row was made of, as far as it tells."""
    up = math.nan if row["read_up"] is None else row["read_up"]
    exact, known = (row["read_gate"], up, row["read_down"]), row["read_known_mask"]
    return SparsityReport(
        row["tokens"], row["neuron_sparsity"], (), row["tensor_sparsity"], exact, (known, known, known),
        row["union_density"], row["union_window"],
    )  # fmt: skip


def unequal(row: dict, expected: Mapping[str, float | None]) -> Iterable[str]:
    """Columns that are not what others say, in words. A spreadsheet may have kept only the first ten digits."""
    for name, value in expected.items():
        found = row[name]
        if found is None or value is None:
            if found is not value:
                yield f"{name} is {found}, expected {value} by the row's other columns"
        elif not math.isclose(found, value, rel_tol=1e-7, abs_tol=1e-7):
            yield f"{name} is {found:.10g}, expected {value:.10g} by the row's other columns"
