"""Batches of training text: whole documents, as many as make up a number of tokens.

A document becomes BOS, its ids, EOS; one that is longer than the context is cut into pieces, each behind a BOS, as the
protocol "documents" cuts it (transformer/texts.py). A batch is a list of such texts drawn by chance, of which the last
one is cut to fit. Each text is a pass of its own, and the gradients of the passes are added. So no token attends to
another document, no position is padded, and attention, whose cost grows with the square of a length, stays cheap.

What a batch holds depends on the seed and the number of the step alone. So a training that was interrupted goes on with
the batches that it would have had.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..arguments import whole_number
from ..transformer.model import Llama
from ..transformer.texts import document_hashes, runs

BATCH = 1024  # tokens


@dataclass(frozen=True, eq=False)
class Batches:
    """The training text and how it is drawn from.

    texts: ids, each array (n,) with n >= 2: all but the last are inputs, all but the first are targets. tokens: targets
    of a batch. seed: of the draws. documents_sha256: of the documents that the texts are from.
    """

    texts: Sequence[np.ndarray]
    tokens: int = BATCH
    seed: int = 0
    documents_sha256: frozenset[str] = frozenset()

    def of_step(self, step: int) -> list[np.ndarray]:
        """The texts of one step, from 0 on."""
        rng, left, drawn = np.random.default_rng([self.seed, step]), self.tokens, []
        while left > 0:
            text = self.texts[int(rng.integers(len(self.texts)))][: left + 1]
            drawn.append(text)
            left -= len(text) - 1
        return drawn

    @property
    def digest(self) -> str:
        """A hash of all that decides the batches."""
        found = hashlib.sha256(f"{self.tokens} {self.seed} {[len(text) for text in self.texts]}".encode())
        for text in self.texts:
            found.update(text.astype("<i4").tobytes())
        return found.hexdigest()


def batches_of(
    model: Llama, documents: str | Sequence[str], tokens: int = BATCH, seed: int = 0, context: int | None = None
) -> Batches:
    """The batches of a text for a model (module docstring).

    context: the longest text in tokens; None: the model's, at most 2048. Raises MinillmError for numbers out of range
    and for a text with nothing to learn from.
    """
    tokens, seed = whole_number("batch", tokens, 1), whole_number("seed", seed, 0)
    pieces = runs(model, documents, "documents", context)
    eos, texts = list(model.config.eos_token_ids[:1]), []
    for i, run in enumerate(pieces):
        ends = i + 1 == len(pieces) or pieces[i + 1].document != run.document
        texts.append(np.array(run.ids + eos if ends else run.ids, np.int32))
    return Batches(texts, tokens, seed, frozenset(document_hashes(documents)))
