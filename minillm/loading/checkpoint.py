"""Weights: a folder of safetensors files -> arrays with the names and shapes that config.json asks for.

Large models come in several files ("shards") with an index, model.safetensors.index.json:
{"metadata": {"total_size": ...}, "weight_map": {tensor name: file name}}.

tensors.py checks each file by itself, names.py compares the names with those that config.json asks for; here the files
are checked against the index, and the shapes against config.json. A name in a file is never used as a path.

Differs from transformers: a weight that is missing or left over is an error (it would be filled with random numbers,
or dropped), so is a shard outside the folder (it would be read) and a weight that is not a finite number.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import CheckpointError
from ..fields import brief, file_in, read_json
from ..foreign import other_weights
from .config import ModelConfig
from .families import INTERLEAVED
from .names import EMBEDDING, HEAD, expected_names, is_derived, plain_name
from .tensors import DTYPES, TensorInfo, pieces, read_header, read_tensor

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def checkpoint_tensors(folder: str | Path) -> dict[str, TensorInfo]:
    """List every tensor of a model folder, in one file or in shards; headers are read and checked, arrays are not.

    The index must name bare *.safetensors files of this folder, each tensor must lie in the shard it is listed for,
    and no shard may hold a tensor that is not listed. Two kinds of tensors may be missing on either side: those that
    follow from config.json, and lm_head, which a model with tied matrices does not need (``load_weights`` knows).
    Raises CheckpointError.
    """
    folder = Path(folder)
    if os.path.lexists(folder / SINGLE):
        return read_header(file_in(folder, SINGLE, CheckpointError))
    if not os.path.lexists(folder / INDEX):
        raise CheckpointError(f"{folder}: {other_weights(folder) or 'holds no weights'}, expected {SINGLE} or {INDEX}")
    index = file_in(folder, INDEX, CheckpointError)
    listed, total = _read_index(index)
    needed = {shard for name, shard in listed.items() if not is_derived(name)}
    if missing := sorted(shard for shard in needed if not os.path.lexists(folder / shard)):
        raise CheckpointError(f"{index}: names {len(missing)} missing shard(s), expected {', '.join(missing)}")

    tensors: dict[str, TensorInfo] = {}
    for shard in sorted(needed):
        held = read_header(file_in(folder, shard, CheckpointError))
        for name in held:
            if listed.get(name) != shard and not _may_differ(name):
                place = brief(listed[name]) if name in listed else "nowhere"
                raise CheckpointError(f"{folder / shard}: holds tensor {brief(name)}, which {INDEX} places {place}")
            if name in tensors and not is_derived(name):
                raise CheckpointError(
                    f"{folder / shard}: holds tensor {brief(name)}, as {tensors[name].path.name} does"
                )
        tensors |= held
    for name, shard in listed.items():
        if name not in tensors and not _may_differ(name):
            raise CheckpointError(f"{folder / shard}: lacks tensor {brief(name)}, which {INDEX} places there")
    nbytes = sum(info.nbytes for info in tensors.values())
    if total is not None and total != nbytes and listed.keys() == tensors.keys():
        # a warning only: published files have counted it in other ways
        warnings.warn(f"{index}: total_size is {brief(total)}, but the shards hold {nbytes} bytes", stacklevel=2)
    return tensors


def _read_index(index: Path) -> tuple[dict[str, str], object]:
    """Tensor name -> shard, the bare name of a file; and the total size that the index states, whatever it is."""
    fields = read_json(index, CheckpointError)
    listed = fields.get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(f"{index}: weight_map is {brief(listed)}, expected an object of tensor and file names")
    for name, shard in listed.items():
        if not isinstance(shard, str) or not re.fullmatch(r"[A-Za-z0-9_.-]+\.safetensors", shard):
            expected = "expected the bare name of a .safetensors file in the same folder"
            raise CheckpointError(f"{index}: weight_map has {brief(shard)} for {brief(name)}, {expected}")
    metadata = fields.get("metadata")
    return listed, metadata.get("total_size") if isinstance(metadata, dict) else None


def _may_differ(name: str) -> bool:
    """Whether the index and the shards may disagree about a tensor of this name."""
    return is_derived(name) or plain_name(name)[1] == HEAD


def readable_tensors(folder: str | Path) -> list[TensorInfo]:
    """The tensors of every *.safetensors file of a folder whose header can be read, for a folder that cannot be loaded.

    Never raises: files that cannot be read are left out.
    """
    tensors: list[TensorInfo] = []
    with suppress(OSError, ValueError):
        for path in sorted(Path(folder).glob("*.safetensors")):
            with suppress(CheckpointError):
                tensors += read_header(path).values()
    return tensors


def load_weights(folder: str | Path, config: ModelConfig, dtype: DTypeLike = np.float32) -> dict[str, np.ndarray]:
    """Load the weights of a model folder as read-only arrays of one dtype (float32 or float64), under Llama's names.

    Arrays that the file already holds in that dtype are views of the memory-mapped file: nothing is copied, the
    system reads pages as they are used. Others are widened piece by piece into their place. Names and shapes must be
    those of config.tensor_shapes(). They come back under the names of config.weight_shapes(): a matrix that holds the
    rows of several is split (``split_fused``). A tied head is not returned: it is model.embed_tokens.weight, whichever
    of the two the file holds.
    Raises CheckpointError: names, shapes, tied matrices that differ, numbers that are not finite.
    """
    folder, dtype = Path(folder), np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise CheckpointError(f"{folder}: cannot be loaded as {dtype}, expected float32 or float64")
    tied, expected = config.tie_word_embeddings, config.tensor_shapes()
    embedding, head = config.file_name(EMBEDDING), config.file_name(HEAD)
    found = expected_names(checkpoint_tensors(folder), expected, folder, (embedding, head) if tied else None)
    # One of two tied matrices is enough: it is the embedding, under whichever name. Where both are stored, twin is
    # the head, which must then be equal.
    twin = found.pop(head, None) if tied else None
    if twin and embedding not in found:
        found[embedding], twin = twin, None
    for name, info in [*found.items(), *([(embedding, twin)] if twin else [])]:
        if info.dtype not in DTYPES:
            stored = f"is stored as {info.dtype}, expected one of {', '.join(DTYPES)} (quantised weights are not read)"
            raise CheckpointError(f"{info.path}: tensor {info.name} {stored}")
        if info.shape != expected[name]:
            shapes = f"shape is {brief(list(info.shape))}, expected {list(expected[name])}"
            raise CheckpointError(f"{info.path}: tensor {info.name}: {shapes}")

    maps: dict[Path, np.ndarray] = {}
    weights = {}
    for name in _with_progress(expected, sum(info.nbytes for info in found.values())):
        weights[name] = read_tensor(found[name], dtype, maps)
    if twin:
        flat = weights[embedding].reshape(-1)
        for start, piece in pieces(twin):
            if not np.array_equal(flat[start : start + piece.size], piece):
                why = "expected equal as tie_word_embeddings is true"
                raise CheckpointError(f"{twin.path}: {head} differs from {embedding}, {why}")
    return split_fused(weights, config)


def split_fused(weights: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
    """The tensors of a file under Llama's names; a matrix that holds the rows of several is split.

    Phi-3: row blocks q, k, v (H d, K d, K d rows) and gate, up (F rows each); the parts are views. GPT-NeoX: for each
    head the d rows of q, k and v; the rows of one part do not lie together there, so the parts are copies.
    Source: modeling_phi3.py, modeling_gpt_neox.py.
    """
    split, starts = {}, dict[str, int]()
    for name, (rows, *_) in config.weight_shapes().items():
        stored = config.file_name(name)
        whole, start = weights[stored], starts.get(stored, 0)
        starts[stored] = start + rows
        if rows == len(whole):
            split[name] = whole
        elif config.model_type in INTERLEAVED:
            heads = whole.reshape(config.num_attention_heads, 3, config.head_dim, *whole.shape[1:])
            split[name] = read_only(heads[:, start // rows].reshape(rows, *whole.shape[1:]))
        else:
            split[name] = whole[start : start + rows]
    return split


def read_only(array: np.ndarray) -> np.ndarray:
    """The array itself, which can no longer be written into: weights of a file are not changed."""
    array.flags.writeable = False
    return array


def _with_progress(names: Iterable[str], nbytes: int) -> Iterable[str]:
    """A progress bar on stderr, for large models on a terminal only: importing tqdm takes longer than a small model."""
    if nbytes < 200_000_000 or not sys.stderr.isatty():
        return names
    from tqdm import tqdm

    return tqdm(names, desc="loading", unit=" tensors", delay=2, leave=False, file=sys.stderr)
