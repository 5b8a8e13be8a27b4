"""Recording: the neurons that each token needs, and those guessed beforehand, in one pass of the model.

Which neurons a token needs does not depend on a buffer (as long as misses are waited for). So one pass gives the trace

    A (T, L, N) bool        A[t, l, j]: token t needs neuron j of layer l
    P (T, L, N) bool        the same for the guesses, where a predictor takes part

and replay.py tries every buffer on this record, without the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import MinillmError
from ..steps import place
from ..transformer.evaluation import pass_over
from ..transformer.ffn import FeedForward
from ..transformer.model import Llama, shape_of
from ..transformer.texts import Run
from .traffic import unpacked


class Recorder:
    """A tap that records the steps mask (needed) and mask_guess (guessed) of a sparse FFN, eight neurons to a byte.

    It works with ``generate``, ``perplexity`` and any pass; several texts are joined.
    """

    def __init__(self, layers: int, neurons: int):
        self.neurons = neurons
        self._needed: list[list[np.ndarray]] = [[] for _ in range(layers)]
        self._guessed: list[list[np.ndarray]] = [[] for _ in range(layers)]

    @classmethod
    def of(cls, model: Llama) -> Recorder:
        """A recorder of this model's shape."""
        layers, _, neurons = shape_of(model)
        return cls(layers, neurons)

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        at = place(name)
        if at is not None and at.step == "mlp.mask":
            self._needed[at.layer].append(np.packbits(value, axis=1))
        elif at is not None and at.step == "mlp.mask_guess":
            self._guessed[at.layer].append(np.packbits(value, axis=1))
        return value

    @property
    def needed(self) -> np.ndarray:
        """The trace (T, L, N) bool. Raises MinillmError where no mask was tapped."""
        if not all(self._needed):
            raise MinillmError("no mask was seen, expected a pass with a sparse FFN")
        return unpacked([np.concatenate(rows) for rows in self._needed], self.neurons)

    @property
    def guessed(self) -> np.ndarray | None:
        """The guesses (T, L, N) bool; None where there are none."""
        if not all(self._guessed):
            return None
        return unpacked([np.concatenate(rows) for rows in self._guessed], self.neurons)


def record(model: Llama, ffn: FeedForward, pieces: Sequence[Run], doing: str = "counting") -> Recorder:
    """Pass the pieces of a text (``runs``) through the model with this FFN, and record which neurons each token needs.

    ffn: one that taps its mask, of whole neurons: ``SelectedFFN(select, guess=...)``. doing: the progress bar's text.
    """
    recorder = Recorder.of(model)
    pass_over(model, pieces, recorder, ffn, doing)
    return recorder


def frequencies(trace: np.ndarray) -> np.ndarray:
    """The share of tokens that need each neuron: (T, L, N) bool -> (L, N)."""
    return trace.mean(axis=0)
