"""TODO."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import MinillmError
from ..transformer.evaluation import pass_over
from ..transformer.ffn import FeedForward
from ..transformer.model import Llama, shape_of
from ..transformer.texts import Run
from .feedforward import Asked, check_role
from .traffic import unpacked


class Recorder:
    """A tap that writes down what a sparse FFN needs and what was guessed, eight neurons to a byte.

    role: what the mask is for (feedforward.py); in the role "prefetch" the model goes on with the true masks. Works for
    ``generate``, ``perplexity`` and any pass; several texts are joined.
    """

    def __init__(self, layers: int, neurons: int, role: str = "select"):
        self.neurons = neurons
        self._asked = [Asked(role) for _ in range(layers)]
        self._needed: list[list[np.ndarray]] = [[] for _ in range(layers)]
        self._guessed: list[list[np.ndarray]] = [[] for _ in range(layers)]

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        parts = name.split(".")  # blocks.3.mlp.mask
        if len(parts) != 4 or parts[2:] not in (["mlp", "mask"], ["mlp", "mask_true"]):
            return value
        index = int(parts[1])
        asked = self._asked[index]
        value = asked(parts[3], value)
        if parts[3] == "mask":
            self._needed[index].append(np.packbits(asked.needed, axis=1))
            if asked.guessed is not None:
                self._guessed[index].append(np.packbits(asked.guessed, axis=1))
        return value

    @property
    def needed(self) -> np.ndarray:
        """The trace (T, L, N) bool. Raises MinillmError where no mask was seen."""
        if not all(self._needed):
            raise MinillmError("no mask was seen, expected a pass with a sparse FFN")
        return unpacked([np.concatenate(rows) for rows in self._needed], self.neurons)

    @property
    def guessed(self) -> np.ndarray | None:
        """The guesses (T, L, N) bool; None where there are none."""
        if not all(self._guessed):
            return None
        return unpacked([np.concatenate(rows) for rows in self._guessed], self.neurons)


def recorder_for(model: Llama, ffn: FeedForward, role: str = "select") -> Recorder:
    """A recorder of this model's shape. Raises MinillmError for a sparse FFN that does not cut whole neurons."""
    check_role(ffn, role)
    layers, _, neurons = shape_of(model)
    return Recorder(layers, neurons, role)


def record(
    model: Llama, ffn: FeedForward, pieces: Sequence[Run], role: str = "select", doing: str = "counting"
) -> Recorder:
    """Pass the pieces of a text (``runs``) through the model with this FFN, and write down what each token needs.

    doing: what the progress bar says. Raises MinillmError as ``recorder_for`` does.
    """
    recorder = recorder_for(model, ffn, role)
    pass_over(model, pieces, recorder, ffn, doing)
    return recorder


def frequencies(trace: np.ndarray) -> np.ndarray:
    """How often each neuron was needed: (T, L, N) bool -> (L, N)."""
    return trace.mean(axis=0)
