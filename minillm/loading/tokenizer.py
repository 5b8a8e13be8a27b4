"""tokenizer.json: from text to token ids and back, and printing while the ids still arrive.

The work is done by the `tokenizers` package (Hugging Face), imported only when a tokenizer is first asked for.
Here stands what that package lets pass: a file whose ids do not fit the model or that loses characters without a
word, special tokens smuggled in as text, and half characters on the screen.

A token need not be a whole character: an emoji may be four tokens of one byte each. Until the last of them has
come, its text is U+FFFD, the replacement character. So a stream decodes the tokens since the last whole character
once more with every new one, and prints only what no later token can change:

    pushes + flush  =  decode(prompt + new)[len(decode(prompt)):]        for any ids that spell valid text
"""

import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path

from minillm.errors import TokenizerError
from minillm.loading.config import read_json

TOKENIZER_LIMIT = 100_000_000  # bytes; the largest published ones have about 35 MB
_PROBE = "The cat, 42 Ünïcödé 猫 😀!"  # letters, spaces, digits, and characters of two, three and four bytes


class Tokenizer:
    """Text to ids and back, as a model folder's tokenizer.json says.

    bos_ids: what the tokenizer itself puts in front of a text; () where it adds nothing.
    """

    def __init__(self, raw, source: str, ids: set[int], special: set[int], bos_ids: tuple[int, ...]):
        self._raw, self._source, self._ids, self._special, self.bos_ids = raw, source, ids, special, bos_ids

    @classmethod
    def from_folder(cls, folder: str | Path, vocab_size: int) -> "Tokenizer":
        """Read folder/tokenizer.json for a model of vocab_size ids; everything wrong with it is a TokenizerError."""
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            only = ", only a tokenizer.model, which is not read here" if path.with_suffix(".model").is_file() else ""
            raise TokenizerError(f"{path}: does not exist{only}, expected a tokenizer.json beside the weights")
        fields = read_json(path, TokenizerError, TOKENIZER_LIMIT)
        from tokenizers import Tokenizer as RawTokenizer

        with _one_sentence(f"{path}: is not a tokenizer that `tokenizers` can read"):
            raw = RawTokenizer.from_file(str(path))
            raw.no_truncation()  # settings of the file that would cut, fill up
            raw.no_padding()
            if hasattr(raw.model, "dropout"):
                raw.model.dropout = None  # or merge at random (a trick of training)
            raw.encode_special_tokens = True  # a "</s>" inside a text is four characters, not the end
        ids = _checked_ids(raw, fields, str(path), vocab_size)
        with _one_sentence(f"{path}: cannot encode a short text"):
            _refuse_losses(raw, fields, str(path))
            plain, full = raw.encode("a", add_special_tokens=False).ids, raw.encode("a").ids
        start = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), None)
        if start is None:
            raise TokenizerError(f"{path}: the post_processor drops the text itself, expected ids around it")
        special = {token["id"] for token in fields.get("added_tokens") or () if token["special"]}
        return cls(raw, str(path), ids, special, tuple(full[:start]))

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """The ids of a text, with bos_ids in front unless bos=False.

        Special tokens in the text are plain text. Nothing is ever added behind: where the file's post_processor
        would end every text with an EOS, that is left out, since the model is to go on from here.
        Raises TokenizerError for what is not a str, or is one that has no UTF-8 form (a lone surrogate).
        """
        if not isinstance(text, str):
            raise TokenizerError(f"the text is of type {type(text).__name__}, expected str")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as problem:
            raise TokenizerError(
                f"the text holds a lone surrogate at character {problem.start}, expected valid Unicode"
            ) from None
        with _one_sentence(f"{self._source}: cannot encode the text"):
            ids = self._raw.encode(text, add_special_tokens=False).ids
        return [*self.bos_ids, *ids] if bos else ids

    def encode_with_bytes(self, text: str) -> tuple[list[int], list[int]]:
        """The ids of a text without BOS, and how many of its UTF-8 bytes each stands for; the counts add up exactly.

        Where several tokens spell one character, the first of them is given all of its bytes.
        """
        ids = self.encode(text, bos=False)
        ends = [end for _, end in self._raw.encode(text, add_special_tokens=False).offsets]
        sizes, done = [], 0
        for i, end in enumerate(ends):
            end = len(text) if i == len(ends) - 1 else max(done, end)
            sizes.append(len(text[done:end].encode()))
            done = end
        return ids, sizes

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


def _checked_ids(raw, fields: dict, path: str, vocab_size: int) -> set[int]:
    """All ids of the vocabulary and the added tokens: each once, each as the file declares it, each < vocab_size."""
    vocab = fields["model"]["vocab"]  # {piece: id}, or for a Unigram model [[piece, score], ...]
    tokens = vocab if isinstance(vocab, dict) else {piece: index for index, (piece, _) in enumerate(vocab)}
    if not tokens:
        raise TokenizerError(f"{path}: model.vocab is empty, expected at least one token")
    owner = {}
    for token, index in tokens.items():
        if owner.setdefault(index, token) != token:
            raise TokenizerError(f"{path}: {owner[index]!r} and {token!r} both have the id {index}, expected one token")
    for added in fields.get("added_tokens") or ():
        given = raw.token_to_id(added["content"])
        if given != added["id"]:
            raise TokenizerError(
                f"{path}: the added token {added['content']!r} declares the id {added['id']} but gets {given}, "
                "expected ids that continue the vocabulary's"
            )
        owner.setdefault(given, added["content"])
    if max(owner) >= vocab_size:
        raise TokenizerError(
            f"{path}: {owner[max(owner)]!r} has the id {max(owner)}, expected at most {vocab_size - 1} "
            f"(the model's vocab_size is {vocab_size})"
        )
    return set(owner)


def _refuse_losses(raw, fields: dict, path: str) -> None:
    """Refuse a tokenizer that drops characters without a trace; an unknown token in their place is a trace."""

    def ids(text: str) -> list[int]:
        return raw.encode(text, add_special_tokens=False).ids

    def letters(text: str) -> str:  # without white space, case and accents, which a normalizer may change
        return "".join(c for c in unicodedata.normalize("NFKD", text).casefold() if c.isprintable() and c != " "
                       and not unicodedata.combining(c))  # fmt: skip

    if "ByteLevel" in str(fields.get("decoder")):
        if "ByteLevel" not in str(fields.get("pre_tokenizer")) + str(fields.get("normalizer")):
            raise TokenizerError(f"{path}: the decoder is ByteLevel, expected a ByteLevel pre_tokenizer, too")
    if ids("in to") == ids("into"):
        raise TokenizerError(f"{path}: loses spaces ('in to' is encoded as 'into'), expected a pre_tokenizer")
    model, probe = fields["model"], ids(_PROBE)
    unknown = model["unk_id"] if model.get("unk_id") is not None else raw.token_to_id(model.get("unk_token") or "")
    back = raw.decode(probe)
    if unknown not in probe and letters(back) != letters(_PROBE):
        raise TokenizerError(
            f"{path}: loses characters ({_PROBE!r} comes back as {back!r}), expected a pre_tokenizer and a decoder "
            "that keep them, or an unknown token"
        )


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
