"""What was found is printed as text: it cannot steer a terminal, and no message is endless."""

import pytest

from minillm.errors import MESSAGE_LIMIT, MinillmError, TraceError, show


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, Ünïcödé 猫 😀", "plain, Ünïcödé 猫 😀"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("one\r\ntwo\t.", r"one\r\ntwo\t."),
        ("\x9b31m\x00", r"\x9b31m\x00"),
        ("cod\u202ee\u2066.", r"cod\u202ee\u2066."),  # turned to the right, and a piece of its own
        ("a\u200bb\ufeff", r"a\u200bb\ufeff"),  # no width
        ("a\u2028b", r"a\u2028b"),
        ("\ud800", r"\ud800"),
        ("👩\u200d🔬", "👩\u200d🔬"),
    ],
)
def test_characters_that_steer_a_terminal_are_escaped(text, shown):
    assert show(text) == shown and show(shown) == shown


def test_a_long_text_loses_its_middle():
    assert show("a" * 30 + "z" * 30, 25) == "a" * 10 + " ... " + "z" * 10
    assert show("a" * 25, 25) == "a" * 25


def test_the_lines_of_a_text_can_stay_while_the_rest_is_escaped():
    assert show("one\n\ttwo\x1b[2J\r", keep="\n\t") == "one\n\ttwo\\x1b[2J\\r"


@pytest.mark.parametrize("kind", [MinillmError, TraceError])
def test_every_message_is_one_line_of_limited_length(kind):
    error = kind("the name " + "\x1b\n" * 5_000 + " is not known")
    assert "\x1b" not in str(error) and "\n" not in str(error) and str(error).endswith("is not known")
    assert len(str(error)) <= MESSAGE_LIMIT and len(str(kind("x" * 9_999))) == MESSAGE_LIMIT - 1
