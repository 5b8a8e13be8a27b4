"""What prediction is worth: a row per predictor, at the same selected fraction, on text that none of them has seen.

For each predictor, with its own mask in the loop (predictors/select.py):

    recall, precision, f1, iou, selected   against the mask of policy mid, pooled over tokens, mean over layers
    own_bytes        of its tables, and their share of the FFNs' bytes in float32 and as the checkpoint stores them
    bytes_per_token  (rows and columns read) x their stored size + own_bytes: what a token reads, all FFNs together
    increase         perplexity with it minus the dense model's;  times_oracle = that over the oracle's own increase,
                     None where that is below NOTHING of the dense perplexity: then a multiple means nothing
    kl               mean KL divergence from the dense model's next-token distribution, in nats

and beside them the baselines that a predictor must beat (chance, static, previous-token) and the bound (oracle).

Three texts share no document: ``training`` for counting and training, ``held`` for thresholds, cutoffs and early
stopping, ``test`` for the figures.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..loading.checkpoint import checkpoint_tensors
from ..predictors.catalogue import EVALUATED
from ..predictors.cutoffs import fit_cutoffs
from ..predictors.metrics import PredictionMeter
from ..predictors.protocol import Predictor
from ..predictors.select import sparse_ffn
from ..predictors.workshop import Workshop
from ..sparsity.calibrate import calibrate
from ..sparsity.spec import SparsityMeter
from ..sparsity.thresholds import Thresholds
from ..trace import chained
from ..transformer.evaluation import Evaluation, divergence, perplexity
from ..transformer.model import Llama, shape_of
from ..transformer.texts import Sample, as_documents, split_text

TRAINING_SHARE = 0.75  # of the documents that are not test documents; the rest is held out
NOTHING = 1e-3


def ffn_bytes(model: Llama) -> tuple[int, int]:
    """Bytes of all FFN weights in float32, and as the checkpoint stores them (as loaded, where there is no file)."""
    layers, hidden, intermediate = shape_of(model)
    numbers = 3 * layers * hidden * intermediate
    if model.folder is None:
        return 4 * numbers, model.dtype.itemsize * numbers
    stored = [t.nbytes for name, t in checkpoint_tensors(model.folder).items() if re.search(r"mlp\..*weight$", name)]
    return 4 * numbers, sum(stored)


def predictor_row(
    model: Llama, predictor: Predictor, thresholds: Thresholds, test: Sequence[str], fraction: float, dense: Evaluation,
) -> dict:  # fmt: skip
    """Score one predictor, cutoffs set, under the protocol and context of the dense score (module docstring)."""
    ffn, meter, counted = sparse_ffn(model, thresholds, predictor=predictor), PredictionMeter(), SparsityMeter()
    score = perplexity(model, test, dense.protocol, dense.context, ffn, chained(meter, counted))
    kl, agreement = divergence(model, test, ffn, dense.protocol, dense.context)
    metrics, (in_float32, as_stored) = meter.report(), ffn_bytes(model)
    read = counted.report().read_exact
    layers, hidden, intermediate = shape_of(model)
    own_work = sum(predictor.multiply_adds(i) for i in range(layers))
    touched = sum(read) / 3 * as_stored + predictor.nbytes
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
        "reads": touched / as_stored,
        "multiply_adds": own_work + sum(read) * layers * hidden * intermediate,
        "own_multiply_adds": own_work,
        "perplexity": score.perplexity,
        "dense": dense.perplexity,
        "increase": score.perplexity - dense.perplexity,
        "times_oracle": None,
        "kl": kl,
        "agreement": agreement,
        "tokens": score.tokens,
        "protocol": score.protocol,
        "context": score.context,
        "bos": score.bos,
        "dtype": str(model.dtype),
        "truth": str(thresholds.spec),
    }


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

    calibration: split here into training and held-out documents. The oracle always comes first: the others' increase is
    given in multiples of its increase. Its cutoffs are the thresholds; all others' are fitted to the fraction. made: a
    dict that is filled with the predictors by name, for further use. Raises MinillmError for an unknown name.
    """
    settings = settings or PredictionSettings()
    fraction, context = 1 - settings.sparsity, test.context
    workshop = workshop_of(model, calibration, settings, context)
    documents, dense = as_documents(test.documents), perplexity(model, *test)
    bound: float | None = None  # the oracle's increase
    for name in ("oracle", *(name for name in names if name != "oracle")):
        predictor = workshop.make(name)
        if made is not None:
            made[name] = predictor
        if name != "oracle":
            fit_cutoffs(model, predictor, workshop.thresholds, workshop.held, fraction, context)
        row = predictor_row(model, predictor, workshop.thresholds, documents, fraction, dense)
        bound = row["increase"] if bound is None else bound
        yield row | {"times_oracle": row["increase"] / bound if bound > NOTHING * row["dense"] else None}


def verdict(rows: Sequence[dict]) -> list[str]:
    """The answers that the rows of one fraction give to the questions of such a table, as sentences."""
    sentences, counted = [], [row for row in rows if row["times_oracle"] is not None]

    def cheapest(candidates: list[dict], among: str, bound: float) -> None:
        if candidates:
            best = min(candidates, key=lambda row: row["times_oracle"])
            within = "within" if best["times_oracle"] <= bound else "not within"
            cost = f"{best['predictor']} costs {best['times_oracle']:.2f} times the oracle's increase"
            sentences.append(f"{among}: {cost} ({within} {bound:g})")

    if not counted and rows:
        small = [row for row in rows if 0 < row["own_share_float32"] <= 1 / 8]
        free = [row["predictor"] for row in small if row["increase"] <= NOTHING * row["dense"]]
        sentences.append(
            f"The oracle costs less than {NOTHING:.1%}: no multiples of it are given. As little, with at most 1/8 of "
            f"the FFNs' float32 bytes: {', '.join(free) or 'none'}"
        )
    for least, bound in ((8, 1.5), (16, 1.2)):
        small = [row for row in counted if 0 < row["own_share_float32"] <= 1 / least]
        cheapest(small, f"Of at most 1/{least} of the FFNs' float32 bytes", bound)
    cheapest([row for row in counted if "ahead" in row["predictor"]], "One layer ahead", 2.0)
    learned = next((row for row in rows if re.fullmatch(r"learned rank \d+", row["predictor"])), None)
    for rival in rows if learned else ():
        if learned is None or rival["predictor"] not in ("static", "previous-token"):
            continue
        won = {"recall": learned["recall"] > rival["recall"], "perplexity": learned["perplexity"] < rival["perplexity"]}
        words = " and ".join(f"{'beats' if better else 'does not beat'} it in {key}" for key, better in won.items())
        sentences.append(f"{learned['predictor']} against {rival['predictor']}, the same fraction selected: {words}")
    return sentences
