"""Record what PyTorch computes at every step, by minillm's step names, for comparisons and as goldens.

    python weights_scripts/dump_reference.py MODEL_FOLDER --prompt "Once upon a time" -o theirs.npz
    minillm trace --model MODEL_FOLDER --prompt "Once upon a time" -o ours.npz
    minillm compare ours.npz theirs.npz

Two engines:

    torch64       a forward pass written out below in plain torch, in float64: the reference for a float64 model.
                  It shares no code with minillm. Where an equation has two forms, it uses the one that minillm
                  does not use.
    transformers  the published implementation, loaded as float32 with eager attention, with a hook at each module:
                  the reference for a float32 model. It does not expose the scores before the mask.

(transformers cannot be the float64 reference: it computes norms, softmax and rotary tables in float32 at any dtype.)

    python weights_scripts/dump_reference.py --goldens tests/goldens

writes the goldens again: tiny random models of all families, their weights, and every step in float64.

Needs torch and transformers:  pip install ".[parity]"
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors import safe_open

Weight = Callable[[str], torch.Tensor | None]
Steps = dict[str, np.ndarray]


# ---- engine torch64: the forward pass in plain torch -----------------------------------------------------------------


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


# ---- engine transformers: hooks on the published implementation ------------------------------------------------------


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


# ---- the goldens -----------------------------------------------------------------------------------------------------

# Config files of both generations, as small as shows every feature: 13 positions are more than any window and than any
# original context but one (phi3_short), heads are grouped, a head is not hidden_size / heads where the family allows.
SIZES = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
LONGROPE = {"short_factor": [1.0, 1.2], "long_factor": [1.5, 4.0]}
GOLDENS = {
    "llama": {"model_type": "llama", **SIZES, "rms_norm_eps": 1e-5, "rope_theta": 10000.0},
    "llama_linear_biases_tied": {
        "model_type": "llama", **SIZES, "rms_norm_eps": 1e-5, "rope_theta": 1000.0, "head_dim": 6,
        "rope_scaling": {"type": "linear", "factor": 4.0}, "attention_bias": True, "mlp_bias": True,
        "tie_word_embeddings": True, "hidden_act": "gelu"},
    "llama_llama3": {
        "model_type": "llama", **SIZES, "num_key_value_heads": 1, "head_dim": 8, "rms_norm_eps": 1e-5,
        # Of the four frequencies, one is kept, one blended, two slowed down.
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 0.35,
                            "high_freq_factor": 1.2, "original_max_position_embeddings": 8}},
    "mistral_window": {
        "model_type": "mistral", **SIZES, "head_dim": 6, "sliding_window": 5, "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "qwen2_one_window_tied": {
        "model_type": "qwen2", **SIZES, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1,
        "rope_theta": 1e6, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", **SIZES, "head_dim": 6, "rope_theta": 1e6, "tie_word_embeddings": True},
    "phi3_partial_window": {
        "model_type": "phi3", **SIZES, "partial_rotary_factor": 0.5, "sliding_window": 6, "pad_token_id": 0,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "original_max_position_embeddings": 32},
    "phi3_long": {
        "model_type": "phi3", **SIZES, "pad_token_id": 0, "rms_norm_eps": 1e-5, "original_max_position_embeddings": 8,
        "rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 8,
                            **LONGROPE}},
    "phi3_short": {
        "model_type": "phi3", **SIZES, "pad_token_id": 0, "rms_norm_eps": 1e-5, "original_max_position_embeddings": 16,
        "rope_theta": 10000.0, "rope_scaling": {"type": "longrope", **LONGROPE}},
}  # fmt: skip
GOLDEN_TOKENS = 13


def random_state(model, seed: int, std: float = 0.3) -> dict[str, np.ndarray]:
    """Random weights, large enough that every mistake is visible: normal with ``std``, norms around 1; by file name."""
    rng, state = np.random.default_rng(seed), {}
    tied = model.config.tie_word_embeddings
    for name, value in model.state_dict().items():
        if not (tied and name == "lm_head.weight"):
            center = 1.0 if "norm" in name else 0.0
            state[name] = (center + std * rng.standard_normal(tuple(value.shape))).astype(np.float32)
    return state


def write_goldens(folder: Path) -> None:
    """Write one .npz per config, with ids, weights (float32) and every step (float64), and a manifest of versions.

    Before a golden is written, transformers (float32) must agree with it to 1e-5: two witnesses, not one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cases = {}
    for seed, (name, fields) in enumerate(GOLDENS.items()):
        config = transformers.AutoConfig.for_model(**json.loads(json.dumps(fields)))
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
        state = random_state(model, seed)
        tensors = {key: torch.from_numpy(value) for key, value in state.items()}
        model.load_state_dict(tensors, strict=False)
        ids = np.random.default_rng(100 + seed).integers(0, config.vocab_size, GOLDEN_TOKENS)
        steps = run_torch64(config, lambda key, t=tensors: t[key].double() if key in t else None, ids.tolist())
        for step, value in run_transformers(model, ids.tolist()).items():
            error = np.abs(value - steps[step]).max() / np.abs(steps[step]).max()
            if error > 1e-5:
                raise SystemExit(f"{name}: transformers and the reference differ by {error:.1e} at {step}")
        arrays = {f"weight:{key}": value for key, value in state.items()}
        arrays |= {f"step:{key}": value for key, value in steps.items()}
        np.savez_compressed(folder / f"{name}.npz", ids=ids, **arrays)
        cases[name] = {"config": fields, "seed": seed}
    made_by = {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__}
    manifest = {"generator": "python weights_scripts/dump_reference.py --goldens tests/goldens", "made_by": made_by,
                "weights": "normal(0, 0.3), norms around 1, numpy.random.default_rng(seed), float32",
                "steps": "float64, plain torch", "cases": cases}  # fmt: skip
    text = json.dumps(manifest, indent=1) + "\n"
    (folder / "manifest.json").write_text(text, encoding="utf-8", newline="\n")


# ---- command line ----------------------------------------------------------------------------------------------------


def encode(folder: Path, text: str) -> list[int]:
    """The ids of a text as minillm encodes it: BOS in front where the tokenizer adds one, no EOS, and special tokens
    inside the text as plain characters."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    plain, full = (tokenizer.encode(text, add_special_tokens=added).ids for added in (False, True))
    before = next(i for i in range(len(full) + 1) if full[i : i + len(plain)] == plain)
    return full[: before + len(plain)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="a Hugging Face model folder (config.json, safetensors)")
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--prompt", "-p", help="the text itself")
    text.add_argument("--text", type=Path, metavar="FILE", help="a file of text in UTF-8")
    text.add_argument("--ids", help="token ids, separated by commas or spaces; nothing is added to them")
    parser.add_argument("-o", "--output", type=Path, help="the .npz file to write")
    parser.add_argument("--engine", choices=("torch64", "transformers"), default="torch64")
    parser.add_argument("--goldens", type=Path, metavar="FOLDER", help="write the goldens of the tests again, and stop")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    if args.goldens:
        write_goldens(args.goldens)
        return
    if not args.folder or not args.output or (args.prompt, args.text, args.ids) == (None, None, None):
        parser.error("expected MODEL_FOLDER, one of --prompt, --text, --ids, and -o FILE")
    if not (args.folder / "config.json").is_file():
        parser.error(f"{args.folder} holds no config.json, expected a Hugging Face model folder")
    config = transformers.AutoConfig.from_pretrained(args.folder, local_files_only=True)
    if args.ids is not None:
        ids = [int(i) for i in args.ids.replace(",", " ").split()]
    else:
        ids = encode(args.folder, args.prompt if args.text is None else args.text.read_text(encoding="utf-8"))
    if not 0 < len(ids) <= config.max_position_embeddings:  # both engines keep scores of that size squared, per head
        parser.error(f"the text has {len(ids)} tokens, expected 1 to {config.max_position_embeddings}")
    if args.engine == "transformers":
        steps = run_transformers(load_transformers(args.folder), ids)
    else:
        steps = run_torch64(config, folder_weights(args.folder), ids)
    partial = args.output.with_name(args.output.name + ".partial")
    with open(partial, "wb") as file:
        np.savez(file, **steps)
    os.replace(partial, args.output)
    print(f"{args.output}: {len(steps)} steps of {len(ids)} tokens", file=sys.stderr)


if __name__ == "__main__":
    main()
