"""GRIFFIN: the prompt chooses the neurons, and they stay chosen (Dong et al. 2024, arXiv 2404.01365).

Over the tokens of the prompt, with m (S, F) their mids:

    s_j = || mbar[:, j] ||        mbar: each row of m divided by its own length
    J   = the k neurons with the largest s_j

The prompt itself is computed densely. Every later token uses only the neurons of J, so that W_gate[J], W_up[J] and
W_down[:, J] can be copied out once. No training and no calibration are needed.

Differs from GRIFFIN: the prompt is the first PROMPT tokens of a text, given or generated. So the same rule holds for
generation and for scoring, where a text has no marked end of the prompt.
"""

from collections.abc import Sequence

import numpy as np

from ..errors import MinillmError
from ..trace import Tap, no_tap
from ..transformer.ffn import mid_of
from ..transformer.layer import Layer
from .policies import largest

PROMPT = 64  # tokens


class Griffin:
    """A Selector: all neurons for the first PROMPT tokens of a text, and for the rest the neurons that they chose.

    shares: per layer, the share of neurons that are left out. It holds the state of one text; position 0 starts a new
    text, with fresh state. Calling it with the middle of a text whose start it has not seen raises MinillmError.
    To choose, it computes gate and up of the prompt, which the FFN then computes again.
    """

    name = "griffin"
    reads: frozenset[str] = frozenset()  # the prompt is computed in full anyway

    def __init__(self, shares: Sequence[float], calibrated_on: frozenset[str] = frozenset()):
        self.shares, self.calibrated_on = shares, calibrated_on
        self._squares: dict[int, np.ndarray] = {}  # layer -> s_j^2 so far (F,)
        self._chosen: dict[int, np.ndarray] = {}  # layer -> True at the neurons of J so far (F,)

    def __call__(self, x: np.ndarray, layer: Layer, position: int = 0, tap: Tap = no_tap) -> np.ndarray:
        """x (T, D)  ->  mask (T, F)."""
        if position == 0:
            self._squares[layer.index] = np.zeros(len(layer.gate_proj))
        elif layer.index not in self._squares:
            raise MinillmError(f"griffin begins at position {position}, expected 0: the prompt chooses the neurons")
        prompt = min(max(PROMPT - position, 0), len(x))  # rows of x that belong to the prompt
        if prompt:
            self._choose(layer.index, mid_of(x[:prompt], layer))
        mask = np.ones((len(x), len(layer.gate_proj)), bool)  # (T, F)
        mask[prompt:] = self._chosen[layer.index]
        return mask

    def _choose(self, index: int, mid: np.ndarray) -> None:
        """Add further rows of the prompt, mid (n, F), and choose the neurons again."""
        length = np.linalg.norm(mid, axis=1, keepdims=True)  # (n, 1)
        rows = mid / np.where(length == 0, 1, length)  # (n, F)
        self._squares[index] += np.square(rows, dtype=np.float64).sum(axis=0)
        count = rows.shape[1] - round(min(self.shares[index], 1) * rows.shape[1])
        self._chosen[index] = largest(self._squares[index], count)
