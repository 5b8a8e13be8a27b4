"""The weights of one block, as one record that attention and the feed-forward network read.

    y = x W^T + b        each matrix W is (out, in), as Hugging Face stores it

A FeedForward gets this record, too: it holds what each method of this project needs to know of a layer, its weights
and its index.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import MinillmError
from ..loading.config import ModelConfig
from .ops import ACTIVATIONS, NORMS

FFN_MATRICES = ("gate_proj", "up_proj", "down_proj")  # of the SwiGLU feed-forward network


@dataclass(frozen=True, eq=False)
class Layer:
    """The weights of one block under Hugging Face's names, and the settings that its functions need.

    index: the layer's number, from 0. head_dim: d. eps: of the norms. window: of attention, None without one.
    act: the activation of the gate. D hidden, F intermediate, H query heads, K key/value heads, d head size.
    A bias, norm or matrix that the family does not have is None. What follows the FFN's biases is not a Llama's: it
    says how the layers of other families differ (transformer/blocks.py, loading/config.py).
    """

    index: int
    head_dim: int
    eps: float
    window: int | None
    act: Callable[[np.ndarray], np.ndarray]
    q_proj: np.ndarray  # (H d, D)
    k_proj: np.ndarray  # (K d, D)
    v_proj: np.ndarray  # (K d, D)
    o_proj: np.ndarray  # (D, H d)
    gate_proj: np.ndarray  # (F, D)
    down_proj: np.ndarray  # (D, F)
    up_proj: np.ndarray | None = None  # (F, D); None in an FFN without a gate, where up is 1
    input_layernorm: np.ndarray | None = None  # (D,)
    post_attention_layernorm: np.ndarray | None = None  # (D,)
    q_bias: np.ndarray | None = None  # (H d,)
    k_bias: np.ndarray | None = None  # (K d,)
    v_bias: np.ndarray | None = None  # (K d,)
    o_bias: np.ndarray | None = None  # (D,)
    q_norm: np.ndarray | None = None  # (d,)
    k_norm: np.ndarray | None = None  # (d,)
    gate_bias: np.ndarray | None = None  # (F,)
    up_bias: np.ndarray | None = None  # (F,)
    down_bias: np.ndarray | None = None  # (D,)
    input_layernorm_bias: np.ndarray | None = None  # (D,)
    post_attention_layernorm_bias: np.ndarray | None = None  # (D,)
    pre_feedforward_layernorm: np.ndarray | None = None  # (D,)
    post_feedforward_layernorm: np.ndarray | None = None  # (D,)
    wiring: str = "pre_norm"  # the function of blocks.py
    norm: Callable[..., np.ndarray] = NORMS["rms"]
    rope: int = 0  # which of the model's rotations
    scale: float | None = None  # of attention's scores; None: 1 / sqrt(d)
    cap: float | None = None  # of attention's scores
    residual_scale: float = 1.0

    @property
    def up(self) -> np.ndarray:
        """``up_proj`` (F, D), for what needs a gated FFN. Raises MinillmError where there is none."""
        if self.up_proj is None:
            raise MinillmError("the model's feed-forward networks have no gate (up is 1), expected gated ones")
        return self.up_proj

    @classmethod
    def from_weights(cls, config: ModelConfig, weights: dict[str, np.ndarray], index: int) -> Layer:
        """Pick one layer's arrays out of a checkpoint's names: model.layers.{index}.mlp.gate_proj.weight, ..."""
        prefix = f"model.layers.{index}."
        arrays = {}
        for name, array in weights.items():
            if name.startswith(prefix):
                *_, module, kind = name.split(".")  # "gate_proj", "weight"
                arrays[module if kind == "weight" else f"{module.removesuffix('_proj')}_bias"] = array
        act, window = ACTIVATIONS[config.hidden_act], config.sliding_windows[index]
        return cls(
            index, config.head_dim, config.rms_norm_eps, window, act, **arrays,
            wiring=config.wiring, norm=NORMS[config.norm], rope=int(index in config.other_rope_layers),
            scale=config.attention_scale, cap=config.attention_cap, residual_scale=config.residual_scale,
        )  # fmt: skip

    def weights(self) -> dict[str, np.ndarray]:
        """Its arrays under the names that ``from_weights`` takes, {"model.layers.0.mlp.up_proj.weight": array}."""
        arrays = {part: array for part, array in vars(self).items() if isinstance(array, np.ndarray)}
        return {weight_name(self.index, part): array for part, array in arrays.items()}


def weight_name(index: int, part: str) -> str:
    """Hugging Face's name of a part of a layer: 3, "q_bias" -> "model.layers.3.self_attn.q_proj.bias"."""
    name, kind = (part.removesuffix("_bias"), "bias") if part.endswith("_bias") else (part, "weight")
    owner = {"gate": "mlp.", "up": "mlp.", "down": "mlp."} | dict.fromkeys("qkvo", "self_attn.")
    inside = owner.get(part.partition("_")[0], "")
    module = f"{name}_proj" if inside and kind == "bias" else name
    return f"model.layers.{index}.{inside}{module}.{kind}"
