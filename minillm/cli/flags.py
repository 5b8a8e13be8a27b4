"""TODO."""

import argparse
import shutil
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path

from ..errors import MinillmError
from ..loading.embedded import embedded_text

POLICIES = ("dhar", "cats", "mid", "cett", "teal", "wina", "countdown", "griffin", "topk", "topp")
DEMO_POLICIES = ("dhar", "cats", "mid")
PREDICTORS = (
    "chance", "static", "previous-token", "sign", "svd", "shadow-2", "shadow-3", "shadow-4", "up-4", "refined-3",
    "learned", "learned-ahead", "ahead-4", "library", "clusters",
)  # fmt: skip
DEMO_PROMPT = "Once upon a time"
DEMO_TOKENS = 20_000  # scored per row of the demo's table
DEMO_PREDICTION = 3_000  # scored per predictor, which takes several passes for each
DEMO_CALIBRATION = 3_000  # read for its thresholds, several times over: each search for a share is a few passes


def say(*words: object) -> None:
    """Print on stderr: what is not the result."""
    print(*words, file=sys.stderr, flush=True)


def read_text(path: str) -> str:
    """The text of a UTF-8 file; one sentence for a file that is missing, empty or of another encoding."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise MinillmError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise MinillmError(f"{path}: byte {error.start} is not UTF-8, expected a UTF-8 text") from None
    if not text.strip():
        raise MinillmError(f"{path}: is empty, expected a text")
    return text


def text_or_embedded(path: str | None, name: str) -> str:
    """The text of --text, or the embedded one of that name, which is then said."""
    if path:
        return read_text(path)
    text = embedded_text(name)
    say(f"text: the embedded {name} text")
    return text


def two_texts(path: str | None, calibration: str | None = None) -> tuple[str | list[str], str | list[str]]:
    """What to calibrate on and what to score: the parts of --text alone, else two texts, embedded where not given."""
    from ..transformer.texts import split_text

    if path and not calibration:
        return split_text(read_text(path))
    return text_or_embedded(calibration, "calibration"), text_or_embedded(path, "test")


def check_output(path: str) -> None:
    """Refuse, before the work and not after it, a name that cannot be written; what is there stays as it is."""
    target = Path(path)
    try:
        # A device or a pipe would be replaced by a file: everything is written beside its target and then renamed.
        if not target.name or (target.exists() and not target.is_file()):
            raise MinillmError(f"{path!r}: is not a regular file, expected the name of a file to write")
        beside = target.with_name(target.name + ".partial")
        beside.touch()
        beside.unlink()
    except OSError as error:
        raise MinillmError(f"{path}: cannot be written ({error.strerror})") from None


def wrapped(text: str, first: str = "") -> str:
    """Text in lines that fit the terminal (at most 100 columns), the first one led by ``first``."""
    width = max(40, min(100, shutil.get_terminal_size().columns))
    return textwrap.fill(text, width, initial_indent=first, subsequent_indent=" " * len(first), break_on_hyphens=False)


def load_model(arguments: argparse.Namespace):
    """The model of --model in the dtype of --dtype."""
    import numpy as np

    import minillm

    # glibc hands the memory of each layer's scores back to the system and asks for it anew, page by page, until it has
    # once seen a larger block freed (mallopt(3): the dynamic M_MMAP_THRESHOLD). This is that block; nothing touches it.
    # The demo: 40 thousand page faults instead of 4.8 million, a seventh less time. Elsewhere it does nothing.
    np.empty(31 << 20, np.uint8)
    return minillm.load(arguments.model, dtype=arguments.dtype)


def load_ffn(arguments: argparse.Namespace, model):
    """The FeedForward of --thresholds, or the dense one."""
    from ..predictors.select import sparse_ffn
    from ..sparsity.thresholds import Thresholds
    from ..transformer.ffn import swiglu

    if not arguments.thresholds:
        if arguments.predictor:
            raise MinillmError("--predictor needs --thresholds of policy mid, which say what is true")
        return swiglu
    thresholds = Thresholds.load(arguments.thresholds)
    if arguments.predictor:
        from ..predictors.files import load_predictor

        predictor = load_predictor(arguments.predictor)
        say(f"neurons selected by {arguments.predictor}: {predictor.name}, {predictor.nbytes:,} bytes")
        return sparse_ffn(model, thresholds, predictor=predictor, form=arguments.form)
    ffn = sparse_ffn(model, thresholds, form=arguments.form)
    say(f"cut by {arguments.thresholds}: {thresholds.spec}")
    return ffn


def prompt_ids(model, prompt: str) -> list[int]:
    """The ids of a prompt; an empty one will do where the tokenizer adds a BOS."""
    ids = model.tokenizer.encode(prompt)
    if not ids:
        raise MinillmError("the prompt is empty and this tokenizer adds no BOS, expected at least one character")
    return ids


def new_tokens(arguments: argparse.Namespace, model, ids: list[int], default: int) -> int:
    """-n, or as many of ``default`` as the context has room for (one, where it has none: ``generate`` says so)."""
    room = model.config.max_position_embeddings - len(ids)
    return arguments.max_new_tokens or max(1, min(default, room))


def enough_documents(models: list, text: str, tokens: int, context: int | None) -> list[str]:
    """The first documents of an embedded text, as many as hold that many tokens for each of the models."""
    from ..transformer.texts import as_documents, first_tokens

    documents = as_documents(text)
    count = max(len(first_tokens(model, documents, tokens, context)) for model in models)
    if count < len(documents):
        say(f"text: of {len(documents)} documents the first {count}, which hold {tokens:,} tokens")
    return documents[:count]


def mid_thresholds(a: argparse.Namespace):
    """The thresholds of --thresholds, or None."""
    from ..sparsity.thresholds import Thresholds

    return Thresholds.load(a.thresholds) if a.thresholds else None


def write_figure(figure, path: str) -> None:
    """Write a figure, and say on stderr what it shows."""
    from ..show.canvas import alt_text, save_figure

    save_figure(figure, path)
    say(f"figure: {path}: {alt_text(figure)}")


def share(text: str) -> float:
    """A share from 0 to below 1."""
    with expecting("a share from 0 to below 1", text):
        value = float(text)
        if not 0 <= value < 1:
            raise ValueError
    return value


def whole(text: str, least: int = 0) -> int:
    """A whole number of at least ``least``."""
    with expecting(f"a whole number of at least {least}", text):
        value = int(text)
        if value < least:
            raise ValueError
    return value


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return whole(text, 1)


@contextmanager
def expecting(what: str, found: str):
    """Turn a ValueError inside into argparse's error, which says what was expected."""
    try:
        yield
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {found!r}, expected {what}") from None


def shares(text: str) -> list[float]:
    """Shares separated by commas."""
    return [share(part) for part in text.split(",")]


def shares_to_all(text: str) -> list[float]:
    """Shares separated by commas, 1 among them allowed."""
    return [1.0 if part.strip() in ("1", "1.0") else share(part) for part in text.split(",")]


def wholes(text: str) -> list[int]:
    """Whole numbers of at least 1, separated by commas."""
    return [positive(part) for part in text.split(",")]


def names(text: str) -> list[str]:
    """Names separated by commas."""
    return [part.strip() for part in text.split(",")]
