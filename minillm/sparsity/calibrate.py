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
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ..errors import MinillmError
from ..trace import Tap, no_tap
from ..transformer.evaluation import pass_over, perplexity
from ..transformer.layer import Layer
from ..transformer.model import Llama
from ..transformer.texts import document_hashes, runs
from .allocate import cett_curve, greedy_levels, largest_within, on_path, sample_values
from .gathered import gathered_swiglu
from .griffin import GriffinFFN
from .masked import masked_swiglu
from .policies import AFTER_BOTH, TENSORS, Norms, Policy, magnitude, policy_named
from .predicted import PredictedFFN, check_fits
from .spec import SparsityMeter, SparsitySpec
from .thresholds import BYS, Thresholds

if TYPE_CHECKING:
    from ..predictors.base import Predictor

EXACT_BYTES = 1 << 30  # beyond this, magnitudes are counted in buckets and not kept
FORMS = {"masked": masked_swiglu, "gathered": gathered_swiglu}
STEPS = ("gate_pre", "gate", "up", "mid", "out")  # what `collect` collects unless told otherwise
SAMPLE = 1000  # tokens for what needs whole rows: CETT and greedy allocation
NEAR = {"neuron": 2e-3, "reads": 2e-3, "ppl": 5e-4}  # how near a search comes to its target


# ---- quantiles -------------------------------------------------------------------------------------------------------


class ExactMagnitudes:
    """Every magnitude of one tensor of one layer, in an array set aside once. quantile() is NumPy's, exactly."""

    def __init__(self, size: int, dtype: np.dtype):
        self._values, self._count, self._sorted = np.empty(size, dtype), 0, False

    def add(self, values: np.ndarray) -> None:
        """Take in the magnitudes of ``values``, of any shape."""
        np.abs(values.ravel(), out=self._values[self._count : self._count + values.size])
        self._count, self._sorted = self._count + values.size, False

    def quantile(self, level: float) -> float:
        """The value below which a share ``level`` lies, linear between order statistics (np.quantile's default)."""
        values = self._values[: self._count]
        if not self._sorted:
            values.sort()  # once, in place: every further level is one look-up
            self._sorted = True
        place = level * (self._count - 1)
        low = int(place)
        a, b = float(values[low]), float(values[min(low + 1, self._count - 1)])
        share = place - low
        return a + (b - a) * share if share < 0.5 else b - (b - a) * (1 - share)  # NumPy's, to the last bit


class StreamingMagnitudes:
    """Counts of magnitudes in buckets 0.02 % wide: the exponent and first 12 bits of the fraction of a float32.

    A positive float's bits, read as an integer, grow with its value, so bits >> 11 is a logarithmic scale for free. 64
    powers of two (2^-40 to 2^24) times 4096 buckets are counted; bucket 0 holds everything below, exact zeros included.
    The rank error of a quantile is at most the share of values in its bucket, ``rank_error``.
    """

    FIRST = (127 - 40) << 12
    BUCKETS = 64 << 12

    def __init__(self):
        self.counts = np.zeros(self.BUCKETS, np.int64)

    def add(self, values: np.ndarray) -> None:
        """Count the magnitudes of ``values``, of any shape."""
        bits = np.abs(values.ravel()).astype(np.float32, copy=False).view(np.uint32) >> 11
        place = bits.astype(np.int64) - self.FIRST
        if place.max(initial=0) >= self.BUCKETS:
            raise MinillmError("an activation is not finite or is 2^24 or larger: its quantile cannot be counted")
        self.counts += np.bincount(np.maximum(place, 0), minlength=self.BUCKETS)

    def _bucket(self, level: float) -> tuple[int, float]:
        """The bucket of a level, and how far into its values the level lies, 0 .. 1."""
        cumulative = np.cumsum(self.counts)
        rank = level * cumulative[-1]
        bucket = min(int(np.searchsorted(cumulative, rank, side="left")), self.BUCKETS - 1)
        return bucket, float((rank - (cumulative[bucket] - self.counts[bucket])) / max(1, self.counts[bucket]))

    def quantile(self, level: float) -> float:
        """The value below which a share ``level`` lies, linear inside its bucket."""
        bucket, inside = self._bucket(level)
        if bucket == 0:
            return 0.0  # below 2^-40: zero, as a threshold
        edges = (np.array([bucket, bucket + 1], np.uint32) + np.uint32(self.FIRST)) << np.uint32(11)
        low, high = edges.view(np.float32).astype(float)
        return float(low + (high - low) * inside)

    def rank_error(self, level: float) -> float:
        """The most that the share of values below ``quantile(level)`` can differ from ``level``."""
        bucket, _ = self._bucket(level)
        return 0.0 if bucket == 0 else float(self.counts[bucket] / self.counts.sum())


class Magnitudes:
    """A tap that collects the magnitudes of chosen tensors, layer by layer; quantile(layer, tensor, level) reads them.

    tokens: how many positions will come, for the exact kind's memory. kind: "exact" or "streaming"; None takes exact
    where it fits in EXACT_BYTES. Tensors that are the same numbers (the inputs of gate and of up) are kept once.
    """

    def __init__(self, model: Llama, tensors: Sequence[str], tokens: int, kind: str | None = None):
        self.searches: dict[str, list] = {}  # what calibrations on the same text share beside quantiles
        sources = {tensor: tensor if TENSORS[tensor].norms else TENSORS[tensor].step for tensor in tensors}
        distinct = {source: tensor for tensor, source in sources.items()}  # one tensor for each kind of number
        hidden = {"norm", "out"}
        widths = {
            t: model.config.hidden_size if TENSORS[t].step in hidden else model.config.intermediate_size
            for t in distinct.values()
        }
        if kind is None:
            needed = tokens * sum(widths.values()) * len(model.layers) * model.dtype.itemsize
            kind = "exact" if needed <= EXACT_BYTES else "streaming"
        if kind not in ("exact", "streaming"):
            raise MinillmError(f"quantile is {kind!r}, expected exact or streaming")
        self.kind = kind

        def make(width: int) -> ExactMagnitudes | StreamingMagnitudes:
            return ExactMagnitudes(tokens * width, model.dtype) if kind == "exact" else StreamingMagnitudes()

        kept = [{t: make(width) for t, width in widths.items()} for _ in model.layers]
        self._adding = [[(TENSORS[t].step, t, layer[t]) for t in layer] for layer in kept]
        self.layers = [{t: layer[distinct[source]] for t, source in sources.items()} for layer in kept]
        self._norms = [{t: TENSORS[t].norms(layer) for t in widths if TENSORS[t].norms} for layer in model.layers]

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        parts = name.split(".")  # blocks.3.mlp.gate
        if len(parts) == 4 and parts[2] == "mlp":
            index = int(parts[1])
            for step, tensor, magnitudes in self._adding[index]:
                if step == parts[3]:
                    magnitudes.add(magnitude(tensor, value, self._norms[index]))
        return value

    def thresholds(self, tensors: Sequence[str], level: float) -> list[dict[str, float]]:
        """Per layer {tensor: threshold} at a level from 0 to below 1; 0 gives thresholds of 0."""
        quantile = (lambda m: m.quantile(level)) if level > 0 else (lambda m: 0.0)
        return [{t: quantile(layer[t]) for t in tensors} for layer in self.layers]

    def rank_error(self, tensors: Sequence[str], level: float) -> float:
        """The largest rank error of any threshold at that level; 0 for the exact kind."""
        if self.kind == "exact" or level == 0:
            return 0.0
        return max(layer[t].rank_error(level) for layer in self.layers for t in tensors)


def collect(
    model: Llama,
    documents: str | Sequence[str],
    tensors: Sequence[str] = STEPS,
    context: int | None = None,
    quantile: str | None = None,
) -> Magnitudes:
    """Run the dense model over a text, cut as protocol ``documents`` does, and collect magnitudes at every position."""
    pieces = runs(model, documents, "documents", context)
    magnitudes = Magnitudes(model, tensors, sum(len(run.ids) for run in pieces), quantile)
    if tensors:  # policies that cut shares have nothing to look at
        pass_over(model, pieces, magnitudes, what="calibrating")
    return magnitudes


# ---- the sparse model ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SparseFFN:
    """A FeedForward that cuts: masked or gathered SwiGLU with a policy and each layer's own thresholds.

    norms: per layer, the column norms that the policy needs, computed once. griffin, which has a state, is held inside.
    """

    policy: Policy
    thresholds: Thresholds
    form: str
    norms: tuple[Norms, ...]

    def __call__(self, x: np.ndarray, layer: Layer, position: int = 0, tap: Tap = no_tap) -> np.ndarray:
        if self.policy.name == "griffin":
            return self._griffin(x, layer, position, tap)
        how = {"thresholds": self.thresholds.layers[layer.index], "norms": self.norms[layer.index]}
        return FORMS[self.form](x, layer, position, tap, policy=self.policy, **how)

    @cached_property
    def _griffin(self) -> GriffinFFN:
        return GriffinFFN([layer["mid"] for layer in self.thresholds.layers], self.form)

    @property
    def calibrated_on(self) -> frozenset[str]:
        """Hashes of the documents that the thresholds were found on; scoring any of them gives a warning."""
        return frozenset(self.thresholds.documents_sha256)


def sparse_ffn(
    model: Llama, thresholds: Thresholds, *, predictor: Predictor | None = None, form: str = "masked"
) -> SparseFFN | PredictedFFN:
    """The FeedForward that cuts ``model`` with these thresholds, for ``forward(ids, ffn=...)`` and everything above it.

    form: "masked" (compute all, then cut) or "gathered" (only the kept neurons). The policy computes its own mask from
    the true activations: an oracle. With a predictor, the neurons that it selects are computed, and thresholds (of
    policy mid) say what is true. Raises ThresholdsError when the thresholds belong to another model, MinillmError when
    the predictor does.
    """
    thresholds.check_fits(model)
    if predictor is not None:
        check_fits(predictor, model)
        return PredictedFFN(predictor, thresholds, form)
    if form not in FORMS:
        raise MinillmError(f"form is {form!r}, expected one of {', '.join(FORMS)}")
    policy = policy_named(thresholds.policy)
    return SparseFFN(policy, thresholds, form, tuple(policy.norms(layer) for layer in model.layers))


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
        ffn, meter = sparse_ffn(model, found), SparsityMeter()
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
