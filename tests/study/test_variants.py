"""Edited texts: those made here differ where they should, and the released files are read as they are."""

import warnings

import fuzz
import numpy as np
import pytest
from edited import RELEASED, small_model, texts
from hypothesis import strategies as st

from minillm.errors import MinillmError
from minillm.study.edits import shared_prefix
from minillm.study.variants import (
    Pair,
    insert_sentence,
    made_pairs,
    read_perturbation,
    released_pairs,
    replace_tail,
    scatter,
)
from minillm.transformer.model import Llama


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Llama:
    return small_model(tmp_path_factory.mktemp("patterns") / "model")


def test_a_replaced_tail_keeps_the_first_words_as_they_stand_and_their_number():
    text = "a  b\nc d e f g h i j"
    assert replace_tail(text, "x y z", 0.7) == "a  b\nc d e f g x y z"
    assert replace_tail(text, "x", 0.8) == "a  b\nc d e f g h x x"
    assert replace_tail(text, "x y", 1.0) == "a  b\nc d e f g h i y"  # at least one word goes


@pytest.mark.parametrize(
    ("text", "donor", "edited"),
    [
        ("a b c d e f g h i j", "a b c d e f g h i j", "a b c d e f g e f g"),  # its own end: the words before it
        ("the cat ran. The end.", "a dog sat. The end.", "the cat ran. The The"),
        ("a b", "a b", "a a"),
        ("a b", "x  b\n", "a x"),
        ("a a a", "a a", "a a a"),  # nothing else is there
    ],
)
def test_a_tail_is_never_replaced_by_the_words_that_stand_there(text, donor, edited):
    assert replace_tail(text, donor, 0.7) == edited


def words_of(model, pair: Pair) -> list[list[str]]:
    return [model.tokenizer.decode(ids).split() for ids in (pair.original, pair.edited)]


@pytest.mark.parametrize(
    "documents",
    [
        ["the cat sat on the mat.\nthe dog ran home.\nthe red ball is in the sea.\nthe end."],
        ["the cat sat on the mat. the end."] * 3,  # the same document again and again
        ["the cat sat. the end.", "the dog ran. the end.", "a bird sang. the end."],
        ["a b", "a b c", "cat"],
    ],
)
def test_every_variant_has_other_words_than_its_text(model, documents):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pairs = made_pairs(model, documents, np.random.default_rng(0))
    assert pairs
    for pair in pairs:
        original, edited = words_of(model, pair)
        assert original != edited and pair.original != pair.edited, pair.variant


def test_variants_that_cannot_be_made_are_left_out_with_a_note(model):
    with pytest.warns(UserWarning, match="tail 95 % of document 0, .* and 10 more"):
        pairs = made_pairs(model, ["a", "a a a", ""], np.random.default_rng(0))
    assert {pair.variant for pair in pairs} == {"insertion", "scattered 10 %"}
    with pytest.warns(UserWarning, match="all of document 1, which is empty"):
        made_pairs(model, ["the cat sat on a mat.", " "], np.random.default_rng(0))


def test_edits_that_change_white_space_alone_are_drawn_again(model):
    text = "a" + " " * 60 + "b"
    (pair,) = [p for p in made_pairs(model, [text, texts(1)[0]], np.random.default_rng(0)) if "scattered" in p.variant][
        :1
    ]
    original, edited = words_of(model, pair)
    assert original != edited


def test_a_sentence_is_inserted_after_the_sentence_nearest_to_the_middle():
    assert insert_sentence("One two. Three four. Five six.", "New one! Rest.") == (
        "One two. Three four. New one! Five six."
    )
    assert insert_sentence("no end at all", "new") == "no end new at all"
    assert insert_sentence("word", "new") == "word new"


def test_scattered_ids_differ_at_exactly_the_share_asked_for():
    ids = np.random.default_rng(0).integers(0, 9, 200).tolist()
    for share, count in ((0.1, 20), (0.001, 1), (1, 200)):
        edited = scatter(ids, share, np.random.default_rng(1))
        assert sum(a != b for a, b in zip(ids, edited, strict=True)) == count and set(edited) <= set(ids)
    with pytest.raises(MinillmError, match="repeats one token"):
        scatter([4, 4], 0.5, np.random.default_rng(0))


def test_variants_are_the_same_for_the_same_seed_and_share_what_they_should(model):
    documents = texts(2)
    pairs = made_pairs(model, documents, np.random.default_rng(0))
    assert pairs == made_pairs(model, documents, np.random.default_rng(0))
    shares = {pair.variant: shared_prefix(*pair[2:]) / len(pair.edited) for pair in pairs[:8]}
    for percent in (95, 90, 85, 80, 75, 70):
        assert shares[f"tail {percent} %"] == pytest.approx(percent / 100, abs=0.05)


# ---- the released files ----------------------------------------------------------------------------------------------


def test_a_released_file_is_read_in_any_order_and_indentation(tmp_path, model):
    path = tmp_path / "paragraph3.txt"
    for data in (RELEASED.encode(), RELEASED.replace("\n", "\r\n").encode("utf-8-sig")):
        path.write_bytes(data)
        assert read_perturbation(path) == {None: "One two. End", 95: "One two. Ende", 90: "One two. Tail"}
    (tmp_path / "paragraph12.txt").write_bytes(RELEASED.encode())
    pairs = released_pairs(model, tmp_path)
    assert [(p.text, p.variant) for p in pairs[::2]] == [("paragraph3", "tail 95 %"), ("paragraph12", "tail 95 %")]
    assert released_pairs(model, path) == pairs[:2]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'paragraphMain = """a"""', "holds paragraphMain, expected paragraphMain and at least one variant"),
        (b'paragraph95 = """a"""\nparagraph90 = """a"""', "holds paragraph95, paragraph90, expected paragraphMain"),
        (b"", "holds no paragraph"),
        (b'paragraphMain = """a"""\nparagraph95 = """b', "found 'paragraph95"),
        (b'import os\nparagraphMain = """a"""', "found 'import os'"),
        (b'paragraphMain = """a"""\nparagraphMain = """b"""', "stands twice"),
        (b'paragraphMain = """ \n"""\nparagraph95 = """b"""', "paragraphMain is empty"),
        (b'paragraphMain = """a b"""\nparagraph95 = """a  b"""', "paragraph95 has the words of paragraphMain"),
        (b'paragraphMain = """a b"""\nparagraph00 = """a c"""', "holds paragraph00, expected a similarity from 1"),
        (b"\xff\xfe", "byte 0 is not UTF-8"),
        (None, "is missing"),
    ],
)
def test_what_is_no_released_file_gives_one_sentence_with_its_name(tmp_path, data, says):
    path = tmp_path / "paragraph1.txt"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(MinillmError, match=says) as error:
        read_perturbation(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    assert fuzz.memory_of(read_perturbation, fuzz.huge(tmp_path / "paragraph1.txt", RELEASED.encode())) < 1e6


@fuzz.examples
def test_a_broken_released_file_is_one_sentence_or_good_texts(examples, tmp_path):
    lines = [[line] for line in RELEASED.splitlines()]
    files = st.lists(st.sampled_from([*lines, ["x"], ['"""'], ['paragraph95 = """a b"""'], ["import os"]]), max_size=9)
    raws = files.map(lambda lines: "\n".join(line for (line,) in lines).encode())

    def valid(found):
        assert None in found and len(found) > 1 and all(text.strip() == text != "" for text in found.values())
        assert all(text.split() != found[None].split() for key, text in found.items() if key is not None)

    counts = fuzz.holds(examples, raws, tmp_path / "paragraph1.txt", read_perturbation, valid)
    assert counts["refused"] and (counts["accepted"] or examples < 1000)


def test_a_folder_without_texts_is_refused(tmp_path, model):
    with pytest.raises(MinillmError, match="holds no .txt file"):
        released_pairs(model, tmp_path)


@pytest.mark.shared
def test_every_released_variant_shares_its_stated_similarity_as_a_prefix(shared):
    for path in (shared / "paper" / "perturbation").glob("*.txt"):
        found = read_perturbation(path)
        assert sorted(key for key in found if key) == [70, 75, 80, 85, 90, 95]
        original = found[None].split()
        for percent, text in found.items():
            if percent:
                same = shared_prefix(original, text.split()) / len(original)
                stated = 90 if (path.stem, percent) == ("paragraph11", 95) else percent
                assert same == pytest.approx(stated / 100, abs=0.015)
