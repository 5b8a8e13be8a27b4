"""TODO."""

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
    """One text with separator lines, or a list of documents, as a list of stripped documents."""
    return split_documents(documents) if isinstance(documents, str) else [document.strip() for document in documents]


def document_hashes(documents: str | Sequence[str]) -> list[str]:
    """SHA-256 of each document's UTF-8 bytes, so that a text used twice is noticed."""
    texts = (document.encode("utf-8", "surrogatepass") for document in as_documents(documents))
    return [hashlib.sha256(text).hexdigest() for text in texts]


def bos_ids(model: Llama) -> tuple[list[int], str]:
    """The ids that stand in front of every run, and where they come from, in words."""
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
    """The smaller of the model's longest text and 2048."""
    return min(model.config.max_position_embeddings, 2048)


@dataclass(frozen=True)
class Run:
    """A piece that goes through the model at once: ids (the first ones unscored), and the document it belongs to."""

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
    """Cut texts into what the model reads at once, as the protocol says (module docstring).

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
    found = []
    if protocol == "documents":
        size = context - len(start)
        for i, document in enumerate(as_documents(documents)):
            ids, sizes = model.tokenizer.encode_with_bytes(document)
            for a in range(0, len(ids), size):
                found.append(Run(start + ids[a : a + size], len(start), i, sum(sizes[a : a + size])))
        if not found:
            raise MinillmError("the text is empty: nothing to score")
    else:
        if isinstance(documents, str):
            lines = documents.splitlines(keepends=True)
            text = "".join("\n" if line.strip() == SEPARATOR else line for line in lines)
        else:
            text = "\n\n".join(documents)
        ids, sizes = model.tokenizer.encode_with_bytes(text)
        ids, sizes = start + ids, [0] * len(start) + sizes
        for i in range(len(ids) // context):
            window = slice(i * context, (i + 1) * context)
            found.append(Run(ids[window], 1, i, sum(sizes[window][1:])))
        if not found:
            raise MinillmError(f"the text has {len(ids)} tokens, stream needs at least one window of {context}")
    return found


CALIBRATION_SHARE = 0.4


def split_text(documents: str | Sequence[str], share: float = CALIBRATION_SHARE) -> tuple[list[str], list[str]]:
    """Calibration documents and test documents: the first ``share`` of them, and the rest.

    A text that is one single document is cut at the line end nearest to that share of its characters.
    Raises MinillmError when either part would be empty.
    """
    found = as_documents(documents)
    if len(found) == 1:
        text, at = found[0], int(len(found[0]) * share)
        ends = [i for i in (text.rfind("\n", 0, at), text.find("\n", at)) if i >= 0]
        cut = min(ends, key=lambda i: abs(i - at), default=at)
        found = [part for part in (text[:cut].strip(), text[cut:].strip()) if part]
        parts = found[:1], found[1:]
    else:
        count = min(max(round(len(found) * share), 1), len(found) - 1)
        parts = found[:count], found[count:]
    if not parts[0] or not parts[1]:
        raise MinillmError(
            f"the text holds {len(found)} document(s), too few to calibrate on one part and score another"
        )
    return parts


def first_tokens(model: Llama, documents: Sequence[str], tokens: int, context: int | None = None) -> list[str]:
    """As many of the first documents as hold at least ``tokens`` scored tokens (all of them, where they hold fewer)."""
    scored, last = 0, 0
    for run in runs(model, documents, "documents", context):
        if scored >= tokens and run.document != last:
            break
        scored, last = scored + len(run.ids) - run.unscored, run.document
    return list(documents[: last + 1])
