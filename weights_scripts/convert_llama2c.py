"""Convert llama2.c's model and tokenizer files to a Hugging Face folder.

    python weights_scripts/convert_llama2c.py BIN TOKENIZER OUT

llama2.c (Karpathy, https://github.com/karpathy/llama2.c) stores a Llama as a header and float32 arrays. There is one
array for each kind of weight, and it holds all layers. Two formats of its export.py are read (little-endian):

    legacy (v0)  7 int32: dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size (negative: own head), max_seq_len
    v1           "ak42" reversed, version, the 7 int32, one byte (1: shared head), zeros up to byte 256; norms first

Two things have to be converted; the rest is renamed:

1. RoPE. llama2.c rotates the pairs (2j, 2j + 1) of a head, Hugging Face's Llama the pairs (j, j + d/2). The rows of
   W_q and W_k are reordered to fit (transformer/rope.py has both forms).
2. The tokenizer. llama2.c merges the neighbours whose merged piece has the best score; a BPE of `tokenizers` merges
   by the rank of the pair. So every pair of pieces that makes a piece becomes a merge, ranked by that piece's score.
   Differs from llama2.c: two different pairs that make the same piece and overlap ("ab"+"a" and "a"+"ba" in "ababa")
   are merged by rank, not from the left. With a vocabulary that was trained by merging this is very rare.
"""

import argparse
import json
import math
import os
import shutil
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minillm.errors import CheckpointError, MinillmError, TokenizerError
from minillm.loading.tensors import save_tensors
from minillm.loading.tokenizer import Tokenizer
from minillm.transformer.model import Llama
from minillm.transformer.rope import halves_from_interleaved

MAGIC = 0x616B3432
FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")
LIMITS = (2**16, 2**20, 1024, 4096, 4096, 2**21, 2**24)
TABLES = ("cos", "sin")  # of the legacy format; a Llama computes its rotary tables again
BOS, EOS, FIRST_BYTE = 1, 2, 3  # id 0 is <unk>, the ids 3 to 258 are the bytes


@dataclass(frozen=True)
class Header:
    """What the first bytes of a .bin file give: the format, and the sizes by llama2.c's names."""

    legacy: bool
    shared: bool  # the head is the embedding
    start: int  # the byte at which the weights begin
    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    max_seq_len: int

    @property
    def head_dim(self) -> int:
        """d, the size of a head."""
        return self.dim // self.n_heads


def parse_header(head: bytes, path: Path, size: int) -> Header:
    """The header from the first 256 bytes of a file of ``size`` bytes. Raises CheckpointError."""
    if len(head) < 28:
        raise CheckpointError(f"{path}: has {size} bytes, expected a header of at least 28")
    legacy = struct.unpack_from("<I", head)[0] != MAGIC
    if legacy:
        values, start = list(struct.unpack_from("<7i", head)), 28
        shared, values[5] = values[5] > 0, abs(values[5])
    else:
        version = struct.unpack_from("<i", head, 4)[0]
        if version != 1:
            what = "the int8 format (version 2)" if version == 2 else f"version {version}"
            raise CheckpointError(f"{path}: is in {what}, expected legacy or version 1 with float32 weights")
        if len(head) < 256:
            raise CheckpointError(f"{path}: has {size} bytes, expected a header of 256")
        values, start = list(struct.unpack_from("<7i", head, 8)), 256
        if head[36] > 1 or any(head[37:]):
            raise CheckpointError(f"{path}: the header has other bytes after max_seq_len, expected 0 or 1 and zeros")
        shared = head[36] == 1
    for field, value, limit in zip(FIELDS, values, LIMITS, strict=True):
        if not 0 < value <= limit:
            raise CheckpointError(f"{path}: {field} is {value}, expected 1 to {limit}")
    header = Header(legacy, shared, start, *values)
    dim, n_heads, n_kv_heads = header.dim, header.n_heads, header.n_kv_heads
    if dim % n_heads or n_heads % n_kv_heads or dim // n_heads % 2:
        raise CheckpointError(
            f"{path}: dim {dim}, n_heads {n_heads}, n_kv_heads {n_kv_heads} do not fit, expected an even dim / n_heads "
            "and a whole n_heads / n_kv_heads"
        )
    return header


def arrays_in_order(h: Header) -> list[tuple[str, tuple[int, ...]]]:
    """(kind, shape) of every array of the file. The kind is Hugging Face's name without the layer."""
    kv = h.head_dim * h.n_kv_heads
    norms = [("input_layernorm", (h.n_layers, h.dim)), ("post_attention_layernorm", (h.n_layers, h.dim)),
             ("norm", (h.dim,))]  # fmt: skip
    embedding = [("embed_tokens", (h.vocab_size, h.dim))]
    rows = {"q": h.dim, "k": kv, "v": kv, "o": h.dim}
    attention = [(f"self_attn.{name}_proj", (h.n_layers, rows[name], h.dim)) for name in rows]
    ffn = [("mlp.gate_proj", (h.n_layers, h.hidden_dim, h.dim)), ("mlp.down_proj", (h.n_layers, h.dim, h.hidden_dim)),
           ("mlp.up_proj", (h.n_layers, h.hidden_dim, h.dim))]  # fmt: skip
    own_head = [] if h.shared else [("lm_head", (h.vocab_size, h.dim))]
    if h.legacy:
        tables = [(name, (h.max_seq_len, h.head_dim // 2)) for name in TABLES]
        return [*embedding, norms[0], *attention, norms[1], *ffn, norms[2], *tables, *own_head]
    return [*norms, *embedding, *attention, *ffn, *own_head]


def named_weights(kind: str, array: np.ndarray, head_dim: int) -> dict[str, np.ndarray]:
    """The weights of one array by Hugging Face's names; those of all layers are divided, W_q and W_k reordered."""
    if not kind.startswith(("input", "post", "self_attn", "mlp")):
        return {"lm_head.weight" if kind == "lm_head" else f"model.{kind}.weight": array}
    layers = list(array)
    if kind in ("self_attn.q_proj", "self_attn.k_proj"):
        layers = [halves_from_interleaved(layer, len(layer) // head_dim) for layer in layers]
    return {f"model.layers.{i}.{kind}.weight": layer for i, layer in enumerate(layers)}


def config_fields(h: Header) -> dict:
    """The fields of config.json."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32",
        "vocab_size": h.vocab_size, "hidden_size": h.dim, "intermediate_size": h.hidden_dim,
        "num_hidden_layers": h.n_layers, "num_attention_heads": h.n_heads, "num_key_value_heads": h.n_kv_heads,
        "head_dim": h.head_dim, "max_position_embeddings": h.max_seq_len, "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "rope_scaling": None, "attention_bias": False, "mlp_bias": False,
        "tie_word_embeddings": h.shared, "bos_token_id": BOS, "eos_token_id": EOS,
    }  # fmt: skip


def read_model(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Read a .bin file: the fields of config.json, and the weights by Hugging Face's names. Raises CheckpointError."""
    try:
        with open(path, "rb") as file:
            head = file.read(256)
            size = file.seek(0, os.SEEK_END)
    except OSError as problem:
        raise CheckpointError(f"{path}: cannot be read ({problem.strerror})") from None
    header = parse_header(head, path, size)
    order = arrays_in_order(header)
    counts = [math.prod(shape) for _, shape in order]
    expected = header.start + 4 * sum(counts)
    if size != expected:
        raise CheckpointError(f"{path}: has {size} bytes, expected {expected} from its header")

    floats, weights, at = np.memmap(path, "<f4", "r", offset=header.start), {}, 0
    for (kind, shape), count in zip(order, counts, strict=True):
        array, at = floats[at : at + count].reshape(shape), at + count
        if not np.isfinite(array).all():
            raise CheckpointError(f"{path}: the weights of {kind} hold NaN or infinity, expected finite numbers")
        if kind not in TABLES:
            weights |= named_weights(kind, array, header.head_dim)
    return config_fields(header), weights


def read_pieces(path: Path, vocab_size: int) -> list[tuple[str, float]]:
    """Read a tokenizer.bin: (piece, score) of each id, spaces as spaces. Raises TokenizerError.

    int32 max_token_length, then for every id: float32 score, int32 length, that many bytes.
    """
    try:
        data = path.read_bytes() if path.stat().st_size <= 100_000_000 else b""
    except OSError as problem:
        raise TokenizerError(f"{path}: cannot be read ({problem.strerror})") from None
    pieces, at = [], 4
    for index in range(vocab_size):
        score, length = struct.unpack_from("<fi", data, at) if at + 8 <= len(data) else (0.0, -1)
        piece, at = data[at + 8 : at + 8 + max(length, 0)], at + 8 + max(length, 0)
        if length < 0 or at > len(data) or not np.isfinite(score):
            raise TokenizerError(f"{path}: ends or breaks at token {index}, expected {vocab_size} scored tokens")
        try:
            pieces.append((piece.decode("utf-8"), score))
        except UnicodeDecodeError:
            raise TokenizerError(f"{path}: token {index} is {piece[:40]!r}, expected UTF-8") from None
    if at != len(data):
        raise TokenizerError(f"{path}: has {len(data)} bytes, expected {at} for the model's {vocab_size} tokens")
    if [piece for piece, _ in pieces[FIRST_BYTE : FIRST_BYTE + 256]] != [f"<0x{byte:02X}>" for byte in range(256)]:
        raise TokenizerError(f"{path}: the ids 3 to 258 are other pieces, expected the bytes <0x00> to <0xFF>")
    return pieces


def tokenizer_json(pieces: list[tuple[str, float]], path: Path) -> str:
    """A BPE with the same ids as llama2.c's: a space in front, bytes for unknown characters, best score first."""
    from tokenizers import AddedToken, decoders, models, normalizers, processors
    from tokenizers import Tokenizer as RawTokenizer

    specials = ["<unk>", "<s>", "</s>"]  # llama2.c shows BOS and EOS between line ends
    names = [*specials, *(piece for piece, _ in pieces[FIRST_BYTE:])]
    vocab = {name: index for index, name in enumerate(names)}
    if len(vocab) != len(names):
        raise TokenizerError(f"{path}: {len(names) - len(vocab)} pieces stand twice, expected each once")
    merges = []
    for index, (piece, score) in enumerate(pieces[FIRST_BYTE:], FIRST_BYTE):
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if vocab.get(left, 0) >= FIRST_BYTE and vocab.get(right, 0) >= FIRST_BYTE:
                merges.append((-score, index, left, right))
    merges = [(left, right) for _, _, left, right in sorted(merges)]
    raw = RawTokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    raw.normalizer = normalizers.Prepend(" ")  # nothing in front of an empty text, as there
    raw.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    raw.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    return raw.to_str(pretty=True)


def convert(model: Path, tokenizer: Path, out: Path) -> None:
    """Write the folder ``out``, a new or empty one, complete or not at all. Raises CheckpointError, TokenizerError."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out}: is in use, expected a new or empty folder to write to")
    config, weights = read_model(model)
    tokens = tokenizer_json(read_pieces(tokenizer, config["vocab_size"]), tokenizer)
    # llama2.c ends a text when the model starts the next one with BOS
    generation = {"bos_token_id": BOS, "eos_token_id": [BOS, EOS]}
    # for transformers, whose Llama tokenizer would build another one from the vocabulary
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
                "unk_token": "<unk>", "clean_up_tokenization_spaces": False}  # fmt: skip
    beside = out.absolute().with_name(f".{out.absolute().name}.{os.getpid()}.tmp")
    try:
        beside.mkdir(parents=True)
        for name, text in {
            "config.json": json.dumps(config, indent=2), "generation_config.json": json.dumps(generation, indent=2),
            "tokenizer.json": tokens, "tokenizer_config.json": json.dumps(settings, indent=2),
        }.items():  # fmt: skip
            (beside / name).write_text(text, encoding="utf-8", newline="\n")
        save_tensors(beside / "model.safetensors", weights, {"format": "pt"})
        Llama.from_folder(beside)  # what is written is read once, so that a mistake shows here
        Tokenizer.from_folder(beside, config["vocab_size"])
        if out.exists():
            out.rmdir()
        os.replace(beside, out)
    except OSError as problem:
        raise CheckpointError(f"{out}: cannot be written ({problem.strerror})") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Convert a model of llama2.c into a Hugging Face folder.")
    parser.add_argument("model", type=Path, metavar="BIN", help="e.g. stories260K.bin (legacy or version 1, float32)")
    parser.add_argument("tokenizer", type=Path, metavar="TOKENIZER", help="e.g. tok512.bin")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make")
    arguments = parser.parse_args()
    try:
        convert(arguments.model, arguments.tokenizer, arguments.out)
    except MinillmError as problem:
        print(f"convert_llama2c: {problem}", file=sys.stderr)
        return 1
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
