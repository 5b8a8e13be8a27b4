"""A shadow that looks one layer ahead: which neurons of layer l, while layer l - 1 is still being computed.

A prefetch needs time. What is known of layer l's FFN input x_l[t] when layer l - 1 has its own:

    f = [x_{l-1}[t], x_l[t - 1]]       this token one layer before, this layer one token before        (2 D,)
    x_l[t] ~ f M + b                   M (2 D, D), b (D,) by least squares on a training text, one per layer

Between the two lie an FFN and an attention, which no linear map can follow. But what the map misses is measured, too:
with C the covariance of the rest, the product with a row w of the gate has the mean squared error w C w^T. It goes into
the shadow's e_g (and e_u), so that the score is the expected square and not the square of what is expected.

    g = f (M w^T) + b . w        so the map is multiplied into gate and up once, and only the products are kept, packed

Layer 0 has no layer before it: it is predicted from its own input, by a shadow as in copies.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..fields import Fields
from ..sparsity.sparse import policy_ffn
from ..sparsity.thresholds import Thresholds
from ..threads import few_threads
from ..trace import Tap, no_tap
from ..transformer.evaluation import pass_over
from ..transformer.layer import Layer
from ..transformer.model import Llama, shape_of
from ..transformer.texts import document_hashes, runs
from .copies import Shadow, Weights
from .layout import Layout, Shape
from .protocol import Predictor

RIDGE = 1e-4  # of the features' mean square, added to the diagonal


class Features:
    """f of the module's docstring, from the inputs as they come, layer by layer; position 0 starts a new text.

    A layer may be asked for early, when only the layer before it has its input. Then x is that input; for a single
    token it plays no part. The same position is asked for again later, with the layer's own x.
    """

    def __init__(self) -> None:
        self._rows: dict[int, tuple[int, np.ndarray | None, np.ndarray]] = {}  # layer -> position, row before it, last
        self._before: np.ndarray | None = None  # the rows of the layer before

    def __call__(self, index: int, position: int, x: np.ndarray) -> np.ndarray:
        """x (T, D)  ->  f (T, 2 D); of layer 0, [x, 0]."""
        at, before, last = self._rows.get(index, (None, None, None))
        if at != position:
            before = last if position else None  # (1, D), of the token before x's first
        shifted = np.concatenate([np.zeros_like(x[:1]) if before is None else before, x[:-1]])  # (T, D)
        f = np.concatenate([self._before, shifted] if index else [x, np.zeros_like(x)], axis=1)  # (T, 2 D)
        self._rows[index], self._before = (position, before, x[-1:].copy()), x
        return f


def moments_with_features(
    model: Llama, thresholds: Thresholds, documents: str | Sequence[str], context: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means over tokens of [f 1]^T [f 1], [f 1]^T x and x^T x, in the model as it is cut: all that least squares needs.

    ->  (L, 2 D + 1, 2 D + 1), (L, 2 D + 1, D), (L, D, D), float64.
    """
    layers, hidden, _ = shape_of(model)
    features, n = Features(), np.zeros(layers)
    ff, fx = np.zeros((layers, 2 * hidden + 1, 2 * hidden + 1)), np.zeros((layers, 2 * hidden + 1, hidden))
    xx = np.zeros((layers, hidden, hidden))
    cut = policy_ffn(model, thresholds)

    def watch(x: np.ndarray, layer: Layer, position: int, tap: Tap) -> np.ndarray:
        f = np.concatenate([features(layer.index, position, x), np.ones_like(x[:, :1])], axis=1)  # (T, 2 D + 1)
        for total, product in ((ff, f.T @ f), (fx, f.T @ x), (xx, x.T @ x)):
            total[layer.index] += product
        n[layer.index] += len(x)
        return cut(x, layer, position, tap)

    pass_over(model, runs(model, documents, "documents", context), no_tap, watch, "second moments")
    n = n[:, None, None]
    return ff / n, fx / n, xx / n


def linear_map(ff: np.ndarray, fx: np.ndarray, xx: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """M with b as its last row, and C, by least squares from one layer's means.

    ff (2 D + 1, 2 D + 1), fx (2 D + 1, D), xx (D, D)  ->  M (2 D + 1, D), C (D, D).
    """
    ridge = RIDGE * np.trace(ff) / len(ff) * np.eye(len(ff))
    m = np.linalg.solve(ff + ridge, fx)  # (2 D + 1, D)
    return m, xx - m.T @ fx - fx.T @ m + m.T @ ff @ m


def composed(layer: Layer, m: np.ndarray, rest: np.ndarray) -> Weights:
    """Gate and up of a layer, multiplied with the map: functions of f in the place of x.

    m (2 D + 1, D), rest = C (D, D)  ->  for "gate" and "up": W M^T (F, 2 D), its constant (F,), w C w^T (F,).
    """
    parts: Weights = {}
    for name in ("gate", "up"):
        w, bias = (getattr(layer, f"{name}_{kind}") for kind in ("proj", "bias"))
        product = w.astype(np.float64) @ m.T  # (F, 2 D + 1)
        constant = product[:, -1] + (0 if bias is None else bias)
        parts[name] = (product[:, :-1], constant, np.maximum(np.vecdot(w @ rest, w), 0))
    return parts


class Ahead(Predictor):
    """One layer ahead: a shadow of 2 D inputs, fed with what is known one layer before."""

    lookaheads = ("layer",)

    def __init__(self, shadow: Shadow):
        layers, twice, intermediate = shadow.shape
        self.shadow, self.shape = shadow, (layers, twice // 2, intermediate)
        self._features = Features()
        self.name = f"{shadow.name}, one layer ahead"

    @classmethod
    def fit(
        cls, model: Llama, thresholds: Thresholds, documents: str | Sequence[str], bits: int,
        context: int | None = None,
    ) -> Ahead:  # fmt: skip
        """Find M, b and C on a training text, in the model as it is cut, and round gate M^T and up M^T to ``bits``."""
        layers, hidden, intermediate = shape_of(model)
        ff, fx, xx = moments_with_features(model, thresholds, documents, context)
        shape, act, moments = (layers, 2 * hidden, intermediate), model.config.hidden_act, ff[:, :-1, :-1]
        with few_threads(model):
            maps = [linear_map(ff[i], fx[i], xx[i]) for i in range(1, layers)]
            maps.insert(0, (np.eye(2 * hidden + 1, hidden), np.zeros((hidden, hidden))))  # layer 0 has its own input
            weights = [composed(layer, *maps[layer.index]) for layer in model.layers]
            predictor = cls(Shadow.of_weights(shape, act, weights, bits, bits, moments))
        predictor.trained_on, predictor.model = frozenset(document_hashes(documents)), model.fingerprint
        return predictor

    def predict(self, index: int, position: int, x: np.ndarray) -> np.ndarray:
        """x (T, D), of which layer l > 0 uses only the tokens before  ->  scores (T, F)."""
        return self.shadow.predict(index, position, self._features(index, position, x))

    @property
    def nbytes(self) -> int:
        """Bytes of the shadow, which is twice as wide."""
        return self.shadow.nbytes

    def multiply_adds(self, index: int) -> float:
        """2 F 2 D."""
        return self.shadow.multiply_adds(index)

    def arrays(self) -> dict[str, np.ndarray]:
        """The shadow's tables."""
        return self.shadow.arrays()

    def settings(self) -> dict:
        """The shadow's settings."""
        return self.shadow.settings()

    @classmethod
    def layout(cls, settings: Fields, shape: Shape) -> Layout:
        """Those of a shadow of 2 D inputs, with a copy of the gate."""
        settings.integer("gate_bits", 8)
        return Shadow.layout(settings, (shape[0], 2 * shape[1], shape[2]))

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], settings: dict) -> Ahead:
        """The predictor with a shadow of these tables."""
        return cls(Shadow.from_arrays(arrays, settings))
