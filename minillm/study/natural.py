"""Natural sparsity: how many activations are zero, or nearly so, before anything is cut.

    gate_zeros            share of gate = act(x W_gate^T) that is exactly 0
    gate_below_1_percent  share with |gate| <= 1 % of r, exact zeros included; likewise 10 %
    mid_zeros             share of mid = gate * up that is exactly 0

    r = sqrt(mean_j gate_j^2)    over the F neurons of the same layer at the same token

ReLU makes exact zeros (Mirzadeh et al. 2023, arXiv 2310.04564). SiLU and GELU make small values, so "near zero" needs a
scale. r is the scale of one token: one token (often the first) may have very large values, and a scale of the whole
text would then call the values of all other tokens small. Every position counts, the BOS included.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..steps import place
from ..transformer.evaluation import pass_over
from ..transformer.model import Llama
from ..transformer.texts import runs

NEAR_ZERO = (0.01, 0.1)  # of r: the r.m.s. of the values that are looked at together
BELOW_KEYS = {f"gate_below_{100 * near:g}_percent": near for near in NEAR_ZERO}


def natural_sparsity(model: Llama, documents: str | Sequence[str], context: int | None = None) -> list[dict[str, Any]]:
    """The shares of the module docstring, a row per layer, of the dense model on texts (protocol documents)."""
    counts: dict[int, Counter[str]] = defaultdict(Counter)  # of each layer

    def tap(name: str, value: np.ndarray) -> np.ndarray:
        at = place(name)
        if at and at.step == "mlp.mid":
            counts[at.layer]["mid_zeros"] += value.size - int(np.count_nonzero(value))
        if at and at.step == "mlp.gate":
            count, size = counts[at.layer], np.abs(value)  # (T, F)
            r = np.sqrt(np.square(size, dtype=np.float64).mean(axis=-1, keepdims=True))  # (T, 1)
            count["gate_zeros"] += value.size - int(np.count_nonzero(value))
            count.update({key: int(np.count_nonzero(size <= near * r)) for key, near in BELOW_KEYS.items()})
            count["tokens"] += len(value)
        return value

    pass_over(model, runs(model, documents, "documents", context), tap, what="counting")
    keys = ("gate_zeros", *BELOW_KEYS, "mid_zeros")
    return [
        {"layer": layer, "tokens": count["tokens"]}
        | {key: count[key] / (count["tokens"] * model.config.intermediate_size) for key in keys}
        for layer, count in sorted(counts.items())
    ]


def exact_zeros(model: Llama, documents: str | Sequence[str], context: int | None = None) -> float:
    """Share of (token, neuron) pairs whose mid is exactly 0, nothing being cut; mean over layers."""
    return float(np.mean([row["mid_zeros"] for row in natural_sparsity(model, documents, context)]))
