"""Where thresholds come from: quantiles of magnitudes on a calibration text.

For each layer l and cut tensor A (Dhar et al. 2024, arXiv 2412.12178, eq. 3-6), from the DENSE model's values:

    threshold[l, A] = the alpha-quantile of { |A[t, j]| : all tokens t, all entries j }

so that a share alpha of that tensor falls below it. Sparsity 0 is threshold 0, which cuts nothing, and not the
0-quantile, which is the smallest value seen. (topk, topp and griffin cut shares: their threshold is alpha itself.)

Two ways to the quantile. Exact: keep every magnitude, sort, interpolate linearly (NumPy's default definition).
Streaming: count magnitudes in the buckets of a float's own leading bits, at any length of text in fixed memory.

What a target counts:

    by="tensor"   alpha as given: the share of each cut tensor (the paper's meaning)
    by="neuron"   the alpha at which the cut model reaches that neuron sparsity
    by="reads"    the alpha at which that share of the FFN's weights is not read
    by="cett"     policy cett: per layer the largest threshold that loses at most that much of the output
    by="ppl"      the alpha (for cett: the CETT) at which perplexity grows by that share: CETT-PPL-p% (arXiv 2411.02335)

each measured on the calibration text. At equal "neuron" or equal "reads" policies can be compared; at equal "tensor"
they cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ..errors import MinillmError
from ..transformer.evaluation import pass_over, perplexity
from ..transformer.model import Llama
from ..transformer.texts import document_hashes, runs
from .allocate import cett_curve, greedy_levels, largest_within, on_path
from .magnitudes import Magnitudes, collect, sample_values
from .policies import AFTER_BOTH, Policy, policy_named
from .sparse import policy_ffn
from .spec import SparsityMeter, SparsitySpec
from .thresholds import BYS, Thresholds

SAMPLE = 1000  # tokens for what needs whole rows: CETT and greedy allocation
NEAR = {"neuron": 2e-3, "reads": 2e-3, "ppl": 5e-4}  # how near a search comes to its target


def calibrate(
    model: Llama,
    documents: str | Sequence[str],
    policy: str,
    sparsity: float,
    context: int | None = None,
    by: str = "tensor",
    quantile: str | None = None,
    magnitudes: Magnitudes | None = None,
    allocation: str = "uniform",
) -> Thresholds:
    """Find the thresholds at which ``policy`` reaches ``sparsity`` on a text (arXiv 2412.12178, eq. 3-6).

    documents: a text with separator lines, or a list. sparsity: 0 to below 1, of what ``by`` counts (module
    docstring). quantile: "exact", "streaming", or None for exact where it fits in memory. magnitudes: what ``collect``
    gave for the same documents, so that several calibrations share one pass. allocation: "uniform" takes the same
    level for each tensor of each layer, "greedy" (teal, wina) gives each layer's tensors levels of their own with the
    same mean. The spec in the result holds what was achieved. Raises MinillmError for a target out of range or out of
    reach, and for an unknown policy, ``by`` or allocation.
    """
    rule = policy_named(policy)
    if not 0 <= sparsity < 1:
        raise MinillmError(f"sparsity is {sparsity}, expected a share from 0 to below 1")
    if by not in BYS:
        raise MinillmError(f"by is {by!r}, expected one of {', '.join(BYS)}")
    if by == "cett" and policy != "cett":
        raise MinillmError(f"by is 'cett' with policy {policy}, expected policy cett")
    if allocation not in ("uniform", "greedy"):
        raise MinillmError(f"allocation is {allocation!r}, expected uniform or greedy")
    if allocation == "greedy" and policy not in ("teal", "wina"):
        raise MinillmError(f"allocation is 'greedy' with policy {policy}, expected teal or wina")
    if by == "reads" and sparsity > most_unread(rule):
        raise MinillmError(f"{policy} reads at least {1 - most_unread(rule):.3f} of the weights, {sparsity} cannot go")
    pieces = runs(model, documents, "documents", context)
    hashes = tuple(document_hashes(documents))
    of_shares = rule.comparison in ("top-k", "top-p", "prompt")  # their thresholds need no look at a text
    by_cett = policy == "cett" and by in ("cett", "ppl")
    if magnitudes is None:
        magnitudes = collect(model, documents, () if of_shares or by_cett else rule.tensors, context, quantile)
    elif missing := set() if of_shares or by_cett else set(rule.tensors) - set(magnitudes.layers[0]):
        raise MinillmError(f"the magnitudes lack {', '.join(sorted(missing))}, which policy {policy} cuts")

    def cett_curves() -> list[tuple[np.ndarray, np.ndarray]]:
        if "cett" not in magnitudes.searches:
            sample = sample_values(model, pieces, ("mid",), SAMPLE)
            found = [cett_curve(s["mid"], layer) for s, layer in zip(sample, model.layers, strict=True)]
            magnitudes.searches["cett"] = found
        return magnitudes.searches["cett"]

    def greedy_paths() -> list[list[dict[str, float]]]:
        if policy not in magnitudes.searches:
            sample = sample_values(model, pieces, ("norm",), SAMPLE)
            magnitudes.searches[policy] = [
                greedy_levels(s["norm"], layer, rule, lambda t, level, of=of: of[t].quantile(level) if level else 0.0)
                for s, layer, of in zip(sample, model.layers, magnitudes.layers, strict=True)
            ]
        return magnitudes.searches[policy]

    def layers_at(level: float) -> list[dict[str, float]]:
        if of_shares:
            return [dict.fromkeys(rule.tensors, level) for _ in model.layers]
        if by_cett:
            return [{"neuron_norm": largest_within(*curve, level)} for curve in cett_curves()]
        if allocation == "greedy":
            levels = [on_path(path, level) for path in greedy_paths()]
            found = zip(levels, magnitudes.layers, strict=True)
            return [{t: of[t].quantile(share) if share else 0.0 for t, share in at.items()} for at, of in found]
        return magnitudes.thresholds(rule.tensors, level)

    dense = perplexity(model, documents, "documents", context).perplexity if by == "ppl" else None

    def at(level: float) -> Thresholds:
        """Thresholds at a level, with what they then achieve on the calibration text."""
        layers = tuple(layers_at(level))
        spec = SparsitySpec(policy, rule.tensors, rule.comparison, by, sparsity)
        if allocation == "greedy":
            spec = replace(spec, layer_scope="all layers, each with its own share of the cuts (greedy)")
        found = Thresholds(policy, by, level, layers, spec, magnitudes.kind, hashes)
        ffn, meter = policy_ffn(model, found), SparsityMeter()
        if by == "cett":
            at_thresholds = zip(cett_curves(), layers, strict=True)
            lost = [np.interp(of["neuron_norm"], grid, curve) for (grid, curve), of in at_thresholds]
            achieved = float(np.mean(lost)) if level else 0.0
        elif by == "ppl":
            # The text is the calibration text, on purpose: nothing to warn of, so the ffn goes without its name tag.
            achieved = perplexity(model, documents, "documents", context, lambda *a: ffn(*a)).perplexity / dense - 1
        else:
            pass_over(model, pieces, meter, ffn, what="measuring")
            achieved = meter.report().achieved(by)
        return replace(found, spec=replace(spec, achieved=achieved))

    if by in NEAR and sparsity > 0:
        # What it reached is measured, however coarse the quantile.
        return _search(at, sparsity, NEAR[by], first_guess(rule, by, sparsity))
    result = at(sparsity)
    if not of_shares and not by_cett and (error := magnitudes.rank_error(rule.tensors, result.level)) > 1e-3:
        raise MinillmError(
            f"streaming quantile: {error:.2%} of the values share one bucket, expected at most 0.1 %; "
            "use quantile='exact'"
        )
    return result


def most_unread(policy: Policy) -> float:
    """The share of the FFN's weights that a policy can leave unread at most: what it needs for its mask is read."""
    if policy.comparison == "prompt" or "in_up" in policy.tensors:
        return 1.0
    return 1 / 3 if set(policy.tensors) <= set(AFTER_BOTH) else 2 / 3


def first_guess(policy: Policy, by: str, target: float) -> float:
    """Where a search begins: one tensor's share as it is, two tensors as independent, 1 - (1 - level)^2."""
    if by == "ppl":
        return 0.25
    if by == "reads" or policy.name in ("teal", "wina"):
        return min(target / most_unread(policy), 0.95)
    return 1 - (1 - target) ** 0.5 if policy.name == "dhar" else target


def _search(at: Callable[[float], Thresholds], target: float, near: float, level: float) -> Thresholds:
    """The level that achieves the target: secant steps kept inside a shrinking bracket.

    What is achieved grows with the level, from 0 at 0; at level 1 everything is cut. A secant step that leaves the
    bracket nearly as wide as it was is followed by a halving, which a curve that bends (perplexity) needs.
    """
    low, high, low_value, high_value = 0.0, 1.0, 0.0, max(1.0, 2 * target)
    best = None
    for _ in range(25):
        found = at(level)
        value, width = found.spec.achieved, high - low
        if best is None or abs(value - target) < abs(best.spec.achieved - target):
            best = found
        if abs(value - target) <= near:
            break
        if value < target:
            low, low_value = level, value
        else:
            high, high_value = level, value
        share = (target - low_value) / (high_value - low_value) if high_value > low_value else 0.5
        share = 0.5 if high - low > 0.7 * width else min(max(share, 0.05), 0.95)
        level = low + (high - low) * share
    return best
