"""Small texts, a model of three layers and random patterns: what tests of libraries and clusters start from."""

import numpy as np
import pytest

from minillm.predictors.cutoffs import fit_cutoffs
from minillm.predictors.metrics import PredictionMeter
from minillm.predictors.select import predicted_ffn
from minillm.transformer.evaluation import perplexity

WORDS = "the cat sat on a mat and saw the red sea. tom ran home.".split()
BITS = 0.75  # a cutoff between a set bit (1 and more) and a bit that is not (below one half)


def texts(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 12)) for _ in range(count)]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def random_patterns(count: int, width: int = 40, density: float = 0.5, seed: int = 0) -> np.ndarray:
    return rng(seed).random((count, width)) < density


def metrics(model, predictor, thresholds, documents) -> dict[str, float]:
    meter = PredictionMeter()
    perplexity(model, documents, ffn=predicted_ffn(predictor, thresholds), tap=meter)
    return meter.report()


def check_selected_share(model, predictor, thresholds, documents, share: float) -> None:
    """With cutoffs fitted for this share, this share of the neurons is selected, although many votes are equal."""
    fit_cutoffs(model, predictor, thresholds, documents, share)
    meter = PredictionMeter()
    for text in documents:
        model.forward(model.tokenizer.encode(text), ffn=predicted_ffn(predictor, thresholds), tap=meter)
    assert meter.report()["selected"] == pytest.approx(share, abs=0.005)


def check_forms_agree(model, predictor, thresholds) -> None:
    """The gathered and the masked FFN of the predictor give the same logits."""
    predictor.cutoffs = np.full(3, 0.6)
    ids = model.tokenizer.encode(texts(1, seed=9)[0])
    a, b = (model.forward(ids, ffn=predicted_ffn(predictor, thresholds, form)) for form in ("masked", "gathered"))
    assert np.allclose(a, b, rtol=1e-12, atol=1e-12 * np.abs(a).max())
