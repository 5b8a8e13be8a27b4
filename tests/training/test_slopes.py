"""Every activation has its slope: that of central differences, and a number far out."""

import numpy as np
import pytest

from minillm.training.slopes import SLOPES
from minillm.transformer.ops import ACTIVATIONS


@pytest.mark.parametrize("act", SLOPES)
def test_a_slope_is_that_of_its_activation_and_finite_far_out(act):
    x = np.array([-9.0, -2.5, -0.3, 0.2, 1.7, 8.0])
    slope = (ACTIVATIONS[act](x + 1e-6) - ACTIVATIONS[act](x - 1e-6)) / 2e-6
    np.testing.assert_allclose(SLOPES[act](x), slope, rtol=1e-7, atol=1e-9)
    far = SLOPES[act](np.array([-1e4, 1e4], np.float32))  # without a warning
    assert far.dtype == np.float32 and abs(far[0]) < 1e-30 and np.isfinite(far).all()


def test_there_is_a_slope_for_every_activation():
    assert list(SLOPES) == list(ACTIVATIONS)
