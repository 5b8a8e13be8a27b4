"""TODO."""

import math
from collections.abc import Sequence

import numpy as np

from ..errors import MinillmError

EQUAL = {"neuron": "neuron_sparsity", "reads": "read_exact", "weights": "read_exact"}  # by -> what is then equal between policies
SLACK = 0.02  # how far that may differ on the text scored, and still be called equal


def paired_bootstrap(
    nll_a: Sequence[float], nll_b: Sequence[float], tokens: Sequence[int], rng: np.random.Generator,
    samples: int = 2000, level: float = 0.95,
) -> tuple[float, float]:  # fmt: skip
    """The interval of ln(perplexity_a / perplexity_b) over documents drawn anew, the same for both (docstring above).

    nll_a, nll_b, tokens (documents,), nll in nats  ->  (low, high), between which a share ``level`` of samples lies.
    Raises MinillmError where the lengths differ, or with fewer than two documents that hold tokens.
    """
    a, b, n = (np.asarray(values, np.float64) for values in (nll_a, nll_b, tokens))
    if not a.shape == b.shape == n.shape or a.ndim != 1:
        raise MinillmError(f"nll_a {a.shape}, nll_b {b.shape}, tokens {n.shape}: expected one number per document")
    a, b, n = a[n > 0], b[n > 0], n[n > 0]
    if len(n) < 2:
        raise MinillmError(f"the text has {len(n)} document(s) with tokens, an interval over documents needs two")
    difference, found = a - b, []
    for start in range(0, samples, step := max(1, 1_000_000 // len(n))):  # a few megabytes at a time
        drawn = rng.integers(len(n), size=(min(step, samples - start), len(n)))
        found.append(difference[drawn].sum(axis=1) / n[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(found), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _paired(row: dict, other: dict, rng: np.random.Generator, samples: int) -> dict:
    """ln(perplexity / other's perplexity) of two rows that scored the same documents, with its interval."""
    if row["document_tokens"] != other["document_tokens"]:
        raise MinillmError(f"{row['policy']} and {other['policy']} were not scored on the same documents")
    low, high = paired_bootstrap(row["document_nll"], other["document_nll"], row["document_tokens"], rng, samples)
    return {"log_ratio": (row["nll"] - other["nll"]) / row["tokens"], "low": low, "high": high}


def _model(row: dict) -> str:
    return row.get("model_sha256", row["model"])  # two folders may have the same name


def compare_policies(
    rows: Sequence[dict], baseline: str = "mid", rng: np.random.Generator | None = None, samples: int = 2000
) -> list[dict]:
    """Every policy beside a baseline at the same target, by neuron sparsity or weight reads; other rows are left out.

    Gives per pair log_ratio = ln(perplexity / baseline's), low and high (95 % paired bootstrap interval over
    documents), what the equal quantity came to for both on the text scored, and a verdict: "better" and "worse" where
    the interval leaves out 0, else "undecided"; "not equal" where the quantity differs by more than SLACK.
    """
    rng = rng or np.random.default_rng(0)
    based = {(_model(r), r["by"], r["target"]): r for r in rows if r["policy"] == baseline}
    found = []
    for r in rows:
        other = based.get((_model(r), r["by"], r["target"]))
        if r["by"] not in EQUAL or r["policy"] == baseline or other is None:
            continue
        ours, theirs = r[EQUAL[r["by"]]], other[EQUAL[r["by"]]]
        result = _paired(r, other, rng, samples)
        verdict = "worse" if result["low"] > 0 else "better" if result["high"] < 0 else "undecided"
        verdict = verdict if abs(ours - theirs) <= SLACK else "not equal"
        result |= {"share": ours, "baseline_share": theirs, "verdict": verdict}
        found.append({key: r[key] for key in ("model", "by", "target", "policy")} | {"baseline": baseline} | result)
    return found


def with_intervals(rows: Sequence[dict], rng: np.random.Generator | None = None, samples: int = 2000) -> list[dict]:
    """The rows with perplexity_low and perplexity_high, the interval of what the cut costs, for the bands of a figure.

        perplexity_low = dense perplexity * exp(low),   low of ln(perplexity / dense perplexity) over documents

    It says how well the COST is known on these documents, not how well the perplexity of other documents is.
    """
    rng = rng or np.random.default_rng(0)
    dense = {_model(r): r for r in rows if r["policy"] == "dense"}
    found = []
    for r in rows:
        limits = {}
        if base := dense.get(_model(r)):
            known = _paired(r, base, rng, samples)
            limits = {f"perplexity_{end}": base["perplexity"] * math.exp(known[end]) for end in ("low", "high")}
        found.append({**r, **limits})
    return found
