"""What commands do together: texts, prompts, models and words on the screen."""

import argparse
from pathlib import Path

import pytest

import minillm
from minillm.cli import shared
from minillm.errors import MinillmError


def test_words_fit_the_terminal_and_follow_their_first_words(monkeypatch):
    for columns, width in (("20", 40), ("80", 80), ("300", 100)):
        monkeypatch.setenv("COLUMNS", columns)
        lines = shared.wrapped("word " * 60, "dense  ").splitlines()
        assert width - 6 < max(map(len, lines)) <= width and lines[0].startswith("dense  word")
        assert all(line.startswith("       word") for line in lines[1:])


def test_what_is_said_and_wrapped_cannot_steer_a_terminal_and_is_no_page_long(capsys):
    shared.say("note:", "red \x1b[31m", "x" * 5000)
    said = capsys.readouterr().err
    assert "red \\x1b[31m" in said and "\x1b" not in said and len(said) < 1100
    assert shared.wrapped("a \x1b[2J", "b\x07 ") == "b\\x07 a \\x1b[2J"


def test_a_text_is_never_written_without_a_space_after_its_name(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert (
        shared.labelled({"shadow 4-bit": "there was", "mid": "a cat"})
        == "  shadow 4-bit  there was\n  mid           a cat"
    )
    longest = shared.labelled({"n" * 90: "there was a cat"}).splitlines()
    assert " ".join(line.strip() for line in longest).replace(" ", "").endswith("therewasacat")


def test_a_text_alone_is_split_and_two_texts_are_kept_whole(capsys):
    calibration, test = shared.two_texts("stories.txt")
    assert len(calibration) + len(test) == Path("stories.txt").read_text(encoding="utf-8").count("<|endoftext|>") + 1
    assert shared.two_texts("one.txt", "letter.txt") == ("a", "A cat.\nA dog.\nThe sea.")
    assert capsys.readouterr().err == ""
    calibration, test = shared.two_texts(None)
    assert calibration != test and capsys.readouterr().err.count("embedded") == 2  # stderr says which texts were read


def test_no_more_documents_are_taken_than_hold_the_tokens_and_that_is_printed(capsys):
    model, texts = minillm.load("m"), ["a cat", "a dog", "the sea"]
    assert shared.enough_documents([model], texts, 10_000, None) == texts and capsys.readouterr().err == ""
    assert shared.enough_documents([model], texts, 5, None) == texts[:1]
    assert "the first 1 of 3 documents" in capsys.readouterr().err


def test_the_number_of_new_tokens_is_asked_for_or_what_the_context_has_room_for():
    model = minillm.load("m")
    longest = model.config.max_position_embeddings

    def tokens(asked, prompt):
        return shared.new_tokens(argparse.Namespace(max_new_tokens=asked), model, [1] * prompt, 40)

    assert (tokens(7, 3), tokens(None, 3), tokens(None, longest - 5), tokens(None, longest)) == (7, 40, 5, 1)


def test_a_predictor_alone_cannot_say_what_is_true():
    given = argparse.Namespace(thresholds=None, predictor="p.safetensors", form="masked")
    with pytest.raises(MinillmError, match="--predictor needs --thresholds of policy mid"):
        shared.load_ffn(given, minillm.load("m"))
