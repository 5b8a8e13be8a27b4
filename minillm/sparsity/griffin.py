"""GRIFFIN: the prompt chooses the neurons, and they stay chosen (Dong et al. 2024, arXiv 2404.01365).

Over the tokens of the prompt, with m (S, F) their mids:

    s_j = || mbar[:, j] ||        mbar: each row of m divided by its own length
    J   = the k neurons with the largest s_j

The prompt itself is computed densely; every later token uses the neurons of J alone, so that W_gate[J], W_up[J] and
W_down[:, J] can be copied out once. Nothing is trained and nothing is calibrated.

Differs from GRIFFIN: the prompt is the first PROMPT tokens of a text, be they given or generated, so that one rule
serves generation and scoring alike. (In a text that is scored at once nobody says where its prompt ends.)
"""

import numpy as np

from ..trace import Tap, no_tap
from ..transformer.layer import Layer
from ..transformer.ops import linear
from .gathered import columns_of, rows_of
from .policies import largest

PROMPT = 64  # tokens


class GriffinFFN:
    """A FeedForward that computes the first PROMPT tokens of a text densely and the rest from the neurons they chose.

    shares: per layer, the share of neurons that go. It holds the state of one text, which position 0 begins afresh.
    """

    def __init__(self, shares: list[float], form: str = "masked"):
        self.shares, self.form = shares, form
        self._square: dict[int, np.ndarray] = {}  # layer -> s_j^2 so far (F,)

    def __call__(self, x: np.ndarray, layer: Layer, position: int = 0, tap: Tap = no_tap) -> np.ndarray:
        """x (T, D)  ->  y (T, D)."""
        if position == 0:
            self._square[layer.index] = np.zeros(len(layer.gate_proj))
        masked, first = self.form == "masked", min(max(PROMPT - position, 0), len(x))  # rows of the prompt among these
        step = tap if masked else no_tap  # the other form shows only what is right in full
        some = x if masked else x[:first]
        gate_pre = step("gate_pre", linear(some, layer.gate_proj, layer.gate_bias))  # (T, F)
        gate = step("gate", layer.act(gate_pre))  # (T, F)
        up = step("up", linear(some, layer.up_proj, layer.up_bias))  # (T, F)
        mid = step("mid", gate * up)  # (T, F)

        known = np.ones((len(x), len(layer.gate_proj)), bool)  # (T, F)
        known[first:] = self._chosen(layer.index, mid[:first])
        known = tap("mask_known", known)  # (T, F)
        mask = tap("mask", known)  # (T, F)
        if not masked:  # the rows of the prompt are computed once more, for one formula instead of two
            gate = layer.act(rows_of(x, layer.gate_proj, layer.gate_bias, mask, None))  # (T, F)
            mid = gate * rows_of(x, layer.up_proj, layer.up_bias, mask, None)  # (T, F)
        mid_cut = tap("mid_cut", np.where(mask, mid, 0))  # (T, F)
        if not masked:
            return tap("out", columns_of(mid_cut, layer.down_proj, layer.down_bias, mask))  # (T, D)
        return tap("out", linear(mid_cut, layer.down_proj, layer.down_bias))  # (T, D)

    def _chosen(self, index: int, mid: np.ndarray) -> np.ndarray:
        """Take in further mids of the prompt, (n, F) with n >= 0, and give the neurons that stay, (F,)."""
        length = np.linalg.norm(mid, axis=1, keepdims=True)
        rows = mid / np.where(length == 0, 1, length)
        self._square[index] += np.square(rows, dtype=np.float64).sum(axis=0)
        count = rows.shape[1] - round(min(self.shares[index], 1) * rows.shape[1])
        return largest(self._square[index], count)
