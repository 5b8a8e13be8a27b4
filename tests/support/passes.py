"""A traced pass of a tiny model, dense or with a cut feed-forward network."""

from minillm.predictors.select import sparse_ffn
from minillm.sparsity.policies import POLICIES
from minillm.sparsity.spec import SparsitySpec
from minillm.sparsity.thresholds import Thresholds
from minillm.trace import Trace

IDS = [1, 5, 3, 9, 30]


def cut(model, policy: str, threshold: float = 0.3, form: str = "masked"):
    """The model's FFN under a policy, with the same threshold for every tensor and layer."""
    rule = POLICIES[policy]
    layers = tuple(dict.fromkeys(rule.tensors, threshold) for _ in model.layers)
    spec = SparsitySpec(policy, rule.tensors, rule.comparison, "tensor", None)
    return sparse_ffn(model, Thresholds(policy, "tensor", None, layers, spec), form=form)


def traced(model, ids=IDS, **forward) -> Trace:
    """A Trace of every step of one pass."""
    with Trace() as trace:
        model.forward(ids, tap=trace, **forward)
    return trace
