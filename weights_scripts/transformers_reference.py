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

IN_A_BLOCK = """resid_pre attn.norm attn.q attn.k attn.v attn.rot_q attn.rot_k attn.pattern attn.z attn.out
    attn.out_norm resid_mid mlp.norm mlp.gate_pre mlp.gate mlp.up mlp.mid mlp.out mlp.out_norm resid_post""".split()
BEFORE, AFTER = ("embed", "project_in", "embed_positions"), ("final_norm", "project_out", "logits")


class Recorder:
    """The steps of a pass by name, and the hooks that put them there."""

    def __init__(self):
        self.steps: Steps = {}
        self.handles: list = []

    def keep(self, name: str, value: torch.Tensor, head_size: int | None = None) -> None:
        """Keep a copy of a value from a batch of one; with ``head_size``, (T, heads * d) becomes (T, heads, d)."""
        value = value if value.ndim == 2 else value[0]  # OPT's FFN works on (T, D), without the batch
        value = value if head_size is None else value.reshape(len(value), -1, head_size)
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

    def heads(self, module: torch.nn.Module, name: str, head_size: int) -> None:
        """Keep queries, keys or values: (1, T, heads d), or of a norm per head (1, T, heads, d) or (1, heads, T, d)."""

        def keep(output: torch.Tensor) -> None:
            turned = output.ndim == 4 and output.transpose(1, 2).is_contiguous()  # gemma3 norms (1, heads, T, d)
            output = output.transpose(1, 2) if turned and output.shape[2] != 1 else output
            self.keep(name, output.reshape(*output.shape[:2], -1) if output.ndim == 4 else output, head_size)

        self.after(module, keep)

    def input(self, module: torch.nn.Module, name: str, head_size: int | None = None) -> None:
        """Keep the hidden states that go into the module as step ``name``."""
        self.before(module, lambda x: self.keep(name, x, head_size))

    def remove_hooks(self) -> None:
        """Leave the model as it was."""
        for handle in self.handles:
            handle.remove()


def first(module: torch.nn.Module, *names: str) -> torch.nn.Module | None:
    """The first of a module's parts that is there: families call the same part by different names."""
    return next((part for name in names if (part := getattr(module, name, None)) is not None), None)


def hook_attention(recorder: Recorder, attn: torch.nn.Module, step: str) -> None:
    """The steps of one layer's attention, but for the rotated queries and keys; ``step`` begins their names."""
    config, d = attn.config, getattr(attn, "head_dim", None) or attn.head_size
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads

    def keep_fused(output):
        if hasattr(attn, "query_key_value"):  # for each head q, k and v
            parts = output.view(*output.shape[:-1], heads, 3 * d).chunk(3, dim=-1)
            parts = [part.reshape(*output.shape[:-1], -1) for part in parts]
        else:
            parts = output.split([heads * d, kv_heads * d, kv_heads * d], dim=-1)
        for name, part in zip("qkv", parts, strict=True):
            recorder.keep(f"{step}.{name}", part, d)

    def keep_result(output):
        recorder.keep(f"{step}.pattern", output[1])
        recorder.keep(f"{step}.out", output[0])

    if (fused := first(attn, "qkv_proj", "query_key_value")) is not None:
        recorder.after(fused, keep_fused)
    else:
        for name in "qkv":  # where queries and keys are normed (qwen3, olmo2, gemma3), the norm's output is the step
            recorder.heads(first(attn, f"{name}_norm", f"{name}_proj"), f"{step}.{name}", d)
    recorder.input(fused or attn.q_proj, f"{step}.norm")
    recorder.input(first(attn, "o_proj", "out_proj", "dense"), f"{step}.z", d)
    recorder.after(attn, keep_result)


def hook_mlp(recorder: Recorder, mlp: torch.nn.Module, step: str) -> None:
    """The steps of one layer's FFN; ``step`` begins their names. OPT's is no module of its own: mlp is the layer."""

    def keep_fused(output):
        gate_pre, up = output.chunk(2, dim=-1)
        recorder.keep(f"{step}.gate_pre", gate_pre)
        recorder.keep(f"{step}.up", up)

    start = first(mlp, "gate_up_proj", "gate_proj", "fc1", "dense_h_to_4h")
    if hasattr(mlp, "gate_up_proj"):
        recorder.after(start, keep_fused)
    else:
        recorder.output(start, f"{step}.gate_pre")
        if hasattr(mlp, "up_proj"):
            recorder.output(mlp.up_proj, f"{step}.up")
    recorder.input(start, f"{step}.norm")
    recorder.output(first(mlp, "act_fn", "activation_fn", "act"), f"{step}.gate")
    down = first(mlp, "down_proj", "fc2", "dense_4h_to_h")
    recorder.input(down, f"{step}.mid")
    recorder.output(down, f"{step}.out")


def hook_middle(recorder: Recorder, layer: torch.nn.Module, step: str) -> None:
    """The stream between attention and the FFN, and what stands around it; nothing where both are side by side."""
    if hasattr(layer, "post_feedforward_layernorm"):  # gemma2, gemma3, olmo2
        recorder.output(layer.post_attention_layernorm, f"{step}.attn.out_norm")
        recorder.output(layer.post_feedforward_layernorm, f"{step}.mlp.out_norm")
        recorder.input(first(layer, "pre_feedforward_layernorm", "mlp"), f"{step}.resid_mid")
    elif hasattr(layer, "self_attn_layer_norm"):  # OPT
        if layer.do_layer_norm_before:
            recorder.input(layer.final_layer_norm, f"{step}.resid_mid")
        else:
            recorder.output(layer.self_attn_layer_norm, f"{step}.resid_mid")
    elif hasattr(layer, "post_attention_layernorm") and not getattr(layer, "use_parallel_residual", False):
        recorder.input(layer.post_attention_layernorm, f"{step}.resid_mid")


def hook_model(recorder: Recorder, model: transformers.PreTrainedModel) -> None:
    """Every step that a module exposes, from the embedding to the final norm."""
    body = getattr(model, model.base_model_prefix)
    body = getattr(body, "decoder", body)
    if model.config.model_type == "granite":  # it scales the embedding outside the module
        recorder.input(body.layers[0], "embed")
    else:
        recorder.output(first(body, "embed_tokens", "embed_in"), "embed")
    for i, layer in enumerate(body.layers):
        step = f"blocks.{i}"
        recorder.input(layer, f"{step}.resid_pre")
        hook_attention(recorder, first(layer, "self_attn", "attention"), f"{step}.attn")
        hook_middle(recorder, layer, step)
        hook_mlp(recorder, first(layer, "mlp") or layer, f"{step}.mlp")
        recorder.output(layer, f"{step}.resid_post")
    if hasattr(body, "embed_positions"):
        recorder.input(body.layers[0], "embed_positions")
    if getattr(body, "project_in", None) is not None:
        recorder.output(body.project_in, "project_in")
        recorder.output(body.project_out, "project_out")
    if (last := first(body, "norm", "final_layernorm", "final_layer_norm")) is not None:
        recorder.output(last, "final_norm")


@contextmanager
def rotations_recorded(recorder: Recorder, model: transformers.PreTrainedModel) -> Iterator[None]:
    """Record the rotated queries and keys: they pass through no module.

    The function that makes them is called once per layer; it is replaced until the block ends.
    """
    modeling, config = sys.modules[type(model).__module__], model.config
    if not hasattr(modeling, "apply_rotary_pos_emb"):  # OPT has learned positions
        yield
        return
    turned = getattr(config, "no_rope_layers", None) or [1] * config.num_hidden_layers
    rotate_both, calls = modeling.apply_rotary_pos_emb, iter([i for i, turns in enumerate(turned) if turns])
    d = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    def recorded(*args, **kwargs):
        i, rotated = next(calls), rotate_both(*args, **kwargs)
        for name, value in zip(("rot_q", "rot_k"), rotated, strict=True):
            if value.shape[-1] == d:  # phi and stablelm give it only the part that turns
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
    return {name: recorder.steps[name] for name in (*BEFORE, *order, *AFTER) if name in recorder.steps}


def load_transformers(folder: str | Path) -> transformers.PreTrainedModel:
    """The published implementation in float32 with eager attention."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    return model.eval()
