"""Counts of disagreeing signs: packed as plain, in blocks as at once."""

import numpy as np
import tiny

from minillm.predictors.sign import Sign


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
    import minillm.predictors.sign as module

    sign, x = Sign.fit(tiny.model()), np.random.default_rng(0).standard_normal((30, 8))
    whole = sign.predict(0, 0, x)
    monkeypatch.setattr(module, "PAIRS", 40)
    np.testing.assert_array_equal(sign.predict(0, 0, x), whole)
