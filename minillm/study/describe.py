"""What a model is: one line for a heading, a row per part of its weights, a row per field of its config.

The FFNs hold most of the weights of a usual model (``describe`` shows the share). That share bounds what activation
sparsity can save: it leaves out FFN weights and no others.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..loading.checkpoint import checkpoint_tensors
from ..loading.names import is_derived, plain_name
from ..tables import keys_as_headings
from ..transformer.model import Llama, part_of

PART_COLUMNS = keys_as_headings({"part": "", "weights": ",", "share": ".1%"})
PART_COLUMNS |= {"stored_MB": ("MB stored", ".2f"), "MB": ("MB as loaded", ".2f")}


def stored_bytes(model: Llama) -> dict[str, int]:
    """Bytes of each part as the checkpoint stores it; as loaded, where there is no file."""
    if model.folder is None:
        return {part: count * model.dtype.itemsize for part, count in model.parameters.items()}
    sizes = dict.fromkeys(model.parameters, 0)
    parts = {model.config.file_name(name): part_of(name) for name in model.config.weight_shapes()}
    for name, tensor in checkpoint_tensors(model.folder).items():
        if not is_derived(name):
            sizes[parts.get(name) or part_of(plain_name(name)[1])] += tensor.nbytes
    return sizes


def describe(model: Llama) -> list[dict[str, Any]]:
    """Where the weights are: a row per part of the model (embedding, attention, FFNs, norms, head).

    MB: in the dtype that the weights are loaded in; stored_MB: in the checkpoint's files.
    """
    total, stored = sum(model.parameters.values()), stored_bytes(model)
    return [
        {
            "part": part if part != "head" or count else "head (tied to the embedding)",
            "weights": count,
            "share": count / total,
            "MB": count * model.dtype.itemsize / 1e6,
            "stored_MB": stored[part] / 1e6,
        }
        for part, count in model.parameters.items()
    ]


def headline(model: Llama) -> str:
    """One line with the name, the family and all sizes of a model."""
    c = model.config
    total, ffn = sum(model.parameters.values()), model.parameters["ffn"]
    return (
        f"{model.name}: {c.model_type}, {total:,} weights ({ffn / total:.0%} in the FFNs), "
        f"{c.num_hidden_layers} layers, hidden {c.hidden_size}, intermediate {c.intermediate_size} ({c.hidden_act}), "
        f"{c.num_attention_heads} query and {c.num_key_value_heads} key/value heads of {c.head_dim}, "
        f"vocabulary {c.vocab_size:,}, context {c.max_position_embeddings:,}, {model.dtype}"
    )


def config_rows(model: Llama) -> list[dict[str, str]]:
    """The config as rows of field and value, and what the checkpoint stores.

    A long list of windows is shortened to the window sizes and the number of layers that have one.
    """
    c = model.config
    fields = {key: value for key, value in asdict(c).items() if key not in ("rope", "sliding_windows")}
    fields |= {f"rope.{key}": value for key, value in asdict(c.rope).items() if value not in (None, ())}
    if windows := sorted({window for window in c.sliding_windows if window}):
        with_one = sum(window is not None for window in c.sliding_windows)
        fields["sliding_windows"] = f"{', '.join(map(str, windows))} in {with_one} of {c.num_hidden_layers} layers"
    if model.folder is not None:
        tensors = checkpoint_tensors(model.folder).values()
        kinds = ", ".join(sorted({tensor.dtype for tensor in tensors}))
        fields["stored"] = f"{sum(tensor.nbytes for tensor in tensors):,} bytes of {kinds}"
    as_text = {key: ", ".join(map(str, v)) if isinstance(v, tuple) else str(v) for key, v in fields.items()}
    return [{"field": key, "value": value} for key, value in as_text.items()]
