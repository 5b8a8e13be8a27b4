"""Small texts, a model of three layers and random patterns: what tests of libraries and clusters start from."""

import numpy as np

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
