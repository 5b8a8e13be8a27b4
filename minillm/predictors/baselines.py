"""What a predictor must beat: three guesses that never look at the token.

    chance           s_j = a random number                                       expected recall = the selected fraction
    static           s_j = the share of training tokens that activate neuron j    one mask for every token
    previous-token   s_j = 1 if neuron j was active at the token before; its static share orders the rest

Neighbouring tokens share neurons, and some neurons are nearly always active. So a good recall need not mean that
anything was predicted. The first token of a text has no token before it: its score is the static one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import MinillmError
from ..fields import Fields
from ..sparsity.sparse import policy_ffn
from ..sparsity.thresholds import Thresholds
from ..steps import place
from ..transformer.evaluation import pass_over
from ..transformer.model import Llama, shape_of
from ..transformer.texts import document_hashes, runs
from .layout import Layout, Shape, Table, check_shape, sizes_of
from .protocol import LOOKAHEADS, Predictor


class Chance(Predictor):
    """Random scores, the same for the same seed, layer and position, however a text is cut into pieces."""

    name, nbytes = "chance", 0
    lookaheads, selects = LOOKAHEADS, False

    def __init__(self, shape: tuple[int, int, int], seed: int = 0):
        layers, hidden, intermediate = shape
        self.shape, self.seed = (layers, hidden, intermediate), int(seed)

    def predict(self, index: int, position: int, x: np.ndarray) -> np.ndarray:
        """x (T, D), of which only T matters  ->  uniform numbers (T, F)."""
        seeds = ([self.seed, index, t] for t in range(position, position + len(x)))
        return np.array([np.random.default_rng(seed).random(self.shape[2], x.dtype) for seed in seeds])

    def multiply_adds(self, index: int) -> float:
        """Zero: nothing is computed."""
        return 0

    def arrays(self) -> dict[str, np.ndarray]:
        """No tables: the scores are drawn anew."""
        return {}

    def settings(self) -> dict:
        """Shape and seed."""
        return {"shape": self.shape, "seed": self.seed}

    @classmethod
    def layout(cls, settings: Fields, shape: Shape) -> Layout:
        """No tables."""
        settings.only(["shape", "seed"])
        check_shape(settings, shape)
        settings.integer("seed", 2**64 - 1, low=0)
        return Layout({}, sizes_of(shape))

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], settings: dict) -> Chance:
        """The same scores again, from shape and seed."""
        return cls(**settings)


def active_shares(
    model: Llama, thresholds: Thresholds, documents: str | Sequence[str], context: int | None = None
) -> np.ndarray:
    """Share of a text's tokens that activate each neuron, by policy mid in the model cut by it: (L, F) float32."""
    layers, _, intermediate = shape_of(model)
    active, tokens = np.zeros((layers, intermediate), np.int64), np.zeros(layers, np.int64)

    def tap(name: str, value: np.ndarray) -> np.ndarray:
        at = place(name)
        if at and at.step == "mlp.mask":
            active[at.layer] += np.count_nonzero(value, axis=0)
            tokens[at.layer] += len(value)
        return value

    pass_over(
        model,
        runs(model, documents, "documents", context),
        tap,
        policy_ffn(model, thresholds),
        "counting active neurons",
    )
    return (active / tokens[:, None]).astype(np.float32)


class Static(Predictor):
    """The same scores for every token: shares (L, F) of the training tokens that activate each neuron."""

    name, lookaheads, selects = "static", LOOKAHEADS, False

    def __init__(self, shape: tuple[int, int, int], shares: np.ndarray):
        layers, hidden, intermediate = shape
        self.shape, self.shares = (layers, hidden, intermediate), shares

    @classmethod
    def fit(
        cls, model: Llama, thresholds: Thresholds, documents: str | Sequence[str], context: int | None = None
    ) -> Static:
        """Count on training documents; cutoffs are still to be set."""
        predictor = cls(shape_of(model), active_shares(model, thresholds, documents, context))
        predictor.trained_on, predictor.model = frozenset(document_hashes(documents)), model.fingerprint
        return predictor

    def predict(self, index: int, position: int, x: np.ndarray) -> np.ndarray:
        """x (T, D), of which only T matters  ->  the shares, T times (T, F)."""
        return np.tile(self.shares[index], (len(x), 1))

    @property
    def nbytes(self) -> int:
        """Four bytes per neuron."""
        return self.shares.nbytes

    def multiply_adds(self, index: int) -> float:
        """Zero: nothing is computed."""
        return 0

    def arrays(self) -> dict[str, np.ndarray]:
        """The shares."""
        return {"shares": self.shares}

    def settings(self) -> dict:
        """The shape."""
        return {"shape": self.shape}

    @classmethod
    def layout(cls, settings: Fields, shape: Shape) -> Layout:
        """The shares, from 0 to 1."""
        settings.only(["shape"])
        check_shape(settings, shape)
        return Layout({"shares": Table("LF", ("F32",), 0, 1)}, sizes_of(shape))

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], settings: dict) -> Static:
        """The predictor with these shares."""
        return cls(settings["shape"], arrays["shares"])


class PreviousToken(Predictor):
    """The true mask of the token before; the static shares order the rest: s_j = [j was active] + 0.999 share_j.

    It must see the truth after each token (needs_truth), one token at a time (sequential). The factor 0.999 keeps every
    neuron that was active above every one that was not.
    """

    name, lookaheads, selects = "previous-token", LOOKAHEADS, False
    sequential, needs_truth = True, True

    def __init__(self, static: Static):
        self.static, self.shape = static, static.shape
        self.trained_on, self.model = static.trained_on, static.model
        self._before: dict[int, np.ndarray] = {}  # layer -> the mask of the token before (F,)

    def predict(self, index: int, position: int, x: np.ndarray) -> np.ndarray:
        """x (1, D), which plays no part  ->  scores (1, F)."""
        if position == 0:
            self._before.pop(index, None)
        scores = 0.999 * self.static.predict(index, position, x)  # (1, F)
        return scores + self._before[index] if index in self._before else scores

    def observe(self, index: int, position: int, x: np.ndarray, mask: np.ndarray | None) -> None:
        """Keep the last row's true mask. Raises MinillmError where there is none."""
        if mask is None:
            raise MinillmError(f"the predictor {self.name} was given no true mask, expected one after each token")
        self._before[index] = mask[-1].astype(np.float32)

    @property
    def nbytes(self) -> int:
        """The static shares, and one bit per neuron for the mask."""
        layers, _, intermediate = self.shape
        return self.static.nbytes + layers * -(-intermediate // 8)

    def multiply_adds(self, index: int) -> float:
        """Zero: nothing is computed."""
        return 0

    def arrays(self) -> dict[str, np.ndarray]:
        """The static shares."""
        return self.static.arrays()

    def settings(self) -> dict:
        """The shape."""
        return self.static.settings()

    @classmethod
    def layout(cls, settings: Fields, shape: Shape) -> Layout:
        """Those of the static shares."""
        return Static.layout(settings, shape)

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], settings: dict) -> PreviousToken:
        """The predictor with these static shares."""
        return cls(Static.from_arrays(arrays, settings))
