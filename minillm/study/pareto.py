"""One picture: what is read per token against what it costs, for every family of methods, on the same texts.

Why not simply prune? All families answer the same question here: a token may read a share R of the bytes of the FFNs'
weights (16 bits each, bitmaps counted, the attention left as it is). What is the perplexity?

    oracle         mid, the mask known at no cost: a bound, since nobody has it             cuts 1 - R of the neurons
    predictor      the neurons that a rounded copy of gate and up selects; the copy is read, too
    inputs         TEAL: inputs near zero are not multiplied; needs nobody to tell it
    unstructured   single weights are removed                        removes 1 - R + 1/16: the bitmap takes a sixteenth
    2:4            at most two of four successive weights stay       reads 1/2 + 1/16, and nothing else
    structured     whole neurons are removed for good                keeps R of the weights
    Wanda + mid    weights are removed, and the mask of mid is known for what is left: a bound, too; with thresholds
                   of the changed model, or ("dense mid") of the dense one, which then read another share;
                   SparseGPT + mid: the same with its weights
    SVD            matrices of low rank                              keeps R of the weights

A family is as good as its best member at about that share: ``best``. What is stored is another question: the first
three store the whole model (and the copy), the others what is left of the weights. Differences are paired over
documents (bootstrap.py), and each sentence of ``findings`` is computed from the rows.

The rows are those of a sweep (sweep.py), so a page may be stopped, continued, computed in parallel, and its file is
the file of a sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..transformer.model import Llama
from ..transformer.texts import Sample
from .bootstrap import SLACK, paired
from .sweep import Settings, SweepPoint, score_cuts
from .sweep_rows import WEIGHTS
from .workers import HERE, Workers

SPARSITIES = (0.25, 0.5, 0.75)  # 1 - R
BITMAP = 1 / 16  # of the bytes of a matrix of 16-bit weights: one bit for each of them
HALF = 0.5  # the share that the sentences are about
Row = Mapping[str, Any]


class Family(NamedTuple):
    """Methods of one kind. by: what their targets count. more: what is added to 1 - R to get a target.

    only: the one target that there is. read: the column with the share of the bytes that a token reads. weights:
    whether the weights are changed for good.
    """

    name: str
    members: tuple[str, ...]
    by: str
    more: float = 0.0
    only: float | None = None
    read: str = "read_exact"
    weights: bool = False

    def cuts(self, sparsities: Sequence[float]) -> list[SweepPoint]:
        """Its rows, so that 1 - sparsity is the share that is read; sparsities out of reach are left out."""
        targets = [self.only] if self.only is not None else [s + self.more for s in sparsities if s + self.more < 1]
        return [SweepPoint(member, self.by, target) for target in targets for member in self.members]


FAMILIES = (
    Family("oracle", ("mid",), "neuron", read="read_known_mask"),
    Family("predictor", ("shadow-2", "shadow-3"), "reads"),
    Family("inputs", ("teal",), "reads"),
    Family("unstructured", ("magnitude", "wanda", "sparsegpt", "dsnot"), WEIGHTS, BITMAP, weights=True),
    Family("2:4", ("magnitude-2:4", "wanda-2:4", "sparsegpt-2:4"), WEIGHTS, only=0.5, weights=True),
    Family("structured", ("neurons", "neurons-random"), WEIGHTS, weights=True),
    Family("Wanda + mid", ("wanda+mid",), WEIGHTS, read="read_known_mask"),
    Family("Wanda + dense mid", ("wanda+mid-dense",), WEIGHTS, read="read_known_mask"),
    Family("SparseGPT + mid", ("sparsegpt+mid",), WEIGHTS, read="read_known_mask"),
    Family("SparseGPT + dense mid", ("sparsegpt+mid-dense",), WEIGHTS, read="read_known_mask"),
    Family("SVD", ("svd", "svd-whitened"), WEIGHTS, weights=True),
)
ORDERINGS = (  # what a paper says: the first is better than the second at the same target
    ("wanda", "magnitude", "arXiv 2306.11695"),
    ("wanda-2:4", "magnitude-2:4", "arXiv 2306.11695"),
    ("sparsegpt", "wanda", "arXiv 2301.00774"),
    ("sparsegpt-2:4", "wanda-2:4", "arXiv 2301.00774"),
    ("dsnot", "wanda", "arXiv 2310.08915"),
    ("svd-whitened", "svd", "arXiv 2403.07378"),
)


def pareto(
    models: Sequence[Llama], calibration: str | Sequence[str], test: Sample,
    sparsities: Sequence[float] = SPARSITIES, *, output: str | Path | None = None, workers: Workers = HERE,
    on_row: Callable[[dict], None] = lambda row: None,
) -> list[dict]:  # fmt: skip
    """Score each dense model and all families at shares of 1 - sparsity; gives the rows of a sweep.

    The arguments are those of ``sweep``, which says what is raised.
    """
    cuts = [cut for family in FAMILIES for cut in family.cuts(sorted(set(sparsities)))]
    return score_cuts(models, Settings(calibration, test, cuts, workers), output, on_row)


def points(rows: Sequence[Row], rng: np.random.Generator | None = None) -> list[dict]:
    """The rows of families with what a page shows: family, read, weights, and over_dense with its interval.

    over_dense = ln(perplexity / the dense model's); low, high: 95 % over documents, None where there is only one.
    """
    rng = rng or np.random.default_rng(0)
    dense = {row["model_sha256"]: row for row in rows if row["policy"] == "dense"}
    of = {(cut.policy, cut.by): family for family in FAMILIES for cut in family.cuts([HALF])}
    found = []
    for row in rows:
        if family := of.get((row["policy"], row["by"])):
            cost = compared(row, dense[row["model_sha256"]], rng)
            about = {"family": family.name, "read": row[family.read], "weights": family.weights}
            found.append({**row, **about, "over_dense": cost["log_ratio"], "low": cost["low"], "high": cost["high"]})
    return found


def compared(row: Row, other: Row, rng: np.random.Generator) -> dict[str, Any]:
    """log_ratio = ln(perplexity / the other's) with its limits low and high; None where there is one document."""
    if np.count_nonzero(row["document_tokens"]) > 1:
        return {**paired(row, other, rng)}
    return {"log_ratio": (row["nll"] - other["nll"]) / row["tokens"], "low": None, "high": None}


def best(found: Sequence[dict], model: str, share: float | None = None) -> list[dict]:
    """Of each family of a model (its SHA-256) the row of the lowest perplexity: at that share, or at each target.

    share: of the bytes that a token reads; a row counts that is within SLACK of it.
    """
    lowest: dict[tuple, dict] = {}
    for row in found:
        if row["model_sha256"] != model or (share is not None and abs(row["read"] - share) > SLACK):
            continue
        key = (row["family"], None if share is not None else row["target"])
        if key not in lowest or row["perplexity"] < lowest[key]["perplexity"]:
            lowest[key] = row
    return list(lowest.values())


# ---- in words --------------------------------------------------------------------------------------------------------


def increase(log_ratio: float) -> str:
    """ln(perplexity / another one) as an increase in percent: "+3.2", and "+312" from 100 on."""
    percent = 100 * np.expm1(log_ratio)
    return f"{percent:+.1f}" if percent < 99.95 else f"{percent:+.0f}"


def with_limits(row: Row, key: str) -> str:
    """An increase with its interval: "+3.2 % (+2.9 to +3.5 %)"."""
    if row["low"] is None:
        return f"{increase(row[key])} %"
    return f"{increase(row[key])} % ({increase(row['low'])} to {increase(row['high'])} %)"


def findings(found: Sequence[dict], share: float = HALF, rng: np.random.Generator | None = None) -> list[str]:
    """What the rows say at that share of the bytes, for each model and for all of them, as sentences."""
    rng = rng or np.random.default_rng(0)
    sentences, oracles, others = [], [], []
    where = f"At {100 * share:.0f} % of the FFNs' bytes per token"
    for model in dict.fromkeys(row["model_sha256"] for row in found):
        rows = best(found, model, share)
        oracle = next((row for row in rows if row["family"] == "oracle"), None)
        weights = min((row for row in rows if row["weights"]), key=lambda row: row["perplexity"], default=None)
        if oracle is None or weights is None:
            continue
        oracles.append(oracle["over_dense"])
        others.append(weights["over_dense"])
        against = compared(weights, oracle, rng)
        sentences.append(
            f"{oracle['model']}: {where[0].lower()}{where[1:]} the oracle costs {with_limits(oracle, 'over_dense')} of "
            f"the dense perplexity, the best method that changes weights, {weights['policy']}, "
            f"{with_limits(weights, 'over_dense')}; over the oracle that is {with_limits(against, 'log_ratio')}"
        )
        for family in ("predictor", "inputs"):
            if real := next((row for row in rows if row["family"] == family), None):
                sentences[-1] += f"; without an oracle, {real['policy']} costs {with_limits(real, 'over_dense')}"
    if len(oracles) > 1:
        ends = [f"{increase(min(some))} to {increase(max(some))} %" for some in (oracles, others)]
        sentences.append(f"{where} the oracle costs {ends[0]}, the best method that changes weights {ends[1]}")
    return sentences


def orderings(rows: Sequence[Row], rng: np.random.Generator | None = None) -> list[dict]:
    """What holds of published orderings: one row for each of ORDERINGS whose two methods were scored.

    holds, fails, undecided: in how many pairs (model, target) the interval of ln(first / second) lies below 0, above
    it, or around it. lowest, highest: the ratio of their perplexities over all pairs.
    """
    rng = rng or np.random.default_rng(0)
    known = {(row["model_sha256"], row["policy"], row["target"]): row for row in rows if row["by"] == WEIGHTS}
    found = []
    for first, second, source in ORDERINGS:
        pairs = [
            compared(row, other, rng) for (model, name, target), row in known.items()
            if name == first and (other := known.get((model, second, target)))
        ]  # fmt: skip
        if pairs:
            ratios = [float(np.exp(pair["log_ratio"])) for pair in pairs]
            holds = sum(pair["high"] is not None and pair["high"] < 0 for pair in pairs)
            fails = sum(pair["low"] is not None and pair["low"] > 0 for pair in pairs)
            counts = {"holds": holds, "fails": fails, "undecided": len(pairs) - holds - fails}
            ends = {"lowest": min(ratios), "highest": max(ratios)}
            found.append({"first": first, "second": second, "source": source, **counts, **ends})
    return found
