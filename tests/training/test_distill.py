"""A sparse model learns to say what the dense one says; the dense one has nothing to learn from itself."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import tiny
from passes import cut

from minillm.errors import MinillmError
from minillm.trace import no_tap
from minillm.training.batches import batches_of
from minillm.training.distill import distill, from_teacher
from minillm.training.trainer import Plan, Trainer, trainable
from minillm.transformer.evaluation import divergence
from minillm.transformer.ffn import swiglu
from minillm.transformer.model import Llama


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.loaded(tmp_path_factory.mktemp("model"), "float32")


def test_a_sparse_model_comes_nearer_to_the_dense_one(model):
    ffn = cut(model, "mid", 0.4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the FFN is the model's own, from the first step to the last
        trained = distill(model, batches_of(model, tiny.STORIES), ffn, Plan(steps=40, rate=3e-3, average=10))
    before, after = trained.curve[0]["loss"], trained.curve[-1]["loss"]
    assert after < before / 2
    assert trained.model.fingerprint != model.fingerprint
    assert trained.batches.documents_sha256 and trained.plan.steps == 40

    def from_dense(weights: Llama) -> float:
        """KL of the dense model's distribution from that of other weights behind the same cut, summed over texts."""
        one_pass = from_teacher(model, replace(ffn, model=None))
        return sum(one_pass(weights, ids, len(ids) - 1, no_tap) for ids in trained.batches.texts)

    assert from_dense(trained.model) < from_dense(trainable(model)) / 2
    kl, _ = divergence(model, tiny.STORIES, ffn)  # the untrained one, by the function that tables use
    assert kl == pytest.approx(from_dense(trainable(model)) / len(trained.batches.texts), rel=0.5)


def test_a_dense_model_that_is_its_own_teacher_has_nothing_to_learn(model):
    made = Trainer(trainable(model), batches_of(model, tiny.STORIES, 40), Plan(steps=1), from_teacher(model, swiglu))
    row = made.step()
    assert row["norm"] < 1e-6 and abs(row["loss"]) < 1e-6


def test_straight_through_moves_neurons_that_are_cut_and_the_masked_gradient_does_not(model):
    def moved(straight: bool) -> np.ndarray:
        ffn = cut(model, "mid", 1e9)  # cuts every neuron
        copy = trainable(model)
        one_pass = from_teacher(model, ffn, straight)
        Trainer(copy, batches_of(model, tiny.STORIES, 40), Plan(steps=1, average=0), one_pass).step()
        return copy.layers[0].up_proj != model.layers[0].up_proj

    assert not moved(False).any() and moved(True).any()


def test_a_teacher_of_another_vocabulary_is_refused(model):
    with pytest.raises(MinillmError, match="vocabulary has 31 ids, expected the model's 288"):
        distill(model, batches_of(model, tiny.STORIES), swiglu, Plan(steps=1), teacher=tiny.model(dtype=np.float32))
