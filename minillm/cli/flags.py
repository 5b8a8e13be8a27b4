"""The flags that commands share, as argparse parents, and the types that turn a word into a value.

A parent is a small parser without --help. A command takes as many as it needs, and adds what it alone has:

    sub = command(commands, "inspect", command_inspect, model(), text(), figure(), running())
    sub.add_argument("--natural", action="store_true")

So a flag has one meaning, one type and one default wherever it appears; where a command must say more about it, the
parent takes another help text. Nothing here imports NumPy: ``--help`` is quick.

A command that does several things has actions (``predict train``, ``predict eval``). Each is a parser of its own, with
its own flags, its own help and an example; a flag that an action has no use for is an error.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from .parser import ACTION, Parser

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction["Parser"]  # what add_subparsers of a Parser returns

# Those of sparsity/policies.py, written out because that module imports NumPy; a test holds the two together.
POLICY_NAMES = (
    "dhar", "cats", "mid", "cett", "teal", "wina", "countdown", "griffin", "topk", "topp", "statistical",
)  # fmt: skip
DEMO_POLICIES = ("dhar", "cats", "mid")
TEXT = 'UTF-8 text; documents end at lines "<|endoftext|>" (default: the embedded text)'
DEMO_PROMPT = "Once upon a time"
GENERATED = 100  # new tokens of `generate`
DEMO_NEW = 40  # new tokens of each of the demo's continuations
DEMO_TOKENS = 8_000  # scored per row of the demo's table, of which there are twelve; `sweep` scores whole texts
DEMO_PREDICTION = 3_000  # scored per predictor, each of which takes several passes
DEMO_CALIBRATION = 3_000  # read for thresholds, several times: each search for a share is a few passes

# ---- types -----------------------------------------------------------------------------------------------------------


@contextmanager
def expecting(what: str, word: str):
    """Turn a ValueError inside into argparse's error, which says what was expected."""
    try:
        yield
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {word!r}, expected {what}") from None


def share(word: str) -> float:
    """A share from 0 to below 1."""
    with expecting("a share from 0 to below 1", word):
        value = float(word)
        if not 0 <= value < 1:
            raise ValueError
    return value


def whole(word: str, least: int = 0) -> int:
    """A whole number of at least ``least``."""
    with expecting(f"a whole number of at least {least}", word):
        value = int(word)
        if value < least:
            raise ValueError
    return value


def positive(word: str) -> int:
    """A whole number of at least 1."""
    return whole(word, 1)


def seconds(word: str) -> float:
    """A number of seconds above 0, up to a day."""
    with expecting("a number of seconds above 0, at most 86,400", word):
        value = float(word)
        if not 0 < value <= 86_400:
            raise ValueError
    return value


def above_zero(word: str) -> float:
    """A finite number above 0."""
    with expecting("a number above 0", word):
        value = float(word)
        if not 0 < value < float("inf"):
            raise ValueError
    return value


def shares(word: str) -> list[float]:
    """Shares separated by commas."""
    return [share(part) for part in word.split(",")]


def shares_to_all(word: str) -> list[float]:
    """Shares separated by commas; 1 is allowed."""
    return [1.0 if part.strip() in ("1", "1.0") else share(part) for part in word.split(",")]


def wholes(word: str) -> list[int]:
    """Whole numbers of at least 1, separated by commas."""
    return [positive(part) for part in word.split(",")]


def token_ids(word: str) -> list[int]:
    """Token ids separated by commas."""
    return [whole(part) for part in word.split(",")]


def names(word: str) -> list[str]:
    """Names separated by commas."""
    return [part.strip() for part in word.split(",")]


# ---- parents ---------------------------------------------------------------------------------------------------------


@cache
def flag(*words: str, **options: Any) -> Parser:
    """A parent with one flag: the arguments of ``add_argument``. Made once; several commands can share it."""
    parent = Parser(add_help=False)
    parent.add_argument(*words, **options)
    return parent


def model() -> Parser:
    """--model: one of the embedded models, a folder, or a name in the hub's cache."""
    about = "embedded (default, default-relu, ...), a Hugging Face folder, or org/name[@revision] in the hub's cache"
    return flag("--model", "-m", default="default", help=f"{about} (default: default)")


def models() -> Parser:
    """--model of a command that takes several."""
    return flag("--model", "-m", action="append", help="as for other commands (default: default); repeatable")


def text(about: str = TEXT) -> Parser:
    """--text: a file to read."""
    return flag("--text", metavar="FILE", help=about)


def prompt(about: str = "the text to continue", required: bool = False) -> Parser:
    """--prompt: a short text on the command line."""
    about += "" if required else f" (default: {DEMO_PROMPT!r})"
    return flag("--prompt", "-p", default=DEMO_PROMPT, required=required, help=about)


def length(usual: int) -> Parser:
    """--max-new-tokens: the length of a continuation; ``usual`` where the context has room for it."""
    about = f"number of tokens to generate (default: {usual}, or fewer where the context ends)"
    return flag("--max-new-tokens", "-n", type=positive, help=about)


def seed(about: str = "of the random numbers (default: 0)") -> Parser:
    """--seed: of everything that is drawn at random."""
    return flag("--seed", "-s", type=whole, default=0, help=about)


@cache
def sampling() -> Parser:
    """How the next token is chosen."""
    parent = Parser(add_help=False, parents=[length(GENERATED)])
    parent.add_argument("--temperature", "--temp", type=float, default=0.0, help="0 (the default) is greedy")
    parent.add_argument("--top-k", type=positive, help="draw from the k most likely tokens")
    parent.add_argument("--top-p", type=float, help="draw from the fewest tokens whose probabilities reach this sum")
    parent.add_argument("--min-p", type=float, help="draw from tokens at least this share as likely as the first")
    return Parser(add_help=False, parents=[parent, seed()])


@cache
def cutting() -> Parser:
    """Of every command that can run a cut model: which neurons are computed, and how."""
    parent = Parser(add_help=False)
    parent.add_argument("--thresholds", metavar="FILE", help="cut with these thresholds (ours or the paper's JSON)")
    parent.add_argument("--predictor", metavar="FILE", help="select neurons with this predictor (of `minillm predict`)")
    parent.add_argument(
        "--form", choices=("masked", "gathered"), default="masked",
        help="how a cut FFN is computed: all of it and then masked, or the kept neurons alone (default: masked)",
    )  # fmt: skip
    return parent


def by() -> Parser:
    """--by: the unit of --sparsity."""
    return flag(
        "--by", choices=("tensor", "neuron", "reads", "cett", "ppl"), default="tensor",
        help="what --sparsity counts: a share of each cut tensor, of the neurons, of the weights not read, of the "
        "output lost (policy cett), or the increase of perplexity (default: tensor)",
    )  # fmt: skip


def method() -> Parser:
    """--method: what changes the weights, beside the policies; the names are in methods/base.py."""
    about = "comma-separated: methods that remove weights, such as wanda or magnitude (METHODS in methods/base.py)"
    return flag("--method", type=names, metavar="NAMES", default=(), help=about)


@cache
def workers() -> Parser:
    """--jobs and --cluster: who computes rows."""
    parent = Parser(add_help=False)
    who = parent.add_mutually_exclusive_group()
    about = "rows computed at the same time (needs joblib; default: 1)"
    who.add_argument("--jobs", type=positive, default=1, help=about)
    about = "by the workers of the dask scheduler that runs there, such as tcp://127.0.0.1:8786 (needs dask)"
    who.add_argument("--cluster", metavar="ADDRESS", help=about)
    return parent


def protocol() -> Parser:
    """--protocol: how a text becomes runs of tokens."""
    about = "score each document by itself, or the text as one stream (default: documents)"
    return flag("--protocol", choices=("documents", "stream"), default="documents", help=about)


def context() -> Parser:
    """--context: the longest run of tokens."""
    about = "longest run of tokens (default: the smaller of the model's longest text and 2048)"
    return flag("--context", type=positive, help=about)


def output(about: str, required: bool = False) -> Parser:
    """--output: a file to write."""
    return flag("--output", "-o", metavar="FILE", required=required, help=about)


def figure(about: str = "also draw it: a .png or .svg (needs matplotlib)") -> Parser:
    """--figure: a drawing to write."""
    return flag("--figure", metavar="FILE", help=about)


def threads(about: str) -> Parser:
    """--threads: of BLAS."""
    return flag("--threads", type=positive, help=about)


@cache
def bos_or_none(word: str) -> int | str:
    """An id, or "none"."""
    with expecting("an id or none", word):
        return word if word == "none" else whole(word)


def bos() -> Parser:
    """--bos: what stands in front of every text."""
    about = "the id in front of every text, or none (default: what the model's files say)"
    return flag("--bos", type=bos_or_none, metavar="ID", help=about)


def running() -> Parser:
    """Of every command that runs texts through a model: as ``loading``, and with which BOS."""
    return Parser(add_help=False, parents=[bos(), loading()])


def loading() -> Parser:
    """Of every command that loads a model: in which precision, on how many cores."""
    dtype = flag(
        "--dtype", choices=("float32", "float64"), default="float32", help="precision of the weights (default: float32)"
    )
    cores = threads("BLAS threads (default: 1 for models below 40 MB, else one for each free core)")
    return Parser(add_help=False, parents=[dtype, cores])


def tokens(about: str) -> Parser:
    """--tokens: how much of a text is read; ``about``: how much by default."""
    return flag("--tokens", type=positive, help=f"of the text, about, from its first document on (default: {about})")


def calibration_tokens(about: str) -> Parser:
    """--calibration-tokens: how much of the text is read that thresholds and predictors are made from."""
    return flag("--calibration-tokens", type=positive, metavar="TOKENS",
                help=f"of the calibration text, about, from its first document on (default: {about})")  # fmt: skip


def calibration(about: str) -> Parser:
    """--calibration: the text that thresholds and predictors are made from."""
    return flag("--calibration", metavar="FILE", help=about)


@cache
def mid_truth() -> Parser:
    """--thresholds and --sparsity of the commands that need the mask of policy mid."""
    parent = Parser(add_help=False)
    parent.add_argument("--thresholds", metavar="FILE", help="of policy mid (default: found for --sparsity)")
    about = "share of the neurons that is left out (default: 0.5)"
    parent.add_argument("--sparsity", type=share, default=0.5, help=about)
    return parent


def capacity(usual: str) -> Parser:
    """--capacity: sizes of a buffer."""
    about = f"sizes of the buffer: shares of a layer's neurons, with commas (default: {usual})"
    return flag("--capacity", type=shares_to_all, metavar="SHARES", help=about)


def device() -> Parser:
    """--device: whose speed is simulated."""
    about = '"phone UFS", "laptop NVMe" or "PCIe host to GPU" (default: laptop NVMe)'
    return flag("--device", default="laptop NVMe", help=about)


def rank() -> Parser:
    """--rank: the inner size of a predictor."""
    about = "of the predictors svd and learned (default: a quarter of the hidden size)"
    return flag("--rank", type=positive, help=about)


# ---- commands and their actions --------------------------------------------------------------------------------------


def command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int], *parents: Parser,
    example: str | None = None,
) -> Parser:  # fmt: skip
    """Add a command (or an action) with the flags of its parents, and --json.

    Its help is the docstring of the function it runs. example: a whole command line, shown at the end of the help.
    """
    as_json = flag("--json", action="store_true", help="print the result as JSON")
    about = run.__doc__ or ""
    sub = commands.add_parser(
        name, help=about.partition("\n")[0], description=about, parents=[*parents, as_json],
        epilog=f"Example: {example}" if example else None,
    )  # fmt: skip
    sub.set_defaults(run=run)
    if commands.dest == ACTION:
        sub.siblings = commands.choices
    return sub


def actions(commands: Commands, name: str, about: str) -> Commands:
    """Add a command that has actions; gives what the actions are added to, with ``command``."""
    parser = commands.add_parser(
        name, help=about.partition("\n")[0], description=about,
        epilog=f"`minillm {name} ACTION --help` lists the flags of an action, with an example.",
    )  # fmt: skip
    added = parser.add_subparsers(dest=ACTION, required=True, metavar="ACTION", title="actions")
    parser.actions = added.choices
    return added
