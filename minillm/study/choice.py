"""What a choice of neurons or blocks costs: perplexity with each token's best ones kept, by oracle or predictor.

Whoever chooses keeps the same number of blocks of g neurons for every token and layer, those of the largest sum

    oracle       m_j^2 ||down_j||^2     from the true mid: a bound, since nobody knows it beforehand (reorder.py)
    predictor    s_j^2                  from its scores, which are known before the layer is read (fetched.py)

g = 1 keeps single neurons. The blocks of a larger g are grouped on the calibration text (``clustered``), anew for each
share. All choosers take their blocks from the same order, so a row shows the choice and nothing else.

    increase = perplexity with the choice / dense perplexity - 1, with the limits of 95 % over documents (bootstrap.py)

The predictors are shadows (predictors/copies.py) of BITS bits, made with the calibration text: unpacked once to the
model's dtype, and packed, with the input rounded as well (predictors/planes.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ..predictors.copies import Shadow
from ..predictors.planes import PackedShadow
from ..predictors.protocol import Predictor
from ..prefetch.fetched import PredictedBlocks
from ..prefetch.reorder import BlockOracle, clustered, energy_shares, recorded_mid
from ..sparsity.selected import SelectedFFN
from ..transformer.evaluation import Evaluation, perplexity
from ..transformer.ffn import Selector
from ..transformer.model import Llama
from ..transformer.texts import Sample
from .blocks import BlockSettings
from .bootstrap import difference
from .prediction import PredictionSettings, workshop_of

ORACLE, BITS = "oracle", (4, 2)


def choosers(shadows: Mapping[int, Shadow]) -> dict[str, Predictor]:
    """The predictors of a table by name, from shadows by their bits: the first unpacked, then all of them packed."""
    bits = next(iter(shadows))
    unpacked: dict[str, Predictor] = {f"{bits}-bit unpacked": shadows[bits]}
    return unpacked | {f"{bits}-bit packed": PackedShadow(shadow) for bits, shadow in shadows.items()}


def choice_rows(
    model: Llama, calibration: str | Sequence[str], test: Sample, sparsities: Sequence[float], settings: BlockSettings
) -> Iterator[dict]:
    """Rows for each share left out, block size and chooser, each as soon as it is known.

    Keys: chosen_by, group, sparsity, perplexity, dense_perplexity, increase, increase_low, increase_high (None for a
    text of one document). settings: block sizes, tokens to group on, seed.
    """
    dense = perplexity(model, *test)
    workshop = workshop_of(model, calibration, PredictionSettings(seed=settings.seed), test.context)
    predictors = choosers({bits: workshop.shadow(bits) for bits in BITS})
    mids = recorded_mid(model, calibration, settings.tokens, test.context)
    energies = [energy_shares(mid, layer) for mid, layer in zip(mids, model.layers, strict=True)]
    for sparsity in sparsities:
        share = 1 - sparsity
        for group in (1, *settings.groups):
            rng, orders = np.random.default_rng(settings.seed), None
            if group > 1:
                orders = [clustered(energy, group, rng, share) for energy in energies]
            selects: dict[str, Selector] = {ORACLE: BlockOracle(group, share, orders)}
            selects |= {name: PredictedBlocks(made, group, share, orders) for name, made in predictors.items()}
            for name, select in selects.items():
                score = perplexity(model, *test, ffn=SelectedFFN(select))
                yield {"chosen_by": name, "group": group, "sparsity": sparsity, **costs(score, dense)}


def costs(score: Evaluation, dense: Evaluation) -> dict[str, float | None]:
    """The keys of a row that come from its score."""
    increase, *limits = difference(score, dense)
    low, high = (None if limit is None else limit / dense.perplexity for limit in limits)
    found = {"perplexity": score.perplexity, "dense_perplexity": dense.perplexity}
    return found | {"increase": increase / dense.perplexity, "increase_low": low, "increase_high": high}
