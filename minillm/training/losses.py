"""What training makes small: how badly the logits predict the next token, or how far they are from a teacher's.

    cross entropy    L = - 1/N sum_t ln p_t[y_t]                         p = softmax(logits), y_t the token that follows
    distillation     L =   1/N sum_t sum_j q_t[j] ln(q_t[j] / p_t[j])    q = softmax(the teacher's logits): KL(q || p)

Both are in nats per token, and both have the simplest gradient there is, prediction minus target:

    dL / d logits = (p - onehot(y)) / N          dL / d logits = (p - q) / N

N is the number of tokens of the whole batch. A batch is several passes, one for each text: their losses and their
gradients are added, and with the same N in each of them the sums are the means over the batch. (Distillation: Hinton,
Vinyals and Dean 2015, arXiv 1503.02531, section 2, at temperature 1.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..transformer.ops import log_softmax


class Loss(NamedTuple):
    """value: in nats. d_logits (T, V): dL / d logits."""

    value: float
    d_logits: np.ndarray


LossOf = Callable[[np.ndarray], Loss]  # logits (T, V)  ->  Loss


def cross_entropy(logits: np.ndarray, targets: np.ndarray, count: int | None = None) -> Loss:
    """Mean cross entropy against the tokens that follow (module docstring).

    logits (T, V), targets (T,) ids  ->  Loss. count: N; None: T.
    """
    rows, count = np.arange(len(targets)), count or len(targets)
    log_p = log_softmax(logits)  # (T, V)
    value = -float(log_p[rows, targets].sum(dtype=np.float64)) / count
    d = np.exp(log_p, out=log_p)  # (T, V)
    d[rows, targets] -= 1
    d /= count
    return Loss(value, d)


def distillation(logits: np.ndarray, teacher: np.ndarray, count: int | None = None) -> Loss:
    """How far the logits' distribution is from the teacher's: KL(teacher || ours), mean over tokens.

    logits, teacher (T, V)  ->  Loss, at least 0, and 0 where both are equal. count: N; None: T.
    """
    count = count or len(logits)
    log_p, log_q = log_softmax(logits), log_softmax(teacher)  # (T, V)
    q = np.exp(log_q)  # (T, V)
    value = float(np.vecdot(q, log_q - log_p).sum(dtype=np.float64)) / count
    d = np.exp(log_p, out=log_p)  # (T, V)
    d -= q
    d /= count
    return Loss(value, d)
