"""A forward pass written out in plain torch, in float64: the reference for a float64 model.

It shares no code with minillm. Where an equation has two forms, it uses the one that minillm does not use. The rotation
is a product of complex numbers, and every query head gets its own copy of its keys and values.

The parts of one block, from the bottom of the file upwards: run_block, ffn, attention, queries_keys_values, rotate,
rms_norm. Shapes have the letters T positions, D hidden, H query heads, K key/value heads, d head size.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from transformers import PretrainedConfig

Weight = Callable[[str], torch.Tensor | None]
Record = Callable[[str, torch.Tensor], None]
Steps = dict[str, np.ndarray]


def folder_weights(folder: str | Path) -> Weight:
    """A function that reads a tensor by name, in float64; None where there is no tensor of that name."""
    where = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        file = safe_open(path, "pt")
        where |= {name: file for name in file.keys()}
    return lambda name: where[name].get_tensor(name).double() if name in where else None


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over the last axis."""
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def llama3_frequencies(frequency: torch.Tensor, rope: dict) -> torch.Tensor:
    """Slow rotations are divided by the factor, fast ones are kept, those between are a weighted mean of both."""
    original, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    scaled = frequency.clone()
    for i, f in enumerate(frequency.tolist()):
        turns = original * f / (2 * math.pi)  # full turns within the original context
        if turns < low:
            scaled[i] = f / factor
        elif turns <= high:
            share = (turns - low) / (high - low)
            scaled[i] = share * f + (1 - share) * f / factor
    return scaled


def longrope_radius(rope: dict, max_position_embeddings: int) -> float:
    """The factor of all rotations: the given one, or sqrt(1 + ln(stretch) / ln(original)) for a stretched context."""
    original = rope["original_max_position_embeddings"]
    stretch = rope.get("factor") or max_position_embeddings / original
    radius = rope.get("attention_factor")
    if radius is not None:
        return radius
    return math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0


def yarn_frequencies(frequency: torch.Tensor, rope: dict, rotated: int) -> tuple[torch.Tensor, float]:
    """Frequencies between kept and divided by the factor, by a ramp over the pairs; and the factor of all rotations."""
    factor, original = rope["factor"], rope["original_max_position_embeddings"]

    def pair(turns: float) -> float:  # the pair that makes so many turns within the original context
        return rotated * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope["rope_theta"]))

    low, high = pair(rope.get("beta_fast") or 32), pair(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotated - 1)
    ramp = [min(max((j - low) / ((high - low) or 0.001), 0.0), 1.0) for j in range(rotated // 2)]
    slowed = torch.tensor(ramp, dtype=torch.float64)
    radius = rope.get("attention_factor")
    if radius is None:
        scales = [0.1 * (rope.get(name) or 0) * math.log(factor) + 1 for name in ("mscale", "mscale_all_dim")]
        both = rope.get("mscale") and rope.get("mscale_all_dim")
        radius = scales[0] / scales[1] if both else 0.1 * math.log(factor) + 1
    return frequency * (1 - slowed) + frequency / factor * slowed, radius


def rotary(config: PretrainedConfig, head_dim: int, length: int, rope: dict | None = None) -> torch.Tensor:
    """The rotations as complex numbers, (length, 1, rotated pairs): r exp(i position frequency).

    rope: one of a family's several settings; None: the config's own.
    """
    rope = config.rope_parameters if rope is None else rope
    kind = rope["rope_type"]
    rotated = int(head_dim * (rope.get("partial_rotary_factor") or 1.0))
    j = torch.arange(0, rotated, 2, dtype=torch.float64)
    frequency = torch.exp(-math.log(rope["rope_theta"]) * j / rotated)
    radius = 1.0
    if kind == "linear":
        frequency = frequency / rope["factor"]
    elif kind == "llama3":
        frequency = llama3_frequencies(frequency, rope)
    elif kind == "longrope":
        factors = rope["long_factor"] if length > rope["original_max_position_embeddings"] else rope["short_factor"]
        frequency = frequency / torch.tensor(factors, dtype=torch.float64)
        radius = longrope_radius(rope, config.max_position_embeddings)
    elif kind == "yarn":
        frequency, radius = yarn_frequencies(frequency, rope, rotated)
    elif kind not in ("default", "dynamic"):  # dynamic begins behind the longest text
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
    "gelu_new": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
}


def layer_window(config: PretrainedConfig, layer: int) -> int | None:
    """Number of positions that a layer attends to, its own included; None means all (modeling_*.py)."""
    if config.model_type in ("mistral", "phi3"):
        return config.sliding_window
    if config.model_type in ("qwen2", "qwen3") and config.layer_types[layer] == "sliding_attention":
        return config.sliding_window
    return None


@dataclass(frozen=True)
class Block:
    """One block of the model: its place, its weights, and where its steps go."""

    config: PretrainedConfig
    index: int
    weight: Weight  # by names inside the block, such as "mlp.up_proj.weight"
    record: Record  # by names inside the block, such as "mlp.up"


def block_of(config: PretrainedConfig, index: int, weight: Weight, record: Record) -> Block:
    """Block ``index`` of the model whose weights and steps have the names of the file and of the trace."""
    return Block(
        config,
        index,
        lambda name: weight(f"model.layers.{index}.{name}"),
        lambda name, value: record(f"blocks.{index}.{name}", value),
    )


def linear(x: torch.Tensor, weight: Weight, name: str) -> torch.Tensor:
    """x W^T + b, without b where the file has none."""
    y = x @ weight(f"{name}.weight").T
    bias = weight(f"{name}.bias")
    return y if bias is None else y + bias


def head_sizes(config: PretrainedConfig) -> tuple[int, int, int]:
    """Number of query heads, number of key/value heads, size of a head: H, K, d."""
    heads = config.num_attention_heads
    d = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads, getattr(config, "num_key_value_heads", None) or heads, d


def queries_keys_values(x: torch.Tensor, block: Block) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(T, D) -> queries (T, H, d), keys and values (T, K, d), before the rotation; qwen3 norms queries and keys."""
    config, weight = block.config, block.weight
    heads, kv_heads, d = head_sizes(config)
    if config.model_type == "phi3":
        qkv = linear(x, weight, "self_attn.qkv_proj")
        q, k, v = qkv.split([heads * d, kv_heads * d, kv_heads * d], dim=-1)
    else:
        q, k, v = (linear(x, weight, f"self_attn.{name}_proj") for name in "qkv")
    q, k, v = (a.view(len(x), -1, d) for a in (q, k, v))
    if config.model_type == "qwen3":
        q = rms_norm(q, weight("self_attn.q_norm.weight"), config.rms_norm_eps)
        k = rms_norm(k, weight("self_attn.k_norm.weight"), config.rms_norm_eps)
    return q, k, v


def hidden_positions(length: int, window: int | None) -> torch.Tensor:
    """(T, T) booleans: True where position t (row) must not attend to position s (column)."""
    age = torch.arange(length)[:, None] - torch.arange(length)[None, :]  # how long before t position s was
    return (age < 0) if window is None else (age < 0) | (age >= window)


def attention(x: torch.Tensor, turn: torch.Tensor, block: Block) -> torch.Tensor:
    """softmax(q k^T / sqrt(d) + mask) v W_o^T of the normed input; (T, D) -> (T, D)."""
    q, k, v = queries_keys_values(x, block)
    for name, value in (("q", q), ("k", k), ("v", v)):
        block.record(f"attn.{name}", value)
    z = gather(rotate(q, turn), rotate(k, turn), v, layer_window(block.config, block.index), block)
    out = linear(z, block.weight, "self_attn.o_proj")
    block.record("attn.out", out)
    return out


def gather(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None, block: Block,
    scale: float | None = None, cap: float | None = None,
) -> torch.Tensor:  # fmt: skip
    """softmax(q k^T scale + mask) v of rotated queries and keys; q (T, H, d), k and v (T, K, d) -> (T, H d).

    scale: 1 / sqrt(d) where it is None. cap: scores s become cap tanh(s / cap).
    """
    block.record("attn.rot_q", q)
    block.record("attn.rot_k", k)

    # Every query head gets its own copy of the keys: head h asks key head h // (H / K).
    group = q.shape[1] // k.shape[1]
    k, v = (a.repeat_interleave(group, dim=1) for a in (k, v))
    scores = torch.einsum("thd,shd->hts", q, k)
    scores = scores / math.sqrt(q.shape[-1]) if scale is None else scores * scale
    scores = scores if cap is None else torch.tanh(scores / cap) * cap
    block.record("attn.scores", scores)
    hidden = hidden_positions(len(q), window)
    pattern = torch.softmax(scores.masked_fill(hidden, -math.inf), dim=-1)
    block.record("attn.pattern", pattern)
    z = torch.einsum("hts,shd->thd", pattern, v)
    block.record("attn.z", z)
    return z.reshape(len(z), -1)


def ffn(x: torch.Tensor, block: Block) -> torch.Tensor:
    """(act(x W_gate^T) * (x W_up^T)) W_down^T of the normed input; (T, D) -> (T, D)."""
    if block.config.model_type == "phi3":
        gate_pre, up = linear(x, block.weight, "mlp.gate_up_proj").chunk(2, dim=-1)
    else:
        gate_pre, up = (linear(x, block.weight, f"mlp.{name}_proj") for name in ("gate", "up"))
    gate = ACTIVATIONS[block.config.hidden_act](gate_pre)
    mid = gate * up
    out = linear(mid, block.weight, "mlp.down_proj")
    for name, value in (("gate_pre", gate_pre), ("gate", gate), ("up", up), ("mid", mid), ("out", out)):
        block.record(f"mlp.{name}", value)
    return out


def run_block(h: torch.Tensor, turn: torch.Tensor, block: Block) -> torch.Tensor:
    """h + attention(norm(h)), then the same with the FFN, on the residual stream h; (T, D) -> (T, D)."""
    eps = block.config.rms_norm_eps
    block.record("resid_pre", h)
    x = rms_norm(h, block.weight("input_layernorm.weight"), eps)
    block.record("attn.norm", x)
    h = h + attention(x, turn, block)
    block.record("resid_mid", h)
    x = rms_norm(h, block.weight("post_attention_layernorm.weight"), eps)
    block.record("mlp.norm", x)
    h = h + ffn(x, block)
    block.record("resid_post", h)
    return h


@torch.no_grad()
def torch64(config: PretrainedConfig, weight: Weight, ids: list[int], record: Record) -> None:
    """Run one text through the model in float64; ``record(name, value)`` gets every step in execution order.

    config: a transformers config of llama, mistral, qwen2, qwen3 or phi3 (others: torch_families.py). weight: from
    names in the file to tensors.
    """
    turn = rotary(config, head_sizes(config)[-1], len(ids))
    embedding, head = weight("model.embed_tokens.weight"), weight("lm_head.weight")
    if config.tie_word_embeddings:  # one matrix for both; a file may hold it under either name
        embedding = head = head if embedding is None else embedding

    h = embedding[torch.tensor(ids)]
    record("embed", h)
    for i in range(config.num_hidden_layers):
        h = run_block(h, turn, block_of(config, i, weight, record))
    h = rms_norm(h, weight("model.norm.weight"), config.rms_norm_eps)
    record("final_norm", h)
    record("logits", h @ head.T)
