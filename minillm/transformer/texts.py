"""Texts: their documents, and the runs of tokens that a model reads, under two stated protocols.

documents   the text is split at lines "<|endoftext|>" and each document stripped; its ids are cut into runs of
            context - 1, each run gets a BOS in front and starts at position 0; every id is scored once; no EOS.
stream      separator lines become blank lines, the whole text is one sequence with one BOS, cut into windows of
            ``context`` that do not overlap; each window's first token is unscored and an incomplete last window is
            dropped (the released evaluation of arXiv 2412.12178, with windows of 2048).

Special tokens in the text are plain text. BOS is what the tokenizer adds, else the config's, else the EOS.

A threshold or a predictor must not be tested on the documents that it was made from: ``split_text`` gives two parts
without a common document, ``document_hashes`` shows whether two texts have one.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import MinillmError
from .model import Llama

SEPARATOR = "<|endoftext|>"
PROTOCOLS = ("documents", "stream")


def split_documents(text: str) -> list[str]:
    """The documents of a text: split at lines that hold nothing but the separator, stripped, empty ones dropped."""
    documents: list[str] = []
    lines: list[str] = []
    for line in [*text.splitlines(keepends=True), SEPARATOR]:
        if line.strip() == SEPARATOR:
            if document := "".join(lines).strip():
                documents.append(document)
            lines = []
        else:
            lines.append(line)
    return documents


def as_documents(documents: str | Sequence[str]) -> list[str]:
    """A list of stripped documents, from one text with separator lines or from a list of documents."""
    return split_documents(documents) if isinstance(documents, str) else [document.strip() for document in documents]


def document_hashes(documents: str | Sequence[str]) -> list[str]:
    """SHA-256 of each document's UTF-8 bytes, so that a text used twice is noticed."""
    texts = (document.encode("utf-8", "surrogatepass") for document in as_documents(documents))
    return [hashlib.sha256(text).hexdigest() for text in texts]


def bos_ids(model: Llama) -> tuple[list[int], str]:
    """The ids in front of every run, and a few words that say where they come from."""
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


def runs(
    model: Llama, documents: str | Sequence[str], protocol: str = "documents", context: int | None = None
) -> list[Run]:
    """Cut texts into the runs of a protocol (module docstring).

    documents: a text with separator lines, or a list of documents. Raises MinillmError for an unknown protocol,
    a context that holds no token beside the BOS or exceeds the model's, and a text with nothing to score.
    """
    context = default_context(model) if context is None else context
    if protocol not in PROTOCOLS:
        raise MinillmError(f"protocol {protocol!r} is unknown, expected one of {', '.join(PROTOCOLS)}")
    start, _ = bos_ids(model)
    limit = model.config.max_position_embeddings
    if not len(start) < context <= limit:
        expected = f"expected {len(start) + 1} to {limit} (the model's max_position_embeddings)"
        raise MinillmError(f"context is {context}, {expected}")
    if protocol == "documents":
        return _document_runs(model, as_documents(documents), start, context - len(start))
    return _stream_runs(model, documents, start, context)


def _document_runs(model: Llama, documents: list[str], start: list[int], size: int) -> list[Run]:
    """Each document's ids in pieces of ``size``, each behind the BOS ids ``start``."""
    pieces = []
    for i, document in enumerate(documents):
        ids, sizes = model.tokenizer.encode_with_bytes(document)
        for a in range(0, len(ids), size):
            pieces.append(Run(start + ids[a : a + size], len(start), i, sum(sizes[a : a + size])))
    if not pieces:
        raise MinillmError("the text is empty: nothing to score")
    return pieces


def _stream_runs(model: Llama, documents: str | Sequence[str], start: list[int], context: int) -> list[Run]:
    """The whole text behind the BOS ids ``start``, in windows of ``context``; an incomplete last one is dropped."""
    if isinstance(documents, str):
        lines = documents.splitlines(keepends=True)
        text = "".join("\n" if line.strip() == SEPARATOR else line for line in lines)
    else:
        text = "\n\n".join(documents)
    ids, sizes = model.tokenizer.encode_with_bytes(text)
    ids, sizes = start + ids, [0] * len(start) + sizes
    windows = [slice(i, i + context) for i in range(0, len(ids) - context + 1, context)]
    if not windows:
        raise MinillmError(f"the text has {len(ids)} tokens, stream needs at least one window of {context}")
    return [Run(ids[window], 1, i, sum(sizes[window][1:])) for i, window in enumerate(windows)]


CALIBRATION_SHARE = 0.4  # of the documents, where no text is given for calibration


def split_text(documents: str | Sequence[str], share: float = CALIBRATION_SHARE) -> tuple[list[str], list[str]]:
    """Calibration documents and test documents: the first ``share`` of them, and the rest.

    A text that is one single document is cut at the line end nearest to that share of its characters.
    Raises MinillmError when either part would be empty.
    """
    texts = as_documents(documents)
    if len(texts) == 1:
        text, at = texts[0], int(len(texts[0]) * share)
        ends = [i for i in (text.rfind("\n", 0, at), text.find("\n", at)) if i >= 0]
        cut = min(ends, key=lambda i: abs(i - at), default=at)
        texts = [part for part in (text[:cut].strip(), text[cut:].strip()) if part]
        parts = texts[:1], texts[1:]
    else:
        count = min(max(round(len(texts) * share), 1), len(texts) - 1)
        parts = texts[:count], texts[count:]
    if not parts[0] or not parts[1]:
        raise MinillmError(
            f"the text holds {len(texts)} document(s), too few to calibrate on one part and score another"
        )
    return parts


def first_tokens(model: Llama, documents: Sequence[str], tokens: int, context: int | None = None) -> list[str]:
    """The first documents, as many as are needed for ``tokens`` scored tokens; all, where they have fewer tokens."""
    scored, last = 0, 0
    for run in runs(model, documents, "documents", context):
        if scored >= tokens and run.document != last:
            break
        scored, last = scored + len(run.ids) - run.unscored, run.document
    return list(documents[: last + 1])
