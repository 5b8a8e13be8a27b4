"""A predictor with cutoffs is a Selector: it scores the neurons, and those above the layer's cutoff are wanted.

    s = predict(layer, x)                      one score per neuron, before a single row of the layer is read
    J = {j : s_j > c}                          c = the layer's cutoff, which sets how many are selected

sparsity/selected.py computes the wanted neurons. The truth that a predictor is compared with is the mask of policy
``mid`` at the given thresholds, |m_j| > t.

A predictor may need the truth of one token before it can score the next: previous-token does (sequential, needs_truth).
Then rows are scored one at a time, and gate and up are computed in full only to know the truth. These reads are not
counted: a baseline gets the truth at no cost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..errors import MinillmError
from ..sparsity.selected import SelectedFFN, mid_mask
from ..sparsity.sparse import SparseFFN, policy_ffn
from ..sparsity.thresholds import Thresholds
from ..trace import Tap, no_tap
from ..transformer.ffn import mid_of
from ..transformer.finite import are_numbers
from ..transformer.layer import Layer
from ..transformer.model import Llama
from .protocol import Predictor, check_fits


def above(scores: np.ndarray, cutoff: float) -> np.ndarray:
    """True where a score is above the cutoff.  (..., F) -> bool (..., F). A NaN is kept, so that it shows up."""
    return ~(scores <= cutoff)


def scores_of(
    predictor: Predictor, x: np.ndarray, layer: Layer, position: int, truth: np.ndarray | None = None
) -> np.ndarray:
    """A predictor's scores for all rows; a sequential predictor scores and observes one row at a time.

    x (T, D), truth (T, F) bool where the predictor needs it  ->  scores (T, F). Raises MinillmError for scores of
    another shape, and for scores that are no numbers.
    """
    step = 1 if predictor.sequential else max(1, len(x))
    parts = []
    for t in range(0, len(x), step):
        rows = slice(t, t + step)
        scores = predictor.predict(layer.index, position + t, x[rows])
        known = truth[rows] if truth is not None and predictor.needs_truth else None
        predictor.observe(layer.index, position + t, x[rows], known)
        parts.append(scores)
    scores = parts[0] if len(parts) == 1 else np.concatenate(parts)
    expected = (len(x), predictor.shape[2])
    if scores.shape != expected:
        problem = f"the predictor {predictor.name} gave scores {list(scores.shape)}"
        raise MinillmError(f"{problem}, expected {list(expected)}: it belongs to another model")
    if scores.size and not are_numbers(scores):
        holds = f"the scores of the predictor {predictor.name} hold NaN or infinity"
        raise MinillmError(f"blocks.{layer.index}.mlp.scores: {holds}, expected finite numbers")
    return scores


@dataclass(frozen=True, eq=False)
class Predicted:
    """A Selector that wants the neurons whose score is above the layer's cutoff (equations in the module's docstring).

    thresholds: of policy mid; they define the truth for a predictor that needs it, and may be None for others. Raises
    MinillmError for a predictor without cutoffs.
    """

    predictor: Predictor
    thresholds: Thresholds | None = None

    def __post_init__(self) -> None:
        layers, cutoffs = self.predictor.shape[0], self.predictor.cutoffs
        if cutoffs is None or len(cutoffs) != layers:
            has = "no cutoffs" if cutoffs is None else f"cutoffs for {len(cutoffs)} layers"
            raise MinillmError(f"the predictor {self.predictor.name} has {has}, expected {layers}: see fit_cutoffs")
        if np.isnan(cutoffs).any():
            has = f"NaN for the cutoff of layer {int(np.isnan(cutoffs).argmax())}"
            raise MinillmError(f"the predictor {self.predictor.name} has {has}, expected a number: see fit_cutoffs")

    @property
    def name(self) -> str:
        """The predictor's name."""
        return self.predictor.name

    @property
    def calibrated_on(self) -> frozenset[str]:
        """Hashes of the documents behind thresholds, tables and cutoffs; scoring any of them gives a warning."""
        known = frozenset(self.thresholds.documents_sha256) if self.thresholds else frozenset()
        return self.predictor.trained_on | known

    @property
    def reads(self) -> frozenset[str]:
        """The layer's own gate, where the predictor reads it."""
        return frozenset({"gate"} if self.predictor.reads_gate else ())

    def __call__(self, x: np.ndarray, layer: Layer, position: int = 0, tap: Tap = no_tap) -> np.ndarray:
        """x (T, D)  ->  mask (T, F). Taps scores."""
        predictor, truth = self.predictor, None
        if predictor.needs_truth:
            if self.thresholds is None:
                raise MinillmError(f"the predictor {predictor.name} needs the truth, expected thresholds of policy mid")
            truth = mid_mask(mid_of(x, layer), self.thresholds, layer.index)  # (T, F)
        scores = tap("scores", scores_of(predictor, x, layer, position, truth))  # (T, F)
        assert predictor.cutoffs is not None
        return above(scores, predictor.cutoffs[layer.index])


def predicted_ffn(predictor: Predictor, thresholds: Thresholds, form: str = "masked") -> SelectedFFN:
    """The FeedForward whose neurons a predictor selects; thresholds (of policy mid) define the truth.

    The model is not known here: see sparse_ffn, which checks that both are made for it.
    """
    return SelectedFFN(Predicted(predictor, thresholds), form, truth=thresholds)


def sparse_ffn(
    model: Llama, thresholds: Thresholds, *, predictor: Predictor | None = None, form: str = "masked"
) -> SparseFFN | SelectedFFN:
    """The FeedForward that cuts ``model`` with these thresholds, for ``forward(ids, ffn=...)`` and everything above it.

    form: "masked" (compute all, then cut) or "gathered" (only the kept neurons). The policy computes its own mask from
    the true activations: an oracle. With a predictor, the neurons that it selects are computed, and thresholds (of
    policy mid) define the truth. Raises ThresholdsError when the thresholds belong to another model, MinillmError when
    the predictor does; warns where they are made for another model of the same shape.
    """
    if predictor is None:
        return policy_ffn(model, thresholds, form)
    thresholds.check_fits(model)
    check_fits(predictor, model)
    return replace(predicted_ffn(predictor, thresholds, form), model=model.fingerprint)
