"""Rows read through a sliding window: their bits come back, fill a sixteenth, and miss less than rounding."""

import doctest

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from minillm.errors import CheckpointError
from minillm.predictors import coded as module
from minillm.predictors.coded import VALUES, WINDOW, Coded, decode, encode, new_bits, row_bits
from minillm.predictors.files import save_predictor
from minillm.predictors.quantise import quantise, second_moments


def test_the_worked_examples_in_the_docstrings_are_right():
    result = doctest.testmod(module, extraglobs={"np": np})
    assert result.failed == 0 and result.attempted >= 2


def test_the_values_never_change_because_files_hold_only_their_numbers():
    assert len(VALUES) == 1 << WINDOW and VALUES.mean() == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(VALUES[[0, 1, 2, 4095]], [-1.0704344, -0.0529601, -0.0554116, 0.4319586], atol=1e-6)


@given(hidden=st.integers(1, 30), share=st.floats(1, 8), seed=st.integers(0, 99))
def test_each_value_is_looked_up_by_the_last_bits_up_to_its_column(hidden, share, seed):
    bits = int(hidden * share)
    string = np.random.default_rng(seed).integers(0, 2, (3, bits)).astype(np.uint8)
    widths = new_bits(bits, hidden)
    assert widths.sum() == bits and widths.max() - widths.min() <= 1
    for row, found in zip(string, decode(string, hidden), strict=True):
        state, at = 0, 0
        for width, value in zip(widths, found, strict=True):
            for bit in row[at : at + width]:
                state = (2 * state + int(bit)) % (1 << WINDOW)
            at += width
            assert value == VALUES[state]


def test_a_row_that_can_be_written_exactly_is_found():
    string = np.random.default_rng(0).integers(0, 2, (5, 36)).astype(np.uint8)
    w = decode(string, 12)
    np.testing.assert_allclose(decode(encode(w, 36, np.eye(12)), 12), w, atol=1e-6)


def test_it_misses_less_than_compensated_rounding_with_as_many_bits():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((300, 24)) @ rng.standard_normal((24, 24))
    w, moment = rng.standard_normal((40, 24)), x.T @ x / len(x)
    codes, scale = quantise(w, 3, moment)
    rounded = (codes - 3.5) * scale.astype(float)[:, None]
    tables = module._coded(w, 3 * 24, moment)
    bits = np.unpackbits(tables["codes"], count=40 * 72, bitorder="little").reshape(40, 72)
    coded = decode(bits, 24) * tables["scale"].astype(float)[:, None]
    missed = [np.square(x @ (w - q).T).mean() for q in (rounded, coded)]
    assert missed[1] < 0.9 * missed[0]
    squares = np.square(tables["scale"].astype(float))
    assert tables["error"] == pytest.approx(np.sqrt(missed[1] / squares.mean()), rel=1e-2)


def test_it_takes_a_sixteenth_of_the_float32_bytes_and_not_one_more():
    model = tiny.model(hidden_size=64, intermediate_size=24, num_attention_heads=4)
    predictor = Coded.fit(model, np.stack([np.eye(64)] * 2))
    whole = 4 * 2 * 3 * 24 * 64
    assert 0.98 * whole / 16 < predictor.nbytes <= whole / 16
    for bits, biased in ((365, False), (349, True)):
        assert row_bits((8, 128, 384), biased) == bits
    assert row_bits((2, 2, 3), True) == 2  # at least one bit for each weight


def test_an_order_that_names_no_column_is_refused(small, tmp_path):
    model, _ = small
    predictor = Coded.fit(model, np.stack([np.eye(16)] * 2))
    assert (np.sort(predictor.tables["order"], axis=1) == np.arange(16)).all()
    predictor.tables["order"][1, 3] = 16
    with pytest.raises(CheckpointError, match="table.order holds 16 in layer 1, expected numbers from 0 to 15"):
        save_predictor(tmp_path / "p.safetensors", predictor)


def test_its_scores_come_from_its_packed_tables_alone(small):
    model, thresholds = small
    predictor = Coded.fit(model, second_moments(model, thresholds, tiny.STORIES))
    x = np.random.default_rng(0).standard_normal((4, 16))
    gate, up = (predictor.weight(part, 1, x.dtype) for part in ("gate", "up"))
    e_g, e_u = (predictor.tables[f"{p}_scale"][1] * predictor.tables[f"{p}_error"][1] for p in ("gate", "up"))
    act = model.layers[1].act
    square = (act(x @ gate.T + e_g) ** 2 + act(x @ gate.T - e_g) ** 2) / 2 * ((x @ up.T) ** 2 + e_u.astype(float) ** 2)
    np.testing.assert_allclose(predictor.predict(1, 0, x), np.sqrt(square), rtol=1e-3)
    broken = {name: table.copy() for name, table in predictor.tables.items()}
    last = 24 * predictor.row_bits - 1  # the last bit of the last row
    broken["up_codes"][1, last // 8] ^= 1 << last % 8
    changed = Coded(predictor.shape, "silu", predictor.row_bits, broken).predict(1, 0, x) != predictor.predict(1, 0, x)
    assert changed[:, -1].all() and not changed[:, :-1].any()
