"""The small functions against Python's own mathematics, and the laws they obey."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from minillm.transformer.ops import (
    ACTIVATIONS,
    erfc,
    gelu,
    gelu_tanh,
    log_probability,
    log_softmax,
    relu,
    relu2,
    rms_norm,
    silu,
    softmax,
)

quick = settings(max_examples=40, derandomize=True, deadline=None)
rows = arrays(np.float64, array_shapes(min_dims=1, max_dims=3, max_side=6), elements=st.floats(-50, 50))
FORMULAS = {
    silu: lambda x: x / (1 + math.exp(-x)),
    relu: lambda x: max(x, 0.0),
    relu2: lambda x: max(x, 0.0) ** 2,
    gelu: lambda x: x / 2 * math.erfc(-x / math.sqrt(2)),
    gelu_tanh: lambda x: x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}
GRID = np.concatenate([np.linspace(-30, 30, 601), [0.0, 1e-8, -1e-8, 37.5, -37.5]])


@pytest.mark.parametrize("function", FORMULAS)
@pytest.mark.parametrize(("dtype", "close"), [(np.float64, 2e-15), (np.float32, 1e-6)])
def test_an_activation_is_its_formula_and_keeps_the_dtype(function, dtype, close):
    x = GRID.astype(dtype)
    expected = np.array([FORMULAS[function](float(v)) for v in x])
    found = function(x.reshape(6, -1)[:, ::-1])  # any shape, any strides
    assert found.dtype == dtype
    np.testing.assert_allclose(found[:, ::-1].ravel(), expected, rtol=close * 5, atol=close)


@pytest.mark.parametrize("function", FORMULAS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_activation_reaches_its_limits_without_overflow_or_nan(function, dtype):
    x = np.array([-1e4, -800, -100, 0, 100, 800, 1e4], dtype)
    with np.errstate(all="raise", under="ignore"):
        found = function(x)
    expected = x**2 * (x > 0) if function is relu2 else x * (x > 0)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("function", FORMULAS)
def test_an_activation_of_zero_is_zero_and_its_argument_is_left_alone(function):
    x = GRID.copy()
    function(x)
    assert np.array_equal(x, GRID)
    assert function(np.zeros(3)).tolist() == [0, 0, 0]  # so that a cut gate cuts the neuron


def test_the_names_are_those_that_a_config_may_hold():
    from minillm.loading.config import HIDDEN_ACTS

    assert set(HIDDEN_ACTS.values()) == set(ACTIVATIONS)
    assert ACTIVATIONS["gelu"] is gelu and ACTIVATIONS["gelu_pytorch_tanh"] is gelu_tanh


def test_erfc_is_pythons_erfc():
    assert erfc(GRID[None]).tolist() == [[math.erfc(v) for v in GRID]]


@quick
@given(rows, st.floats(-1e3, 1e3))
def test_softmax_does_not_change_when_a_constant_is_added_and_its_rows_sum_to_one(x, shift):
    p = softmax(x)
    np.testing.assert_allclose(p.sum(axis=-1), 1, rtol=1e-14)
    np.testing.assert_allclose(softmax(x + shift), p, rtol=1e-11, atol=1e-300)


@quick
@given(rows)
def test_log_softmax_is_the_logarithm_of_softmax(x):
    exact = np.vectorize(math.exp)(log_softmax(x))
    np.testing.assert_allclose(exact, softmax(x), rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log_probability_is_the_entry_of_log_softmax_and_writes_only_where_it_may(dtype):
    logits, tokens = np.random.default_rng(0).normal(0, 9, (4, 50)).astype(dtype), np.array([3, 49, 0, 7])
    before = logits.copy()
    found = log_probability(logits, tokens)
    expected = log_softmax(before.astype(np.float64))[np.arange(4), tokens]
    np.testing.assert_allclose(found, expected, rtol=1e-6 if dtype == np.float32 else 1e-14)
    assert found.dtype == np.float64 and np.array_equal(logits, before)
    assert np.array_equal(log_probability(logits, tokens, out=logits), found) and not np.array_equal(logits, before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_is_its_formula_keeps_the_dtype_and_does_not_overflow(dtype):
    x = np.array([[1.0, 2.0, 4.0], [1e4, -1e4, 1e4], [-np.inf, 0.0, -np.inf]], dtype)
    before = x.copy()
    with np.errstate(all="raise", under="ignore"):
        p, log_p = softmax(x), log_softmax(x[:2])
    total = math.exp(1) + math.exp(2) + math.exp(4)
    expected = [[math.exp(v) / total for v in (1, 2, 4)], [0.5, 0, 0.5], [0, 1, 0]]
    np.testing.assert_allclose(p, expected, rtol=1e-6 if dtype == np.float32 else 1e-15)
    np.testing.assert_allclose(log_p[1], [-math.log(2), -2e4 - math.log(2), -math.log(2)], rtol=1e-6)
    assert p.dtype == log_p.dtype == dtype and np.array_equal(x, before)


@quick
@given(arrays(np.float64, (3, 5), elements=st.floats(-9, 9)), st.floats(0.01, 100))
def test_rms_norm_scales_every_row_to_the_same_size_whatever_size_it_had(x, scale):
    x = x + np.where(np.abs(x) < 0.1, 1.0, 0.0)  # away from zero
    weight = np.arange(1.0, 6.0)
    np.testing.assert_allclose(rms_norm(x * scale, weight, 0.0), rms_norm(x, weight, 0.0), rtol=1e-12)
    np.testing.assert_allclose((rms_norm(x, np.ones(5), 0.0) ** 2).mean(axis=-1), 1, rtol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rms_norm_is_its_formula_with_eps_inside_the_root(dtype):
    x, weight = np.array([[[3.0, 4.0]], [[0.0, 0.0]]], dtype), np.array([2.0, 10.0], dtype)
    found = rms_norm(x, weight, 0.5)
    root = math.sqrt(12.5 + 0.5)
    np.testing.assert_allclose(found, [[[6 / root, 40 / root]], [[0, 0]]], rtol=1e-6)
    assert found.dtype == dtype and x[0, 0].tolist() == [3, 4]


@pytest.mark.parametrize(("dtype", "close"), [(np.float32, 1e-6), (np.float64, 1e-15)])
def test_rms_norm_of_one_row_is_that_of_many(dtype, close):
    x, weight = np.random.default_rng(2).normal(0, 0.1, (5, 40)).astype(dtype), np.linspace(0.5, 2, 40, dtype=dtype)
    alone = np.concatenate([rms_norm(row[None], weight, 0.1) for row in x])
    assert alone.dtype == dtype
    np.testing.assert_allclose(alone, rms_norm(x, weight, 0.1), rtol=close)
    with np.errstate(all="ignore"):
        assert np.isnan(rms_norm(np.zeros((1, 4), dtype), weight[:4], 0.0)).all()  # 0 / 0, as in many rows
