"""tokenizer.json: from text to token ids and back, and printing while the ids still arrive.

The work is done by the `tokenizers` package (Hugging Face), imported only when a tokenizer is first asked for. This
module refuses what that package lets pass: ids that do not fit the model, files that lose characters silently, and
special tokens hidden in a text. It also keeps half characters off the screen.

A token need not be a whole character: an emoji may be four tokens of one byte each. Before the last of them has
arrived, their text is U+FFFD, the replacement character. So with each new token, a stream decodes again all tokens
since the last whole character, and prints only what no later token can change:

    pushes + flush  =  decode(prompt + new)[len(decode(prompt)):]        for any ids that spell valid text
"""

import json
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path

import numpy as np

from ..errors import TokenizerError
from .fields import file_in

TOKENIZER_LIMIT = 100_000_000  # bytes; the largest published ones have about 35 MB
_PROBE = "The cat, 42 Ünïcödé 猫 😀!"  # letters, spaces, digits, and characters of two, three and four bytes


class Tokenizer:
    """Text to ids and back, as a model folder's tokenizer.json says.

    bos_ids: what the tokenizer itself puts in front of a text; () where it adds nothing.
    """

    def __init__(self, raw, source: str, ids: Collection[int], special: set[int], bos_ids: tuple[int, ...]):
        self._raw, self._source, self._ids, self._special, self.bos_ids = raw, source, ids, special, bos_ids

    @classmethod
    def from_folder(cls, folder: str | Path, vocab_size: int) -> "Tokenizer":
        """Read folder/tokenizer.json for a model of vocab_size ids; everything wrong with it is a TokenizerError."""
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            only = ", only a tokenizer.model, which is not read here" if path.with_suffix(".model").is_file() else ""
            raise TokenizerError(f"{path}: does not exist{only}, expected a tokenizer.json beside the weights")
        size = file_in(folder, path.name, TokenizerError).stat().st_size
        if size > TOKENIZER_LIMIT:
            raise TokenizerError(f"{path}: has {size} bytes, expected at most {TOKENIZER_LIMIT}")
        from tokenizers import Tokenizer as RawTokenizer

        with _one_sentence(f"{path}: is not a tokenizer that `tokenizers` can read"):
            data = path.read_bytes()
            raw = RawTokenizer.from_buffer(data)
            raw.no_truncation()  # settings of the file that would cut, fill up
            raw.no_padding()
            if hasattr(raw.model, "dropout"):
                raw.model.dropout = None  # or merge at random (a trick of training)
            raw.encode_special_tokens = True  # a "</s>" inside a text is four characters, not the end
            ids = _checked_ids(raw, data, str(path), vocab_size)
        special = {index for index, token in raw.get_added_tokens_decoder().items() if token.special}
        with _one_sentence(f"{path}: cannot encode a short text"):
            _refuse_losses(raw, special, str(path))
            plain, full = raw.encode("a", add_special_tokens=False).ids, raw.encode("a").ids
        start = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), None)
        if start is None:
            raise TokenizerError(f"{path}: the post_processor drops the text itself, expected ids around it")
        return cls(raw, str(path), ids, special, tuple(full[:start]))

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """The ids of a text, with bos_ids in front unless bos=False.

        Special tokens in the text are plain text. Nothing is ever added behind: where the file's post_processor
        would end every text with an EOS, that is left out, since the model is to go on from here.
        Raises TokenizerError for what is not a str, or is one that has no UTF-8 form (a lone surrogate).
        """
        ids = self._encoding(text).ids
        return [*self.bos_ids, *ids] if bos else ids

    def _encoding(self, text: str):
        if not isinstance(text, str):
            raise TokenizerError(f"the text is of type {type(text).__name__}, expected str")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as problem:
            found = f"a lone surrogate at character {problem.start}"
            raise TokenizerError(f"the text holds {found}, expected valid Unicode") from None
        with _one_sentence(f"{self._source}: cannot encode the text"):
            return self._raw.encode(text, add_special_tokens=False)

    def encode_with_bytes(self, text: str) -> tuple[list[int], list[int]]:
        """The ids of a text without BOS, and the number of its UTF-8 bytes that each stands for; they add up exactly.

        Where several tokens spell one character, the first of them is given all of its bytes.
        """
        encoding = self._encoding(text)
        if not encoding.ids:
            return [], []
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)  # (characters,)
        before = np.zeros(len(text) + 1, int)  # bytes before each character: UTF-8 takes 1 to 4 for one
        np.cumsum(1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF), out=before[1:])
        ends = np.maximum.accumulate([end for _, end in encoding.offsets])  # in characters; some step back
        ends[-1] = len(text)
        return encoding.ids, np.diff(before[ends], prepend=0).tolist()

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids without the special tokens (BOS, EOS, and <unk> where the file calls it special).

        Bytes that are no UTF-8 become U+FFFD. Raises TokenizerError for an id that no token has.
        """
        ids = list(ids)
        for index in ids:
            if not isinstance(index, Integral) or index not in self._ids:
                raise TokenizerError(f"{self._source}: no token has the id {index!r}, expected 0 to {max(self._ids)}")
        # Not by skip_special_tokens=True: tokenizers 0.23.3 then keeps those that the file marks "normalized".
        ids = [index for index in ids if index not in self._special]
        with _one_sentence(f"{self._source}: cannot decode the ids"):
            return self._raw.decode(ids, skip_special_tokens=False)

    def stream(self, prompt_ids: Iterable[int] = ()) -> "TextStream":
        """A TextStream that continues the text of prompt_ids."""
        return TextStream(self, prompt_ids)


class TextStream:
    """Text from ids that arrive one by one, in whole characters, spaced as the text before asks for.

    Differs from tokenizers.decoders.DecodeStream: it can be flushed, and takes a prompt with older versions, too.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Iterable[int]):
        self._tokenizer = tokenizer
        self._window = list(prompt_ids)  # the ids that the next text is decoded with
        self._done = len(tokenizer.decode(self._window))  # how many of the window's characters were given out
        self._settled = len(self._window)  # how many of its ids they come from

    def push(self, token_id: int) -> str:
        """The text that this id makes certain: '' while a character is incomplete (or the token is special)."""
        text = self._tokenizer.decode([*self._window, token_id])
        self._window.append(token_id)
        return "" if text.endswith("\ufffd") else self._give(text)

    def flush(self) -> str:
        """What was held back: at the end of the text, an incomplete character becomes U+FFFD."""
        return self._give(self._tokenizer.decode(self._window))

    def _give(self, text: str) -> str:
        new = text[self._done :]
        if new:
            # Decoders treat the first token apart (its leading space goes), so keep the ids of this text in front
            # of the next. Without a text of their own (special tokens) they would not do, hence the `if`.
            self._window = self._window[self._settled :]
            self._done, self._settled = len(self._tokenizer.decode(self._window)), len(self._window)
        return new


def _checked_ids(raw, data: bytes, path: str, vocab_size: int) -> Collection[int]:
    """All ids of the vocabulary and the added tokens: each once, each as the file declares it, each < vocab_size."""
    count = raw.get_vocab_size(with_added_tokens=True)
    if not count:
        raise TokenizerError(f"{path}: the vocabulary is empty, expected at least one token")
    ids: Collection[int] = range(count)
    if None in map(raw.id_to_token, ids):  # else n tokens have n ids, 0 to n - 1: once each, without asking further
        vocab = raw.get_vocab(with_added_tokens=True)
        owner = {index: token for token, index in vocab.items()}
        if len(owner) != len(vocab):
            token, index = next((token, index) for token, index in vocab.items() if owner[index] != token)
            raise TokenizerError(f"{path}: {token!r} and {owner[index]!r} both have the id {index}, expected one each")
        ids = owner.keys()
    if max(ids) >= vocab_size:
        found = f"{raw.id_to_token(max(ids))!r} has the id {max(ids)}"
        raise TokenizerError(f"{path}: {found}, expected at most {vocab_size - 1}, as the model's vocab_size says")
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
    return ids


def _refuse_losses(raw, special: set[int], path: str) -> None:
    """Refuse a tokenizer that drops characters without a trace; an unknown token in their place is a trace."""

    def letters(text: str) -> str:  # without white space, case and accents, which a normalizer may change
        plain = unicodedata.normalize("NFKD", text).casefold()
        return "".join(c for c in plain if not c.isspace() and not unicodedata.combining(c))

    if "ByteLevel" in repr(raw.decoder) and "ByteLevel" not in repr(raw.pre_tokenizer) + repr(raw.normalizer):
        raise TokenizerError(f"{path}: the decoder is ByteLevel, expected a ByteLevel pre_tokenizer, too")
    if len({tuple(raw.encode(text, add_special_tokens=False).ids) for text in ("in to", "into")}) == 1:
        raise TokenizerError(f"{path}: loses spaces ('in to' is encoded as 'into'), expected a pre_tokenizer")
    probe = raw.encode(_PROBE, add_special_tokens=False).ids
    unknown = special | {raw.token_to_id(getattr(raw.model, "unk_token", None) or "")}
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
