"""From a policy and its thresholds to a FeedForward that cuts, or to a Selector that gives the policy's mask.

policy_ffn         the policy computes its own mask, and what it must read first is counted
    masked         masked.py: compute everything, then set to zero what the policy cuts
    gathered       gathered.py: read only the rows and columns that the mask needs
policy_selector    the same mask, known before the layer is computed at no cost: a free oracle, which is a bound
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import MinillmError
from ..identity import Fingerprint
from ..trace import Tap, no_tap
from ..transformer.ffn import Selector
from ..transformer.layer import Layer
from ..transformer.model import Llama
from .gathered import gathered_swiglu
from .griffin import Griffin
from .masked import decide, masked_swiglu
from .policies import Cut, Norms, Policy, policy_named
from .selected import NOTHING_READ, SelectedFFN, check_form
from .thresholds import Thresholds

NOT_NEURONS = ("out", "in_gate", "in_gate_norm", "in_up", "in_up_norm")  # a cut of these leaves out inputs or outputs


@dataclass(frozen=True)
class SparseFFN:
    """A FeedForward that cuts: masked or gathered SwiGLU with a policy and each layer's own thresholds.

    norms: per layer, the column norms that the policy needs, computed once. model: the one that it was made for.
    """

    policy: Policy
    thresholds: Thresholds
    form: str
    norms: tuple[Norms, ...]
    model: Fingerprint | None = None

    def __call__(self, x: np.ndarray, layer: Layer, position: int = 0, tap: Tap = no_tap) -> np.ndarray:
        """x (T, D)  ->  y (T, D)."""
        compute = masked_swiglu if self.form == "masked" else gathered_swiglu
        thresholds, norms = self.thresholds.layers[layer.index], self.norms[layer.index]
        return compute(x, layer, position, tap, policy=self.policy, thresholds=thresholds, norms=norms)

    @property
    def calibrated_on(self) -> frozenset[str]:
        """Hashes of the calibration documents; scoring any of them gives a warning."""
        return frozenset(self.thresholds.documents_sha256)


@dataclass(frozen=True)
class PolicyOracle:
    """A Selector that wants what a policy keeps. It computes gate and up in full, and that is not counted."""

    policy: Policy
    thresholds: Thresholds
    norms: tuple[Norms, ...]
    reads: frozenset[str] = NOTHING_READ

    @property
    def name(self) -> str:
        """For tables: "mask of mid"."""
        return f"mask of {self.policy.name}"

    @property
    def calibrated_on(self) -> frozenset[str]:
        """Hashes of the calibration documents."""
        return frozenset(self.thresholds.documents_sha256)

    def __call__(self, x: np.ndarray, layer: Layer, position: int = 0, tap: Tap = no_tap) -> np.ndarray:
        """x (T, D)  ->  mask (T, F). Taps nothing: the FFN that uses the mask does."""
        thresholds, norms = self.thresholds.layers[layer.index], self.norms[layer.index]
        return decide(x, layer, no_tap, Cut(self.policy, thresholds, norms)).mask


def _norms(model: Llama, policy: Policy) -> tuple[Norms, ...]:
    return tuple(policy.norms(layer) for layer in model.layers)


def policy_ffn(model: Llama, thresholds: Thresholds, form: str = "masked") -> SparseFFN | SelectedFFN:
    """The FeedForward that cuts ``model`` with these thresholds; the policy computes its own mask.

    form: "masked" or "gathered". Raises ThresholdsError when the thresholds belong to another model.
    """
    thresholds.check_fits(model)
    check_form(form)
    if thresholds.policy == "griffin":
        return SelectedFFN(_griffin(thresholds), form, model=model.fingerprint)
    policy = policy_named(thresholds.policy)
    return SparseFFN(policy, thresholds, form, _norms(model, policy), model.fingerprint)


def policy_selector(model: Llama, thresholds: Thresholds) -> Selector:
    """The mask of a policy at these thresholds, as a free oracle (griffin: the mask that the prompt chooses).

    Raises ThresholdsError when the thresholds belong to another model, MinillmError for a policy that cuts inputs or
    outputs.
    """
    thresholds.check_fits(model)
    if thresholds.policy == "griffin":
        return _griffin(thresholds)
    policy = policy_named(thresholds.policy)
    if others := [t for t in policy.tensors if t in NOT_NEURONS and any(t in layer for layer in thresholds.layers)]:
        cut = f"policy {policy.name} cuts {', '.join(others)}"
        raise MinillmError(f"{cut}: a selection of neurons needs a policy that cuts whole neurons")
    return PolicyOracle(policy, thresholds, _norms(model, policy))


def _griffin(thresholds: Thresholds) -> Griffin:
    return Griffin([layer["mid"] for layer in thresholds.layers], frozenset(thresholds.documents_sha256))
