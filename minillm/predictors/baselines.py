"""What a predictor must beat: three guesses that never look at the token.

    chance           s_j = a random number                                       expected recall = the selected fraction
    static           s_j = how often neuron j is active on a training text        one mask for every token
    previous-token   s_j = 1 if neuron j was active at the token before; its static share orders the rest

Neighbouring tokens share neurons and some neurons are nearly always active, so that a good recall may be nothing that
was predicted. The first token of a text has no token before it: its score is the static one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..sparsity.sparse import policy_ffn
from ..sparsity.thresholds import Thresholds
from ..transformer.evaluation import pass_over
from ..transformer.model import Llama, shape_of
from ..transformer.texts import document_hashes, runs
from .protocol import LOOKAHEADS, Predictor


class Chance(Predictor):
    """Random scores, the same for the same seed, layer and position, however a text is cut into pieces."""

    name, nbytes = "chance", 0
    lookaheads, selects = LOOKAHEADS, False

    def __init__(self, shape: tuple[int, int, int], seed: int = 0):
        self.shape, self.seed = tuple(shape), int(seed)

    def predict(self, index: int, position: int, x: np.ndarray) -> np.ndarray:
        """x (T, D), of which only T matters  ->  uniform numbers (T, F)."""
        seeds = ([self.seed, index, t] for t in range(position, position + len(x)))
        return np.array([np.random.default_rng(seed).random(self.shape[2], x.dtype) for seed in seeds])

    def multiply_adds(self, index: int) -> float:
        """None."""
        return 0

    def arrays(self) -> dict[str, np.ndarray]:
        """None."""
        return {}

    def settings(self) -> dict:
        """Shape and seed."""
        return {"shape": self.shape, "seed": self.seed}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], settings: dict) -> Chance:
        """Made again from its settings."""
        return cls(**settings)


def active_shares(
    model: Llama, thresholds: Thresholds, documents: str | Sequence[str], context: int | None = None
) -> np.ndarray:
    """How often each neuron is active by policy mid on a text, in the model that is cut so: (L, F) float32."""
    layers, _, intermediate = shape_of(model)
    active, tokens = np.zeros((layers, intermediate), np.int64), np.zeros(layers, np.int64)

    def tap(name: str, value: np.ndarray) -> np.ndarray:
        if name.endswith(".mlp.mask"):
            index = int(name.split(".")[1])
            active[index] += np.count_nonzero(value, axis=0)
            tokens[index] += len(value)
        return value

    pass_over(model, runs(model, documents, "documents", context), tap, policy_ffn(model, thresholds), "counting")
    return (active / tokens[:, None]).astype(np.float32)


class Static(Predictor):
    """The same scores for every token: shares (L, F), how often each neuron is active on a training text."""

    name, lookaheads, selects = "static", LOOKAHEADS, False

    def __init__(self, shape: tuple[int, int, int], shares: np.ndarray):
        self.shape, self.shares = tuple(shape), shares
        if shares.shape != (self.shape[0], self.shape[2]):
            raise ValueError(f"shares are {list(shares.shape)}, expected those of shape {self.shape}")

    @classmethod
    def fit(
        cls, model: Llama, thresholds: Thresholds, documents: str | Sequence[str], context: int | None = None
    ) -> Static:
        """Count on training documents; cutoffs are still to be set."""
        found = cls(shape_of(model), active_shares(model, thresholds, documents, context))
        found.trained_on = frozenset(document_hashes(documents))
        return found

    def predict(self, index: int, position: int, x: np.ndarray) -> np.ndarray:
        """x (T, D), of which only T matters  ->  the shares, T times (T, F)."""
        return np.tile(self.shares[index], (len(x), 1))

    @property
    def nbytes(self) -> int:
        """Four bytes per neuron."""
        return self.shares.nbytes

    def multiply_adds(self, index: int) -> float:
        """None."""
        return 0

    def arrays(self) -> dict[str, np.ndarray]:
        """The shares."""
        return {"shares": self.shares}

    def settings(self) -> dict:
        """The shape."""
        return {"shape": self.shape}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], settings: dict) -> Static:
        """Made again from its shares."""
        return cls(settings["shape"], arrays["shares"])


class PreviousToken(Predictor):
    """The true mask of the token before, and among equals the static shares: s_j = [j was active] + share_j.

    Told the truth after each token (needs_truth), one token at a time (sequential). Counting a share of 1 as a little
    less keeps every neuron that was active above every one that was not.
    """

    name, lookaheads, selects = "previous-token", LOOKAHEADS, False
    sequential, needs_truth = True, True

    def __init__(self, static: Static):
        self.static, self.shape, self.trained_on = static, static.shape, static.trained_on
        self._before: dict[int, np.ndarray] = {}  # layer -> the mask of the token before (F,)

    def predict(self, index: int, position: int, x: np.ndarray) -> np.ndarray:
        """x (1, D), of which nothing matters  ->  scores (1, F)."""
        if position == 0:
            self._before.pop(index, None)
        scores = 0.999 * self.static.predict(index, position, x)  # (1, F)
        return scores + self._before[index] if index in self._before else scores

    def observe(self, index: int, position: int, x: np.ndarray, mask: np.ndarray | None) -> None:
        """Keep the last row's true mask."""
        self._before[index] = mask[-1].astype(np.float32)

    @property
    def nbytes(self) -> int:
        """The static shares, and one bit per neuron for the mask."""
        layers, _, intermediate = self.shape
        return self.static.nbytes + layers * -(-intermediate // 8)

    def multiply_adds(self, index: int) -> float:
        """None."""
        return 0

    def arrays(self) -> dict[str, np.ndarray]:
        """The static shares."""
        return self.static.arrays()

    def settings(self) -> dict:
        """The shape."""
        return self.static.settings()

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], settings: dict) -> PreviousToken:
        """Made again from the shares."""
        return cls(Static.from_arrays(arrays, settings))
