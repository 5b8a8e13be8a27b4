"""What several commands do: read texts, load a model and its thresholds, print on stderr, write a figure.

A file that cannot be read gives one sentence (MinillmError), never a traceback. Modules that need NumPy are imported
inside the functions, after --threads has been read.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .. import files
from ..errors import MESSAGE_LIMIT, MinillmError, show
from ..loading.embedded import embedded_text
from ..tables import WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..sparsity.thresholds import Thresholds
    from ..transformer.ffn import FeedForward
    from ..transformer.model import Llama


HELD_OUT = 0.1  # of the documents of --text: scored, and not used to change a model
SCORED = 10_000  # tokens of them


def say(*words: object) -> None:
    """Print on stderr what is not the result: progress, seeds, timings, notes; nothing in it can steer a terminal."""
    print(show(" ".join(map(str, words)), MESSAGE_LIMIT), file=sys.stderr, flush=True)


def tell(*words: object) -> None:
    """Print progress on stderr where it is no terminal; on a terminal, a bar shows it."""
    if not sys.stderr.isatty():
        say(*words)


def wrapped(text: str, first: str = "") -> str:
    """Text in lines that fit the terminal (at most 100 columns); ``first`` stands before the first line."""
    width = max(40, min(WIDTH, shutil.get_terminal_size().columns))
    first = show(first)
    indent = " " * min(len(first), width // 2)
    return textwrap.fill(
        show(text, keep="\n"), width, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False
    )


def in_lines(text: str) -> str:
    """A text of several lines, of which none is longer than WIDTH: tables fit already, sentences are wrapped."""
    return "\n".join(
        textwrap.fill(line, WIDTH, break_on_hyphens=False) if len(line) > WIDTH else line for line in text.split("\n")
    )


def labelled(texts: Mapping[str, str]) -> str:
    """Each text beside its name, as ``wrapped`` lines; the texts begin in the same column."""
    width = max(map(len, map(show, texts)), default=0)
    return "\n".join(wrapped(text, f"  {show(name):<{width}}  ") for name, text in texts.items())


# ---- texts -----------------------------------------------------------------------------------------------------------


def read_text(path: str) -> str:
    """The text of a UTF-8 file. Raises MinillmError for a file that is missing, empty or in another encoding."""
    text = files.read_text(path)
    if not text or text.isspace():
        raise MinillmError(f"{path}: is empty, expected a text")
    return text


def text_or_embedded(path: str | None, name: str) -> str:
    """The text of a file, or else the embedded text of that name; stderr says so."""
    if path:
        return read_text(path)
    text = embedded_text(name)
    say(f"text: the embedded {name} text")
    return text


def two_samples(a: argparse.Namespace, models: list[Llama], tokens: int) -> tuple[list[str], list[str]]:
    """Documents of --text and --calibration, as many as hold --tokens and --calibration-tokens (``tokens`` without).

    ->  those to calibrate on, those to score.
    """
    calibration, test = two_texts(a.text, a.calibration)
    test = enough_documents(models, test, a.tokens or tokens, a.context)
    return enough_documents(models, calibration, a.calibration_tokens or tokens, a.context), test


def two_texts(path: str | None, calibration: str | None = None) -> tuple[str | list[str], str | list[str]]:
    """A text to calibrate on and a text to score: the two parts of --text where it stands alone, else two texts.

    A text that is not given is the embedded one.
    """
    from ..transformer.texts import split_text

    if path and not calibration:
        return split_text(read_text(path))
    return text_or_embedded(calibration, "calibration"), text_or_embedded(path, "test")


def enough_documents(models: list[Llama], text: str | list[str], tokens: int, context: int | None) -> list[str]:
    """The first documents of a text, as many as hold that number of tokens for each of the models."""
    from ..transformer.texts import as_documents, first_tokens

    documents = as_documents(text)
    found = max(
        (first_tokens(model, documents, tokens, context) for model in models), key=lambda part: sum(map(len, part))
    )
    if len(found) < len(documents):
        say(f"text: the first {len(found)} of {len(documents)} documents, which hold {tokens:,} tokens")
    return found


def learnt_and_held_out(
    path: str | None, model: Llama, context: int | None, held_out: str | None = None
) -> tuple[list[str], list[str]]:
    """The documents that a model is changed with, and others to score: the last tenth of --text, or embedded texts.

    held_out: a file of its own to score, all of it; then all of --text is there to learn.
    """
    from ..transformer.texts import as_documents, split_text

    if held_out:
        return as_documents(text_or_embedded(path, "calibration")), as_documents(read_text(held_out))
    if path:
        known, held = split_text(read_text(path), 1 - HELD_OUT)
    else:
        known, held = (as_documents(text_or_embedded(None, name)) for name in ("calibration", "test"))
    return known, enough_documents([model], held, SCORED, context)


def prompt_ids(model: Llama, prompt: str) -> list[int]:
    """The ids of a prompt; it may be empty where the tokenizer adds a BOS."""
    ids = model.tokenizer.encode(prompt)
    if not ids:
        raise MinillmError("the prompt is empty and this tokenizer adds no BOS, expected at least one character")
    return ids


def new_tokens(arguments: argparse.Namespace, model: Llama, ids: list[int], default: int) -> int:
    """The number of tokens to generate: -n, or ``default`` where the context has room for it.

    At least one, even where there is no room: ``generate`` then says what is wrong.
    """
    room = model.config.max_position_embeddings - len(ids)
    return arguments.max_new_tokens or max(1, min(default, room))


# ---- models ----------------------------------------------------------------------------------------------------------


def load_model(arguments: argparse.Namespace) -> Llama:
    """The model of --model in the dtype of --dtype."""
    import minillm

    from ..memory import keep_freed_memory

    keep_freed_memory()
    return with_bos(arguments, minillm.load(arguments.model, dtype=arguments.dtype))


def models_of(arguments: argparse.Namespace) -> list[Llama]:
    """The models of a --model that may be given several times, as ``load_model`` loads one."""
    import minillm

    sources = arguments.model or ["default"]
    return [with_bos(arguments, minillm.load(source, dtype=arguments.dtype)) for source in sources]


def with_bos(arguments: argparse.Namespace, model: Llama) -> Llama:
    """A model that puts the BOS of --bos in front of every text, where one is given."""
    if (asked := getattr(arguments, "bos", None)) is not None:
        model.use_bos(None if asked == "none" else asked)
    return model


def given_thresholds(arguments: argparse.Namespace) -> Thresholds | None:
    """The thresholds of --thresholds, or None."""
    from ..sparsity.thresholds import Thresholds

    return Thresholds.load(arguments.thresholds) if arguments.thresholds else None


def mid_thresholds(arguments: argparse.Namespace, model: Llama, known: list[str], context: int) -> Thresholds:
    """The thresholds of --thresholds, or those of policy mid at --sparsity, found on documents."""
    from ..sparsity.calibrate import calibrate

    given = given_thresholds(arguments)
    return given or calibrate(model, known, "mid", arguments.sparsity, context, "neuron")


def load_ffn(arguments: argparse.Namespace, model: Llama) -> FeedForward:
    """The FeedForward of --thresholds and --predictor, or the dense one."""
    from ..predictors.select import sparse_ffn
    from ..transformer.ffn import swiglu

    thresholds = given_thresholds(arguments)
    if thresholds is None:
        if arguments.predictor:
            raise MinillmError("--predictor needs --thresholds of policy mid, which say what is true")
        return swiglu
    if arguments.predictor:
        from ..predictors.files import load_predictor

        predictor = load_predictor(arguments.predictor)
        say(f"neurons selected by {arguments.predictor}: {predictor.name}, {predictor.nbytes:,} bytes")
        return sparse_ffn(model, thresholds, predictor=predictor, form=arguments.form)
    ffn = sparse_ffn(model, thresholds, form=arguments.form)
    say(f"cut by {arguments.thresholds}: {thresholds.spec}")
    return ffn


# ---- files -----------------------------------------------------------------------------------------------------------


def check_new(folder: str) -> Path:
    """The path of a folder to be made. Raises MinillmError where it exists, or cannot be made."""
    path = Path(folder)
    if path.exists() or path.is_symlink():
        raise MinillmError(f"{folder}: exists already, expected the name of a new folder")
    if not path.absolute().parent.is_dir():
        raise MinillmError(f"{folder}: its folder {path.absolute().parent} does not exist, expected one that does")
    return path.absolute()


def print_result(a: argparse.Namespace, rows: list[dict], table: str, about: str, sentences: list[str]) -> None:
    """Print rows and sentences as JSON, or a table of them, its explanation and the sentences."""
    from ..tables import json_rows

    if a.json:
        print(f'{{"rows": {json_rows(rows)},\n"sentences": {json.dumps(sentences)}}}')
        return
    print(table)
    print_words(about, sentences)


def print_words(about: str, sentences: list[str]) -> None:
    """Print the explanation of a table, and the sentences that follow from it."""
    print("\n" + wrapped(about))
    for sentence in sentences:
        print(wrapped(f"{sentence}."))


def write_figure(path: str, *panels: Axes | Figure) -> None:
    """Write the figure that these panels make up, and print on stderr what it shows."""
    from ..show.canvas import alt_text, save_figure

    save_figure(panels[0], path)
    of_a_figure = panels[0].axes
    for panel in of_a_figure if isinstance(of_a_figure, list) else panels:
        if text := alt_text(panel):  # a line for each: a very long one would be shortened
            say(f"figure: {path}: {text}")
