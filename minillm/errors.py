"""The errors of minillm. Each message is one sentence.

It names the place (file and field), what was found there and what was expected. All of them are ValueErrors, so a
caller can catch them without knowing minillm.

The two helpers at the end are for files: an error of the operating system becomes such a sentence, too, and a file is
written whole or not at all.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class MinillmError(ValueError):
    """Something given to minillm (a file, an argument, a text) cannot be used as it is."""


class CheckpointError(MinillmError):
    """Weights: a safetensors file, its index, or the folder that holds them."""


class ConfigError(MinillmError):
    """config.json: a field is missing, out of range, contradictory, or not implemented here."""


class TokenizerError(MinillmError):
    """tokenizer.json, or a text or an id that the tokenizer cannot take."""


class TraceError(MinillmError, KeyError):
    """A step name or pattern that matched nothing, an edit that never fired, a trace that cannot be read.

    Also a KeyError, because a Trace is a mapping from step names to arrays.
    """

    __str__ = Exception.__str__  # KeyError would print the sentence in quotation marks


class ThresholdsError(MinillmError):
    """A thresholds file, or thresholds that do not fit the model."""


class BundleError(MinillmError):
    """A folder of neuron bundles."""


@contextmanager
def file_errors(path: str | Path, done: str, error: type[MinillmError]) -> Iterator[None]:
    """Turn an OSError of the block into ``error``: "{path}: cannot be {done} (No space left on device)"."""
    try:
        yield
    except OSError as problem:
        raise error(f"{path}: cannot be {done} ({problem.strerror or problem})") from None


@contextmanager
def whole_file(path: str | Path, error: type[MinillmError]) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to; after the block, the file there is renamed to ``path``.

    So nobody ever reads half a file, and when the block fails, an older file ``path`` stays as it was. An OSError
    becomes ``error``.
    """
    path = Path(path)
    beside = path.parent / f".{path.name}.{os.getpid()}.partial"
    try:
        with file_errors(path, "written", error):
            yield beside
            os.replace(beside, path)
    finally:
        with suppress(OSError):
            beside.unlink()
