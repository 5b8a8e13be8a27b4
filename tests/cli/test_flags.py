"""Shared flags: the types that turn a word into a value, the parents, and the names that they offer."""

import argparse
import re
import shlex

import pytest

from minillm.cli import flags
from minillm.cli import main as cli
from minillm.cli.parser import Parser

ACTIONS = {
    "predict": ("train", "eval"), "prefetch": ("simulate", "replay", "table", "blocks", "tuned", "real"),
    "bench": ("decode", "perplexity", "start", "ffn", "disk"),
}  # fmt: skip
EACH = [(command, action) for command, actions in ACTIONS.items() for action in actions]


def action_parser(command: str, action: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = cli.parser(command)
    for word in (command, action):
        (commands,) = (each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
        parser = commands.choices[word]
    return parser


@pytest.mark.parametrize(("command", "action"), EACH)
def test_every_action_has_a_page_with_its_defaults_and_an_example_of_its_own_flags(command, action, run):
    status, page, _ = run(command, action, "--help")
    assert status == 0 and f"usage: minillm {command} {action} " in page
    found = action_parser(command, action)
    for flag in found._actions:
        says = "default" in flag.help or flag.required or flag.dest in ("help", "json", "folder", "bundle")
        assert says or "the same" in flag.help or flag.dest in ("output", "figure"), flag.dest
    lines = found.epilog.removeprefix("Example: ").split(" && ")
    assert lines[-1].startswith(f"minillm {command} {action} ")
    for line in lines:
        cli.parser().parse_args(shlex.split(line)[1:])
    assert action in run(command, "--help")[1].split()


QUICK = ["bench decode"]


@pytest.mark.parametrize(
    ("command", "action"),
    [pytest.param(*each, marks=[] if " ".join(each) in QUICK else pytest.mark.slow) for each in EACH],
)
def test_every_example_runs_and_fits_100_columns(command, action, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("minillm.bench.model.find_spec", lambda name: None)
    for line in action_parser(command, action).epilog.removeprefix("Example: ").split(" && "):
        status, out, said = run(*shlex.split(line)[1:])
        if status == 1 and "expected Linux" in said or "stays in the system's cache" in said:
            pytest.skip("no disk here that could be cold")
        assert status == 0, said
        assert max(map(len, out.splitlines())) <= 100 and not re.search(r"[0-9]e[+-][0-9]", out)


def test_the_names_that_the_parser_offers_are_those_that_there_are():
    from minillm.sparsity.policies import POLICIES
    from minillm.sparsity.thresholds import BYS

    assert flags.POLICY_NAMES == tuple(POLICIES) and set(flags.DEMO_POLICIES) <= set(POLICIES)
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["calibrate", "-o", "x", "--by", "share"])
    assert all(cli.parser().parse_args(["calibrate", "-o", "x", "--by", by]).by == by for by in BYS)


def test_a_flag_of_a_parent_is_the_same_in_every_command():
    where = {"--model": "demo generate inspect bundle", "--text": "demo perplexity sweep", "--context": "sweep report"}
    (commands,) = (action for action in cli.parser()._actions if action.dest == "command")
    for name, users in where.items():
        found = [commands.choices[user]._option_string_actions[name] for user in users.split()]
        assert len({(flag.dest, flag.default, flag.type, flag.metavar) for flag in found}) == 1, name
    for name, sub in commands.choices.items():
        assert name in ACTIONS or "--json" in sub._option_string_actions


def test_a_command_takes_the_flags_of_its_parents_and_its_functions_words():
    def command_count(a: argparse.Namespace) -> int:
        """Count something.

        More about it.
        """
        return 0

    top = Parser()
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
