"""The published implementation of transformers in float32, with a hook at each module: the reference for float32.

Attention is eager. The scores before the mask are not exposed.
"""

import sys
from pathlib import Path

import torch
import transformers
from torch_reference import Steps


@torch.no_grad()
def run_transformers(model, ids: list[int]) -> Steps:
    """Every step that the modules of a transformers model (eager attention) expose, in execution order."""
    config, found = model.config, {}
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    d = model.model.layers[0].self_attn.head_dim

    def keep(name, value, size=None):  # batches of one; (T, heads * d) -> (T, heads, d)
        found[name] = (value[0] if size is None else value[0].reshape(len(ids), -1, size)).numpy().copy()

    handles = []

    def after(module, action):  # action(output)
        handles.append(module.register_forward_hook(lambda m, args, output: action(output)))

    def before(module, action):  # action(the hidden states that go in)
        handles.append(
            module.register_forward_pre_hook(
                lambda m, args, kwargs: action(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
            )
        )

    def keep_fused_qkv(step, output):
        sizes = [heads * d, kv_heads * d, kv_heads * d]
        for name, part in zip("qkv", output.split(sizes, dim=-1), strict=True):
            keep(f"{step}.attn.{name}", part, d)

    def keep_fused_gate_up(step, output):
        gate_pre, up = output.chunk(2, dim=-1)
        keep(f"{step}.mlp.gate_pre", gate_pre)
        keep(f"{step}.mlp.up", up)

    def keep_attention(step, output):
        keep(f"{step}.attn.pattern", output[1])
        keep(f"{step}.attn.out", output[0])

    after(model.model.embed_tokens, lambda y: keep("embed", y))
    for i, layer in enumerate(model.model.layers):
        step, attn, mlp = f"blocks.{i}", layer.self_attn, layer.mlp
        before(layer, lambda x, s=step: keep(f"{s}.resid_pre", x))
        after(layer.input_layernorm, lambda y, s=step: keep(f"{s}.attn.norm", y))
        if hasattr(attn, "qkv_proj"):
            after(attn.qkv_proj, lambda y, s=step: keep_fused_qkv(s, y))
        else:
            for n in "qkv":  # where queries and keys are normed per head (qwen3), the norm's output is the step
                module = getattr(attn, f"{n}_norm", None) or getattr(attn, f"{n}_proj")
                after(module, lambda y, s=step, n=n: keep(f"{s}.attn.{n}", y, d))
        before(attn.o_proj, lambda x, s=step: keep(f"{s}.attn.z", x, d))
        after(attn, lambda y, s=step: keep_attention(s, y))
        before(layer.post_attention_layernorm, lambda x, s=step: keep(f"{s}.resid_mid", x))
        after(layer.post_attention_layernorm, lambda y, s=step: keep(f"{s}.mlp.norm", y))
        if hasattr(mlp, "gate_up_proj"):
            after(mlp.gate_up_proj, lambda y, s=step: keep_fused_gate_up(s, y))
        else:
            after(mlp.gate_proj, lambda y, s=step: keep(f"{s}.mlp.gate_pre", y))
            after(mlp.up_proj, lambda y, s=step: keep(f"{s}.mlp.up", y))
        act = mlp.act_fn if hasattr(mlp, "act_fn") else mlp.activation_fn
        after(act, lambda y, s=step: keep(f"{s}.mlp.gate", y))
        before(mlp.down_proj, lambda x, s=step: keep(f"{s}.mlp.mid", x))
        after(mlp.down_proj, lambda y, s=step: keep(f"{s}.mlp.out", y))
        after(layer, lambda y, s=step: keep(f"{s}.resid_post", y))
    after(model.model.norm, lambda y: keep("final_norm", y))

    # The rotated queries and keys pass through no module; the function that makes them is called once per layer.
    modeling = sys.modules[type(model).__module__]
    rotate_both, calls = modeling.apply_rotary_pos_emb, iter(range(config.num_hidden_layers))

    def recorded(*args, **kwargs):
        i, rotated = next(calls), rotate_both(*args, **kwargs)
        for name, value in zip(("rot_q", "rot_k"), rotated, strict=True):
            found[f"blocks.{i}.attn.{name}"] = value[0].transpose(0, 1).numpy().copy()
        return rotated

    modeling.apply_rotary_pos_emb = recorded
    try:
        keep("logits", model(torch.tensor([ids]), use_cache=False).logits)
    finally:
        modeling.apply_rotary_pos_emb = rotate_both
        for handle in handles:
            handle.remove()

    inside = """resid_pre attn.norm attn.q attn.k attn.v attn.rot_q attn.rot_k attn.pattern attn.z attn.out resid_mid
        mlp.norm mlp.gate_pre mlp.gate mlp.up mlp.mid mlp.out resid_post""".split()
    order = [f"blocks.{i}.{name}" for i in range(config.num_hidden_layers) for name in inside]
    return {name: found[name] for name in ("embed", *order, "final_norm", "logits")}


def load_transformers(folder: str | Path):
    """The published implementation in float32 with eager attention."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    return model.eval()
