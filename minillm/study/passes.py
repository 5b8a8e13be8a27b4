"""Texts through a model token by token, with a stopwatch on its FFNs.

A buffer sees tokens come one at a time, and so does a reader of bundles. So every token passes alone, those of the
prompt, too:

    scored       -ln p of each id after the first                      perplexity = exp(nll / tokens)
    continued    the likeliest next token is appended, ``new`` times   (greedy)

The Stopwatch stands around any FeedForward and counts the seconds inside it, without those of a preparation (dropping a
cache, say) that happens once before each pass. Two runs of the same texts are compared by the likeliest next tokens:

    agreement = share of positions where both have the same likeliest next token
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ..threads import with_few_threads
from ..trace import Tap, no_tap
from ..transformer.attention import KVCache
from ..transformer.ffn import FeedForward, swiglu
from ..transformer.layer import Layer
from ..transformer.model import Llama
from ..transformer.ops import log_softmax
from ..transformer.texts import Run


class Reading(NamedTuple):
    """The texts that pass through the model; new: tokens that each is continued by (0: the texts are scored)."""

    texts: Sequence[Run]
    new: int = 0


@with_few_threads
def one_by_one(
    model: Llama, ids: Sequence[int], new: int = 0, ffn: FeedForward = swiglu, tap: Tap = no_tap
) -> tuple[list[int], np.ndarray]:
    """Pass a text through the model token by token, and continue it greedily for ``new`` tokens.

    ->  the likeliest next token after each token (the last ``new`` of them continue the text), and -ln p of each id
    after the first (n - 1,), float64. Stops early at the end of a sequence.
    """
    ids, given = list(ids), len(ids)
    cache, guesses, nll = KVCache(model.config, given + new, model.dtype), [], []
    for t in range(given + new - 1):
        logits = model.forward(ids[t : t + 1], cache, ffn, tap)[0]  # (V,)
        guesses.append(int(logits.argmax()))
        if t + 1 < given:
            nll.append(-log_softmax(logits.astype(np.float64))[ids[t + 1]])
            continue
        ids.append(guesses[-1])
        if guesses[-1] in model.config.eos_token_ids:
            break
    return guesses, np.array(nll)


@dataclass
class Stopwatch:
    """A FeedForward around another one: it counts the tokens, and the seconds that the other one takes.

    before: called once per pass, before the first layer; its seconds are counted separately, in ``outside``.
    """

    ffn: FeedForward
    before: Callable[[], None] = lambda: None
    seconds: float = 0.0
    outside: float = 0.0
    tokens: int = 0

    def __call__(self, x: np.ndarray, layer: Layer, position: int = 0, tap: Tap = no_tap) -> np.ndarray:
        """x (T, D)  ->  y (T, D)."""
        started = time.perf_counter()
        if layer.index == 0:
            self.tokens += len(x)
            self.before()
            started, before = time.perf_counter(), started
            self.outside += started - before
        y = self.ffn(x, layer, position, tap)
        self.seconds += time.perf_counter() - started
        return y


@dataclass
class Result:
    """The result of the texts: the likeliest token after each one, nll and number of scored tokens, and all seconds."""

    guesses: list[list[int]]
    nll: float
    scored: int
    seconds: float

    def agreement(self, other: Result) -> float:
        """The share of the other result's guesses that are the same here, at the same position."""
        pairs = list(zip(self.guesses, other.guesses, strict=True))
        same = sum(a == b for mine, theirs in pairs for a, b in zip(mine, theirs, strict=False))
        return same / sum(len(theirs) for _, theirs in pairs)


@with_few_threads
def run_texts(model: Llama, reading: Reading, ffn: Callable[[int], FeedForward]) -> Result:
    """Run all texts, one after the other. With new tokens, guesses are these alone; else those of all positions.

    ffn(number of the text) -> the FeedForward for it.
    """
    result, started = Result([], 0.0, 0, 0.0), time.perf_counter()
    for number, text in enumerate(reading.texts):
        guesses, nll = one_by_one(model, text.ids, reading.new, ffn(number))
        result.guesses.append(guesses[len(text.ids) - 1 if reading.new else text.unscored - 1 :])
        if not reading.new:
            result.nll += float(nll[text.unscored - 1 :].sum())
            result.scored += max(0, len(nll) - (text.unscored - 1))
    result.seconds = time.perf_counter() - started
    return result


def cut_after(texts: Sequence[Run], tokens: int) -> list[Run]:
    """The first texts that together hold that number of scored tokens; the last one is cut."""
    kept: list[Run] = []
    for text in texts:
        if tokens > 0:
            kept.append(replace(text, ids=text.ids[: text.unscored + tokens]))
            tokens -= len(kept[-1].ids) - text.unscored
    return kept
