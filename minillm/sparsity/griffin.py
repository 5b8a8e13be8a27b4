"""GRIFFIN: the prompt chooses the neurons, and they stay chosen (Dong et al. 2024, arXiv 2404.01365).

Over the tokens of the prompt, with m (S, F) their mids:

    s_j = || mbar[:, j] ||        mbar: each row of m divided by its own length
    J   = the k neurons with the largest s_j

The prompt itself is computed densely; every later token uses the neurons of J alone, so that W_gate[J], W_up[J] and
W_down[:, J] can be copied out once. Nothing is trained and nothing is calibrated.

Differs from GRIFFIN: the prompt is the first PROMPT tokens of a text, be they given or generated, so that one rule
serves generation and scoring alike. (In a text that is scored at once nobody says where its prompt ends.)
"""

from collections.abc import Sequence

import numpy as np

from ..trace import Tap, no_tap
from ..transformer.layer import Layer
from ..transformer.ops import linear
from .policies import largest

PROMPT = 64  # tokens


class Griffin:
    """A Selector: all neurons for the first PROMPT tokens of a text, and for the rest the neurons that they chose.

    shares: per layer, the share of neurons that go. It holds the state of one text, which position 0 begins afresh.
    """

    name = "griffin"
    reads: frozenset[str] = frozenset()  # the prompt is computed in full anyway

    def __init__(self, shares: Sequence[float], calibrated_on: frozenset[str] = frozenset()):
        self.shares, self.calibrated_on = shares, calibrated_on
        self._square: dict[int, np.ndarray] = {}  # layer -> s_j^2 so far (F,)

    def __call__(self, x: np.ndarray, layer: Layer, position: int = 0, tap: Tap = no_tap) -> np.ndarray:
        """x (T, D)  ->  mask (T, F)."""
        if position == 0:
            self._square[layer.index] = np.zeros(len(layer.gate_proj))
        first = min(max(PROMPT - position, 0), len(x))  # rows of the prompt among these
        prompt = x[:first]
        gate = layer.act(linear(prompt, layer.gate_proj, layer.gate_bias))  # (first, F)
        mid = gate * linear(prompt, layer.up_proj, layer.up_bias)  # (first, F)
        mask = np.ones((len(x), len(layer.gate_proj)), bool)  # (T, F)
        mask[first:] = self._chosen(layer.index, mid)
        return mask

    def _chosen(self, index: int, mid: np.ndarray) -> np.ndarray:
        """Take in further mids of the prompt, (n, F) with n >= 0, and give the neurons that stay, (F,)."""
        length = np.linalg.norm(mid, axis=1, keepdims=True)
        rows = mid / np.where(length == 0, 1, length)
        self._square[index] += np.square(rows, dtype=np.float64).sum(axis=0)
        count = rows.shape[1] - round(min(self.shares[index], 1) * rows.shape[1])
        return largest(self._square[index], count)
