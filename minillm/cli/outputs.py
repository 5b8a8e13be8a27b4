"""What a command will write is checked before it works: the name can be written, and is no file that it reads.

A user who gives one name twice by mistake (``--text a.txt -o a.txt``) would lose the file only after minutes of work.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import MinillmError
from ..files import file_errors
from ..loading.embedded import embedded_model

OUTPUTS = ("output", "figure", "csv")  # the arguments that name a file to write
# What is read from the folder of a model or a bundle; the record of a sweep may lie beside it.
READ_FROM_FOLDERS = re.compile(
    r".*\.safetensors|.*\.index\.json|(generation_)?config\.json|tokenizer.*|special_tokens_map\.json|bundle\.json"
)


def check_outputs(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be written, one name for two outputs, and an output that is also an input."""
    names = {key: value for key in OUTPUTS if isinstance(value := getattr(arguments, key, None), str)}
    for key, name in names.items():
        check_output(name)
        for other in [*inputs(arguments), *(names[earlier] for earlier in names if earlier < key)]:
            if _same(name, other):
                raise MinillmError(f"{name}: would be written over {other}, expected another name for the output")


def check_output(path: str) -> None:
    """Refuse a name that cannot be written before the work, not after it; what is there stays as it is."""
    target = Path(path)
    with file_errors(path, "written", MinillmError):
        # A device or a pipe would be replaced by a file: everything is written beside its target and then renamed.
        if not target.name or (target.exists() and not target.is_file()):
            raise MinillmError(f"{path!r}: is not a regular file, expected the name of a file to write")
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".", suffix=".tmp"):
            pass


def inputs(arguments: argparse.Namespace) -> Iterator[str]:
    """Every word of the command that names a file or a folder that exists, the embedded model's folder included."""
    for key, value in vars(arguments).items():
        for word in value if isinstance(value, list | tuple) else [value]:
            if key not in OUTPUTS and isinstance(word, str):
                if key == "model" and (folder := embedded_model(word)):
                    word = str(folder)
                try:
                    if Path(word).exists():
                        yield word
                except (OSError, ValueError):  # too long a word, or a zero byte: no file
                    continue


def _same(output: str, given: str) -> bool:
    """Whether writing ``output`` would replace the file ``given``, or a file of the folder ``given``."""
    target, source = Path(output), Path(given)
    if not target.exists():
        return False
    if source.is_dir():
        return target.parent.samefile(source) and READ_FROM_FOLDERS.fullmatch(target.name) is not None
    return source.exists() and target.samefile(source)
