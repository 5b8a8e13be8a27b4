"""The parser: what it complains about is escaped, and an action is found among the flags."""

import pytest

from minillm.cli.main import main
from minillm.cli.parser import ACTION, Parser, action_first

ACTIONS = ("train", "eval")


@pytest.mark.parametrize(
    ("words", "ordered"),
    [
        ("train -m X", "train -m X"),
        ("-m X train", "train -m X"),
        ("-m train eval", "eval -m train"),  # the first one is a model
        ("-mX train --json", "train -mX --json"),
        ("--json eval", "eval --json"),
        ("--model=X eval", "eval --model=X"),
        ("--shape 2048 5632 eval", "eval --shape 2048 5632"),
        ("--help", "--help"),
        ("-m X", "-m X"),
        ("-o eval", "-o eval"),
    ],
)
def test_the_action_comes_first_unless_it_is_the_value_of_a_flag(words, ordered):
    assert action_first(words.split(), ACTIONS) == ordered.split()


def made() -> Parser:
    top = Parser(prog="top")
    actions = top.add_subparsers(dest=ACTION, required=True)
    for name in ACTIONS:
        action = actions.add_parser(name)
        action.siblings = actions.choices
        action.add_argument(f"--only-{name}")
    top.actions = actions.choices
    return top


def test_a_flag_of_another_action_is_named_with_its_owner(capsys):
    assert made().parse_args(["--only-eval", "3", "eval"]).only_eval == "3"
    with pytest.raises(SystemExit, match="2"):
        made().parse_args(["train", "--only-eval", "3"])
    said = capsys.readouterr().err
    assert "usage: top train" in said and "unrecognized arguments: --only-eval 3 (of eval)" in said


def test_a_complaint_cannot_steer_a_terminal_and_is_no_page_long(capsys):
    with pytest.raises(SystemExit, match="2"):
        made().parse_args(["train", "--\x1b[2J", "x" * 9_999])
    said = capsys.readouterr().err
    assert "\\x1b[2J" in said and "\x1b" not in said and len(said) < 2_000


@pytest.mark.parametrize("flag", ["--thresholds", "--predictor", "--text"])
def test_an_empty_name_of_a_file_is_no_missing_flag(flag, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["perplexity", flag, ""])
    assert stop.value.code == 2 and f"{flag}: is empty" in capsys.readouterr().err
