"""The workshop: makes any predictor of the catalogue from a model and two texts.

    training documents    what is counted, trained or stored; second moments H of the inputs
    held-out documents    early stopping of what is trained (and, outside, thresholds and cutoffs)

Several predictors start from the same tables (H, the static shares): each is computed once and kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..errors import MinillmError
from ..sparsity.thresholds import Thresholds
from ..transformer.model import Llama, shape_of
from ..transformer.texts import document_hashes
from .ahead import Ahead
from .baselines import Chance, PreviousToken, Static
from .catalogue import CATALOGUE, entry_of
from .clusters import Clusters
from .coded import Coded
from .copies import LowRank, Shadow
from .files import load_predictor
from .learned import Learned, Refined
from .memory import Library
from .oracle import Oracle
from .protocol import Predictor
from .quantise import second_moments
from .router import Router
from .sign import Sign
from .train import train

REFINED_RANK, ROUTED = 4, 32  # neurons of a router's block
P = TypeVar("P", bound=Predictor)


@dataclass
class Workshop:
    """What predictors are made from: a model, thresholds of policy mid, training and held-out documents.

    rank: of svd and learned; None takes a quarter of D. seed: of every predictor that draws at random.
    """

    model: Llama
    thresholds: Thresholds
    training: Sequence[str]
    held: Sequence[str]
    context: int | None = None
    rank: int | None = None
    seed: int = 0

    @cached_property
    def moments(self) -> np.ndarray:
        """The inputs' second moments, (L, D, D)."""
        return second_moments(self.model, self.thresholds, self.training, self.context)

    @cached_property
    def static(self) -> Static:
        """The static shares."""
        return Static.fit(self.model, self.thresholds, self.training, self.context)

    def informed(self, predictor: P) -> P:
        """The same predictor, marked as one that was made with the moments and so knows the training documents."""
        predictor.trained_on |= frozenset(document_hashes(self.training))
        return predictor

    def shadow(self, bits: int, gate_bits: int | None = None) -> Shadow:
        """A shadow made for the inputs of the training documents."""
        return self.informed(Shadow.fit(self.model, bits, self.moments, gate_bits))

    def learned(
        self, rank: int, shadow: Shadow | None = None, ahead: int = 0, target: str = "mask", hidden_layer: bool = False
    ) -> Learned | Refined:
        """A trained predictor; with a shadow, one that refines it."""
        return train(
            self.model, self.thresholds, self.training, self.held, rank, shadow, ahead, self.context,
            rng=self._rng(), target=target, hidden_layer=hidden_layer,
        )  # fmt: skip

    def make(self, name: str) -> Predictor:
        """The predictor of a name in the catalogue ("shadow-3": 3 bits), or of a file. Its cutoffs are still to be set.

        Raises MinillmError for an unknown name, CheckpointError for a file that is not a predictor's.
        """
        if (known := entry_of(name)) is not None:
            if CATALOGUE[known[0]].of_up and not self.model.config.gated:
                raise MinillmError(
                    f"predictor {name} looks at up, and the model's FFNs have no gate (up is 1 there), expected one of "
                    f"{', '.join(other for other, entry in CATALOGUE.items() if not entry.of_up)}"
                )
            return self._made(*known)
        if name.endswith(".safetensors") or Path(name).is_file():
            return load_predictor(name)
        names = ", ".join(CATALOGUE)
        raise MinillmError(f"predictor {name!r} is unknown, expected a file or one of {names} (BITS: 1 to 8)")

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    def _made(self, entry: str, bits: int) -> Predictor:
        model, thresholds, training, context = self.model, self.thresholds, self.training, self.context
        _, hidden, intermediate = shape_of(model)
        rank = self.rank or max(1, min(hidden // 4, intermediate))
        match entry:
            case "oracle":
                return Oracle(model, thresholds)
            case "chance":
                return Chance(shape_of(model), self.seed)
            case "static":
                return self.static
            case "previous-token":
                return PreviousToken(self.static)
            case "sign":
                return Sign.fit(model)
            case "svd":
                return self.informed(LowRank.fit(model, rank, self.moments))
            case "shadow-BITS":
                return self.shadow(bits)
            case "coded":
                return self.informed(Coded.fit(model, self.moments))
            case "up-BITS":
                return self.shadow(bits, gate_bits=0)
            case "refined-BITS":
                return self.learned(min(REFINED_RANK, rank), self.shadow(bits))
            case "learned":
                return self.learned(rank)
            case "learned-mid":
                return self.learned(rank, target="mid")
            case "learned-hidden":
                return self.learned(rank, target="mid", hidden_layer=True)
            case "learned-ahead":
                return self.learned(rank, ahead=1)
            case "ahead-BITS":
                return Ahead.fit(model, thresholds, training, bits, context)
            case "router":
                blocks = -(-intermediate // ROUTED)
                kept = max(1, round((1 - (thresholds.spec.target or 0.5)) * blocks))
                return Router.fit(model, training, min(ROUTED, intermediate), kept, seed=self.seed, context=context)
            case "library":
                return Library.fit(model, thresholds, training, self._rng(), context=context)
            case "clusters":
                return Clusters.fit(model, thresholds, training, self._rng(), context=context)
        raise MinillmError(f"the catalogue names {entry!r}, expected that the workshop can make it")
