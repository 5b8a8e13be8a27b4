"""The families of models that are read: what each leaves out of its config.json, and how its files name things.

A family is named by ``model_type``. Where a field of config.json is absent, we take the default of the family's class
in transformers 5 (configuration_*.py): the authors of a file without that field relied on it.

Inside minillm all families have Llama's names. A field or a tensor that means the same is read under Llama's name, and
written under the file's:

    opt: ffn_dim                                          ->  intermediate_size
    opt: model.decoder.layers.0.fc1.weight                ->  model.layers.0.mlp.gate_proj.weight
    phi: model.layers.0.self_attn.dense.weight            ->  model.layers.0.self_attn.o_proj.weight

A feed-forward network without a gate (opt, phi, gpt_neox) is a gated one whose up is 1, so its first matrix is
``gate_proj`` and there is no ``up_proj``. Some files keep several matrices in one: phi3 stores the rows of q, k and v
one below the other; gpt_neox stores the rows of q, k and v of the first head, then those of the second, and so on.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

NOTHING: Mapping[str, str] = MappingProxyType({})


class Family(NamedTuple):
    """What transformers 5 assumes where a field is absent, and the names of a family's files.

    None: derived from other fields, or off. fields {Llama's name: the file's} of config.json, names {a part of Llama's
    tensor name: that of the file}. Several parts with one name in the file: one matrix holds their rows.
    """

    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    sliding_window: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    tie_word_embeddings: bool = False
    hidden_act: str = "silu"
    rope_theta: float = 10_000.0
    partial_rotary_factor: float | None = None  # None: whole heads turn, whatever the file says
    fields: Mapping[str, str] = NOTHING
    names: Mapping[str, str] = NOTHING


_PHI3 = {f"self_attn.{part}_proj": "self_attn.qkv_proj" for part in "qkv"}
_PHI3 |= {f"mlp.{part}_proj": "mlp.gate_up_proj" for part in ("gate", "up")}
_OPT = {
    "model.embed_tokens": "model.decoder.embed_tokens", "model.embed_positions": "model.decoder.embed_positions",
    "model.project_in": "model.decoder.project_in", "model.project_out": "model.decoder.project_out",
    "model.norm": "model.decoder.final_layer_norm", "model.layers": "model.decoder.layers",
    "input_layernorm": "self_attn_layer_norm", "post_attention_layernorm": "final_layer_norm",
    "self_attn.o_proj": "self_attn.out_proj", "mlp.gate_proj": "fc1", "mlp.down_proj": "fc2",
}  # fmt: skip
_PHI = {"model.norm": "model.final_layernorm", "self_attn.o_proj": "self_attn.dense", "mlp.gate_proj": "mlp.fc1",
        "mlp.down_proj": "mlp.fc2"}  # fmt: skip
_NEOX = {f"self_attn.{part}_proj": "attention.query_key_value" for part in "qkv"} | {
    "model.embed_tokens": "gpt_neox.embed_in", "model.layers": "gpt_neox.layers",
    "model.norm": "gpt_neox.final_layer_norm", "lm_head": "embed_out", "self_attn.o_proj": "attention.dense",
    "mlp.gate_proj": "mlp.dense_h_to_4h", "mlp.down_proj": "mlp.dense_4h_to_h",
}  # fmt: skip
_LAYER_NORM = {"rms_norm_eps": "layer_norm_eps"}
_GEMMA2 = {"hidden_act": "hidden_activation"}
_NEOX_FIELDS = {**_LAYER_NORM, "rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
_OPT_FIELDS = {"intermediate_size": "ffn_dim", "hidden_act": "activation_function"}

FAMILIES = {  # model_type -> what holds for it
    "llama": Family(),
    "mistral": Family(8, None, 131072, sliding_window=4096),
    "qwen2": Family(32, None, 32768, sliding_window=4096, bos_token_id=None, eos_token_id=None),
    "qwen3": Family(32, 128, 32768, sliding_window=4096, bos_token_id=None, eos_token_id=None),
    "phi3": Family(max_position_embeddings=4096, rms_norm_eps=1e-5, eos_token_id=32000, partial_rotary_factor=1.0,
                   names=_PHI3),
    "granite": Family(),
    "smollm3": Family(4, None, 32768, bos_token_id=128000, eos_token_id=128001, tie_word_embeddings=True,
                      rope_theta=2e6),
    "stablelm": Family(32, None, 4096, 1e-5, bos_token_id=0, eos_token_id=0, partial_rotary_factor=0.25,
                       fields=_LAYER_NORM),
    "olmo2": Family(rms_norm_eps=1e-5, bos_token_id=None, eos_token_id=50279),
    "gemma": Family(16, 256, 8192, bos_token_id=2, eos_token_id=1, tie_word_embeddings=True,
                    hidden_act="gelu_pytorch_tanh"),
    "gemma2": Family(4, 256, 8192, sliding_window=4096, bos_token_id=2, eos_token_id=1, tie_word_embeddings=True,
                     hidden_act="gelu_pytorch_tanh", fields=_GEMMA2),
    "gemma3_text": Family(4, 256, 131072, sliding_window=4096, bos_token_id=2, eos_token_id=1,
                          tie_word_embeddings=True, hidden_act="gelu_pytorch_tanh", rope_theta=1e6, fields=_GEMMA2),
    "opt": Family(rms_norm_eps=1e-5, bos_token_id=2, eos_token_id=2, tie_word_embeddings=True, hidden_act="relu",
                  fields=_OPT_FIELDS, names=_OPT),
    "phi": Family(rms_norm_eps=1e-5, hidden_act="gelu_new", partial_rotary_factor=0.5, fields=_LAYER_NORM, names=_PHI),
    "gpt_neox": Family(rms_norm_eps=1e-5, bos_token_id=0, hidden_act="gelu", partial_rotary_factor=0.25,
                       fields=_NEOX_FIELDS, names=_NEOX),
}  # fmt: skip
# Wiring (transformer/blocks.py) -> the norms of one layer, under the names of the families that are wired so.
_LLAMA_NORMS = ("input_layernorm", "post_attention_layernorm")
_AFTER = ("post_attention_layernorm", "post_feedforward_layernorm")
NORMS_OF = {
    "pre_norm": _LLAMA_NORMS,
    "scaled": _LLAMA_NORMS,
    "parallel": _LLAMA_NORMS,
    "parallel_one_norm": ("input_layernorm",),
    "post_norm": _LLAMA_NORMS,
    "norm_after": _AFTER,
    "sandwich": ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", _AFTER[1]),
}
INTERLEAVED = ("gpt_neox",)  # whose q, k and v are stored head by head in one matrix


def file_name(family: str, name: str) -> str:
    """The name in a file of a tensor that Llama would call ``name``.

    >>> file_name("opt", "model.layers.3.mlp.down_proj.bias")
    'model.decoder.layers.3.fc2.bias'
    """
    dotted = f".{name}."
    for ours, theirs in FAMILIES[family].names.items():
        dotted = dotted.replace(f".{ours}.", f".{theirs}.", 1)
    return dotted[1:-1]
