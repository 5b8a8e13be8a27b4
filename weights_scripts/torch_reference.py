"""A forward pass written out in plain torch, in float64: the reference for a float64 model.

It shares no code with minillm. Where an equation has two forms, it uses the one that minillm does not use.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

Weight = Callable[[str], torch.Tensor | None]
Steps = dict[str, np.ndarray]


def folder_weights(folder: str | Path) -> Weight:
    """A function that reads a tensor by name, in float64; None where there is no tensor of that name."""
    where = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        file = safe_open(path, "pt")
        where |= {name: file for name in file.keys()}
    return lambda name: where[name].get_tensor(name).double() if name in where else None


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def rotary(config, head_dim: int, length: int) -> torch.Tensor:
    """The rotations as complex numbers, (length, 1, rotated pairs): r exp(i position frequency)."""
    rope = config.rope_parameters
    kind = rope["rope_type"]
    rotated = int(head_dim * (rope.get("partial_rotary_factor") or 1.0))
    j = torch.arange(0, rotated, 2, dtype=torch.float64)
    frequency = torch.exp(-math.log(rope["rope_theta"]) * j / rotated)
    radius = 1.0
    if kind == "linear":
        frequency = frequency / rope["factor"]
    elif kind == "llama3":
        original, factor = rope["original_max_position_embeddings"], rope["factor"]
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        for i, f in enumerate(frequency.tolist()):
            turns = original * f / (2 * math.pi)  # full turns within the original context
            if turns < low:
                frequency[i] = f / factor
            elif turns <= high:
                share = (turns - low) / (high - low)
                frequency[i] = share * f + (1 - share) * f / factor
    elif kind == "longrope":
        original = rope["original_max_position_embeddings"]
        factors = rope["long_factor"] if length > original else rope["short_factor"]
        frequency = frequency / torch.tensor(factors, dtype=torch.float64)
        stretch = rope.get("factor") or config.max_position_embeddings / original
        radius = rope.get("attention_factor")
        if radius is None:
            radius = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    elif kind != "default":
        raise SystemExit(f"rope_type {kind!r} is not implemented in this script")
    angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)
    return torch.polar(torch.full_like(angle, radius), angle)[:, None, :]


def rotate(x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Multiply by the rotations: coordinates (j, j + rotated / 2) of a head are one complex number."""
    pairs = turn.shape[-1]
    z = torch.complex(x[..., :pairs], x[..., pairs : 2 * pairs]) * turn
    return torch.cat([z.real, z.imag, x[..., 2 * pairs :]], dim=-1)


ACTIVATIONS = {
    "silu": torch.nn.functional.silu,
    "swish": torch.nn.functional.silu,
    "relu": torch.relu,
    "relu2": lambda x: torch.relu(x) ** 2,
    "gelu": torch.nn.functional.gelu,
    "gelu_pytorch_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
}


def layer_window(config, layer: int) -> int | None:
    """Number of positions that a layer attends to, its own included; None means all (modeling_*.py)."""
    if config.model_type in ("mistral", "phi3"):
        return config.sliding_window
    if config.model_type in ("qwen2", "qwen3") and config.layer_types[layer] == "sliding_attention":
        return config.sliding_window
    return None


@torch.no_grad()
def torch64(config, weight: Weight, ids: list[int], record: Callable[[str, torch.Tensor], None]) -> None:
    """Run one text through the model in float64; ``record(name, value)`` gets every step in execution order.

    config: a transformers config of llama, mistral, qwen2, qwen3 or phi3. weight: from names in the file to tensors.
    """

    def linear(x, name):
        y = x @ weight(f"{name}.weight").T
        bias = weight(f"{name}.bias")
        return y if bias is None else y + bias

    length = len(ids)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads or config.num_attention_heads
    d = getattr(config, "head_dim", None) or config.hidden_size // heads
    turn = rotary(config, d, length)
    age = torch.arange(length)[:, None] - torch.arange(length)[None, :]  # how long before t position s was
    embedding, head = weight("model.embed_tokens.weight"), weight("lm_head.weight")
    if config.tie_word_embeddings:  # one matrix for both; a file may hold it under either name
        embedding = head = head if embedding is None else embedding

    h = embedding[torch.tensor(ids)]
    record("embed", h)
    for i in range(config.num_hidden_layers):
        layer, step = f"model.layers.{i}", f"blocks.{i}"
        record(f"{step}.resid_pre", h)

        x = rms_norm(h, weight(f"{layer}.input_layernorm.weight"), config.rms_norm_eps)
        record(f"{step}.attn.norm", x)
        if config.model_type == "phi3":
            qkv = linear(x, f"{layer}.self_attn.qkv_proj")
            q, k, v = qkv.split([heads * d, kv_heads * d, kv_heads * d], dim=-1)
        else:
            q, k, v = (linear(x, f"{layer}.self_attn.{n}_proj") for n in "qkv")
        q, k, v = q.view(length, heads, d), k.view(length, kv_heads, d), v.view(length, kv_heads, d)
        if config.model_type == "qwen3":
            q = rms_norm(q, weight(f"{layer}.self_attn.q_norm.weight"), config.rms_norm_eps)
            k = rms_norm(k, weight(f"{layer}.self_attn.k_norm.weight"), config.rms_norm_eps)
        for name, value in (("q", q), ("k", k), ("v", v)):
            record(f"{step}.attn.{name}", value)
        q, k = rotate(q, turn), rotate(k, turn)
        record(f"{step}.attn.rot_q", q)
        record(f"{step}.attn.rot_k", k)

        # Every query head gets its own copy of the keys: head h asks key head h // (heads / kv_heads).
        group = heads // kv_heads
        k, v = (a.repeat_interleave(group, dim=1) for a in (k, v))
        scores = torch.einsum("thd,shd->hts", q, k) / math.sqrt(d)
        record(f"{step}.attn.scores", scores)
        window = layer_window(config, i)
        hidden = (age < 0) if window is None else (age < 0) | (age >= window)
        pattern = torch.softmax(scores.masked_fill(hidden, -math.inf), dim=-1)
        record(f"{step}.attn.pattern", pattern)
        z = torch.einsum("hts,shd->thd", pattern, v)
        record(f"{step}.attn.z", z)
        out = linear(z.reshape(length, -1), f"{layer}.self_attn.o_proj")
        record(f"{step}.attn.out", out)
        h = h + out
        record(f"{step}.resid_mid", h)

        x = rms_norm(h, weight(f"{layer}.post_attention_layernorm.weight"), config.rms_norm_eps)
        record(f"{step}.mlp.norm", x)
        if config.model_type == "phi3":
            gate_pre, up = linear(x, f"{layer}.mlp.gate_up_proj").chunk(2, dim=-1)
        else:
            gate_pre, up = linear(x, f"{layer}.mlp.gate_proj"), linear(x, f"{layer}.mlp.up_proj")
        record(f"{step}.mlp.gate_pre", gate_pre)
        gate = ACTIVATIONS[config.hidden_act](gate_pre)
        record(f"{step}.mlp.gate", gate)
        record(f"{step}.mlp.up", up)
        record(f"{step}.mlp.mid", gate * up)
        out = linear(gate * up, f"{layer}.mlp.down_proj")
        record(f"{step}.mlp.out", out)
        h = h + out
        record(f"{step}.resid_post", h)

    h = rms_norm(h, weight("model.norm.weight"), config.rms_norm_eps)
    record("final_norm", h)
    record("logits", h @ head.T)


def run_torch64(config, weight: Weight, ids: list[int]) -> Steps:
    """Every step of the float64 pass as arrays."""
    steps = {}
    torch64(config, weight, ids, lambda name, value: steps.update({name: value.numpy()}))
    return steps
