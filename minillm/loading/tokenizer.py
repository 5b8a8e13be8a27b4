"""tokenizer.json: from text to token ids and back, and printing while the ids still arrive.

The work is done by the `tokenizers` package (Hugging Face), imported only when a tokenizer is first asked for. This
module refuses what that package lets pass: ids that do not fit the model, files that lose characters silently, and
special tokens hidden in a text. It also keeps half characters off the screen.

A token need not be a whole character: an emoji may be four tokens of one byte each. Before the last of them has
arrived, their text is U+FFFD, the replacement character. So with each new token, a stream decodes again the last few
tokens, and prints only what no later token can change:

    pushes + flush  =  decode(prompt + new)[len(decode(prompt)):]        for any ids that spell valid text

Bytes that no later one can complete to a character are printed as U+FFFD, after HELD of them at the latest.
"""

import json
import os
import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path

import numpy as np

from ..errors import TokenizerError
from ..fields import file_in, read_json
from ..files import read_bytes
from .pieces import PIECE, Tokens, in_pieces

TOKENIZER_LIMIT = 100_000_000  # bytes; the largest published ones have about 35 MB
HELD = 4  # ids that may spell a character together: UTF-8 has at most four bytes for one
KEPT = 16  # ids that a stream keeps to decode the next one with, at most twice
_PROBE = "The cat, 42 Ünïcödé 猫 😀!"  # letters, spaces, digits, and characters of two, three and four bytes


class Tokenizer:
    """Text to ids and back, as a model folder's tokenizer.json says.

    vocab_size: of the model. An id below it that no token has (a row that only fills up a table of weights) is valid
    and has no text. A token beyond it is refused where a text contains it.
    bos_ids: what the tokenizer itself puts in front of a text; () where it adds nothing.
    """

    def __init__(self, raw, source: str, vocab_size: int, bos_ids: tuple[int, ...]):
        self._raw, self._source, self.vocab_size, self.bos_ids = raw, source, vocab_size, bos_ids
        self._special = _special_ids(raw)

    @classmethod
    def from_folder(cls, folder: str | Path, vocab_size: int) -> "Tokenizer":
        """Read folder/tokenizer.json for a model of vocab_size ids; everything wrong with it is a TokenizerError."""
        path = Path(folder) / "tokenizer.json"
        if not os.path.lexists(path):
            only = ", only a tokenizer.model, which is not read here" if path.with_suffix(".model").is_file() else ""
            raise TokenizerError(f"{path}: does not exist{only}, expected a tokenizer.json beside the weights")
        data = read_bytes(file_in(folder, path.name, TokenizerError), TokenizerError, TOKENIZER_LIMIT)
        from tokenizers import Tokenizer as RawTokenizer

        with _one_sentence(f"{path}: is not a tokenizer that `tokenizers` can read"):
            raw = RawTokenizer.from_buffer(data)
            raw.no_truncation()  # settings of the file that would cut, fill up
            raw.no_padding()
            if hasattr(raw.model, "dropout"):
                raw.model.dropout = None  # or merge at random (a trick of training)
            raw.encode_special_tokens = True  # a "</s>" inside a text is four characters, not the end
            _check_ids(raw, data, str(path))
        with _one_sentence(f"{path}: cannot encode a short text"):
            _refuse_losses(raw, str(path))
            plain, full = raw.encode("a", add_special_tokens=False).ids, raw.encode("a").ids
        start = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), None)
        if start is None:
            raise TokenizerError(f"{path}: the post_processor drops the text itself, expected ids around it")
        made = cls(raw, str(path), vocab_size, tuple(full[:start]))
        made._check_fits(full[:start], "the post_processor adds")
        return made

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """The ids of a text, with bos_ids in front unless bos=False.

        Special tokens in the text are plain text. Nothing is ever added behind: where the file's post_processor
        would end every text with an EOS, that is left out, since the model is to go on from here.
        Raises TokenizerError for what is not a str, for one that has no UTF-8 form (a lone surrogate), and for a text
        with a token beyond the model's vocabulary.
        """
        ids = self.encode_with_bytes(text)[0].tolist()
        return [*self.bos_ids, *ids] if bos else ids

    def encode_with_bytes(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The ids of a text without BOS, and the number of its UTF-8 bytes that each stands for; both (T,) int32.

        The bytes add up exactly. Where several tokens spell one character, the first is given all of its bytes.
        """
        ids, sizes = array("i"), array("i")  # they grow in place: a list of all pieces would need twice the memory
        for more_ids, _, more_sizes in self.encode_in_pieces(text):
            ids.frombytes(more_ids.tobytes())
            sizes.frombytes(more_sizes.tobytes())
        return np.frombuffer(ids, np.int32), np.frombuffer(sizes, np.int32)

    def encode_in_pieces(self, text: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The tokens of a text from its start on, many at a time: who wants the first of a book stops early.

        Yields ids, the characters of the text up to each token's end, and the bytes of each token; all (n,) int32.
        """
        self._check_text(text)
        done = 0  # characters
        for ids, ends in in_pieces(self._encode_piece, text):
            if len(ids):
                points = np.frombuffer(text[done : ends[-1]].encode("utf-32-le"), np.uint32)  # (characters,)
                before = np.zeros(len(points) + 1, int)  # bytes before each: UTF-8 takes 1 to 4 for one character
                np.cumsum(1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF), out=before[1:])
                sizes = np.diff(before[ends - done], prepend=0)
                done = int(ends[-1])
            else:
                sizes = ends
            yield ids, ends.astype(np.int32), sizes.astype(np.int32)

    def _check_text(self, text: str) -> None:
        if not isinstance(text, str):
            raise TokenizerError(f"the text is of type {type(text).__name__}, expected str")
        for start in range(0, len(text), PIECE):
            try:
                text[start : start + PIECE].encode("utf-8")
            except UnicodeEncodeError as problem:
                found = f"a lone surrogate at character {start + problem.start}"
                raise TokenizerError(f"the text holds {found}, expected valid Unicode") from None

    def _encode_piece(self, text: str) -> Tokens:
        with _one_sentence(f"{self._source}: cannot encode the text"):
            encoding = self._raw.encode(text, add_special_tokens=False)
            self._check_fits(encoding.ids, "the text holds")
            ids = np.array(encoding.ids, np.int32)
            ends = np.maximum.accumulate(np.array([end for _, end in encoding.offsets], int))  # some step back
        if len(ends):
            ends[-1] = len(text)
        return ids, ends

    def _check_fits(self, ids: list[int], what: str) -> None:
        """Raise TokenizerError for a token beyond the model's vocabulary."""
        if (last := max(ids, default=0)) >= self.vocab_size:
            found = f"{what} the token {self._raw.id_to_token(last)!r} with the id {last}"
            raise TokenizerError(f"{self._source}: {found}, expected at most {self.vocab_size - 1}, as vocab_size says")

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids without the special tokens (BOS, EOS, and <unk> where the file calls it special).

        Ids of the model that no token has become nothing, bytes that are no UTF-8 become U+FFFD. Raises TokenizerError
        for an id that the model does not have.
        """
        # Not by skip_special_tokens=True: tokenizers 0.23.3 then keeps those that the file marks "normalized".
        ids = [int(index) for index in ids if self.has_text(index)]
        with _one_sentence(f"{self._source}: cannot decode the ids"):
            return self._raw.decode(ids, skip_special_tokens=False)

    def has_text(self, index: int) -> bool:
        """Whether an id has a token, and that is no special one. Raises TokenizerError as ``decode`` does."""
        if not isinstance(index, Integral) or isinstance(index, bool) or not 0 <= index < self.vocab_size:
            raise TokenizerError(f"{self._source}: no token has the id {index!r}, expected 0 to {self.vocab_size - 1}")
        return index not in self._special and self._raw.id_to_token(int(index)) is not None

    def token_id(self, token: str) -> int | None:
        """The id of a token by its name, or None where the model has no such token."""
        index = self._raw.token_to_id(token)
        return index if index is not None and index < self.vocab_size else None

    def stream(self, prompt_ids: Iterable[int] = ()) -> "TextStream":
        """A TextStream that continues the text of prompt_ids."""
        return TextStream(self, prompt_ids)


def unused_bos(folder: str | Path, tokenizer: Tokenizer, config_bos: int | None) -> str | None:
    """A sentence where tokenizer_config.json alone asks for a BOS, or None.

    That file is read for nothing else: its settings stand in tokenizer.json, or should (transformers reads both).
    """
    if tokenizer.bos_ids:
        return None
    try:
        fields = read_json(file_in(folder, "tokenizer_config.json", TokenizerError), TokenizerError)
    except TokenizerError:  # missing or broken: nothing depends on it
        return None
    named, added = fields.get("bos_token"), fields.get("add_bos_token")
    token = named.get("content") if isinstance(named, dict) else named
    index = tokenizer.token_id(token) if isinstance(token, str) else None
    if index is None or not (added is True or (config_bos is None and added is not False)):
        return None
    found = f"tokenizer_config.json names the BOS {token!r} (id {index}), which tokenizer.json does not add"
    return f"{found}: it is not put in front of a prompt, unless asked for (--bos {index})"


class TextStream:
    """Text from ids that arrive one by one, in whole characters, spaced as the text before asks for.

    Differs from tokenizers.decoders.DecodeStream: it can be flushed, and takes a prompt with older versions, too.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Iterable[int]):
        self._tokenizer = tokenizer
        self._window = [index for index in prompt_ids if tokenizer.has_text(index)]  # the next id is decoded with these
        self._settled = len(self._window)  # how many of them spell whole characters, which were given out
        self._text = tokenizer.decode(self._window)
        self._done = len(self._text)  # how many characters of the text were given out
        self._held = 0  # ids in a row after which the text ended in an incomplete character

    def push(self, token_id: int) -> str:
        """The text that this id makes certain: '' while a character is incomplete (or the id has no text)."""
        if not self._tokenizer.has_text(token_id):
            return ""
        self._window.append(token_id)
        before, self._text = self._text, self._tokenizer.decode(self._window)
        # Where bytes are decoded to U+FFFD one by one, a text that gets shorter holds a U+FFFD that was spelled.
        if not self._text.endswith("\ufffd") or len(self._text) < len(before):
            return self._settle()
        self._held += 1
        certain = len(self._text.rstrip("\ufffd"))
        if self._held >= HELD:  # then all but the last byte, which may begin a character
            certain = len(self._text) - 1
        new = self._text[self._done : certain]
        self._done = max(self._done, certain)
        self._shorten()
        return new

    def flush(self) -> str:
        """What was held back: at the end of the text, an incomplete character becomes U+FFFD."""
        return self._settle()

    def _settle(self) -> str:
        """Give out all of the text; keep the ids of its end."""
        new, self._held = self._text[self._done :], 0
        if new:
            # Decoders treat the first token apart (its leading space goes), so keep the ids of this text in front
            # of the next. Without a text of their own they would not do, hence the `if`.
            self._window = self._window[self._settled :]
            self._text = self._tokenizer.decode(self._window)
            self._done, self._settled = len(self._text), len(self._window)
        else:
            self._shorten()
        return new

    def _shorten(self) -> None:
        """Where many ids give no text, keep the last ones alone: the time for an id must not grow with their number."""
        if 0 < self._held < HELD or len(self._window) <= 2 * KEPT:
            return
        held = len(self._text) - self._done
        whole, rest = self._window[: self._settled][-KEPT:], self._window[self._settled :][-KEPT:]
        self._window, self._settled = whole + rest, len(whole)
        self._text = self._tokenizer.decode(self._window)
        self._done = max(0, len(self._text) - held)


def _special_ids(raw) -> set[int]:
    """The ids of special tokens: they steer a model and are no text."""
    return {index for index, token in raw.get_added_tokens_decoder().items() if token.special}


def _check_ids(raw, data: bytes, path: str) -> None:
    """Refuse ids that stand twice, and added tokens whose id is not the one that the file declares."""
    count = raw.get_vocab_size(with_added_tokens=True)
    if not count:
        raise TokenizerError(f"{path}: the vocabulary is empty, expected at least one token")
    if None in map(raw.id_to_token, range(count)):  # else n tokens have n ids, 0 to n - 1: once each
        vocab = raw.get_vocab(with_added_tokens=True)
        owner = {index: token for token, index in vocab.items()}
        if len(owner) != len(vocab):
            token, index = next((token, index) for token, index in vocab.items() if owner[index] != token)
            raise TokenizerError(f"{path}: {token!r} and {owner[index]!r} both have the id {index}, expected one each")
    # The library gives added tokens other ids than they declare where those do not continue the vocabulary's. Only
    # their list is parsed again: Python would take as long for the whole file as the library did.
    place = re.search(rb'"added_tokens"\s*:\s*(?=\[)', data)
    tokens = json.JSONDecoder().raw_decode(data[place.end() :].decode("utf-8"))[0] if place else []
    declared = {token["content"]: token["id"] for token in tokens}
    given = {token.content: index for index, token in raw.get_added_tokens_decoder().items()}
    for token in declared | given:
        if declared.get(token) != given.get(token):
            found = f"the added token {token!r} declares the id {declared.get(token)} but gets {given.get(token)}"
            raise TokenizerError(f"{path}: {found}, expected ids that continue the vocabulary's")


def _refuse_losses(raw, path: str) -> None:
    """Refuse a tokenizer that drops characters without a trace; an unknown token in their place is a trace."""

    def letters(text: str) -> str:  # without white space, case and accents, which a normalizer may change
        plain = unicodedata.normalize("NFKD", text).casefold()
        return "".join(c for c in plain if not c.isspace() and not unicodedata.combining(c))

    if "ByteLevel" in repr(raw.decoder) and "ByteLevel" not in repr(raw.pre_tokenizer) + repr(raw.normalizer):
        raise TokenizerError(f"{path}: the decoder is ByteLevel, expected a ByteLevel pre_tokenizer, too")
    if len({tuple(raw.encode(text, add_special_tokens=False).ids) for text in ("in to", "into")}) == 1:
        raise TokenizerError(f"{path}: loses spaces ('in to' is encoded as 'into'), expected a pre_tokenizer")
    probe = raw.encode(_PROBE, add_special_tokens=False).ids
    unknown = _special_ids(raw) | {raw.token_to_id(getattr(raw.model, "unk_token", None) or "")}
    back = raw.decode(probe)
    if unknown.isdisjoint(probe) and letters(back) != letters(_PROBE):
        expected = "expected a pre_tokenizer and a decoder that keep them, or an unknown token"
        raise TokenizerError(f"{path}: loses characters ({_PROBE!r} comes back as {back!r}), {expected}")


@contextmanager
def _one_sentence(sentence: str) -> Iterator[None]:
    """Turn whatever `tokenizers` raises into a TokenizerError: plain Exceptions, and panics of its Rust code.

    Those derive from BaseException (a regular expression of the file that backtracks without end does it).
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, TokenizerError):
        raise
    except BaseException as problem:
        raise TokenizerError(f"{sentence} ({' '.join(str(problem).split())[:300]})") from None
