"""The FeedForward of a policy: each layer's own thresholds, masked or gathered.

masked      masked.py: compute everything, then set to zero what the policy cuts
gathered    gathered.py: touch only the rows and columns that the mask needs
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..errors import MinillmError
from ..trace import Tap, no_tap
from ..transformer.layer import Layer
from ..transformer.model import Llama
from .gathered import gathered_swiglu
from .griffin import GriffinFFN
from .masked import masked_swiglu
from .policies import Norms, Policy, policy_named
from .thresholds import Thresholds

FORMS = {"masked": masked_swiglu, "gathered": gathered_swiglu}


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


def policy_ffn(model: Llama, thresholds: Thresholds, form: str = "masked") -> SparseFFN:
    """The FeedForward that cuts ``model`` with these thresholds; the policy computes its own mask.

    form: "masked" or "gathered". Raises ThresholdsError when the thresholds belong to another model.
    """
    thresholds.check_fits(model)
    if form not in FORMS:
        raise MinillmError(f"form is {form!r}, expected one of {', '.join(FORMS)}")
    policy = policy_named(thresholds.policy)
    return SparseFFN(policy, thresholds, form, tuple(policy.norms(layer) for layer in model.layers))
