"""The parts' way back, by themselves: each against central differences (the whole is in test_backward.py)."""

import numpy as np
import pytest

from minillm.training.parts import NORMS_BACK, cap_back
from minillm.transformer.ops import NORMS

RNG = np.random.default_rng(0)


def test_each_norm_has_a_way_back():
    assert NORMS_BACK.keys() == NORMS.keys()


@pytest.mark.parametrize("name", NORMS)
def test_norms(name):
    x, w, d, v, u = (RNG.standard_normal((3, 5)) for _ in range(5))
    d_x, d_w = NORMS_BACK[name](d, x, w[0], 1e-5)
    h = 1e-6
    along_x = ((NORMS[name](x + h * v, w[0], 1e-5) - NORMS[name](x - h * v, w[0], 1e-5)) * d).sum() / (2 * h)
    along_w = ((NORMS[name](x, w[0] + h * u[0], 1e-5) - NORMS[name](x, w[0] - h * u[0], 1e-5)) * d).sum() / (2 * h)
    assert along_x == pytest.approx((d_x * v).sum(), rel=1e-7)
    assert along_w == pytest.approx((d_w * u[0]).sum(), rel=1e-7)


def test_cap():
    x, d, h = RNG.standard_normal(9) * 3, RNG.standard_normal(9), 1e-6
    y = 2 * np.tanh(x / 2)
    slope = (2 * np.tanh((x + h) / 2) - 2 * np.tanh((x - h) / 2)) / (2 * h)
    np.testing.assert_allclose(cap_back(d, y, 2.0), d * slope, rtol=1e-8)
