"""Names of tensors: from those that a file holds to those that config.json asks for.

The names of Hugging Face's Llama begin with "model." ("model.layers.0.mlp.up_proj.weight"), except "lm_head.weight".
Programs that save a model from inside another one leave a prefix more, or the "model." out:

    layers.0.mlp.up_proj.weight                         AutoModel, which is a model without its head
    base_model.model.model.layers.0.mlp.up_proj.weight  peft
    language_model.model.layers.0.mlp.up_proj.weight    the text part of a model that also reads pictures
    module._orig_mod.model.layers.0...                  PyTorch's data parallelism and torch.compile

``expected_names`` takes such a prefix off, where then every name is one that config.json asks for. Some tensors follow
from config.json, so they are never read (``is_derived``).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping

from ..errors import CheckpointError, show
from ..fields import brief
from .tensors import DTYPES, TensorInfo

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

# RoPE's frequencies and tables, the causal mask, the positions: older programs stored them.
_DERIVED = re.compile(
    r"(.+\.)?(rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)|position_ids|((self_)?attn|attention)\.(bias|masked_bias))"
)
_PREFIX = re.compile(r"((model|language_model|base_model|transformer|module)\.)*")
_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")  # at any place


def is_derived(name: str) -> bool:
    """Whether a tensor of this name holds what follows from config.json (rotary_emb.inv_freq, a mask, positions)."""
    return _DERIVED.fullmatch(name) is not None


def plain_name(name: str) -> tuple[str, str]:
    """A stored name as (the prefix in front, the name that Llama gives this tensor).

    "module.model.norm.weight" -> ("module.model.", "model.norm.weight"); "norm.weight" -> ("", "model.norm.weight").
    """
    name = _WRAPPERS.sub("", name)
    match = _PREFIX.match(name)
    prefix = match.group() if match else ""
    rest = name.removeprefix(prefix)
    return prefix, rest if rest.startswith("lm_head.") else f"model.{rest}"


def expected_names(
    stored: Mapping[str, TensorInfo], expected: Collection[str], folder: object, tied: tuple[str, str] | None
) -> dict[str, TensorInfo]:
    """The tensors that are used, under the names that config.json asks for (expected).

    tied: the names of embedding and head, where one of them is enough, and both may come back. Left out are derived
    tensors, and tensors of a dtype that no weight has here (integers, F8) where no matrix of the model has such a name.
    A note says what was read under other names and what was left out.
    Raises CheckpointError, which names what was found, where names are missing or left over.
    """
    used = {name: info for name, info in stored.items() if not is_derived(name)}
    wanted = {*expected, *(tied or ())}
    notes = []
    if not used.keys() <= wanted:
        used, prefix = _without_prefix(used, wanted)
        if prefix is not None:
            found = f"begin with {prefix!r}" if prefix else 'lack the "model." in front'
            notes.append(f"{folder}: the names of its tensors {found}, and are read without regard to that")
        if ignored := _of_foreign_dtypes(used, wanted):
            kinds = ", ".join(sorted({used.pop(name).dtype for name in ignored}))
            notes.append(f"{folder}: {len(ignored)} tensor(s) of {kinds} are not used, first {brief(ignored[0])}")
    present = used.keys() | ({tied[0]} if tied and tied[1] in used else set())
    missing = [name for name in expected if name not in present]
    extra = [name for name in used if name not in wanted]
    if missing or extra:
        raise CheckpointError(f"{folder}: {_difference(missing, extra, stored)}")
    for note in notes:
        warnings.warn(show(note), stacklevel=4)
    return used


def _without_prefix(used: dict[str, TensorInfo], wanted: Collection[str]) -> tuple[dict[str, TensorInfo], str | None]:
    """The tensors under Llama's names, and the prefix that they had; unchanged, and None, where they have not one."""
    plain = {name: plain_name(name) for name in used}
    prefixes = {prefix for prefix, name in plain.values() if name in wanted and name != HEAD}
    heads = {prefix for prefix, name in plain.values() if name == HEAD}
    # The head stands beside "model.", or in a wrapper around both: its prefix is the beginning of the others'.
    same = len(prefixes) == 1 and all(prefix.startswith(head) for prefix in prefixes for head in heads)
    renamed = {name if name in wanted else stored: used[stored] for stored, (_, name) in plain.items()}
    if not same or len(renamed) < len(used) or renamed.keys() == used.keys():
        return used, None
    return renamed, prefixes.pop()


def _of_foreign_dtypes(used: Mapping[str, TensorInfo], wanted: Collection[str]) -> list[str]:
    """The names of those that cannot be weights of this model: neither by their dtype nor by their name."""

    def matrix(name: str) -> str:  # "q_proj" of "model.layers.0.self_attn.q_proj.weight"
        return ".".join(name.split(".")[-2:-1])

    matrices = set(map(matrix, wanted))
    left = [name for name in used if name not in wanted and used[name].dtype not in DTYPES]
    return [name for name in left if matrix(name) not in matrices]


def _difference(missing: list[str], extra: list[str], stored: Collection[str]) -> str:
    """What is missing and what is left over, in one sentence."""
    lack = f"the weights lack {len(missing)} tensor(s) of config.json, first {', '.join(missing[:1])}"
    hold = f"hold {len(extra)} that config.json does not describe, first {', '.join(map(brief, extra[:2]))}"
    if missing == [HEAD] and not extra:
        return f"{lack}: saved without its head, or with the embedding as its head (then tie_word_embeddings is true)"
    if not extra:
        return f"{lack}; they hold {len(stored)}, first {', '.join(map(brief, list(stored)[:2])) or 'none'}"
    return f"{lack}, and {hold}" if missing else f"the weights {hold}"
