"""The sizes that are measured, and random models of these sizes.

The time of a pass depends on the sizes of the matrices, not on the numbers in them. So the benchmarks need no published
weights: random ones of a published shape take as long. The presets have the shapes of llama2.c's models (tied heads).
"1B" is the shape of TinyLlama (clock.LARGE), whose layers are larger than any cache; only a few of them are made.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import MinillmError
from ..loading.config import ModelConfig
from ..loading.save import write_model
from ..prefetch.clock import LARGE
from ..transformer.model import random_weights


class Shape(NamedTuple):
    """The sizes of a model, and how many new tokens a round of ``bench decode`` makes."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    new_tokens: int


SHAPES = {
    "260K": Shape(64, 5, 8, 4, 172, 512, new_tokens=200),
    "15M": Shape(288, 6, 6, 6, 768, 32000, new_tokens=128),
    "110M": Shape(768, 12, 12, 12, 2048, 32000, new_tokens=24),
}


def random_fields(shape: str) -> dict[str, Any]:
    """The config.json of a preset."""
    sizes = SHAPES[shape]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "vocab_size": sizes.vocabulary,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }


def config_at(shape: str | tuple[int, int]) -> ModelConfig:
    """The config of a preset ("15M", "110M", "1B": clock.LARGE), or of LARGE with another (hidden, intermediate).

    Its attention then grows with the hidden size: q and o are D x D, k and v D x D / 8. Raises MinillmError.
    """
    if isinstance(shape, str):
        if shape in SHAPES:
            return ModelConfig.from_dict(random_fields(shape))
        if shape == "1B":
            return LARGE
        raise MinillmError(f"shape {shape!r} is unknown, expected one of {', '.join(SHAPES)}, 1B or two sizes")
    if shape == (LARGE.hidden_size, LARGE.intermediate_size):
        return LARGE
    hidden, intermediate = shape
    if hidden < 16 or intermediate < 1 or hidden % 16:
        raise MinillmError(f"shape is {hidden} {intermediate}, expected a multiple of 16, and a size of at least 1")
    sizes = replace(LARGE, hidden_size=hidden, intermediate_size=intermediate)
    return replace(sizes, num_attention_heads=8, num_key_value_heads=1, head_dim=hidden // 8)


def fields_of(config: ModelConfig) -> dict[str, Any]:
    """A config.json with the sizes of ``config``."""
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim",
            "num_key_value_heads", "max_position_embeddings", "rms_norm_eps")  # fmt: skip
    fixed = {"model_type": "llama", "hidden_act": "silu", "tie_word_embeddings": True, "bos_token_id": 1}
    return fixed | {name: getattr(config, name) for name in same}


def resident_in_words(config: ModelConfig) -> str:
    """The weights of a token beside the FFNs: layers with their attention, and the head."""
    keys = config.num_key_value_heads * config.head_dim
    return (
        f"{config.num_hidden_layers} layers with q and o {config.hidden_size} x {config.hidden_size}, k and v "
        f"{keys} x {config.hidden_size}, and a head of {config.vocab_size:,} x {config.hidden_size}"
    )


def write_random_model(folder: Path, shape: str) -> Path:
    """Write a random model of a preset as a Hugging Face folder without a tokenizer."""
    fields = random_fields(shape)
    write_model(folder, fields, random_weights(ModelConfig.from_dict(fields), np.random.default_rng(0)))
    return folder


def write_made_up_tokenizer(folder: Path, vocabulary: int) -> None:
    """Write a tokenizer.json with as many tokens as a real one, since the time to read it depends on its size.

    The tokens are all strings over a few letters, shortest first; each is the merge of its front and its last letter.
    """
    letters, pieces, merges = "▁abcdefghijklmnopqrstuvwxyz", ["<unk>", "<s>", "</s>"], []
    pieces += [f"<0x{byte:02X}>" for byte in range(256)][: max(0, vocabulary - 40)]
    words = list(letters)
    for word in words:
        if len(pieces) >= vocabulary:
            break
        pieces.append(word)
        if len(word) > 1:
            merges.append(f"{word[:-1]} {word[-1]}")  # published files of this size write merges as strings
        words += [word + letter for letter in letters[1:]]
    model = {"type": "BPE", "vocab": {p: i for i, p in enumerate(pieces)}, "merges": merges, "unk_token": "<unk>"}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": pieces[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
            | {"special": True}
            for i in range(3)
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": model | {"byte_fallback": True, "fuse_unk": True},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
