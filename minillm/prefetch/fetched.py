"""The FFN that reads its weights from disk as it goes, and the Selectors of predictors for it.

For each layer and token, a Selector chooses the neurons J; the bundles that hold them are fetched, and SwiGLU is
computed from these alone:

    used = all neurons of the blocks (bundle.py) that hold a neuron of J
    y = sum over j in used of act(x . gate_j) (x . up_j) down_j

A bundle that was fetched is used whole: its other neurons cost nothing more and can only help. A Selector must not need
the bundles themselves to know its answer: a predictor has its scores, a record its masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import MinillmError
from ..predictors.protocol import Predictor
from ..predictors.select import Predicted, scores_of
from ..sparsity.selected import NOTHING_READ, StaticSet, tap_selected_reads
from ..trace import Tap, no_tap
from ..transformer.ffn import Selector
from ..transformer.layer import Layer
from .kernels import coefficients
from .reader import BundleReader
from .reorder import best_blocks


class FetchedFFN:
    """A FeedForward that reads its weights as it goes (module docstring): y = sum over fetched neurons of mid_j down_j.

    select: the neurons of each token; None: all of them. ahead: a Selector that guesses the next layer's neurons from
    this layer's x, for the reader's will_need. A wrong guess costs a read by the system and never changes the result.
    Where the layer's own gate and up are not in memory, neither of the two may look at them. Several tokens at once (a
    prompt) share one fetch of all their blocks, and each uses its own.
    """

    def __init__(self, reader: BundleReader, select: Selector | None = None, ahead: Selector | None = None):
        everything = StaticSet(np.ones((len(reader.bundle.layers), reader.bundle.config.intermediate_size), bool))
        self.reader, self.select, self.ahead = reader, select or everything, ahead

    @property
    def calibrated_on(self) -> frozenset[str]:
        """Hashes of the documents behind the selection."""
        return self.select.calibrated_on

    def blocks(self, select: Selector, x: np.ndarray, layer: Layer, position: int, tap: Tap = no_tap) -> np.ndarray:
        """The blocks that hold a selected neuron.  x (T, D)  ->  bool (T, B). Raises MinillmError."""
        bundle = self.reader.bundle
        wanted, expected = select(x, layer, position, tap), [len(x), bundle.config.intermediate_size]
        if wanted.dtype != bool or list(wanted.shape) != expected:
            found = f"{wanted.dtype}{list(wanted.shape)}"
            raise MinillmError(f"select gave {found} for layer {layer.index}, expected bool{expected}")
        return np.logical_or.reduceat(wanted, np.arange(0, expected[1], bundle.group), axis=1)  # (T, B)

    def __call__(self, x: np.ndarray, layer: Layer, position: int = 0, tap: Tap = no_tap) -> np.ndarray:
        """x (T, D)  ->  y (T, D). Taps mask (T, F), True for every neuron that is used, reads, mid_cut and out."""
        reader, index = self.reader, layer.index
        used = self.blocks(self.select, x, layer, position, tap)  # (T, B)
        blocks = np.flatnonzero(used.any(axis=0))
        if self.ahead is not None and index + 1 < len(reader.bundle.layers):
            # Of the next layer only the index counts: its matrices are not in memory, so no Selector can look at them.
            following = self.blocks(self.ahead, x, replace(layer, index=index + 1), position)
            reader.will_need(index + 1, np.flatnonzero(following.any(axis=0)))
        gate, up, down = reader.fetch(index, blocks)  # (n, D) each
        neurons = reader.neurons(blocks)  # (n,)
        mine = used[:, neurons // reader.bundle.group]  # (T, n)
        if tap is not no_tap:
            mask = tap("mask", self._everywhere(mine, neurons))  # (T, F)
            tap_selected_reads(tap, self.select, mask)
            mine = mask[:, neurons]
        mid = coefficients(x, gate, up, neurons, layer)  # (T, n)
        mid *= mine
        if tap is not no_tap:
            mid = tap("mid_cut", self._everywhere(mid, neurons))[:, neurons]
        y = mid @ down  # (T, D)
        return tap("out", y if layer.down_bias is None else y + layer.down_bias)

    def _everywhere(self, values: np.ndarray, neurons: np.ndarray) -> np.ndarray:
        """Values of the fetched neurons at their places among all.  (T, n)  ->  (T, F), zero elsewhere."""
        full = np.zeros((len(values), self.reader.bundle.config.intermediate_size), values.dtype)
        full[:, neurons] = values
        return full


@dataclass(frozen=True, eq=False)
class PredictedBlocks:
    """A Selector of each token's best blocks by a predictor's scores.

        score of block b = sum over its neurons j of max(s_j, 0)^2        s_j: an estimate of the neuron's magnitude

    group: neurons per block. share: of the blocks that are selected. orders: per layer (place -> neuron), as for a
    BlockOracle; None: as stored.
    """

    predictor: Predictor
    group: int
    share: float
    orders: Sequence[np.ndarray] | None = None
    reads: frozenset[str] = NOTHING_READ

    @property
    def name(self) -> str:
        """The predictor's name."""
        return self.predictor.name

    @property
    def calibrated_on(self) -> frozenset[str]:
        """Hashes of the documents behind the predictor's tables."""
        return self.predictor.trained_on

    def __call__(self, x: np.ndarray, layer: Layer, position: int = 0, tap: Tap = no_tap) -> np.ndarray:
        """x (T, D)  ->  mask (T, F). Taps scores."""
        scores = tap("scores", scores_of(self.predictor, x, layer, position))  # (T, F)
        order = np.arange(scores.shape[1]) if self.orders is None else self.orders[layer.index]
        return best_blocks(np.square(np.maximum(scores, 0)), order, self.group, self.share)


def predicted(predictor: Predictor, group: int = 1, share: float | None = None) -> Selector:
    """The Selector of a predictor for weights on disk: by its cutoffs, or with a share, the best blocks of each token.

    Raises MinillmError for a predictor that needs the truth or the layer's own weights, and for one without cutoffs
    where they are needed.
    """
    needs = (
        (predictor.needs_truth, "needs the true mask, which takes all of gate and up"),
        (predictor.reads_gate, "reads the layer's own gate, which is not in memory"),
        (share is None and predictor.cutoffs is None, "has no cutoffs"),
    )
    if why := next((why for is_so, why in needs if is_so), None):
        raise MinillmError(f"the predictor {predictor.name} {why}, expected one that can select by itself")
    return Predicted(predictor) if share is None else PredictedBlocks(predictor, group, share)
