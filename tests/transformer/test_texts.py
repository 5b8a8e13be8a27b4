"""Texts down to the token: documents, BOS, the runs of both protocols, and two parts of one text."""

import hashlib

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.errors import MinillmError
from minillm.transformer.model import Llama
from minillm.transformer.texts import (
    Run,
    Sample,
    as_documents,
    bos_ids,
    document_hashes,
    first_tokens,
    runs,
    split_documents,
    split_text,
)

quick = settings(max_examples=40, derandomize=True, deadline=None)
TEXT = "\n<|endoftext|>\n".join(tiny.STORIES) + "\n<|endoftext|>\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Llama:
    return tiny.loaded(tmp_path_factory.mktemp("texts") / "model")


def plain_ids(model: Llama, text: str) -> list[int]:
    return model.tokenizer.encode(text, bos=False)


def test_a_text_is_split_at_lines_that_hold_only_the_separator():
    text = "\ufeffa \n\n<|endoftext|>\r\n b <|endoftext|> c\n  <|endoftext|>  \n<|endoftext|>\n\td\u2028e"
    assert split_documents(text) == ["\ufeffa", "b <|endoftext|> c", "d\u2028e"]
    assert split_documents("") == split_documents("\n<|endoftext|>\n ") == []


@quick
@given(st.lists(st.text(st.sampled_from("abt .é猫😀\n"), min_size=1, max_size=8), min_size=1, max_size=3))
def test_bytes_are_the_utf8_bytes_of_the_stripped_documents_whatever_the_characters(model, documents):
    total = sum(len(document.strip().encode()) for document in documents)
    if total:
        assert sum(piece.bytes for piece in runs(model, documents, "documents", 4)) == total


def test_a_stream_shorter_than_its_window_is_an_error(model):
    count = 1 + len(plain_ids(model, "a cat."))
    assert len(runs(model, "a cat.", "stream", count)) == 1
    with pytest.raises(MinillmError, match=f"the text has {count} tokens.*at least one window of {count + 1}"):
        runs(model, "a cat.", "stream", count + 1)


@pytest.mark.parametrize("protocol", ["documents", "stream"])
def test_special_tokens_in_the_text_are_plain_text(model, protocol):
    pieces = runs(model, "a </s> b <unk> <s>.", protocol, 19)
    assert pieces[0].ids[0] == 1
    assert not {0, 1, 2} & {index for piece in pieces for index in piece.ids[piece.unscored :]}


@pytest.mark.parametrize(
    ("bos", "fields", "expected", "why"),
    [
        (True, {}, [1], "from the tokenizer"),
        (False, {}, [1], "from the config"),
        (False, {"bos_token_id": 5}, [5], "from the config"),
        (False, {"bos_token_id": None}, [2], "the EOS"),
    ],
)
def test_bos_is_the_tokenizers_else_the_configs_else_the_eos(tmp_path, bos, fields, expected, why):
    found, words = bos_ids(tiny.loaded(tmp_path / "model", bos=bos, **fields))
    assert found == expected and why in words and str(expected[0]) in words


def test_hashes_are_those_of_the_stripped_documents():
    expected = [hashlib.sha256(story.encode()).hexdigest() for story in tiny.STORIES]
    assert document_hashes(TEXT) == document_hashes([f" {story}\n" for story in tiny.STORIES]) == expected


def test_runs_of_documents_and_windows_of_a_stream_by_hand(model):
    cat, bytes_of_cat = model.tokenizer.encode_with_bytes("a cat")
    first, *_, last = runs(model, ["a cat", "a"], "documents", 4)
    assert first == Run([1, *cat[:3]], 1, 0, sum(bytes_of_cat[:3]))
    assert last == Run([1, *plain_ids(model, "a")], 1, 1, 1)
    whole = [1, *plain_ids(model, "a cat\n\na")]
    sizes = [0, *model.tokenizer.encode_with_bytes("a cat\n\na")[1]]
    first, second = runs(model, ["a cat", "a"], "stream", 4)[:2]
    assert (first.ids, first.unscored, first.document, first.bytes) == (whole[:4], 1, 0, sum(sizes[1:4]))
    assert (second.ids, second.unscored, second.document, second.bytes) == (whole[4:8], 1, 1, sum(sizes[5:8]))


def test_a_sample_is_read_as_its_parts_say(model):
    sample = Sample(TEXT, context=9)
    assert sample.protocol == "documents" and runs(model, *sample) == runs(model, TEXT, "documents", 9)
    assert as_documents(sample.documents) == as_documents([f" {story}\n" for story in tiny.STORIES]) == tiny.STORIES


def test_the_first_share_of_the_documents_is_one_part_and_the_rest_the_other():
    assert split_text(TEXT) == split_text(tiny.STORIES) == (tiny.STORIES[:2], tiny.STORIES[2:])
    assert split_text(TEXT, 0.01) == (tiny.STORIES[:1], tiny.STORIES[1:])
    assert split_text(TEXT, 0.99) == (tiny.STORIES[:3], tiny.STORIES[3:])


def test_a_single_document_is_cut_at_the_nearest_line_end():
    assert split_text("one\ntwo\nthree\nfour") == (["one\ntwo"], ["three\nfour"])
    for text in ("", "<|endoftext|>"):
        with pytest.raises(MinillmError, match=r"0 document\(s\)"):
            split_text(text)


def test_first_tokens_takes_whole_documents_until_there_are_enough_tokens(model):
    first = len(plain_ids(model, tiny.STORIES[0]))
    assert first_tokens(model, tiny.STORIES, first) == tiny.STORIES[:1]
    assert first_tokens(model, tiny.STORIES, first + 1) == tiny.STORIES[:2]
    assert first_tokens(model, tiny.STORIES, 10**6) == tiny.STORIES
