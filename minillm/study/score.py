"""One row for each model that is scored: a dense one, one with a policy, one that a method has changed.

    Variant, test text  ->  perplexity and the accounting of what was read  ->  one row

Everything that can be scored is a Variant (methods/base.py), so nothing here knows a policy or a method by name. Where
masks decide what is read, it is counted while the text is scored (SparsityMeter); where weights were removed for good,
the Variant says it. Keys that end in ``read_...`` are shares of the bytes of the dense FFN weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..methods.base import Calibrated, Variant
from ..sparsity.sparse import policy_ffn
from ..sparsity.spec import SparsityMeter, SparsityReport
from ..sparsity.thresholds import Thresholds
from ..trace import Tap, no_tap
from ..transformer.evaluation import Evaluation, perplexity
from ..transformer.ffn import swiglu
from ..transformer.layer import FFN_MATRICES
from ..transformer.model import Llama


def policy_variant(model: Llama, thresholds: Thresholds) -> Variant:
    """A policy with its thresholds: the dense weights, and an FFN that cuts."""
    return Variant(
        thresholds.policy, model, policy_ffn(model, thresholds), spec=thresholds.spec, level=thresholds.level,
        calibrated_on=frozenset(thresholds.documents_sha256),
    )  # fmt: skip


def score_cut(model: Llama, test: str | Sequence[str], thresholds: Thresholds, dense: Evaluation) -> dict:
    """Score one set of thresholds under the protocol and context of the dense score; gives its row."""
    return score_variant(policy_variant(model, thresholds), test, dense)


def score_variant(variant: Variant, test: str | Sequence[str], dense: Evaluation) -> dict:
    """Score a Variant under the protocol and context of the dense score; gives its row."""
    meter = SparsityMeter()
    ffn = Calibrated(variant.ffn, variant.calibrated_on)
    score = perplexity(variant.model, test, dense.protocol, dense.context, ffn, _after(variant.tap, meter))
    return row(variant.model, score, dense, accounted(variant, meter.report()), variant)


def _after(first: Tap, second: Tap) -> Tap:
    """A tap that gives a value to one tap and the result to another."""
    return second if first is no_tap else lambda name, value: second(name, first(name, value))


def accounted(variant: Variant, measured: SparsityReport) -> SparsityReport:
    """The accounting of a run, with what weights that were removed for good leave to be read.

    Where each token also cuts neurons of the changed weights (methods/combined.py), both shares count: a token reads
    the share of the rows and columns that its mask needs, of the bytes that are left. The target of such a variant is
    the share of the bytes that is not read where the mask is known, so this is what is achieved.
    """
    if variant.reads is None:
        return measured
    gate, up, down = (variant.reads[name] for name in FFN_MATRICES)
    exact, known = measured.read_exact, measured.read_known_mask
    report = replace(
        measured, neuron_sparsity=max(variant.removed, measured.neuron_sparsity), tensor_sparsity={},
        union_density=None,
        read_exact=(gate.exact / gate.dense * exact[0], up.exact / up.dense * exact[1],
                    down.exact / down.dense * exact[2]),
        read_known_mask=(gate.known_mask / gate.dense * known[0], up.known_mask / up.dense * known[1],
                         down.known_mask / down.dense * known[2]),
    )  # fmt: skip
    if variant.spec is None:
        return report
    achieved = variant.spec.achieved
    if achieved is None and variant.ffn is not swiglu:
        achieved = 1 - report.weight_reads_known_mask
    return report if achieved is None else replace(report, tensor_sparsity={"weights": achieved})


def row(
    model: Llama,
    score: Evaluation,
    dense: Evaluation,
    report: SparsityReport | None = None,
    variant: Variant | None = None,
) -> dict:
    """Everything that is known about one score, under the keys of the CSV; without a variant, the dense model's."""
    report = report or SparsityMeter().report()
    spec = variant and variant.spec
    if spec:  # on the text scored, not the calibration text
        paid = score.perplexity / dense.perplexity - 1
        spec = replace(spec, achieved=paid if spec.by == "ppl" else report.achieved(spec.by))
    return {
        "model": model.name,
        "policy": variant.name if variant else "dense",
        "by": spec and spec.by,
        "target": spec and spec.target,
        "achieved": spec and spec.achieved,
        "level": variant and variant.level,
        "neuron_sparsity": report.neuron_sparsity,
        "tensor_sparsity": report.tensor_sparsity,
        "read_gate": report.read_exact[0],
        "read_up": report.read_exact[1] if model.config.gated else None,
        "read_down": report.read_exact[2],
        "read_exact": report.weight_reads,
        "read_known_mask": report.weight_reads_known_mask,
        "union_density": report.union_density,
        "union_window": report.union_window,
        "perplexity": score.perplexity,
        "vs_dense": score.perplexity / dense.perplexity,
        "bits_per_byte": score.bits_per_byte,
        "nll": score.nll,
        "tokens": score.tokens,
        "bytes": score.bytes,
        "protocol": score.protocol,
        "context": score.context,
        "bos": score.bos,
        "dtype": str(model.dtype),
        "spec": str(spec) if spec else "dense: nothing is cut",
        "document_nll": score.document_nll.tolist(),
        "document_tokens": score.document_tokens.tolist(),
    }


def evaluation_of(row: dict) -> Evaluation:
    """The score that a row was made of."""
    fields = {key: row[key] for key in ("protocol", "context", "bos", "nll", "tokens", "bytes")}
    return Evaluation(
        **fields, document_nll=np.array(row["document_nll"]), document_tokens=np.array(row["document_tokens"])
    )
