"""Bytes are what they should be, scores are their formulas."""

import numpy as np
import pytest
import tiny

from minillm.errors import MinillmError
from minillm.predictors.copies import LowRank, Shadow
from minillm.predictors.files import load_predictor, save_predictor
from minillm.predictors.oracle import Oracle
from minillm.predictors.quantise import second_moments, unpack
from minillm.predictors.select import sparse_ffn
from minillm.predictors.sign import Sign
from minillm.trace import Trace
from minillm.transformer.texts import runs


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
        with pytest.raises(MinillmError, match="bits is"):
            Shadow.fit(model, bits)
    for rank in (0, 17):
        with pytest.raises(MinillmError, match="rank is"):
            LowRank.fit(model, rank)


def test_float32_stays_float32():
    model = tiny.model(dtype=np.float32)
    x = np.ones((2, 8), np.float32)
    moments = np.tile(np.eye(8), (2, 1, 1))
    for predictor in (Shadow.fit(model, 3), Shadow.fit(model, 3, moments), LowRank.fit(model, 2), Sign.fit(model)):
        assert predictor.predict(0, 0, x).dtype == np.float32


def test_bits_of_numpy_are_saved_as_numbers(small, tmp_path):
    model, _ = small
    save_predictor(tmp_path / "p.safetensors", Shadow.fit(model, np.int64(4)))
    assert load_predictor(tmp_path / "p.safetensors").bits == {"gate": 4, "up": 4}
