"""The documents of a text: where they end, what they are called by, and two parts of one text.

A text is split at "<|endoftext|>". A separator belongs on a line of its own; one inside a line ends a document, too,
and a note says so. Each document is stripped of surrounding white space.

A threshold or a predictor must not be tested on the documents that it was made from: ``split_text`` gives two parts
without a common document, ``document_hashes`` and ``seen_documents`` show whether two texts have one. A document that
is cut is a ``Part``: it knows what it was cut from.
"""

import hashlib
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence

from ..arguments import real_number
from ..errors import MinillmError

SEPARATOR = "<|endoftext|>"
CALIBRATION_SHARE = 0.4  # of the documents, where no text is given for calibration
# Where a text of one document may be cut in two, the best first: blank lines, line ends, sentences, words.
ENDS = (r"\n\s*\n", r"\n", r"[.!?]['\")]?\s|[\u3002\uff01\uff1f]", r"\s")


class Part(str):
    """A part of a document. It remembers the whole one, so that a text used twice is noticed, cut or not.

    digest: the hash that stands for it. whole: the hashes of what it was cut from.
    """

    digest: str
    whole: frozenset[str]

    @classmethod
    def beginning_of(cls, document: str, text: str) -> "Part":
        """The first tokens of a document: they stand for the document itself."""
        part = cls(text)
        part.digest, part.whole = digest_of(document), getattr(document, "whole", frozenset())
        return part

    @classmethod
    def of(cls, document: str, text: str) -> "Part":
        """One of several parts that have nothing in common: each has a hash of its own."""
        part = cls(text)
        part.digest, part.whole = digest_of(text), getattr(document, "whole", frozenset()) | {digest_of(document)}
        return part


def split_documents(text: str) -> list[str]:
    """The documents of a text: split at every separator, stripped (of byte order marks, too), empty ones dropped.

    A separator that does not stand on a line of its own gives a note (``warnings``) with their number.
    """
    return [document for document in map(stripped, _parts(text)) if document]


def _parts(text: str) -> list[str]:
    """A text split at its separators, and the note."""
    parts = text.split(SEPARATOR)
    if inside := sum(not alone for alone in _alone(parts)):
        found = f"{inside} of {len(parts) - 1} separators {SEPARATOR}"
        warnings.warn(f"{found} stand inside a line or at its end: each ends a document all the same", stacklevel=1)
    return parts


def stripped(document: str) -> str:
    """A document without surrounding white space and byte order marks; a Part stays one."""
    return document if isinstance(document, Part) else document.strip().strip("\ufeff").strip()


def _alone(parts: Sequence[str]) -> Iterator[bool]:
    """For each separator between the parts of a text: whether it stands on a line of its own."""
    for i, (before, after) in enumerate(zip(parts, parts[1:], strict=False)):
        left, right = before[len(before.rstrip()) :], after[: len(after) - len(after.lstrip())]
        begins = left == before and i == 0  # at the start of the text
        ends = right == after and i == len(parts) - 2
        yield (begins or _breaks(left)) and (ends or _breaks(right))


def _breaks(space: str) -> bool:
    """Whether white space holds a line end."""
    return len(f"{space}x".splitlines()) > 1


def as_documents(documents: str | Iterable[str]) -> list[str]:
    """A list of stripped documents, from one text with separators or from a list of documents.

    A document of a list that holds a separator is split, too.
    """
    if isinstance(documents, str) and not isinstance(documents, Part):
        return split_documents(documents)
    found: list[str] = []
    if isinstance(documents, bytes) or not isinstance(documents, Iterable):
        raise MinillmError(f"the documents are of type {type(documents).__name__}, expected a text or a list of texts")
    for document in [documents] if isinstance(documents, str) else documents:
        if not isinstance(document, str):
            raise MinillmError(f"a document is of type {type(document).__name__}, expected str")
        found += split_documents(document) if SEPARATOR in document else [stripped(document)]
    return found


def digest_of(document: str) -> str:
    """SHA-256 of a document's UTF-8 bytes, stripped; of a Part the hash that stands for it."""
    if isinstance(document, Part):
        return document.digest
    return hashlib.sha256(stripped(document).encode("utf-8", "surrogatepass")).hexdigest()


def document_hashes(documents: str | Iterable[str]) -> list[str]:
    """The hash of each document, so that a text used twice is noticed."""
    return [digest_of(document) for document in as_documents(documents)]


def seen_documents(documents: str | Iterable[str], seen: Collection[str]) -> int:
    """The number of documents whose hash, or that of a document they were cut from, is among those seen."""
    return sum(
        not {digest_of(document), *getattr(document, "whole", ())}.isdisjoint(seen)
        for document in as_documents(documents)
    )


# ---- one text without separators -------------------------------------------------------------------------------------


def without_separators(text: str) -> str:
    """A text with a blank line in place of each separator; what stands on its line gets a line of its own."""
    parts = _parts(text.lstrip("\ufeff"))
    for i in range(len(parts) - 1):
        parts[i], parts[i + 1] = _before_separator(parts[i]), _after_separator(parts[i + 1])
    return "\n".join(parts)


def _before_separator(text: str) -> str:
    """A text up to the start of the line that follows it; that line may have been begun with white space."""
    bare = text.rstrip()
    *lines, rest = f"{text[len(bare) :]}x".splitlines(keepends=True)
    return text[: len(text) - len(rest) + 1] if lines or not bare else f"{bare}\n"


def _after_separator(text: str) -> str:
    """A text without the rest of the line that it begins with, which is white space; or without white space alone."""
    bare = text.lstrip()
    line, *lines = f"{text[: len(text) - len(bare)]}x".splitlines(keepends=True)
    return text[len(line) :] if lines else bare


# ---- two parts of one text -------------------------------------------------------------------------------------------


def split_text(documents: str | Iterable[str], share: float = CALIBRATION_SHARE) -> tuple[list[str], list[str]]:
    """Calibration documents and test documents: the first ``share`` of them, and the rest.

    A document that stands several times in the text is in one part only, with all its copies.
    A text that is one single document, a book, is cut in two near that share of its characters, where a paragraph, a
    line, a sentence or at least a word ends; a note says so. Raises MinillmError when either part would be empty.
    """
    share = real_number("share", share, lambda x: 0 < x < 1, "a number between 0 and 1")
    texts = as_documents(documents)
    parts: tuple[list[str], list[str]]
    different = list(dict.fromkeys(texts))
    if len(different) == 1:
        at = place_to_cut(texts[0], share)
        halves = [half for half in (texts[0][:at].strip(), texts[0][at:].strip()) if half]
        parts = [Part.of(texts[0], half) for half in halves[:1]], [Part.of(texts[0], half) for half in halves[1:]]
        if len(halves) == 2 and not isinstance(texts[0], Part):
            warnings.warn(f"the text is one document: it is cut in two after {at:,} of {len(texts[0]):,} characters",
                          stacklevel=2)  # fmt: skip
    else:
        count = min(max(round(len(different) * share), 1), len(different) - 1)
        first = set(different[:count])
        parts = [text for text in texts if text in first], [text for text in texts if text not in first]
    if not parts[0] or not parts[1]:
        raise MinillmError(
            f"the text holds {len(texts)} document(s), too few to calibrate on one part and score another"
        )
    return parts


def place_to_cut(text: str, share: float) -> int:
    """The character, near that share of a text, at which it is best cut: after a paragraph, a line, a sentence, a word.

    Each is looked for within a third of the text on either side; where there is none, the text is cut at the share.
    """
    at, reach = int(len(text) * share), len(text) // 3
    first, last = max(0, at - reach), min(len(text), at + reach)
    for kind in ENDS:
        if found := list(re.compile(kind).finditer(text, first, last)):
            return min(found, key=lambda match: abs(match.start() - at)).end()
    return at
