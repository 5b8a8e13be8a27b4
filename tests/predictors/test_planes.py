"""Products bit by bit are the products of the codes, and the packed score is the shadow's for the rounded input."""

import numpy as np
import pytest
import tiny

from minillm.errors import MinillmError
from minillm.predictors.copies import Shadow
from minillm.predictors.files import save_predictor
from minillm.predictors.planes import TILE, PackedShadow, planes_of, products, rounded
from minillm.predictors.quantise import second_moments


@pytest.mark.parametrize(("neurons", "hidden"), [(1, 1), (5, 63), (7, 64), (12, 65), (3, 200)])
def test_and_and_popcount_give_the_exact_products_of_whole_numbers(neurons, hidden):
    rng = np.random.default_rng(hidden)
    for b, a in ((1, 1), (2, 4), (3, 5), (8, 8)):
        codes, q = rng.integers(0, 2**b, (neurons, hidden), np.uint8), rng.integers(0, 2**a, (1, hidden), np.uint8)
        found = 2 ** np.arange(b) @ products(planes_of(codes, b), planes_of(q, a))
        assert np.array_equal(found, codes.astype(int) @ q[0].astype(int))
        assert planes_of(codes, b).nbytes == b * neurons * -(-hidden // 64) * 8  # b bits per weight


def test_more_words_than_a_tile_holds_and_the_largest_codes():
    neurons, hidden = TILE // (8 * 4), 5 * 64  # one word of 4 planes fills a tile; 320 is more than a byte counts to
    codes, q = np.full((neurons, hidden), 15, np.uint8), np.full((1, hidden), 15, np.uint8)
    assert (2 ** np.arange(4) @ products(planes_of(codes, 4), planes_of(q, 4)) == hidden * 15 * 15).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_rounded_input_is_at_most_half_a_step_away_and_a_zero_stays_finite(dtype):
    x = np.random.default_rng(0).standard_normal((20, 9)).astype(dtype)
    x[3] = 0
    for bits in (1, 4, 8):
        q, scale = rounded(x, bits)
        assert q.max() == 2**bits - 1 and scale.dtype == dtype and scale.shape == (20, 1)
        error = np.abs((q - (2**bits - 1) / 2) * scale - x)[np.arange(20) != 3]
        assert (error <= scale[np.arange(20) != 3] * 0.5001).all()


@pytest.mark.parametrize("family", ["plain", "llama"])  # llama: biases
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("gate_bits", [2, 4])
def test_one_token_by_its_bits_is_the_unpacked_shadow_at_the_rounded_input(family, dtype, gate_bits):
    model = tiny.model(family, dtype)
    moments = np.tile(np.eye(8), (2, 1, 1))
    packed = PackedShadow(Shadow.fit(model, 2, moments, gate_bits), input_bits=5)
    x = np.random.default_rng(1).standard_normal((6, 8)).astype(dtype)
    together = packed.predict(1, 0, x)
    one_by_one = np.concatenate([packed.predict(1, t, x[t : t + 1]) for t in range(6)])
    assert one_by_one.dtype == together.dtype == dtype
    np.testing.assert_allclose(one_by_one, together, rtol=1e-4 if dtype == np.float32 else 1e-12, atol=1e-6)
    assert np.abs(together - packed.shadow.predict(1, 0, x)).max() > 0  # the rounding is there


def test_it_has_the_shadow_s_tables_bytes_and_texts_and_no_file_of_its_own(tmp_path):
    model = tiny.model()
    shadow = Shadow.fit(model, 4)
    shadow.trained_on = frozenset({"text"})
    packed = PackedShadow(shadow)
    assert packed.name == "packed shadow 4-bit" and packed.nbytes == shadow.nbytes and packed.model == shadow.model
    assert packed.trained_on == {"text"} and packed.multiply_adds(0) == 12 * 8 * 4 * 8 / 32
    with pytest.raises(MinillmError, match="packed shadow 4-bit"):
        save_predictor(tmp_path / "p.safetensors", packed)
    with pytest.raises(MinillmError, match="reads the model's gate"):
        PackedShadow(Shadow.fit(model, 4, gate_bits=0))


def test_second_moments_of_a_text_make_a_shadow_that_can_be_packed(small):
    model, thresholds = small
    shadow = Shadow.fit(model, 3, second_moments(model, thresholds, tiny.STORIES))
    x = np.random.default_rng(2).standard_normal((1, 16))
    near, exact = PackedShadow(shadow, 8).predict(0, 0, x), shadow.predict(0, 0, x)
    assert np.abs(near - exact).max() < 0.05 * exact.max()
