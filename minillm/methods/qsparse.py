"""Q-Sparse: each token uses only the largest inputs of every matrix, and the model is trained to live with it.

Wang et al. 2024 (Q-Sparse: All Large Language Models can be Fully Sparsely-Activated, arXiv 2407.10969). Of the input x
of a matrix, each token keeps the K entries of the largest magnitude:

    mask = the K largest |x_i| of the token        y = (x where mask, else 0) W^T        x (T, in), W (out, in)

One mask for each input of a module: q, k and v share it, and so do gate and up. Each input is a step of the trace
(``INPUTS``), so the whole method is a tap: no part of the model is written again, and training is no other than that of
the dense model. The magnitudes are compared in float32; of equal ones the first stays. The checkpoint's own activation
stays (the paper takes a squared ReLU), the head and the embedding are left dense, and the input that remains is not
scaled to its old length: the paper's text scales it, its released code does not.

**Blocks** (N:M). Each M successive inputs keep their N largest, so that several tokens and a processor's lanes have
equal work. "All inputs of a token" is then a single group, and one rule covers both: K of n is N = K, M = n.

**The way back.** A mask is a decision and has no gradient. With x_cut = x where the mask is True, else 0:

    straight-through estimator   dx = dx_cut                                     the paper's; what was cut learns, too
    masked gradient              dx = dx_cut where the mask is True, else 0      the true gradient, the mask held fixed

dW uses x_cut in both. Every gradient passes a tap (training/backward.py), so the masked gradient is a tap, too.

**Bytes.** An input that is zero needs no column of its matrix. A token reads at most K columns of each, and nothing
else decides the mask. Of a ReLU's down, columns whose mid is zero anyway are among the K; they are counted as read.

Measured, nats per token of the embedded twin with a squared ReLU, every fourth story of the test text; dense 2.770;
trained for 60 steps of 1,024 tokens of other stories, without an average of the weights:

    keep                        0.5      0.4              16:32    8:16     2:4
    before                      3.170    3.677            3.231    3.300    3.601
    straight-through            2.996    3.182 to 3.188   3.004    3.057    3.171
    masked                      3.011    3.209 to 3.233                              (0.4: three seeds)

Pitfalls. Columns lie apart in a matrix stored row by row, so bytes are saved only where it is stored by columns. Tokens
that are computed together read the union of their columns. The share of zero inputs is not the share of idle neurons:
only the input of down has neurons. That straight-through gradients are the better ones holds where a dense model is
tuned and much is cut: with three quarters kept both are alike, and from scratch masked ones are better (after 30 steps
at keep 0.5 by 0.04 to 0.10 in three seeds). Any training on a text lowers the nll on its like, so a dense model that
was trained as long belongs beside each figure (``minillm tune --inputs`` prints it).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np

from ..errors import MinillmError
from ..sparsity.policies import largest, where_kept
from ..sparsity.spec import SparsitySpec
from ..trace import Tap, chained
from ..training.backward import Saved, backward
from ..training.losses import cross_entropy
from ..training.trainer import Pass
from ..transformer.layer import Layer
from ..transformer.model import Llama
from .base import INPUTS, WEIGHT_BYTES, Read, Variant, check, dense_bytes, stored_bytes

# {"blocks.0.attn.norm": (N, M)}: of this step, the N largest of each M successive inputs stay.
Groups: TypeAlias = Mapping[str, tuple[int, int]]


def kept_count(inputs: int, target: float) -> int:
    """K = floor((1 - target) inputs).  Raises MinillmError where nothing would stay.

    The product is rounded first: (1 - 0.9) * 10 is 0.9999999999999998, and ten inputs at 0.9 keep one.
    """
    count = math.floor(round((1 - target) * inputs, 9))
    if count < 1:
        raise MinillmError(f"target is {target}: of {inputs} inputs none would stay, expected a target that keeps one")
    return count


def groups_of(model: Llama, target: float, pattern: tuple[int, int] | None = None) -> dict[str, tuple[int, int]]:
    """The rule for each input of a model: K of all its inputs, or a pattern (N, M), of which N:M must be 1 - target.

    Raises MinillmError for a pattern that does not fit, and for a target that keeps nothing.
    """
    if pattern is not None and not (0 < pattern[0] <= pattern[1] and target == 1 - pattern[0] / pattern[1]):
        raise MinillmError(f"the pattern is {pattern[0]}:{pattern[1]}, expected one that keeps {1 - target:g} of M")
    groups = {}
    for layer in model.layers:
        for name, step in INPUTS.items():
            inputs = getattr(layer, name).shape[1]
            if pattern is not None and inputs % pattern[1]:
                found = f"{step} has {inputs} inputs, expected a multiple of {pattern[1]}"
                raise MinillmError(f"{found} for {pattern[0]}:{pattern[1]}")
            groups[f"blocks.{layer.index}.{step}"] = pattern or (kept_count(inputs, target), inputs)
    return groups


def kept_inputs(x: np.ndarray, count: int, group: int) -> np.ndarray:
    """True at the ``count`` largest |x| of each ``group`` successive inputs of a token.

    x (T, ...), with group a divisor of a token's inputs (z is (T, H, d), its inputs are all H d)  ->  bool, x's shape.
    """
    sizes = np.abs(x).astype(np.float32).reshape(len(x), -1, group)  # (T, groups, group)
    return largest(sizes, count).reshape(x.shape)


def top_inputs(groups: Groups, masks: dict[str, np.ndarray] | None = None) -> Tap:
    """The tap that cuts the inputs of the matrices (module docstring). masks: where to keep what it decided."""

    def tap(name: str, value: np.ndarray) -> np.ndarray:
        if name not in groups:
            return value
        mask = kept_inputs(value, *groups[name])
        if masks is not None:
            masks[name] = mask
        return where_kept(mask, value)

    return tap


def masked_gradients(masks: Mapping[str, np.ndarray]) -> Tap:
    """The tap of the way back that makes straight-through gradients masked ones."""
    return lambda name, d: where_kept(masks[name], d) if name in masks else d


def sparse_language(groups: Groups, straight: bool = True) -> Pass:
    """The pass of next-token prediction with cut inputs, for training/trainer.py.

    straight: straight-through gradients, else masked ones.
    """

    def one_pass(model: Llama, ids: np.ndarray, count: int, tap: Tap) -> float:
        saved, masks = Saved(), dict[str, np.ndarray]()
        model.forward(ids[:-1], tap=chained(top_inputs(groups, masks), saved))  # saved holds what the matrices saw
        loss = partial(cross_entropy, targets=ids[1:], count=count)
        back = tap if straight else chained(masked_gradients(masks), tap)
        return backward(model, ids[:-1], loss, saved, tap=back).loss

    return one_pass


def bytes_read(layer: Layer, name: str, groups: Groups) -> int:
    """Bytes of the columns of one matrix that a token reads (module docstring)."""
    matrix, (count, group) = getattr(layer, name), groups[f"blocks.{layer.index}.{INPUTS[name]}"]
    rows, inputs = matrix.shape
    return WEIGHT_BYTES * rows * (inputs // group * count)


def fit(
    model: Llama, documents: str | Sequence[str], target: float, *, context: int | None = None,
    pattern: tuple[int, int] | None = None,
) -> Variant:  # fmt: skip
    """A model, dense or trained for it, run with cut inputs. No text is read: documents and context have no effect.

    target: the share of the inputs that each token cuts. pattern: (N, M). It is not in METHODS, because the tables of
    those methods compare weights that are removed for good. Raises as ``groups_of`` does, and for FFNs without a gate.
    """
    check("qsparse", model, target)
    groups, reads = groups_of(model, target, pattern), {}
    for name in INPUTS:
        dense = sum(dense_bytes(getattr(layer, name)) for layer in model.layers)
        read = sum(bytes_read(layer, name, groups) for layer in model.layers)
        reads[name] = Read(dense, read, read)
    stay = f"{pattern[0]} of each {pattern[1]} successive inputs stay" if pattern else "a fixed number of them stays"
    spec = SparsitySpec(
        "qsparse", tuple(dict.fromkeys(INPUTS.values())), "top-k", "reads", target,
        1 - sum(read.exact for read in reads.values()) / sum(read.dense for read in reads.values()),
        layer_scope=f"all layers, the inputs of all {len(INPUTS)} matrices",
        granularity=f"one decision per token and input, {stay}",
    )  # fmt: skip
    down = reads["down_proj"]  # its columns are the neurons
    return Variant(
        "qsparse", model, tap=top_inputs(groups), spec=spec, reads=reads,
        stored=stored_bytes(model, model.layers), removed=1 - down.exact / down.dense,
    )  # fmt: skip
