"""A predictor as one safetensors file, and back.

    arrays      table.NAME for each of the predictor's arrays(), and cutoffs (L,) float64 once they are set
    metadata    format, version, kind (catalogue.py), and as JSON: settings(), shape [L, D, F], trained_on

The kind names the class; its from_arrays makes the predictor again from tables and settings. Files come from anywhere,
so every field is checked, and a file that does not fit is refused in one sentence.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import numpy as np

from ..errors import CheckpointError, MinillmError
from ..loading.fields import brief, parse_json
from ..loading.tensors import save_tensors
from .catalogue import KINDS
from .protocol import Predictor

FORMAT, VERSION = "minillm-predictor", "1"


def class_of(kind: str) -> type[Predictor]:
    """The class of a kind that a file may name; its module is loaded here."""
    module, name = KINDS[kind].split(":")
    return getattr(import_module(f"{__package__}.{module}"), name)


def save_predictor(path: str | Path, predictor: Predictor) -> None:
    """Write a predictor as one safetensors file, whole or not at all: its arrays, the rest as JSON beside them.

    Raises MinillmError for a predictor that cannot be saved (the oracle), CheckpointError when writing fails.
    """
    own = f"{type(predictor).__module__.rpartition('.')[2]}:{type(predictor).__qualname__}"
    kind = next((kind for kind, place in KINDS.items() if place == own), None)
    if kind is None:
        raise MinillmError(f"the predictor {predictor.name} has no tables of its own, expected one that can be saved")
    arrays = {f"table.{name}": array for name, array in predictor.arrays().items()}
    if predictor.cutoffs is not None:
        arrays["cutoffs"] = np.asarray(predictor.cutoffs, np.float64)
    about = {"settings": predictor.settings(), "shape": predictor.shape, "trained_on": sorted(predictor.trained_on)}
    save_tensors(path, arrays, {"format": FORMAT, "version": VERSION, "kind": kind, "predictor": json.dumps(about)})


def load_predictor(path: str | Path) -> Predictor:
    """Read a predictor's file. Raises CheckpointError, in one sentence, for a file that is not one or does not fit."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file, expected a predictor (safetensors)")
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError) as problem:  # TypeError: a dtype that NumPy lacks
        raise CheckpointError(f"{path}: is no safetensors file of plain arrays ({problem})") from None
    for key, good in (("format", [FORMAT]), ("version", [VERSION]), ("kind", list(KINDS))):
        if metadata.get(key) not in good:
            expected = ", ".join(good)
            raise CheckpointError(f"{path}: {key} is {brief(metadata.get(key))}, expected one of {expected}")
    about = parse_json(metadata.get("predictor", "").encode(), f"{path} (predictor)", CheckpointError)
    for key, form in (("settings", dict), ("shape", list), ("trained_on", list)):
        if not isinstance(about.get(key), form):
            raise CheckpointError(f"{path}: {key} is {brief(about.get(key))}, expected a {form.__name__}")
    kind, cutoffs = class_of(metadata["kind"]), arrays.pop("cutoffs", None)
    tables = {name.removeprefix("table."): array for name, array in arrays.items()}
    try:
        predictor = kind.from_arrays(tables, about["settings"])
        if list(predictor.shape) != about["shape"] or (cutoffs is not None and cutoffs.shape != predictor.shape[:1]):
            raise ValueError(f"found {predictor.shape} and {np.shape(cutoffs)} cutoffs, expected {about['shape']}")
    except (KeyError, TypeError, ValueError, IndexError) as problem:
        raise CheckpointError(f"{path}: its tables make no {metadata['kind']} predictor ({problem})") from None
    predictor.cutoffs, predictor.trained_on = cutoffs, frozenset(map(str, about["trained_on"]))
    return predictor
