"""Both losses: their values by hand, their gradients by central differences, and N of a batch."""

import numpy as np
import pytest
from gradients import direction

from minillm.training.losses import cross_entropy, distillation
from minillm.transformer.ops import softmax

RNG = np.random.default_rng(0)
LOGITS, TEACHER, TARGETS = RNG.normal(0, 2, (5, 7)), RNG.normal(0, 2, (5, 7)), np.array([0, 6, 3, 3, 2])
LOSSES = {"cross entropy": (cross_entropy, TARGETS), "distillation": (distillation, TEACHER)}


def test_a_uniform_guess_costs_ln_v():
    assert cross_entropy(np.zeros((4, 11)), np.arange(4)).value == pytest.approx(np.log(11), rel=1e-14)


def test_cross_entropy_is_the_mean_logarithm_of_the_targets_probability():
    p = softmax(LOGITS)
    assert cross_entropy(LOGITS, TARGETS).value == pytest.approx(-np.log(p[np.arange(5), TARGETS]).mean(), rel=1e-13)


def test_distillation_is_the_divergence_from_the_teacher_and_zero_at_the_teacher():
    p, q = softmax(LOGITS), softmax(TEACHER)
    assert distillation(LOGITS, TEACHER).value == pytest.approx((q * np.log(q / p)).sum() / 5, rel=1e-12)
    same = distillation(TEACHER + 3, TEACHER)  # a shift of all logits changes no probability
    assert abs(same.value) < 1e-15 and np.abs(same.d_logits).max() < 1e-16


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_central_differences(name):
    loss, target = LOSSES[name]
    d = loss(LOGITS, target).d_logits
    for seed in range(3):
        v, h = direction(LOGITS.shape, seed), 1e-5
        slope = (loss(LOGITS + h * v, target).value - loss(LOGITS - h * v, target).value) / (2 * h)
        assert slope == pytest.approx((d * v).sum(), rel=1e-7, abs=1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_the_losses_of_the_passes_of_a_batch_add_up_to_its_mean(name):
    loss, target = LOSSES[name]
    whole, parts = loss(LOGITS, target), [loss(LOGITS[a:b], target[a:b], count=5) for a, b in ((0, 2), (2, 5))]
    assert sum(part.value for part in parts) == pytest.approx(whole.value, rel=1e-14)
    np.testing.assert_allclose(np.concatenate([part.d_logits for part in parts]), whole.d_logits, rtol=1e-14)


@pytest.mark.parametrize("name", LOSSES)
def test_logits_and_targets_stay_as_they_are_and_so_does_their_dtype(name):
    loss, target = LOSSES[name]
    logits, before = LOGITS.astype(np.float32), LOGITS.astype(np.float32)
    given = target.astype(np.float32) if name == "distillation" else target
    assert loss(logits, given).d_logits.dtype == np.float32
    assert np.array_equal(logits, before)
