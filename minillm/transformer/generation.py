"""From logits to text, one token at a time.

Prefill: the prompt goes through the model in chunks and fills the cache. Decode: each new token goes through alone.
Both give the logits of a single full pass, because a key or value never depends on what comes after it.

How the next token is chosen from p = softmax(logits / temperature), in this order (transformers' order):

    temperature 0    the largest logit (greedy)
    top_k            only the k likeliest tokens
    top_p            only the likeliest tokens whose mass reaches p (Holtzman et al. 2019, arXiv 1904.09751)
    min_p            only tokens at least min_p times as likely as the likeliest (Nguyen et al. 2024, arXiv 2407.01082)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..arguments import real_number, whole_number
from ..errors import MinillmError
from ..threads import few_threads
from ..trace import Tap, no_tap
from .attention import KVCache
from .ffn import FeedForward, swiglu
from .model import Llama
from .ops import log_probability, no_warnings, softmax

CHUNK = 256  # positions per pass while a prompt or a long text is read: bounds the (H, T, S) scores


class Step(NamedTuple):
    """One generated token.

    text: what it adds to the printed text; "" while a character is incomplete. logprob: its log-probability in nats
    under the model itself, before temperature and cuts. position: where it stands, counted from 0 with the prompt.
    """

    token: int
    text: str
    logprob: float
    position: int


def hidden_in_chunks(
    model: Llama, ids: Sequence[int], cache: KVCache, ffn: FeedForward = swiglu, tap: Tap = no_tap, chunk: int = CHUNK
) -> Iterator[np.ndarray]:
    """Pass a long text through the model a chunk at a time; yields final_norm of each, (<= chunk, D)."""
    for start in range(0, len(ids), chunk):
        yield model.hidden(ids[start : start + chunk], cache, ffn, tap)


def next_probabilities(
    logits: np.ndarray, temperature: float = 1.0,
    top_k: int | None = None, top_p: float | None = None, min_p: float | None = None,
) -> np.ndarray:  # fmt: skip
    """The distribution that the next token is drawn from (module docstring).

    logits (V,)  ->  probabilities (V,), float64 (they are added up to draw from them).
    """
    z = logits.astype(np.float64)
    with np.errstate(over="ignore"):  # the likeliest stays at 0, so that even a tiny temperature gives no inf - inf
        p = softmax((z - z.max()) / temperature)
    if top_k is not None and top_k < len(p):
        p[p < np.partition(p, -top_k)[-top_k]] = 0
        p /= p.sum()
    if top_p is not None and top_p < 1:
        order = np.argsort(-p, kind="stable")
        mass_before = np.cumsum(p[order]) - p[order]
        p[order[mass_before >= top_p]] = 0  # the likeliest token has no mass before it and always stays
        p /= p.sum()
    if min_p is not None:
        p[p < min_p * p.max()] = 0
        p /= p.sum()
    return p


class Sampling(NamedTuple):
    """How the next token is chosen: the settings of the module docstring, checked."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    @classmethod
    def checked(cls, temperature: object, top_k: object, top_p: object, min_p: object) -> Sampling:
        """Settings as Python's numbers. Raises MinillmError for one out of its range."""
        return cls(
            real_number("temperature", temperature, lambda t: 0 <= t < np.inf, "a number >= 0 (0 is greedy)"),
            None if top_k is None else whole_number("top_k", top_k, 1),
            None if top_p is None else real_number("top_p", top_p, lambda p: 0 < p <= 1, "a number > 0 and <= 1"),
            None if min_p is None else real_number("min_p", min_p, lambda p: 0 <= p <= 1, "a number from 0 to 1"),
        )


def next_token(logits: np.ndarray, how: Sampling, rng: np.random.Generator | None) -> int:
    """The token chosen from logits (V,): the likeliest at temperature 0 or without ``rng``, else one drawn with it."""
    if how.temperature == 0 or rng is None:
        return int(logits.argmax())
    cumulative = np.cumsum(next_probabilities(logits, *how))
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))


def generate(
    model: Llama,
    ids: Sequence[int],
    max_new_tokens: int = 100,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    rng: np.random.Generator | None = None,
    stop_at_eos: bool = True,
    ffn: FeedForward = swiglu,
    tap: Tap = no_tap,
) -> Iterator[Step]:
    """Continue a text; yields a Step per new token, the end-of-sequence token (if it comes) included.

    ids: the prompt, with the BOS that ``model.tokenizer.encode`` adds. Greedy by default; temperature > 0 draws
    from ``rng``. Raises MinillmError, before the first token, when prompt and new tokens exceed the model's
    context or a setting is out of range.
    """
    ids = model.check_ids(ids).tolist()
    how = Sampling.checked(temperature, top_k, top_p, min_p)
    max_new_tokens = whole_number("max_new_tokens", max_new_tokens, 1)
    limit = model.config.max_position_embeddings
    if len(ids) + max_new_tokens > limit:
        found = f"the prompt has {len(ids)} tokens and {max_new_tokens} more were asked for"
        advice = f"ask for at most {max(0, limit - len(ids))}, or shorten the prompt"
        raise MinillmError(f"{found}, the model's context holds {limit}: {advice}")
    if how.temperature > 0 and rng is None:
        raise MinillmError("temperature > 0 draws at random: pass rng=np.random.default_rng(seed)")

    @no_warnings
    def following(new: Sequence[int], cache: KVCache) -> tuple[int, float]:  # the next token and its logprob
        with few_threads(model):  # left before the token is given out: the caller may never ask for another one
            *_, hidden = hidden_in_chunks(model, new, cache, ffn, tap)  # only the last chunk's last row is wanted
            logits = model.head(hidden[-1:], tap)[0]  # (V,)
        token = next_token(logits, how, rng)
        return token, float(log_probability(logits, token))

    def steps() -> Iterator[Step]:  # a generator of its own, so that the checks above do not wait for the first step
        cache = KVCache(model.config, len(ids) + max_new_tokens, model.dtype)
        stream = model.tokenizer.stream(ids) if model.has_tokenizer else None
        new = ids
        for position in range(len(ids), len(ids) + max_new_tokens):
            token, logprob = following(new, cache)
            last = position == len(ids) + max_new_tokens - 1 or (stop_at_eos and token in model.config.eos_token_ids)
            text = "" if stream is None else stream.push(token) + (stream.flush() if last else "")
            yield Step(token, text, logprob, position)
            if last:
                return
            new = [token]

    return steps()
