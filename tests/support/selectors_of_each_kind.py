"""One small Selector of each kind for a tiny model, made anew each time, as some have a state; a wrapper to watch."""

import numpy as np
from traces import guesser

from minillm.predictors.baselines import Chance
from minillm.predictors.copies import Shadow
from minillm.predictors.select import Predicted
from minillm.prefetch.fetched import PredictedBlocks
from minillm.prefetch.reorder import BlockOracle
from minillm.sparsity.griffin import Griffin
from minillm.sparsity.policies import POLICIES
from minillm.sparsity.selected import Recorded, StaticSet
from minillm.sparsity.sparse import policy_selector
from minillm.sparsity.spec import SparsitySpec
from minillm.sparsity.thresholds import Thresholds
from minillm.transformer.model import shape_of

TOKENS = 7  # of the recorded masks


def limits(model, value: float = 0.4, policy: str = "mid") -> Thresholds:
    """The same threshold for every layer and tensor of a policy."""
    rule = POLICIES[policy]
    layers = tuple(dict.fromkeys(rule.tensors, value) for _ in model.layers)
    return Thresholds(
        policy, "tensor", None, layers, SparsitySpec(policy, rule.tensors, rule.comparison, "tensor", None)
    )


def chance(model) -> Chance:
    """A predictor that is often wrong."""
    predictor = Chance(shape_of(model), 3)
    predictor.cutoffs = np.full(shape_of(model)[0], 0.6)
    return predictor


def own_gate(model) -> Shadow:
    """A predictor that reads the layer's own gate."""
    predictor = Shadow.fit(model, 3, gate_bits=0)
    predictor.attach(model)
    predictor.cutoffs = np.full(shape_of(model)[0], 0.2)
    return predictor


def random_masks(model, shape: tuple[int, ...] = ()) -> np.ndarray:
    """Masks (L, ..., F), 40 % True."""
    layers, _, neurons = shape_of(model)
    return np.random.default_rng(6).random((layers, *shape, neurons)) < 0.4


KINDS = {
    "policy oracle": lambda m: policy_selector(m, limits(m)),
    "predicted": lambda m: Predicted(chance(m)),
    "predicted, with the truth": lambda m: Predicted(guesser(m), limits(m)),
    "predicted, with the gate": lambda m: Predicted(own_gate(m)),
    "predicted blocks": lambda m: PredictedBlocks(chance(m), 5, 0.5),
    "block oracle": lambda m: BlockOracle(4, 0.5),
    "recorded": lambda m: Recorded(random_masks(m, (TOKENS,))),
    "static set": lambda m: StaticSet(random_masks(m)),
    "griffin": lambda m: Griffin([0.5] * len(m.layers)),  # patch griffin.PROMPT below TOKENS
}


class Watched:
    """A Selector around another one; calls: the layer of each call. change(mask) -> another mask, if it is given."""

    def __init__(self, select, change=None, calibrated_on: frozenset[str] = frozenset()):
        self.select, self.change, self.calls = select, change, []
        self.name, self.reads, self.calibrated_on = select.name, select.reads, select.calibrated_on | calibrated_on

    def __call__(self, x, layer, position, tap):
        self.calls.append(layer.index)
        mask = self.select(x, layer, position, tap)
        return mask if self.change is None else self.change(mask)
