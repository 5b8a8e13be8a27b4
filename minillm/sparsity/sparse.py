"""TODO."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..trace import Tap, no_tap
from ..transformer.layer import Layer
from .gathered import gathered_swiglu
from .griffin import GriffinFFN
from .masked import masked_swiglu
from .policies import Norms, Policy
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
