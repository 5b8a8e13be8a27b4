"""One small predictor of each kind, and how it is measured."""

import numpy as np
import tiny

from minillm.predictors.ahead import Ahead
from minillm.predictors.baselines import Chance, PreviousToken, Static
from minillm.predictors.coded import Coded
from minillm.predictors.copies import LowRank, Shadow
from minillm.predictors.metrics import PredictionMeter
from minillm.predictors.select import sparse_ffn
from minillm.predictors.sign import Sign
from minillm.predictors.train import train
from minillm.transformer.evaluation import pass_over
from minillm.transformer.model import shape_of
from minillm.transformer.texts import runs

MAKERS = {
    "chance": lambda m, t: Chance(shape_of(m), 7),
    "static": lambda m, t: Static.fit(m, t, tiny.STORIES),
    "previous-token": lambda m, t: PreviousToken(Static.fit(m, t, tiny.STORIES)),
    "sign": lambda m, t: Sign.fit(m),
    "svd": lambda m, t: LowRank.fit(m, 4),
    "shadow": lambda m, t: Shadow.fit(m, 3),
    "coded": lambda m, t: Coded.fit(m, np.stack([np.eye(m.config.hidden_size)] * 2)),
    "own gate": lambda m, t: Shadow.fit(m, 3, gate_bits=0),
    "ahead": lambda m, t: Ahead.fit(m, t, tiny.STORIES, 4),
    "learned": lambda m, t: train(m, t, tiny.STORIES[:3], tiny.STORIES[3:], 3, epochs=1),
    "learned hidden": lambda m, t: train(
        m, t, tiny.STORIES[:3], tiny.STORIES[3:], 3, epochs=1, target="mid", hidden_layer=True
    ),
    "learned ahead": lambda m, t: train(m, t, tiny.STORIES[:3], tiny.STORIES[3:], 3, ahead=1, epochs=1),
    "refined": lambda m, t: train(m, t, tiny.STORIES[:3], tiny.STORIES[3:], 2, Shadow.fit(m, 2), epochs=1),
}


def measured(model, predictor, thresholds, documents=tiny.STORIES) -> PredictionMeter:
    meter = PredictionMeter()
    pass_over(model, runs(model, documents), meter, sparse_ffn(model, thresholds, predictor=predictor))
    return meter
