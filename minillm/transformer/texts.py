"""From texts to the runs of tokens that a model reads, under two stated protocols.

documents   the text is split at "<|endoftext|>" and each document stripped (documents.py); its ids are cut into runs of
            context - 1, each run gets a BOS in front and starts at position 0; every id is scored once; no EOS.
stream      separator lines become blank lines, the whole text is one sequence with one BOS, cut into windows of
            ``context`` that do not overlap; each window's first token is unscored and an incomplete last window is
            dropped (the released evaluation of arXiv 2412.12178, with windows of 2048).

Special tokens in the text are plain text. BOS is what the tokenizer adds, else the config's, else the EOS.

How much of a text is read is stated in tokens: ``first_tokens`` takes the first documents, and cuts a book.
"""

import warnings
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

import numpy as np

from ..arguments import whole_number
from ..errors import MinillmError
from ..loading.tokenizer import Tokenizer
from .documents import (
    CALIBRATION_SHARE,
    SEPARATOR,
    Part,
    as_documents,
    document_hashes,
    seen_documents,
    split_documents,
    split_text,
    without_separators,
)
from .model import Llama

__all__ = [  # those of documents.py, too: who works with texts finds all of it here
    "CALIBRATION_SHARE", "PROTOCOLS", "SEPARATOR", "Run", "Runs", "Sample", "as_documents", "bos_ids",
    "checked_context", "default_context", "document_hashes", "first_tokens", "runs", "seen_documents",
    "split_documents", "split_text",
]  # fmt: skip
PROTOCOLS = ("documents", "stream")
CUTS = 32  # places that are tried to cut a document at


def bos_ids(model: Llama) -> tuple[list[int], str]:
    """The ids in front of every run, and a few words that say where they come from."""
    if model.bos is not None:
        ids, why = list(model.bos), "as asked for"
        return ids, f"{' '.join(map(str, ids)) or 'none'}, {why}"
    if model.tokenizer.bos_ids:
        ids, why = list(model.tokenizer.bos_ids), "from the tokenizer"
    elif model.config.bos_token_id is not None:
        ids, why = [model.config.bos_token_id], "from the config"
    elif model.config.eos_token_ids:
        ids, why = [model.config.eos_token_ids[0]], "the EOS, since there is no BOS"
    else:
        raise MinillmError("neither tokenizer nor config.json name a BOS or EOS token, expected one to begin with")
    return ids, f"{' '.join(map(str, ids))} {why}"


def default_context(model: Llama) -> int:
    """The context where none is given: the model's longest text, but at most 2048 tokens."""
    return min(model.config.max_position_embeddings, 2048)


@dataclass(frozen=True)
class Run:
    """A piece of a text that goes through the model in one pass.

    ids: with the BOS. unscored: how many of the first ids are not scored. document: the index of the document it
    belongs to (``stream``: of the window). bytes: UTF-8 bytes of the scored ids.
    """

    ids: list[int]
    unscored: int
    document: int
    bytes: int


class Sample(NamedTuple):
    """A text and how it is read; ``perplexity(model, *sample)`` scores it, ``runs(model, *sample)`` cuts it.

    documents: one text with separator lines, or a list of documents. context None: ``default_context(model)``.
    """

    documents: str | Sequence[str]
    protocol: str = "documents"
    context: int | None = None


def first_runs(pieces: Sequence[Run], tokens: int) -> Sequence[Run]:
    """The first runs that hold so many tokens, or all of them."""
    ends = np.cumsum([len(run.ids) for run in pieces])
    return pieces[: int(np.searchsorted(ends, tokens)) + 1]


class Runs(Sequence[Run]):
    """The runs of a text. Held are the ids of the whole text, two or four bytes each; a Run is made when asked.

    ids (N,): of all runs in a row. pieces (R, 4): of each run the first of its ids, the last + 1, its document and its
    bytes. start: the BOS ids in front of each. unscored: of the ids of each run, ``start`` included.
    """

    def __init__(self, ids: np.ndarray, pieces: Sequence[tuple[int, int, int, int]], start: list[int], unscored: int):
        self._ids, self._pieces, self._start, self._unscored = ids, np.array(pieces), start, unscored

    def __len__(self) -> int:
        return len(self._pieces)

    @overload
    def __getitem__(self, index: int) -> Run: ...
    @overload
    def __getitem__(self, index: slice) -> list[Run]: ...
    def __getitem__(self, index: int | slice) -> Run | list[Run]:
        """A run, or a list of some."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        a, b, document, size = self._pieces[index].tolist()
        return Run(self._start + self._ids[a:b].tolist(), self._unscored, document, size)

    @property
    def scored(self) -> int:
        """The number of scored ids of all runs."""
        return int((self._pieces[:, 1] - self._pieces[:, 0]).sum()) - len(self) * (self._unscored - len(self._start))


def runs(model: Llama, documents: str | Sequence[str], protocol: str = "documents", context: int | None = None) -> Runs:
    """Cut texts into the runs of a protocol (module docstring).

    documents: a text with separators, or a list of documents. Raises MinillmError for an unknown protocol,
    a context that holds no token beside the BOS or exceeds the model's, and a text with nothing to score.
    """
    if protocol not in PROTOCOLS:
        raise MinillmError(f"protocol {protocol!r} is unknown, expected one of {', '.join(PROTOCOLS)}")
    start, context = bos_ids(model)[0], checked_context(model, context)
    if protocol == "documents":
        return _document_runs(model, as_documents(documents), start, context - len(start))
    return _stream_runs(model, documents, start, context)


def checked_context(model: Llama, context: int | None) -> int:
    """The context that is asked for, or the default. Raises MinillmError for one out of range."""
    context = default_context(model) if context is None else context
    limit = model.config.max_position_embeddings
    least = max(1, len(bos_ids(model)[0])) + 1  # a BOS and a token, or two tokens
    try:
        return whole_number("context", context, least, limit)
    except MinillmError as problem:
        raise MinillmError(f"{problem} (the model's max_position_embeddings)") from None


def _document_runs(model: Llama, documents: list[str], start: list[int], size: int) -> Runs:
    """Each document's ids in pieces of ``size``, each behind the BOS ids ``start``."""
    ids, pieces = _cut(model, documents, size, [], bool(start))
    if not len(ids):
        raise MinillmError("the text is empty: nothing to score")
    if not start:  # without a BOS the first token of a run is not scored, and one token alone is no run
        pieces = [piece for piece in pieces if piece[1] - piece[0] > 1]
        if not pieces:
            raise MinillmError("no document has two tokens: without a BOS there is nothing to score")
    return Runs(ids, pieces, start, max(1, len(start)))


def _stream_runs(model: Llama, documents: str | Sequence[str], start: list[int], context: int) -> Runs:
    """The whole text behind the BOS ids ``start``, in windows of ``context``; an incomplete last one is dropped."""
    text = without_separators(documents if isinstance(documents, str) else "\n\n".join(as_documents(documents)))
    ids, pieces = _cut(model, [text], context, start, False)
    if len(ids) < context:
        raise MinillmError(f"the text has {len(ids)} tokens, stream needs at least one window of {context}")
    windows = [(a, b, i, size) for i, (a, b, _, size) in enumerate(pieces[: len(ids) // context])]
    return Runs(ids, windows, [], 1)


def _cut(
    model: Llama, documents: Sequence[str], size: int, front: list[int], all_scored: bool
) -> tuple[np.ndarray, list[tuple[int, int, int, int]]]:
    """The ids of documents in a row, and the pieces of ``size`` that each is cut into, as ``Runs`` holds them.

    front: ids before each document. Unless all are scored, a piece's first id does not count for its bytes. A long text
    is never held token by token: its bytes are added up while it is encoded.
    """
    ids = array("H" if model.config.vocab_size <= 1 << 16 else "i")
    kind = np.dtype(ids.typecode)
    pieces: list[tuple[int, int, int, int]] = []
    for i, document in enumerate(documents):
        begin, done = len(ids), len(front)
        ids.extend(front)
        sums = [0] * -(-done // size)  # bytes of each piece
        for more, _, sizes in model.tokenizer.encode_in_pieces(document):
            ids.frombytes(more.astype(kind).tobytes())
            at = np.arange(done, done + len(more))  # places in the document
            scored = sizes if all_scored else np.where(at % size, sizes, 0)
            done += len(more)
            sums += [0] * (-(-done // size) - len(sums))
            for piece in np.unique(at // size):
                sums[piece] += int(scored[at // size == piece].sum())
        ends = [min(begin + (k + 1) * size, len(ids)) for k in range(len(sums))]
        pieces += [(begin + k * size, end, i, total) for k, (end, total) in enumerate(zip(ends, sums, strict=True))]
    return np.frombuffer(ids, kind), pieces


# ---- as many tokens as are asked for ---------------------------------------------------------------------------------


def first_tokens(model: Llama, documents: Sequence[str], tokens: int, context: int | None = None) -> list[str]:
    """The first documents, as many as are needed for ``tokens`` scored tokens; all, where they have fewer tokens.

    Documents are taken whole where that gives at most twice the tokens. A longer one, a book, is cut: the tokens are
    then as many as were asked for, or a few less, and a note says so. A text is encoded only as far as it is needed.
    """
    tokens = whole_number("tokens", tokens, 1)
    checked_context(model, context)
    kept: list[str] = []
    count = 0
    for i, document in enumerate(as_documents(documents)):
        found, size = _first_part(model.tokenizer, document, tokens - count, 2 * tokens - count)
        kept.append(found)
        count += size
        if found is not document and not isinstance(document, Part):
            warnings.warn(f"document {i + 1} of the text is long: its first {size:,} tokens are read", stacklevel=2)
        if count >= tokens or found is not document:
            break
    if not count:
        raise MinillmError("the text is empty: nothing to score")
    return kept


def _first_part(tokenizer: Tokenizer, document: str, wanted: int, most: int) -> tuple[str, int]:
    """A document and its number of tokens; where these are more than ``most``, its first ``wanted`` or a few less."""
    text = str(document)
    ids, ends = np.zeros(0, np.int32), np.zeros(0, np.int32)
    for more_ids, more_ends, _ in tokenizer.encode_in_pieces(text):
        ids, ends = np.concatenate([ids, more_ids]), np.concatenate([ends, more_ends])
        if len(ids) > most:
            break
    if len(ids) <= most:
        return document, len(ids)
    whole = np.flatnonzero(np.diff(ends)) + 1  # after so many tokens the last character is whole
    usual = whole[whole <= wanted][::-1][:CUTS]
    at_words = [k for k in usual if text[ends[k - 1]].isspace() and not text[ends[k - 1] - 1].isspace()]
    for k in [*at_words, *usual]:  # the part alone must have the same tokens: a word may be cut otherwise
        part = text[: ends[k - 1]]
        if part == part.strip() and np.array_equal(tokenizer.encode_with_bytes(part)[0], ids[:k]):
            return Part.beginning_of(document, part), int(k)
    k = int(usual[0]) if len(usual) else int(whole[0])  # one character may have more tokens than are wanted
    part = text[: ends[k - 1]].strip()
    return Part.beginning_of(document, part), len(tokenizer.encode_with_bytes(part)[0])
