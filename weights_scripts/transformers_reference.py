"""The published implementation of transformers in float32, with a hook at each module: the reference for float32.

Attention is eager. The scores before the mask are not exposed.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from torch_reference import Steps

IN_A_BLOCK = """resid_pre attn.norm attn.q attn.k attn.v attn.rot_q attn.rot_k attn.pattern attn.z attn.out resid_mid
    mlp.norm mlp.gate_pre mlp.gate mlp.up mlp.mid mlp.out resid_post""".split()


class Recorder:
    """The steps of a pass by name, and the hooks that put them there."""

    def __init__(self):
        self.steps: Steps = {}
        self.handles: list = []

    def keep(self, name: str, value: torch.Tensor, head_size: int | None = None) -> None:
        """Keep a copy of a value from a batch of one; with ``head_size``, (T, heads * d) becomes (T, heads, d)."""
        value = value[0] if head_size is None else value[0].reshape(value.shape[1], -1, head_size)
        self.steps[name] = value.numpy().copy()

    def after(self, module: torch.nn.Module, action: Callable) -> None:
        """Call action(output) whenever the module has run."""
        self.handles.append(module.register_forward_hook(lambda m, args, output: action(output)))

    def before(self, module: torch.nn.Module, action: Callable) -> None:
        """Call action(the hidden states that go in) whenever the module is about to run."""
        self.handles.append(
            module.register_forward_pre_hook(
                lambda m, args, kwargs: action(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
            )
        )

    def output(self, module: torch.nn.Module, name: str, head_size: int | None = None) -> None:
        """Keep what the module gives as step ``name``."""
        self.after(module, lambda y: self.keep(name, y, head_size))

    def input(self, module: torch.nn.Module, name: str, head_size: int | None = None) -> None:
        """Keep the hidden states that go into the module as step ``name``."""
        self.before(module, lambda x: self.keep(name, x, head_size))

    def remove_hooks(self) -> None:
        """Leave the model as it was."""
        for handle in self.handles:
            handle.remove()


def hook_attention(recorder: Recorder, attn: torch.nn.Module, step: str) -> None:
    """The steps of one layer's attention, but for the rotated queries and keys; ``step`` begins their names."""
    config, d = attn.config, attn.head_dim
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads

    def keep_fused(output):
        sizes = [heads * d, kv_heads * d, kv_heads * d]
        for name, part in zip("qkv", output.split(sizes, dim=-1), strict=True):
            recorder.keep(f"{step}.{name}", part, d)

    def keep_result(output):
        recorder.keep(f"{step}.pattern", output[1])
        recorder.keep(f"{step}.out", output[0])

    if hasattr(attn, "qkv_proj"):
        recorder.after(attn.qkv_proj, keep_fused)
    else:
        for name in "qkv":  # where queries and keys are normed per head (qwen3), the norm's output is the step
            recorder.output(getattr(attn, f"{name}_norm", None) or getattr(attn, f"{name}_proj"), f"{step}.{name}", d)
    recorder.input(attn.o_proj, f"{step}.z", d)
    recorder.after(attn, keep_result)


def hook_mlp(recorder: Recorder, mlp: torch.nn.Module, step: str) -> None:
    """The steps of one layer's FFN; ``step`` begins their names."""

    def keep_fused(output):
        gate_pre, up = output.chunk(2, dim=-1)
        recorder.keep(f"{step}.gate_pre", gate_pre)
        recorder.keep(f"{step}.up", up)

    if hasattr(mlp, "gate_up_proj"):
        recorder.after(mlp.gate_up_proj, keep_fused)
    else:
        recorder.output(mlp.gate_proj, f"{step}.gate_pre")
        recorder.output(mlp.up_proj, f"{step}.up")
    recorder.output(mlp.act_fn if hasattr(mlp, "act_fn") else mlp.activation_fn, f"{step}.gate")
    recorder.input(mlp.down_proj, f"{step}.mid")
    recorder.output(mlp.down_proj, f"{step}.out")


def hook_model(recorder: Recorder, model: transformers.PreTrainedModel) -> None:
    """Every step that a module exposes, from the embedding to the final norm."""
    recorder.output(model.model.embed_tokens, "embed")
    for i, layer in enumerate(model.model.layers):
        step = f"blocks.{i}"
        recorder.input(layer, f"{step}.resid_pre")
        recorder.output(layer.input_layernorm, f"{step}.attn.norm")
        hook_attention(recorder, layer.self_attn, f"{step}.attn")
        recorder.input(layer.post_attention_layernorm, f"{step}.resid_mid")
        recorder.output(layer.post_attention_layernorm, f"{step}.mlp.norm")
        hook_mlp(recorder, layer.mlp, f"{step}.mlp")
        recorder.output(layer, f"{step}.resid_post")
    recorder.output(model.model.norm, "final_norm")


@contextmanager
def rotations_recorded(recorder: Recorder, model: transformers.PreTrainedModel) -> Iterator[None]:
    """Record the rotated queries and keys: they pass through no module.

    The function that makes them is called once per layer; it is replaced until the block ends.
    """
    modeling = sys.modules[type(model).__module__]
    rotate_both, calls = modeling.apply_rotary_pos_emb, iter(range(model.config.num_hidden_layers))

    def recorded(*args, **kwargs):
        i, rotated = next(calls), rotate_both(*args, **kwargs)
        for name, value in zip(("rot_q", "rot_k"), rotated, strict=True):
            recorder.keep(f"blocks.{i}.attn.{name}", value.transpose(1, 2))
        return rotated

    modeling.apply_rotary_pos_emb = recorded
    try:
        yield
    finally:
        modeling.apply_rotary_pos_emb = rotate_both


@torch.no_grad()
def run_transformers(model: transformers.PreTrainedModel, ids: list[int]) -> Steps:
    """Every step that the modules of a transformers model (eager attention) expose, in execution order."""
    recorder = Recorder()
    hook_model(recorder, model)
    try:
        with rotations_recorded(recorder, model):
            recorder.keep("logits", model(torch.tensor([ids]), use_cache=False).logits)
    finally:
        recorder.remove_hooks()
    order = [f"blocks.{i}.{name}" for i in range(model.config.num_hidden_layers) for name in IN_A_BLOCK]
    return {name: recorder.steps[name] for name in ("embed", *order, "final_norm", "logits")}


def load_transformers(folder: str | Path) -> transformers.PreTrainedModel:
    """The published implementation in float32 with eager attention."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    return model.eval()
