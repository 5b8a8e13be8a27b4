"""Whose is this file? The fingerprint of the model that a file was made from, so that no other uses it unnoticed.

Thresholds, predictors, bundles, traces and the records of sweeps hold one: {"name", "shape", "sha256"}. Used with
another model of the same shape, a file gives a warning that names both; of another shape, an error. How the hash is
made is in transformer/fingerprint.py.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import Any

from .errors import MinillmError, show
from .fields import brief

NAME_LIMIT = 300  # characters


@dataclass(frozen=True)
class Fingerprint:
    """Of one model: its name (for people), its shape and the hash.

    shape: number of layers, hidden size, number of neurons of a layer. sha256: 64 hexadecimal digits.
    """

    name: str
    shape: tuple[int, int, int]
    sha256: str

    def __str__(self) -> str:
        return f"{self.name} ({self.sha256[:8]})"

    def asdict(self) -> dict[str, Any]:
        """As a file holds it: {"name": ..., "shape": [L, D, F], "sha256": ...}."""
        return asdict(self) | {"shape": list(self.shape)}

    def check(self, used: Fingerprint, what: str, error: type[MinillmError] = MinillmError) -> None:
        """Warn, in one sentence that names both, where ``what`` (a file) is of this model and is used with another.

        Raises error where their shapes differ: there it cannot be meant.
        """
        if self.shape != used.shape:
            shapes = (
                f"{layers} layers, hidden size {hidden}, {neurons} neurons"
                for layers, hidden, neurons in (self.shape, used.shape)
            )
            raise error(f"{what} was made for {self.name} ({next(shapes)}), expected the shape of {used.name}"
                        f" ({next(shapes)})")  # fmt: skip
        if self.sha256 != used.sha256:
            note = f"{what} was made for another model, {self}, and is used with {used}: its figures do not hold here"
            warnings.warn(show(note), stacklevel=3)


def read_fingerprint(fields: object, source: str, kind: type[MinillmError]) -> Fingerprint | None:
    """The fingerprint that a file holds, checked; None where the file is older than fingerprints (``fields`` None).

    Raises kind, naming source, for anything else.
    """
    if fields is None:
        return None
    good = isinstance(fields, dict) and set(fields) == {"name", "shape", "sha256"}
    if isinstance(fields, dict) and good:
        name, shape, digest = fields["name"], fields["shape"], fields["sha256"]
        good = type(name) is str and len(name) <= NAME_LIMIT and type(digest) is str and len(digest) == 64
        good = good and set(digest) <= set("0123456789abcdef") and type(shape) is list and len(shape) == 3
        if good and all(type(size) is int and 0 < size < 2**31 for size in shape):
            return Fingerprint(name, (shape[0], shape[1], shape[2]), digest)
    raise kind(f"{source}: model is {brief(fields)}, expected an object of name, shape [L, D, F] and sha256")
