"""Rotary position embedding: a position is an angle (Su et al. 2021, arXiv 2104.09864).

Each pair of a head's coordinates is a point in the plane. At position p, pair j turns by the angle p * f_j:

    f_j = theta^(-2j/d),  j = 0 .. d/2 - 1

    (a, b)  ->  (a cos(p f_j) - b sin(p f_j),  b cos(p f_j) + a sin(p f_j))

The product of a query at position p and a key at position s then depends on p - s alone.

Which two coordinates make a pair? Two layouts exist, and weights made for one give gibberish in the other:

    interleaved   (0, 1), (2, 3), ...          the paper, Meta's files, llama2.c
    halves        (0, d/2), (1, d/2 + 1), ...  Hugging Face's files, and this model

Longer contexts than a model was trained on are reached by scaling the frequencies: ``rope_frequencies`` below.
"""

import math

import numpy as np

from ..errors import ConfigError
from ..loading.config import RopeConfig
from .ops import no_warnings


@no_warnings
def rope_frequencies(rope: RopeConfig, length: int, dtype=np.float32) -> np.ndarray:
    """The turning speeds f_j in radians per position, scaled as the config says.

        default    f_j = theta^(-2j/d)
        linear     f_j / factor                                   (Chen et al. 2023, arXiv 2306.15595)
        llama3     f_j where the wavelength 2 pi / f_j is short, f_j / factor where it is long,
                   a linear blend between (the released Llama 3.1 code)
        yarn       a blend of both by the number of turns that pair j makes within the original context
                   (Peng et al. 2023, arXiv 2309.00071, section 3.2; ``yarn_blend``)
        dynamic    f_j: it begins to scale behind the model's context, and no text here is longer
        longrope   f_j / factor_j, with one list of factors for texts up to the original length and one for
                   longer texts (Ding et al. 2024, arXiv 2402.13753)

    length: how many positions the whole text will have; only longrope looks at it.  ->  (rotary_dim / 2,).
    Computed in ``dtype``, because float32 models are compared with code that computes them in float32.
    """
    exponents = np.arange(0, rope.rotary_dim, 2).astype(dtype) / dtype(rope.rotary_dim)  # (d/2,)
    # The power in double, then rounded: NumPy's float32 power errs by up to 2 units in the last place on some
    # processors, and a frequency's error is multiplied by the position.
    power = (rope.theta ** exponents.astype(np.float64)).astype(dtype)  # (d/2,)
    f = 1 / power  # (d/2,)
    if rope.rope_type == "linear":
        f = f / dtype(rope.factor)
    elif rope.rope_type == "llama3":
        wavelength = dtype(2 * math.pi) / f  # positions per turn
        original = rope.original_max_position_embeddings
        low, high = rope.low_freq_factor, rope.high_freq_factor
        assert original is not None and low is not None and high is not None  # config.py requires them of this type
        blend = (dtype(original) / wavelength - dtype(low)) / dtype(high - low)  # 1 = keep, 0 = slow down
        blend = np.clip(blend, 0, 1)
        f = (1 - blend) * f / dtype(rope.factor) + blend * f
    elif rope.rope_type == "yarn":
        blend = yarn_blend(rope).astype(dtype)  # (d/2,), 1 = slow down in full
        f = blend / (dtype(rope.factor) * power) + (1 - blend) * f
    elif rope.rope_type == "longrope":
        assert rope.original_max_position_embeddings is not None  # as above
        factors = rope.long_factor if length > rope.original_max_position_embeddings else rope.short_factor
        f = 1 / (np.array(factors, dtype) * power)
    return f


def yarn_blend(rope: RopeConfig) -> np.ndarray:
    """How much yarn slows each pair down: 0 for pairs that turn often in the original context, 1 for slow ones.

    Pair j makes n turns within the original context of S positions where  j = d ln(S / (2 pi n)) / (2 ln theta).  The
    blend rises linearly between the j of beta_fast turns and that of beta_slow.  ->  (rotary_dim / 2,) float64.
    """
    d, original = rope.rotary_dim, rope.original_max_position_embeddings
    assert original is not None and rope.beta_fast is not None and rope.beta_slow is not None  # rope_config.py
    first, last = (
        d * math.log(original / (2 * math.pi * turns)) / (2 * math.log(rope.theta))
        for turns in (rope.beta_fast, rope.beta_slow)
    )
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, d - 1)
    width = last - first or 0.001  # as in the released code, where both are one pair
    return np.clip((np.arange(d // 2) - first) / width, 0, 1)


@no_warnings
def rope_table(rope: RopeConfig, length: int, dtype=np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of every angle for positions 0 .. length - 1.

    ->  cos, sin, each (length, rotary_dim / 2). longrope and yarn also stretch them by its attention factor. Raises
    ConfigError where an angle is no number, as with a theta of 1e-300.
    """
    dtype = np.dtype(dtype).type
    angles = np.outer(np.arange(length).astype(dtype), rope_frequencies(rope, length, dtype))  # (length, d/2)
    cos, sin = np.cos(angles), np.sin(angles)
    if rope.attention_factor != 1.0:
        cos, sin = cos * dtype(rope.attention_factor), sin * dtype(rope.attention_factor)
    if not np.isfinite(cos[-1]).all():  # the last position has the largest angles
        problem = f"rope_theta is {rope.theta:g} with rope_type {rope.rope_type}: an angle at position {length - 1}"
        raise ConfigError(f"{problem} is no number in {np.dtype(dtype)}, expected a usual theta, such as 10000")
    return cos, sin


def rotate_halves(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Turn pairs (j, j + d/2), Hugging Face's layout; coordinates past the rotary part stay as they are.

    x (T, heads, d), cos and sin (T, rotary_dim / 2)  ->  (T, heads, d).
    """
    half = cos.shape[-1]
    cos, sin = cos[:, None, :], sin[:, None, :]  # the same angle for every head
    a, b = x[..., :half], x[..., half : 2 * half]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., 2 * half :]], axis=-1)


def rotate_interleaved(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Turn pairs (2j, 2j + 1), the paper's layout. Here to be compared with; the model never calls it.

    x (T, heads, d), cos and sin (T, d / 2)  ->  (T, heads, d).
    """
    cos, sin = cos[:, None, :], sin[:, None, :]
    a, b = x[..., 0::2], x[..., 1::2]
    return np.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)


def halves_from_interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows of a query or key matrix from the interleaved layout to halves.

    weight (heads * d, D)  ->  (heads * d, D). With it, rotate_halves computes what rotate_interleaved did.
    """
    out, hidden = weight.shape
    return weight.reshape(heads, out // heads // 2, 2, hidden).transpose(0, 2, 1, 3).reshape(out, hidden)
