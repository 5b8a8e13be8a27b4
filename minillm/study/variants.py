"""Texts and edited variants of them: made here, or read from the paper's release.

    tail 95 % .. 70 %   the first words as they stand, the last ones taken from another text (how the paper's own
                        variants were made)
    scattered 10 %      single tokens replaced by others of the same text, at random places
    insertion           one sentence of another text put in near the middle

Each edit asks another question of a pattern (edits.py): a new tail shares only the past, scattered edits change single
tokens everywhere, and an insertion moves the second half of a text without changing it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import MinillmError
from ..files import read_text
from ..transformer.model import Llama

SIMILARITIES = (95, 90, 85, 80, 75, 70)  # percent of a text that its variants share with it, in the released files
PERTURBATION_LIMIT = 10_000_000  # bytes of a released file, which has 20,000
SCATTERED = 10  # percent of the tokens that are replaced one by one
DRAWS = 20  # tries to scatter edits that change a word


class Pair(NamedTuple):
    """A text and an edited variant of it, as ids without BOS; ``text`` and ``variant`` are their names in tables."""

    text: str
    variant: str
    original: list[int]
    edited: list[int]


def replace_tail(text: str, donor: str, similarity: float) -> str:
    """Keep the first ``similarity`` (0 to 1) of a text's words as they stand, and replace the rest by ``donor``'s.

    The number of words stays the same, and at least one is replaced, as in the released variants. The donor's words are
    its last ones, or those before them where the last ones are the words that they replace: a text's own end is no
    edit of it. A short donor is repeated; one that has no other words gives the text as it is.
    """
    words = list(re.finditer(r"\S+", text))
    keep = min(round(similarity * len(words)), len(words) - 1)
    replaced = [word.group() for word in words[keep:]]
    count, others = len(replaced), donor.split()
    others *= -(-count // len(others))
    ends = [*range(len(others), count - 1, -count), *range(len(others), count - 1, -1)]
    new = next((found for end in ends if (found := others[end - count : end]) != replaced), None)
    return text if new is None else text[: words[keep].start()] + " ".join(new)


def insert_sentence(text: str, donor: str) -> str:
    """A text with the first sentence of ``donor`` put in at the sentence end (or word end) nearest to its middle."""
    donor = donor.strip()
    end = re.search(r"[.!?]+[\"']?(?=\s|$)", donor)
    sentence = donor[: end.end()] if end else donor
    ends = [match.end() for match in re.finditer(r"[.!?]+[\"']?(?=\s)", text)]
    ends = ends or [match.end() for match in re.finditer(r"\S(?=\s)", text)] or [len(text)]
    at = min(ends, key=lambda end: abs(end - len(text) / 2))
    return f"{text[:at]} {sentence}{text[at:]}"


def scatter(ids: Sequence[int], share: float, rng: np.random.Generator) -> list[int]:
    """Replace a share of the ids (at least one) at random places, each by another id of the same text.

    Raises MinillmError for ids that are all the same.
    """
    edited = np.array(ids)
    pool, rank = np.unique(edited, return_inverse=True)
    if len(pool) < 2:
        raise MinillmError(f"the text repeats one token ({len(ids)} times), expected at least two different ones")
    places = rng.choice(len(ids), max(1, round(share * len(ids))), replace=False)
    step = rng.integers(1, len(pool), len(places))  # never 0 or a full turn: always another id
    edited[places] = pool[(rank[places] + step) % len(pool)]
    return edited.tolist()


def made_pairs(model: Llama, documents: Sequence[str], rng: np.random.Generator) -> list[Pair]:
    """Each text with eight variants: tails replaced at 95 .. 70 %, scattered tokens replaced, a sentence inserted.

    New words come from the next document that has other words (for the last document, from the first), or else from
    the text itself. A variant whose words (or ids) would be those of its text is left out, and a note
    says so: a text compared with itself would match in any case.
    """
    pairs: list[Pair] = []
    missing: list[str] = []
    for i, text in enumerate(documents):
        if not text.split():
            missing.append(f"all of document {i}, which is empty")
            continue
        ids = model.tokenizer.encode(text, bos=False)
        sources = [*documents[i + 1 :], *documents[:i], text]
        edits: dict[str, list[int] | None] = {}
        for percent in SIMILARITIES:
            edits[f"tail {percent} %"] = first_edited(
                model, text, sources, partial(replace_tail, text, similarity=percent / 100)
            )
        edits[f"scattered {SCATTERED} %"] = scattered(model, ids, rng)
        edits["insertion"] = first_edited(model, text, sources, partial(insert_sentence, text))
        for name, edited in edits.items():
            if edited is None or edited == ids:
                missing.append(f"{name} of document {i}")
            else:
                pairs.append(Pair(f"document {i}", name, ids, edited))
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        warnings.warn(f"no variant with other words can be made: {', '.join(missing[:3])}{more}", stacklevel=2)
    return pairs


def first_edited(model: Llama, text: str, sources: Sequence[str], edit: Callable[..., str]) -> list[int] | None:
    """The ids of the first edit of a text that has other words than the text; None where no source gives one.

    edit(donor=a text of sources) -> the edited text.
    """
    words = text.split()
    for donor in sources:
        if donor.split() and (edited := edit(donor=donor)).split() != words:
            return model.tokenizer.encode(edited, bos=False)
    return None


def scattered(model: Llama, ids: list[int], rng: np.random.Generator) -> list[int] | None:
    """``scatter``, drawn again where only white space has changed; None where nothing else can."""
    words = model.tokenizer.decode(ids).split()
    for _ in range(DRAWS if len(set(ids)) > 1 else 0):
        edited = scatter(ids, SCATTERED / 100, rng)
        if model.tokenizer.decode(edited).split() != words:
            return edited
    return None


def text_pairs(model: Llama, text: str, original: str, variants: Mapping[str, str]) -> list[Pair]:
    """Pairs of one text, called ``text`` in tables, with variants {name: text}; all stripped of outer white space."""
    ids = model.tokenizer.encode(original.strip(), bos=False)
    encoded = {name: model.tokenizer.encode(edited.strip(), bos=False) for name, edited in variants.items()}
    return [Pair(text, name, ids, edited) for name, edited in encoded.items()]


def read_perturbation(path: str | Path) -> dict[int | None, str]:
    """Read a file of the paper's release: the original text under None, its variants under their similarity in %.

    Such a file is a run of Python assignments of texts in three quotation marks, ``paragraphMain = ...`` and
    ``paragraph95 = ...`` to 70, in any order, indented or not. It is read as text, never run. Raises MinillmError for
    anything else.
    """
    path = Path(path)
    source = read_text(path, MinillmError, PERTURBATION_LIMIT).replace("\r\n", "\n")
    assignment = re.compile(r'^[ \t]*paragraph(Main|[0-9]{1,2})[ \t]*=[ \t]*"""(.*?)"""', re.S | re.M)
    found: dict[int | None, str] = {}
    for name, text in assignment.findall(source):
        key = None if name == "Main" else int(name)
        if key in found:
            raise MinillmError(f"{path}: paragraph{name} stands twice, expected once")
        if key == 0:
            raise MinillmError(f"{path}: holds paragraph{name}, expected a similarity from 1 to 99")
        if not text.strip():
            raise MinillmError(f"{path}: paragraph{name} is empty, expected a text")
        found[key] = text.strip()
    if rest := assignment.sub("", source).strip():
        raise MinillmError(f'{path}: found {rest[:40]!r}, expected only texts as in paragraphMain = """..."""')
    if None not in found or len(found) < 2:
        names = ", ".join(f"paragraph{'Main' if key is None else key}" for key in found) or "no paragraph"
        raise MinillmError(f"{path}: holds {names}, expected paragraphMain and at least one variant")
    if same := [key for key, text in found.items() if key is not None and text.split() == found[None].split()]:
        raise MinillmError(f"{path}: paragraph{same[0]} has the words of paragraphMain, expected an edited text")
    return {key: found[key] for key in sorted(found, key=lambda key: -(key or 100))}


def released_pairs(model: Llama, path: str | Path) -> list[Pair]:
    """The pairs of a released file, or of every .txt file of a folder, in the order of their numbers."""
    path = Path(path)
    files = [path]
    if path.is_dir():
        files = sorted(path.glob("*.txt"), key=lambda file: (len(file.name), file.name))
        if not files:
            raise MinillmError(f"{path}: holds no .txt file, expected the paper's perturbation files")
    pairs = []
    for file in files:
        texts = read_perturbation(file)
        variants = {f"tail {percent} %": text for percent, text in texts.items() if percent is not None}
        pairs += text_pairs(model, file.stem, texts[None], variants)
    return pairs
