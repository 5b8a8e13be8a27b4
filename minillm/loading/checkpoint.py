"""Weights: safetensors files and folders of them -> arrays with names, each byte of them checked first.

A safetensors file (https://github.com/huggingface/safetensors, "Format") is as simple as a file of arrays can be:

    8 bytes     n, the length of the header, unsigned, little-endian
    n bytes     the header, JSON:  {"model.norm.weight": {"dtype": "BF16", "shape": [576], "data_offsets": [0, 1152]},
                                    ..., "__metadata__": {"format": "pt"}}
    the rest    the arrays one after another, row by row, little-endian; data_offsets count from the start of the rest

So a reader is 30 lines; most lines below say no. Everything is checked before anything is allocated: the header's
length against the file, each array's bytes against its shape, the arrays against the file (no hole, no overlap, no
byte left over), the names and shapes against config.json. A name in a file is never used as a path.

Large models come in several files ("shards") with an index, model.safetensors.index.json:
{"metadata": {"total_size": ...}, "weight_map": {tensor name: file name}}.

Differs from transformers: a tensor that is missing or left over is an error (it would be filled with random numbers,
or dropped), so is a shard outside the folder (it would be read) and a weight that is not a finite number.
"""

from __future__ import annotations

import math
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import BundleError, CheckpointError, file_errors, whole_file
from .config import ModelConfig
from .fields import Fields, file_in, parse_json, read_json, show

HEADER_LIMIT = 100_000_000  # bytes, the format's own limit
CHUNK = 1 << 20  # numbers that are widened at a time: 2 MB of BF16 become 4 MB of float32
DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}  # NumPy has no bfloat16: its bits
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class TensorInfo(NamedTuple):
    """Where one array lies: what the header of its file says, checked."""

    name: str
    dtype: str  # a key of DTYPES
    shape: tuple[int, ...]
    path: Path
    offset: int  # bytes from the start of the file
    nbytes: int


def read_header(path: str | Path) -> dict[str, TensorInfo]:
    """Read and check the header of one safetensors file; the arrays themselves are not touched.

    Raises CheckpointError for every file that the safetensors library refuses, and also for a name that stands twice,
    for a header that does not begin with "{", for more than two dimensions and for a dtype other than F32, F16, BF16.
    """
    path = Path(path)
    if not path.is_file():  # also keeps open() from waiting for ever on a named pipe
        raise CheckpointError(f"{path}: is not a file, expected a safetensors file")
    with file_errors(path, "read", CheckpointError), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        n = int.from_bytes(file.read(8), "little")
        if size < 8 or n > min(HEADER_LIMIT, size - 8):
            expected = f"expected at most {HEADER_LIMIT} and no more than the file holds"
            raise CheckpointError(f"{path}: the header length is {n} in a file of {size} bytes, {expected}")
        raw = file.read(n)
    if not raw.startswith(b"{"):
        raise CheckpointError(f"{path}: the header begins with {raw[:1]!r}, expected '{{'")
    entries = parse_json(raw, f"{path} (header)", CheckpointError)

    metadata = entries.pop("__metadata__", None)
    strings = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    if metadata is not None and not strings:
        raise CheckpointError(f"{path}: __metadata__ is {show(metadata)}, expected an object of strings")
    tensors = {name: _tensor_info(name, entry, path, 8 + n) for name, entry in entries.items()}
    end = 8 + n
    for info in sorted(tensors.values(), key=lambda info: (info.offset, info.nbytes)):
        if info.offset != end:
            found = f"tensor {show(info.name)} begins at byte {info.offset}"
            raise CheckpointError(f"{path}: {found}, expected {end}, without hole or overlap")
        end += info.nbytes
    if end != size:
        raise CheckpointError(f"{path}: the arrays end at byte {end}, expected the end of the file at {size}")
    return tensors


def _tensor_info(name: str, entry, path: Path, start: int) -> TensorInfo:
    """Check one entry of a header by itself: dtype, shape, and as many bytes as the two ask for."""

    def sizes(value, counts: range) -> bool:  # type(): True is an int for Python; 2**48 bytes are beyond any disk
        counted = isinstance(value, list) and len(value) in counts
        return counted and all(type(item) is int and 0 <= item < 2**48 for item in value)

    if not isinstance(entry, dict):
        raise CheckpointError(f"{path}: tensor {show(name)} is {show(entry)}, expected an object")
    read = Fields(entry, f"{path}: tensor {show(name)}", kind=CheckpointError)
    dtype, shape, offsets = read.choice("dtype", DTYPES), entry.get("shape"), entry.get("data_offsets")
    if not sizes(shape, range(3)):
        raise read.error("shape", "a list of at most two sizes")
    if not sizes(offsets, range(2, 3)):
        raise read.error("data_offsets", "a list of two byte positions")
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != nbytes:
        raise read.error("data_offsets", f"{nbytes} bytes for {dtype} of shape {shape}")
    return TensorInfo(name, dtype, tuple(shape), path, start + offsets[0], nbytes)


def checkpoint_tensors(folder: str | Path) -> dict[str, TensorInfo]:
    """List every tensor of a model folder, in one file or in shards; headers are read and checked, arrays are not.

    The index must name bare *.safetensors files of this folder, each tensor must lie in the shard it is listed for,
    and no shard may hold a tensor that is not listed. Raises CheckpointError.
    """
    folder = Path(folder)
    if os.path.lexists(folder / SINGLE):
        return read_header(file_in(folder, SINGLE, CheckpointError))
    if not os.path.lexists(folder / INDEX):
        raise CheckpointError(f"{folder}: holds no weights, expected {SINGLE} or {INDEX}")
    index = file_in(folder, INDEX, CheckpointError)
    fields = read_json(index, CheckpointError)
    listed = fields.get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(f"{index}: weight_map is {show(listed)}, expected an object of tensor and file names")
    for name, shard in listed.items():
        if not isinstance(shard, str) or not re.fullmatch(r"[A-Za-z0-9_.-]+\.safetensors", shard):
            expected = "expected the bare name of a .safetensors file in the same folder"
            raise CheckpointError(f"{index}: weight_map has {show(shard)} for {show(name)}, {expected}")
    shards = sorted(set(listed.values()))
    missing = [shard for shard in shards if not os.path.lexists(folder / shard)]
    if missing:
        raise CheckpointError(f"{index}: names {len(missing)} missing shard(s), expected {', '.join(missing)}")

    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        held = read_header(file_in(folder, shard, CheckpointError))
        for name in held:
            if listed.get(name) != shard:
                place = show(listed[name]) if name in listed else "nowhere"
                raise CheckpointError(f"{folder / shard}: holds tensor {show(name)}, which {INDEX} places {place}")
        tensors |= held
    for name, shard in listed.items():
        if name not in tensors:
            raise CheckpointError(f"{folder / shard}: lacks tensor {show(name)}, which {INDEX} places there")
    metadata = fields.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    found = sum(info.nbytes for info in tensors.values())
    if total is not None and total != found:  # only a note beside the data: real files have counted it differently
        warnings.warn(f"{index}: total_size is {show(total)}, but the shards hold {found} bytes", stacklevel=2)
    return tensors


def load_weights(folder: str | Path, config: ModelConfig, dtype=np.float32) -> dict[str, np.ndarray]:
    """Load the weights of a model folder as read-only arrays of one dtype (float32 or float64), under Llama's names.

    Arrays that the file already holds in that dtype are views of the memory-mapped file: nothing is copied, the
    system reads pages as they are used. Others are widened piece by piece into their place. Names and shapes must be
    those of config.tensor_shapes(); Phi-3's fused matrices come back as views under q_proj, k_proj, v_proj, gate_proj
    and up_proj. A tied head is not returned: it is model.embed_tokens.weight, whichever of the two the file holds.
    Raises CheckpointError: names, shapes, tied matrices that differ, numbers that are not finite.
    """
    folder, dtype = Path(folder), np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise CheckpointError(f"{folder}: cannot be loaded as {dtype}, expected float32 or float64")
    # Old files also carry RoPE's frequencies, which follow from config.json.
    found = {name: t for name, t in checkpoint_tensors(folder).items() if not name.endswith(".rotary_emb.inv_freq")}
    # One of two tied matrices is enough: it is the embedding, under whichever name. Where both are stored, twin is
    # the head, which must then be equal.
    twin = found.pop(HEAD, None) if config.tie_word_embeddings else None
    if twin and EMBEDDING not in found:
        found[EMBEDDING], twin = twin, None
    expected = config.tensor_shapes()
    if missing := [name for name in expected if name not in found]:
        raise CheckpointError(f"{folder}: the weights lack {len(missing)} tensor(s) of config.json, first {missing[0]}")
    if extra := [name for name in found if name not in expected]:
        more = f"the weights hold {len(extra)} tensor(s) without a place in config.json"
        raise CheckpointError(f"{folder}: {more}, first {show(extra[0])}")
    for name, info in [*found.items(), *([(EMBEDDING, twin)] if twin else [])]:
        if info.shape != expected[name]:
            shapes = f"shape is {list(info.shape)}, expected {list(expected[name])}"
            raise CheckpointError(f"{info.path}: tensor {info.name}: {shapes}")

    maps: dict[Path, np.ndarray] = {}
    weights = {}
    for name in _progress(expected, sum(info.nbytes for info in found.values())):
        weights[name] = read_tensor(found[name], dtype, maps)
    if twin:
        embedding = weights[EMBEDDING].reshape(-1)
        for start, piece in _pieces(twin):
            if not np.array_equal(embedding[start : start + piece.size], piece):
                why = "expected equal as tie_word_embeddings is true"
                raise CheckpointError(f"{twin.path}: {HEAD} differs from {EMBEDDING}, {why}")
    return split_fused(weights, config)


def split_fused(weights: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
    """Rename Phi-3's fused matrices to Llama's: row blocks q, k, v (H d, K d, K d rows) and gate, up (F rows each).

    The parts are views. Source: modeling_phi3.py, Phi3Attention.forward and Phi3MLP.forward.
    """
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    parts = {"qkv_proj": {"q_proj": q, "k_proj": kv, "v_proj": kv},
             "gate_up_proj": {"gate_proj": config.intermediate_size, "up_proj": config.intermediate_size}}  # fmt: skip
    split = {}
    for name, weight in weights.items():
        fused = name.split(".")[-2]
        start = 0
        for part, rows in parts.get(fused, {fused: len(weight)}).items():
            split[name.replace(fused, part)] = weight[start : start + rows] if fused in parts else weight
            start += rows
    return split


def read_tensor(info: TensorInfo, dtype, maps: dict[Path, np.ndarray] | None = None) -> np.ndarray:
    """Read one array, read-only, as float32 or float64; all values must be finite (CheckpointError names the tensor).

    An array stored in that dtype is a view of the mapped file; maps keeps one map per file between calls.
    """
    dtype = np.dtype(dtype)
    maps = {} if maps is None else maps
    with file_errors(info.path, "read", CheckpointError):
        if DTYPES[info.dtype] == dtype and info.nbytes:
            if info.path not in maps:
                # as plain ndarray: np.memmap's own class costs time in every operation
                maps[info.path] = np.memmap(info.path, np.uint8, mode="r").view(np.ndarray)
            array = maps[info.path][info.offset : info.offset + info.nbytes].view(dtype)
            if info.offset % dtype.itemsize:  # the format allows a header of any length; BLAS would copy at every use
                array = array.copy()
        else:
            array = np.empty(math.prod(info.shape), dtype)
            for start, piece in _pieces(info):
                array[start : start + piece.size] = piece
    with np.errstate(all="ignore"):
        # A sum is as fast as memory, and no NaN or infinity can hide in it; where it overflows, look closely.
        if not np.isfinite(array.sum(dtype=dtype)) and not np.isfinite(array).all():
            raise CheckpointError(f"{info.path}: tensor {info.name} holds NaN or infinity, expected finite numbers")
    array.flags.writeable = False
    return array.reshape(info.shape)


def _pieces(info: TensorInfo) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (index of the first number, numbers) of a flat array, CHUNK at a time, so that no copy of it is held.

    BF16 is the upper half of a float32: shifting its 16 bits up by 16 is exact for every value.
    """
    stored, count = DTYPES[info.dtype], math.prod(info.shape)
    with open(info.path, "rb") as file:
        file.seek(info.offset)
        for start in range(0, count, CHUNK):
            wanted = min(CHUNK, count - start)
            piece = np.fromfile(file, stored, wanted)
            if piece.size != wanted:
                raise CheckpointError(f"{info.path}: ends inside tensor {info.name}, expected {info.nbytes} bytes")
            if info.dtype == "BF16":
                piece = piece.astype(np.uint32)
                piece <<= 16
                piece = piece.view(np.float32)
            elif info.dtype == "F16":
                piece = piece.astype(np.float32)
            yield start, piece


def save_tensors(path: str | Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Write arrays to one safetensors file, whole or not at all, and read them back before it takes its name.

    Raises CheckpointError when the file cannot be written or does not give back what was written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file, save_file  # here, as reading needs no part of it

    # safetensors 0.8.0 writes the buffer of a transposed or strided array as if it were contiguous (its issue 825).
    # (np.asarray with order="C" does what np.ascontiguousarray does, but a scalar stays a scalar.)
    tensors = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    with whole_file(path, CheckpointError) as beside:
        try:
            save_file(tensors, beside, metadata=metadata)
            back = load_file(beside)
        except SafetensorError as problem:  # raised for a full disk, too
            raise OSError(str(problem)) from None
        for name, array in tensors.items():
            copy = back[name]
            if (copy.dtype, copy.shape, copy.tobytes()) != (array.dtype, array.shape, array.tobytes()):
                raise CheckpointError(f"{path}: tensor {show(name)} is not what was written, expected the same")
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(beside, 0o666 & ~umask)  # the library writes files for their owner alone


def _progress(names: Iterable[str], nbytes: int) -> Iterable[str]:
    """A progress bar on stderr, for large models on a terminal only: importing tqdm takes longer than a small model."""
    if nbytes < 200_000_000 or not sys.stderr.isatty():
        return names
    from tqdm import tqdm

    return tqdm(names, desc="loading", unit=" tensors", delay=2, leave=False, file=sys.stderr)


def to_bfloat16(array: np.ndarray) -> np.ndarray:
    """The bits of the nearest bfloat16 (a float32's upper half), ties to even.  float32  ->  uint16, same shape.

    Raises BundleError where the nearest is infinite (above 3.39e38).
    """
    bits = array.view(np.uint32)
    upper = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    if ((upper & 0x7F80) == 0x7F80).any():
        raise BundleError("a weight is beyond 3.39e38, expected numbers that bfloat16 can hold")
    return upper
