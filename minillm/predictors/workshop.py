"""TODO."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ..errors import MinillmError
from ..sparsity.thresholds import Thresholds
from ..transformer.model import Llama, shape_of
from ..transformer.texts import document_hashes
from .ahead import Ahead
from .baselines import Chance, PreviousToken, Static
from .clusters import Clusters
from .copies import LowRank, Shadow, Sign
from .files import load_predictor
from .learned import train
from .memory import Library
from .oracle import Oracle
from .protocol import Predictor
from .quantise import second_moments

REFINED_RANK = 4


@dataclass
class Workshop:
    """What predictors are made from: a model, thresholds of policy mid, training and held-out documents.

    rank: of svd and learned; None takes a quarter of D. What several of them need is computed once.
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

    @property
    def given(self) -> tuple:
        """What every maker of patterns takes first."""
        return self.model, self.thresholds, self.training

    def informed(self, predictor: Predictor) -> Predictor:
        """The same predictor, which was made with the moments and so knows the training documents."""
        predictor.trained_on |= frozenset(document_hashes(self.training))
        return predictor

    def shadow(self, bits: int, gate_bits: int | None = None) -> Shadow:
        """A shadow that knows the inputs."""
        return self.informed(Shadow.fit(self.model, bits, self.moments, gate_bits))

    def learned(self, rank: int, **kind) -> Predictor:
        """A trained one."""
        rng = np.random.default_rng(self.seed)
        return train(*self.given, self.held, rank, context=self.context, rng=rng, **kind)

    def make(self, name: str) -> Predictor:
        """The predictor of a name of NAMES ("shadow-3": 3 bits), or of a file. Its cutoffs are still to be set."""
        found = re.fullmatch(r"(shadow|up|ahead|refined)-([1-8])", name)
        kind, bits = (found[1], int(found[2])) if found else (name, 4)
        rank = self.rank or max(1, shape_of(self.model)[1] // 4)
        makers: dict[str, Callable[[], Predictor]] = {
            "oracle": lambda: Oracle(self.model, self.thresholds),
            "chance": lambda: Chance(shape_of(self.model), self.seed),
            "static": lambda: self.static,
            "previous-token": lambda: PreviousToken(self.static),
            "sign": lambda: Sign.fit(self.model),
            "svd": lambda: self.informed(LowRank.fit(self.model, rank, self.moments)),
            "shadow": lambda: self.shadow(bits),
            "up": lambda: self.shadow(bits, gate_bits=0),
            "ahead": lambda: Ahead.fit(self.model, self.thresholds, self.training, bits, self.context),
            "learned": lambda: self.learned(rank),
            "library": lambda: Library.fit(*self.given, np.random.default_rng(self.seed), context=self.context),
            "clusters": lambda: Clusters.fit(*self.given, np.random.default_rng(self.seed), context=self.context),
            "learned-ahead": lambda: self.learned(rank, ahead=1),
            "refined": lambda: self.learned(min(REFINED_RANK, rank), shadow=self.shadow(bits)),
        }
        if kind in makers:
            return makers[kind]()
        if name.endswith(".safetensors") or Path(name).is_file():
            return load_predictor(name)
        known = ", ".join(makers)
        raise MinillmError(f"predictor {name!r} is unknown, expected a file or one of {known} (shadow-3: of 3 bits)")


NAMES = (
    "oracle", "chance", "static", "previous-token", "sign", "svd", "shadow-2", "shadow-3", "shadow-4", "shadow-8",
    "up-3", "up-4", "refined-3", "library", "clusters", "learned", "learned-ahead", "ahead-4",
)  # fmt: skip
