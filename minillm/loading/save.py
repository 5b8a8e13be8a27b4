"""A model as a Hugging Face folder, which minillm and transformers load: config.json, model.safetensors, tokenizer.

The weights are written as float32, under the names that config.json asks for: what the files of the family keep in one
matrix is put together again, and a tied head is not written, since it is the embedding. A model that was made from
another one has a file beside them that says how (``how_made``).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..errors import CheckpointError, ConfigError, MinillmError
from ..fields import file_in, read_json
from ..files import whole_folder
from ..identity import Fingerprint
from .checkpoint import SINGLE
from .config import ModelConfig
from .families import INTERLEAVED
from .tensors import save_tensors

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
SMALL_FILES = ("config.json", "generation_config.json", *TOKENIZER)


Content: TypeAlias = str | Callable[[Path], None]


def copy_files(source: Path, folder: Path, names: tuple[str, ...], error: type[MinillmError]) -> None:
    """Copy those of the named files that ``source`` has; raises error for a link that leads out of it."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(file_in(source, name, error), folder / name)


def fused(weights: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
    """The weights under the names of a file of this config; the inverse of checkpoint.split_fused."""
    parts: dict[str, list[np.ndarray]] = {}
    for name in config.weight_shapes():
        parts.setdefault(config.file_name(name), []).append(weights[name])
    return {name: _joined(pieces, config) for name, pieces in parts.items()}


def _joined(pieces: list[np.ndarray], config: ModelConfig) -> np.ndarray:
    """Matrices (or biases) as one, with the rows of all: one below the other, or head by head."""
    if len(pieces) == 1:
        return pieces[0]
    if config.model_type not in INTERLEAVED:
        return np.concatenate(pieces)
    by_head = [piece.reshape(config.num_attention_heads, config.head_dim, *piece.shape[1:]) for piece in pieces]
    return np.stack(by_head, axis=1).reshape(-1, *pieces[0].shape[1:])


def write_model(folder: Path, fields: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> None:
    """Write config.json and model.safetensors into a folder that is there. fields: of config.json.

    weights: under the names that ``load_weights`` gives, any float dtype. Raises CheckpointError.
    """
    config = ModelConfig.from_dict(dict(fields))
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    tensors = {name: w.astype(np.float32, copy=False) for name, w in fused(weights, config).items()}
    save_tensors(folder / SINGLE, tensors, {"format": "pt"})


def how_made(
    form: tuple[str, int], began_with: Fingerprint, facts: Mapping[str, Any], documents: Iterable[str]
) -> dict[str, Any]:
    """The fields of a file that says how a model was made from another one.

    form: name and version of the file's format. began_with: the model before. facts: what was done to it. documents:
    the hashes of the texts that were used.
    """
    began = {"format": form[0], "version": form[1], "began_with": began_with.asdict()}
    return {**began, **facts, "documents_sha256": sorted(documents)}


def source_fields(source: str | Path) -> dict[str, Any]:
    """The fields of the config.json of a folder, without the dtype that its weights are stored in."""
    fields = read_json(file_in(Path(source), "config.json", ConfigError), ConfigError)
    return {name: value for name, value in fields.items() if name not in ("dtype", "torch_dtype")}


def save_model(
    out: str | Path, weights: Mapping[str, np.ndarray], source: str | Path, fields: Mapping[str, Any] | None = None,
    more: Mapping[str, Content] | None = None,
) -> Path:  # fmt: skip
    """Write a model as a new folder, complete or not at all; gives its path.

    weights: as for ``write_model``. source: the folder whose tokenizer and generation settings are copied. fields: of
    config.json; None: those of the source, with the dtype that is written. more {name: text, or a function that
    writes a file at a path}: further files. Raises CheckpointError where the folder exists or cannot be written.
    """
    out, source = Path(out), Path(source)
    fields = {**(source_fields(source) if fields is None else fields), "dtype": "float32"}
    with whole_folder(out, CheckpointError) as beside:
        try:
            copy_files(source, beside, SMALL_FILES, CheckpointError)
            write_model(beside, fields, weights)
            for name, content in (more or {}).items():
                if callable(content):
                    content(beside / name)
                else:
                    (beside / name).write_text(content, encoding="utf-8")
        except CheckpointError as problem:  # the user knows the folder by its final name only
            raise CheckpointError(str(problem).replace(str(beside), str(out))) from None
    return out
