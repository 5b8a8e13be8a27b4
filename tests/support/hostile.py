"""Broken and hostile model files: each entry is one way in which a folder can lie, and what the error must name.

The lists follow what was tried against safetensors and transformers: what they refuse must be refused here, and so
must what they let pass though it cannot be right (a name that stands twice, a shard outside the folder, a missing
tensor, NaN). Every entry is one test case of tests/loading/test_hostile.py, under its own name.
"""

import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 11, "hidden_size": 8,
    "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False,
    "rope_theta": 10000.0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EMBED, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
Q1 = "model.layers.1.self_attn.q_proj.weight"


def pack(header, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file from a header (a dict, or raw bytes), the arrays' bytes, and perhaps a false length."""
    raw = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(dtype="F32", shape=(2, 2), begin=0, end=16, **extra) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **extra}


def pack_arrays(tensors: dict[str, tuple[str, list[int], bytes]], metadata=None) -> bytes:
    """A correct file from name -> (dtype, shape, bytes)."""
    header, data = {} if metadata is None else {"__metadata__": metadata}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = entry(dtype, shape, len(data), len(data) + len(raw))
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    return pack(text + b" " * (-len(text) % 8), data)  # padded, as writers do, so that the arrays are aligned


DATA = bytes(range(16))
GOOD = pack({"w": entry()}, DATA)
W = b'{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}'


def _without(field: str) -> dict:
    return {name: value for name, value in entry().items() if name != field}


# name -> (bytes of the file, what the message must contain)
REFUSED_FILES = {
    "empty file": (b"", "header length"),
    "seven bytes": (GOOD[:7], "header length"),
    "header length zero": (struct.pack("<Q", 0), "header begins"),
    "truncated header": (GOOD[:30], "header length"),
    "truncated body": (GOOD[:-1], "arrays end at byte"),
    "trailing bytes": (GOOD + b"\0", "arrays end at byte"),
    "header length past the end": (pack({"w": entry()}, DATA, 10_000), "10000"),
    "header length 2^63": (pack({"w": entry()}, DATA, 2**63), str(2**63)),
    "header length 100 MB + 1": (pack({"w": entry()}, DATA, 100_000_001), "100000001"),
    "overlap": (pack({"a": entry(), "b": entry(begin=8, end=24)}, DATA + DATA[:8]), "'b' begins"),
    "same range": (pack({"a": entry(), "b": entry()}, DATA), "begins at byte"),
    "hole": (pack({"a": entry(), "b": entry(begin=20, end=36)}, bytes(36)), "'b' begins"),
    "first offset not zero": (pack({"w": entry(begin=4, end=20)}, bytes(20)), "'w' begins"),
    "reversed offsets": (pack({"w": entry(begin=16, end=0)}, DATA), "data_offsets"),
    "negative offset": (pack({"w": entry(begin=-16, end=0)}, DATA), "data_offsets"),
    "true as offset": (pack({"w": entry("F32", [0], False, False)}), "data_offsets"),
    "negative dim": (pack({"w": entry(shape=(-2, -2))}, DATA), "shape"),
    "float dim": (pack({"w": entry(shape=(2.0, 2))}, DATA), "shape"),
    "true as dim": (pack({"w": entry(shape=(True, 4))}, DATA), "shape"),
    "string dim": (pack({"w": entry(shape=("2", 2))}, DATA), "shape"),
    "shape null": (pack({"w": {**entry(), "shape": None}}, DATA), "shape"),
    "shape and dtype want other bytes": (pack({"w": entry(shape=(2, 3))}, DATA), "24 bytes"),
    "overflowing shape": (pack({"w": entry(shape=(2**33, 2**33))}, DATA), "data_offsets"),
    "overflowing shape times zero": (pack({"w": entry("F32", (0, 2**64), 0, 0)}), "shape"),
    "a dim of 4000 digits": (pack(b'{"w":{"dtype":"F32","shape":[' + b"9" * 4000 + b'],"data_offsets":[0,16]}}', DATA),
                             "shape"),
    "a dim of 5000 digits": (pack(b'{"w":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,16]}}', DATA),
                             "not valid JSON"),
    "unknown dtype": (pack({"w": entry("F99")}, DATA), "dtype"),
    "lower-case dtype": (pack({"w": entry("f32")}, DATA), "dtype"),
    "dtype not a string": (pack({"w": entry(["F32"])}, DATA), "dtype"),
    "BOOL of two bytes each": (pack({"w": entry("BOOL", (4, 2))}, DATA), "8 bytes for BOOL"),
    "F4 in whole bytes": (pack({"w": entry("F4", (4, 4))}, DATA), "8 bytes for F4"),
    "F4 that ends in half a byte": (pack({"w": entry("F4", (1,), 0, 1)}, DATA[:1]), "0 bytes for F4"),
    "complex of two doubles": (pack({"w": entry("C128", (1,))}, DATA), "dtype"),
    "missing shape": (pack({"w": _without("shape")}, DATA), "shape is missing"),
    "missing dtype": (pack({"w": _without("dtype")}, DATA), "dtype is missing"),
    "missing offsets": (pack({"w": _without("data_offsets")}, DATA), "data_offsets is missing"),
    "three offsets": (pack({"w": {**entry(), "data_offsets": [0, 8, 16]}}, DATA), "data_offsets"),
    "entry not an object": (pack({"w": [0, 16]}, DATA), "'w'"),
    "not UTF-8": (pack(b'{"\xff":' + W + b"}", DATA), "UTF-8"),
    "not JSON": (pack(b'{"w":' + W, DATA), "not valid JSON"),
    "a JSON array": (pack(b"[" + W + b"]", DATA), "header begins"),
    "trailing NUL in the header": (pack(b'{"w":' + W + b"}\0", DATA), "not valid JSON"),
    "nested 100,000 deep": (pack(b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}", DATA), "nested too deeply"),
    "duplicate field in an entry": (pack(b'{"w":{"dtype":"F32",' + W[1:] + b"}", DATA), "'dtype' stands twice"),
    "duplicate tensor name, same range": (pack(b'{"w":' + W + b',"w":' + W + b"}", DATA), "'w' stands twice"),
    "metadata with a number": (pack({"__metadata__": {"a": 1}, "w": entry()}, DATA), "__metadata__"),
    "metadata a list": (pack({"__metadata__": ["a"], "w": entry()}, DATA), "__metadata__"),
    "leading spaces": (pack(b'  {"w":' + W + b"}", DATA), "header begins"),
    "byte order mark": (pack(b'\xef\xbb\xbf{"w":' + W + b"}", DATA), "header begins"),
    "NaN in the header": (pack(b'{"w":{"x":NaN,' + W[1:] + b"}", DATA), "not finite"),
    "minus zero as offset": (pack(b'{"w":' + W.replace(b"[0,", b"[-0,") + b"}", DATA), "data_offsets"),
    "lone surrogate in a name": (pack({"\ud800": entry()}, DATA), "not valid JSON"),
    "100,000 dims": (pack({"w": entry(shape=[1] * 100_000, end=4)}, DATA[:4]), "shape"),
    "33 dims": (pack({"w": entry(shape=[1] * 32 + [4])}, DATA), "shape"),
    "32 dims of 2^47": (pack({"w": entry(shape=[2**47] * 32)}, DATA), "data_offsets"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64, "git lfs pull"),
    "a web page": (b"\n<!DOCTYPE html>\n<html>" + b" " * 99, "web page"),
    "a GGUF file": (b"GGUF\3\0\0\0" + bytes(99), "GGUF"),
    "a file of torch.save": (b"PK\3\4" + bytes(99), "pickled"),
    "5 million empty lists": (pack(b'{"__metadata__":[' + b"[]," * 5_000_000 + b"[]]}"), "1,000,000 values"),
    "header length 16 MB + 1": (struct.pack("<Q", 16_000_001) + bytes(16_000_001), "at most 16000000"),
}  # fmt: skip

# name -> bytes; their headers are fine (that the arrays are not the model's is for load_weights to say)
ACCEPTED_FILES = {
    "plain": GOOD,
    "unknown field in an entry": pack({"w": entry(note="hello")}, DATA),
    "metadata null": pack({"__metadata__": None, "w": entry()}, DATA),
    "metadata of strings": pack({"__metadata__": {"format": "pt"}, "w": entry()}, DATA),
    **{
        f"the dtype {dtype}": pack({"v": entry(dtype, shape)}, DATA)
        for dtype, shape in (
            ("I8", (4, 4)),
            ("U8", (2, 2, 4)),
            ("I64", (2,)),
            ("F64", (2, 1)),
            ("F8_E4M3", (4, 4)),
            ("F8_E5M2", (4, 4)),
            ("F8_E8M0", (4, 4)),
            ("F4", (4, 8)),
            ("C64", (2, 1)),
            ("BOOL", (1, 1, 4, 4)),
        )
    },
    "six bits": pack({"v": entry("F6_E2M3", (4, 1), 0, 3)}, DATA[:3]),
    "32 dims": pack({"v": entry(shape=[1] * 31 + [4])}, DATA),
    "unaligned header": pack(b'{"w":' + W + b"}" + b" " * ((4 - len(W)) % 8 + 1), DATA),
    "header padded with spaces": pack(b'{"w":' + W + b"}     ", DATA),
    "zero dim": pack({"w": entry("F32", (0, 5), 0, 0)}),
    "scalar": pack({"w": entry("F32", (), 0, 4)}, DATA[:4]),
    "metadata only": pack({"__metadata__": {"format": "pt"}}),
    "empty header": pack({}),
    "path as a name": pack({"../../etc/passwd": entry()}, DATA),
    "empty name": pack({"": entry()}, DATA),
    "NUL in a name": pack({"w\0": entry()}, DATA),
}

# name -> (changes to CONFIG, None removes a field only where it is the value DELETE; what the message must contain)
DELETE = object()
ROPE = {"rope_type": "default", "rope_theta": 1e4}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
LONG = {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0], "original_max_position_embeddings": 16}
PHI3 = {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "num_key_value_heads": 2}
QWEN = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "sliding_window": 8}
REFUSED_CONFIGS = {
    "model_type missing": ({"model_type": DELETE}, "model_type"),
    "model_type unknown": ({"model_type": "gpt2"}, "llama, mistral, qwen2, qwen3, phi3"),
    "model_type a list": ({"model_type": ["llama"]}, "model_type"),
    "architecture of a classifier": ({"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
    "architectures a string": ({"architectures": "LlamaForCausalLM"}, "architectures"),
    "quantised": ({"quantization_config": {"bits": 4}}, "quantization_config"),
    "architecture of a decoder of pictures": ({"architectures": ["LlamaVisionModel2"]}, "architectures"),
    "pretraining_tp 0": ({"pretraining_tp": 0}, "pretraining_tp"),
    "layers -1": ({"num_hidden_layers": -1}, "num_hidden_layers"),
    "layers 0": ({"num_hidden_layers": 0}, "num_hidden_layers"),
    "layers 10^9": ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    "layers 10^400": ({"num_hidden_layers": 10**400}, "num_hidden_layers"),
    "layers missing": ({"num_hidden_layers": DELETE}, "num_hidden_layers is missing"),
    "layers true": ({"num_hidden_layers": True}, "num_hidden_layers is True"),
    "hidden a string": ({"hidden_size": "64"}, "hidden_size is '64'"),
    "hidden 64.5": ({"hidden_size": 64.5}, "hidden_size"),
    "hidden 64.0": ({"hidden_size": 64.0}, "hidden_size"),
    "hidden 2^17": ({"hidden_size": 2**17}, "hidden_size"),
    "hidden null": ({"hidden_size": None}, "hidden_size"),
    "hidden no multiple of heads": ({"hidden_size": 10}, "hidden_size"),
    "vocabulary 2^22": ({"vocab_size": 2**22}, "vocab_size"),
    "intermediate 0": ({"intermediate_size": 0}, "intermediate_size"),
    "max_position -5": ({"max_position_embeddings": -5}, "max_position_embeddings"),
    "max_position null": ({"max_position_embeddings": None}, "max_position_embeddings"),
    "head_dim 15": ({"head_dim": 15}, "head_dim"),
    "head_dim 0": ({"head_dim": 0}, "head_dim"),
    "head_dim 1": ({"hidden_size": 4}, "head_dim"),
    "heads 0": ({"num_attention_heads": 0}, "num_attention_heads"),
    "kv heads 0": ({"num_key_value_heads": 0}, "num_key_value_heads"),
    "kv heads 3": ({"num_key_value_heads": 3}, "num_key_value_heads"),
    "kv heads more than heads": ({"num_key_value_heads": 8}, "num_key_value_heads"),
    "eps -1": ({"rms_norm_eps": -1}, "rms_norm_eps"),
    "eps 0": ({"rms_norm_eps": 0.0}, "rms_norm_eps"),
    "eps a string": ({"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
    "eps true": ({"rms_norm_eps": True}, "rms_norm_eps"),
    "eps null": ({"rms_norm_eps": None}, "rms_norm_eps"),
    "hidden_act os.system": ({"hidden_act": "os.system"}, "hidden_act is 'os.system'"),
    "hidden_act null": ({"hidden_act": None}, "hidden_act"),
    "hidden_act a list": ({"hidden_act": ["silu"]}, "hidden_act"),
    "tie a number": ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
    "attention_bias a string": ({"attention_bias": "no"}, "attention_bias"),
    "sliding window on llama": ({"sliding_window": 16}, "sliding_window"),
    "sliding window 0": ({"model_type": "mistral", "sliding_window": 0}, "sliding_window"),
    "sliding layers without a window": ({**QWEN, "use_sliding_window": False, "layer_types": ["sliding_attention"] * 2},
                                        "layer_types"),
    "use_sliding_window a number": ({**QWEN, "use_sliding_window": 1}, "use_sliding_window"),
    "max_window_layers -1": ({**QWEN, "max_window_layers": -1}, "max_window_layers"),
    "layer_types too short": ({**QWEN, "layer_types": ["full_attention"]}, "layer_types"),
    "layer_types unknown": ({**QWEN, "layer_types": ["full_attention", "linear_attention"]}, "layer_types"),
    "layer_types of numbers": ({**QWEN, "layer_types": [0, 1]}, "layer_types"),
    "layer_types that mistral ignores": ({"model_type": "mistral", "layer_types": ["full_attention"] * 2},
                                         "layer_types"),
    "theta a string": ({"rope_theta": "x"}, "rope_theta is 'x'"),
    "theta 0": ({"rope_theta": 0}, "rope_theta"),
    "theta in two places": ({"rope_theta": 5e5, "rope_parameters": ROPE}, "rope_theta"),
    "both generations of rope, other types": (
        {"rope_parameters": ROPE, "rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling.rope_type is 'linear'"
    ),
    "both generations of rope, other theta": ({"rope_parameters": ROPE, "rope_scaling": {**ROPE, "rope_theta": 5e5}},
                                              "rope_scaling.rope_theta is 500000.0"),
    "both generations of rope, other factor": ({"rope_parameters": LLAMA3, "rope_scaling": {**LLAMA3, "factor": 4}},
                                               "rope_scaling.factor is 4"),
    "factor 2 without a type": ({"rope_scaling": {"factor": 2.0}}, "factor is 2.0"),
    "factor true without a type": ({"rope_scaling": {"factor": True}}, "factor is True"),
    # what gives no finite numbers, though each number is finite
    "theta 1e-300": ({"rope_theta": 1e-300}, "rope_theta is 1e-300"),
    "theta 1e-300 inside": ({"rope_theta": DELETE, "rope_parameters": {**ROPE, "rope_theta": 1e-300}}, "1e-300"),
    "theta 1e300": ({"rope_theta": 1e300}, "rope_theta is 1e+300"),
    "eps 1e-300": ({"rms_norm_eps": 1e-300}, "rms_norm_eps is 1e-300"),
    "eps 1e-46": ({"rms_norm_eps": 1e-46}, "rms_norm_eps is 1e-46"),
    "llama3 with tiny frequencies": (
        {"rope_scaling": {**LLAMA3, "low_freq_factor": 5e-324, "high_freq_factor": 1e-323}}, "low_freq_factor is 5e-324"
    ),
    "longrope factor 1e-300": ({"rope_scaling": {**LONG, "short_factor": [1e-300]}}, "short_factor is [1e-300]"),
    "longrope factor 1e12": ({"rope_scaling": {**LONG, "long_factor": [1e12]}}, "long_factor"),
    "longrope attention_factor 1e-300": ({"rope_scaling": {**LONG, "attention_factor": 1e-300}}, "attention_factor"),
    "rope a list": ({"rope_scaling": ["linear"]}, "rope_scaling"),
    "rope an empty list": ({"rope_parameters": []}, "rope_parameters is []"),
    "rope_type unknown": ({"rope_scaling": {"rope_type": "spiral", "factor": 2.0}}, "rope_type is 'spiral'"),
    "rope_type mrope": ({"rope_scaling": {"type": "mrope", "factor": 2.0}}, "rope_type is 'mrope'"),
    "yarn, slow above fast": ({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_slow": 40}}, "beta_slow is 40"),
    "yarn with an unknown key": ({"rope_scaling": {"type": "yarn", "factor": 2.0, "turns": 4}}, "turns"),
    "yarn, theta 1": ({"rope_theta": 1, "rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_theta is 1"),
    "yarn without a stretch": ({"rope_scaling": {"type": "yarn", "factor": 0.5}}, "factor is 0.5"),
    "rope_type an object": ({"rope_scaling": {"rope_type": {}}}, "rope_type"),
    "rope types that differ": ({"rope_scaling": {"rope_type": "linear", "type": "default", "factor": 2.0}},
                               "rope_type"),
    "rope key of another scaling": ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta_fast": 32}},
                                    "beta_fast"),
    "rope nested by layer": ({"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}},
                             "full_attention"),
    "partial rotary on llama": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "linear without factor": ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
    "linear factor 0.5": ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor is 0.5"),
    "linear factor true": ({"rope_scaling": {"type": "linear", "factor": True}}, "factor is True"),
    **{f"llama3 without {name}": ({"rope_scaling": {k: v for k, v in LLAMA3.items() if k != name}}, name)
       for name in LLAMA3 if name != "rope_type"},
    "llama3 low = high": ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "low_freq_factor"),
    "longrope list too long": ({"rope_scaling": {**LONG, "long_factor": [1.0, 2.0]}}, "long_factor"),
    "longrope list of strings": ({"rope_scaling": {**LONG, "short_factor": ["1"]}}, "short_factor"),
    "longrope factor 0": ({"rope_scaling": {**LONG, "short_factor": [0.0]}}, "short_factor"),
    "longrope without long_factor": ({"rope_scaling": {**LONG, "long_factor": None}}, "long_factor is missing"),
    "longrope original 1": ({"rope_scaling": {**LONG, "original_max_position_embeddings": 1}}, "original_max_position"),
    "longrope originals that differ": ({"rope_scaling": LONG, "original_max_position_embeddings": 8},
                                       "original_max_position_embeddings"),
    "longrope attention_factor -1": ({"rope_scaling": {**LONG, "attention_factor": -1.0}}, "attention_factor"),
    "llama3 on phi3": ({**PHI3, "rope_scaling": LLAMA3}, "rope_type"),
    "partial rotary odd": ({**PHI3, "head_dim": 4, "partial_rotary_factor": 0.3}, "rotated"),
    "partial rotary of nothing": ({**PHI3, "head_dim": 4, "partial_rotary_factor": 0.1}, "rotated"),
    "partial rotary above 1": ({**PHI3, "partial_rotary_factor": 1.5}, "partial_rotary_factor"),
    "eos a string": ({"eos_token_id": "2"}, "eos_token_id"),
    "eos true": ({"eos_token_id": True}, "eos_token_id"),
    "bos a float": ({"bos_token_id": 1.0}, "bos_token_id"),
}  # fmt: skip

# name -> (changes to CONFIG that leave the model the same, what the note must contain, or None for no note)
HARMLESS_CONFIGS = {
    "pretraining_tp 2": ({"pretraining_tp": 2}, "pretraining_tp"),
    "eos out of the vocabulary": ({"eos_token_id": [2, 11]}, "eos_token_id holds the id 11"),
    "bos out of the vocabulary": ({"bos_token_id": 11}, "bos_token_id holds the id 11"),
    "bos -1": ({"bos_token_id": -1}, "bos_token_id holds the id -1"),
    "pad -1": ({"pad_token_id": -1}, None),
    "theta in two places": ({"rope_parameters": ROPE}, None),
    "theta in two places, one a whole number": ({"rope_theta": 10000, "rope_parameters": ROPE}, None),
    "both generations of rope": ({"rope_parameters": ROPE, "rope_scaling": ROPE}, None),
    "both generations, one with more": ({"rope_parameters": ROPE, "rope_scaling": {"type": "default"}}, None),
    "rope_scaling empty": ({"rope_scaling": {}}, None),
    "rope_scaling empty beside rope_parameters": ({"rope_parameters": ROPE, "rope_scaling": {}}, None),
    "rope_scaling of nulls": ({"rope_scaling": {"type": None, "factor": None}}, None),
    "a factor of 1": ({"rope_scaling": {"type": "default", "factor": 1.0}}, None),
    "the original context of rope": ({"original_max_position_embeddings": 16, "rope_parameters": ROPE}, None),
    "quantization_config null": ({"quantization_config": None}, None),
    "quantization_config empty": ({"quantization_config": {}}, None),
    "torch_dtype unknown": ({"torch_dtype": "float8_x", "dtype": 3}, None),
    "names of programs": ({"_name_or_path": "/home/x", "transformers_version": "9.9", "use_cache": "?"}, None),
    "nulls for false": ({"mlp_bias": None, "attention_bias": None, "tie_word_embeddings": None}, None),
    "no architecture": ({"architectures": None}, None),
    "architecture without a head": ({"architectures": ["LlamaModel"]}, None),
    "a window as long as the context": ({"sliding_window": 32}, None),
}
HARMLESS_QWEN = {
    "a window that is not used": {**QWEN, "use_sliding_window": False, "sliding_window": 0},
    "layers with a window that is not used": {**QWEN, "use_sliding_window": None, "max_window_layers": None},
}

_TEXT = json.dumps(CONFIG)
# name -> (bytes of config.json, what the message must contain)
REFUSED_CONFIG_FILES = {
    "truncated": (_TEXT[:40].encode(), "not valid JSON"),
    "empty": (b"", "not valid JSON"),
    "array": (b"[1]", "a JSON list"),
    "string": (b'"llama"', "a JSON str"),
    "duplicate key": ((_TEXT[:-1] + ', "hidden_size": 16}').encode(), "'hidden_size' stands twice"),
    "eps NaN": (_TEXT.replace("1e-05", "NaN").encode(), "'NaN' is not finite"),
    "eps Infinity": (_TEXT.replace("1e-05", "Infinity").encode(), "'Infinity' is not finite"),
    "theta 1e999": (_TEXT.replace("10000.0", "1e999").encode(), "'1e999' is not finite"),
    "integer of 5000 digits": (_TEXT.replace("12,", "9" * 5000 + ",").encode(), "not valid JSON"),
    "UTF-16": (_TEXT.encode("utf-16"), "UTF-8"),
    "nested 100,000 deep": (b'{"a":' + b"[" * 100_000, "nested too deeply"),
    "more than 10 MB": (_TEXT.encode() + b" " * 10_000_000, "at most 10,000,000"),
}


def changed(changes: dict, base: dict = CONFIG) -> dict:
    """base with changes; a value DELETE removes the field."""
    return {name: value for name, value in {**base, **changes}.items() if value is not DELETE}


def tiny_shapes(layers: int = 2, tied: bool = False) -> dict[str, tuple[int, ...]]:
    """Names and shapes of CONFIG's tensors, written out once more by hand (not by the code under test)."""
    shapes = {EMBED: (11, 8)}
    for i in range(layers):
        p = f"model.layers.{i}."
        shapes |= {p + "input_layernorm.weight": (8,), p + "post_attention_layernorm.weight": (8,),
                   p + "self_attn.q_proj.weight": (8, 8), p + "self_attn.k_proj.weight": (4, 8),
                   p + "self_attn.v_proj.weight": (4, 8), p + "self_attn.o_proj.weight": (8, 8),
                   p + "mlp.gate_proj.weight": (12, 8), p + "mlp.up_proj.weight": (12, 8),
                   p + "mlp.down_proj.weight": (8, 12)}  # fmt: skip
    return shapes | {NORM: (8,)} | ({} if tied else {HEAD: (11, 8)})


def tiny_tensors(layers: int = 2, tied: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in tiny_shapes(layers, tied).items()}


def encode(array: np.ndarray, dtype: str = "F32") -> tuple[str, list[int], bytes]:
    """One array as (dtype, shape, bytes) of that stored dtype; BF16 drops the lower 16 bits."""
    if dtype == "BF16":
        raw = (np.ascontiguousarray(array, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    else:
        raw = np.ascontiguousarray(array, {"F32": "<f4", "F16": "<f2", "I8": "i1"}[dtype]).tobytes()
    return dtype, list(array.shape), raw


def write_folder(folder: Path, tensors: dict | None = None, config: dict | None = None, shards: int = 1,
                 dtype: str = "F32") -> Path:  # fmt: skip
    """A model folder: config.json and model.safetensors, or shards with their index; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config), encoding="utf-8")
    tensors = tiny_tensors() if tensors is None else tensors
    stored = {name: a if isinstance(a, tuple) else encode(a, dtype) for name, a in tensors.items()}
    if shards == 1:
        (folder / "model.safetensors").write_bytes(pack_arrays(stored, {"format": "pt"}))
        return folder
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(stored.items())[i::shards])
        (folder / file).write_bytes(pack_arrays(part, {"format": "pt"}))
        weight_map |= dict.fromkeys(part, file)
    write_index(folder, weight_map, sum(len(raw) for _, _, raw in stored.values()))
    return folder


def write_index(folder: Path, weight_map, total_size=0) -> None:
    fields = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(fields), encoding="utf-8")


def _index(change):
    """A folder of two shards whose weight_map went through change(weight_map, folder)."""

    def build(folder: Path) -> Path:
        write_folder(folder, shards=2)
        path = folder / "model.safetensors.index.json"
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        write_index(folder, change(weight_map, folder))
        return folder

    return build


def _outside(folder: Path) -> Path:
    """A correct shard beside the folder, for paths that try to reach it."""
    outside = folder.parent / "outside.safetensors"
    shutil.copy(folder / "model-00001-of-00002.safetensors", outside)
    return outside


def _redirect(make_name):
    """Every tensor of the first shard is listed in the file that make_name(folder, a good shard outside) names."""

    def change(weight_map: dict, folder: Path) -> dict:
        name = make_name(folder, _outside(folder))
        return {k: name if v == "model-00001-of-00002.safetensors" else v for k, v in weight_map.items()}

    return _index(change)


def _link(folder: Path, outside: Path) -> str:
    os.symlink(outside, folder / "link.safetensors")
    return "link.safetensors"


def _raw_index(raw: bytes):
    def build(folder: Path) -> Path:
        write_folder(folder, shards=2)
        (folder / "model.safetensors.index.json").write_bytes(raw)
        return folder

    return build


def _swap(weight_map: dict, folder: Path) -> dict:
    other = {"model-00001-of-00002.safetensors": "model-00002-of-00002.safetensors"}
    return {k: other.get(v, v) if k == EMBED else v for k, v in weight_map.items()}


def _lose_both(weight_map: dict, folder: Path) -> dict:
    for shard in set(weight_map.values()):
        (folder / shard).unlink()
    return weight_map


def _shard_directory(weight_map: dict, folder: Path) -> dict:
    (folder / "model-00001-of-00002.safetensors").unlink()
    (folder / "model-00001-of-00002.safetensors").mkdir()
    return weight_map


def _single_link(folder: Path) -> Path:
    write_folder(folder)
    os.replace(folder / "model.safetensors", folder.parent / "outside.safetensors")
    os.symlink(folder.parent / "outside.safetensors", folder / "model.safetensors")
    return folder


def _wrong_blobs(folder: Path) -> Path:
    """A hub cache whose snapshot links into the blobs of another model."""
    snapshot = hub_cache(folder)
    blob = Path(os.path.realpath(snapshot / "model.safetensors"))
    other = folder / "models--some--other" / "blobs"
    other.mkdir(parents=True)
    os.replace(blob, other / blob.name)
    (snapshot / "model.safetensors").unlink()
    os.symlink(other / blob.name, snapshot / "model.safetensors")
    return snapshot


def hub_cache(folder: Path) -> Path:
    """The layout of huggingface_hub's cache; returns the snapshot folder."""
    home = folder / "models--org--name"
    snapshot, blobs = home / "snapshots" / ("0" * 40), home / "blobs"
    blobs.mkdir(parents=True)
    write_folder(snapshot)
    for i, name in enumerate(("config.json", "model.safetensors")):
        os.replace(snapshot / name, blobs / f"{i:064x}")
        os.symlink(Path("..", "..", "blobs", f"{i:064x}"), snapshot / name)
    return snapshot


def _tensors(change, config: dict | None = None):
    """A one-file folder whose tensors went through change(dict), with CONFIG or another config."""

    def build(folder: Path) -> Path:
        tensors = tiny_tensors()
        return write_folder(folder, change(tensors) or tensors, changed(config or {}))

    return build


def _with(name: str, array):
    return lambda tensors: {**tensors, name: array}


def _filled(name: str, value: float):
    def change(tensors: dict) -> None:
        tensors[name].flat[-1] = value

    return change


TIED = {"tie_word_embeddings": True}
# name -> (builds the folder, what the message must contain)
REFUSED_FOLDERS = {
    "no weights": (lambda folder: (write_folder(folder) / "model.safetensors").unlink() or folder, "no weights"),
    "index to ../": (_redirect(lambda folder, outside: "../outside.safetensors"), "'../outside.safetensors'"),
    "index to an absolute path": (_redirect(lambda folder, outside: str(outside)), "bare name"),
    "index to a subfolder": (_redirect(lambda folder, outside: "sub/x.safetensors"), "'sub/x.safetensors'"),
    "index to a backslash": (_redirect(lambda folder, outside: "..\\x.safetensors"), "bare name"),
    "index to a drive": (_redirect(lambda folder, outside: "C:x.safetensors"), "bare name"),
    "index to /etc/passwd": (_redirect(lambda folder, outside: "/etc/passwd"), "'/etc/passwd'"),
    "index to a pickle": (_redirect(lambda folder, outside: "pytorch_model.bin"), "'pytorch_model.bin'"),
    "index to a link out": (_redirect(_link), "link out of its folder"),
    "model.safetensors a link out": (_single_link, "link out of its folder"),
    "hub link into another model": (_wrong_blobs, "link out of its folder"),
    "index names the wrong shard": (_index(_swap), EMBED),
    "index with an extra key": (_index(lambda m, _: {**m, "extra": "model-00001-of-00002.safetensors"}), "'extra'"),
    "index without a key": (_index(lambda m, _: {k: v for k, v in m.items() if k != NORM}), NORM),
    "weight_map a list": (_index(lambda m, _: list(m)), "weight_map"),
    "weight_map empty": (_index(lambda m, _: {}), "weight_map"),
    "weight_map with an int": (_index(lambda m, _: {**m, NORM: 1}), "1 for 'model.norm.weight'"),
    "weight_map missing": (_raw_index(b"{}"), "weight_map"),
    "index truncated": (_raw_index(b'{"weight_map": {"a"'), "not valid JSON"),
    "index an array": (_raw_index(b"[]"), "a JSON list"),
    "index with a duplicate key": (_raw_index(b'{"weight_map": {"a": "b", "a": "c"}}'), "twice"),
    "index of more than 10 MB": (_raw_index(b"{}" + b" " * 10_000_000), "at most 10,000,000"),
    "both shards missing": (_index(_lose_both), "model-00001-of-00002.safetensors, model-00002-of-00002.safetensors"),
    "shard a directory": (_index(_shard_directory), "model-00001-of-00002.safetensors"),
    "tensor missing": (_tensors(lambda t: {k: v for k, v in t.items() if k != Q1}), Q1),
    "config has more layers": (_tensors(lambda t: None, {"num_hidden_layers": 3}), "model.layers.2."),
    "config has fewer layers": (_tensors(lambda t: None, {"num_hidden_layers": 1}), "model.layers.1."),
    "bias without a place": (_tensors(_with(Q1.replace("weight", "bias"), np.zeros(8))), "q_proj.bias"),
    "bias missing": (_tensors(lambda t: None, {"attention_bias": True}), "q_proj.bias"),
    "path as a name": (_tensors(_with("../../etc/passwd", np.zeros(2))), "'../../etc/passwd'"),
    "empty name": (_tensors(_with("", np.zeros(2))), "''"),
    "NUL in a name": (_tensors(_with(NORM + "\0", np.zeros(8))), "x00"),
    "zero-width twin of a name": (_tensors(_with(NORM + "\u200b", np.zeros(8))), "u200b"),
    "line end in a name": (_tensors(_with("a\nb", np.zeros(8))), r"'a\nb'"),
    "lone surrogate in a name": (_tensors(_with("\ud800", np.zeros(8))), "surrogates"),
    "name of 1 MB": (_tensors(_with("n" * 10**6, np.zeros(8))), "..."),
    "shape mismatch": (_tensors(_with(Q1, np.zeros((8, 10)))), f"{Q1}: shape is [8, 10], expected [8, 8]"),
    "transposed": (_tensors(_with("model.layers.0.mlp.up_proj.weight", np.zeros((8, 12)))), "up_proj"),
    "zero dim": (_tensors(_with(NORM, np.zeros(0))), NORM),
    "scalar": (_tensors(_with(NORM, np.float32(1))), NORM),
    "config of a huge model": (_tensors(lambda t: None, {"vocab_size": 2**21, "hidden_size": 2**16}), EMBED),
    "NaN": (_tensors(_filled(Q1, np.nan)), Q1),
    "infinity": (_tensors(_filled(EMBED, np.inf)), EMBED),
    "minus infinity in the last": (_tensors(_filled(HEAD, -np.inf)), HEAD),
    "NaN in BF16": (_tensors(_with(NORM, ("BF16", [8], b"\xc0\x7f" * 8))), NORM),
    "infinity in F16": (_tensors(_with(NORM, ("F16", [8], b"\x00\x7c" * 8))), NORM),
    "int8 weights": (_tensors(_with(Q1, ("I8", [8, 8], bytes(64)))), f"{Q1} is stored as I8"),
    "untied without a head": (_tensors(lambda t: {k: v for k, v in t.items() if k != HEAD}), HEAD),
    "untied without an embedding": (_tensors(lambda t: {k: v for k, v in t.items() if k != EMBED}), EMBED),
    "tied with neither": (_tensors(lambda t: {k: v for k, v in t.items() if k not in (EMBED, HEAD)}, TIED), EMBED),
    "tied but different": (_tensors(lambda t: None, TIED), "differs"),
    "tied with a head of another shape": (_tensors(_with(HEAD, np.zeros((8, 11))), TIED), f"{HEAD}: shape"),
}  # fmt: skip


def _foreign(file: str):
    """A folder with a config and one file that is not read here."""

    def build(folder: Path) -> Path:
        (write_folder(folder) / "model.safetensors").unlink()
        (folder / file).write_bytes(b"x" * 64)
        return folder

    return build


def _broken_link(folder: Path) -> Path:
    (write_folder(folder) / "model.safetensors").unlink()
    os.symlink(Path("..", "..", "blobs", "0123"), folder / "model.safetensors")
    return folder


def _in_both_shards(folder: Path) -> Path:
    """Two shards that both hold lm_head: another one each."""
    write_folder(folder, shards=2)
    for number in (1, 2):
        path = folder / f"model-{number:05}-of-00002.safetensors"
        part = {name: a for i, (name, a) in enumerate(tiny_tensors().items()) if i % 2 == number - 1}
        path.write_bytes(pack_arrays({n: encode(a) for n, a in (part | {HEAD: np.full((11, 8), number)}).items()}))
    return folder


# name -> (builds the folder, what the message must contain)
REFUSED_FOLDERS |= {
    **{f"only {file}": (_foreign(file), named) for file, named in {
        "pytorch_model.bin": "pytorch_model.bin: pickled", "pytorch_model-00001-of-00002.bin": "save_pretrained",
        "pytorch_model.bin.index.json": "pytorch_model.bin.index.json", "model-Q4_K_M.gguf": "llama.cpp",
        "ggml-model-q4_0.bin": "llama.cpp", "consolidated.safetensors": "consolidated.safetensors",
        "consolidated.00.pth": "consolidated.00.pth", "model-00002-of-00003.safetensors": "index.json beside them",
        "adapter_model.safetensors": "LoRA", "adapter_model.bin": "merge_and_unload", "tf_model.h5": "TensorFlow",
        "flax_model.msgpack": "JAX", "model.onnx": "model.onnx", "weights.npz": "weights.npz", "step.ckpt": "pickled",
        "model.safetensors.part": "did not end", "theirs.safetensors": "name it model.safetensors",
        "a\nb\x1b[2J.gguf": r"a\nb\x1b[2J.gguf",
    }.items()},
    "a broken link": (_broken_link, "0123, which does not exist"),
    "a head in both shards": (_in_both_shards, "holds tensor 'lm_head.weight', as model-00001"),
    "a pointer in place of a shard": (
        _index(lambda m, folder: (folder / m[Q1]).write_bytes(b"version https://git-lfs.github.com/spec/v1\n") and m),
        "git lfs pull"),
    "a bias in F64": (_tensors(_with(Q1.replace("weight", "bias"), ("F64", [8], bytes(64)))), "q_proj.bias"),
    "a layer too many in int8": (_tensors(_with(Q1.replace("1", "2"), ("I8", [8, 8], bytes(64)))), "layers.2"),
    "scales of quantised weights": (_tensors(_with(Q1.replace("weight", "weight_scale"), np.ones(8))), "weight_scale"),
    "a norm in F64": (_tensors(_with(NORM, ("F64", [8], bytes(64)))), f"{NORM} is stored as F64"),
    "names of Meta": (_tensors(lambda t: {n.replace("self_attn.q_proj", "attention.wq"): a for n, a in t.items()}),
                      "first 'model.layers.0.attention.wq.weight'"),
    "names without model. and no head": (
        _tensors(lambda t: {n.removeprefix("model."): a for n, a in t.items() if n != HEAD}), "tie_word_embeddings"),
    "names with two prefixes": (
        _tensors(lambda t: {n if "layers.0" in n else f"module.{n}": a for n, a in t.items()}), "'module."),
    "a name twice, with and without a prefix": (_tensors(lambda t: {**t, f"module.{Q1}": t[Q1]}), f"'module.{Q1}'"),
}  # fmt: skip
NEED_LINKS = {"a broken link", "index to a link out", "model.safetensors a link out", "hub link into another model"}

INV_FREQ = "model.layers.0.self_attn.rotary_emb.inv_freq"
# name -> builds a folder that must load
ACCEPTED_FOLDERS = {
    "plain": _tensors(lambda t: None),
    "two shards": lambda folder: write_folder(folder, shards=2),
    "auto_map": _tensors(lambda t: None, {"auto_map": {"AutoModel": "evil.Model"}, "torch_dtype": "bfloat16"}),
    "inv_freq": _tensors(_with(INV_FREQ, np.zeros(1))),
    **{
        f"{name}, {dtype}": _tensors(_with(name, (dtype, [4, 2], bytes(8 * size))))
        for name, dtype, size in (
            ("model.rotary_emb.inv_freq", "F64", 8),
            ("model.layers.1.self_attn.rotary_emb.cos_cached", "F16", 2),
            ("model.layers.1.self_attn.masked_bias", "F32", 4),
            ("model.layers.0.attn.bias", "BOOL", 1),
            ("model.embeddings.position_ids", "I64", 8),
            ("position_ids", "I32", 4),
        )
    },
    "F16 among F32": _tensors(lambda t: {**t, Q1: encode(t[Q1], "F16")}),
    "tied, both stored": _tensors(lambda t: {**t, HEAD: t[EMBED]}, TIED),
    "tied, embedding stored": _tensors(lambda t: {k: v for k, v in t.items() if k != HEAD}, TIED),
    "tied, head stored": _tensors(lambda t: {k: v for k, v in t.items() if k != EMBED}, TIED),
    "finite, though the sum overflows": _tensors(_with(Q1, np.full((8, 8), 3e38))),
    "a shard too many": lambda folder: (
        shutil.copy(
            write_folder(folder, shards=2) / "model-00001-of-00002.safetensors", folder / "consolidated.safetensors"
        ).parent
    ),
}
