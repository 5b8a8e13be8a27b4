"""A predictor as one safetensors file, and back.

    arrays      table.NAME for each of the predictor's arrays(), and cutoffs (L,) float64 once they are set
    metadata    format, version, kind (catalogue.py), and as JSON: settings(), shape [L, D, F], trained_on, model

The kind names the class. Its layout says which tables belong to these settings, and its from_arrays makes the predictor
again from both. Files come from anywhere, so every field is checked, and a file that does not fit is refused in one
sentence.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import CheckpointError, MinillmError
from ..fields import Fields, parse_json
from ..identity import Fingerprint, read_fingerprint
from ..loading.tensors import read_whole_header, save_tensors
from .catalogue import KINDS
from .layout import NUMPY, Layout, Table, check_header, check_values, read_table
from .protocol import Predictor

FORMAT, VERSION = "minillm-predictor", "1"
HEADER_LIMIT = 8_000_000  # bytes; 100,000 hashes of documents take 7 million


def class_of(kind: str) -> type[Predictor]:
    """The class of a kind that a file may name; its module is loaded here."""
    module, name = KINDS[kind].split(":")
    return getattr(import_module(f"{__package__}.{module}"), name)


def save_predictor(path: str | Path, predictor: Predictor) -> None:
    """Write a predictor as one safetensors file, whole or not at all: its arrays, the rest as JSON beside them.

    Raises MinillmError for a predictor that cannot be saved (the oracle), CheckpointError when writing fails or where
    a table holds what cannot be read back (a weight too large for a float16, say).
    """
    own = f"{type(predictor).__module__.rpartition('.')[2]}:{type(predictor).__qualname__}"
    kind = next((kind for kind, place in KINDS.items() if place == own), None)
    if kind is None:
        raise MinillmError(f"the predictor {predictor.name} has no tables of its own, expected one that can be saved")
    arrays = {f"table.{name}": array for name, array in predictor.arrays().items()}
    if predictor.cutoffs is not None:
        # -inf selects every neuron, and so does the least of all numbers: a file holds no infinity.
        arrays["cutoffs"] = np.nan_to_num(np.asarray(predictor.cutoffs, np.float64), nan=np.nan, posinf=np.inf)
    about = {"settings": predictor.settings(), "shape": predictor.shape, "trained_on": sorted(predictor.trained_on)}
    if predictor.model is not None:
        about["model"] = predictor.model.asdict()
    text = json.dumps(about, default=lambda scalar: scalar.item())  # of NumPy
    layout = read_about(text, kind, str(path))[1]
    check_header(layout, {name: (_dtype(array), array.shape) for name, array in arrays.items()}, str(path))
    for name, array in arrays.items():
        check_values(layout.tables[name], name, array, str(path))
    save_tensors(path, arrays, {"format": FORMAT, "version": VERSION, "kind": kind, "predictor": text})


def load_predictor(path: str | Path) -> Predictor:
    """Read a predictor's file. Raises CheckpointError, in one sentence, for a file that is not one or does not fit.

    Names, dtypes and shapes are checked on the header, before a table is read (layout.py).
    """
    source = str(path)
    header, metadata = read_whole_header(path, HEADER_LIMIT)
    read = Fields(metadata, source, kind=CheckpointError)
    for key, good in (("format", [FORMAT]), ("version", [VERSION]), ("kind", list(KINDS))):
        read.choice(key, good)
    read.only(["format", "version", "kind", "predictor"])
    kind = metadata["kind"]
    about, layout = read_about(metadata.get("predictor", ""), kind, source)
    check_header(layout, {name: (info.dtype, info.shape) for name, info in header.items()}, source)
    order = sorted(header, key=lambda name: header[name].nbytes)  # what is wrong with a small one is known sooner
    tables = {name: read_table(layout.tables[name], header[name], source) for name in order}
    own = {name.removeprefix("table."): array for name, array in tables.items() if name != "cutoffs"}
    predictor = class_of(kind).from_arrays(own, about.settings)
    predictor.cutoffs, predictor.trained_on, predictor.model = tables.get("cutoffs"), about.trained_on, about.model
    return predictor


class About(NamedTuple):
    """What a file says of its predictor beside the tables."""

    settings: dict
    trained_on: frozenset[str]
    model: Fingerprint | None


def read_about(text: str, kind: str, source: str) -> tuple[About, Layout]:
    """The JSON of the metadata, checked field by field, and what tables the file must hold. Raises CheckpointError."""
    fields = parse_json(text.encode(), f"{source} (predictor)", CheckpointError)
    read = Fields(fields, source, kind=CheckpointError)
    read.only(["settings", "shape", "trained_on", "model"])
    shape = fields.get("shape")
    if not isinstance(shape, list) or len(shape) != 3 or any(type(n) is not int or not 0 < n < 2**31 for n in shape):
        raise read.error("shape", "[L, D, F], the sizes of the model")
    model = read_fingerprint(fields.get("model"), source, CheckpointError)
    if model is not None and list(model.shape) != shape:
        raise read.error("model", f"one of shape {shape}, as the predictor has", list(model.shape))
    settings = fields.get("settings")
    for name, form in (("settings", dict), ("trained_on", list)):
        if not isinstance(fields.get(name), form):
            raise read.error(name, "an object" if form is dict else "a list of hashes")
    assert isinstance(settings, dict)
    layout = class_of(kind).layout(
        Fields(settings, source, "settings.", CheckpointError), (shape[0], shape[1], shape[2])
    )
    tables = {f"table.{name}": table for name, table in layout.tables.items()}
    tables["cutoffs"] = Table("L", ("F64",), group="cutoffs")
    about = About(settings, frozenset(read.hashes("trained_on")), model)
    return about, layout._replace(tables=tables)


def _dtype(array: np.ndarray) -> str:
    """The name that safetensors has for an array's dtype."""
    return next((name for name, dtype in NUMPY.items() if dtype == array.dtype), str(array.dtype))
