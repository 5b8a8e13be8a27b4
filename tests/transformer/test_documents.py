"""Documents: where they end, their hashes, a text without separators, and two parts of one text."""

import hashlib
import pickle
import warnings

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.errors import MinillmError
from minillm.transformer.documents import (
    Part,
    as_documents,
    document_hashes,
    seen_documents,
    split_documents,
    split_text,
    without_separators,
)

quick = settings(max_examples=100, derandomize=True, deadline=None)
SEPARATOR = "<|endoftext|>"
TEXT = f"\n{SEPARATOR}\n".join(tiny.STORIES) + f"\n{SEPARATOR}\n"


@pytest.mark.parametrize(
    ("text", "documents", "inside"),
    [
        ("a\n<|endoftext|>\nb", ["a", "b"], 0),
        ("a\r\n<|endoftext|>\r\nb\r\n", ["a", "b"], 0),
        ("\ufeffa \n\n<|endoftext|>\r\n  <|endoftext|>  \n<|endoftext|>\n\td\u2028e", ["a", "d\u2028e"], 0),
        ("<|endoftext|>\na\n<|endoftext|>", ["a"], 0),
        ("  <|endoftext|> \n<|endoftext|>\n", [], 0),
        ("<|endoftext|>", [], 0),
        ("", [], 0),
        ("\ufeff\n<|endoftext|>\n \ufeff", [], 0),
        ("a <|endoftext|> b", ["a", "b"], 1),
        ("a<|endoftext|>b", ["a", "b"], 1),
        ("a<|endoftext|>\nb<|endoftext|>", ["a", "b"], 2),
        ("a\n<|endoftext|>b\r\n<|endoftext|>\r\nc", ["a", "b", "c"], 1),
        ("a\n<|endoftext|><|endoftext|>\nb", ["a", "b"], 2),
        ("<|endoftext|>a", ["a"], 1),
        ("a\u2028<|endoftext|>\u2028b", ["a", "b"], 0),
        ("a <|endofText|> b <|endoftext| >", ["a <|endofText|> b <|endoftext| >"], 0),
    ],
)
def test_a_separator_ends_a_document_wherever_it_stands_and_a_note_counts_those_inside_lines(text, documents, inside):
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        assert split_documents(text) == documents
    assert len(notes) == (inside > 0)
    assert not inside or f"{inside} of {text.count(SEPARATOR)} separators" in str(notes[0].message)


def test_a_list_of_documents_is_stripped_and_split_where_it_holds_separators():
    assert as_documents([" a\n", "", "b"]) == ["a", "", "b"]
    assert as_documents(["a", f"b\n{SEPARATOR}\nc"]) == ["a", "b", "c"]


@pytest.mark.parametrize("bad", [None, b"text", 5, [b"text"], ["a", None], [1, 2]])
def test_documents_that_are_no_texts_are_refused(bad):
    with pytest.raises(MinillmError, match="of type (NoneType|bytes|int), expected"):
        as_documents(bad)


spaces = st.sampled_from(["", " ", "\n", "\n\n", " \n", "\n ", "\r\n", "\u2028"])
texts = st.lists(st.tuples(spaces, st.sampled_from(["", "a", "a b\n c"]), spaces).map("".join), min_size=1, max_size=5)


@quick
@given(texts)
def test_a_text_without_separators_has_a_blank_line_for_each_and_nothing_else_changed(parts):
    text = SEPARATOR.join(parts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = without_separators(text)
    assert SEPARATOR not in found and found.split() == text.replace(SEPARATOR, " ").split()
    lines = text.splitlines(keepends=True)
    if all(SEPARATOR not in line or line.strip() == SEPARATOR for line in lines):
        assert found == "".join("\n" if line.strip() == SEPARATOR else line for line in lines)
    for word in ("a", "a b"):  # no document's last word runs into the next one's first
        assert found.split().count(word) == text.replace(SEPARATOR, " ").split().count(word)


def test_separators_inside_lines_become_blank_lines_like_those_on_their_own():
    with pytest.warns(UserWarning, match="of 3 separators"):
        assert without_separators(f"\ufeffa {SEPARATOR} b{SEPARATOR}\nc\n{SEPARATOR}\nd") == "a\n\nb\n\nc\n\nd"


def test_hashes_are_those_of_the_stripped_documents():
    expected = [hashlib.sha256(story.encode()).hexdigest() for story in tiny.STORIES]
    assert document_hashes(TEXT) == document_hashes([f" {story}\n" for story in tiny.STORIES]) == expected
    assert seen_documents(TEXT, expected[1:3]) == 2 and seen_documents(["other"], expected) == 0


def test_a_part_is_a_text_that_survives_pickling_and_stripping():
    part = Part.beginning_of("one two three", "one two")
    copy = pickle.loads(pickle.dumps(part))
    assert copy == "one two" and document_hashes([copy]) == document_hashes(as_documents([part]))
    assert document_hashes([part]) == document_hashes(["one two three"]) != document_hashes(["one two"])


def test_the_first_share_of_the_documents_is_one_part_and_the_rest_the_other():
    assert split_text(TEXT) == split_text(tiny.STORIES) == (tiny.STORIES[:2], tiny.STORIES[2:])
    assert split_text(TEXT, 0.01) == (tiny.STORIES[:1], tiny.STORIES[1:])
    assert split_text(TEXT, 0.99) == (tiny.STORIES[:3], tiny.STORIES[3:])


@pytest.mark.parametrize(
    ("text", "left", "right"),
    [
        ("one\ntwo\nthree\nfour", "one\ntwo", "three\nfour"),
        ("A title\n" + "word " * 50, "A title\n" + ("word " * 19).strip(), ("word " * 31).strip()),
        ("One. " * 10 + "Two " * 20, ("One. " * 10).strip(), ("Two " * 20).strip()),
        ("a b c\n" * 10 + "\n" + "d e f\n" * 10, ("a b c\n" * 10).strip(), ("d e f\n" * 10).strip()),
        ("一二三。" * 10, "一二三。" * 4, "一二三。" * 6),
        ("x" * 10, "x" * 4, "x" * 6),
    ],
)
def test_a_single_document_is_cut_where_a_paragraph_a_line_a_sentence_or_a_word_ends(text, left, right):
    with pytest.warns(UserWarning, match="the text is one document"):
        assert split_text(text) == ([left], [right])


@pytest.mark.parametrize("text", ["", SEPARATOR, "a", " a "])
def test_a_text_of_which_no_two_parts_can_be_made_is_refused(text):
    with pytest.raises(MinillmError, match=r"[01] document\(s\)"):
        split_text(text)


@pytest.mark.parametrize("share", [0, 1, -0.5, True, "0.5", float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(MinillmError, match="share is .*, expected a number between 0 and 1"):
        split_text(TEXT, share)


def test_a_document_that_stands_twice_is_in_one_part_only():
    texts = ["a cat", "a dog", "a cat", "the sea", "a dog", "the sun", "a cat"]
    first, rest = split_text(texts, 0.5)
    assert (first, rest) == (["a cat", "a dog", "a cat", "a dog", "a cat"], ["the sea", "the sun"])
    with pytest.warns(UserWarning, match="one document"):
        first, rest = split_text(["one. two. three. four."] * 3, 0.5)
    assert len(first) == len(rest) == 1 and set(first).isdisjoint(rest)
