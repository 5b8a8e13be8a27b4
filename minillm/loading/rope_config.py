"""RoPE in a config.json: how positions turn the queries and keys, read from either generation of files.

    transformers 4:  "rope_theta": 1e4, "rope_scaling": {"type" | "rope_type": ...} | null
    transformers 5:  "rope_parameters": {"rope_theta": 1e4, "rope_type": ...}

transformer/rope.py holds the equations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..fields import Fields, brief
from .families import FAMILIES

# rope_type -> the keys it reads. Any other key is refused: it would belong to a scaling that is not this one.
ROPE_TYPES: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "yarn": {"factor", "beta_fast", "beta_slow", "truncate", "attention_factor", "mscale", "mscale_all_dim",
             "original_max_position_embeddings", "attn_factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "longrope": {"factor", "short_factor", "long_factor", "attention_factor", "original_max_position_embeddings"},
}  # fmt: skip
# Beside these: what every type takes or leaves alone, and factors that multiply by 1.
_ANY_ROPE_TYPE = {"rope_theta", "partial_rotary_factor", "original_max_position_embeddings"}
_ONE_CHANGES_NOTHING = {"factor", "attention_factor"}


@dataclass(frozen=True)
class RopeConfig:
    """How positions turn the queries and keys; transformer/rope.py holds the equations."""

    rope_type: str  # a key of ROPE_TYPES
    theta: float  # the base of the frequencies theta ** (-2 i / rotary_dim)
    rotary_dim: int  # how many of the head's d entries turn: all of them, or fewer with a partial_rotary_factor
    factor: float = 1.0  # linear, llama3, yarn: how far the context was stretched; longrope: inside attention_factor
    low_freq_factor: float | None = None  # llama3
    high_freq_factor: float | None = None  # llama3
    original_max_position_embeddings: int | None = None  # llama3, longrope, yarn: the context before it was stretched
    short_factor: tuple[float, ...] = ()  # longrope: one divisor per frequency, up to the original context
    long_factor: tuple[float, ...] = ()  # longrope: the same beyond it
    attention_factor: float = 1.0  # longrope, yarn: multiplies cos and sin
    beta_fast: float | None = None  # yarn: at least so many turns within the original context: the speed is kept
    beta_slow: float | None = None  # yarn: at most so many turns: slowed down in full
    truncate: bool = True  # yarn: whether the blend begins and ends at whole pairs


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


def read_rope(read: Fields, family: str, head_dim: int, max_positions: int) -> RopeConfig:
    """How positions turn queries and keys: the kind of RoPE, and the numbers that this kind needs."""
    kind, values = _rope_fields(read, family)
    # The bounds keep every frequency and every angle finite in float32, whatever the position.
    default = FAMILIES[family]
    theta = values.number("rope_theta", 1e30, default.rope_theta, low=1e-6)
    share = values.number("partial_rotary_factor", 1.0, default.partial_rotary_factor or 1.0)
    if share != 1.0 and default.partial_rotary_factor is None:  # modeling_*.py of the other families turns whole heads
        raise values.error("partial_rotary_factor", f"1.0 for the family {family}")
    rotary_dim = int(head_dim * share)
    if rotary_dim % 2 or rotary_dim == 0:
        raise read.error("head_dim", "an even number of rotated entries, as RoPE turns pairs", rotary_dim)
    if kind == "default":
        return RopeConfig(kind, theta, rotary_dim)
    if kind in ("linear", "dynamic"):
        return RopeConfig(kind, theta, rotary_dim, values.number("factor", 1e6, low=1.0))
    if kind == "yarn":
        return _yarn(values, theta, rotary_dim, max_positions)

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


def _yarn(values: Fields, theta: float, rotary_dim: int, max_positions: int) -> RopeConfig:
    """The numbers of yarn (arXiv 2309.00071), with the defaults of transformers.

    Attention is scaled by 0.1 ln(factor) + 1 unless the file says otherwise; with mscale and mscale_all_dim (both not
    0) by the ratio of 0.1 m ln(factor) + 1 for the two.
    """
    original = values.integer("original_max_position_embeddings", 2**31 - 1, max_positions)
    factor = values.number("factor", 1e6, max_positions / original, low=1.0)
    scales = [values.between(name, 0.0, 1e3) or 0.0 for name in ("mscale", "mscale_all_dim")]
    over, under = (0.1 * scale * math.log(factor) + 1 for scale in (scales if all(scales) else (1.0, 0.0)))
    if values.fields.get("attention_factor") is not None:
        over, under = values.number("attention_factor", 1e6, low=1e-6), 1.0
    if "attn_factor" in values.fields:
        values.note("attn_factor", "is not looked at, as transformers reads attention_factor alone")
    fast, slow = (
        values.between(name, 0.0, 1e6) or default for name, default in (("beta_fast", 32.0), ("beta_slow", 1.0))
    )
    if slow >= fast:
        raise values.error("beta_slow", f"less than beta_fast ({fast})", slow)
    if theta <= 1:
        raise values.error("rope_theta", "a number above 1 for rope_type yarn", theta)
    return RopeConfig("yarn", theta, rotary_dim, factor, original_max_position_embeddings=original,
                      attention_factor=over / under, beta_fast=fast, beta_slow=slow,
                      truncate=values.boolean("truncate", True))  # fmt: skip
