"""What may lie in a model folder that is not read here, and the way out.

Models are published in many formats. A user who has one of the others sees weights in the folder, so "holds no
weights" would be no answer: ``other_weights`` names the file and says how to get safetensors from it. Other files have
the right name and the wrong content, as a download by hand leaves them: ``foreign_content`` tells by the first bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

START = 64  # bytes that foreign_content wants to see
_CONVERT = (
    "load it with transformers and write it as safetensors, with "
    "AutoModelForCausalLM.from_pretrained(...).save_pretrained(NEW_FOLDER, safe_serialization=True)"
)
_ORIGINAL = "download the repository of the same model in the format of Hugging Face (config.json, model.safetensors)"
# The names of the files, what they are, and the way out. The first that matches is named.
_FORMATS = (
    (r"bundle\.json", "a folder of bundles, as `minillm bundle` writes it",
     "run it with `minillm prefetch real`, or take the folder that it was made from"),
    (r"adapter_model\.(safetensors|bin)", "an adapter (LoRA), which only changes another model's weights",
     "merge it into that model with peft's merge_and_unload() and save_pretrained()"),
    (r".+-\d{5}-of-\d{5}\.safetensors", "one of several shards, without the index that lists their tensors",
     "download model.safetensors.index.json beside them"),
    (r"consolidated.*\.(safetensors|pth)", "the format of the model's own authors, with other names", _ORIGINAL),
    (r".*\.safetensors", "a file of tensors under another name", "name it model.safetensors where it is the model"),
    (r"pytorch_model.*\.bin(\.index\.json)?", "pickled weights, which may run code when read", _CONVERT),
    (r".*\.(gguf|ggml)|ggml-model.*\.bin", "the format of llama.cpp", _ORIGINAL),
    (r".*\.(pth|pt|ckpt|pkl)", "pickled weights, which may run code when read", _CONVERT),
    (r"tf_model.*\.h5|flax_model.*\.msgpack", "weights for TensorFlow or JAX", _CONVERT),
    (r".*\.(onnx|npz|mlmodel|ot|bin)", "weights in another format", _ORIGINAL),
    (r"snapshots", "the folder of the hub's cache", "take the folder inside it, or the name org/name"),
    (r".*\.(incomplete|part|partial|crdownload|aria2)", "a download that did not end", "download it again"),
)  # fmt: skip
# What a file begins with, what it then is, and the way out.
_CONTENTS = (
    (rb"version https://git-lfs", "a pointer of Git LFS", "run `git lfs pull` in its folder"),
    (rb"\s*<(!doctype|html|head|\?xml)", "a web page", "fetch the file itself, in the raw form"),
    (rb"GGUF", "a GGUF file of llama.cpp", _ORIGINAL),
    (rb"PK\x03\x04|\x80[\x02-\x05]", "a pickled file of PyTorch", _CONVERT),
    (rb"\x1f\x8b|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!", "a compressed file", "unpack it"),
    (rb"\x89HDF", "an HDF5 file", _CONVERT),
)


def other_weights(folder: Path) -> str | None:
    """What weights of another kind a folder holds, and the way out; None where there are none, or its own.

    "holds pytorch_model.bin: pickled weights, ...; load it with transformers and ..."
    """
    try:
        return foreign_weights(path.name for path in folder.iterdir())
    except OSError:  # no folder, or one that may not be read
        return None


def foreign_weights(files: Iterable[str]) -> str | None:
    """The same for a list of names: the files of a repository."""
    names = sorted(files)
    if "model.safetensors" in names:
        return None
    for pattern, kind, way_out in _FORMATS:
        if found := [name for name in names if re.fullmatch(pattern, name, re.IGNORECASE | re.DOTALL)]:
            more = f" and {len(found) - 1} more such file(s)" if len(found) > 1 else ""
            return f"holds {found[0][:100]}{more}: {kind}; {way_out}"
    return None


def foreign_content(start: bytes, expected: str) -> str | None:
    """What a file is, by its first START bytes, where it is of a kind that is never read here; else None.

    "is a web page, expected a JSON file: download the file itself"
    """
    for magic, kind, way_out in _CONTENTS:
        if re.match(magic, start, re.IGNORECASE):
            return f"is {kind}, expected {expected}: {way_out}"
    return None
