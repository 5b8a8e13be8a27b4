"""A model on disk in the order in which a sparse FFN reads it: neuron by neuron, or block by block.

An ordinary file holds three matrices per layer, and neuron j is in all three: row j of gate, row j of up, column j of
down. To fetch it takes two short reads and, for the column, D tiny ones. Here the neurons are cut into blocks of g (the
last block is shorter where g does not divide F), and each block is one *bundle*, one contiguous stretch of bytes:

    g gate rows | g up rows | g down columns, as rows          3 g D numbers

    rows of the layer's array:  3 g b ... 3 g (b + 1) - 1  for block b, which holds neurons g b ... g (b + 1) - 1

(g = 1: the row-column bundle of LLM in a Flash, Alizadeh et al. 2023, arXiv 2312.11514, section 3.2, with SwiGLU's
gate beside it.) A larger g needs fewer reads and gives BLAS longer matrices, but it also brings in neurons
that are not needed.

The folder:

    bundle.json               {"format": "minillm-bundle", "version": 1, "group": g, "dtype": "float32" | "bfloat16",
                               "model": fingerprint of the source}
    config.json, tokenizer... as they were
    rest.safetensors          everything but the FFN's matrices (their biases are here), float32, under Llama's names
    layer-000.safetensors     one array "bundles" (3 F, D) per layer, F32 or BF16; its data begin at a multiple of 4096

Every file of arrays is a valid safetensors file, which the safetensors library opens. The folder is written under
another name and renamed when it is complete. A model that is loaded from it has the fingerprint of its source, so that
thresholds and predictors of the one fit the other (a bundle that is older than fingerprints is read for its own).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..arguments import whole_number
from ..errors import BundleError, CheckpointError, MinillmError
from ..fields import Fields, brief, file_in, read_json
from ..files import whole_folder
from ..identity import Fingerprint, read_fingerprint
from ..loading.config import ModelConfig
from ..loading.save import SMALL_FILES, copy_files
from ..loading.tensors import DTYPES, TensorInfo, read_header, read_tensor, save_tensors, to_bfloat16
from ..transformer.fingerprint import fingerprint_of
from ..transformer.layer import Layer
from ..transformer.model import Llama, random_weights

FORMAT, VERSION, PAGE = "minillm-bundle", 1, 4096
STORED = {"float32": "F32", "bfloat16": "BF16"}  # ours -> the name in a safetensors header
INDEX, REST, BUNDLES = "bundle.json", "rest.safetensors", "bundles"


def bundled(gate: np.ndarray, up: np.ndarray, down: np.ndarray, group: int) -> np.ndarray:
    """Lay three matrices out as bundles.  gate, up (F, D), down (D, F)  ->  (3 F, D)."""
    neurons, hidden = gate.shape
    whole = neurons - neurons % group
    parts = np.stack([gate, up, down.T])  # (3, F, D)
    blocks = parts[:, :whole].reshape(3, -1, group, hidden).swapaxes(0, 1)  # (F // g, 3, g, D)
    return np.concatenate([blocks.reshape(-1, hidden), parts[:, whole:].reshape(-1, hidden)])  # (3 F, D)


def unbundled(rows: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The inverse of ``bundled``.  rows (3 F, D)  ->  gate, up (F, D), down (D, F)."""
    neurons, hidden = len(rows) // 3, rows.shape[1]
    whole = neurons - neurons % group
    blocks = rows[: 3 * whole].reshape(-1, 3, group, hidden).swapaxes(0, 1)  # (3, F // g, g, D)
    parts = [blocks.reshape(3, whole, hidden), rows[3 * whole :].reshape(3, -1, hidden)]
    gate, up, down = np.concatenate(parts, axis=1)
    return gate, up, down.T


def write_bundle(source: Llama | str | Path, out: str | Path, group: int = 32, dtype: str = "float32") -> Path:
    """Write a model as a folder of neuron bundles (module docstring), complete or not at all; returns its path.

    source: a model that was loaded from a folder, or that folder. Read back, the matrices are those of the source bit
    for bit (float32), or rounded to the nearest bfloat16. Raises BundleError: the folder exists or cannot be written,
    group or dtype is out of range, the model was not loaded from a folder (and so has no config.json to copy), one of
    the files to copy is a link out of that folder.
    """
    model = source if isinstance(source, Llama) else Llama.from_folder(source)
    folder = model.folder
    if folder is None:
        raise BundleError("the model was not loaded from a folder, expected one with a config.json to copy")
    if not model.config.gated:
        raise BundleError("the model's FFNs have no gate, expected gated ones: a bundle holds rows of gate and up")

    def copy(beside: Path) -> None:
        copy_files(folder, beside, SMALL_FILES, BundleError)

    def rows() -> Iterator[np.ndarray]:
        for layer in model.layers:
            matrices = (layer.gate_proj, layer.up, layer.down_proj)
            gate, up, down = (matrix.astype(np.float32, copy=False) for matrix in matrices)
            yield bundled(gate, up, down, group)  # (3 F, D)

    weights = model.weights
    rest = {name: weights[name].astype(np.float32) for name in _rest_shapes(model.config)}
    return _write_folder(Path(out), _Layout(model.config, group, dtype, model.fingerprint), copy, rest, rows())


def write_random_bundle(
    fields: dict, out: str | Path, group: int = 32, dtype: str = "float32", seed: int = 0, std: float = 0.02
) -> Path:
    """Write a bundle of random weights, for tests and benchmarks: it may be larger than memory.

    fields: of a config.json without biases in the FFN. One layer is made at a time. Raises as ``write_bundle`` does.
    """
    config, rng = ModelConfig.from_dict(fields), np.random.default_rng(seed)
    small = random_weights(replace(config, intermediate_size=1), rng, std=std)  # its FFN is not used

    def rows() -> Iterator[np.ndarray]:
        for _ in range(config.num_hidden_layers):
            array = rng.standard_normal((3 * config.intermediate_size, config.hidden_size), dtype=np.float32)
            array *= np.float32(std)
            yield array

    def describe(beside: Path) -> None:
        (beside / "config.json").write_text(json.dumps(fields), encoding="utf-8")

    rest = {name: small[name] for name in _rest_shapes(config)}
    made_of = hashlib.sha256(json.dumps([fields, seed, std], sort_keys=True).encode()).hexdigest()
    layout = _Layout(config, group, dtype, Fingerprint(f"random {config.model_type}", _shape(config), made_of))
    return _write_folder(Path(out), layout, describe, rest, rows())


class _Layout(NamedTuple):
    """How a model lies in a folder of bundles: its config, neurons per block, type of the written weights, model."""

    config: ModelConfig
    group: int
    dtype: str
    model: Fingerprint


def _write_folder(
    out: Path, layout: _Layout, small_files: Callable[[Path], None], rest: dict[str, np.ndarray],
    layers: Iterable[np.ndarray],
) -> Path:  # fmt: skip
    """Write the folder under another name (small_files, the rest, each layer's rows (3 F, D)), then rename it."""
    config, group, dtype, model = layout
    try:
        group = whole_number("group", group, 1, config.intermediate_size)
    except MinillmError as problem:
        raise BundleError(f"{problem} (the model's neurons)") from None
    if dtype not in STORED:
        raise BundleError(f"dtype is {brief(dtype)}, expected one of {', '.join(STORED)}")
    beside = None
    try:
        with _as_bundle_errors(), whole_folder(out, BundleError) as beside:
            small_files(beside)
            about = {"format": FORMAT, "version": VERSION, "group": group, "dtype": dtype, "model": model.asdict()}
            (beside / INDEX).write_text(json.dumps(about) + "\n", encoding="utf-8")
            save_tensors(beside / REST, rest)
            for index, rows in enumerate(layers):
                _write_layer(beside / _layer_file(index), to_bfloat16(rows) if dtype == "bfloat16" else rows)
    except BundleError as problem:  # the user knows the folder by its final name only
        raise BundleError(str(problem).replace(str(beside), str(out))) from None
    return out


def _write_layer(path: Path, rows: np.ndarray) -> None:
    """One safetensors file with one array (uint16: the bits of BF16), whose data begin at a multiple of a page.

    (By hand, as safetensors.numpy has no BF16 and cannot place the data. Spaces after the header are in the format.)
    """
    stored = "BF16" if rows.dtype == np.uint16 else "F32"
    entry = {"dtype": stored, "shape": list(rows.shape), "data_offsets": [0, rows.nbytes]}
    header = json.dumps({BUNDLES: entry}, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % PAGE)
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.write(rows.astype(DTYPES[stored], copy=False).data)


def _shape(config: ModelConfig) -> tuple[int, int, int]:
    return config.num_hidden_layers, config.hidden_size, config.intermediate_size


def _layer_file(index: int) -> str:
    return f"layer-{index:03d}.safetensors"


def _rest_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor but the FFN's matrices, under Llama's names (Phi-3's are split)."""
    shapes = config.weight_shapes()
    return {name: shape for name, shape in shapes.items() if not (".mlp." in name and name.endswith(".weight"))}


@contextmanager
def _as_bundle_errors() -> Iterator[None]:
    """Raise a BundleError for a safetensors file of a bundle that cannot be read or written."""
    try:
        yield
    except CheckpointError as problem:
        raise BundleError(str(problem)) from None


@dataclass(frozen=True)
class Bundle:
    """The contents of a bundle folder, everything checked except the weights; made by ``open_bundle``.

    layers: per layer, where its array of bundles (3 F, D) lies. rest: the other tensors. model: the fingerprint of the
    model that it was written from; None in a bundle that is older than fingerprints.
    """

    folder: Path
    config: ModelConfig
    group: int
    dtype: str
    layers: tuple[TensorInfo, ...]
    rest: dict[str, TensorInfo]
    model: Fingerprint | None = None

    @property
    def blocks(self) -> int:
        """Bundles per layer, the shorter last one included."""
        return -(-self.config.intermediate_size // self.group)

    @property
    def neuron_bytes(self) -> int:
        """Bytes of one neuron on disk: three rows of D numbers."""
        return 3 * self.config.hidden_size * DTYPES[STORED[self.dtype]].itemsize


def open_bundle(folder: str | Path) -> Bundle:
    """Read and check a bundle folder except its weights: index, config, headers, names, shapes, sizes.

    Raises BundleError (and ConfigError for its config.json) for files that are cut short, foreign or contradictory.
    """
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        raise BundleError(f"{folder}: holds no {INDEX}, expected a folder that `minillm bundle` wrote")
    path = file_in(folder, INDEX, BundleError)
    read = Fields(read_json(path, BundleError), str(path), kind=BundleError)
    read.choice("format", [FORMAT])
    read.integer("version", VERSION)
    if unknown := [key for key in read.fields if key not in ("format", "version", "group", "dtype", "model")]:
        raise BundleError(f"{path}: holds {brief(unknown[0])}, expected only format, version, group, dtype and model")
    config = ModelConfig.from_folder(folder)
    group, dtype = read.integer("group", config.intermediate_size), read.choice("dtype", STORED)

    names = [_layer_file(i) for i in range(config.num_hidden_layers)]
    if extra := sorted({path.name for path in folder.glob("layer-*.safetensors")} - set(names)):
        found = f"is beyond the {len(names)} layers of config.json"
        raise BundleError(f"{folder / extra[0]}: {found}, expected no such file")
    shape, layers = (3 * config.intermediate_size, config.hidden_size), []
    for name in names:
        held = _header(folder, name, {BUNDLES: shape}, STORED[dtype])
        layers.append(held[BUNDLES])
    rest = _header(folder, REST, _rest_shapes(config), "F32")
    model = read_fingerprint(read.fields.get("model"), str(path), BundleError)
    if model is not None and model.shape != _shape(config):
        expected = f"expected {list(_shape(config))} of config.json"
        raise BundleError(f"{path}: model has the shape {list(model.shape)}, {expected}")
    return Bundle(folder, config, group, dtype, tuple(layers), rest, model)


def _header(folder: Path, name: str, shapes: dict[str, tuple[int, ...]], dtype: str) -> dict[str, TensorInfo]:
    """The header of one file, which must hold exactly these tensors, all of that dtype."""
    path = file_in(folder, name, BundleError)
    with _as_bundle_errors():
        held = read_header(path)
    if missing := [tensor for tensor in shapes if tensor not in held]:
        raise BundleError(f"{path}: lacks tensor {brief(missing[0])}, expected what config.json asks for")
    if extra := [tensor for tensor in held if tensor not in shapes]:
        raise BundleError(f"{path}: holds tensor {brief(extra[0])}, expected only what config.json asks for")
    for tensor, info in held.items():
        if (info.dtype, info.shape) != (dtype, shapes[tensor]):
            found, expected = f"{info.dtype} {list(info.shape)}", f"{dtype} {list(shapes[tensor])}"
            raise BundleError(f"{path}: tensor {tensor} is {found}, expected {expected}")
    return held


def read_layer(bundle: Bundle, index: int, dtype=np.float32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three matrices of one layer, read whole.  ->  gate, up (F, D), down (D, F). Raises BundleError."""
    with _as_bundle_errors():
        return unbundled(read_tensor(bundle.layers[index], dtype), bundle.group)


def resident_llama(bundle: Bundle, dtype: str | type = "float32") -> Llama:
    """The model without the FFN's matrices: the part in memory while the bundles stay on disk.

    Embedding, attention, norms, head and all biases are there. The three matrices of each layer are empty (F, 0), so
    that a FeedForward that needs them fails at once: give ``forward`` one that fetches (prefetch/fetched.py).
    Raises BundleError.
    """
    maps: dict[Path, np.ndarray] = {}
    with _as_bundle_errors():
        weights = {name: read_tensor(info, np.dtype(dtype), maps) for name, info in bundle.rest.items()}
    config = bundle.config
    for i in range(config.num_hidden_layers):
        for part, rows in (("gate", config.intermediate_size), ("up", config.intermediate_size),
                           ("down", config.hidden_size)):  # fmt: skip
            weights[f"model.layers.{i}.mlp.{part}_proj.weight"] = np.empty((rows, 0), dtype)
    model = Llama(config, weights, bundle.folder)
    model.fingerprint = bundle.model or fingerprint_of(
        model.name, config, model.ends,
        (_whole_layer(bundle, layer, dtype) for layer in model.layers),
    )  # fmt: skip
    return model


def _whole_layer(bundle: Bundle, layer: Layer, dtype: str | type) -> Layer:
    """A layer with its three matrices read whole."""
    gate, up, down = read_layer(bundle, layer.index, dtype)
    return replace(layer, gate_proj=gate, up_proj=up, down_proj=down)


def whole_llama(bundle: Bundle, dtype: str | type = "float32") -> Llama:
    """The model with everything in memory, as from any other folder; a run from disk is compared with it.

    Raises BundleError, and MemoryError where it does not fit.
    """
    model = resident_llama(bundle, dtype)
    model.layers = [_whole_layer(bundle, layer, dtype) for layer in model.layers]
    return model
