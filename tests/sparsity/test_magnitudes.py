"""Magnitudes of activations: exact and streaming quantiles, and what is collected."""

import numpy as np
import pytest
import tiny
from cutting import texts
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minillm.errors import MinillmError
from minillm.sparsity import magnitudes as magnitudes_module
from minillm.sparsity.magnitudes import ExactMagnitudes, StreamingMagnitudes, collect, sample_values
from minillm.trace import Trace
from minillm.transformer.texts import runs

quick = settings(max_examples=40, derandomize=True, deadline=None)
LEVELS = [0.001, 0.1, 0.3, 0.5, 0.77, 0.9, 0.999]
DISTRIBUTIONS = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "heavy tailed": lambda rng, n: rng.standard_t(2, n),
    "exponential": lambda rng, n: rng.exponential(3.0, n),
    "log-uniform": lambda rng, n: np.exp(rng.uniform(-12, 8, n)),
    "uniform": lambda rng, n: rng.uniform(-1, 1, n),
    "tiny": lambda rng, n: rng.standard_normal(n) * 1e-7,
    "relu, with ties at zero": lambda rng, n: np.maximum(rng.standard_normal(n), 0),
}


def magnitudes(kind, values: np.ndarray):
    found = ExactMagnitudes(values.size, values.dtype) if kind == "exact" else StreamingMagnitudes()
    for part in np.array_split(values, 7):  # as a run after another brings them
        found.add(part.reshape(-1, 1))
    return found


# ---- quantiles -------------------------------------------------------------------------------------------------------


@quick
@given(arrays(np.float64, st.integers(1, 60), elements=st.floats(-1e6, 1e6)), st.floats(0, 1))
def test_the_exact_quantile_is_numpys_to_the_last_bit(values, level):
    assert magnitudes("exact", values).quantile(level) == np.quantile(np.abs(values), level)


def test_the_exact_quantile_of_float32_values_is_taken_in_double_precision():
    values = np.random.default_rng(0).standard_normal(1_001).astype(np.float32)
    found = magnitudes("exact", values)
    for level in LEVELS:
        assert found.quantile(level) == np.quantile(np.abs(values).astype(np.float64), level)


def test_values_that_come_after_a_quantile_was_asked_for_are_counted_too():
    found = ExactMagnitudes(4, np.float64)
    found.add(np.array([3.0, -1.0]))
    assert found.quantile(0.5) == 2.0
    found.add(np.array([-7.0, 5.0]))
    assert found.quantile(0.5) == 4.0


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_streaming_quantile_has_a_rank_error_of_at_most_a_thousandth(name, dtype):
    values = DISTRIBUTIONS[name](np.random.default_rng(0), 200_000).astype(dtype)
    found, size = magnitudes("streaming", values), np.sort(np.abs(values))
    for level in LEVELS:
        threshold = found.quantile(level)
        low, high = (np.searchsorted(size, threshold, side) / len(size) for side in ("left", "right"))
        assert low - 1e-3 <= level <= high + 1e-3  # between the shares below it and up to it: ties span a range
        assert found.rank_error(level) <= 1e-3
        if threshold:  # the stated error is honest
            assert max(low - level, level - high) <= found.rank_error(level) + 1e-12


@quick
@given(
    arrays(np.float64, st.integers(1, 50), elements=st.floats(0, 1e6, allow_subnormal=False)),
    st.floats(0.001, 0.999),
    st.floats(0.001, 0.999),
    st.sampled_from(["exact", "streaming"]),
)
def test_quantiles_grow_with_the_level(values, a, b, kind):
    found = magnitudes(kind, values)
    low, high = (found.quantile(level) for level in sorted((a, b)))
    assert low <= high


def test_many_values_in_one_bucket_are_reported_as_a_rank_error():
    found = StreamingMagnitudes()
    found.add(np.r_[np.full(30, 2.0), np.arange(3.0, 73.0)])
    assert found.rank_error(0.1) == 0.3 and found.rank_error(0.9) == 0.01
    assert 2.0 <= found.quantile(0.1) <= 2.0 * (1 + 2**-10)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2.0**24])
def test_what_cannot_be_counted_is_refused(bad):
    with pytest.raises(MinillmError, match="cannot be counted"):
        StreamingMagnitudes().add(np.array([1.0, bad]))


# ---- collecting ------------------------------------------------------------------------------------------------------


def test_collecting_takes_every_position_of_every_run_of_the_dense_model(model):
    documents, found = texts(3), None
    found = collect(model, documents, ("gate_pre", "gate", "up", "mid", "out"), context=16, quantile="exact")
    values = {}
    for run in runs(model, documents, "documents", 16):
        with Trace(keep="blocks.1.mlp.*") as trace:
            model.forward(run.ids, tap=trace)
        for tensor in found.layers[1]:
            values.setdefault(tensor, []).append(np.abs(trace[f"blocks.1.mlp.{tensor}"]).ravel())
    for tensor, parts in values.items():
        assert found.layers[1][tensor].quantile(0.4) == np.quantile(np.concatenate(parts), 0.4)


def test_magnitudes_that_do_not_fit_in_memory_are_streamed(model, monkeypatch):
    documents = texts(3)
    assert collect(model, documents, ("mid",)).kind == "exact"
    monkeypatch.setattr(magnitudes_module, "EXACT_BYTES", 1_000)
    streamed = collect(model, documents, ("mid",))
    assert streamed.kind == "streaming"
    exact = collect(model, documents, ("mid",), quantile="exact")
    for a, b in zip(streamed.thresholds(("mid",), 0.5), exact.thresholds(("mid",), 0.5), strict=True):
        assert np.isclose(a["mid"], b["mid"], rtol=0.02)


def test_a_sample_is_the_first_positions_of_the_dense_pass(model):
    pieces = runs(model, tiny.STORIES)
    sample = sample_values(model, pieces, ("norm", "mid"), 40)
    expected = []
    for run in pieces:
        with Trace(keep="blocks.1.mlp.mid") as trace:
            model.forward(run.ids, tap=trace)
        expected.append(trace["blocks.1.mlp.mid"])
    assert np.array_equal(sample[1]["mid"], np.concatenate(expected)[:40]) and sample[0]["norm"].shape == (40, 8)
