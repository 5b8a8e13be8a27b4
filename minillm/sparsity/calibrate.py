"""How thresholds are found: quantiles of magnitudes on a calibration text.

For each layer l and cut tensor A (Dhar et al. 2024, arXiv 2412.12178, eq. 3-6), from the DENSE model's values:

    threshold[l, A] = the alpha-quantile of { |A[t, j]| : all tokens t, all entries j }

so that a share alpha of that tensor lies below it. Sparsity 0 gives threshold 0, which cuts nothing; the 0-quantile
would be the smallest value of the text. (Thresholds of topk, topp, statistical and griffin are shares: alpha itself.)

What a target counts:

    by="tensor"   alpha as given: the share of each cut tensor (the paper's meaning)
    by="neuron"   the alpha at which the cut model reaches that neuron sparsity
    by="reads"    the alpha at which that share of the FFN's weights is not read
    by="cett"     policy cett: per layer the largest threshold whose CETT is at most that (allocate.py)
    by="ppl"      the alpha (for cett: the CETT) at which perplexity grows by that share: CETT-PPL-p% (arXiv 2411.02335)

All are measured on the calibration text. Policies can be compared at equal "neuron" or equal "reads", but not at equal
"tensor".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from ..arguments import real_number
from ..errors import MinillmError
from ..threads import with_few_threads
from ..transformer.evaluation import pass_over, perplexity
from ..transformer.model import Llama
from ..transformer.texts import Run, Sample, document_hashes, runs
from .allocate import cett_curve, greedy_levels, largest_within, on_path
from .magnitudes import ExactMagnitudes, Magnitudes, StreamingMagnitudes, collect, sample_values
from .policies import AFTER_BOTH, Policy, policy_named
from .sparse import policy_ffn
from .spec import OWN_SHARES, SparsityMeter, SparsitySpec
from .thresholds import BYS, Thresholds

SAMPLE = 1000  # tokens for the searches that need whole rows: CETT and greedy allocation
NEAR = {"neuron": 2e-3, "reads": 2e-3, "ppl": 5e-4}  # tolerance of a search for each kind of target


@with_few_threads
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

    documents: a text with separator lines, or a list. sparsity: 0 to below 1, of what ``by`` counts (module docstring).
    quantile: "exact", "streaming", or None for exact where it fits in memory. magnitudes: the result of ``collect`` for
    the same documents, so that several calibrations share one pass. allocation: "uniform" takes the same level for each
    tensor of each layer, "greedy" (teal, wina) gives each layer's tensors their own levels with the same mean.

    The spec in the result holds the achieved value. Raises MinillmError for a target out of range or out of reach, and
    for an unknown policy, ``by`` or allocation.
    """
    rule = policy_named(policy)
    rule.check_gated(model.config.gated)
    sparsity = real_number("sparsity", sparsity, lambda share: 0 <= share < 1, "a share from 0 to below 1")
    target = Target(rule, by, sparsity, allocation)
    target.check()
    needed = () if target.policy.of_shares or target.by_cett else rule.tensors
    if magnitudes is None:
        magnitudes = collect(model, documents, needed, context, quantile)
    elif missing := set(needed) - set(magnitudes.layers[0]):
        raise MinillmError(f"the magnitudes lack {', '.join(sorted(missing))}, which policy {policy} cuts")
    task = Task(model, target, magnitudes, Sample(documents, "documents", context))
    if by in NEAR and sparsity > 0:
        # A search measures what it achieves, so a coarse quantile does not matter.
        return task.search(NEAR[by], first_guess(rule, by, target.sparsity))
    result, _ = task.at(target.sparsity)
    if needed and (error := magnitudes.rank_error(needed, target.sparsity)) > 1e-3:
        raise MinillmError(
            f"streaming quantile: {error:.2%} of the values share one bucket, expected at most 0.1 %; "
            "use quantile='exact'"
        )
    return result


@dataclass(frozen=True)
class Target:
    """What a calibration must reach: a policy, its sparsity in what ``by`` counts, and how levels are allocated."""

    policy: Policy
    by: str
    sparsity: float
    allocation: str = "uniform"

    @property
    def by_cett(self) -> bool:
        """Whether the level is a CETT and not a quantile."""
        return self.policy.name == "cett" and self.by in ("cett", "ppl")

    def check(self) -> None:
        """Raise MinillmError for a target out of range or out of reach."""
        name = self.policy.name
        if self.by not in BYS:
            raise MinillmError(f"by is {self.by!r}, expected one of {', '.join(BYS)}")
        if self.by == "cett" and name != "cett":
            raise MinillmError(f"by is 'cett' with policy {name}, expected policy cett")
        if self.allocation not in ("uniform", "greedy"):
            raise MinillmError(f"allocation is {self.allocation!r}, expected uniform or greedy")
        if self.allocation == "greedy" and name not in ("teal", "wina"):
            raise MinillmError(f"allocation is 'greedy' with policy {name}, expected teal or wina")
        most = most_unread(self.policy)
        if self.by == "reads" and self.sparsity > most:
            raise MinillmError(
                f"{name} reads at least {1 - most:.3f} of the weights, expected sparsity at most {most:.3f}"
            )


@dataclass(eq=False)
class Task:
    """One calibration: thresholds at any level, and what they achieve on the calibration text (sample)."""

    model: Llama
    target: Target
    magnitudes: Magnitudes
    sample: Sample

    @cached_property
    def pieces(self) -> Sequence[Run]:
        """The calibration text, encoded and cut into runs."""
        return runs(self.model, *self.sample)

    @cached_property
    def dense(self) -> float:
        """Perplexity of the dense model on the calibration text."""
        return perplexity(self.model, *self.sample).perplexity

    @cached_property
    def hashes(self) -> tuple[str, ...]:
        """Hashes of the calibration documents."""
        return tuple(document_hashes(self.sample.documents))

    def cett_curves(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per layer (thresholds, CETT); computed once for all calibrations that share the magnitudes."""
        known = self.magnitudes.searches
        if "cett" not in known:
            values = sample_values(self.model, self.pieces, ("mid",), SAMPLE)
            known["cett"] = [cett_curve(v["mid"], layer) for v, layer in zip(values, self.model.layers, strict=True)]
        return known["cett"]

    def greedy_paths(self) -> list[list[dict[str, float]]]:
        """Per layer the path of greedy allocation; computed once for all calibrations that share the magnitudes."""
        known, policy = self.magnitudes.searches, self.target.policy
        if policy.name not in known:
            values = sample_values(self.model, self.pieces, ("norm",), SAMPLE)
            known[policy.name] = [
                greedy_levels(v["norm"], layer, policy, partial(quantile_of, of))
                for v, layer, of in zip(values, self.model.layers, self.magnitudes.layers, strict=True)
            ]
        return known[policy.name]

    def layers_at(self, level: float) -> list[dict[str, float]]:
        """Per layer {tensor: threshold} at a level."""
        tensors = self.target.policy.tensors
        if self.target.policy.of_shares:
            return [dict.fromkeys(tensors, level) for _ in self.model.layers]
        if self.target.by_cett:
            return [{"neuron_norm": largest_within(*curve, level)} for curve in self.cett_curves()]
        if self.target.allocation == "greedy":
            levels = [on_path(path, level) for path in self.greedy_paths()]
            pairs = zip(levels, self.magnitudes.layers, strict=True)
            return [{t: quantile_of(of, t, share) for t, share in each.items()} for each, of in pairs]
        return self.magnitudes.thresholds(tensors, level)

    def at(self, level: float) -> tuple[Thresholds, float]:
        """Thresholds at a level, and the value that they achieve on the calibration text (also in their spec)."""
        policy, by = self.target.policy, self.target.by
        spec = SparsitySpec(policy.name, policy.tensors, policy.comparison, by, self.target.sparsity)
        if self.target.allocation == "greedy":
            spec = replace(spec, layer_scope=OWN_SHARES)
        layers = tuple(self.layers_at(level))
        thresholds = Thresholds(
            policy.name, by, level, layers, spec, self.magnitudes.kind, self.hashes, self.model.fingerprint
        )
        achieved = self.achieved(thresholds, level)
        return replace(thresholds, spec=replace(spec, achieved=achieved)), achieved

    def achieved(self, thresholds: Thresholds, level: float) -> float:
        """What these thresholds achieve on the calibration text, in what the target counts."""
        by, ffn = self.target.by, policy_ffn(self.model, thresholds)
        if by == "cett":
            pairs = zip(self.cett_curves(), thresholds.layers, strict=True)
            lost = [np.interp(of["neuron_norm"], grid, curve) for (grid, curve), of in pairs]
            return float(np.mean(lost)) if level else 0.0
        if by == "ppl":
            # Scoring the calibration text is intended here. The wrapper hides calibrated_on, so there is no warning.
            return perplexity(self.model, *self.sample, lambda *a: ffn(*a)).perplexity / self.dense - 1
        meter = SparsityMeter()
        pass_over(self.model, self.pieces, meter, ffn, what="measuring")
        return meter.report().share_of(by)

    def search(self, near: float, level: float) -> Thresholds:
        """The thresholds that achieve the target: secant steps kept inside a shrinking bracket.

        The achieved value grows with the level, from 0 at level 0; at level 1 everything is cut. A secant step that
        hardly narrows the bracket is followed by a halving, which a strongly curved function (perplexity) needs.
        """
        target = self.target.sparsity
        low, high, low_value, high_value = 0.0, 1.0, 0.0, max(1.0, 2 * target)
        best, best_value = thresholds, value = self.at(level)
        for _ in range(24):
            if abs(value - target) <= near:
                break
            width = high - low
            if value < target:
                low, low_value = level, value
            else:
                high, high_value = level, value
            share = (target - low_value) / (high_value - low_value) if high_value > low_value else 0.5
            share = 0.5 if high - low > 0.7 * width else min(max(share, 0.05), 0.95)
            level = low + (high - low) * share
            thresholds, value = self.at(level)
            if abs(value - target) < abs(best_value - target):
                best, best_value = thresholds, value
        return best


def quantile_of(magnitudes: Mapping[str, ExactMagnitudes | StreamingMagnitudes], tensor: str, level: float) -> float:
    """A tensor's threshold at a level; level 0 is threshold 0."""
    return magnitudes[tensor].quantile(level) if level else 0.0


def most_unread(policy: Policy) -> float:
    """The largest share of the FFN's weights that a policy can leave unread: what its mask needs is always read."""
    if policy.comparison == "prompt" or "in_up" in policy.tensors:
        return 1.0
    return 1 / 3 if set(policy.tensors) <= set(AFTER_BOTH) else 2 / 3


def first_guess(policy: Policy, by: str, target: float) -> float:
    """The level at which a search begins. Two tensors are taken as independent: target = 1 - (1 - level)^2."""
    if by == "ppl":
        return 0.25
    if by == "reads" or policy.name in ("teal", "wina"):
        return min(target / most_unread(policy), 0.95)
    return 1 - (1 - target) ** 0.5 if policy.name == "dhar" else target
