"""TODO."""

from __future__ import annotations

from ..tables import keys_as_headings
from ..transformer.model import Llama

PART_COLUMNS = keys_as_headings({"part": "", "weights": ",", "share": ".1%", "MB": ".2f"})


def describe(model: Llama) -> list[dict]:
    """Where the weights are: a row per part of the model."""
    total = sum(model.parameters.values())
    return [
        {
            "part": part if part != "head" or count else "head (tied to the embedding)",
            "weights": count,
            "share": count / total,
            "MB": count * model.dtype.itemsize / 1e6,
        }
        for part, count in model.parameters.items()
    ]


def headline(model: Llama) -> str:
    """One line that says what a model is."""
    c = model.config
    total, ffn = sum(model.parameters.values()), model.parameters["ffn"]
    return (
        f"{model.name}: {c.model_type}, {total:,} weights ({ffn / total:.0%} in the FFNs), "
        f"{c.num_hidden_layers} layers, hidden {c.hidden_size}, intermediate {c.intermediate_size} ({c.hidden_act}), "
        f"{c.num_attention_heads} query and {c.num_key_value_heads} key/value heads of {c.head_dim}, "
        f"vocabulary {c.vocab_size:,}, context {c.max_position_embeddings:,}, {model.dtype}"
    )
