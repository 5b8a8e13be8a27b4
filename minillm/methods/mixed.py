"""Mixed sparsity: matrices that the loss is sensitive to keep more of their weights.

Shao et al. 2023 (One-Shot Sensitivity-Aware Mixed Sparsity Pruning for Large Language Models, arXiv 2310.09499,
algorithm 1; its code is PrunerGPT). Each matrix is pruned and compensated as in sparsegpt.py, by ISC. What is new is
how much of each matrix goes.

**Sensitivity** of a matrix with n weights: how strongly the loss of the model curves along them,

    s = trace(d^2 L / dw^2) / n            L: the mean next-token loss on a calibration text

The trace is never formed. For a random z of +1 and -1, the mean of z . (Hess z) is the trace (Hutchinson 1990), and a
Hessian times a vector is the difference of two gradients (training/backward.py):

    Hess z = (g(w + e z) - g(w - e z)) / 2e

One z for all matrices at once gives all their traces: what one matrix does to another has mean 0.

**Allocation.** The m matrices are ranked by s, from 0 for the least sensitive. At a target p, rank r keeps

    1 - p - a + 2 a r / (m - 1)            a = 0.1: from p + a to p - a of a matrix goes

The mean of these shares is 1 - p only where all matrices have the same size, so all are moved by the same amount until
the share of all weights that goes is p.

Pitfalls. The ranks forget how large the sensitivities are: a matrix that is a thousand times more sensitive keeps as
much as one that is next in rank. Gaussian z (the paper's text) have the same mean and more spread than +1 and -1 (its
code).

Differs from the released code: the ranks are those of the matrices alone; there, the weights of norms are ranked, too,
and by the trace in place of trace / n. Differs from the released code: shares are renormalised by size; without that,
other shares than p go where large matrices are the sensitive ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from ..errors import MinillmError
from ..training.trainer import language
from ..transformer.layer import Layer, weight_name
from ..transformer.model import Llama
from ..transformer.texts import Run, document_hashes, first_runs, runs
from .base import Variant, check, layer_by_layer, products, weights_variant
from .sparsegpt import WORDS, compensated, isc
from .wanda import checked, weights_spec

SPREAD = 0.1  # a
PROBES, TOKENS = 8, 2000  # of the traces: random vectors, and tokens of the calibration text for each
STEP = 1e-4  # e, beside weights of about 0.1


# ---- sensitivity -----------------------------------------------------------------------------------------------------
def gradient(model: Llama, pieces: Sequence[Run], names: Sequence[str]) -> dict[str, np.ndarray]:
    """The gradient of the mean next-token loss on some texts, by these weights {name: array like the weight}."""
    count, one_pass = sum(len(run.ids) - 1 for run in pieces), language()
    total = {name: np.zeros_like(model.weights[name]) for name in names}

    def add(name: str, d: np.ndarray) -> np.ndarray:
        if name in total:
            total[name] += d
        return d

    for run in pieces:
        one_pass(model, np.array(run.ids), count, add)
    return total


def traces(
    model: Llama, pieces: Sequence[Run], names: Sequence[str], probes: int = PROBES, seed: int = 0
) -> dict[str, float]:
    """The trace of the loss's Hessian by each of these weights, by Hutchinson's method (module docstring).

    model: its weights are copied to float64, so that the difference of two gradients keeps its digits.
    """
    from tqdm.auto import tqdm

    weights = {name: w.astype(np.float64) for name, w in model.weights.items()}
    copy, rng = Llama(model.config, weights, model.folder), np.random.default_rng(seed)
    found = dict.fromkeys(names, 0.0)
    for _ in tqdm(range(probes), desc="sensitivities", unit="probe", leave=False, delay=2, disable=None):
        z = {name: rng.integers(0, 2, weights[name].shape) * 2.0 - 1 for name in names}
        sides = []
        for step in (STEP, -2 * STEP):
            for name in names:
                weights[name] += step * z[name]  # the arrays are the copy's own
            sides.append(gradient(copy, pieces, names))
        for name in names:
            weights[name] += STEP * z[name]
            found[name] += float(np.vdot(z[name], sides[0][name] - sides[1][name])) / (2 * STEP * probes)
    return found


# ---- allocation ------------------------------------------------------------------------------------------------------
def allocated(sensitivities: Mapping[str, float], sizes: Mapping[str, int], target: float) -> dict[str, float]:
    """The share of each matrix that goes, by its rank; of all weights together, ``target`` goes.

    sensitivities: trace / n. sizes: n. Raises MinillmError where a share would not be from 0 to below 1.
    """
    order = sorted(sensitivities, key=lambda name: sensitivities[name])
    last = max(1, len(order) - 1)
    goes = {name: target + SPREAD - 2 * SPREAD * rank / last for rank, name in enumerate(order)}
    total = sum(sizes[name] for name in order)
    moved = target - sum(goes[name] * sizes[name] for name in order) / total
    shares = {name: share + moved for name, share in goes.items()}
    low, high = min(shares.values()), max(shares.values())
    if not (low >= 0 and high < 1):
        raise MinillmError(
            f"target is {target}: from {low:.2f} to {high:.2f} of a matrix would go, expected a target at which all "
            "shares lie from 0 to below 1"
        )
    return shares


def in_columns(shares: Mapping[str, float], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
    """The shares as whole numbers of inputs: what is rounded off at one matrix is made up for at the next.

    shapes: (out, in) of each matrix. So the share of all weights stays what it was, but for less than one input.
    """
    whole, left = {}, 0.0
    for name, share in shares.items():
        rows, inputs = shapes[name]
        wanted = share * rows * inputs + left
        count = min(inputs - 1, max(0, round(wanted / rows)))
        whole[name], left = count / inputs, wanted - count * rows
    return whole


# ---- a whole model ---------------------------------------------------------------------------------------------------
def fit(
    model: Llama, documents: str | Sequence[str], target: float, *, context: int | None = None, matrices: str = "ffn"
) -> Variant:
    """Prune by ISC, each matrix by its share, and compensate (module docstring).

    target: the share of all weights of the matrices that goes. matrices: "ffn" (three per layer) or "all" (seven). The
    traces are those of the dense model. Raises MinillmError for other matrices and a target out of reach.
    """
    parts = checked(target, matrices, None)
    check("mixed", model, target)
    pieces, names = runs(model, documents, "documents", context), dict[str, int]()
    for layer in model.layers:
        names |= {weight_name(layer.index, part): getattr(layer, part).size for part in parts}
    if target:
        found = traces(model, first_runs(pieces, TOKENS), list(names))
        shares = allocated({name: found[name] / size for name, size in names.items()}, names, target)
        shares = in_columns(shares, {name: model.weights[name].shape for name in names})
    else:
        shares = dict.fromkeys(names, 0.0)

    def change(layer: Layer, sums: dict[str, np.ndarray]) -> Layer:
        changed = {}
        for part in parts:
            matrix, share = getattr(layer, part), shares[weight_name(layer.index, part)]
            changed[part] = matrix.dtype.type(compensated(matrix, sums[part], share, saliency=isc))
        return replace(layer, **changed)

    layers = layer_by_layer(model, pieces, products, change)
    spec = weights_spec("mixed", WORDS["ISC"], target, matrices, None)
    spec = replace(spec, comparison=f"{WORDS['ISC']}; a share of each matrix by its rank; the others make up for them")
    return weights_variant(model, layers, spec, parts, frozenset(document_hashes(documents)))


fit_all = partial(fit, matrices="all")
