"""Packed bits come back, bytes are what they should be, rounding only gets better, scores are their formulas."""

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from minillm.errors import MinillmError
from minillm.predictors.copies import LowRank, Shadow, Sign
from minillm.predictors.oracle import Oracle
from minillm.predictors.quantise import low_rank, pack, quantise, second_moments, unpack
from minillm.predictors.select import sparse_ffn
from minillm.trace import Trace
from minillm.transformer.texts import runs


@given(bits=st.integers(1, 8), count=st.integers(1, 40), seed=st.integers(0, 99))
def test_packing_b_bits_takes_b_bits_and_unpacking_gives_the_codes_back(bits, count, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, (2, 3, count)).astype(np.uint8)
    packed = pack(codes, bits)
    assert packed.dtype == np.uint8 and packed.shape == (2, 3, -(-count * bits // 8))
    np.testing.assert_array_equal(unpack(packed, bits, count), codes)


def test_the_packed_count_of_disagreeing_signs_is_the_plain_count():
    model = tiny.model(hidden_size=12, head_dim=4)  # 12 signs do not fill two bytes
    sign, x = Sign.fit(model), np.random.default_rng(0).standard_normal((300, 12))
    for i, layer in enumerate(model.layers):
        plain = (np.signbit(x)[:, None] != np.signbit(layer.gate_proj)).sum(axis=-1)
        np.testing.assert_array_equal(sign.disagreements(i, x), plain)
    agreement = np.where(np.signbit(x), -1, 1) @ np.where(np.signbit(model.layers[0].gate_proj), -1, 1).T
    scores = sign.predict(0, 0, x)
    np.testing.assert_array_equal(np.floor(scores), agreement)  # the rest orders ties
    assert sign.nbytes == 2 * 12 * 2


def test_sign_in_blocks_is_sign_at_once(monkeypatch):
    import minillm.predictors.copies as module

    sign, x = Sign.fit(tiny.model()), np.random.default_rng(0).standard_normal((30, 8))
    whole = sign.predict(0, 0, x)
    monkeypatch.setattr(module, "PAIRS", 40)
    np.testing.assert_array_equal(sign.predict(0, 0, x), whole)


def moment(rng, hidden: int) -> np.ndarray:
    """Second moments of inputs that are far from round."""
    x = rng.standard_normal((500, hidden)) @ (rng.standard_normal((hidden, hidden)) * 0.5 ** np.arange(hidden))
    return x.T @ x / len(x)


def cost(weight, codes, scale, bits, H) -> float:
    missed = weight - (codes - (2**bits - 1) / 2) * scale.astype(np.float64)[:, None]
    return float(np.vecdot(missed @ H, missed).sum())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_knowing_the_inputs_makes_the_error_that_counts_smaller_with_every_sweep(bits):
    rng = np.random.default_rng(bits)
    weight, H = rng.standard_normal((20, 12)), moment(rng, 12)
    costs = [cost(weight, *quantise(weight, bits, H, sweeps), bits, H) for sweeps in (0, 1, 4, 12)]
    assert costs[0] > costs[-1] and all(a >= b * (1 - 1e-3) for a, b in zip(costs, costs[1:], strict=False))
    assert cost(weight, *quantise(weight, bits), bits, H) > costs[-1] * 1.2


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


@pytest.mark.parametrize("family", ["plain", "llama"])  # llama: biases
@pytest.mark.parametrize("make", [lambda m: Shadow.fit(m, 8), lambda m: LowRank.fit(m, 8)])
def test_a_copy_with_all_its_bits_or_ranks_scores_like_the_oracle(family, make):
    model = tiny.model(family, hidden_act="gelu_pytorch_tanh")
    x = np.random.default_rng(2).standard_normal((50, 8))
    ours, oracle = make(model).predict(1, 0, x), Oracle(model).predict(1, 0, x)
    assert np.abs(ours - oracle).max() < 0.02 * np.abs(oracle).max()


def test_a_shadow_s_bytes_are_its_packed_bits_and_its_scales(small):
    model, _ = small
    for bits in (2, 3, 4, 8):
        assert Shadow.fit(model, bits).nbytes == 2 * (2 * 24 * (16 * bits // 8) + 2 * 24 * 2)
    moments = np.tile(np.eye(16), (2, 1, 1))
    assert Shadow.fit(model, 4, moments).nbytes == 2 * (2 * 24 * 8 + 2 * 24 * 4)  # errors as well
    assert Shadow.fit(model, 4, moments, gate_bits=0).nbytes == 2 * (24 * 8 + 24 * 4)
    shadow = Shadow.fit(model, 4)
    shadow.predict(0, 0, np.ones((2, 16)))  # what is unpacked for speed is not counted, and not saved
    assert shadow.nbytes == sum(array.nbytes for array in shadow.arrays().values())


def test_a_shadow_computes_from_its_packed_table_and_from_nothing_else(small):
    model, _ = small
    shadow, x = Shadow.fit(model, 3), np.random.default_rng(0).standard_normal((4, 16))
    codes = unpack(shadow.tables["up_codes"][1], 3, 16).astype(float)
    up = (codes - 3.5) * shadow.tables["up_scale"][1].astype(float)[:, None]
    np.testing.assert_allclose(shadow.gate_up(1, x)[1], x @ up.T, rtol=1e-12)
    broken = {name: table.copy() for name, table in shadow.tables.items()}
    broken["up_codes"][1, 5, 0] ^= 1
    changed = Shadow(shadow.shape, "silu", 3, 3, broken).predict(1, 0, x) != shadow.predict(1, 0, x)
    assert changed[:, 5].all() and not np.delete(changed, 5, axis=1).any()


def test_the_expected_square_is_the_formula_and_its_errors_are_what_the_rounding_missed(small):
    model, thresholds = small
    moments = second_moments(model, thresholds, tiny.STORIES)
    shadow, x = Shadow.fit(model, 2, moments), np.random.default_rng(0).standard_normal((4, 16))
    gate, up = shadow.gate_up(0, x)
    e_g, e_u = (shadow.tables[f"{part}_error"][0].astype(float) for part in ("gate", "up"))
    act = model.layers[0].act
    square = (act(gate + e_g) ** 2 + act(gate - e_g) ** 2) / 2 * (up**2 + e_u**2)
    np.testing.assert_allclose(shadow.predict(0, 0, x), np.sqrt(square), rtol=1e-10)
    missed = []
    for ids in (run.ids for run in runs(model, tiny.STORIES)):
        with Trace(keep=["blocks.0.mlp.norm", "blocks.0.mlp.up"]) as trace:
            model.forward(ids, ffn=sparse_ffn(model, thresholds), tap=trace)
        missed.append(trace["blocks.0.mlp.up"] - shadow.gate_up(0, trace["blocks.0.mlp.norm"])[1])
    np.testing.assert_allclose(np.sqrt(np.square(np.concatenate(missed)).mean(axis=0)), e_u, rtol=2e-3)


def test_second_moments_are_those_of_what_the_cut_layers_see(small):
    model, thresholds = small
    rows = []
    for run in runs(model, tiny.STORIES):
        with Trace(keep="blocks.1.mlp.norm") as trace:
            model.forward(run.ids, ffn=sparse_ffn(model, thresholds), tap=trace)
        rows.append(trace["blocks.1.mlp.norm"])
    x = np.concatenate(rows)
    np.testing.assert_allclose(second_moments(model, thresholds, tiny.STORIES)[1], x.T @ x / len(x), rtol=1e-12)


def test_a_shadow_of_up_reads_the_layer_s_own_gate(small):
    model, _ = small
    shadow, x = Shadow.fit(model, 8, gate_bits=0), np.random.default_rng(0).standard_normal((4, 16))
    assert shadow.reads_gate and "gate_codes" not in shadow.tables
    with pytest.raises(MinillmError, match="reads the model's gate"):
        shadow.predict(0, 0, x)
    shadow.attach(model)
    gate = model.layers[0].act(x @ model.layers[0].gate_proj.T)
    np.testing.assert_allclose(shadow.predict(0, 0, x), np.abs(gate * shadow.gate_up(0, x)[1]), rtol=1e-12)


def test_bits_and_ranks_out_of_range_are_refused(small):
    model, _ = small
    for bits in (0, 9):
        with pytest.raises(MinillmError, match="bits are"):
            Shadow.fit(model, bits)
    for rank in (0, 17):
        with pytest.raises(MinillmError, match="rank is"):
            LowRank.fit(model, rank)
    tables = Shadow.fit(model, 3).tables
    with pytest.raises(ValueError, match="gate_codes is"):
        Shadow((2, 16, 24), "silu", 4, 3, tables)
    with pytest.raises(ValueError, match="gate's factors"):
        LowRank((2, 16, 25), "silu", LowRank.fit(model, 3).tables)


def test_float32_stays_float32():
    model = tiny.model(dtype=np.float32)
    x = np.ones((2, 8), np.float32)
    moments = np.tile(np.eye(8), (2, 1, 1))
    for predictor in (Shadow.fit(model, 3), Shadow.fit(model, 3, moments), LowRank.fit(model, 2), Sign.fit(model)):
        assert predictor.predict(0, 0, x).dtype == np.float32
