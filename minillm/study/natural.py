"""Natural sparsity: how many activations are zero, or nearly so, before anything is cut.

    gate_zeros            share of gate = act(x W_gate^T) that is exactly 0
    gate_below_1_percent  share with |gate| <= 1 % of r, exact zeros included; likewise 10 %
    mid_zeros             share of mid = gate * up that is exactly 0

    r = sqrt(mean_j gate_j^2)    over the F neurons of the same layer at the same token

ReLU makes exact zeros (Mirzadeh et al. 2023, arXiv 2310.04564); SiLU and GELU make small values, so that "near" needs a
measure. It is taken per token: where one token (often the first) has very large values, a measure over the whole text
would call all others small. Every position counts, the BOS included.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from ..transformer.evaluation import pass_over
from ..transformer.model import Llama
from ..transformer.texts import runs

NEAR = {"gate_below_1_percent": 0.01, "gate_below_10_percent": 0.1}  # of r


def natural_sparsity(model: Llama, documents: str | Sequence[str], context: int | None = None) -> list[dict]:
    """The shares of the module docstring, a row per layer, of the dense model on texts (protocol documents)."""
    count: dict[int, Counter] = defaultdict(Counter)

    def tap(name: str, value: np.ndarray) -> np.ndarray:
        if name.endswith((".mlp.gate", ".mlp.mid")):
            _, layer, _, step = name.split(".")
            found = count[int(layer)]
            found[f"{step}_zeros"] += value.size - np.count_nonzero(value)
            if step == "gate":
                size = np.abs(value)  # (T, F)
                r = np.sqrt(np.square(size, dtype=np.float64).mean(axis=-1, keepdims=True))  # (T, 1)
                for key, near in NEAR.items():
                    found[key] += np.count_nonzero(size <= near * r)
                found["tokens"] += len(value)
        return value

    pass_over(model, runs(model, documents, "documents", context), tap, what="counting")
    keys = ("gate_zeros", *NEAR, "mid_zeros")
    return [
        {"layer": layer, "tokens": found["tokens"]}
        | {key: int(found[key]) / (found["tokens"] * model.config.intermediate_size) for key in keys}
        for layer, found in sorted(count.items())
    ]
