"""Tiny random models for tests: every family, and a folder with a tokenizer that falls back to single bytes."""

from pathlib import Path

import numpy as np

from minillm.loading.config import ModelConfig
from minillm.loading.save import write_model
from minillm.transformer.model import Llama, random_weights

LLAMA = {
    "model_type": "llama", "vocab_size": 31, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.2], "long_factor": [2.0, 4.0]}
FAMILIES = {  # what each adds to LLAMA: scaled positions, biases, normed heads, windows, a fused file
    "llama": {"rope_scaling": LLAMA3, "attention_bias": True, "mlp_bias": True},
    "mistral": {"model_type": "mistral", "sliding_window": 3},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3"},
    "phi3": {"model_type": "phi3", "rope_scaling": LONGROPE, "original_max_position_embeddings": 4,
             "tie_word_embeddings": True},
}  # fmt: skip
# Families whose blocks are not those of a Llama. "opt_350m" has its norms behind the sums and a narrow embedding.
_WINDOW = {"sliding_window": 3, "head_dim": 4}
OTHERS = {
    "granite": {"model_type": "granite", "embedding_multiplier": 12.0, "logits_scaling": 8.0,
                "residual_multiplier": 0.22, "attention_multiplier": 0.2},
    "smollm3": {"model_type": "smollm3", "no_rope_layers": [0, 1], "tie_word_embeddings": True},
    "olmo2": {"model_type": "olmo2"},
    "gemma": {"model_type": "gemma", "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True},
    "gemma2": {"model_type": "gemma2", **_WINDOW, "query_pre_attn_scalar": 6, "tie_word_embeddings": True},
    "gemma3_text": {"model_type": "gemma3_text", **_WINDOW, "sliding_window_pattern": 2, "tie_word_embeddings": True},
    "stablelm": {"model_type": "stablelm", "head_dim": 2, "use_qkv_bias": True, "partial_rotary_factor": 1.0},
    "gpt_neox": {"model_type": "gpt_neox", "head_dim": 2, "rotary_pct": 1.0, "hidden_act": "gelu"},
    "phi": {"model_type": "phi", "hidden_act": "gelu_new", "head_dim": 4},
    "opt": {"model_type": "opt", "head_dim": 2, "ffn_dim": 12, "activation_function": "relu",
            "tie_word_embeddings": True},
    "opt_350m": {"model_type": "opt", "head_dim": 2, "ffn_dim": 12, "word_embed_proj_dim": 6,
                 "do_layer_norm_before": False, "tie_word_embeddings": True},
}  # fmt: skip
GATED = [name for name in OTHERS if name not in ("gpt_neox", "phi", "opt", "opt_350m")]
STORIES = ["Once upon a time, there was a cat.", "The cat sat on the mat. The end!", "A dog saw the sea.\nIt ran home.",
           "Tom and Ann had a red ball. They ran."]  # fmt: skip


def config(family: str = "llama", **changes) -> ModelConfig:
    """The tiny config of a family, with changes. Without a family's name: a plain llama (no biases, no scaling)."""
    return ModelConfig.from_dict({**LLAMA, **(FAMILIES | OTHERS).get(family, {}), **changes})


def weights(config: ModelConfig, dtype=np.float64, seed: int = 0, std: float = 0.4) -> dict[str, np.ndarray]:
    """Weights ten times larger than the usual initialisation, so that every part of the model has a say."""
    return random_weights(config, np.random.default_rng(seed), dtype, std)


def model(family: str = "plain", dtype=np.float64, seed: int = 0, **changes) -> Llama:
    """A tiny random model without a folder (and so without a tokenizer)."""
    sizes = config(family, **changes)
    return Llama(sizes, weights(sizes, dtype, seed))


def tokenizer_json(pieces: str = "▁abcdefghijklmnopqrstuvwxyz.", bos: bool = True) -> str:
    """A tokenizer as Llama 2 has it: <unk>, <s>, </s>, 256 bytes, then one token per character of ``pieces``.

    Whatever is not among the pieces (capitals, an emoji) is spelt in bytes. "▁t" is merged, as real ones do.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, "▁t"]
    vocab = {name: index for index, name in enumerate(names)}
    raw = Tokenizer(models.BPE(vocab, [("▁", "t")], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    raw.decoder = decoders.Sequence(back)
    raw.add_special_tokens(["<unk>", "<s>", "</s>"])
    if bos:
        raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return raw.to_str()


VOCABULARY = 3 + 256 + 28 + 1  # of tokenizer_json()


def folder(path: Path, seed: int = 0, bos: bool = True, **changes) -> Path:
    """A model folder as Hugging Face lays it out: config.json, model.safetensors (float32), tokenizer.json."""
    fields = {**LLAMA, "vocab_size": VOCABULARY, "max_position_embeddings": 128, **changes}
    path.mkdir(parents=True, exist_ok=True)
    write_model(path, fields, weights(ModelConfig.from_dict(fields), np.float32, seed))
    (path / "tokenizer.json").write_text(tokenizer_json(bos=bos), encoding="utf-8")
    return path


def loaded(path: Path, dtype="float64", **changes) -> Llama:
    """``folder`` written and loaded."""
    return Llama.from_folder(folder(path, **changes), dtype)
