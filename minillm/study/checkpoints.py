"""How the share of active neurons changes while a model is trained: the measurement behind Sparsing Law's curves.

One training per activation is stopped at some numbers of tokens. At each stop, the model is measured as it is then:

    loss        nats per token of the dense model, on the test text
    loss_cut    the same, of the model cut at one fixed CETT (policy cett, sparsity/allocate.py)
    kept        the activation ratio of the cut model: the share of (token, neuron) pairs that stay
    zeros       share of (token, neuron) pairs whose mid is exactly 0 in the dense model (of SiLU: none)

(Luo et al. 2024, arXiv 2411.02335, section 4; laws.py fits its two curves to tokens and kept.) The same CETT counts at
all checkpoints. A CETT that is searched anew at each one, for an equal loss in perplexity, is large at the early ones,
whose perplexity hardly depends on the FFN: they would look sparse.

Measured, size twin, rate 0.003, batches of 1,024 tokens of stories, CETT 0.2; relu: mean of seeds 0 to 2, silu: seed 0:

    tokens           60,000   120,000   200,000   300,000   420,000   600,000
    relu, zeros        .610      .656      .697      .730      .744      .767
    relu, kept         .088      .076      .071      .066      .065      .064
    silu, kept         .172      .162      .183      .187      .196      .208
    silu, loss         5.66      4.81      4.42      4.15      3.98      3.77

ReLU becomes sparser and SiLU denser, as the paper says; but SiLU only after about 120,000 tokens. Before that a model
still learns how frequent the tokens are, and the law does not describe it: the paper leaves the beginning out, too. A
smaller rate makes the beginning longer and the change smaller: relu's zeros at a rate of 0.001 rise from .558 to .597.
The fits of such curves have small errors and parameters that mean nothing (laws.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..arguments import real_number, whole_number
from ..errors import MinillmError
from ..sparsity.calibrate import calibrate
from ..sparsity.sparse import policy_ffn
from ..sparsity.spec import SparsityMeter
from ..threads import few_threads
from ..training.trainer import Trainer
from ..transformer.evaluation import perplexity
from ..transformer.model import Llama
from .natural import exact_zeros


class Texts(NamedTuple):
    """Documents that thresholds are found on, and others that loss and activation ratio are measured on."""

    calibration: str | Sequence[str]
    test: str | Sequence[str]
    context: int | None = None


def curve(trainer: Trainer, at: Sequence[int], texts: Texts, cett: float) -> list[dict[str, float]]:
    """Train, stop at each number of tokens, and measure: a row per checkpoint with tokens and the four figures.

    at: rising numbers of tokens; a checkpoint is the first step that reaches one. cett: one CETT for all checkpoints;
    each has the thresholds that reach it on the calibration text.

    The weights are those of the step, not their running average. Raises MinillmError where ``at`` does not rise, and
    where the plan of the training ends before its last number.
    """
    stops = [whole_number(f"at[{i}]", tokens, 1) for i, tokens in enumerate(at)]
    if not stops or any(b <= a for a, b in zip(stops, stops[1:], strict=False)):
        raise MinillmError(f"at is {stops}, expected rising numbers of tokens")
    cett = real_number("cett", cett, lambda share: 0 < share < 1, "a share between 0 and 1")
    rows: list[dict[str, float]] = []
    for stop in stops:
        tokens = _train_until(trainer, stop)
        rows.append({"tokens": tokens} | _measured(trainer.model, texts, cett))
    return rows


def _train_until(trainer: Trainer, stop: int) -> int:
    """Make steps until the training has seen that many tokens; gives how many it has seen."""
    seen = int(trainer.curve[-1]["tokens"]) if trainer.curve else 0
    with few_threads(trainer.model):
        while seen < stop:
            if trainer.done:
                raise MinillmError(f"the plan of the training ends at {seen} tokens, expected at least {stop}")
            seen = int(trainer.step()["tokens"])
    return seen


def _measured(model: Llama, texts: Texts, cett: float) -> dict[str, float]:
    """Loss, loss when cut, and activation ratio of a model at a CETT (``curve``)."""
    ffn = policy_ffn(model, calibrate(model, texts.calibration, "cett", cett, texts.context, by="cett"))
    meter = SparsityMeter()
    dense = perplexity(model, texts.test, context=texts.context)
    cut = perplexity(model, texts.test, context=texts.context, ffn=ffn, tap=meter)
    losses = {"loss": dense.nll / dense.tokens, "loss_cut": cut.nll / cut.tokens}
    zeros = exact_zeros(model, texts.test, texts.context)
    return losses | {"kept": 1 - meter.report().neuron_sparsity, "zeros": zeros}
