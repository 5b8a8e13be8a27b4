"""A model and its router are trained together: the router chooses blocks in every pass, and both learn.

    for each text:   the router chooses the K blocks of each token, and the model computes these
                     the model's weights learn from the dense teacher, through what was kept (distill.py)
                     the router learns which blocks hold the energy that the weights of now make (predictors/router.py)

The choice itself has no gradient. The model gets used to what this router chooses, mistakes and all, and the router
follows the weights while they change. So at the end the two fit each other, which a router that is fitted afterwards
cannot reach.

The router reads the FFN's input x and hands nothing back to it: its loss changes its own tables and no weight.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from ..predictors.router import Router, energies
from ..predictors.select import Predicted
from ..sparsity.selected import SelectedFFN
from ..trace import Tap
from ..transformer.model import Llama
from .backward import Saved, backward
from .batches import Batches
from .distill import check_teacher
from .losses import distillation
from .trainer import Pass, Plan, Trained, Trainer, trainable, trained_model


def routed_ffn(router: Router) -> SelectedFFN:
    """The FeedForward that computes the blocks that a router chooses, in masked form."""
    return SelectedFFN(Predicted(router), model=router.model)


def with_router(teacher: Llama, router: Router, straight: bool = False) -> Pass:
    """The pass of the module's docstring. straight: straight-through gradients for the weights (backward.py)."""
    ffn = routed_ffn(router)

    def one_pass(model: Llama, ids: np.ndarray, count: int, tap: Tap) -> float:
        logits, saved = teacher.forward(ids[:-1]), Saved()
        model.forward(ids[:-1], ffn=ffn, tap=saved)
        loss = partial(distillation, teacher=logits, count=count)
        value = backward(model, ids[:-1], loss, saved, straight, tap).loss
        for layer in model.layers:
            step = f"blocks.{layer.index}.mlp."
            energy = energies(saved[f"{step}mid"], layer, router.group)  # (T, N)
            for name, g in router.gradients(layer.index, saved[f"{step}norm"], energy, count)[1].items():
                tap(name, g)
        return value

    return one_pass


def distill_routed(
    model: Llama, batches: Batches, router: Router, plan: Plan, *, teacher: Llama | None = None,
    straight: bool = False, checkpoint: str | Path | None = None,
) -> tuple[Trained, Router]:  # fmt: skip
    """Train a copy of a model and its router, which is changed in place, from a dense teacher (None: the model itself).

    The model's neurons lie in the blocks that the router chooses from. Gives the trained model, and the router in
    float16, as it is stored. checkpoint: as for ``train``; it holds the router, too. Raises as ``distill`` does.
    """
    teacher = check_teacher(model, teacher)
    copy = trainable(model)
    parameters = copy.weights | router.parameters()
    trainer = Trainer(copy, batches, plan, with_router(teacher, router, straight), parameters)
    trainer.run(checkpoint)
    trained = trained_model(trainer)
    router.trained_on |= batches.documents_sha256
    router.model = trained.model.fingerprint
    return trained, router.rounded()
