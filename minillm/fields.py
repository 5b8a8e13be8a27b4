"""Typed reading of JSON files: each value has the type and the range that is asked for, or an error names it.

A file from elsewhere may hold anything. So its bytes are limited before they are read (``read_json``), JSON is parsed
more strictly than Python's json does it (``parse_json``), and each field is asked for with its type and its range:

    read = Fields(read_json(path, ConfigError), str(path))
    layers = read.integer("num_hidden_layers", 1024)        # 1 to 1024
    # ConfigError: .../config.json: num_hidden_layers is True, expected an integer from 1 to 1024

The lines after that need no further check. ``file_in`` does the same for a file's place: it must lie in its folder.
"""

import json
import math
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .errors import ConfigError, MinillmError, show
from .files import read_bytes, regular_file
from .foreign import START, foreign_content

JSON_LIMIT = 10_000_000  # bytes; a real config.json has about 1 kB, the index of a 405B model 120 kB
VALUES_LIMIT = 1_000_000  # in one file; each takes up to 200 bytes of memory, though "[]," has three

_REQUIRED = object()  # the default of a field that must be there: it passes none of the checks below


class Fields:
    """The fields of one JSON object, read with a type and a range; a value outside them raises an error of ``kind``.

    source: the file's name, for errors; prefix: what stands before a field's name there ("rope_scaling."). names: of
    fields that the file calls otherwise, {the name that is asked for: the file's}.
    A field that is absent takes the default where one is given. Types are compared exactly: for isinstance, True
    would be an int.
    """

    def __init__(
        self, fields: dict[str, Any], source: str, prefix: str = "", kind: type[MinillmError] = ConfigError,
        names: Mapping[str, str] = MappingProxyType({}),
    ):  # fmt: skip
        if names:
            others = {name: value for name, value in fields.items() if name not in names}
            fields = others | {ours: fields[theirs] for ours, theirs in names.items() if theirs in fields}
        self.fields = fields
        self.source, self.prefix, self.kind, self.names = source, prefix, kind, names

    def error(self, name: str, expected: str, *value: object) -> MinillmError:
        """The error that a field is not what was expected; ``value``: what to print in place of the field's own."""
        printed = brief(value[0]) if value else brief(self.fields[name]) if name in self.fields else "missing"
        return self.kind(f"{self.source}: {self.prefix}{self.names.get(name, name)} is {printed}, expected {expected}")

    def choice(self, name: str, choices: Collection[str], default: object = _REQUIRED) -> str:
        """A string, one of ``choices``."""
        value = self.fields.get(name, default)
        if type(value) is not str or value not in choices:
            raise self.error(name, f"one of {', '.join(choices)}")
        return value

    def boolean(self, name: str, default: bool = False) -> bool:
        """True or false; the default where it is absent, false where it is null."""
        value = self.fields.get(name, default)
        if value is not None and type(value) is not bool:
            raise self.error(name, "true or false")
        return bool(value)

    def integer(self, name: str, high: int, default: object = _REQUIRED, *, low: int = 1) -> int:
        """A whole number from ``low`` to ``high``."""
        value = self.fields.get(name, default)
        if type(value) is not int or not low <= value <= high:
            raise self.error(name, f"an integer from {low} to {high}")
        return value

    def integer_or_null(self, name: str, high: int, default: int | None = None, *, low: int = 1) -> int | None:
        """A whole number from ``low`` to ``high``, or null, which is None."""
        return None if self.fields.get(name, default) is None else self.integer(name, high, default, low=low)

    def number(self, name: str, high: float, default: object = _REQUIRED, *, low: float = 0.0) -> float:
        """A finite number, above 0 and at least ``low``, at most ``high``."""
        value = self.fields.get(name, default)
        if (type(value) is not int and type(value) is not float) or not (0 < value and low <= value <= high):
            raise self.error(name, f"a number from {low:g} to {high:g}" if low else f"a number in (0, {high:g}]")
        return float(value)

    def numbers(self, name: str, count: int, low: float, high: float) -> tuple[float, ...]:
        """A list of ``count`` numbers from ``low`` to ``high``."""
        value = self.fields.get(name)
        if (
            not isinstance(value, list)
            or len(value) != count
            or not all(type(each) in (int, float) and low <= each <= high for each in value)
        ):
            raise self.error(name, f"a list of {count} numbers from {low:g} to {high:g}")
        return tuple(map(float, value))

    def between(self, name: str, low: float, high: float) -> float | None:
        """A number from ``low`` to ``high``, or null, which is None."""
        value = self.fields.get(name)
        if value is not None and ((type(value) is not int and type(value) is not float) or not low <= value <= high):
            raise self.error(name, f"a number from {low:g} to {high:g}, or null")
        return None if value is None else float(value)

    def hashes(self, name: str) -> tuple[str, ...]:
        """A list of SHA-256 hashes, each 64 hexadecimal digits; none where it is absent."""
        value = self.fields.get(name, [])
        digits = set("0123456789abcdef")
        if type(value) is not list or not all(type(h) is str and len(h) == 64 and digits.issuperset(h) for h in value):
            raise self.error(name, "a list of SHA-256 hashes (64 hexadecimal digits each)")
        return tuple(value)

    def only(self, names: Collection[str]) -> None:
        """Refuse every field of another name: perhaps it is misspelt, and its value would count for nothing."""
        for name in self.fields:
            if name not in names:
                raise self.kind(f"{self.source}: {self.prefix}{brief(name)} is unknown, expected {', '.join(names)}")

    def token_ids(self, name: str, vocab_size: int, default: int | None = None) -> tuple[int, ...]:
        """Null, one id, or a list of ids. An id outside the vocabulary can never appear: a note says it is left out."""
        value = self.fields.get(name, default)
        ids = [] if value is None else value if type(value) is list else [value]
        if not all(type(i) is int for i in ids):
            raise self.error(name, f"integers from 0 to {vocab_size - 1}")
        inside = tuple(i for i in ids if 0 <= i < vocab_size)
        if len(inside) < len(ids):
            outside = brief(next(i for i in ids if i not in inside))
            self.note(name, f"holds the id {outside}, which is left out: the vocabulary has {vocab_size} ids")
        return inside

    def note(self, name: str, about: str) -> None:
        """Warn about a field that is read, but of which the user should know something."""
        warnings.warn(show(f"{self.source}: {self.prefix}{name} {about}"), stacklevel=5)


def read_json(path: Path, error: type[MinillmError], limit: int = JSON_LIMIT) -> dict[str, Any]:
    """Read a JSON file that holds one object, as strictly as parse_json; UTF-8, a byte order mark is allowed."""
    raw = read_bytes(path, error, limit)
    if foreign := foreign_content(raw[:START], "a JSON file"):
        raise error(f"{path}: {foreign}")
    return parse_json(raw.removeprefix(b"\xef\xbb\xbf"), str(path), error)


def parse_json(raw: bytes, source: str, error: type[MinillmError]) -> dict[str, Any]:
    """Parse bytes that must hold one JSON object, as strictly as ``parse_value``. Raises error."""
    fields = parse_value(raw, source, error)
    if not isinstance(fields, dict):
        raise error(f"{source}: holds a JSON {type(fields).__name__}, expected an object")
    return fields


def parse_value(raw: bytes, source: str, error: type[MinillmError]) -> object:
    """Parse bytes that must hold one JSON value, refusing what Python's json lets pass.

    Refused, beside what is no JSON at all: the same key twice in one object (json keeps the last, other readers the
    first), NaN, Infinity and numbers that overflow to it, nesting deeper than Python's stack, and more values than
    VALUES_LIMIT. Raises error.
    """
    if raw.count(b",") > VALUES_LIMIT:
        raise error(f"{source}: holds more than {VALUES_LIMIT:,} values, expected fewer")
    try:
        value: object = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite, parse_int=_whole,
        )  # fmt: skip
        if b"\\u" in raw:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # half of a surrogate pair is no character
    except RecursionError:
        raise error(f"{source}: is nested too deeply, expected plain JSON") from None
    except UnicodeDecodeError as problem:
        raise error(f"{source}: is not UTF-8 at byte {problem.start}, expected JSON in UTF-8") from None
    except ValueError as problem:  # of json, of the hooks, half a surrogate pair, an integer of more than 4,300 digits
        raise error(f"{source}: is not valid JSON ({problem})") from None
    return value


def _unique(items: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object's fields. ValueError for a key that stands twice in it."""
    fields, seen = dict(items), set()
    if len(fields) != len(items):
        for key, _ in items:
            if key in seen:
                raise ValueError(f"the key {brief(key)} stands twice in one object, expected once")
            seen.add(key)
    return fields


def _finite(text: str) -> float:
    """The value of a number with a point or an exponent, or of NaN or Infinity. ValueError where it is not finite."""
    if not math.isfinite(value := float(text)):
        raise ValueError(f"the number {brief(text)} is not finite, expected finite numbers")
    return value


def _whole(text: str) -> int | float:
    """The value of a whole number; "-0" is a float, because an int would lose its sign."""
    return int(text) if text != "-0" else -0.0  # no integer for safetensors either


def file_in(folder: str | Path, name: str, error: type[MinillmError]) -> Path:
    """The path of a file that lies in the folder itself; a link may lead nowhere but to the hub cache's own blobs.

    (The cache of huggingface_hub keeps models--org--name/snapshots/REVISION/file -> ../../blobs/HASH.)
    """
    path, home = Path(folder) / name, Path(os.path.realpath(folder))
    allowed = [home]
    if home.parent.name == "snapshots" and home.parents[1].name.startswith("models--"):
        allowed.append(home.parents[1] / "blobs")
    target = Path(os.path.realpath(path))
    if path.is_symlink() and not os.path.lexists(target):
        raise error(f"{path}: is a link to {target}, which does not exist, expected a file: fetch or copy it again")
    if target.parent not in allowed:
        way_out = "expected a file inside it: put a copy of the file in the place of the link"
        raise error(f"{path}: is a link out of its folder, to {target}, {way_out}")
    return regular_file(path, error)


def brief(value: object) -> str:
    """The value in one line of at most 80 characters, for an error's sentence (a hostile name may have megabytes)."""
    text = repr(value[:80] if isinstance(value, str | list) else value)
    return text if len(text) <= 80 else text[:77] + "..."
