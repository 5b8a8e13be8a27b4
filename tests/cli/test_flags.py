"""Shared flags: the types that turn a word into a value, the parents, and the names that they offer."""

import argparse

import pytest

from minillm.cli import flags
from minillm.cli import main as cli


def test_the_names_that_the_parser_offers_are_those_that_there_are():
    from minillm.sparsity.policies import POLICIES
    from minillm.sparsity.thresholds import BYS

    assert flags.POLICY_NAMES == tuple(POLICIES) and set(flags.DEMO_POLICIES) <= set(POLICIES)
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["calibrate", "-o", "x", "--by", "share"])
    assert all(cli.parser().parse_args(["calibrate", "-o", "x", "--by", by]).by == by for by in BYS)


def test_a_flag_of_a_parent_is_the_same_in_every_command():
    where = {"--model": "demo generate inspect bundle", "--text": "demo perplexity sweep", "--context": "sweep predict"}
    (commands,) = (action for action in cli.parser()._actions if action.dest == "command")
    for name, users in where.items():
        found = [commands.choices[user]._option_string_actions[name] for user in users.split()]
        assert len({(flag.dest, flag.default, flag.type, flag.metavar) for flag in found}) == 1, name
    assert all("--json" in sub._option_string_actions for sub in commands.choices.values())


def test_a_command_takes_the_flags_of_its_parents_and_its_functions_words():
    def command_count(a: argparse.Namespace) -> int:
        """Count something.

        More about it.
        """
        return 0

    top = argparse.ArgumentParser()
    commands = top.add_subparsers()
    sub = flags.command(commands, "count", command_count, flags.seed(), flags.running())
    a = top.parse_args(["count", "-s", "3", "--json"])
    assert (a.run, a.seed, a.json, a.dtype, a.threads) == (command_count, 3, True, "float32", None)
    assert commands._choices_actions[0].help == "Count something." and "More about it" in sub.format_help()


@pytest.mark.parametrize(
    ("read", "word", "value"),
    [
        (flags.share, "0", 0.0), (flags.shares, "0.1,0.25", [0.1, 0.25]), (flags.shares_to_all, "0.5, 1", [0.5, 1.0]),
        (flags.whole, "0", 0), (flags.positive, "7", 7), (flags.wholes, "1,32", [1, 32]),
        (flags.names, "mid, cats", ["mid", "cats"]),
    ],
)  # fmt: skip
def test_a_word_becomes_a_value(read, word, value):
    assert read(word) == value


@pytest.mark.parametrize(
    ("read", "word", "expected"),
    [
        (flags.share, "1", "a share from 0 to below 1"), (flags.share, "-0.1", "a share"),
        (flags.shares, "0.5,1", "a share"), (flags.shares_to_all, "1.5", "a share"), (flags.whole, "-1", "at least 0"),
        (flags.positive, "0", "at least 1"), (flags.wholes, "4,x", "at least 1"),
    ],
)  # fmt: skip
def test_a_wrong_word_is_named_with_what_was_expected(read, word, expected):
    with pytest.raises(argparse.ArgumentTypeError, match=f"found .*, expected .*{expected}"):
        read(word)
