"""ReLU^2 Wins: which activation suits sparse inference, on three axes.

Zhang et al. 2024 (ReLU^2 Wins: Discovering Efficient Activation Functions for Sparse LLMs, arXiv 2402.03804) train
models that differ in the activation alone, and compare them. Neuron j adds n_j = m_j W_down[:, j] to the output of its
FFN. It counts as active where ||n_j|| reaches the layer's threshold, and not where its activation is other than zero.
So SiLU, which is never zero, has a sparsity, too. The threshold is the largest whose CETT, the share of the output that
is lost, is at most a target (policy cett, sparsity/allocate.py).

    1. sparsity against performance   for several CETTs: the share of inactive neurons, and the perplexity without them
    2. predictivity                   a small predictor selects the neurons: recall, precision, share selected, and the
                                      perplexity with its mask (study/prediction.py)
    3. hardware affinity              how much of what a token needs was needed shortly before, and how unequal the
                                      neurons are

With A_t the active neurons of token t in one layer, and f_j the share of tokens at which neuron j is active:

    reuse(k) = |A_t & (A_t-1 | ... | A_t-k)| / |A_t|       need not be read again where k tokens' neurons are kept
    hot(q)   = sum of the largest q N frequencies / sum_j f_j             what a fixed set of q N neurons serves
    Gini     = sum_i (2 i - N - 1) f_(i) / (N sum_j f_j)                  f_(1) <= ... <= f_(N); 0: all alike, 1: one

Sums over tokens come first, then the quotient, then the mean over layers. The first token of a text has no token before
it and does not count; near a text's beginning there are fewer than k. Beside reuse(k) stands what tokens would reuse
that draw their neurons at random, with the same frequencies:  sum_j f_j (1 - (1 - f_j)^k) / sum_j f_j. Only what is
above it comes from the text.

**What is compared.** The paper compares models at one CETT. Then each has another share of active neurons, and a model
with fewer is predicted and reused less for that reason alone. So the level can also be a neuron sparsity (by="neuron"),
equal for all. Exact zeros are no measure: squaring makes small activations smaller and no zero more, and a squared ReLU
wins with fewer of them.

Differs from the paper: its predictor learns which ||n_j|| reach the threshold, ours which |m_j| do, as all predictors
here; both leave out the same share of the neurons. Its words for reuse and hot neurons could not be checked against the
paper, so these are our definitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..prefetch.record import frequencies, record
from ..sparsity.calibrate import calibrate
from ..sparsity.sparse import policy_ffn
from ..transformer.model import Llama
from ..transformer.texts import Sample, runs
from .checkpoints import Texts
from .natural import exact_zeros
from .prediction import PredictionSettings, prediction_rows
from .sweep import Settings, SweepPoint, score_cuts

CETTS = (0.02, 0.05, 0.1, 0.2, 0.3)
PRICE = 0.01  # of perplexity, for CETT-PPL-1%
LOOK_BACK = (1, 2, 4, 8, 16)  # k of reuse(k), tokens
HOT = (0.1, 0.2, 0.5)  # q of hot(q), shares of the neurons
PREDICTORS = ("chance", "static", "previous-token", "learned")
NEVER = 1 << 30  # tokens since a neuron was active that never was


class Level(NamedTuple):
    """How much is cut for the second and third axis: a target of policy cett, in what ``by`` counts (calibrate.py)."""

    by: str = "cett"
    target: float = 0.2


# ---- 1. sparsity against performance ---------------------------------------------------------------------------------


def tradeoff_rows(models: Sequence[Llama], texts: Texts, cetts: Sequence[float] = CETTS) -> list[dict]:
    """The first axis: of each model the dense row, one per CETT, and one at CETT-PPL-1%, with the keys of a sweep.

    Thresholds are found on the calibration text; the row is scored on the test text. The dense row also has ``zeros``:
    the share of neurons whose mid is exactly 0 there.
    """
    cuts = [SweepPoint("cett", "cett", cett) for cett in cetts] + [SweepPoint("cett", "ppl", PRICE)]
    rows = score_cuts(models, Settings(texts.calibration, Sample(texts.test, context=texts.context), cuts))
    zeros = {model.name: exact_zeros(model, texts.test, texts.context) for model in models}
    return [row | ({"zeros": zeros[row["model"]]} if row["policy"] == "dense" else {}) for row in rows]


# ---- 2. predictivity -------------------------------------------------------------------------------------------------


def predictivity_rows(
    model: Llama, texts: Texts, level: Level | None = None, names: Sequence[str] = PREDICTORS, seed: int = 0
) -> list[dict]:
    """The second axis: rows of ``prediction_rows``, the oracle first, with as many neurons active as at a level."""
    sparsity = neuron_sparsity(model, texts, level or Level())
    sample = Sample(texts.test, context=texts.context)
    settings = PredictionSettings(sparsity, seed=seed)
    return list(prediction_rows(model, texts.calibration, sample, names, settings))


def neuron_sparsity(model: Llama, texts: Texts, level: Level) -> float:
    """The share of inactive neurons at a level, on the calibration text."""
    if level.by == "neuron":
        return level.target
    return 1 - float(active_neurons(model, texts, level, texts.calibration)[0].mean())


# ---- 3. hardware affinity --------------------------------------------------------------------------------------------


def active_neurons(
    model: Llama, texts: Texts, level: Level, documents: str | Sequence[str]
) -> tuple[np.ndarray, list[int]]:
    """Which neurons are active on documents at a level that is found on the calibration text.

    Gives (T, L, N) bool, the texts one after the other, and the number of tokens of each.
    """
    thresholds = calibrate(model, texts.calibration, "cett", level.target, texts.context, level.by)
    pieces = runs(model, documents, "documents", texts.context)
    return record(model, policy_ffn(model, thresholds), pieces).needed, [len(run.ids) for run in pieces]


def since_active(active: np.ndarray) -> np.ndarray:
    """Tokens since each neuron was last active before a token, NEVER or more if it was not.  (T, ...) -> (T, ...)."""
    t = np.arange(len(active)).reshape(-1, *[1] * (active.ndim - 1))
    last = np.maximum.accumulate(np.where(active, t, -NEVER), axis=0)  # up to and including t
    before = np.concatenate([np.full_like(last[:1], -NEVER), last[:-1]])
    return t - before


def reuse(active: np.ndarray, lengths: Sequence[int], look_back: Sequence[int] = LOOK_BACK) -> np.ndarray:
    """reuse(k) of each k (module docstring).  active (T, L, N) bool, of texts of these lengths  ->  (len(look_back),).

    NaN where no token but a text's first has an active neuron in some layer.
    """
    again, needed = np.zeros((len(look_back), active.shape[1])), np.zeros(active.shape[1])
    for text in np.split(active, np.cumsum(lengths)[:-1]):
        since, rest = since_active(text)[1:], text[1:]  # (t - 1, L, N)
        needed += rest.sum(axis=(0, 2))
        again += [(rest & (since <= k)).sum(axis=(0, 2)) for k in look_back]
    with np.errstate(invalid="ignore"):
        return (again / needed).mean(axis=1)


def reuse_by_chance(frequency: np.ndarray, lengths: Sequence[int], look_back: Sequence[int] = LOOK_BACK) -> np.ndarray:
    """Chance of each k (module docstring), in texts of these lengths.  frequency (L, N)  ->  (len(look_back),)."""
    places = np.concatenate([np.arange(1, length) for length in lengths])  # tokens before each token
    found = []
    for k in look_back:
        before, tokens = np.unique(np.minimum(places, k), return_counts=True)
        again = (1 - (1 - frequency[..., None]) ** before) @ (tokens / tokens.sum())  # (L, N): P(active shortly before)
        with np.errstate(invalid="ignore"):
            found.append(((frequency * again).sum(axis=1) / frequency.sum(axis=1)).mean())
    return np.array(found)


def hot_share(frequency: np.ndarray, share: float) -> float:
    """hot(q): what the most frequent q N neurons have of all activations.  frequency (L, N), q from 0 to 1."""
    count = round(share * frequency.shape[1])
    largest = np.sort(frequency, axis=1)[:, frequency.shape[1] - count :]
    with np.errstate(invalid="ignore"):
        return float((largest.sum(axis=1) / frequency.sum(axis=1)).mean())


def gini(frequency: np.ndarray) -> float:
    """Gini coefficient of the frequencies of a layer's neurons, mean over layers.  (L, N) -> 0 .. 1."""
    n = frequency.shape[1]
    weight = 2 * np.arange(1, n + 1) - n - 1
    with np.errstate(invalid="ignore"):
        return float(((np.sort(frequency, axis=1) @ weight) / (n * frequency.sum(axis=1))).mean())


def affinity_row(model: Llama, texts: Texts, level: Level | None = None) -> dict:
    """The third axis on the test text: a row with the share of active neurons, reuse(k) and chance, hot(q), Gini.

    Keys reuse_K, chance_K and hot_Q with K in tokens and Q in percent. None for what has no value.
    """
    level = level or Level()
    active, lengths = active_neurons(model, texts, level, texts.test)
    frequency = frequencies(active)  # (L, N)
    values = {"active": float(active.mean())}
    values |= {f"reuse_{k}": v for k, v in zip(LOOK_BACK, reuse(active, lengths).tolist(), strict=True)}
    values |= {f"chance_{k}": v for k, v in zip(LOOK_BACK, reuse_by_chance(frequency, lengths).tolist(), strict=True)}
    values |= {f"hot_{100 * q:g}": hot_share(frequency, q) for q in HOT}
    values |= {"gini": gini(frequency)}
    about = {"model": model.name, "by": level.by, "target": level.target, "tokens": len(active)}
    return about | {key: None if np.isnan(value) else value for key, value in values.items()}
