"""The product with a weight matrix: one result, whichever form a machine takes for one row."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.transformer import linear as module
from minillm.transformer.linear import SMALL_MATRIX, linear, one_row


@pytest.fixture(params=[False, True], ids=["BLAS", "rows"])
def form(request, monkeypatch):
    """Each of the two forms, whatever machine this is."""
    monkeypatch.setattr(module, "blas_is_slow", lambda: request.param)
    return request.param


def test_linear_multiplies_by_rows_of_the_weight_and_adds_the_bias(form):
    x, weight, bias = np.array([[1.0, 2.0]]), np.array([[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]]), np.array([10.0, 20, 30])
    assert linear(x, weight).tolist() == [[1, 2, 11]]
    assert linear(x, weight, bias).tolist() == [[11, 22, 41]]
    assert linear(x[0], weight, bias).tolist() == [11, 22, 41] and bias.tolist() == [10, 20, 30]


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 400), st.integers(1, 700))
def test_both_forms_of_one_row_and_the_product_of_many_agree(seed, out, into):
    rng = np.random.default_rng(seed)
    exact, row = rng.standard_normal((out, into)) / into**0.5, rng.standard_normal(into)
    for dtype, close in ((np.float32, 1e-6), (np.float64, 1e-14)):
        weight, x = exact.astype(dtype), row.astype(dtype)
        forms = [weight.dot(x), np.vecdot(weight, x), linear(x, weight), linear(x[None], weight)[0]]
        forms.append(linear(np.stack([x, x]), weight)[1])
        scale = (np.abs(weight) @ np.abs(x)).max()  # what the rounding of a sum is measured by
        for y in forms:
            assert y.dtype == dtype and y.shape == (out,)
            assert np.abs(y.astype(np.float64) - forms[0]).max() <= close * scale


def test_the_form_is_chosen_by_size_and_machine_and_is_the_one_that_runs(monkeypatch):
    rng, taken = np.random.default_rng(0), []
    monkeypatch.setattr(module.np, "vecdot", lambda w, x, out: taken.append(w.size) or w.dot(x, out=out))
    small, large = (rng.standard_normal((rows, 100), dtype=np.float32) for rows in (SMALL_MATRIX // 100, 201))
    x = np.ones((1, 100), np.float32)
    for slow, expected in ((False, []), (True, [large.size])):
        monkeypatch.setattr(module, "blas_is_slow", lambda slow=slow: slow)
        taken.clear()
        linear(x, small), linear(x, large), linear(np.repeat(x, 2, axis=0), large)
        assert taken == expected


@pytest.mark.parametrize(
    ("api", "architecture", "found", "slow"),
    [
        ("openblas", "SkylakeX", ["X86_V3", "X86_V4", "AVX512_ICL"], True),  # AMD Zen 4
        ("openblas", "SkylakeX", ["X86_V3", "X86_V4", "AVX512_ICL", "AVX512_SPR"], False),  # Intel Sapphire Rapids
        ("openblas", "SkylakeX", ["X86_V3", "X86_V4"], False),  # Intel Skylake
        ("openblas", "Zen", ["X86_V3"], True),  # AMD Zen 2 and 3
        ("openblas", "Haswell", ["X86_V3"], False),
        ("openblas", "neoversen1", ["ASIMDHP"], False),
        ("mkl", None, ["X86_V3", "X86_V4", "AVX512_ICL"], False),
        (None, None, ["ASIMDHP"], False),  # a BLAS that threadpoolctl does not know, such as Accelerate
    ],
)
def test_a_slow_blas_is_known_by_what_numpy_and_blas_say_of_themselves(monkeypatch, api, architecture, found, slow):
    libraries = [SimpleNamespace(internal_api=api, architecture=architecture)] if api else []
    monkeypatch.setattr(module, "look", lambda: SimpleNamespace(libraries=libraries))
    monkeypatch.setattr(module.np, "show_config", lambda mode: {"SIMD Extensions": {"found": found}})
    assert module.blas_is_slow.__wrapped__() is slow


def test_this_machine_answers_and_answers_the_same():
    assert module.blas_is_slow() is module.blas_is_slow.__wrapped__()


def test_the_same_row_gives_the_same_bits_each_time(form):
    rng = np.random.default_rng(1)
    weight, x = rng.standard_normal((700, 300), dtype=np.float32), rng.standard_normal(300, dtype=np.float32)
    assert all(np.array_equal(one_row(x, weight), one_row(x.copy(), weight)) for _ in range(5))


@pytest.mark.parametrize("rows", [1, 2])
def test_no_form_copies_the_weight(form, rows):
    weight, x = np.ones((2000, 500), np.float32), np.ones((rows, 500), np.float32)
    linear(x, weight)
    tracemalloc.start()
    linear(x, weight)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < weight.nbytes / 100
