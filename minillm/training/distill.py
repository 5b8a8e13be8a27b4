"""Distillation: a model with a sparse FFN learns to say what the dense model says.

    L = 1/N sum_t KL(p_dense(. | t) || p_sparse(. | t))

The sparse FFN is in the loop: it cuts in every forward pass, and the gradient goes through what it kept. So the weights
learn to do without the neurons that are cut. The teacher's probabilities say more of each token than the one token that
happens to follow in the text; at equal time this gives better models than cross entropy (Hinton, Vinyals and Dean 2015,
arXiv 1503.02531).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from ..errors import MinillmError
from ..trace import Tap
from ..transformer.ffn import FeedForward
from ..transformer.model import Llama
from .backward import Saved, backward
from .batches import Batches
from .losses import distillation
from .trainer import Pass, Plan, Trained, train


def from_teacher(teacher: Llama, ffn: FeedForward, straight: bool = False) -> Pass:
    """The pass of distillation: the dense teacher reads the text first, then the model with its FFN learns from it.

    straight: straight-through gradients (backward.py).
    """

    def one_pass(model: Llama, ids: np.ndarray, count: int, tap: Tap) -> float:
        logits, saved = teacher.forward(ids[:-1]), Saved()
        model.forward(ids[:-1], ffn=ffn, tap=saved)
        loss = partial(distillation, teacher=logits, count=count)
        return backward(model, ids[:-1], loss, saved, straight, tap).loss

    return one_pass


def distill(
    model: Llama, batches: Batches, ffn: FeedForward, plan: Plan, *, teacher: Llama | None = None,
    straight: bool = False, checkpoint: str | Path | None = None,
) -> Trained:  # fmt: skip
    """Train a copy of a model for a sparse FFN, with the dense model as its teacher (module docstring).

    ffn: a FeedForward that taps its masks. Its thresholds stay as they are while the weights change, so the share that
    is cut afterwards may be another one. teacher: None: the model itself. checkpoint: as for ``train``. Raises
    MinillmError for a teacher with another vocabulary.
    """
    teacher = check_teacher(model, teacher)
    return train(model, batches, plan, from_teacher(teacher, ffn, straight), checkpoint)


def check_teacher(model: Llama, teacher: Llama | None) -> Llama:
    """The teacher, None: the model itself. Raises MinillmError for one with another vocabulary."""
    teacher = model if teacher is None else teacher
    if teacher.config.vocab_size != model.config.vocab_size:
        found = f"the teacher's vocabulary has {teacher.config.vocab_size} ids"
        raise MinillmError(f"{found}, expected the model's {model.config.vocab_size}")
    return teacher
