"""How a predictor's cutoffs are set: one per layer, so that each layer selects a given share of its neurons.

    cutoff[l] = the (1 - fraction)-quantile of the scores of layer l        over all (token, neuron) pairs of a text

so the selected share of (token, neuron) pairs is ``fraction``, whatever the scale of the scores. The cutoffs are found
with the predictor in the loop, because the input of a layer changes when neurons are cut in the layers before it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from ..errors import MinillmError
from ..sparsity.thresholds import Thresholds
from ..steps import place
from ..threads import with_few_threads
from ..transformer.evaluation import pass_over
from ..transformer.model import Llama
from ..transformer.texts import document_hashes, runs
from .protocol import Predictor, check_fits
from .select import above, predicted_ffn


@with_few_threads
def fit_cutoffs(
    model: Llama,
    predictor: Predictor,
    thresholds: Thresholds,
    documents: str | Sequence[str],
    fraction: float,
    context: int | None = None,
    tolerance: float = 1e-3,
) -> np.ndarray:
    """Set predictor.cutoffs so that every layer selects ``fraction`` of its (token, neuron) pairs; returns them (L,).

        cutoff[l] = the (1 - fraction)-quantile of the scores of layer l, with layers 0 .. l-1 already cut

    Each pass computes all quantiles with the current cutoffs; the first pass is dense. Each pass settles at least one
    more layer, and the passes end when every layer is within ``tolerance``, usually after two or three.

    documents: training text only. fraction 1 selects everything, with cutoffs of -inf. All scores of a pass are held in
    memory; ten thousand tokens are enough. Raises MinillmError for a fraction out of range and for a predictor of
    another model.
    """
    thresholds.check_fits(model)
    check_fits(predictor, model)
    if not 0 < fraction <= 1:
        raise MinillmError(f"fraction is {fraction}, expected a share above 0 and at most 1")
    layers = len(model.layers)
    predictor.cutoffs = np.full(layers, -np.inf)
    if predictor.model is None and not predictor.trained_on:  # without tables, as chance; an older file's stays unknown
        predictor.model = model.fingerprint
    predictor.trained_on |= frozenset(document_hashes(documents))
    pieces = runs(model, documents, "documents", context)
    scores: dict[int, list[np.ndarray]] = defaultdict(list)

    def tap(name: str, value: np.ndarray) -> np.ndarray:
        if (at := place(name)) is not None and at.step == "mlp.scores":
            scores[at.layer].append(np.array(value))
        return value

    for _ in range(layers + 1 if fraction < 1 else 0):
        pass_over(model, pieces, tap, predicted_ffn(predictor, thresholds), f"cutoffs of {predictor.name}")
        values = [np.concatenate(scores.pop(i)).ravel() for i in range(layers)]
        selected = [np.mean(above(v, c)) for v, c in zip(values, predictor.cutoffs, strict=True)]
        if max(abs(s - fraction) for s in selected) <= tolerance:
            break
        before, predictor.cutoffs = predictor.cutoffs, np.array([_cutoff(v, fraction) for v in values])
        if np.array_equal(before, predictor.cutoffs):  # tied scores (static) allow no cutoff that is nearer
            break
    return predictor.cutoffs


def _cutoff(values: np.ndarray, fraction: float) -> float:
    """The number that a share ``fraction`` of the values lies above; with ties, the nearest possible share."""
    rank = round((1 - fraction) * len(values))  # number of values to leave out
    if rank == 0:
        return -np.inf
    cutoff = np.partition(values, rank - 1)[rank - 1]
    larger = np.count_nonzero(values > cutoff)
    equal = np.count_nonzero(values == cutoff)
    if abs(larger + equal - fraction * len(values)) < abs(larger - fraction * len(values)):
        below = values[values < cutoff]
        cutoff = below.max() if below.size else -np.inf
    return float(cutoff)
