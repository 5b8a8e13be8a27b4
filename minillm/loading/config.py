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

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ConfigError
from ..fields import Fields, brief, file_in, read_json
from ..foreign import other_weights


class Defaults(NamedTuple):
    """What transformers 5 assumes where a field is absent. None: derived from other fields, or off."""

    num_key_value_heads: int | None
    head_dim: int | None
    max_position_embeddings: int
    rms_norm_eps: float
    sliding_window: int | None
    bos_token_id: int | None
    eos_token_id: int | None


FAMILIES = {  # model_type -> the defaults of its class
    "llama": Defaults(None, None, 2048, 1e-6, None, 1, 2),
    "mistral": Defaults(8, None, 131072, 1e-6, 4096, 1, 2),
    "qwen2": Defaults(32, None, 32768, 1e-6, 4096, None, None),
    "qwen3": Defaults(32, 128, 32768, 1e-6, 4096, None, None),
    "phi3": Defaults(None, None, 4096, 1e-5, None, 1, 32000),
}

# Classes of transformers that are read: a model with its head, and one without (its head must be tied, or be there).
CLASSES = ("ForCausalLM", "LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model", "Phi3Model")

HIDDEN_ACTS = {name: name for name in ("silu", "relu", "relu2", "gelu", "gelu_pytorch_tanh")} | {"swish": "silu"}

# rope_type -> the keys it reads. Any other key is refused: it would belong to a scaling that is not this one.
ROPE_TYPES: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "longrope": {"factor", "short_factor", "long_factor", "attention_factor", "original_max_position_embeddings"},
}
# Beside these: what every type takes or leaves alone, and factors that multiply by 1.
_ANY_ROPE_TYPE = {"rope_theta", "partial_rotary_factor", "original_max_position_embeddings"}
_ONE_CHANGES_NOTHING = {"factor", "attention_factor"}


@dataclass(frozen=True)
class RopeConfig:
    """How positions turn the queries and keys; transformer/rope.py holds the equations."""

    rope_type: str  # a key of ROPE_TYPES
    theta: float  # the base of the frequencies theta ** (-2 i / rotary_dim)
    rotary_dim: int  # how many of the head's d entries turn: all of them, or fewer with a partial_rotary_factor
    factor: float = 1.0  # linear, llama3: how far the context was stretched; longrope: only inside attention_factor
    low_freq_factor: float | None = None  # llama3
    high_freq_factor: float | None = None  # llama3
    original_max_position_embeddings: int | None = None  # llama3, longrope: the context before it was stretched
    short_factor: tuple[float, ...] = ()  # longrope: one divisor per frequency, up to the original context
    long_factor: tuple[float, ...] = ()  # longrope: the same beyond it
    attention_factor: float = 1.0  # longrope: multiplies cos and sin


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
        read = Fields(fields, source)
        family = read.choice("model_type", FAMILIES)
        default = FAMILIES[family]
        if fields.get("quantization_config") not in (None, {}):
            raise read.error("quantization_config", "no quantised weights")
        if (read.integer_or_null("pretraining_tp", 4096, 1) or 1) > 1:
            read.note("pretraining_tp", "is above 1, which splits sums and leaves them the same: it is not looked at")
        classes = fields.get("architectures") or []
        if type(classes) is not list or not all(str(name).endswith(CLASSES) for name in classes):
            raise read.error("architectures", "a list of ...ForCausalLM, as other heads are not implemented")

        vocab_size = read.integer("vocab_size", 2**21)
        hidden_size = read.integer("hidden_size", 2**16)
        layers = read.integer("num_hidden_layers", 1024)
        heads = read.integer("num_attention_heads", 4096)
        kv_heads = read.integer_or_null("num_key_value_heads", 4096, default.num_key_value_heads) or heads
        if heads % kv_heads:
            raise read.error("num_key_value_heads", f"a divisor of num_attention_heads ({heads})", kv_heads)
        head_dim = read.integer_or_null("head_dim", 2**12) or default.head_dim
        if head_dim is None:
            if hidden_size % heads:
                raise read.error("hidden_size", f"a multiple of num_attention_heads ({heads}), as head_dim is absent")
            head_dim = hidden_size // heads
        max_positions = read.integer("max_position_embeddings", 2**31 - 1, default.max_position_embeddings)

        # Which projections have a bias is fixed for all families but two (modeling_*.py).
        attention_bias = read.boolean("attention_bias") if family in ("llama", "qwen3") else False
        # An id that is absent takes the family's default, unless the vocabulary ends before it.
        bos, eos = (
            None if token is None or token >= vocab_size else token
            for token in (default.bos_token_id, default.eos_token_id)
        )
        if type(fields.get("bos_token_id")) is list:
            raise read.error("bos_token_id", "one integer or null")
        return cls(
            family, vocab_size, hidden_size, read.integer("intermediate_size", 2**20), layers,
            heads, kv_heads, head_dim, max_positions,
            # float32 would round a smaller eps to 0, and the norm of a row of zeros would be 0 / 0
            rms_norm_eps=read.number("rms_norm_eps", 1.0, default.rms_norm_eps, low=1e-30),
            hidden_act=HIDDEN_ACTS[read.choice("hidden_act", HIDDEN_ACTS, "silu")],
            tie_word_embeddings=read.boolean("tie_word_embeddings"),
            rope=_rope(read, family, head_dim, max_positions),
            qkv_bias=attention_bias or family == "qwen2",
            o_bias=attention_bias,
            mlp_bias=read.boolean("mlp_bias") if family == "llama" else False,
            qk_norm=family == "qwen3",
            sliding_windows=_sliding_windows(read, family, layers, max_positions),
            bos_token_id=next(iter(read.token_ids("bos_token_id", vocab_size, bos)), None),
            eos_token_ids=read.token_ids("eos_token_id", vocab_size, eos),
        )  # fmt: skip

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor that a file of this model holds; weights are (out, in).

        Phi-3 fuses q, k, v into one matrix and gate, up into another. A tied head is not listed: it is the embedding.
        """
        D, F = self.hidden_size, self.intermediate_size
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        qkv: dict[str, tuple[int, ...]]
        gate_up: dict[str, tuple[int, ...]]
        if self.model_type == "phi3":
            qkv, gate_up = {"qkv_proj": (q + 2 * kv, D)}, {"gate_up_proj": (2 * F, D)}
        else:
            qkv = {"q_proj": (q, D), "k_proj": (kv, D), "v_proj": (kv, D)}
            gate_up = {"gate_proj": (F, D), "up_proj": (F, D)}
        layer: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (D,), "post_attention_layernorm.weight": (D,)}
        if self.qk_norm:
            layer |= {"self_attn.q_norm.weight": (self.head_dim,), "self_attn.k_norm.weight": (self.head_dim,)}
        for part, matrices, bias in (
            ("self_attn", qkv, self.qkv_bias),
            ("self_attn", {"o_proj": (D, q)}, self.o_bias),
            ("mlp", {**gate_up, "down_proj": (D, F)}, self.mlp_bias),
        ):
            for name, shape in matrices.items():
                layer[f"{part}.{name}.weight"] = shape
                if bias:
                    layer[f"{part}.{name}.bias"] = shape[:1]
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, D)}
        for i in range(self.num_hidden_layers):
            shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
        shapes["model.norm.weight"] = (D,)
        return shapes if self.tie_word_embeddings else shapes | {"lm_head.weight": (self.vocab_size, D)}


def _rope_fields(read: Fields, family: str) -> tuple[str, Fields]:
    """The kind of RoPE (a key of ROPE_TYPES) and its fields, from either generation (modeling_rope_utils.py).

    They are those of rope_parameters and rope_scaling (mostly only one is there), with what stands beside the objects:
    rope_theta and others. What stands in two places must agree.
    """
    # The first Phi-3 files called longrope "su"; transformers reads "yarn" in a Phi-3 file as longrope, too.
    names = {"su": "longrope", "yarn": "longrope"} if family == "phi3" else {}
    supported = ["default", "longrope"] if family == "phi3" else list(ROPE_TYPES)
    where, merged = "rope_parameters", dict[str, Any]()
    for place in ("rope_parameters", "rope_scaling"):
        inner = read.fields.get(place)
        if inner is not None and not isinstance(inner, dict):
            raise read.error(place, "an object or null")
        if not inner:
            continue
        where = place
        for key, value in inner.items():
            name = "rope_type" if key == "type" else key
            if name == "rope_type" and value is not None:
                value = names.get(value, value) if isinstance(value, str) else value
                if value not in supported or value != merged.get(name, value):
                    raise read.error(f"{where}.rope_type", f"one of {', '.join(supported)}, once", value)
            if value is not None and merged.setdefault(name, value) != value:
                values = Fields(inner, read.source, f"{where}.")
                raise values.error(key, f"the value that stands elsewhere, {brief(merged[name])}")
    kind = merged.pop("rope_type", "default")
    values = Fields(merged, read.source, f"{where}.")
    for name in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings"):
        outer = read.fields.get(name)
        if outer is not None and merged.setdefault(name, outer) != outer:
            raise read.error(name, f"the value inside {where} ({brief(merged[name])})")
    for name, value in merged.items():
        one = name in _ONE_CHANGES_NOTHING and type(value) is not bool and value == 1
        if name not in ROPE_TYPES[kind] | _ANY_ROPE_TYPE and not one:
            raise values.error(name, f"no such key for rope_type {kind}")
    return kind, values


def _rope(read: Fields, family: str, head_dim: int, max_positions: int) -> RopeConfig:
    """How positions turn queries and keys: the kind of RoPE, and the numbers that this kind needs."""
    kind, values = _rope_fields(read, family)
    # The bounds keep every frequency and every angle finite in float32, whatever the position.
    theta = values.number("rope_theta", 1e30, 10_000.0, low=1e-6)
    share = values.number("partial_rotary_factor", 1.0, 1.0)
    if share != 1.0 and family != "phi3":  # modeling_*.py of the other families turns whole heads
        raise values.error("partial_rotary_factor", f"1.0 for the family {family}")
    rotary_dim = int(head_dim * share)
    if rotary_dim % 2 or rotary_dim == 0:
        raise read.error("head_dim", "an even number of rotated entries, as RoPE turns pairs", rotary_dim)
    if kind == "default":
        return RopeConfig(kind, theta, rotary_dim)
    if kind == "linear":
        return RopeConfig(kind, theta, rotary_dim, values.number("factor", 1e6, low=1.0))

    if family == "phi3":
        original = values.integer("original_max_position_embeddings", 2**31 - 1, 4096)
    else:
        original = values.integer("original_max_position_embeddings", 2**31 - 1)
    if kind == "llama3":
        factor = values.number("factor", 1e6, low=1.0)
        low, high = (values.number(name, 1e6, low=1e-6) for name in ("low_freq_factor", "high_freq_factor"))
        if low >= high:
            raise values.error("low_freq_factor", f"less than high_freq_factor ({high})", low)
        return RopeConfig(kind, theta, rotary_dim, factor, low, high, original)

    # longrope (arXiv 2402.13753): transformers takes the stretch from `factor`, else from the two context lengths,
    # and scales attention by sqrt(1 + ln(stretch) / ln(original)) unless the file says otherwise.
    factor = values.number("factor", 1e6, max_positions / original)
    if factor > 1 and original == 1:
        raise values.error("original_max_position_embeddings", "more than 1", original)
    attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    attention = values.number("attention_factor", 1e6, attention, low=1e-6)
    short, long = (values.numbers(name, rotary_dim // 2, 1e-6, 1e6) for name in ("short_factor", "long_factor"))
    return RopeConfig(kind, theta, rotary_dim, factor, None, None, original, short, long, attention)


def _sliding_windows(read: Fields, family: str, layers: int, max_positions: int) -> tuple[int | None, ...]:
    """The window of every layer: mistral and phi3 on all, qwen on the layers that layer_types names, llama on none."""
    first = 0  # the first layer with a window
    if family in ("qwen2", "qwen3") and not read.boolean("use_sliding_window"):
        window = None  # whatever sliding_window says
    else:
        window = read.integer_or_null("sliding_window", 2**31 - 1, FAMILIES[family].sliding_window)
    if family == "llama" and window is not None:
        if window < max_positions:
            raise read.error("sliding_window", "absent or null for the family llama")
        window = None  # it would never hide anything
    if family in ("qwen2", "qwen3") and window is not None:
        first = read.integer("max_window_layers", 2**31 - 1, 28, low=0)
    windows = tuple(window if i >= first else None for i in range(layers))
    kinds = read.fields.get("layer_types")
    if kinds is None:
        return windows
    allowed = ["full_attention"] if window is None else ["full_attention", "sliding_attention"]
    if type(kinds) is not list or len(kinds) != layers or not all(kind in allowed for kind in kinds):
        raise read.error("layer_types", f"{layers} entries, each {' or '.join(allowed)}")
    listed = tuple(window if kind == "sliding_attention" else None for kind in kinds)
    if family not in ("qwen2", "qwen3") and listed != windows:  # transformers would ignore the list here
        raise read.error("layer_types", f"the same kind for every layer of the family {family}")
    return listed
