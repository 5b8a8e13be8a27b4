"""TODO."""

import json
import math
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from ..errors import ConfigError, MinillmError, file_errors

JSON_LIMIT = 10_000_000  # bytes; a real config.json has about 1 kB, the index of a 405B model 120 kB

_REQUIRED = object()  # stands for a field that is absent and has no default: no check below lets it pass


class Fields:
    """Typed reading of one JSON object: every value has its type and its range, or an error of ``kind`` says so.

    Types are compared, not asked for with isinstance: True is an int for Python.
    """

    def __init__(self, fields: dict, source: str, prefix: str = "", kind: type[MinillmError] = ConfigError):
        self.fields, self.source, self.prefix, self.kind = fields, source, prefix, kind

    def error(self, name: str, expected: str, *found) -> MinillmError:
        value = show(found[0]) if found else show(self.fields[name]) if name in self.fields else "missing"
        return self.kind(f"{self.source}: {self.prefix}{name} is {value}, expected {expected}")

    def choice(self, name: str, choices: Collection[str], default=_REQUIRED) -> str:
        value = self.fields.get(name, default)
        if type(value) is not str or value not in choices:
            raise self.error(name, f"one of {', '.join(choices)}")
        return value

    def boolean(self, name: str) -> bool:
        value = self.fields.get(name, False)
        if type(value) is not bool:
            raise self.error(name, "true or false")
        return value

    def integer(self, name: str, high: int, default=_REQUIRED, *, low: int = 1, nullable: bool = False) -> int | None:
        value = self.fields.get(name, default)
        if not (type(value) is int and low <= value <= high) and not (nullable and value is None):
            raise self.error(name, f"an integer from {low} to {high}")
        return value

    def number(self, name: str, high: float, default=_REQUIRED, *, low: float = 0.0) -> float:
        """A finite number, above 0 and at least low."""
        value = self.fields.get(name, default)
        if type(value) not in (int, float) or not (0 < value and low <= value <= high):
            raise self.error(name, f"a number from {low:g} to {high:g}" if low else f"a number in (0, {high:g}]")
        return float(value)

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        value = self.fields.get(name)
        counted = type(value) is list and len(value) == count
        if not counted or not all(type(item) in (int, float) and 0 < item <= 1e12 for item in value):
            raise self.error(name, f"a list of {count} finite numbers above 0, one per rotated pair")
        return tuple(map(float, value))

    def token_ids(self, name: str, vocab_size: int, default: int | None = None) -> tuple[int, ...]:
        """Null, one id, or a list of ids."""
        value = self.fields.get(name, default)
        ids = [] if value is None else value if type(value) is list else [value]
        if not all(type(i) is int and 0 <= i < vocab_size for i in ids):
            raise self.error(name, f"integers from 0 to {vocab_size - 1}")
        return tuple(ids)


def read_json(path: Path, error: type[MinillmError], limit: int = JSON_LIMIT) -> dict:
    """Read a JSON file that holds one object, as strictly as parse_json; UTF-8, a byte order mark is allowed."""
    with file_errors(path, "read", error), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise error(f"{path}: has {size} bytes, expected at most {limit}")
        raw = file.read(size)
    return parse_json(raw.removeprefix(b"\xef\xbb\xbf"), str(path), error)


def parse_json(raw: bytes, source: str, error: type[MinillmError]) -> dict:
    """Parse bytes that must hold one JSON object, refusing what Python's json lets pass.

    Refused, beside what is no JSON at all: the same key twice in one object (json keeps the last, other readers the
    first), NaN, Infinity and numbers that overflow to it, and nesting deeper than Python's stack. Raises error.
    """
    hooks = {"object_pairs_hook": _unique, "parse_float": _finite, "parse_constant": _finite, "parse_int": _whole}
    try:
        fields = json.loads(raw.decode("utf-8"), **hooks)
        if b"\\u" in raw:
            json.dumps(fields, ensure_ascii=False).encode("utf-8")  # half of a surrogate pair is no character
    except RecursionError:
        raise error(f"{source}: is nested too deeply, expected a plain JSON object") from None
    except UnicodeDecodeError as problem:
        raise error(f"{source}: is not UTF-8 at byte {problem.start}, expected JSON in UTF-8") from None
    except ValueError as problem:  # of json, of the hooks, half a surrogate pair, an integer of more than 4,300 digits
        raise error(f"{source}: is not valid JSON ({problem})") from None
    if not isinstance(fields, dict):
        raise error(f"{source}: holds a JSON {type(fields).__name__}, expected an object")
    return fields


def _unique(items: Sequence[tuple]) -> dict:
    fields, seen = dict(items), set()
    if len(fields) != len(items):
        twice = next(key for key, _ in items if key in seen or seen.add(key))
        raise ValueError(f"the key {show(twice)} stands twice in one object, expected once")
    return fields


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"the number {show(text)} is not finite, expected finite numbers")
    return value


def _whole(text: str) -> int | float:
    return int(text) if text != "-0" else -0.0  # no integer for safetensors either


def file_in(folder: str | Path, name: str, error: type[MinillmError]) -> Path:
    """The path of a file that lies in the folder itself; a link may lead nowhere but to the hub cache's own blobs.

    (The cache of huggingface_hub keeps models--org--name/snapshots/REVISION/file -> ../../blobs/HASH.)
    """
    path, home = Path(folder) / name, Path(os.path.realpath(folder))
    allowed = [home]
    if home.parent.name == "snapshots" and home.parents[1].name.startswith("models--"):
        allowed.append(home.parents[1] / "blobs")
    if Path(os.path.realpath(path)).parent not in allowed:
        raise error(f"{path}: is a link out of its folder, expected a file inside it")
    if not path.is_file():
        raise error(f"{path}: is missing, expected a file")
    return path


def show(value) -> str:
    """repr without line ends, cut to a length that fits a sentence (a hostile name may have megabytes)."""
    text = repr(value[:80] if isinstance(value, str | list) else value)
    return text if len(text) <= 80 else text[:77] + "..."
