"""Adam's equations by hand, its first step, its memory; clipping, the running average, and the schedules' ends."""

import tracemalloc

import numpy as np
import pytest

from minillm.optim import Adam, average_in, clip, constant, cosine, pieces_of


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


def test_the_slices_of_an_array_cover_it_once_whatever_its_shape():
    for shape in ((5,), (70_000,), (3, 40_000), (1000, 64), (2, 3, 4), (0, 7)):
        array = np.zeros(shape)
        for rows in pieces_of(array):
            array[rows] += 1
        assert (array == 1).all()


def test_a_step_on_pieces_of_a_large_array_is_that_of_the_equations_to_the_bit():
    """The operations and their order are those of the plain lines, so predictors that were trained stay as they are."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((300, 200)).astype(np.float32)
    p, lr, b1, b2, eps, decay = {"w": w.copy(order="F")}, 0.01, 0.9, 0.999, 1e-8, 0.1
    adam, m, v = Adam(p, lr, (b1, b2), eps, decay), np.zeros_like(w), np.zeros_like(w)
    for t in (1, 2):
        g = rng.standard_normal(w.shape).astype(np.float32)
        m += (1 - b1) * (g - m)
        v += (1 - b2) * (g * g - v)
        w -= lr * ((m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps) + decay * w)
        adam.step({"w": g})
        assert np.array_equal(p["w"], w)


def test_a_step_allocates_no_array_as_large_as_the_weights():
    p = {"w": np.ones((1000, 400), np.float32)}
    adam, g, average = Adam(p), {"w": np.ones((1000, 400), np.float32)}, {"w": np.ones((1000, 400), np.float32)}
    tracemalloc.start()
    try:
        clip(g, 1.0), adam.step(g), average_in(average, p, 3, 10)
        assert tracemalloc.get_traced_memory()[1] < p["w"].nbytes / 4
    finally:
        tracemalloc.stop()


def test_clipping_scales_all_gradients_to_the_limit_or_leaves_them():
    g = {"a": np.array([3.0, 0.0]), "b": np.array([[4.0]])}
    assert clip(g, 10.0) == 5.0 and g["a"][0] == 3.0
    assert clip(g, 1.0) == 5.0
    np.testing.assert_allclose([g["a"][0], g["b"][0, 0]], [0.6, 0.8])


def test_the_running_average_is_the_mean_of_the_first_steps_and_then_forgets():
    p, average = {"w": np.zeros(2)}, {"w": np.full(2, 99.0)}  # what stood there before the first step does not count
    for step, value in enumerate([1.0, 2.0, 6.0], 1):
        p["w"][:] = value
        average_in(average, p, step, 10)
    np.testing.assert_allclose(average["w"], 3.0)
    average_in(average, p, 4, 2)
    np.testing.assert_allclose(average["w"], 4.5)


def test_a_constant_rate_rises_over_the_warmup():
    assert [constant(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert constant(0) == 1
