"""The way back through one block: its FFN, its attention, and one function for each wiring.

Read them beside transformer/ffn.py, attention.py and blocks.py: the order is reversed, the names are the same. The
parts are in parts.py, the slopes of the activations in slopes.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ..sparsity.policies import where_kept
from ..transformer.layer import Layer, weight_name
from ..transformer.linear import linear
from .parts import NormBack, attend_back, linear_back, rotate_back


@dataclass(frozen=True, eq=False)
class Block:
    """One layer on the way back: its weights, its saved values under short names, and where its gradients go."""

    layer: Layer
    saved: Mapping[str, np.ndarray]
    slope: Callable[[np.ndarray], np.ndarray]
    norm: NormBack
    straight: bool
    give_step: Callable[[str, np.ndarray], np.ndarray]
    give_weight: Callable[[str, np.ndarray], None]

    def value(self, step: str) -> np.ndarray | None:
        """A value of the forward pass; None where it was not tapped."""
        return self.saved.get(f"blocks.{self.layer.index}.{step}")

    def __getitem__(self, step: str) -> np.ndarray:
        return self.saved[f"blocks.{self.layer.index}.{step}"]

    def tap(self, step: str, d: np.ndarray) -> np.ndarray:
        """Give out dL / d step."""
        return self.give_step(f"blocks.{self.layer.index}.{step}", d)

    def weight(self, part: str, d: np.ndarray) -> None:
        """Give out dL / d weight."""
        self.give_weight(weight_name(self.layer.index, part), d)

    def linear_back(self, name: str, d: np.ndarray, x: np.ndarray) -> np.ndarray:
        """``linear_back`` of the layer's matrix and bias of this name ("up").  d (T, out), x (T, in) -> dx (T, in)."""
        d_x, d_weight = linear_back(d, x, getattr(self.layer, f"{name}_proj"))
        self.weight(f"{name}_proj", d_weight)
        if getattr(self.layer, f"{name}_bias") is not None:
            self.weight(f"{name}_bias", d.sum(axis=0))
        return d_x

    def norm_back(self, part: str, d: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Back through the layer's norm of this name.  d, x (..., n)  ->  dx (..., n)."""
        d_x, d_weight = self.norm(d, x, getattr(self.layer, part), self.layer.eps)
        self.weight(part, d_weight)
        if getattr(self.layer, f"{part}_bias", None) is not None:
            self.weight(f"{part}_bias", d.sum(axis=0))
        return d_x

    def head_norm_back(self, part: str, d: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Back through the norm of queries or keys, of each head or of all at once: d (T, heads, d), x (T, heads d)."""
        size = len(getattr(self.layer, part))
        return self.norm_back(part, d.reshape(len(d), -1, size), x.reshape(len(x), -1, size)).reshape(d.shape)

    def through(self, mask: str, d: np.ndarray) -> np.ndarray:
        """Back through a cut: 0 where the mask is False; straight-through and where nothing was cut, d itself."""
        return d if self.straight else where_kept(self.value(mask), d)


def ffn_back(d: np.ndarray, at: Block) -> np.ndarray:
    """g = x W_gate^T    a = act(g)    u = x W_up^T    m = a * u    y = m W_down^T, and what a sparse FFN cuts of it:

        dm = dy W_down    da = dm * u    du = dm * a    dg = da * act'(g)    dx = dg W_gate + du W_up

    d (T, D)  ->  dx (T, D). The inputs x, the neurons m and the outputs y may each be cut by a mask (sparsity/masked).
    """
    layer, x = at.layer, at["mlp.norm"]  # (T, D)
    x_gate, x_up = (where_kept(at.value(f"mlp.mask_in_{name}"), x) for name in ("gate", "up"))
    gate_pre, gate, up = (at.value(f"mlp.{name}") for name in ("gate_pre", "gate", "up"))
    if gate_pre is None:  # an FFN in gathered form computes only a part of these
        gate_pre = linear(x_gate, layer.gate_proj, layer.gate_bias)  # (T, F)
    gate = layer.act(gate_pre) if gate is None else gate  # (T, F)
    if up is None and layer.up_proj is not None:
        up = linear(x_up, layer.up_proj, layer.up_bias)  # (T, F)
    mid_cut = at.value("mlp.mid_cut")  # (T, F)
    mid = at["mlp.mid"] if mid_cut is None else mid_cut  # (T, F)

    d_out = at.tap("mlp.out", at.through("mlp.mask_out", d))  # (T, D)
    d_mid = at.linear_back("down", d_out, mid)  # (T, F)
    if mid_cut is not None:
        d_mid = at.through("mlp.mask", at.tap("mlp.mid_cut", d_mid))  # (T, F)
    d_mid = at.tap("mlp.mid", d_mid)  # (T, F)
    d_gate = at.tap("mlp.gate", d_mid if up is None else d_mid * up)  # (T, F)
    d_gate_pre = at.tap("mlp.gate_pre", d_gate * at.slope(gate_pre))  # (T, F)
    d_x = at.through("mlp.mask_in_gate", at.linear_back("gate", d_gate_pre, x_gate))  # (T, D)
    if up is not None:  # without a gate, up is 1
        d_up = at.tap("mlp.up", d_mid * gate)  # (T, F)
        d_x = d_x + at.through("mlp.mask_in_up", at.linear_back("up", d_up, x_up))
    return d_x  # (T, D)


def attention_back(d: np.ndarray, at: Block, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """q, k, v = x W_q^T, x W_k^T, x W_v^T    z = attend(R q, R k, v)    out = z W_o^T:

        dx = dq W_q + dk W_k + dv W_v        (Qwen3, OLMo 2, Gemma 3: first back through the norms of q and k)

    d (T, D); cos, sin (T, rotary_dim / 2)  ->  dx (T, D).
    """
    layer, x, z = at.layer, at["attn.norm"], at["attn.z"]
    new = len(x)
    d_z = at.linear_back("o", at.tap("attn.out", d), z.reshape(new, -1)).reshape(z.shape)  # (T, H, d)
    d_z = at.tap("attn.z", d_z)
    q, k, v = at["attn.rot_q"], at["attn.rot_k"], at["attn.v"]
    d_q, d_k, d_v = attend_back(
        d_z, q, k, v, at["attn.pattern"], lambda name, d: at.tap(f"attn.{name}", d), layer.scale, layer.cap
    )
    d_v = at.tap("attn.v", d_v)  # (T, K, d)
    d_k = at.tap("attn.k", rotate_back(at.tap("attn.rot_k", d_k), cos, sin))  # (T, K, d)
    d_q = at.tap("attn.q", rotate_back(at.tap("attn.rot_q", d_q), cos, sin))  # (T, H, d)
    if layer.q_norm is not None:  # the steps q and k are those behind the norms
        d_q = at.head_norm_back("q_norm", d_q, linear(x, layer.q_proj, layer.q_bias))
        d_k = at.head_norm_back("k_norm", d_k, linear(x, layer.k_proj, layer.k_bias))
    d_x = at.linear_back("q", d_q.reshape(new, -1), x)  # (T, D)
    d_x += at.linear_back("k", d_k.reshape(new, -1), x)
    d_x += at.linear_back("v", d_v.reshape(new, -1), x)
    return d_x


def pre_norm_back(d: np.ndarray, at: Block, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """h_mid = h + attention(norm(h))    h_post = h_mid + ffn(norm(h_mid)):    each sum hands d on to both of its terms

    d (T, D) of the stream behind the block  ->  d (T, D) of the stream before it.
    """
    d = at.tap("resid_post", d)
    d_x = at.tap("mlp.norm", ffn_back(d, at))  # (T, D)
    d = at.tap("resid_mid", d + at.norm_back("post_attention_layernorm", d_x, at["resid_mid"]))  # (T, D)
    d_x = at.tap("attn.norm", attention_back(d, at, cos, sin))  # (T, D)
    return at.tap("resid_pre", d + at.norm_back("input_layernorm", d_x, at["resid_pre"]))  # (T, D)


# ---- the wirings of other families -----------------------------------------------------------------------------------


def scaled_back(d: np.ndarray, at: Block, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """h_mid = h + s attention(norm(h))    h_post = h_mid + s ffn(norm(h_mid))"""
    s, d = d.dtype.type(at.layer.residual_scale), at.tap("resid_post", d)
    d_x = at.tap("mlp.norm", ffn_back(s * d, at))  # (T, D)
    d = at.tap("resid_mid", d + at.norm_back("post_attention_layernorm", d_x, at["resid_mid"]))  # (T, D)
    d_x = at.tap("attn.norm", attention_back(s * d, at, cos, sin))  # (T, D)
    return at.tap("resid_pre", d + at.norm_back("input_layernorm", d_x, at["resid_pre"]))  # (T, D)


def parallel_back(d: np.ndarray, at: Block, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """h_post = h + attention(norm_1(h)) + ffn(norm_2(h))"""
    d, h = at.tap("resid_post", d), at["resid_pre"]
    d_ffn = at.norm_back("post_attention_layernorm", at.tap("mlp.norm", ffn_back(d, at)), h)  # (T, D)
    d_attention = at.norm_back("input_layernorm", at.tap("attn.norm", attention_back(d, at, cos, sin)), h)  # (T, D)
    return at.tap("resid_pre", d + d_ffn + d_attention)  # (T, D)


def parallel_one_norm_back(d: np.ndarray, at: Block, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """x = norm(h)    h_post = h + attention(x) + ffn(x)"""
    d = at.tap("resid_post", d)
    d_x = at.tap("mlp.norm", ffn_back(d, at))  # (T, D)
    d_x = at.tap("attn.norm", d_x + attention_back(d, at, cos, sin))  # (T, D)
    return at.tap("resid_pre", d + at.norm_back("input_layernorm", d_x, at["resid_pre"]))  # (T, D)


def post_norm_back(d: np.ndarray, at: Block, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """h_mid = norm(h + attention(h))    h_post = norm(h_mid + ffn(h_mid))"""
    out = where_kept(at.value("mlp.mask_out"), at["mlp.out"])  # (T, D)
    d = at.norm_back("post_attention_layernorm", at.tap("resid_post", d), at["resid_mid"] + out)  # (T, D)
    d = at.tap("resid_mid", d + at.tap("mlp.norm", ffn_back(d, at)))  # (T, D)
    d = at.norm_back("input_layernorm", d, at["resid_pre"] + at["attn.out"])  # (T, D)
    return at.tap("resid_pre", d + at.tap("attn.norm", attention_back(d, at, cos, sin)))  # (T, D)


def norm_after_back(d: np.ndarray, at: Block, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """h_mid = h + norm(attention(h))    h_post = h_mid + norm(ffn(h_mid))"""
    d, out = at.tap("resid_post", d), where_kept(at.value("mlp.mask_out"), at["mlp.out"])  # (T, D)
    d_y = at.norm_back("post_feedforward_layernorm", at.tap("mlp.out_norm", d), out)  # (T, D)
    d = at.tap("resid_mid", d + at.tap("mlp.norm", ffn_back(d_y, at)))  # (T, D)
    d_y = at.norm_back("post_attention_layernorm", at.tap("attn.out_norm", d), at["attn.out"])  # (T, D)
    return at.tap("resid_pre", d + at.tap("attn.norm", attention_back(d_y, at, cos, sin)))  # (T, D)


def sandwich_back(d: np.ndarray, at: Block, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """h_mid = h + norm(attention(norm(h)))    h_post = h_mid + norm(ffn(norm(h_mid)))"""
    d, out = at.tap("resid_post", d), where_kept(at.value("mlp.mask_out"), at["mlp.out"])  # (T, D)
    d_y = at.norm_back("post_feedforward_layernorm", at.tap("mlp.out_norm", d), out)  # (T, D)
    d_x = at.tap("mlp.norm", ffn_back(d_y, at))  # (T, D)
    d = at.tap("resid_mid", d + at.norm_back("pre_feedforward_layernorm", d_x, at["resid_mid"]))  # (T, D)
    d_y = at.norm_back("post_attention_layernorm", at.tap("attn.out_norm", d), at["attn.out"])  # (T, D)
    d_x = at.tap("attn.norm", attention_back(d_y, at, cos, sin))  # (T, D)
    return at.tap("resid_pre", d + at.norm_back("input_layernorm", d_x, at["resid_pre"]))  # (T, D)


WiringBack: TypeAlias = Callable[[np.ndarray, Block, np.ndarray, np.ndarray], np.ndarray]
WIRINGS_BACK: dict[str, WiringBack] = {  # one for each of transformer/blocks.py's
    "pre_norm": pre_norm_back, "scaled": scaled_back, "parallel": parallel_back,
    "parallel_one_norm": parallel_one_norm_back, "post_norm": post_norm_back, "norm_after": norm_after_back,
    "sandwich": sandwich_back,
}  # fmt: skip


def block_back(d: np.ndarray, at: Block, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Back through one layer, wired as its family is.  d (T, D)  ->  (T, D)."""
    return WIRINGS_BACK[at.layer.wiring](d, at, cos, sin)
