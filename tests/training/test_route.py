"""Model and router together: what each learns from, resuming, and that the two fit each other."""

import numpy as np
import pytest
import tiny
from gradients import IDS
from stopped import stopped_behind_a_checkpoint

from minillm.predictors.router import Router, energies
from minillm.training.backward import Saved, backward
from minillm.training.batches import batches_of
from minillm.training.losses import distillation
from minillm.training.route import distill_routed, routed_ffn, with_router
from minillm.training.trainer import Plan, Trainer, trainable
from minillm.transformer.evaluation import perplexity
from minillm.transformer.model import shape_of


def new_router(model, seed: int = 0) -> Router:
    return Router.new(shape_of(model), 4, 2, 6, np.random.default_rng(seed))


def test_the_weights_learn_from_the_teacher_and_the_router_from_the_energies():
    model, teacher, found = tiny.model(), tiny.model(seed=1), {}
    router = new_router(model)

    def add(name, d):
        found[name] = found.get(name, 0) + d
        return d

    with_router(teacher, router)(model, IDS, len(IDS) - 1, add)
    saved = Saved()
    logits = teacher.forward(IDS[:-1])
    model.forward(IDS[:-1], ffn=routed_ffn(router), tap=saved)
    own = backward(model, IDS[:-1], lambda z: distillation(z, logits), saved)
    for name, g in own.weights.items():
        np.testing.assert_allclose(found[name], g, rtol=0, atol=1e-14)
    for layer in model.layers:
        energy = energies(saved[f"blocks.{layer.index}.mlp.mid"], layer, 4)
        _, tables = router.gradients(layer.index, saved[f"blocks.{layer.index}.mlp.norm"], energy)
        for name, g in tables.items():
            np.testing.assert_allclose(found[name], g, rtol=0, atol=1e-14)
    assert not saved["blocks.0.mlp.mask"].all()


def trained(model, text, router, checkpoint=None, steps=6):
    return distill_routed(model, batches_of(model, text, 120), router, Plan(steps), checkpoint=checkpoint)


def test_after_a_stop_the_model_and_the_router_are_the_same_bit_for_bit(tmp_path, monkeypatch):
    model, text = tiny.loaded(tmp_path / "m", "float32"), tiny.STORIES
    whole, router = trained(model, text, new_router(model))
    with stopped_behind_a_checkpoint(monkeypatch), pytest.raises(KeyboardInterrupt):
        trained(model, text, new_router(model), tmp_path / "c.npz")
    again, router_again = trained(model, text, new_router(model, seed=5), tmp_path / "c.npz")
    assert all(np.array_equal(again.model.weights[name], w) for name, w in whole.model.weights.items())
    assert all(np.array_equal(router_again.arrays()[name], a) for name, a in router.arrays().items())
    assert router.model == whole.model.fingerprint and router.trained_on


def test_a_router_that_learns_with_the_model_serves_it_better_than_one_fitted_before(tmp_path):
    """On its own text: the loss beside the teacher falls, and the two differ from what they were."""
    model = tiny.loaded(tmp_path / "m", "float32", intermediate_size=16)
    router = Router.fit(model, tiny.STORIES, 4, 2, rank=8)
    with pytest.warns(UserWarning, match="among those"):
        before = perplexity(model, tiny.STORIES, ffn=routed_ffn(router)).perplexity
    dense = perplexity(model, tiny.STORIES).perplexity
    together, tuned = trained(model, tiny.STORIES, router, steps=60)
    with pytest.warns(UserWarning, match="among those"):
        after = perplexity(together.model, tiny.STORIES, ffn=routed_ffn(tuned)).perplexity
    assert abs(after - dense) < 0.5 * abs(before - dense)


def test_the_parameters_of_a_trainer_hold_the_router():
    model = tiny.model()
    router = new_router(model)
    copy = trainable(model)
    run = Trainer(copy, None, Plan(1), with_router(model, router), copy.weights | router.parameters())
    assert {"router.0.A", "router.1.c", "model.norm.weight"} <= run.parameters.keys()
    assert run.parameters["router.0.A"] is router.layers[0]["A"]
