"""argparse's parser as this command line uses it: its complaints are escaped, and an action may follow its flags."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from typing import NoReturn

from ..errors import MESSAGE_LIMIT, show

ACTION = "what"  # where an action's name stands among the parsed arguments


class Parser(argparse.ArgumentParser):
    """argparse's parser; what it complains about is shown escaped, under the usage of the command that it is about.

    siblings: the actions of the same command by name, where this is the parser of one; actions: those of this command.
    """

    siblings: Mapping[str, argparse.ArgumentParser] = {}
    actions: Collection[str] = ()

    def parse_known_args(self, args=None, namespace=None):
        """As argparse does it, but the action may follow the flags, and a word that is not known is an error here."""
        if args is not None and self.actions:
            args = action_first(args, self.actions)
        known, unknown = super().parse_known_args(args, namespace)
        for (
            action
        ) in self._actions:  # as `--thresholds "$T"` gives it where T is not set: not the same as no thresholds
            if action.metavar in ("FILE", "FOLDER") and getattr(known, action.dest, None) == "":
                self.error(f"argument {'/'.join(action.option_strings) or action.metavar}: is empty, expected a name")
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self.whose(unknown)}")
        return known, unknown

    def whose(self, unknown: Sequence[str]) -> str:
        """Which of the other actions would take these flags, in words."""
        given = {word.partition("=")[0] for word in unknown}
        takers = [name for name, other in self.siblings.items() if given & set(other._option_string_actions)]
        return f" (of {', '.join(takers)})" if takers else ""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and exit with status 2."""
        super().error(show(message, MESSAGE_LIMIT))


def action_first(words: Sequence[str], actions: Collection[str]) -> list[str]:
    """The words of a command with its action in front, where flags stood before it: ``predict -m X train``.

    A word is no action where it is the value of the flag before it.
    """

    def waits_for_a_value(word: str) -> bool:
        alone = word in ("-h", "--help", "--json") or "=" in word
        return word.startswith("-") and not alone and (word.startswith("--") or len(word) == 2)

    for i, word in enumerate(words):
        if word in actions and not (i and waits_for_a_value(words[i - 1])):
            return [word, *words[:i], *words[i + 1 :]]
    return list(words)
