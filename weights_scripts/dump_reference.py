"""Record what PyTorch computes at every step, by minillm's step names, for comparisons and as goldens.

    python weights_scripts/dump_reference.py MODEL_FOLDER --prompt "Once upon a time" -o theirs.npz
    minillm trace --model MODEL_FOLDER --prompt "Once upon a time" --dtype float64 -o ours.npz
    minillm compare ours.npz theirs.npz

Two engines:

    torch64       a forward pass written out in plain torch, in float64 (torch_reference.py): the reference for a
                  float64 model. It shares no mathematics with minillm. Where an equation has two forms, it uses the one
                  that minillm does not use. (torch_families.py: families that are wired otherwise than a Llama.)
    transformers  the published implementation, loaded as float32 with eager attention, with a hook at each module
                  (transformers_reference.py): the reference for a float32 model. It does not expose the scores
                  before the mask.

(transformers cannot be the float64 reference: it computes norms, softmax and rotary tables in float32 at any dtype.)

    python weights_scripts/dump_reference.py --goldens tests/goldens

writes the goldens again: tiny random models of all families, their weights, and every step in float64.

Needs torch and transformers:  pip install ".[parity]"
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from torch_families import run_torch64
from torch_reference import folder_weights
from transformers_reference import load_transformers, run_transformers

from minillm.errors import MinillmError
from minillm.files import read_text, whole_file

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
# The other families, smaller still. A window of 5, partial rotations, two rotations, a layer without one, tied heads.
SMALL = {"vocab_size": 24, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2,
         "pad_token_id": 0}  # fmt: skip
OPT = {key: value for key, value in SMALL.items() if key not in ("intermediate_size", "num_key_value_heads")}
GOLDENS |= {
    "opt": {"model_type": "opt", **OPT, "ffn_dim": 12, "word_embed_proj_dim": 8},
    "opt_350m": {"model_type": "opt", **OPT, "ffn_dim": 12, "word_embed_proj_dim": 6, "do_layer_norm_before": False},
    "phi": {"model_type": "phi", **SMALL},
    "gpt_neox": {"model_type": "gpt_neox", **SMALL, "num_key_value_heads": 2, "rotary_pct": 0.5},
    "stablelm_parallel": {"model_type": "stablelm", **SMALL, "use_parallel_residual": True, "use_qkv_bias": True,
                          "partial_rotary_factor": 0.5},
    "granite": {"model_type": "granite", **SMALL, "embedding_multiplier": 12.0, "logits_scaling": 8.0,
                "residual_multiplier": 0.22, "attention_multiplier": 0.2},
    "smollm3": {"model_type": "smollm3", **SMALL, "no_rope_layers": [0, 1], "rope_theta": 2e6},
    "olmo2": {"model_type": "olmo2", **SMALL},
    "gemma": {"model_type": "gemma", **SMALL, "head_dim": 6},
    "gemma2": {"model_type": "gemma2", **SMALL, "head_dim": 6, "sliding_window": 5, "query_pre_attn_scalar": 9,
               "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma3_text": {"model_type": "gemma3_text", **SMALL, "head_dim": 6, "sliding_window": 5,
                    "layer_types": ["sliding_attention", "full_attention"]},
    "qwen3_yarn": {"model_type": "qwen3", **SMALL, "head_dim": 8, "rope_theta": 100.0, "rope_scaling": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "beta_fast": 2.0,
        "beta_slow": 0.2}},
}  # fmt: skip
GOLDEN_TOKENS = 13


def random_state(model, seed: int, std: float = 0.3) -> dict[str, np.ndarray]:
    """Random weights, large enough that every mistake is visible: normal with ``std``, norms around 1; by file name."""
    rng, state = np.random.default_rng(seed), {}
    tied = model.config.tie_word_embeddings
    for name, value in model.state_dict().items():
        if not (tied and name == "lm_head.weight"):
            gemma = model.config.model_type.startswith("gemma")  # there a weight w of a norm stands for 1 + w
            center = 1.0 if "norm" in name and name.endswith(".weight") and not gemma else 0.0
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
        if config.model_type == "gpt_neox":  # transformers calls its head otherwise in memory than in the file
            for held in (state, tensors):
                held["embed_out.weight"] = held.pop("lm_head.weight")
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
        try:
            ids = encode(args.folder, args.prompt if args.text is None else read_text(args.text))
        except MinillmError as problem:
            parser.error(f"--text {problem} (the text itself is given by --prompt)")
    if not 0 < len(ids) <= config.max_position_embeddings:  # both engines keep scores of that size squared, per head
        parser.error(f"the text has {len(ids)} tokens, expected 1 to {config.max_position_embeddings}")
    if args.engine == "transformers":
        steps = run_transformers(load_transformers(args.folder), ids)
    else:
        steps = run_torch64(config, folder_weights(args.folder), ids)
    with whole_file(args.output, MinillmError) as beside, open(beside, "wb") as file:
        np.savez(file, **steps)
    print(f"{args.output}: {len(steps)} steps of {len(ids)} tokens", file=sys.stderr)


if __name__ == "__main__":
    main()
