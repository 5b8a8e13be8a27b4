"""config.json: the sizes and switches of a model, checked once, when they are read.

A Hugging Face model folder says what it is in `config.json`. Two generations are in use, and both are read:

    transformers 4:  "rope_theta": 1e4, "rope_scaling": {"type" | "rope_type": ...} | null, "torch_dtype"
    transformers 5:  "rope_parameters": {"rope_theta": 1e4, "rope_type": ...}, "dtype", "layer_types": [...]

Where a field is absent we take the default of the family's class in transformers 5 (configuration_*.py): the authors
of a file without that field relied on it. The five sizes of the weights have no default here.

Differs from transformers: what this package does not implement (another family, another RoPE scaling or
activation, quantised weights), and what cannot be (True where a number belongs, heads that do not divide, a key
that stands twice, an eps that float32 rounds to 0), is refused in one sentence, never ignored. Fields unknown to us
that do not change the sums (dropout, cache switches, `auto_map`: code is never imported) are ignored; a field that
would add or remove a tensor is caught by checkpoint.py, which wants the exact set of names.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..fields import Fields, file_in, read_json
from ..foreign import other_weights
from ..steps import step_names
from .families import FAMILIES, NORMS_OF, file_name
from .family_fields import biases, own_fields, sliding_windows
from .rope_config import RopeConfig

# Classes of transformers that are read: a model with its head, and one without (its head must be tied, or be there).
_BODIES = """Llama Mistral Qwen2 Qwen3 Phi3 Granite SmolLM3 StableLm Olmo2 Gemma Gemma2 Gemma3Text OPT Phi GPTNeoX"""
CLASSES = ("ForCausalLM", *(f"{name}Model" for name in _BODIES.split()))

HIDDEN_ACTS = {name: name for name in ("silu", "relu", "relu2", "gelu", "gelu_pytorch_tanh")}
HIDDEN_ACTS |= {"swish": "silu", "gelu_new": "gelu_pytorch_tanh"}  # other names of the same functions


@dataclass(frozen=True)
class ModelConfig:
    """The sizes and switches of one model, all checked; build it with from_folder or from_dict."""

    model_type: str
    vocab_size: int  # V
    hidden_size: int  # D
    intermediate_size: int  # F
    num_hidden_layers: int  # L
    num_attention_heads: int  # H
    num_key_value_heads: int  # K, a divisor of H
    head_dim: int  # d
    max_position_embeddings: int
    rms_norm_eps: float
    hidden_act: str
    tie_word_embeddings: bool  # the output head is the embedding matrix
    rope: RopeConfig
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool  # RMSNorm on every query and key head before RoPE (qwen3)
    sliding_windows: tuple[int | None, ...]  # one per layer; None: the layer attends to everything before it
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    # Where a family is not a Llama. The values below are those of a Llama.
    wiring: str = "pre_norm"  # how attention and FFN are wired: a function of transformer/blocks.py
    norm: str = "rms"  # "rms", "rms_from_one" (a weight w stands for 1 + w) or "layer" (LayerNorm, with a bias)
    final_norm: bool = True  # whether a norm stands in front of the head
    gated: bool = True  # whether the FFN has an up matrix
    qk_norm_whole: bool = False  # the norms of queries and keys are over all heads at once
    attention_scale: float | None = None  # of the scores; None: 1 / sqrt(d)
    attention_cap: float | None = None  # scores s become cap tanh(s / cap)
    other_rope: RopeConfig | None = None  # of the layers that other_rope_layers names
    other_rope_layers: tuple[int, ...] = ()
    embedding_size: int | None = None  # the width of the embedding where it is not D
    learned_positions: bool = False  # a table of positions is added to the embedding
    embedding_scale: float = 1.0  # what the embedding is multiplied with
    residual_scale: float = 1.0  # what attention and FFN are multiplied with before they are added
    head_bias: bool = False
    logit_divisor: float = 1.0
    logit_cap: float | None = None  # logits z become cap tanh(z / cap)

    @property
    def ropes(self) -> tuple[RopeConfig, ...]:
        """The rotations of the model: ``rope``, and ``other_rope`` where there is one."""
        return (self.rope,) if self.other_rope is None else (self.rope, self.other_rope)

    def step_names(self) -> list[str]:
        """The names of a dense forward pass of this model, in execution order (steps.py)."""
        normed = self.wiring in ("sandwich", "norm_after")
        left_out = {
            "mlp.up": not self.gated, "resid_mid": self.wiring.startswith("parallel"), "final_norm": not self.final_norm
        }  # fmt: skip
        added = {
            "attn.out_norm": normed, "mlp.out_norm": normed, "embed_positions": self.learned_positions,
            "project_in": self.embedding_size is not None, "project_out": self.embedding_size is not None,
        }  # fmt: skip
        differences = ([name for name, differs in names.items() if differs] for names in (left_out, added))
        return step_names(self.num_hidden_layers, *differences)

    @classmethod
    def from_folder(cls, folder: str | Path) -> "ModelConfig":
        """Read folder/config.json, and the EOS ids of generation_config.json where it has some. Raises ConfigError.

        (Where both name EOS ids, transformers' generate() stops at those of generation_config.json.)
        """
        path = Path(folder) / "config.json"
        if not os.path.lexists(path) and (other := other_weights(Path(folder))):
            raise ConfigError(f"{path}: is missing, expected a file; the folder {other}")
        path = file_in(folder, path.name, ConfigError)
        config = cls.from_dict(read_json(path, ConfigError), str(path))
        if os.path.lexists(Path(folder) / "generation_config.json"):
            path = file_in(folder, "generation_config.json", ConfigError)
            generation = Fields(read_json(path, ConfigError), str(path))
            if eos := generation.token_ids("eos_token_id", config.vocab_size):
                return replace(config, eos_token_ids=eos)
        return config

    @classmethod
    def from_dict(cls, fields: dict[str, Any], source: str = "config.json") -> "ModelConfig":
        """Check the fields of a config.json of either generation; source names the file in errors (ConfigError)."""
        family = Fields(fields, source).choice("model_type", FAMILIES)
        default = FAMILIES[family]
        read = Fields(fields, source, names=default.fields)
        _refuse(read)

        vocab_size = read.integer("vocab_size", 2**21)
        hidden_size = read.integer("hidden_size", 2**16)
        layers = read.integer("num_hidden_layers", 1024)
        heads = read.integer("num_attention_heads", 4096)
        kv_heads = heads
        if family not in ("opt", "gpt_neox"):
            kv_heads = read.integer_or_null("num_key_value_heads", 4096, default.num_key_value_heads) or heads
        if heads % kv_heads:
            raise read.error("num_key_value_heads", f"a divisor of num_attention_heads ({heads})", kv_heads)
        head_dim = read.integer_or_null("head_dim", 2**12) or default.head_dim
        if head_dim is not None and family in ("opt", "gpt_neox", "stablelm") and head_dim * heads != hidden_size:
            raise read.error("head_dim", f"hidden_size / num_attention_heads ({hidden_size} / {heads})")
        if head_dim is None:
            if hidden_size % heads:
                raise read.error("hidden_size", f"a multiple of num_attention_heads ({heads}), as head_dim is absent")
            head_dim = hidden_size // heads
        max_positions = read.integer("max_position_embeddings", 2**31 - 1, default.max_position_embeddings)

        # An id that is absent takes the family's default, unless the vocabulary ends before it.
        bos, eos = (
            None if token is None or token >= vocab_size else token
            for token in (default.bos_token_id, default.eos_token_id)
        )
        if type(fields.get("bos_token_id")) is list:
            raise read.error("bos_token_id", "one integer or null")
        windows = sliding_windows(read, family, layers, max_positions)
        return cls(
            family, vocab_size, hidden_size, read.integer("intermediate_size", 2**20), layers,
            heads, kv_heads, head_dim, max_positions,
            # float32 would round a smaller eps to 0, and the norm of a row of zeros would be 0 / 0
            rms_norm_eps=read.number("rms_norm_eps", 1.0, default.rms_norm_eps, low=1e-30),
            hidden_act=HIDDEN_ACTS[read.choice("hidden_act", HIDDEN_ACTS, default.hidden_act)],
            tie_word_embeddings=read.boolean("tie_word_embeddings", default.tie_word_embeddings),
            sliding_windows=windows,
            bos_token_id=next(iter(read.token_ids("bos_token_id", vocab_size, bos)), None),
            eos_token_ids=read.token_ids("eos_token_id", vocab_size, eos),
            **biases(read, family),
            **own_fields(read, family, layers, head_dim, max_positions),
        )  # fmt: skip

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Llama's name -> shape of every weight of this model; matrices are (out, in).

        A tied head is not listed: it is the embedding.
        """
        D, E = self.hidden_size, self.embedding_size or self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, E)}
        if self.learned_positions:  # the first two rows belong to no position (modeling_opt.py)
            shapes["model.embed_positions.weight"] = (self.max_position_embeddings + 2, D)
        if E != D:
            shapes |= {"model.project_in.weight": (D, E), "model.project_out.weight": (E, D)}
        layer = self._layer_shapes()
        for i in range(self.num_hidden_layers):
            shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
        for kind in self._norm_parts() if self.final_norm else ():
            shapes[f"model.norm.{kind}"] = (D,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, E)
        return shapes | ({"lm_head.bias": (self.vocab_size,)} if self.head_bias else {})

    def _norm_parts(self) -> tuple[str, ...]:
        return ("weight", "bias") if self.norm == "layer" else ("weight",)

    def _layer_shapes(self) -> dict[str, tuple[int, ...]]:
        """The weights of one layer, by their names behind "model.layers.0."."""
        D, F = self.hidden_size, self.intermediate_size
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        layer: dict[str, tuple[int, ...]] = {}
        for norm in NORMS_OF[self.wiring]:
            layer |= {f"{norm}.{kind}": (D,) for kind in self._norm_parts()}
        if self.qk_norm:
            whole = self.qk_norm_whole
            layer["self_attn.q_norm.weight"] = (q if whole else self.head_dim,)
            layer["self_attn.k_norm.weight"] = (kv if whole else self.head_dim,)
        up: dict[str, tuple[int, ...]] = {"mlp.up_proj": (F, D)} if self.gated else {}
        qkv: dict[str, tuple[int, ...]]
        qkv = {"self_attn.q_proj": (q, D), "self_attn.k_proj": (kv, D), "self_attn.v_proj": (kv, D)}
        for matrices, bias in (
            (qkv, self.qkv_bias),
            ({"self_attn.o_proj": (D, q)}, self.o_bias),
            ({"mlp.gate_proj": (F, D), **up, "mlp.down_proj": (D, F)}, self.mlp_bias),
        ):
            for name, shape in matrices.items():
                layer[f"{name}.weight"] = shape
                if bias:
                    layer[f"{name}.bias"] = shape[:1]
        return layer

    def file_name(self, name: str) -> str:
        """What a file of this model calls the tensor of this name of Llama's; several may be rows of one matrix."""
        return file_name(self.model_type, name)

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor that a file of this model holds; weights are (out, in).

        Phi-3 fuses q, k, v into one matrix and gate, up into another. A tied head is not listed: it is the embedding.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        for name, (rows, *columns) in self.weight_shapes().items():
            stored = self.file_name(name)
            above = shapes.get(stored, (0,))[0]
            shapes[stored] = (above + rows, *columns)
        return shapes


def _refuse(read: Fields) -> None:
    """Raise ConfigError for what no family of this package has: quantised weights, another head, split sums."""
    fields = read.fields
    if fields.get("quantization_config") not in (None, {}):
        raise read.error("quantization_config", "no quantised weights")
    if (read.integer_or_null("pretraining_tp", 4096, 1) or 1) > 1:
        read.note("pretraining_tp", "is above 1, which splits sums and leaves them the same: it is not looked at")
    classes = fields.get("architectures") or []
    if type(classes) is not list or not all(str(name).endswith(CLASSES) for name in classes):
        raise read.error("architectures", "a list of ...ForCausalLM, as other heads are not implemented")
