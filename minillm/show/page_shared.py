"""What several sections of the page need: the command that repeats a part, the words for protocol and definition."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from ..sparsity.policies import policy_named
from ..sparsity.spec import in_words
from ..study.bootstrap import in_words as with_interval
from ..study.summary import PROMPT, TOKENS, Study
from ..tables import Columns
from .html import commands

INTERVAL = ("low", "high")  # of an interval of 95 %
DEFAULTS = {"text": None, "context": None, "seed": 0, "dtype": "float32", "prompt": PROMPT, "tokens": TOKENS}
DEFAULTS |= {"method": None}


def repeat_command(study: Study, words: str, *more: object, takes: str = "text context seed") -> str:
    """A command line for the same model.

    words: the command; more: what follows it; takes: the page's own options that the command takes, too.
    """
    line = [*shlex.split(words), "--model", study.options.get("model", study.name)]
    for flag in ("dtype", *takes.split()):
        if (value := study.options.get(flag)) not in (None, DEFAULTS[flag]):
            line += [f"--{flag}", value]
    return "minillm " + " ".join(shlex.quote(str(word)) for word in (*line, *more))


def tokens_of(study: Study, scored: str = "scored", calibration: str | None = "calibration") -> list[object]:
    """The flags that make a command read as many tokens as this part of the page did: names of ``Study.budget``."""
    more = ["--calibration-tokens", study.budget[calibration]] if calibration else []
    return ["--tokens", study.budget[scored], *more]


def from_the_start(study: Study, lines: Sequence[str]) -> str:
    """Commands that read a text from its first document on, where the page scored the second part of a file."""
    if file := study.options.get("text"):
        return commands(lines, f"The same for the beginning of {file} (the page scored its second part: digits differ)")
    return commands(lines)


def joined(values: Sequence[object]) -> str:
    """Values with commas between them, as a command takes them."""
    return ",".join(map(str, values))


def scored_on(scored: Mapping) -> str:
    """Tokens, protocol, context, BOS and dtype of a measurement, in words."""
    where = "{tokens:,} tokens, protocol {protocol}, context {context}, BOS {bos}, {dtype}"
    return where.format(**scored)


def definition(rows: Sequence[Mapping]) -> str:
    """The SparsitySpec of a figure of costs: that of one row in full, and what the other policies keep instead."""
    cut = [row for row in rows if row["policy"] != "dense"]
    targets = sorted({row["target"] for row in cut})
    names = list(dict.fromkeys(row["policy"] for row in cut))
    shown = "mid" if "mid" in names else names[0]
    one = next(row for row in cut if row["policy"] == shown and row["target"] == targets[len(targets) // 2])
    rules = [policy_named(name) for name in names if name != shown]
    others = "; ".join(f"{rule.name} {in_words(rule.tensors, rule.comparison)}" for rule in rules)
    others = f" The other policies are defined alike, but keep: {others}." if rules else ""
    return f"Definition, here of {shown} at its middle target: {one['spec']}.{others}"


def paid(row: Mapping, dense: Mapping) -> str:
    """The increase of perplexity in words: "+1.2 % (+1.0 to +1.4 %)"."""
    cost, ends = 100 * (row["vs_dense"] - 1), [row.get(f"perplexity_{end}") for end in INTERVAL]
    low, high = (None if end is None else 100 * (end / dense["perplexity"] - 1) for end in ends)
    return with_interval(cost, low, high, "+.1f", " %")


def under(group: str, columns: Columns) -> dict[str, tuple[str, str]]:
    """Columns whose headings stand under a common one."""
    return {key: (f"{group}/{heading}", form) for key, (heading, form) in columns.items()}
