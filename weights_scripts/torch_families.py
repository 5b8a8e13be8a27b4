"""The same for the families whose blocks are not those of a Llama: a forward pass in plain torch, in float64.

    granite, smollm3, olmo2, gemma, gemma2, gemma3_text     RMSNorm, gated
    stablelm                                                LayerNorm, gated
    opt, phi, gpt_neox                                      LayerNorm, no gate

It shares no code with minillm, and only attention's sums and the rotations with torch_reference.py. Each family's facts
are read off its modeling_*.py in transformers. Shapes have the letters T positions, D hidden, H query heads, K
key/value heads, d head size.
"""

import torch
from torch_reference import (
    ACTIVATIONS,
    Block,
    Record,
    Steps,
    Weight,
    gather,
    head_sizes,
    linear,
    rotary,
    rotate,
    torch64,
)
from transformers import PretrainedConfig

LLAMAS = ("llama", "mistral", "qwen2", "qwen3", "phi3")
LAYERS = {"opt": "model.decoder.layers", "gpt_neox": "gpt_neox.layers"}
OUTPUTS = {"opt": "self_attn.out_proj", "phi": "self_attn.dense", "gpt_neox": "attention.dense"}
FFNS = {"opt": ("fc1", "fc2"), "phi": ("mlp.fc1", "mlp.fc2"),
        "gpt_neox": ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")}  # fmt: skip
NORMS = {  # of a block: in front of attention, in front of the FFN
    "opt": ("self_attn_layer_norm", "final_layer_norm"), "phi": ("input_layernorm", "input_layernorm"),
    "gemma2": ("input_layernorm", "pre_feedforward_layernorm"),
    "gemma3_text": ("input_layernorm", "pre_feedforward_layernorm"),
}  # fmt: skip


def norm(x: torch.Tensor, config: PretrainedConfig, weight: Weight, name: str) -> torch.Tensor:
    """The family's norm over the last axis: LayerNorm, RMSNorm, or RMSNorm with the factor 1 + w (Gemma)."""
    w = weight(f"{name}.weight")
    if config.model_type in ("opt", "phi", "gpt_neox", "stablelm"):
        eps = getattr(config, "layer_norm_eps", 1e-5)  # OPT takes torch's own
        return torch.nn.functional.layer_norm(x, x.shape[-1:], w, weight(f"{name}.bias"), eps)
    root_mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1] + config.rms_norm_eps
    return x * root_mean_square.rsqrt() * (w + 1 if config.model_type.startswith("gemma") else w)


def queries_keys_values(x: torch.Tensor, block: Block) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(T, D) -> queries (T, H, d), keys and values (T, K, d); olmo2 norms all heads at once, gemma3 each by itself."""
    config, weight = block.config, block.weight
    d = head_sizes(config)[2]
    if config.model_type == "gpt_neox":  # for each head q, k and v, one behind the other
        return linear(x, weight, "attention.query_key_value").view(len(x), -1, 3 * d).split(d, dim=-1)
    q, k, v = (linear(x, weight, f"self_attn.{name}_proj") for name in "qkv")
    if config.model_type == "olmo2":
        q, k = norm(q, config, weight, "self_attn.q_norm"), norm(k, config, weight, "self_attn.k_norm")
    q, k, v = (a.view(len(x), -1, d) for a in (q, k, v))
    if config.model_type == "gemma3_text":
        q, k = norm(q, config, weight, "self_attn.q_norm"), norm(k, config, weight, "self_attn.k_norm")
    return q, k, v


def attention(x: torch.Tensor, turn: torch.Tensor | None, block: Block) -> torch.Tensor:
    """Attention of one block; turn None: queries and keys know no position.  (T, D) -> (T, D)."""
    config, family = block.config, block.config.model_type
    q, k, v = queries_keys_values(x, block)
    for name, value in (("q", q), ("k", k), ("v", v)):
        block.record(f"attn.{name}", value)
    if turn is not None:
        q, k = rotate(q, turn), rotate(k, turn)
    scale = cap = None
    if family == "granite":
        scale = config.attention_multiplier
    if family in ("gemma2", "gemma3_text"):
        scale = config.query_pre_attn_scalar**-0.5
        cap = config.attn_logit_softcapping if family == "gemma2" else None
    kinds = getattr(config, "layer_types", None)
    window = config.sliding_window if kinds and kinds[block.index] == "sliding_attention" else None
    out = linear(gather(q, k, v, window, block, scale, cap), block.weight, OUTPUTS.get(family, "self_attn.o_proj"))
    block.record("attn.out", out)
    return out


def ffn(x: torch.Tensor, block: Block) -> torch.Tensor:
    """act(x W_1^T) W_2^T, or the gated form.  (T, D) -> (T, D)."""
    config, values = block.config, {}
    names = [getattr(config, name, None) for name in ("activation_function", "hidden_activation", "hidden_act")]
    act = ACTIVATIONS[next(name for name in names if name)]
    first, last = FFNS.get(config.model_type, ("mlp.gate_proj", "mlp.down_proj"))
    values["gate_pre"] = linear(x, block.weight, first)
    values["gate"] = values["mid"] = act(values["gate_pre"])
    if config.model_type not in FFNS:
        values["up"] = linear(x, block.weight, "mlp.up_proj")
        values["mid"] = values["gate"] * values["up"]
    values["out"] = linear(values["mid"], block.weight, last)
    for name in ("gate_pre", "gate", "up", "mid", "out"):
        if name in values:
            block.record(f"mlp.{name}", values[name])
    return values["out"]


def run_block(h: torch.Tensor, turn: torch.Tensor | None, block: Block) -> torch.Tensor:
    """One block on the residual stream h, wired as its family is.  (T, D) -> (T, D)."""
    config, family = block.config, block.config.model_type
    before, between = NORMS.get(family, ("input_layernorm", "post_attention_layernorm"))
    if family == "stablelm" and config.use_parallel_residual:
        between = before
    side_by_side = family == "phi" or getattr(config, "use_parallel_residual", False)
    behind_sums = family == "opt" and not config.do_layer_norm_before  # OPT-350m
    un_normed = behind_sums or family == "olmo2"
    four_norms = family in ("gemma2", "gemma3_text")
    factor = config.residual_multiplier if family == "granite" else 1.0

    def normed(x: torch.Tensor, name: str) -> torch.Tensor:
        return norm(x, config, block.weight, name)

    def part(step: str, value: torch.Tensor, name: str) -> torch.Tensor:  # olmo2, gemma2, gemma3: a norm behind it
        if family == "olmo2" or four_norms:
            value = normed(value, name)
            block.record(f"{step}.out_norm", value)
        return factor * value

    block.record("resid_pre", h)
    x = first = h.clone() if un_normed else normed(h, before)  # a copy: each step has a gradient of its own
    block.record("attn.norm", x)
    a = part("attn", attention(x, turn, block), "post_attention_layernorm")
    if not side_by_side:
        h = h + a
        h = normed(h, before) if behind_sums else h
        block.record("resid_mid", h)
    x = h.clone() if un_normed else first.clone() if between == before else normed(h, between)
    block.record("mlp.norm", x)
    y = part("mlp", ffn(x, block), "post_feedforward_layernorm")
    h = h + y + (a if side_by_side else 0)
    h = normed(h, between) if behind_sums else h
    block.record("resid_post", h)
    return h


def rotations(config: PretrainedConfig, length: int) -> list[torch.Tensor | None]:
    """For each layer its rotations, None where positions turn nothing."""
    layers, d = config.num_hidden_layers, head_sizes(config)[2]
    if config.model_type == "opt":
        return [None] * layers
    if config.model_type == "gemma3_text":
        return [rotary(config, d, length, config.rope_parameters[kind]) for kind in config.layer_types]
    turned = config.no_rope_layers if config.model_type == "smollm3" else [1] * layers
    turn = rotary(config, d, length)
    return [turn if turned[i] else None for i in range(layers)]


def embed(config: PretrainedConfig, weight: Weight, ids: list[int], record: Record) -> torch.Tensor:
    """What goes into the first block.  -> (T, D)."""
    names = {"opt": "model.decoder.embed_tokens.weight", "gpt_neox": "gpt_neox.embed_in.weight"}
    h = weight(names.get(config.model_type, "model.embed_tokens.weight"))[torch.tensor(ids)]
    if config.model_type.startswith("gemma"):
        h = h * config.hidden_size**0.5
    if config.model_type == "granite":
        h = h * config.embedding_multiplier
    record("embed", h)
    if config.model_type == "opt":
        if (project := weight("model.decoder.project_in.weight")) is not None:
            h = h @ project.T
            record("project_in", h)
        h = h + weight("model.decoder.embed_positions.weight")[2 : 2 + len(ids)]
        record("embed_positions", h)
    return h


def head(config: PretrainedConfig, weight: Weight, h: torch.Tensor, record: Record) -> None:
    """The last norm and the logits."""
    family = config.model_type
    last = {"opt": "model.decoder.final_layer_norm", "phi": "model.final_layernorm",
            "gpt_neox": "gpt_neox.final_layer_norm"}.get(family, "model.norm")  # fmt: skip
    if weight(f"{last}.weight") is not None:
        h = norm(h, config, weight, last)
        record("final_norm", h)
    if (project := weight("model.decoder.project_out.weight")) is not None:
        h = h @ project.T
        record("project_out", h)
    names = {"opt": "model.decoder.embed_tokens", "gpt_neox": "gpt_neox.embed_in"}
    tied = names.get(family, "model.embed_tokens")
    own = "embed_out" if family == "gpt_neox" else "lm_head"
    logits = linear(h, weight, tied if config.tie_word_embeddings else own)
    if family == "granite":
        logits = logits / config.logits_scaling
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    record("logits", logits)


@torch.no_grad()
def families64(config: PretrainedConfig, weight: Weight, ids: list[int], record: Record) -> None:
    """Run one text through the model in float64; ``record(name, value)`` gets every step in execution order."""
    layers = LAYERS.get(config.model_type, "model.layers")
    h = embed(config, weight, ids, record)
    for i, turn in enumerate(rotations(config, len(ids))):
        block = Block(config, i, lambda name, i=i: weight(f"{layers}.{i}.{name}"),
                      lambda name, value, i=i: record(f"blocks.{i}.{name}", value))  # fmt: skip
        h = run_block(h, turn, block)
    head(config, weight, h, record)


def run_torch64(config: PretrainedConfig, weight: Weight, ids: list[int]) -> Steps:
    """Every step of the float64 pass as arrays, for every family."""
    steps: Steps = {}
    run = torch64 if config.model_type in LLAMAS else families64
    run(config, weight, ids, lambda name, value: steps.update({name: value.numpy()}))
    return steps
