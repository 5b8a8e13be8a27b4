"""Packed bits come back, rounding only gets better, low rank is the best of its rank."""

import doctest

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from minillm.predictors import quantise as module
from minillm.predictors.quantise import (
    compensated,
    damped,
    first_scale,
    low_rank,
    nearest,
    pack,
    quantise,
    second_moments,
    unpack,
)
from minillm.predictors.select import sparse_ffn
from minillm.trace import Trace
from minillm.transformer.texts import runs


def test_the_worked_example_in_the_docstring_is_right():
    result = doctest.testmod(module, extraglobs={"np": np})
    assert result.failed == 0 and result.attempted >= 4


@given(bits=st.integers(1, 8), count=st.integers(1, 40), seed=st.integers(0, 99))
def test_packing_b_bits_takes_b_bits_and_unpacking_gives_the_codes_back(bits, count, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, (2, 3, count)).astype(np.uint8)
    packed = pack(codes, bits)
    assert packed.dtype == np.uint8 and packed.shape == (2, 3, -(-count * bits // 8))
    np.testing.assert_array_equal(unpack(packed, bits, count), codes)


def moment(rng, hidden: int) -> np.ndarray:
    """Second moments of inputs that are far from round."""
    x = rng.standard_normal((500, hidden)) @ (rng.standard_normal((hidden, hidden)) * 0.5 ** np.arange(hidden))
    return x.T @ x / len(x)


def cost(weight, codes, scale, bits, H) -> float:
    missed = weight - (codes - (2**bits - 1) / 2) * scale.astype(np.float64)[:, None]
    return float(np.vecdot(missed @ H, missed).sum())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_knowing_the_inputs_makes_the_error_that_counts_smaller_with_every_turn(bits):
    rng = np.random.default_rng(bits)
    weight, H = rng.standard_normal((20, 12)), moment(rng, 12)
    costs = [cost(weight, *quantise(weight, bits, H, turns), bits, damped(H, 12)) for turns in (0, 1, 3, 12)]
    assert costs[0] > costs[-1] and all(a >= b * (1 - 1e-3) for a, b in zip(costs, costs[1:], strict=False))
    assert cost(weight, *quantise(weight, bits), bits, damped(H, 12)) > costs[-1] * 1.2


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_compensated_rounding_is_nearer_on_the_inputs_themselves_than_plain_rounding(bits, seed):
    """On outputs: the mean square of x (w - q) over inputs that are correlated, at the same scales."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((300, 16)) @ rng.standard_normal((16, 16))
    w, H = rng.standard_normal((30, 16)), x.T @ x / len(x)
    scale = first_scale(w, 2**bits, np.diag(H))

    def missed(code: np.ndarray) -> float:
        return float(np.square(x @ (w - code * scale[:, None]).T).mean())

    assert missed(compensated(w, scale, 2**bits, H)) < 0.8 * missed(nearest(w / scale[:, None], 2**bits))


@given(bits=st.integers(1, 8), size=st.floats(0.1, 9), seed=st.integers(0, 99))
def test_where_all_inputs_count_alike_and_alone_compensated_rounding_is_plain_rounding(bits, size, seed):
    rng = np.random.default_rng(seed)
    w, scale = rng.standard_normal((5, 7)), rng.uniform(0.1, 1, 5)
    found = compensated(w, scale, 2**bits, size * np.eye(7))
    np.testing.assert_array_equal(found, nearest(w / scale[:, None], 2**bits))


def test_what_compensated_rounding_leaves_of_the_error_adds_up_column_by_column():
    """The rule of ``spread``, checked against the definition: the best move of the free columns, by least squares."""
    rng = np.random.default_rng(3)
    w, H = rng.standard_normal((1, 6)), moment(rng, 6) + 0.1 * np.eye(6)
    order = np.argsort(-np.diag(H), kind="stable")
    rest = w.copy()
    for j, column in enumerate(order):
        off = rest[0, column] - nearest(rest[0, column], 4)
        rest[0, column] -= off
        if len(free := order[j + 1 :]):
            rest[0, free] += off * np.linalg.solve(H[np.ix_(free, free)], H[free, column])
    np.testing.assert_allclose(compensated(w, np.ones(1), 4, H), rest, atol=1e-9)


def test_more_bits_miss_less_and_eight_miss_next_to_nothing():
    rng = np.random.default_rng(0)
    weight, H = rng.standard_normal((20, 12)), moment(rng, 12)
    costs = [cost(weight, *quantise(weight, bits, H), bits, H) for bits in range(1, 9)]
    assert all(a > 2 * b for a, b in zip(costs, costs[1:], strict=False))
    assert costs[-1] < 1e-3 * np.vecdot(weight @ H, weight).sum()


def test_plain_rounding_finds_values_that_lie_on_a_grid():
    codes = np.random.default_rng(1).integers(0, 8, (5, 30))
    codes[:, :2] = 0, 7  # both ends, so that the largest magnitude is the grid's
    found, scale = quantise((codes - 3.5) * 0.25, 3)
    values = (found - 3.5) * scale.astype(float)[:, None]
    assert np.abs(values - (codes - 3.5) * 0.25).max() < 0.25 / 2


def test_a_row_of_zeros_is_rounded_to_something_small():
    codes, scale = quantise(np.zeros((2, 8)), 4, np.eye(8))
    assert np.isfinite(scale).all() and np.abs((codes - 7.5) * scale[:, None]).max() < 1e-3


def test_low_rank_is_the_best_of_its_rank_in_the_error_that_counts():
    rng = np.random.default_rng(0)
    weight, H = rng.standard_normal((20, 12)), moment(rng, 12)

    def error(a, b):
        missed = weight - a.astype(float) @ b.astype(float)
        return np.vecdot(missed @ H, missed).sum()

    ours = error(*low_rank(weight, 4, H))
    assert ours < error(*low_rank(weight, 4))
    singular = np.linalg.svd(weight @ np.linalg.cholesky(H), compute_uv=False)
    assert ours == pytest.approx((singular[4:] ** 2).sum(), rel=1e-2)  # what Eckart and Young leave
    a, b = (factor.astype(float) for factor in low_rank(weight, 4))
    plain = np.linalg.norm(weight - a @ b)
    assert plain**2 == pytest.approx((np.linalg.svd(weight, compute_uv=False)[4:] ** 2).sum(), rel=1e-3)


def test_second_moments_are_those_of_what_the_cut_layers_see(small):
    model, thresholds = small
    rows = []
    for run in runs(model, tiny.STORIES):
        with Trace(keep="blocks.1.mlp.norm") as trace:
            model.forward(run.ids, ffn=sparse_ffn(model, thresholds), tap=trace)
        rows.append(trace["blocks.1.mlp.norm"])
    x = np.concatenate(rows)
    np.testing.assert_allclose(second_moments(model, thresholds, tiny.STORIES)[1], x.T @ x / len(x), rtol=1e-12)


def test_inputs_that_were_all_zero_give_finite_tables():
    weight, zero = np.random.default_rng(0).standard_normal((6, 4)), np.zeros((4, 4))
    for part in (*low_rank(weight, 2, zero), *quantise(weight, 3, zero)):
        assert np.isfinite(part).all()
