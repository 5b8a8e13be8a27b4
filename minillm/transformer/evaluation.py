"""How well a model predicts a text: perplexity and bits per byte.

    nll = - sum_t ln p(token_t | tokens before it)            in nats, over all scored tokens
    perplexity = exp(nll / tokens)                            depends on the tokenizer
    bits per byte = nll / ln 2 / bytes                        comparable between tokenizers

A number without its protocol means nothing: how much context each token had decides it as much as the model does. The
two protocols, "documents" and "stream", are in texts.py.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import MinillmError
from ..threads import with_few_threads
from ..trace import Tap, no_tap
from .attention import KVCache
from .ffn import FeedForward, swiglu
from .finite import are_numbers, report
from .generation import CHUNK, hidden_in_chunks
from .linear import linear
from .model import Llama
from .ops import log_probability, log_softmax, no_warnings
from .texts import Run, bos_ids, checked_context, runs, seen_documents

LARGEST_MEAN = 709  # nats per token; the exponential of more is no finite float64
HEAD_ROWS = 256  # positions whose logits are held at once; with V = 32000 that is 32 MB instead of (T, V)


@dataclass(frozen=True)
class Evaluation:
    """The score of a text. nll: in nats. tokens, bytes (UTF-8): those scored. bos: the BOS ids and their origin.

    document_nll, document_tokens: nll and tokens of each document (``stream``: of each window), for intervals over
    documents.
    """

    protocol: str
    context: int
    bos: str
    nll: float
    tokens: int
    bytes: int
    document_nll: np.ndarray
    document_tokens: np.ndarray

    @property
    def perplexity(self) -> float:
        """exp(nll / tokens); a uniform model over V tokens has exactly V. (Infinity where no float is as large.)"""
        mean = self.nll / self.tokens
        return math.exp(mean) if mean < LARGEST_MEAN else math.inf

    @property
    def bits_per_byte(self) -> float:
        """nll / ln 2 / bytes."""
        return self.nll / math.log(2) / self.bytes

    def __str__(self) -> str:
        return (
            f"perplexity {self.perplexity:.4f}, {self.bits_per_byte:.4f} bits/byte over {self.tokens:,} tokens, "
            f"{self.bytes:,} bytes (protocol {self.protocol}, context {self.context}, BOS {self.bos})"
        )


def run_hidden(model: Llama, ids: Sequence[int], ffn: FeedForward = swiglu, tap: Tap = no_tap) -> Iterator[np.ndarray]:
    """The values of final_norm for a run, in one pass or, when it is long, in chunks; yields (<= CHUNK, D)."""
    if len(ids) <= CHUNK:
        yield model.hidden(ids, None, ffn, tap)
    else:
        yield from hidden_in_chunks(model, ids, KVCache(model.config, len(ids), model.dtype), ffn, tap)


@with_few_threads
def pass_over(model: Llama, pieces: Sequence[Run], tap: Tap, ffn: FeedForward = swiglu, what: str = "reading") -> None:
    """Run texts through the model, only for its tap; a progress bar named ``what`` appears after two seconds."""
    from tqdm.auto import tqdm

    for run in tqdm(pieces, desc=what, unit="run", leave=False, delay=2, disable=None):
        for _ in run_hidden(model, run.ids, ffn, tap):
            pass


@with_few_threads
@no_warnings
def token_nll(model: Llama, ids: Sequence[int], ffn: FeedForward = swiglu, tap: Tap = no_tap) -> np.ndarray:
    """- ln p(ids[t + 1] | ids[.. t]) for each t, with the head computed a few rows at a time.

        -ln p = ln sum_j exp(z_j - max z) - (z_target - max z)

    ids (n,)  ->  (n - 1,) float64, so that sums over a whole text keep every digit. Raises MinillmError for values
    that are no numbers.
    """
    targets = np.asarray(ids)[1:]
    nll, done = np.empty(len(targets)), 0
    for hidden in run_hidden(model, ids[:-1], ffn, tap):  # the last id is only a target
        for start in range(0, len(hidden), HEAD_ROWS):
            logits = linear(hidden[start : start + HEAD_ROWS], model.lm_head)  # (rows, V)
            rows = len(logits)
            nll[done : done + rows] = -log_probability(logits, targets[done : done + rows], out=logits)
            done += rows
            del logits  # or it would still be held while the next block is made
    if not are_numbers(nll):
        report("logits holds values that are no numbers", model.dtype, no_tap)
    return nll


@with_few_threads
def perplexity(
    model: Llama, documents: str | Sequence[str], protocol: str = "documents", context: int | None = None,
    ffn: FeedForward = swiglu, tap: Tap = no_tap,
) -> Evaluation:  # fmt: skip
    """Score texts under one of the two protocols (texts.py); a progress bar appears after two seconds.

    documents: one text with separator lines, or a list of documents. A sparse FFN that was calibrated on one of them
    gives a warning, as the score would look too good. Raises MinillmError where nothing can be scored, and for values
    that are no numbers.
    """
    from tqdm.auto import tqdm

    seen: frozenset[str] = getattr(ffn, "calibrated_on", frozenset())
    if seen and (mixed := seen_documents(documents, seen)):
        warning = "of the documents scored are among those the thresholds were calibrated on"
        warnings.warn(f"{mixed} {warning}", stacklevel=2)
    context = checked_context(model, context)
    pieces = runs(model, documents, protocol, context)
    nll, tokens = (np.zeros(pieces[-1].document + 1) for _ in range(2))
    for run in tqdm(pieces, desc="scoring", unit="run", leave=False, delay=2, disable=None):
        scores = token_nll(model, run.ids, ffn, tap)[run.unscored - 1 :]
        nll[run.document] += scores.sum()
        tokens[run.document] += len(scores)
    if (mean := nll.sum() / tokens.sum()) >= LARGEST_MEAN:
        found = f"the text has {mean:.4g} nats per token, so that its perplexity is no number"
        raise MinillmError(f"{found}, expected less than {LARGEST_MEAN}: logits reach too large values")
    total = (float(nll.sum()), int(tokens.sum()), sum(run.bytes for run in pieces))
    return Evaluation(protocol, context, bos_ids(model)[1], *total, nll, tokens.astype(int))


@with_few_threads
@no_warnings
def divergence(
    model: Llama, documents: str | Sequence[str], ffn: FeedForward, protocol: str = "documents",
    context: int | None = None,
) -> tuple[float, float]:  # fmt: skip
    """How far a cut model is from the dense one on the same texts, token by token.

        KL = mean_t sum_j p_j ln(p_j / q_j)        p dense, q cut, in nats
        agreement = share of positions where both have the same likeliest token

    ->  (KL, agreement).
    """
    from tqdm.auto import tqdm

    def states() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        pieces = runs(model, documents, protocol, context)
        for run in tqdm(pieces, desc="comparing", leave=False, delay=2, disable=None):
            ids = run.ids[:-1]
            yield from zip(run_hidden(model, ids), run_hidden(model, ids, ffn), strict=True)

    return divergence_of(model, states())


@with_few_threads
@no_warnings
def divergence_of(model: Llama, states: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """The two figures of ``divergence`` from values of final_norm, (T, D) of the dense model and (T, D) of the cut."""
    total, same, count = 0.0, 0, 0
    for dense, cut in states:
        for a in range(0, len(dense), HEAD_ROWS):
            log_p, log_q = (log_softmax(linear(h[a : a + HEAD_ROWS], model.lm_head)) for h in (dense, cut))  # (rows, V)
            total += float((np.exp(log_p) * (log_p - log_q)).sum(dtype=np.float64))
            same += int((log_p.argmax(axis=-1) == log_q.argmax(axis=-1)).sum())
            count += len(log_p)
    if not math.isfinite(total):
        report("logits holds values that are no numbers", model.dtype, no_tap)
    return total / count, same / count
