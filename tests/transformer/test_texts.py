"""Texts down to the token: BOS, the runs of both protocols, and as many tokens as are asked for."""

import json
import warnings

import numpy as np
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
    seen_documents,
    split_text,
)

quick = settings(max_examples=40, derandomize=True, deadline=None)
TEXT = "\n<|endoftext|>\n".join(tiny.STORIES) + "\n<|endoftext|>\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Llama:
    return tiny.loaded(tmp_path_factory.mktemp("texts") / "model")


def plain_ids(model: Llama, text: str) -> list[int]:
    return model.tokenizer.encode(text, bos=False)


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


def test_a_bos_that_is_asked_for_stands_before_texts_and_prompts_whatever_the_files_say(tmp_path):
    model = tiny.loaded(tmp_path / "model")
    before = plain_ids(model, "a cat")
    model.use_bos(np.int64(7))
    assert bos_ids(model) == ([7], "7, as asked for") and model.tokenizer.encode("a cat") == [7, *before]
    assert [run.ids for run in runs(model, ["a cat"], context=4)] == [[7, *before[i : i + 3]] for i in (0, 3)]
    for bad in (-1, tiny.VOCABULARY, True, "1"):
        with pytest.raises(MinillmError, match="bos is"):
            model.use_bos(bad)


def test_without_a_bos_the_first_token_of_each_run_is_not_scored(tmp_path):
    model = tiny.loaded(tmp_path / "model")
    model.use_bos(None)  # before the tokenizer is read
    ids, sizes = (array.tolist() for array in model.tokenizer.encode_with_bytes("a cat."))
    assert bos_ids(model) == ([], "none, as asked for") and model.tokenizer.encode("a cat.") == ids
    found = runs(model, ["a cat.", "\n"], context=4)
    assert [(run.ids, run.unscored) for run in found] == [(ids[:4], 1), (ids[4:], 1)]
    assert [run.bytes for run in found] == [sum(sizes[1:4]), sum(sizes[5:])] and found.scored == len(ids) - 2
    assert runs(model, ["a cat."], "stream", 4)[0].ids == ids[:4]
    with pytest.raises(MinillmError, match="context is 1, expected 2 to"):
        runs(model, ["a cat."], context=1)
    with pytest.raises(MinillmError, match="no document has two tokens"):
        runs(model, ["t", "t"])


@pytest.mark.parametrize(
    ("named", "config_bos", "said"),
    [
        ({"bos_token": "<s>", "add_bos_token": True}, None, True),
        ({"bos_token": {"content": "<s>"}}, None, True),
        ({"bos_token": "<s>", "add_bos_token": True}, 1, True),  # transformers puts it in front of prompts
        ({"bos_token": "<s>"}, 1, False),
        ({"bos_token": "<s>", "add_bos_token": False}, None, False),
        ({"bos_token": None}, None, False),
        ({"bos_token": "<nothing>", "add_bos_token": True}, None, False),
        ("[", None, False),
    ],
)
def test_a_bos_that_tokenizer_config_alone_asks_for_gives_a_note_with_its_id(tmp_path, named, config_bos, said):
    folder = tiny.folder(tmp_path / "model", bos=False, bos_token_id=config_bos)
    content = named if isinstance(named, str) else json.dumps(named)
    (folder / "tokenizer_config.json").write_text(content)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        assert Llama.from_folder(folder).tokenizer.bos_ids == ()
        quiet = Llama.from_folder(folder)
        quiet.use_bos(1)
        assert quiet.tokenizer.bos_ids == (1,)
    assert ["<s>" in str(note.message) and "--bos 1" in str(note.message) for note in notes] == [True] * said


def test_runs_of_documents_and_windows_of_a_stream_by_hand(model):
    cat, bytes_of_cat = (array.tolist() for array in model.tokenizer.encode_with_bytes("a cat"))
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
    assert sample.protocol == "documents"
    assert list(runs(model, *sample)) == list(runs(model, TEXT, "documents", 9))
    assert as_documents(sample.documents) == as_documents([f" {story}\n" for story in tiny.STORIES]) == tiny.STORIES


def test_first_tokens_takes_whole_documents_until_there_are_enough_tokens(model):
    first = len(plain_ids(model, tiny.STORIES[0]))
    assert first_tokens(model, tiny.STORIES, first) == tiny.STORIES[:1]
    assert first_tokens(model, tiny.STORIES, first + 1) == tiny.STORIES[:2]
    assert first_tokens(model, tiny.STORIES, 10**6) == tiny.STORIES


# ---- a book: one document, longer than what is read ------------------------------------------------------------------

BOOK = " ".join(f"{story} No {number} ends." for number in range(60) for story in tiny.STORIES).replace(" Tom", "\nTom")


@pytest.mark.parametrize("tokens", [1, 2, 7, 100, 401])
def test_a_long_document_is_cut_at_a_token_so_that_the_part_has_these_tokens(model, tokens):
    with pytest.warns(UserWarning, match="document 1 of the text is long"):
        (part,) = first_tokens(model, [BOOK], tokens)
    ids = plain_ids(model, part)
    assert ids == plain_ids(model, BOOK)[: len(ids)] and BOOK.startswith(part) and part == part.strip()
    assert tokens - 40 < len(ids) <= max(tokens, 2)  # the first token, a space alone, has no text


@quick
@given(st.text(st.sampled_from("abt .é猫😀\n"), min_size=30, max_size=60), st.integers(1, 9))
def test_a_part_ends_with_a_whole_character_and_never_holds_much_more_than_was_asked_for(model, text, tokens):
    if len(plain_ids(model, text.strip())) > 2 * tokens:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (part,) = first_tokens(model, [text], tokens)
        assert part and text.strip().startswith(part) and len(plain_ids(model, part)) <= max(tokens, 5)


def test_documents_stay_whole_where_that_is_at_most_twice_the_tokens(model):
    sizes = [len(plain_ids(model, story)) for story in tiny.STORIES]
    enough = max(sizes[0] + 1, (sizes[0] + sizes[1] + 1) // 2)
    assert first_tokens(model, tiny.STORIES, enough) == tiny.STORIES[:2]
    with pytest.warns(UserWarning, match="document 2"):
        found = first_tokens(model, [tiny.STORIES[0], BOOK, tiny.STORIES[1]], sizes[0] + 50)
    assert found[0] == tiny.STORIES[0] and BOOK.startswith(found[1]) and len(found) == 2
    assert 10 < len(plain_ids(model, found[1])) <= 50


def test_a_book_is_encoded_only_as_far_as_it_is_needed(model, monkeypatch):
    sizes, real = [], type(model.tokenizer)._encode_piece
    monkeypatch.setattr(
        type(model.tokenizer), "_encode_piece", lambda self, text: sizes.append(len(text)) or real(self, text)
    )
    with pytest.warns(UserWarning, match="is long"):
        first_tokens(model, [BOOK * 200], 400)
    assert max(sizes) < 70_000 < len(BOOK * 200) and sum(sizes) < 200_000


def test_what_was_cut_is_known_by_its_document_and_two_halves_by_their_own(model):
    with pytest.warns(UserWarning, match="is long"):
        (short,), (longer,) = first_tokens(model, [BOOK], 50), first_tokens(model, [BOOK], 90)
    assert document_hashes([short]) == document_hashes([longer]) == document_hashes([BOOK])
    assert seen_documents([short], document_hashes([longer])) == 1
    with pytest.warns(UserWarning, match="one document"):
        left, right = split_text(BOOK)
    assert seen_documents(right, document_hashes(left)) == seen_documents(left, document_hashes(right)) == 0
    assert seen_documents(right, document_hashes([BOOK])) == 1  # thresholds of the whole book
    cut = [first_tokens(model, half, 30)[0] for half in (left, right)]
    assert seen_documents(cut[1:], document_hashes(cut[:1])) == 0
    assert seen_documents(cut[1:], document_hashes(right)) == seen_documents(cut[1:], document_hashes([BOOK])) == 1


def test_numpy_numbers_are_as_good_as_pythons(model):
    assert first_tokens(model, tiny.STORIES, np.int64(20)) == first_tokens(model, tiny.STORIES, 20)
    assert list(runs(model, TEXT, context=np.int32(9))) == list(runs(model, TEXT, context=9))
    for bad in (True, "9", 9.0, float("nan")):
        with pytest.raises(MinillmError, match="context is .*, expected a whole number, 2 to 128"):
            runs(model, TEXT, context=bad)
        with pytest.raises(MinillmError, match="tokens is .*, expected a whole number, at least 1"):
            first_tokens(model, TEXT, bad)


def test_a_separator_inside_a_line_is_no_text_under_either_protocol(model):
    inside = " <|endoftext|> ".join(tiny.STORIES)
    with pytest.warns(UserWarning, match="3 of 3 separators"):
        assert list(runs(model, inside)) == list(runs(model, tiny.STORIES))
    own_lines = "\n<|endoftext|>\n".join(tiny.STORIES)
    with pytest.warns(UserWarning, match="3 of 3 separators"):
        assert list(runs(model, inside, "stream", 9)) == list(runs(model, own_lines, "stream", 9))
    with pytest.warns(UserWarning, match="separators"):
        assert list(runs(model, [inside, "a."])) == list(runs(model, [*tiny.STORIES, "a."]))


def test_the_runs_of_a_long_text_hold_a_few_bytes_for_each_token(model):
    found = runs(model, [BOOK] * 30, context=100)
    assert len(found) > 100 and found.scored == sum(len(run.ids) - run.unscored for run in found)
    assert found._ids.itemsize == 2
    assert found[1:3] == [found[1], found[2]] and found[-1] == list(found)[-1]
    with pytest.raises(IndexError):
        found[len(found)]
