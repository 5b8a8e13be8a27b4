"""Adam's equations by hand, its first step, and the schedules' ends."""

import numpy as np
import pytest

from minillm.optim import Adam, cosine


def test_two_steps_of_adam_are_those_of_algorithm_1():
    p, lr, b1, b2, eps, decay = {"w": np.array([1.0, -2.0])}, 0.1, 0.8, 0.9, 1e-3, 0.01
    adam = Adam(p, lr, (b1, b2), eps, decay)
    w, m, v = p["w"].copy(), np.zeros(2), np.zeros(2)
    for t, g in enumerate([np.array([0.5, -3.0]), np.array([-0.25, 1.0])], 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        w = w - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps) - lr * decay * w
        adam.step({"w": g})
    np.testing.assert_allclose(p["w"], w, rtol=1e-13)


def test_the_first_step_has_the_length_of_lr_whatever_the_gradient():
    p = {"w": np.zeros(3)}
    Adam(p, 0.01).step({"w": np.array([1e-3, 5.0, -200.0])})
    np.testing.assert_allclose(p["w"], [-0.01, -0.01, 0.01], rtol=1e-4)


def test_adam_finds_the_least_of_a_long_valley():
    p, curvature = {"w": np.array([5.0, 5.0])}, np.array([1.0, 100.0])
    adam = Adam(p, 0.5)
    for step in range(300):
        adam.step({"w": curvature * p["w"]}, cosine(step, 300))
    assert np.abs(p["w"]).max() < 0.01


def test_a_float32_parameter_stays_float32():
    p = {"w": np.ones(2, np.float32)}
    Adam(p).step({"w": np.ones(2, np.float32)}, cosine(3, 10))
    assert p["w"].dtype == np.float32


def test_the_schedule_rises_over_the_warmup_then_falls_to_the_least():
    found = [cosine(step, 100, warmup=10, least=0.1) for step in range(101)]
    assert found[0] == 0.1 and found[9] == 1.0 and found[10] == 1.0
    assert all(a >= b for a, b in zip(found[10:], found[11:], strict=False))
    assert found[100] == pytest.approx(0.1) and cosine(55, 100, 10, 0.1) == pytest.approx(0.55)
