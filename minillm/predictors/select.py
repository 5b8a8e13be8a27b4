"""TODO."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import MinillmError, ThresholdsError
from ..sparsity.gathered import columns_of, rows_of
from ..sparsity.policies import policy_named
from ..sparsity.sparse import FORMS, SparseFFN, policy_ffn
from ..sparsity.thresholds import Thresholds
from ..trace import Tap, no_tap
from ..transformer.layer import Layer
from ..transformer.model import Llama
from ..transformer.ops import linear
from .protocol import Predictor, check_fits


def sparse_ffn(
    model: Llama, thresholds: Thresholds, *, predictor: Predictor | None = None, form: str = "masked"
) -> SparseFFN | PredictedFFN:
    """The FeedForward that cuts ``model`` with these thresholds, for ``forward(ids, ffn=...)`` and everything above it.

    form: "masked" (compute all, then cut) or "gathered" (only the kept neurons). The policy computes its own mask from
    the true activations: an oracle. With a predictor, the neurons that it selects are computed, and thresholds (of
    policy mid) say what is true. Raises ThresholdsError when the thresholds belong to another model, MinillmError when
    the predictor does.
    """
    if predictor is None:
        return policy_ffn(model, thresholds, form)
    thresholds.check_fits(model)
    check_fits(predictor, model)
    return PredictedFFN(predictor, thresholds, form)


@dataclass(frozen=True, eq=False)
class PredictedFFN:
    """A FeedForward whose neurons are selected by a predictor (equations in the module's docstring).

    thresholds: of policy mid; they say what is true and take no part in the output. Raises ThresholdsError for another
    policy, MinillmError for a predictor without cutoffs or of another shape.
    """

    predictor: Predictor
    thresholds: Thresholds
    form: str = "masked"

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise MinillmError(f"form is {self.form!r}, expected one of {', '.join(FORMS)}")
        if self.thresholds.policy != "mid":
            raise ThresholdsError(f"the thresholds are of policy {self.thresholds.policy}, a predictor's truth is mid")
        layers, cutoffs = len(self.thresholds.layers), self.predictor.cutoffs
        if cutoffs is None or len(cutoffs) != layers:
            found = "no cutoffs" if cutoffs is None else f"cutoffs for {len(cutoffs)} layers"
            raise MinillmError(f"the predictor {self.predictor.name} has {found}, expected {layers}: see fit_cutoffs")

    @property
    def calibrated_on(self) -> frozenset[str]:
        """Hashes of the documents behind thresholds, tables and cutoffs; scoring any of them gives a warning."""
        return self.predictor.trained_on | frozenset(self.thresholds.documents_sha256)

    def __call__(self, x: np.ndarray, layer: Layer, position: int = 0, tap: Tap = no_tap) -> np.ndarray:
        """x (T, D)  ->  y (T, D). Taps scores, mask and mid_cut; the masked form also all that it computes."""
        predictor, masked, true = self.predictor, self.form == "masked", None
        if not predictor.sequential:
            scores = tap("scores", self._scores(x, layer, position))  # (T, F)
        if masked or predictor.needs_truth:
            step = tap if masked else no_tap
            gate_pre = step("gate_pre", linear(x, layer.gate_proj, layer.gate_bias))  # (T, F)
            gate = step("gate", layer.act(gate_pre))  # (T, F)
            up = step("up", linear(x, layer.up_proj, layer.up_bias))  # (T, F)
            mid = step("mid", gate * up)  # (T, F)
            true = policy_named("mid").kept("mid", mid, self.thresholds.layers[layer.index])  # (T, F)
        if predictor.sequential:
            # A row may be predicted only after the row before it was observed, also where a text comes at once.
            scores = np.concatenate([self._one_row(x, layer, position, true, t) for t in range(len(x))])
            scores = tap("scores", scores)  # (T, F)
        else:
            predictor.observe(layer.index, position, x, true if predictor.needs_truth else None)
        mask = ~(scores <= predictor.cutoffs[layer.index])  # (T, F); a NaN stays and shows up
        reads_gate = getattr(predictor, "reads_gate", False)
        if reads_gate:
            mask = tap("mask_gate", mask)  # for the accounting: the gate was read in full to know it
        if true is not None:
            tap("mask_true", true)  # (T, F)
        if not reads_gate:
            mask = tap("mask_known", mask)  # for the accounting: known before anything of the layer was read
        mask = tap("mask", mask)  # (T, F)
        if masked:
            mid_cut = tap("mid_cut", np.where(mask, mid, 0))  # (T, F)
            return tap("out", linear(mid_cut, layer.down_proj, layer.down_bias))  # (T, D)

        gate = layer.act(rows_of(x, layer.gate_proj, layer.gate_bias, mask, None))  # (T, F), right where selected
        mid = gate * rows_of(x, layer.up_proj, layer.up_bias, mask, None)  # (T, F)
        mid_cut = tap("mid_cut", np.where(mask, mid, 0))  # (T, F)
        return tap("out", columns_of(mid_cut, layer.down_proj, layer.down_bias, mask))  # (T, D)

    def _scores(self, x: np.ndarray, layer: Layer, position: int) -> np.ndarray:
        scores = self.predictor.predict(layer.index, position, x)
        expected = (len(x), len(layer.gate_proj))
        if scores.shape != expected:
            found = f"the predictor {self.predictor.name} gave scores {list(scores.shape)}"
            raise MinillmError(f"{found}, expected {list(expected)}: it belongs to another model")
        return scores

    def _one_row(self, x: np.ndarray, layer: Layer, position: int, true: np.ndarray | None, t: int) -> np.ndarray:
        row = slice(t, t + 1)
        scores = self._scores(x[row], layer, position + t)  # (1, F)
        known = true[row] if self.predictor.needs_truth else None
        self.predictor.observe(layer.index, position + t, x[row], known)
        return scores
