"""The cost tables of the report: rows at equal neurons, at equal reads, by the paper's rule, and by weights removed.

    "neuron", "reads"   policies that can be compared, since this is equal between them
    "tensor"            the paper's own percentages, for dhar alone
    "weights"           methods that remove weights for good, by the share that goes

Each group begins with the dense row. The rows are those of score.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..methods.base import fit
from ..sparsity.calibrate import calibrate
from ..sparsity.magnitudes import collect
from ..sparsity.policies import policy_named
from ..transformer.evaluation import Evaluation
from ..transformer.ffn import FeedForward
from ..transformer.model import Llama
from .score import policy_variant, row, score_variant

COMPARED_POLICIES = ("dhar", "cats", "mid", "countdown", "teal")
TARGETS = {"neuron": (0.3, 0.5, 0.7), "reads": (0.1, 0.2, 0.3), "tensor": (0.3, 0.4, 0.5)}  # tensor: dhar alone
WEIGHT_TARGETS = (0.3, 0.5, 0.7)  # of the methods that remove weights
HALF = 0.5  # what the continuations, predictors, patterns and the buffer leave out


def cost_rows(
    model: Llama, known: Sequence[str], scored: Sequence[str], dense: Evaluation, done: Callable[[str], None]
) -> tuple[dict[str, list[dict]], dict[str, FeedForward]]:
    """Rows of the policies by what is equal between them; and two FFNs that cut half of the neurons.

    known: documents to calibrate on. scored: others. done: called after each row.
    """
    tensors = sorted({tensor for policy in COMPARED_POLICIES for tensor in policy_named(policy).tensors})
    magnitudes = collect(model, known, tensors, dense.context)
    cuts, half = {}, {}
    for by, targets in TARGETS.items():
        cuts[by] = [row(model, dense, dense)]
        for target in targets:
            for policy in ("dhar",) if by == "tensor" else COMPARED_POLICIES:
                thresholds = calibrate(model, known, policy, target, dense.context, by, magnitudes=magnitudes)
                variant = policy_variant(model, thresholds)
                cuts[by].append(score_variant(variant, scored, dense))
                if (by, target) == ("neuron", HALF) and policy in ("mid", "dhar"):
                    half[policy] = variant.ffn
                done(f"{policy} by {by} {target:.0%}")
    return cuts, {policy: half[policy] for policy in ("mid", "dhar")}


def method_rows(
    model: Llama, known: Sequence[str], scored: Sequence[str], dense: Evaluation, methods: Sequence[str],
    done: Callable[[str], None],
) -> dict[str, list[dict]]:  # fmt: skip
    """Rows of methods by the share of weights removed, under "weights"; {} without methods."""
    rows = [row(model, dense, dense)]
    for target in WEIGHT_TARGETS:
        for name in methods:
            rows.append(score_variant(fit(name, model, known, target, dense.context), scored, dense))
            done(f"{name} {target:.0%}")
    return {"weights": rows} if methods else {}
