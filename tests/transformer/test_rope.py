"""Rotary positions: the laws, the two layouts, and each scaling against a slow loop written from its paper."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.loading.config import RopeConfig
from minillm.transformer.rope import (
    halves_from_interleaved,
    rope_frequencies,
    rope_table,
    rotate_halves,
    rotate_interleaved,
)

quick = settings(max_examples=25, derandomize=True, deadline=None)
PLAIN = RopeConfig("default", 10_000.0, 8)
LLAMA3 = RopeConfig("llama3", 500_000.0, 64, 8.0, 1.0, 4.0, 8192)
LONGROPE = RopeConfig("longrope", 10_000.0, 8, 32.0, None, None, 16, (1.0, 1.1, 1.2, 1.3), (2.0, 4.0, 8.0, 16.0), 1.19)


def plain_speeds(theta: float, d: int) -> list[float]:
    return [math.pow(theta, -2 * j / d) for j in range(d // 2)]


def turn(a: float, b: float, angle: float) -> tuple[float, float]:
    """A point of the plane turned by an angle: as a complex number times e^(i angle)."""
    z = complex(a, b) * complex(math.cos(angle), math.sin(angle))
    return z.real, z.imag


# ---- laws ------------------------------------------------------------------------------------------------------------


@quick
@given(st.integers(0, 2**32 - 1), st.sampled_from([rotate_halves, rotate_interleaved]))
def test_turning_keeps_the_length_of_every_head(seed, rotate):
    x = np.random.default_rng(seed).standard_normal((6, 3, 8))
    turned = rotate(x, *rope_table(PLAIN, 6, np.float64))
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-14)
    assert np.array_equal(turned[0], x[0])  # position 0 does not turn


@quick
@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.integers(0, 40), st.integers(1, 50))
def test_the_product_of_query_and_key_depends_on_their_distance_alone(seed, p, s, shift):
    q, k = np.random.default_rng(seed).standard_normal((2, 1, 1, 8))
    cos, sin = rope_table(PLAIN, 100, np.float64)

    def score(p: int, s: int) -> float:
        return float((rotate_halves(q, cos[[p]], sin[[p]]) * rotate_halves(k, cos[[s]], sin[[s]])).sum())

    assert math.isclose(score(p, s), score(p + shift, s + shift), abs_tol=1e-12)
    assert p == s or not math.isclose(score(p, s), score(s, p), abs_tol=1e-12)  # and on its sign


@quick
@given(st.integers(0, 2**32 - 1))
def test_weights_reordered_from_interleaved_to_halves_give_the_same_scores(seed):
    rng = np.random.default_rng(seed)
    heads, d, hidden = 3, 8, 5
    x, cos, sin = rng.standard_normal((4, hidden)), *rope_table(PLAIN, 4, np.float64)
    wq, wk = rng.standard_normal((2, heads * d, hidden))

    def scores(rotate, q: np.ndarray, k: np.ndarray) -> np.ndarray:
        q, k = (rotate((x @ w.T).reshape(4, heads, d), cos, sin) for w in (q, k))
        return np.einsum("thd,shd->hts", q, k)

    interleaved = scores(rotate_interleaved, wq, wk)
    halves = scores(rotate_halves, *(halves_from_interleaved(w, heads) for w in (wq, wk)))
    np.testing.assert_allclose(halves, interleaved, rtol=1e-12, atol=1e-13)
    assert not np.allclose(scores(rotate_halves, wq, wk), interleaved)  # the layouts are not interchangeable


# ---- formulas --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rotate", "pairs"), [
    (rotate_halves, [(0, 4), (1, 5), (2, 6), (3, 7)]),
    (rotate_interleaved, [(0, 1), (2, 3), (4, 5), (6, 7)]),
])  # fmt: skip
def test_each_layout_turns_its_pairs_by_position_times_speed(rotate, pairs):
    x = np.arange(1.0, 9.0).reshape(1, 1, 8).repeat(4, axis=0)
    turned = rotate(x, *rope_table(PLAIN, 4, np.float64))
    for p in range(4):
        for (a, b), speed in zip(pairs, plain_speeds(1e4, 8), strict=True):
            expected = turn(x[p, 0, a], x[p, 0, b], p * speed)
            np.testing.assert_allclose((turned[p, 0, a], turned[p, 0, b]), expected, rtol=1e-14)


def test_what_lies_past_the_rotary_part_does_not_turn():
    x = np.random.default_rng(0).standard_normal((5, 2, 12))
    table = rope_table(PLAIN, 5, np.float64)
    turned = rotate_halves(x, *table)
    assert np.array_equal(turned[..., 8:], x[..., 8:])
    assert np.array_equal(turned[..., :8], rotate_halves(x[..., :8], *table))


def test_linear_scaling_is_a_longer_ruler():
    linear = RopeConfig("linear", 10_000.0, 8, 4.0)
    np.testing.assert_allclose(rope_frequencies(linear, 9, np.float64), np.array(plain_speeds(1e4, 8)) / 4, rtol=1e-15)
    for ours, plain in zip(rope_table(linear, 9, np.float64), rope_table(PLAIN, 3, np.float64), strict=True):
        np.testing.assert_allclose(ours[::4], plain, atol=1e-15)  # position 4 p turns as p did


def test_llama3_scaling_keeps_short_waves_stretches_long_ones_and_blends_between():
    expected, kinds = [], set()
    for speed in plain_speeds(500_000.0, 64):
        wavelength = 2 * math.pi / speed
        if wavelength < 8192 / 4.0:
            expected.append(speed)
            kinds.add("short")
        elif wavelength > 8192 / 1.0:
            expected.append(speed / 8.0)
            kinds.add("long")
        else:
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            expected.append((1 - smooth) * speed / 8.0 + smooth * speed)
            kinds.add("between")
    assert kinds == {"short", "between", "long"}
    np.testing.assert_allclose(rope_frequencies(LLAMA3, 10, np.float64), expected, rtol=1e-13)
    np.testing.assert_allclose(rope_frequencies(LLAMA3, 10), expected, rtol=2e-6)


@pytest.mark.parametrize(("length", "factors"), [(16, LONGROPE.short_factor), (17, LONGROPE.long_factor)])
def test_longrope_takes_the_long_factors_beyond_the_original_length_and_stretches_both_tables(length, factors):
    speeds = [speed / factor for speed, factor in zip(plain_speeds(1e4, 8), factors, strict=True)]
    np.testing.assert_allclose(rope_frequencies(LONGROPE, length, np.float64), speeds, rtol=1e-14)
    cos, sin = rope_table(LONGROPE, length, np.float64)
    for p in (0, 7, 15):
        np.testing.assert_allclose(cos[p], [1.19 * math.cos(p * speed) for speed in speeds], rtol=1e-12)
        np.testing.assert_allclose(sin[p], [1.19 * math.sin(p * speed) for speed in speeds], rtol=1e-12)


@pytest.mark.parametrize("rope", [PLAIN, RopeConfig("linear", 1e4, 8, 4.0), LLAMA3, LONGROPE])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_table_is_computed_in_the_dtype_of_the_model(rope, dtype):
    cos, sin = rope_table(rope, 20, dtype)
    assert rope_frequencies(rope, 20, dtype).dtype == cos.dtype == sin.dtype == dtype
    assert cos.shape == sin.shape == (20, rope.rotary_dim // 2)
    if dtype == np.float32:  # the angles themselves are float32, as transformers has them, and not rounded at the end
        speeds = rope_frequencies(rope, 20, np.float32)
        angles = np.float32(19) * speeds
        np.testing.assert_array_equal(cos[19], np.cos(angles) * np.float32(rope.attention_factor))
