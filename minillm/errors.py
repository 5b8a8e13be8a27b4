"""The errors of minillm. Each message is one sentence.

It names the place (file and field), what was found there and what was expected. All of them are ValueErrors, so a
caller can catch them without knowing minillm.

What was found may come from anywhere: a file's name, a token, a student's exception. ``show`` makes such text safe to
print; every message passes through it, and so does every cell of a table.
"""

import unicodedata

MESSAGE_LIMIT = 1_000  # characters
JOINERS = "\u200c\u200d"  # invisible, but emoji and some scripts are spelled with them


def show(text: object, limit: int | None = None, keep: str = "") -> str:
    r"""Text as it may stand on a terminal or a page: characters that would steer it are written as escapes.

    Control characters ("\x1b", "\r", "\n"), characters that turn the direction of writing or have no width, line
    separators, and halves of surrogate pairs become "\x1b", "\u202e" and so on. What is longer than ``limit``
    characters then loses its middle. keep: what stays as it is, such as the "\n" between the lines of a story.
    """
    text = _without_middle(str(text), limit)
    if text.isprintable():
        return text
    return _without_middle("".join(c if c in keep else _visible(c) for c in text), limit)


def _without_middle(text: str, limit: int | None) -> str:
    """The text, or its two ends where it is longer than ``limit`` characters."""
    if limit is None or len(text) <= limit:
        return text
    half = (limit - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


def _visible(character: str) -> str:
    unseen = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in JOINERS
    return character.encode("unicode_escape").decode("ascii") if unseen else character


class MinillmError(ValueError):
    """Something given to minillm (a file, an argument, a text) cannot be used as it is."""

    def __init__(self, message: object = ""):
        super().__init__(show(message, MESSAGE_LIMIT))


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
