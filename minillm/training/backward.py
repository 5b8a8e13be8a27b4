"""The backward pass, read off the trace of a forward pass: dL/dx for every intermediate x, and dL/dW for every weight.

A forward pass names each of its values at a tap. So a pass that keeps them has everything that the chain rule needs:

    saved = Saved()
    model.forward(ids, ffn=ffn, tap=saved)                       # the model's own code, dense or sparse
    gradients = backward(model, ids, targets, saved)
    gradients.steps["blocks.0.mlp.mid"]                          # dL / d mid, (T, F), under the step's own name
    gradients.weights["model.layers.0.mlp.up_proj.weight"]       # dL / d W_up, (F, D), under Hugging Face's name

Below, ``d`` is always dL / d(output of a part). Each part of the forward pass has one function that takes d back to its
inputs, with its equation. ``backward`` calls them from the logits down to the embedding. Read them beside
transformer/ops.py, attention.py, ffn.py, blocks.py and model.py: the order is reversed, the names are the same. The
slopes of the activations are in slopes.py.

**Cuts.** Each FeedForward that taps its masks can be trained through. A mask is a decision and has no gradient. With
m_cut = m where the mask is True, else 0, there are two ways to go on:

    masked gradient              dm = dm_cut where the mask is True, else 0      the true gradient, the mask held fixed
    straight-through estimator   dm = dm_cut                                     Bengio et al. 2013, arXiv 1308.3432

**Batches.** One pass is one text, so the tokens of one document never attend to those of another. A batch is several
passes whose gradients are added (losses.py says what makes the sum a mean; batches.py forms the batches).

Every gradient, of steps and of weights, goes through a tap, as every value of the forward pass does. It may be edited
there, kept, or added to what other passes of the batch gave.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from ..errors import MinillmError
from ..loading.names import EMBEDDING, HEAD
from ..sparsity.policies import where_kept
from ..threads import with_few_threads
from ..trace import Tap, no_tap
from ..transformer.layer import Layer, weight_name
from ..transformer.linear import linear
from ..transformer.model import Llama
from ..transformer.ops import no_warnings
from ..transformer.rope import rope_table, rotate_halves
from .losses import LossOf, cross_entropy
from .slopes import SLOPES


class Saved(dict[str, np.ndarray]):
    """A tap that holds the values of one pass, {step: value}, without a copy.

    Of a forward pass attn.scores is not to be used: the pattern is written over it. (A Trace, which copies every value,
    can be given to ``backward`` as well.)
    """

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        self[name] = value
        return value


class Gradients(NamedTuple):
    """What ``backward`` gives. loss: in nats. weights {Hugging Face's name: dL/dW}, steps {step's name: dL/d step}."""

    loss: float
    weights: dict[str, np.ndarray]
    steps: dict[str, np.ndarray]


# ---- one function for each part --------------------------------------------------------------------------------------


def linear_back(d: np.ndarray, x: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """y = x W^T (+ b):    dx = d W    dW = d^T x    (db = sum_t d_t)

    d (T, out), x (T, in), weight (out, in)  ->  dx (T, in), dW (out, in).
    """
    return d @ weight, d.T @ x


def rms_norm_back(d: np.ndarray, x: np.ndarray, weight: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """y = u * w, u = r x, r = 1 / sqrt(mean(x^2) + eps):    dw = sum_t d * u    dx = r (g - u mean(g * u)), g = d * w

    d, x (..., n), weight (n,)  ->  dx (..., n), dw (n,). The second term of dx is there because r depends on x, too.
    """
    n = x.shape[-1]
    r = 1 / np.sqrt(np.vecdot(x, x)[..., None] / n + eps)  # (..., 1)
    u = x * r  # (..., n)
    g = d * weight  # (..., n)
    d_weight = (d * u).reshape(-1, n).sum(axis=0)  # (n,)
    return r * (g - u * (np.vecdot(g, u)[..., None] / n)), d_weight


def softmax_back(d: np.ndarray, p: np.ndarray) -> np.ndarray:
    """p = softmax(x):    dx_i = p_i (d_i - sum_j d_j p_j)

    d, p (..., n)  ->  dx (..., n). Where p is 0 (a masked position), dx is 0.
    """
    d_x = d - np.vecdot(d, p)[..., None]  # (..., n)
    d_x *= p
    return d_x


def rotate_back(d: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """y = R x, a rotation of each pair by its angle:    dx = R^T d, the rotation by the opposite angle

    d (T, heads, d), cos and sin (T, rotary_dim / 2)  ->  dx (T, heads, d).
    """
    return rotate_halves(d, cos, -sin)


def attend_back(
    d: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, pattern: np.ndarray, tap: Tap = no_tap
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z = P v, P = softmax(S), S = q k^T / sqrt(d):

        dv = P^T dz    dP = dz v^T    dS = softmax_back(dP)    dq = dS k / sqrt(d)    dk = dS^T q / sqrt(d)

    d (T, H, d) for each query head; q (T, H, d); k, v (T, K, d); pattern (H, T, T)  ->  dq, dk, dv. The H / K query
    heads of a group share one key and value head, so dk and dv are sums over the group: its heads are stacked as rows.
    """
    (new, heads, size), kv_heads = q.shape, k.shape[1]
    scale = 1 / math.sqrt(size)

    def stacked(x: np.ndarray) -> np.ndarray:
        return x.reshape(new, kv_heads, -1, size).transpose(1, 2, 0, 3).reshape(kv_heads, -1, size)

    d, q, k, v = stacked(d), stacked(q), k.transpose(1, 0, 2), v.transpose(1, 0, 2)  # (K, H/K * T, d), (K, T, d)
    p = pattern.reshape(kv_heads, -1, new)  # (K, H/K * T, T)
    d_v = p.transpose(0, 2, 1) @ d  # (K, T, d)
    d_pattern = tap("pattern", (d @ v.transpose(0, 2, 1)).reshape(pattern.shape))  # (H, T, T)
    d_scores = tap("scores", softmax_back(d_pattern, pattern)).reshape(p.shape)  # (K, H/K * T, T)
    d_q = (d_scores @ k) * scale  # (K, H/K * T, d)
    d_k = d_scores.transpose(0, 2, 1) @ (q * scale)  # (K, T, d)
    d_q = d_q.reshape(heads, new, size).transpose(1, 0, 2)  # (T, H, d)
    return d_q, d_k.transpose(1, 0, 2), d_v.transpose(1, 0, 2)


def embedding_back(d: np.ndarray, ids: np.ndarray, vocabulary: int) -> np.ndarray:
    """x_t = E[id_t]:    dE[i] = sum of d_t over the t where id_t is i

    d (T, D), ids (T,)  ->  dE (V, D).
    """
    d_embedding = np.zeros((vocabulary, d.shape[1]), d.dtype)
    np.add.at(d_embedding, ids, d)
    return d_embedding


# ---- from the parts to the model -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Block:
    """One layer on the way back: its weights, its saved values under short names, and where its gradients go."""

    layer: Layer
    saved: Mapping[str, np.ndarray]
    slope: Callable[[np.ndarray], np.ndarray]
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
        """``rms_norm_back`` of the layer's norm of this name.  d, x (..., n)  ->  dx (..., n)."""
        d_x, d_weight = rms_norm_back(d, x, getattr(self.layer, part), self.layer.eps)
        self.weight(part, d_weight)
        return d_x

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
    up = linear(x_up, layer.up, layer.up_bias) if up is None else up  # (T, F)
    mid_cut = at.value("mlp.mid_cut")  # (T, F)
    mid = at["mlp.mid"] if mid_cut is None else mid_cut  # (T, F)

    d_out = at.tap("mlp.out", at.through("mlp.mask_out", d))  # (T, D)
    d_mid = at.linear_back("down", d_out, mid)  # (T, F)
    if mid_cut is not None:
        d_mid = at.through("mlp.mask", at.tap("mlp.mid_cut", d_mid))  # (T, F)
    d_mid = at.tap("mlp.mid", d_mid)  # (T, F)
    d_up = at.tap("mlp.up", d_mid * gate)  # (T, F)
    d_gate = at.tap("mlp.gate", d_mid * up)  # (T, F)
    d_gate_pre = at.tap("mlp.gate_pre", d_gate * at.slope(gate_pre))  # (T, F)
    d_x_gate = at.through("mlp.mask_in_gate", at.linear_back("gate", d_gate_pre, x_gate))  # (T, D)
    d_x_up = at.through("mlp.mask_in_up", at.linear_back("up", d_up, x_up))  # (T, D)
    return d_x_gate + d_x_up  # (T, D)


def attention_back(d: np.ndarray, at: Block, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """q, k, v = x W_q^T, x W_k^T, x W_v^T    z = attend(R q, R k, v)    out = z W_o^T:

        dx = dq W_q + dk W_k + dv W_v        (Qwen3: first back through the norms of q and k)

    d (T, D); cos, sin (T, rotary_dim / 2)  ->  dx (T, D).
    """
    layer, x, z = at.layer, at["attn.norm"], at["attn.z"]
    new, d_head = len(x), layer.head_dim
    d_z = at.linear_back("o", at.tap("attn.out", d), z.reshape(new, -1)).reshape(z.shape)  # (T, H, d)
    d_z = at.tap("attn.z", d_z)
    q, k, v = at["attn.rot_q"], at["attn.rot_k"], at["attn.v"]
    d_q, d_k, d_v = attend_back(d_z, q, k, v, at["attn.pattern"], lambda name, d: at.tap(f"attn.{name}", d))
    d_v = at.tap("attn.v", d_v)  # (T, K, d)
    d_k = at.tap("attn.k", rotate_back(at.tap("attn.rot_k", d_k), cos, sin))  # (T, K, d)
    d_q = at.tap("attn.q", rotate_back(at.tap("attn.rot_q", d_q), cos, sin))  # (T, H, d)
    if layer.q_norm is not None:  # the steps q and k are those behind the norms
        d_q = at.norm_back("q_norm", d_q, linear(x, layer.q_proj, layer.q_bias).reshape(new, -1, d_head))
        d_k = at.norm_back("k_norm", d_k, linear(x, layer.k_proj, layer.k_bias).reshape(new, -1, d_head))
    d_x = at.linear_back("q", d_q.reshape(new, -1), x)  # (T, D)
    d_x += at.linear_back("k", d_k.reshape(new, -1), x)
    d_x += at.linear_back("v", d_v.reshape(new, -1), x)
    return d_x


def block_back(d: np.ndarray, at: Block, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """h_mid = h + attention(norm(h))    h_post = h_mid + ffn(norm(h_mid)):    each sum hands d on to both of its terms

    d (T, D) of the stream behind the block  ->  d (T, D) of the stream before it.
    """
    d = at.tap("resid_post", d)
    d_x = at.tap("mlp.norm", ffn_back(d, at))  # (T, D)
    d = at.tap("resid_mid", d + at.norm_back("post_attention_layernorm", d_x, at["resid_mid"]))  # (T, D)
    d_x = at.tap("attn.norm", attention_back(d, at, cos, sin))  # (T, D)
    return at.tap("resid_pre", d + at.norm_back("input_layernorm", d_x, at["resid_pre"]))  # (T, D)


def check_wired_as_llama(model: Llama) -> None:
    """Raise MinillmError for a model of a family whose blocks are not those of a Llama: they have no way back here."""
    config = model.config
    if (config.wiring, config.norm, config.gated) != ("pre_norm", "rms", True) or model.outer or config.other_rope:
        families = "llama, mistral, qwen2, qwen3, phi3"
        raise MinillmError(f"the family is {config.model_type}, expected one with a backward pass: {families}")


@with_few_threads
@no_warnings
def backward(
    model: Llama, ids: np.ndarray, targets: np.ndarray | LossOf, saved: Mapping[str, np.ndarray],
    straight: bool = False, tap: Tap | None = None,
) -> Gradients:  # fmt: skip
    """The gradients of a loss by all weights and all intermediates of one forward pass (module docstring).

    ids (T,): of that pass, which began at position 0. targets (T,): the ids that follow, for the mean cross entropy; or
    any loss, a function of the logits. saved: the values of the pass (``Saved``, or a Trace of all steps). straight:
    straight-through instead of masked gradients. tap: sees each gradient under its name and may return another one;
    with a tap, ``steps`` stays empty, because holding all of them takes as much memory as the forward pass.
    """
    ids = model.check_ids(ids)
    check_wired_as_llama(model)
    loss_of = targets if callable(targets) else partial(cross_entropy, targets=targets)
    steps, weights = Saved(), dict[str, np.ndarray]()
    give_step, give = (steps, no_tap) if tap is None else (tap, tap)

    def give_weight(name: str, d: np.ndarray) -> None:
        weights[name] = give(name, d)

    loss, d = loss_of(saved["logits"])
    d, d_head = linear_back(give_step("logits", d), saved["final_norm"], model.lm_head)  # (T, D), (V, D)
    last = f"blocks.{len(model.layers) - 1}.resid_post"
    assert model.norm is not None  # of a Llama
    d, d_weight = rms_norm_back(give_step("final_norm", d), saved[last], model.norm, model.config.rms_norm_eps)
    give_weight("model.norm.weight", d_weight)

    slope = SLOPES[model.config.hidden_act]
    cos, sin = rope_table(model.config.rope, len(ids), model.dtype)  # (T, rotary_dim / 2)
    for layer in reversed(model.layers):
        d = block_back(d, Block(layer, saved, slope, straight, give_step, give_weight), cos, sin)  # (T, D)

    d_embedding = embedding_back(give_step("embed", d), ids, len(model.embed_tokens))  # (V, D)
    if model.lm_head is model.embed_tokens:  # one matrix, used twice
        d_embedding += d_head
    else:
        give_weight(HEAD, d_head)
    give_weight(EMBEDDING, d_embedding)
    return Gradients(loss, weights, steps)
