"""A long text encoded in pieces has the ids of the whole text, with every kind of tokenizer and whatever the text."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import FILES
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models, pre_tokenizers, trainers

import minillm
from minillm.loading import pieces
from minillm.loading.pieces import in_pieces
from minillm.loading.tokenizer import Tokenizer

WORDS = "the cat sat on mat. Once upon Zoë 猫 😀 12345 . , a ".split(" ")
parts = st.lists(
    st.lists(st.sampled_from([*WORDS, "\n", "\n\n", "  "]), min_size=5, max_size=60).map(" ".join)
    | st.integers(1, 300).map(lambda n: "a" * n)
    | st.integers(1, 300).map(lambda n: " " * n)
    | st.integers(1, 80).map(lambda n: "😀" * n)
    | st.text(max_size=40),
    min_size=1,
    max_size=12,
)


def across_words() -> RawTokenizer:
    """Tokens of several letters and of several words: where they end depends on where a text begins."""
    raw = RawTokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    raw.train_from_iterator(["a" * 64, " " * 64, "the cat sat on the mat", "sat on. the cat"] * 9, trainer)
    return raw


@pytest.fixture(scope="module")
def raws() -> dict[str, RawTokenizer]:
    made = {name: RawTokenizer.from_str(json.dumps(fields)) for name, fields in FILES.items()}
    return made | {"default": minillm.load("default").tokenizer._raw, "across words": across_words()}


@pytest.mark.parametrize("name", [*FILES, "default", "across words"])
@settings(max_examples=100, deadline=None, derandomize=True)
@given(found=parts)
def test_pieces_have_the_tokens_of_the_whole_text(raws, name, found):
    text = "".join(found)

    def encode(part: str):
        encoding = raws[name].encode(part, add_special_tokens=False)
        return np.array(encoding.ids), np.array([end for _, end in encoding.offsets], int)

    with pytest.MonkeyPatch.context() as patch:
        for key, value in (("PIECE", 400), ("OVERLAP", 80), ("AGREE", 4)):
            patch.setattr(pieces, key, value)
        ids, ends = (np.concatenate(each) for each in zip(*in_pieces(encode, text), strict=True))
    whole_ids, whole_ends = encode(text)
    assert ids.tolist() == whole_ids.tolist() and ends.tolist() == whole_ends.tolist()


def test_a_text_is_encoded_no_more_than_a_piece_at_a_time_and_only_as_far_as_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 1000)
    monkeypatch.setattr(pieces, "OVERLAP", 200)
    sizes = []

    def encode(part: str):  # a token for each character
        sizes.append(len(part))
        return np.frombuffer(part.encode(), np.uint8), np.arange(1, len(part) + 1)

    text = "the cat sat. " * 1000
    first, _ = next(in_pieces(encode, text))
    assert len(sizes) == 2 and 700 < len(first) < 1000
    found = list(in_pieces(encode, text))
    assert max(sizes) <= 1200 and b"".join(ids.tobytes() for ids, _ in found).decode() == text
    assert np.concatenate([ends for _, ends in found]).tolist() == list(range(1, len(text) + 1))


@pytest.mark.parametrize("count", [16, 17])
def test_where_two_pieces_differ_the_overlap_grows(count):
    """Letters without a space in groups of 7 from the start of what is encoded: a piece must begin where they do."""
    sizes = []

    def encode(part: str):
        sizes.append(len(part))
        ends = np.array([*range(7, len(part), 7), len(part)])
        return np.diff(ends, prepend=0), ends

    text = "x" * (pieces.PIECE * count // 8 + 1)
    ids, ends = (np.concatenate(each) for each in zip(*in_pieces(encode, text), strict=True))
    assert ends.tolist() == encode(text)[1].tolist() and ids.sum() == len(text)


@pytest.mark.shared
def test_a_long_text_has_its_ids_with_published_and_embedded_tokenizers(shared):
    text = (shared / "text" / "wikitext2-valid.txt").read_text(encoding="utf-8")[:150_000]
    stories = (shared / "text" / "tinystories-train.txt").read_text(encoding="utf-8")[:150_000]
    for tokenizer in (
        minillm.load("default").tokenizer,
        Tokenizer.from_folder(shared / "models" / "tinystories-656k", 2048),
    ):
        for whole in (text, stories):
            ids, sizes = tokenizer.encode_with_bytes(whole)
            expected = tokenizer._raw.encode(whole, add_special_tokens=False)
            assert ids.tolist() == expected.ids and sizes.sum() == len(whole.encode())
