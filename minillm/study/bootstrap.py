"""How sure is a difference? Two methods that were scored on the same documents, compared with the paired bootstrap.

Documents differ in difficulty far more than methods differ in quality. Both methods score the same documents, so the
difficulty cancels, and their difference is known far better than either score. With nll_a[i], nll_b[i] the scores
(nats) and n[i] the tokens of document i,

    ln(perplexity_a / perplexity_b) = sum_i (nll_a[i] - nll_b[i]) / sum_i n[i]

Its interval comes from drawing as many documents again with replacement, the same ones for both methods, many times
(the paired bootstrap: Efron and Tibshirani 1993, chapter 13; for language, Koehn 2004, W04-3250).

Policies are compared only where something is equal: the neuron sparsity, or the weights that are read. The "percent" in
the name of a setting is not comparable, since each policy counts something else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MinillmError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from ..transformer.evaluation import Evaluation

EQUAL = {
    "neuron": "neuron_sparsity",
    "reads": "read_exact",
    "weights": "read_exact",
}  # by -> what is then equal between policies
SLACK = 0.02  # how far that may differ on the text scored, and still be called equal


def paired_bootstrap(
    nll_a: ArrayLike, nll_b: ArrayLike, tokens: ArrayLike, rng: np.random.Generator,
    samples: int = 2000, level: float = 0.95,
) -> tuple[float, float]:  # fmt: skip
    """The interval of ln(perplexity_a / perplexity_b) over documents drawn again (module docstring).

    nll_a, nll_b, tokens (documents,), nll in nats  ->  (low, high), between which a share ``level`` of samples lies.
    Raises MinillmError where the lengths differ, or with fewer than two documents that hold tokens.
    """
    a, b, n = (np.asarray(values, np.float64) for values in (nll_a, nll_b, tokens))
    if not a.shape == b.shape == n.shape or a.ndim != 1:
        raise MinillmError(f"nll_a {a.shape}, nll_b {b.shape}, tokens {n.shape}: expected one number per document")
    a, b, n = a[n > 0], b[n > 0], n[n > 0]
    if len(n) < 2:
        raise MinillmError(f"the text has {len(n)} document(s) with tokens, an interval over documents needs two")
    difference, ratios = a - b, []
    for start in range(0, samples, step := max(1, 1_000_000 // len(n))):  # a few megabytes at a time
        drawn = rng.integers(len(n), size=(min(step, samples - start), len(n)))
        ratios.append(difference[drawn].sum(axis=1) / n[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(ratios), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def difference(
    score: Evaluation, other: Evaluation, rng: np.random.Generator | None = None, samples: int = 2000
) -> tuple[float, float | None, float | None]:
    """How far the perplexity of one score lies above that of another on the same documents, and between which limits.

        perplexity - other, other * (exp(low) - 1), other * (exp(high) - 1)     low, high of ``paired_bootstrap``

    The limits are None where fewer than two documents hold tokens: then nothing says how sure the difference is.
    """
    base, tokens = other.perplexity, score.document_tokens
    if not np.array_equal(tokens, other.document_tokens):
        raise MinillmError("the two scores are not of the same documents")
    if np.count_nonzero(tokens) < 2:
        return score.perplexity - base, None, None
    rng = rng or np.random.default_rng(0)
    low, high = paired_bootstrap(score.document_nll, other.document_nll, tokens, rng, samples)
    return score.perplexity - base, base * math.expm1(low), base * math.expm1(high)


def in_words(value: float, low: float | None, high: float | None, form: str = "+.3f", unit: str = "") -> str:
    """A difference and its interval: "+0.12 (+0.05 to +0.20)"; the difference alone where there is no interval."""
    if low is None or high is None:
        return f"{value:{form}}{unit}"
    return f"{value:{form}}{unit} ({low:{form}} to {high:{form}}{unit})"


def paired(
    row: Mapping[str, Any], other: Mapping[str, Any], rng: np.random.Generator, samples: int = 2000
) -> dict[str, float]:
    """log_ratio = ln(perplexity / other's perplexity) of two rows that scored the same documents, with low and high."""
    if row["document_tokens"] != other["document_tokens"]:
        raise MinillmError(f"{row['policy']} and {other['policy']} were not scored on the same documents")
    low, high = paired_bootstrap(row["document_nll"], other["document_nll"], row["document_tokens"], rng, samples)
    return {"log_ratio": (row["nll"] - other["nll"]) / row["tokens"], "low": low, "high": high}


def _model(row: dict[str, Any]) -> str:
    return row.get("model_sha256", row["model"])  # two folders may have the same name


def compare_policies(
    rows: Sequence[dict[str, Any]], baseline: str = "mid", rng: np.random.Generator | None = None, samples: int = 2000
) -> list[dict[str, Any]]:
    """Compare every policy with a baseline at the same target, by neuron sparsity or weight reads; skip other rows.

    Gives per pair log_ratio = ln(perplexity / baseline's), low and high (95 % paired bootstrap interval over
    documents), the equal quantity of both as measured on the text scored, and a verdict: "better" or "worse" where the
    interval does not contain 0, else "undecided"; "not equal" where the quantity differs by more than SLACK.
    """
    rng = rng or np.random.default_rng(0)
    baselines = {(_model(r), r["by"], r["target"]): r for r in rows if r["policy"] == baseline}
    comparisons = []
    for r in rows:
        other = baselines.get((_model(r), r["by"], r["target"]))
        if r["by"] not in EQUAL or r["policy"] == baseline or other is None:
            continue
        ours, theirs = r[EQUAL[r["by"]]], other[EQUAL[r["by"]]]
        result = paired(r, other, rng, samples)
        verdict = "worse" if result["low"] > 0 else "better" if result["high"] < 0 else "undecided"
        verdict = verdict if abs(ours - theirs) <= SLACK else "not equal"
        comparison = {key: r[key] for key in ("model", "by", "target", "policy")} | {"baseline": baseline, **result}
        comparisons.append(comparison | {"share": ours, "baseline_share": theirs, "verdict": verdict})
    return comparisons


def with_intervals(
    rows: Sequence[dict[str, Any]], rng: np.random.Generator | None = None, samples: int = 2000
) -> list[dict[str, Any]]:
    """The rows with perplexity_low and perplexity_high, the interval of what the cut costs, for the bands of a figure.

        perplexity_low = dense perplexity * exp(low),   low of ln(perplexity / dense perplexity) over documents

    It says how well the COST is known on these documents, not how well the perplexity of other documents is known.
    """
    rng = rng or np.random.default_rng(0)
    dense = {_model(r): r for r in rows if r["policy"] == "dense"}
    banded = []
    for r in rows:
        limits = {}
        if base := dense.get(_model(r)):
            cost = paired(r, base, rng, samples)
            limits = {f"perplexity_{end}": base["perplexity"] * math.exp(cost[end]) for end in ("low", "high")}
        banded.append({**r, **limits})
    return banded
