"""The backward pass, read off the trace of a forward pass: dL/dx for every intermediate x, and dL/dW for every weight.

A forward pass names each of its values at a tap. So a pass that keeps them has everything that the chain rule needs:

    saved = Saved()
    model.forward(ids, ffn=ffn, tap=saved)                       # the model's own code, dense or sparse
    gradients = backward(model, ids, targets, saved)
    gradients.steps["blocks.0.mlp.mid"]                          # dL / d mid, (T, F), under the step's own name
    gradients.weights["model.layers.0.mlp.up_proj.weight"]       # dL / d W_up, (F, D), under Hugging Face's name

``d`` is always dL / d(output of a part). Each part of the forward pass has one function that takes d back to its
inputs, with its equation: parts.py and blocks.py. ``backward`` calls them from the logits down to the embedding. Read
them beside transformer/ops.py, attention.py, ffn.py, blocks.py and model.py: the order is reversed, the names are the
same.

**Cuts.** Each FeedForward that taps its masks can be trained through. A mask is a decision and has no gradient. With
m_cut = m where the mask is True, else 0, there are two ways to go on:

    masked gradient              dm = dm_cut where the mask is True, else 0      the true gradient, the mask held fixed
    straight-through estimator   dm = dm_cut                                     Bengio et al. 2013, arXiv 1308.3432

**Batches.** One pass is one text, so the tokens of one document never attend to those of another. A batch is several
passes whose gradients are added (losses.py says what makes the sum a mean; batches.py forms the batches).

Every gradient, of steps and of weights, goes through a tap, as every value of the forward pass does. It may be edited
there, kept, or added to what other passes of the batch gave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np

from ..loading.names import EMBEDDING, HEAD
from ..threads import with_few_threads
from ..trace import Tap, no_tap
from ..transformer.blocks import positions_of
from ..transformer.model import HEAD_BIAS, IN, NORM_BIAS, OUT, POSITIONS, Llama
from ..transformer.ops import no_warnings
from .blocks import Block, block_back
from .losses import LossOf, cross_entropy
from .parts import NORMS_BACK, cap_back, embedding_back, linear_back
from .slopes import SLOPES

GiveWeight: TypeAlias = Callable[[str, np.ndarray], None]


class Saved(dict[str, np.ndarray]):
    """A tap that holds the values of one pass, {step: value}, without a copy.

    Of a forward pass attn.scores is not to be used: the pattern is written over it. (A Trace, which copies every value,
    can be given to ``backward`` as well.)
    """

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        self[name] = value
        return value


class Gradients(NamedTuple):
    """What ``backward`` gives. loss: in nats. weights {Hugging Face's name: dL/dW}, steps {step's name: dL/d step}."""

    loss: float
    weights: dict[str, np.ndarray]
    steps: dict[str, np.ndarray]


@with_few_threads
@no_warnings
def backward(
    model: Llama, ids: np.ndarray, targets: np.ndarray | LossOf, saved: Mapping[str, np.ndarray],
    straight: bool = False, tap: Tap | None = None,
) -> Gradients:  # fmt: skip
    """The gradients of a loss by all weights and all intermediates of one forward pass (module docstring).

    ids (T,): of that pass, which began at position 0. targets (T,): the ids that follow, for the mean cross entropy; or
    any loss, a function of the logits. saved: the values of the pass (``Saved``, or a Trace of all steps). straight:
    straight-through instead of masked gradients. tap: sees each gradient under its name and may return another one;
    with a tap, ``steps`` stays empty, because holding all of them takes as much memory as the forward pass.
    """
    ids = model.check_ids(ids)
    loss_of = targets if callable(targets) else partial(cross_entropy, targets=targets)
    steps, weights = Saved(), dict[str, np.ndarray]()
    give_step, give = (steps, no_tap) if tap is None else (tap, tap)

    def give_weight(name: str, d: np.ndarray) -> None:
        weights[name] = give(name, d)

    loss, d = loss_of(saved["logits"])
    d, d_head = head_back(give_step("logits", d), model, saved, give_step, give_weight)  # (T, D), (V, D)

    slope, norm = SLOPES[model.config.hidden_act], NORMS_BACK[model.config.norm]
    tables = positions_of(model.config, len(ids), model.dtype).tables
    for layer in reversed(model.layers):
        block = Block(layer, saved, slope, norm, straight, give_step, give_weight)
        d = block_back(d, block, *tables[layer.rope])  # (T, D)

    d_embedding = embed_back(d, ids, model, saved, give_step, give_weight)  # (V, D)
    if model.lm_head is model.embed_tokens:  # one matrix, used twice
        d_embedding += d_head
    else:
        give_weight(HEAD, d_head)
    give_weight(EMBEDDING, d_embedding)
    return Gradients(loss, weights, steps)


def head_back(
    d: np.ndarray, model: Llama, saved: Mapping[str, np.ndarray], give_step: Tap, give_weight: GiveWeight
) -> tuple[np.ndarray, np.ndarray]:
    """logits = norm(h) W_head^T:  d (T, V)  ->  dh (T, D), dW_head (V, D). Some families scale, cap or project, too."""
    config, last = model.config, saved[f"blocks.{len(model.layers) - 1}.resid_post"]
    if config.logit_cap is not None:
        d = cap_back(d, saved["logits"], config.logit_cap)
    if config.logit_divisor != 1:
        d = d / d.dtype.type(config.logit_divisor)
    normed = last if model.norm is None else saved["final_norm"]
    d_x, d_head = linear_back(d, saved.get("project_out", normed), model.lm_head)  # (T, D), (V, D)
    if HEAD_BIAS in model.outer:
        give_weight(HEAD_BIAS, d.sum(axis=0))
    if OUT in model.outer:
        d_x, d_out = linear_back(give_step("project_out", d_x), normed, model.outer[OUT])  # (T, D), (E, D)
        give_weight(OUT, d_out)
    if model.norm is None:
        return d_x, d_head
    d_x = give_step("final_norm", d_x)
    if NORM_BIAS in model.outer:
        give_weight(NORM_BIAS, d_x.sum(axis=0))
    d_x, d_weight = NORMS_BACK[config.norm](d_x, last, model.norm, config.rms_norm_eps)
    give_weight("model.norm.weight", d_weight)
    return d_x, d_head


def embed_back(
    d: np.ndarray, ids: np.ndarray, model: Llama, saved: Mapping[str, np.ndarray], give_step: Tap,
    give_weight: GiveWeight,
) -> np.ndarray:  # fmt: skip
    """x_t = E[id_t]:  d (T, D)  ->  dE (V, D). Other families add positions, project and scale, too."""
    if POSITIONS in model.outer:
        d = give_step("embed_positions", d)
        d_positions = np.zeros_like(model.outer[POSITIONS])
        d_positions[2 : 2 + len(ids)] = d  # position t is row t + 2
        give_weight(POSITIONS, d_positions)
    if IN in model.outer:
        d, d_in = linear_back(give_step("project_in", d), saved["embed"], model.outer[IN])  # (T, E), (D, E)
        give_weight(IN, d_in)
    d = give_step("embed", d)
    if model.config.embedding_scale != 1:
        d = d * d.dtype.type(model.config.embedding_scale)
    return embedding_back(d, ids, len(model.embed_tokens))
