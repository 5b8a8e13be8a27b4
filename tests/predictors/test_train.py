"""Gradients by finite differences, and training that learns what can be learned."""

import doctest

import numpy as np
import pytest
import tiny

from minillm.errors import MinillmError
from minillm.predictors import train as module
from minillm.predictors.baselines import Chance
from minillm.predictors.copies import Shadow
from minillm.predictors.cutoffs import fit_cutoffs
from minillm.predictors.learned import logits
from minillm.predictors.metrics import PredictionMeter
from minillm.predictors.select import sparse_ffn
from minillm.predictors.train import (
    Schedule,
    examples,
    initial_weights,
    loss_and_gradients,
    min_max,
    train,
    train_layer,
)
from minillm.trace import Trace
from minillm.transformer.evaluation import pass_over
from minillm.transformer.texts import runs


def problem(with_logs: bool, seed: int = 0, hidden_layer: bool = False):
    rng = np.random.default_rng(seed)
    p = {"A": rng.standard_normal((5, 3)), "B": rng.standard_normal((3, 4)), "c": rng.standard_normal(4)}
    if hidden_layer:
        p["h"] = rng.standard_normal(3)
    x, y, logs = rng.standard_normal((7, 5)), rng.random((7, 4)) < 0.3, None
    if with_logs:
        p["a"], logs = rng.standard_normal(4), rng.standard_normal((7, 4))
    return p, x, y, logs


def worst(p, x, y, logs, negative, gradients) -> float:
    """The largest error of the gradients against central differences, relative to each array's largest entry."""
    found, step = 0.0, 1e-5
    for name, value in p.items():
        numeric = np.empty_like(value)
        for place in np.ndindex(value.shape):
            sides = []
            for sign in (1, -1):
                moved = {**p, name: value.copy()}
                moved[name][place] += sign * step
                sides.append(loss_and_gradients(moved, x, y, logs, negative)[0])
            numeric[place] = (sides[0] - sides[1]) / (2 * step)
        found = max(found, np.abs(gradients[name] - numeric).max() / np.abs(numeric).max())
    return found


@pytest.mark.parametrize("with_logs", [False, True])
@pytest.mark.parametrize("negative", [1.0, 0.35])
def test_every_gradient_is_the_slope_of_the_loss(with_logs, negative):
    p, x, y, logs = problem(with_logs)
    _, gradients = loss_and_gradients(p, x, y, logs, negative)
    assert set(gradients) == set(p)
    assert worst(p, x, y, logs, negative, gradients) < 1e-6


@pytest.mark.parametrize("hidden_layer", [False, True])
@pytest.mark.parametrize("regression", [False, True])
def test_with_a_hidden_layer_and_for_regression_too(hidden_layer, regression):
    p, x, y, _ = problem(False, 2, hidden_layer)
    y = np.random.default_rng(1).random(y.shape) if regression else y
    _, gradients = loss_and_gradients(p, x, y, None, 0.4)
    assert set(gradients) == set(p) and ("h" in p) == hidden_layer
    assert worst(p, x, y, None, 0.4, gradients) < 1e-6


def test_regression_is_the_mean_square_and_its_target_lies_between_0_and_1_for_each_token():
    assert doctest.testmod(module).failed == 0 < doctest.testmod(module).attempted
    p, x, y, _ = problem(False)
    found, _ = loss_and_gradients(p, x, y.astype(float))
    assert found == pytest.approx(np.square(logits(p, x) - y).mean(), rel=1e-12)
    mid = np.random.default_rng(0).standard_normal((6, 9))
    target = min_max(mid)
    np.testing.assert_array_equal(np.argsort(target, axis=1), np.argsort(np.abs(mid), axis=1))
    assert (target.min(axis=1) == 0).all() and (target.max(axis=1) == 1).all()
    assert (min_max(np.zeros((2, 3))) == 0).all()


@pytest.mark.parametrize("name", ["A", "B", "c", "a"])
def test_the_finite_differences_notice_a_gradient_that_is_wrong_in_one_place(name):
    p, x, y, logs = problem(True)
    _, gradients = loss_and_gradients(p, x, y, logs)
    gradients[name] = gradients[name].copy()
    gradients[name].flat[1] *= 1.01
    assert worst(p, x, y, logs, 1.0, gradients) > 1e-5


def test_the_loss_is_the_formula_and_does_not_overflow():
    p, x, y, _ = problem(False)
    probability = 1 / (1 + np.exp(-logits(p, x)))
    plain = -np.where(y, np.log(probability), 0.4 * np.log(1 - probability)).mean()
    assert loss_and_gradients(p, x, y, None, 0.4)[0] == pytest.approx(plain, rel=1e-12)
    huge = {**p, "c": np.array([1e4, -1e4, 1e4, -1e4])}
    loss, gradients = loss_and_gradients(huge, x, y)
    assert np.isfinite(loss) and all(np.isfinite(g).all() for g in gradients.values())


def test_examples_are_what_the_cut_layers_see_and_keep(small):
    model, thresholds = small
    inputs, masks = examples(model, thresholds, tiny.STORIES)
    rows = []
    for run in runs(model, tiny.STORIES):
        with Trace(keep=["blocks.1.mlp.norm", "blocks.1.mlp.mask"]) as trace:
            model.forward(run.ids, ffn=sparse_ffn(model, thresholds), tap=trace)
        rows.append((trace["blocks.1.mlp.norm"], trace["blocks.1.mlp.mask"]))
    np.testing.assert_array_equal(inputs[1], np.concatenate([x for x, _ in rows]))
    np.testing.assert_array_equal(masks[1], np.concatenate([mask for _, mask in rows]))


def test_examples_for_regression_are_the_magnitudes_of_the_same_tokens(small):
    model, thresholds = small
    inputs, sizes = examples(model, thresholds, tiny.STORIES, target="mid")
    np.testing.assert_array_equal(inputs[1], examples(model, thresholds, tiny.STORIES)[0][1])
    rows = []
    for run in runs(model, tiny.STORIES):
        with Trace(keep="blocks.1.mlp.mid") as trace:
            model.forward(run.ids, ffn=sparse_ffn(model, thresholds), tap=trace)
        rows.append(trace["blocks.1.mlp.mid"])
    np.testing.assert_array_equal(sizes[1], min_max(np.concatenate(rows)))


@pytest.mark.parametrize("hidden_layer", [False, True])
def test_regression_learns_which_neurons_are_large(small, hidden_layer):
    model, thresholds = small
    texts = tiny.STORIES[:3], tiny.STORIES[3:]
    learned = train(model, thresholds, *texts, 8, target="mid", hidden_layer=hidden_layer, epochs=60)
    assert learned.name == "learned rank 8 from |mid|" + (", hidden layer" if hidden_layer else "")
    assert recall(model, thresholds, learned) > recall(model, thresholds, Chance(learned.shape)) + 0.1
    assert learned.nbytes == 2 * 2 * (8 * (16 + 24) + 24) + hidden_layer * 2 * 2 * 8


def recall(model, thresholds, predictor) -> float:
    fit_cutoffs(model, predictor, thresholds, tiny.STORIES, 0.5)
    meter = PredictionMeter()
    pass_over(model, runs(model, tiny.STORIES), meter, sparse_ffn(model, thresholds, predictor=predictor))
    return meter.report()["recall"]


def test_training_finds_more_than_chance_and_the_same_twice(small):
    model, thresholds = small
    made = [train(model, thresholds, tiny.STORIES[:3], tiny.STORIES[3:], 8, rng=np.random.default_rng(1)) for _ in "ab"]
    for name in made[0].tables:
        np.testing.assert_array_equal(made[0].tables[name], made[1].tables[name])
    chance = Chance(made[0].shape)
    assert recall(model, thresholds, made[0]) > recall(model, thresholds, chance) + 0.1
    assert made[0].nbytes == 2 * 2 * (8 * (16 + 24) + 24)
    assert made[0].multiply_adds(0) == 8 * (16 + 24)


def test_training_keeps_the_parameters_of_the_best_epoch_on_the_held_out_documents(small):
    model, thresholds = small
    text, held = tiny.STORIES[:1], tiny.STORIES[1:]  # one sentence: it is soon known by heart

    def held_out_loss(predictor) -> float:
        x, y = examples(model, thresholds, held)
        p = {name: table[1].astype(float) for name, table in predictor.tables.items()}
        return loss_and_gradients(p, x[1], y[1], None, 0.5)[0]

    stopped = held_out_loss(train(model, thresholds, text, held, 8, epochs=200))
    untrained = held_out_loss(train(model, thresholds, text, held, 8, epochs=0))
    assert stopped <= untrained * 1.02  # without early stopping, 200 epochs on one sentence end far above


def test_what_cannot_be_trained_is_refused(small):
    model, thresholds = small
    with pytest.raises(MinillmError, match="1 of the held-out documents"):
        train(model, thresholds, tiny.STORIES[:3], tiny.STORIES[2:], 4)
    with pytest.raises(MinillmError, match="rank is 17"):
        train(model, thresholds, tiny.STORIES[:3], tiny.STORIES[3:], 17)
    with pytest.raises(MinillmError, match="ahead is 2"):
        train(model, thresholds, tiny.STORIES[:3], tiny.STORIES[3:], 4, ahead=2)
    with pytest.raises(MinillmError, match="ahead is 1"):
        train(model, thresholds, tiny.STORIES[:3], tiny.STORIES[3:], 4, Shadow.fit(model, 2), ahead=1)
    with pytest.raises(MinillmError, match="target is 'gate'"):
        train(model, thresholds, tiny.STORIES[:3], tiny.STORIES[3:], 4, target="gate")
    for how in ({"target": "mid"}, {"hidden_layer": True}):
        with pytest.raises(MinillmError, match="target is 'm"):
            train(model, thresholds, tiny.STORIES[:3], tiny.STORIES[3:], 4, Shadow.fit(model, 2), **how)
    assert module.BATCH > 1


def test_training_ends_after_so_many_epochs_without_gain():
    rng, losses = np.random.default_rng(0), []
    x, y = rng.standard_normal((300, 5)), rng.random((300, 4)) < 0.3  # nothing to learn: y knows nothing of x
    held = (rng.standard_normal((200, 5)), rng.random((200, 4)) < 0.3, None)
    p = initial_weights(x, y, 3, rng)
    kept = train_layer(p, (x, y, None), held, Schedule(epochs=50, negative=0.5, patience=2), rng, losses.append)
    best = int(np.argmin(losses))
    assert len(losses) < 50 and len(losses) - 1 - best in (2, len(losses) - 1)
    assert loss_and_gradients(kept, *held, 0.5)[0] <= min(losses)
