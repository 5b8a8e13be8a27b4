"""A long text through a tokenizer in pieces, with the ids of the whole text.

The `tokenizers` package needs some hundreds of bytes for each token while it encodes a text, 500 MB for a book of 5 MB.
So a long text is encoded in pieces that overlap:

    piece 1   |-----------------------|
    piece 2                     |-----------------------|
    compared                      |---|       the middle half of the overlap

At its ends a piece may give other tokens than the whole text would: a word is cut there. A token depends on the text
near it, so in the middle of the overlap both pieces must give the same tokens. Where they do, they are joined there.
Where they do not (one "word" of many thousand letters), the overlap grows, in the end to the whole piece.
"""

from collections.abc import Callable, Iterator

import numpy as np

PIECE = 1 << 14  # characters
OVERLAP = 2_000  # characters
AGREE = 16  # tokens that two pieces must at least have in common

Tokens = tuple[np.ndarray, np.ndarray]  # ids (T,), and the character at which each token ends (T,)


def in_pieces(encode: Callable[[str], Tokens], text: str) -> Iterator[Tokens]:
    """The tokens of a text, a piece at a time; a text of up to PIECE characters is one piece.

    encode(part) -> its tokens; their ends are counted in characters of the part, and never decrease.
    """
    begin, stop, done = 0, min(PIECE, len(text)), 0  # tokens that end at or before ``done`` were given out
    ids, ends = encode(text[:stop])
    overlap = OVERLAP
    while stop < len(text):
        start = max(begin, stop - overlap)
        further = min(stop + max(PIECE, overlap), len(text))
        next_ids, next_ends = encode(text[start:further])
        next_ends = next_ends + start
        margin = (stop - start) // 4
        seam = _seam((ids, ends), (next_ids, next_ends), max(done, start + margin), stop - margin)
        if seam is not None:
            first, last = _after(ends, done), _after(ends, seam)
            yield ids[first:last], ends[first:last]
            begin, done, overlap = start, seam, OVERLAP
        elif start > begin:
            overlap *= 2
            continue
        else:
            overlap *= 2  # the next piece begins where this one does: it takes its place
        stop, ids, ends = further, next_ids, next_ends
    yield ids[_after(ends, done) :], ends[_after(ends, done) :]


def _after(ends: np.ndarray, character: int) -> int:
    """The number of tokens that end at or before a character; 0 for the start of the text."""
    return int(np.searchsorted(ends, character, "right")) if character else 0


def _seam(left: Tokens, right: Tokens, low: int, high: int) -> int | None:
    """A character between low and high where a token ends in both, amid tokens that are the same; None without one."""
    (ids, ends), (next_ids, next_ends) = (
        tuple(part[_after(of[1], low) : _after(of[1], high)] for part in of) for of in (left, right)
    )
    if len(ids) < AGREE or not (np.array_equal(ids, next_ids) and np.array_equal(ends, next_ends)):
        return None
    inner = np.flatnonzero(np.diff(ends))  # the last token of its character: several may spell one
    return int(ends[inner[len(inner) // 2]]) if len(inner) else None
