"""Both at once: some weights are removed for good, and of what is left each token reads the neurons it needs.

A method removes single weights (wanda.py, sparsegpt.py). Of the changed model, policy mid cuts neurons for each token:

    mid_j = 0 where |mid_j| <= t             gate, up, down: the changed weights

    read per token  =  (1 - p + 1/16) (1 - s)        p: removed of each row, the sixteenth is the bitmap
                                                     s: cut of the neurons, by a mask that is known at no cost

A share R = 1 - target of the bytes can be reached by many pairs (p, s). Here p = 5/16 (WEIGHTS_READ = 3/4), since up to
there removed weights cost little; s makes up the rest. A target of up to a quarter needs no cut of neurons.

**Whose thresholds?** What is small has changed with the weights, so the thresholds are found on the changed model, with
the share s of its neurons. The control takes those of the dense model, as a user would who changes the weights of a
model and keeps its file of thresholds: then the share that is cut is another one, and only what was measured counts.

Pitfalls. The costs add up, so the pair is worth its trouble only where it replaces the last, dearest part of one of
them. The mask is an oracle's here, too: without a predictor the true figure is higher. A neuron's column of down is
taken to hold as many weights as the others (rows of gate and up do).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from ..sparsity.calibrate import calibrate
from ..sparsity.sparse import policy_ffn
from ..transformer.model import Llama
from .base import Variant
from .base import fit as fit_method

WEIGHTS_READ = 3 / 4  # of the FFNs' bytes, once weights are removed
BITMAP = 1 / 16  # of the bytes of a matrix of 16-bit weights


def shares_of(target: float) -> tuple[float, float]:
    """(p, s): the share of the weights that is removed and that of the neurons that is cut, for 1 - target read."""
    if target == 0:
        return 0.0, 0.0
    of_weights = max(1 - target, WEIGHTS_READ)
    return 1 - of_weights + BITMAP, 1 - (1 - target) / of_weights


def fit(
    model: Llama, documents: str | Sequence[str], target: float, *, context: int | None = None,
    method: str = "wanda", thresholds_of: str = "changed model",
) -> Variant:  # fmt: skip
    """Remove weights by a method, then cut neurons by policy mid (module docstring).

    target: the share of the FFNs' bytes that a token does not read where its mask is known. method: one that removes
    single weights of the FFN. thresholds_of: "changed model" or "dense model".
    """
    removed, cut = shares_of(target)
    made = fit_method(method, model, documents, removed, context)
    if cut == 0:
        found = calibrate(made.model, documents, "mid", 0.0, context)
    else:
        source = made.model if thresholds_of == "changed model" else model
        found = replace(calibrate(source, documents, "mid", cut, context, "neuron"), model=made.model.fingerprint)
    assert made.spec is not None
    how = f"{made.spec.comparison}, {removed:.3f} of them; then neurons by |mid|, {thresholds_of}"
    spec = replace(
        made.spec, comparison=how, target=target, achieved=None, token_scope="the neurons of every token",
        granularity="one decision per weight, one per token and neuron",
    )  # fmt: skip
    seen = made.calibrated_on | frozenset(found.documents_sha256)
    return replace(made, ffn=policy_ffn(made.model, found), spec=spec, calibrated_on=seen)


fit_dense_thresholds = partial(fit, thresholds_of="dense model")
fit_sparsegpt = partial(fit, method="sparsegpt")
fit_sparsegpt_dense_thresholds = partial(fit, method="sparsegpt", thresholds_of="dense model")
