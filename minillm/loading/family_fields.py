"""What a family's config.json says that no Llama's does: its biases, windows, rotations, wiring, scales and caps.

Each function reads the fields of one family, or of a few that are alike, and gives them as fields of ModelConfig. What
is not implemented is refused by name. (Sources: configuration_*.py and modeling_*.py of transformers 5, and the papers
that are named.)
"""

from __future__ import annotations

from typing import Any

from ..fields import Fields
from .families import FAMILIES
from .rope_config import RopeConfig, read_rope


def biases(read: Fields, family: str) -> dict[str, Any]:
    """Which projections have a bias: fixed for most families, a field of the file for the others (modeling_*.py)."""
    if family in ("llama", "granite", "smollm3", "qwen3", "olmo2", "gemma", "gemma2", "gemma3_text"):
        qkv = o = read.boolean("attention_bias")
    elif family == "gpt_neox":
        qkv = o = read.boolean("attention_bias", True)
    elif family == "stablelm":
        qkv, o = read.boolean("use_qkv_bias"), False
    elif family == "opt":
        qkv = o = read.boolean("enable_bias", True)
    else:
        qkv, o = family in ("qwen2", "phi"), family == "phi"
    mlp = family in ("phi", "gpt_neox") or (family == "opt" and qkv)
    if family in ("llama", "granite", "smollm3"):
        mlp = read.boolean("mlp_bias")
    return {"qkv_bias": qkv, "o_bias": o, "mlp_bias": mlp}


def own_fields(read: Fields, family: str, layers: int, head_dim: int, max_positions: int) -> dict[str, Any]:
    """What a family has of its own: rotations, norms, wiring, scales and caps, as fields of ModelConfig."""
    own: dict[str, Any] = {"qk_norm": family in ("qwen3", "olmo2", "gemma3_text")}
    if family == "opt":
        return own | _opt(read)
    if family == "gemma3_text":
        own |= _gemma3_ropes(read, layers, head_dim, max_positions)
    else:
        own["rope"] = read_rope(read, family, head_dim, max_positions)
    if family == "smollm3":
        still = tuple(i for i, turned in enumerate(_turned_layers(read, layers)) if not turned)
        own |= {"other_rope": NO_ROPE, "other_rope_layers": still} if still else {}
    if family in ("phi", "gpt_neox", "stablelm"):
        own |= _parallel(read, family)
    if family == "olmo2":
        own |= {"wiring": "norm_after", "qk_norm_whole": True}
    if family == "granite":
        scales = {name: read.number(name, 1e6, 1.0) for name in ("residual_multiplier", "embedding_multiplier")}
        own |= {"wiring": "scaled", "residual_scale": scales["residual_multiplier"],
                "embedding_scale": scales["embedding_multiplier"],
                "attention_scale": read.number("attention_multiplier", 1e6, 1.0),
                "logit_divisor": read.number("logits_scaling", 1e6, 1.0)}  # fmt: skip
    if family.startswith("gemma"):
        own |= _gemma(read, family)
    return own


NO_ROPE = RopeConfig("default", 1.0, 0)  # turns none of a head's entries


def _opt(read: Fields) -> dict[str, Any]:
    """OPT (arXiv 2205.01068): learned positions, LayerNorm, no gate; 350m has its norms behind the sums."""
    if not read.boolean("layer_norm_elementwise_affine", True):
        raise read.error("layer_norm_elementwise_affine", "true")
    before = read.boolean("do_layer_norm_before", True)
    final = before and not read.boolean("_remove_final_layer_norm")
    width = read.integer_or_null("word_embed_proj_dim", 2**16)
    return {"rope": NO_ROPE, "norm": "layer", "wiring": "pre_norm" if before else "post_norm", "gated": False,
            "learned_positions": True, "final_norm": final,
            "embedding_size": None if width == read.fields.get("hidden_size") else width}  # fmt: skip


def _parallel(read: Fields, family: str) -> dict[str, Any]:
    """phi, gpt_neox and stablelm: LayerNorm, and attention and FFN of the same stream, side by side."""
    if family != "gpt_neox" and read.boolean("qk_layernorm"):
        raise read.error("qk_layernorm", f"false for the family {family}")
    own = {"norm": "layer", "gated": family == "stablelm", "head_bias": family == "phi"}
    if family == "phi":
        return own | {"wiring": "parallel_one_norm"}
    parallel = read.boolean("use_parallel_residual", family == "gpt_neox")
    side_by_side = "parallel" if family == "gpt_neox" else "parallel_one_norm"
    return own | {"wiring": side_by_side if parallel else "pre_norm"}


def _gemma(read: Fields, family: str) -> dict[str, Any]:
    """Gemma (arXiv 2403.08295, 2408.00118, 2503.19786): norms with 1 + w, a scaled embedding; from 2 on four norms."""
    if read.boolean("use_bidirectional_attention"):
        raise read.error("use_bidirectional_attention", "false, as attention looks back only")
    own: dict[str, Any] = {"norm": "rms_from_one", "embedding_scale": read.integer("hidden_size", 2**16) ** 0.5}
    if family == "gemma":
        return own
    own |= {"wiring": "sandwich", "attention_scale": read.number("query_pre_attn_scalar", 1e6, 256) ** -0.5}
    if family == "gemma2":
        return own | {"attention_cap": _cap(read, "attn_logit_softcapping", 50.0),
                      "logit_cap": _cap(read, "final_logit_softcapping", 30.0)}  # fmt: skip
    return own | {"logit_cap": _cap(read, "final_logit_softcapping", None)}


def _cap(read: Fields, name: str, default: float | None) -> float | None:
    """A cap, a number above 0; None where it is null."""
    return None if read.fields.get(name, default) is None else read.number(name, 1e6, default)


def _gemma3_ropes(read: Fields, layers: int, head_dim: int, max_positions: int) -> dict[str, Any]:
    """Gemma 3's two rotations: ``rope`` of the layers that attend to all, ``other_rope`` of those with a window.

    transformers 5 has an object for each kind of layers inside rope_parameters; before that, rope_theta, rope_scaling
    and rope_local_base_freq stood side by side.
    """
    both = read.fields.get("rope_parameters")
    nested = both if isinstance(both, dict) and both.keys() & {"full_attention", "sliding_attention"} else {}
    outer = {name: value for name, value in read.fields.items() if name != "rope_parameters" or not nested}
    full = outer | ({"rope_parameters": nested.get("full_attention")} if nested else {})
    local = {"rope_parameters": nested.get("sliding_attention") or {}}
    theta = read.number("rope_local_base_freq", 1e30, 10_000.0, low=1e-6)
    if (local["rope_parameters"] or {}).get("rope_theta") is None:
        local["rope_theta"] = theta
    windows = sliding_windows(read, "gemma3_text", layers, max_positions)
    return {
        "rope": read_rope(Fields(full, read.source), "gemma3_text", head_dim, max_positions),
        "other_rope": read_rope(Fields(local, read.source), "gemma3_text", head_dim, max_positions),
        "other_rope_layers": tuple(i for i, window in enumerate(windows) if window is not None),
    }


def _turned_layers(read: Fields, layers: int) -> list[int]:
    """SmolLM3: 1 for each layer whose queries and keys are turned, 0 for the others (arXiv 2501.18795)."""
    turned = read.fields.get("no_rope_layers")
    if turned is None:
        every = read.integer("no_rope_layer_interval", 2**31 - 1, 4)
        return [int((i + 1) % every != 0) for i in range(layers)]
    if type(turned) is not list or len(turned) != layers or not all(type(i) is int and i in (0, 1) for i in turned):
        raise read.error("no_rope_layers", f"a list of {layers} numbers, each 0 or 1")
    return turned


def sliding_windows(read: Fields, family: str, layers: int, max_positions: int) -> tuple[int | None, ...]:
    """The window of every layer: mistral and phi3 on all, qwen, gemma2, gemma3 and smollm3 on some, others on none."""
    default = FAMILIES[family].sliding_window
    if family in ("qwen2", "qwen3", "smollm3") and not read.boolean("use_sliding_window"):
        window = None  # whatever sliding_window says
    else:
        window = read.integer_or_null("sliding_window", 2**31 - 1, default)
    if family not in WITH_WINDOWS and window is not None:
        if window < max_positions:
            raise read.error("sliding_window", f"absent or null for the family {family}")
        window = None  # it would never hide anything
    windows = tuple(window if has else None for has in _windowed(read, family, layers, window))
    kinds = read.fields.get("layer_types")
    if kinds is None:
        return windows
    allowed = ["full_attention"] if window is None else ["full_attention", "sliding_attention"]
    if type(kinds) is not list or len(kinds) != layers or not all(kind in allowed for kind in kinds):
        raise read.error("layer_types", f"{layers} entries, each {' or '.join(allowed)}")
    listed = tuple(window if kind == "sliding_attention" else None for kind in kinds)
    if family not in BY_LAYER and listed != windows:  # transformers would ignore the list here
        raise read.error("layer_types", f"the same kind for every layer of the family {family}")
    return listed


BY_LAYER = ("qwen2", "qwen3", "gemma2", "gemma3_text", "smollm3")  # families in which some layers have a window
WITH_WINDOWS = ("mistral", "phi3", *BY_LAYER)


def _windowed(read: Fields, family: str, layers: int, window: int | None) -> list[bool]:
    """Which layers have a window, where no list of the file says it."""
    if family in ("qwen2", "qwen3") and window is not None:
        first = read.integer("max_window_layers", 2**31 - 1, 28, low=0)
        return [i >= first for i in range(layers)]
    if family in ("gemma2", "gemma3_text"):  # every second or sixth layer attends to all
        every = 2 if family == "gemma2" else read.integer("sliding_window_pattern", 2**31 - 1, 6)
        return [(i + 1) % every != 0 for i in range(layers)]
    if family == "smollm3":
        return [not turned for turned in _turned_layers(read, layers)]
    return [True] * layers
