"""What prediction is worth: a row per predictor, at the same selected fraction, on text that none of them has seen.

For each predictor, with its own mask in the loop (predictors/select.py):

    recall, precision, f1, iou, selected   against the mask of policy mid, pooled over tokens, mean over layers
    own_bytes        of its tables, and their share of the FFNs' bytes in float32 and as the checkpoint stores them
    bytes_per_token  (rows and columns read) x their stored size + own_bytes: what a token reads, all FFNs together
    increase         perplexity with it minus the dense model's
    over_oracle      perplexity with it minus that with the oracle's mask
    times_oracle     increase over the oracle's increase; None where the oracle's is not clearly above 0 (``is_clear``):
                     a quotient of two numbers that are both nearly nothing means nothing
    kl               mean KL divergence from the dense model's next-token distribution, in nats

increase and over_oracle come with _low and _high, the limits of 95 % over documents (bootstrap.py; None for one
document). Beside them stand the baselines that a predictor must beat (chance, static, previous-token) and the bound
(oracle).

Three texts share no document: ``training`` for counting and training, ``held`` for thresholds, cutoffs and early
stopping, ``test`` for the figures.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..predictors.catalogue import CATALOGUE, EVALUATED, entry_of
from ..predictors.cutoffs import fit_cutoffs
from ..predictors.metrics import PredictionMeter
from ..predictors.protocol import Predictor
from ..predictors.select import sparse_ffn
from ..predictors.workshop import Workshop
from ..sparsity.calibrate import calibrate
from ..sparsity.spec import SparsityMeter
from ..sparsity.thresholds import Thresholds
from ..trace import chained
from ..transformer.evaluation import Evaluation, divergence_of, perplexity, run_hidden
from ..transformer.model import Llama, shape_of
from ..transformer.texts import Sample, as_documents, runs, split_text
from .bootstrap import difference, in_words
from .describe import stored_bytes
from .score import evaluation_of

TRAINING_SHARE = 0.75  # of the documents that are not test documents; the rest is held out
NOTHING = 5e-3  # of the dense perplexity: an increase that is smaller is too small to be divided by


def ffn_bytes(model: Llama) -> tuple[int, int]:
    """Bytes of all FFN weights in float32, and as the checkpoint stores them (as loaded, where there is no file)."""
    return 4 * model.parameters["ffn"], stored_bytes(model)["ffn"]


class FinalStates:
    """A tap that keeps the values of final_norm, (T, D) of each pass: the logits follow from them."""

    def __init__(self) -> None:
        self.passes: list[np.ndarray] = []

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        if name == "final_norm":
            self.passes.append(value.copy())
        return value


class Dense(NamedTuple):
    """The dense model on a text: its score, and the values behind its last norm, which kl compares with."""

    score: Evaluation
    states: FinalStates


def predictor_row(
    model: Llama, predictor: Predictor, thresholds: Thresholds, test: Sequence[str], fraction: float, dense: Evaluation,
) -> dict:  # fmt: skip
    """Score one predictor, cutoffs set, under the protocol and context of the dense score (module docstring)."""
    states = FinalStates()
    for run in runs(model, test, dense.protocol, dense.context):
        states.passes += run_hidden(model, run.ids[:-1])
    return _predictor_row(model, predictor, thresholds, test, fraction, Dense(dense, states))


def _predictor_row(
    model: Llama, predictor: Predictor, thresholds: Thresholds, test: Sequence[str], fraction: float, beside: Dense,
) -> dict:  # fmt: skip
    """The row of ``predictor_row`` from one pass: the logits of both models follow from their last states."""
    ffn, meter, counted = sparse_ffn(model, thresholds, predictor=predictor), PredictionMeter(), SparsityMeter()
    dense, states = beside.score, FinalStates()
    score = perplexity(model, test, dense.protocol, dense.context, ffn, chained(meter, counted, states))
    kl, agreement = divergence_of(model, zip(beside.states.passes, states.passes, strict=True))
    metrics, (in_float32, as_stored) = meter.report(), ffn_bytes(model)
    reads = counted.report()
    read = [None if math.isnan(share) else share for share in reads.read_exact]
    layers, hidden, intermediate = shape_of(model)
    own_work = sum(predictor.multiply_adds(i) for i in range(layers))
    touched = reads.weight_reads * as_stored + predictor.nbytes
    increase, low, high = difference(score, dense)
    return {
        "model": model.name,
        "predictor": predictor.name,
        "fraction": fraction,
        **metrics,
        "own_bytes": predictor.nbytes,
        "own_share_float32": predictor.nbytes / in_float32,
        "own_share_stored": predictor.nbytes / as_stored,
        "read_gate": read[0],
        "read_up": read[1],
        "read_down": read[2],
        "bytes_per_token": touched,
        "dense_bytes": as_stored,
        "reads": touched / as_stored,
        "multiply_adds": own_work + sum(share or 0.0 for share in read) * layers * hidden * intermediate,
        "own_multiply_adds": own_work,
        "perplexity": score.perplexity,
        "dense": dense.perplexity,
        "increase": increase,
        "increase_low": low,
        "increase_high": high,
        "times_oracle": None,
        "kl": kl,
        "agreement": agreement,
        "nll": score.nll,
        "tokens": score.tokens,
        "bytes": score.bytes,
        "protocol": score.protocol,
        "context": score.context,
        "bos": score.bos,
        "dtype": str(model.dtype),
        "truth": str(thresholds.spec),
        "document_nll": score.document_nll.tolist(),
        "document_tokens": score.document_tokens.tolist(),
    }


def is_clear(oracle: dict) -> bool:
    """Whether the oracle's increase is above 0: all of its interval is, and it is more than NOTHING of the dense one.

    False where there is no interval, because then nothing says how sure the increase is.
    """
    low = oracle["increase_low"]
    return low is not None and low > 0 and oracle["increase"] > NOTHING * oracle["dense"]


def beside_oracle(row: dict, oracle: dict, seed: int = 0) -> dict:
    """The row with over_oracle, its interval, and times_oracle (module docstring): two rows of ``predictor_row``.

    seed: of the bootstrap. Raises MinillmError where the two were not scored on the same documents.
    """
    rng = np.random.default_rng(seed)
    over, low, high = difference(evaluation_of(row), evaluation_of(oracle), rng)
    times = row["increase"] / oracle["increase"] if is_clear(oracle) else None
    return row | {"over_oracle": over, "over_oracle_low": low, "over_oracle_high": high, "times_oracle": times}


def nats_over_oracle(row: dict, oracle: dict) -> str:
    """ln(perplexity / the oracle's) with its interval, in nats per token: what is said where no quotient is."""
    ends = (row[f"over_oracle{end}"] for end in ("", "_low", "_high"))
    value, low, high = (None if end is None else math.log1p(end / oracle["perplexity"]) for end in ends)
    assert value is not None
    return f"{in_words(value, low, high, '+.4f')} nats per token over the oracle"


def difference_in_words(row: dict, key: str) -> str:
    """A row's "increase" or "over_oracle" with its interval, as a table shows it."""
    return in_words(row[key], row[f"{key}_low"], row[f"{key}_high"])


@dataclass(frozen=True, eq=False)
class PredictionSettings:
    """How predictors are made: 1 - sparsity is the selected fraction of the neurons.

    thresholds: of policy mid, the truth; None: calibrated on the held-out documents. rank: of svd and learned; None: a
    quarter of D. seed: of all random numbers.
    """

    sparsity: float = 0.5
    thresholds: Thresholds | None = None
    rank: int | None = None
    seed: int = 0


def workshop_of(
    model: Llama, calibration: str | Sequence[str], settings: PredictionSettings, context: int | None = None
) -> Workshop:
    """The Workshop that makes predictors: the calibration text, split into training and held-out documents."""
    training, held = split_text(calibration, TRAINING_SHARE)
    thresholds = settings.thresholds
    if thresholds is None:
        thresholds = calibrate(model, held, "mid", settings.sparsity, context=context, by="neuron")
    return Workshop(model, thresholds, training, held, context, settings.rank, settings.seed)


def prediction_rows(
    model: Llama, calibration: str | Sequence[str], test: Sample, names: Sequence[str] = EVALUATED,
    settings: PredictionSettings | None = None, made: dict[str, Predictor] | None = None,
) -> Iterator[dict]:  # fmt: skip
    """Make, set and score predictors at the selected fraction; yields each row as soon as it is known.

    calibration: split here into training and held-out documents. The oracle always comes first: the others are compared
    with it (``beside_oracle``). Its cutoffs are the thresholds; all others' are fitted to the fraction. made: a dict
    that is filled with the predictors by name, for further use. Raises MinillmError for an unknown name.
    """
    settings = settings or PredictionSettings()
    if tuple(names) == EVALUATED and not model.config.gated:  # all that can be made
        names = [name for name in names if (known := entry_of(name)) and not CATALOGUE[known[0]].of_up]
    fraction, context = 1 - settings.sparsity, test.context
    workshop = workshop_of(model, calibration, settings, context)
    documents, states = as_documents(test.documents), FinalStates()
    beside = Dense(perplexity(model, *test, tap=states), states)
    oracle: dict | None = None
    for name in ("oracle", *(name for name in names if name != "oracle")):
        predictor = workshop.make(name)
        if made is not None:
            made[name] = predictor
        if name != "oracle":
            fit_cutoffs(model, predictor, workshop.thresholds, workshop.held, fraction, context)
        row = _predictor_row(model, predictor, workshop.thresholds, documents, fraction, beside)
        oracle = oracle or row
        yield beside_oracle(row, oracle, settings.seed)


def verdict(rows: Sequence[dict]) -> list[str]:
    """The answers that the rows of one fraction give to the questions of such a table, as sentences.

    The oracle's row comes first. Multiples of its increase are given only where it is clear; else the differences.
    """
    if not rows:
        return []
    oracle, *others = rows
    sentences, clear = [], is_clear(oracle)
    where = f"dense {oracle['dense']:.3f}"
    if not clear:
        why = "" if oracle["increase_low"] is not None else " (one document gives no interval)"
        sentences.append(
            f"The oracle's increase over {where} is {difference_in_words(oracle, 'increase')}, which is not clearly "
            f"more than nothing{why}: so no multiples of it are given"
        )

    def cheapest(candidates: Sequence[dict], among: str, bound: float) -> None:
        if not candidates:
            return
        best = min(candidates, key=lambda row: row["perplexity"])
        over = nats_over_oracle(best, oracle)
        if clear:
            over = f"perplexity {difference_in_words(best, 'over_oracle')} over the oracle's"
            within = "within" if best["times_oracle"] <= bound else "not within"
            over += f", {best['times_oracle']:.2f} times the oracle's increase over {where} ({within} {bound:g})"
        sentences.append(f"{among}: {best['predictor']}, {over}")

    for least, bound in ((8, 1.5), (16, 1.2)):
        small = [row for row in others if 0 < row["own_share_float32"] <= 1 / least]
        cheapest(small, f"Of at most 1/{least} of the FFNs' float32 bytes", bound)
    cheapest([row for row in others if "ahead" in row["predictor"]], "One layer ahead", 2.0)
    learned = next((row for row in others if re.fullmatch(r"learned rank \d+", row["predictor"])), None)
    rivals = [row for row in others if row["predictor"] in ("static", "previous-token")] if learned else []
    sentences += [_against(learned, rival) for rival in rivals if learned]
    regression = next(
        (row for row in others if learned and row["predictor"] == f"{learned['predictor']} from |mid|"), None
    )
    if learned and regression:
        sentences.append(_against(regression, learned))
    return sentences


def _against(learned: dict, rival: dict) -> str:
    """A learned predictor beside a baseline: recalls, and the difference of the perplexities."""
    over, low, high = difference(evaluation_of(learned), evaluation_of(rival))
    answer = "undecided" if low is None or high is None or low <= 0 <= high else "worse" if low > 0 else "better"
    return (
        f"{learned['predictor']} against {rival['predictor']}, the same fraction selected: recall "
        f"{learned['recall']:.3f} against {rival['recall']:.3f}; perplexity {in_words(over, low, high)}: {answer}"
    )
