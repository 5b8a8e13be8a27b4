"""DSnoT: exchange removed weights for kept ones, without training.

Zhang et al. 2024 (Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs, arXiv 2310.08915). A mask is
given, here that of Wanda (wanda.py). Row by row, some removed weights come back and as many kept ones go. No weight
gets a new value. With W (out, in) and the inputs x_j of a calibration text of n sequences and T tokens:

    S_j  = (1/n) sum_t x_j[t]                             sum of an input, per sequence
    V_j  = (1/T) sum_t (x_j[t] - its sequence's mean)^2   variance within the sequences
    C_ij = W_ij S_j                                       what the weight adds to output i, on average
    e_i  = sum_j C_ij over the removed j                  expected error of row i

One exchange for each row and cycle:

    grow     the removed weight with the largest C_ij / V_j where e_i > 0, with the smallest where e_i < 0
    remove   of the kept weights with C_ij < 0 where e_i > 0, and C_ij > 0 where e_i < 0: that with the smallest
             |W_ij| ||x_j||_2
    e_i  <-  e_i + C_i,removed - C_i,grown

What has grown never goes again, and what was removed by an exchange never comes back. A row stops after 50 exchanges,
or before an exchange when |e_i| <= 0.1. Patterns N:M have a rule of their own: the exchange stays within the group of
the grown weight, the weight that goes is the one with the smallest |W_ij| ||x_j||_2 there, whatever its sign, and a row
stops before an exchange that would turn the sign of e_i.

Two rules say whether an exchange is made:

    as released   always. e_i may jump over 0, and its size may rise. (The released code can stop a row there, as it
                  does for N:M, but not unless it is told to.)
    accept        only if |e_i| falls; otherwise the row stops. |e_i| never rises. The paper has no such rule.

**Two errors.** e_i is an expected error: it knows the mean of each input and nothing else. The true error of a row,
with d = the removed weights of the row and m_j, G the mean and the mean product of the inputs, has two parts:

    (1/T) sum_t (d . x[t])^2  =  d G d^T  =  (d . m)^2  +  d (G - m m^T) d^T
                                             `mean part`   `-----spread----`

The mean part is e_i^2 but for a factor. DSnoT exchanges weights to lower it, and pays with the spread, which it does
not look at. Where inputs have small means, as behind an RMSNorm, nearly all of the true error is spread.
``error_rows`` shows both errors of every layer, before and after.

Pitfalls. S_j is a sum and 0.1 is fixed, so longer sequences mean more exchanges: with stories of 200 tokens nearly all
rows make all they can. The released script leaves the FFN alone unless it is told otherwise (its option for skipped
layers is "mlp"); here the FFN is what is pruned. Users could not reproduce the published tables (issues 4 to 6 of the
released code).

Differs from the released code: a row that has no weight left to grow, or none to remove, stops. There, its pointer runs
into weights of the wrong kind, and the row ends with another number of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from ..transformer.layer import Layer
from ..transformer.model import Llama
from ..transformer.ops import no_warnings
from ..transformer.texts import document_hashes, runs
from .base import Variant, check, layer_by_layer, products, weights_variant
from .wanda import checked, removed_weights, scores, weights_spec

CYCLES, ENOUGH = 50, 0.1  # the released constants: exchanges of a row, and the |e_i| at which it stops
ERROR_COLUMNS = {  # of ``error_rows`` as a table (tables.py)
    "layer": ("layer", "d"), "matrix": ("matrix", ""), "exchanges": ("exchanges", ".1f"),
    "expected_before": ("expected", ".4f"), "expected_after": ("after", ".4f"),
    "true_before": ("true", ".4f"), "true_after": ("after", ".4f"),
    "mean_part_before": ("mean part", ".4f"), "mean_part_after": ("after", ".4f"), "risen": ("risen", ".0%"),
}  # fmt: skip


# ---- the inputs ------------------------------------------------------------------------------------------------------
class Inputs(NamedTuple):
    """What is known of the inputs of a matrix, each (in,): S_j, V_j and ||x_j||_2 of the module docstring."""

    sums: np.ndarray
    variances: np.ndarray
    norms: np.ndarray


def moments(x: np.ndarray) -> np.ndarray:
    """Of one sequence x (T, n)  ->  (5, n) float64, to be added over sequences:

    1, T, sum_t x, sum_t x^2, and T times the variance of x.
    """
    x = x.astype(np.float64)
    tokens, ones = len(x), np.ones(x.shape[1])
    return np.stack([ones, tokens * ones, x.sum(axis=0), np.square(x).sum(axis=0), tokens * x.var(axis=0)])


def inputs_of(summed: np.ndarray) -> Inputs:
    """S_j, V_j and ||x_j||_2 from the summed moments (5, n) of all sequences."""
    sequences, tokens, sums, squares, spreads = summed
    return Inputs(sums / sequences, spreads / tokens, np.sqrt(squares))


# ---- the rule --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Rule:
    """Which exchanges are made: the pattern (N, M), if any, the accept rule, and the most exchanges of a row."""

    pattern: tuple[int, int] | None = None
    accept: bool = False
    cycles: int = CYCLES


RELEASED = Rule()


class Exchanged(NamedTuple):
    """gone (out, in): the mask after the exchanges. Their number for each row, e_i before and after: (out,)."""

    gone: np.ndarray
    exchanges: np.ndarray
    before: np.ndarray
    after: np.ndarray


@no_warnings
def exchanged(matrix: np.ndarray, inputs: Inputs, gone: np.ndarray, rule: Rule) -> Exchanged:
    """Exchange removed weights for kept ones (module docstring).

    matrix (out, in), gone (out, in) bool, True where a weight is removed  ->  Exchanged. Each row (with a pattern, each
    group) keeps its number of removed weights.
    """
    contribution = matrix * inputs.sums  # C (out, in)
    errors = np.where(gone, contribution, 0).sum(axis=1)  # e (out,)
    result = Exchanged(gone.copy(), np.zeros(len(matrix), int), errors.copy(), errors)
    # An input that never varies divides by 0: an infinity, so its weights are the first to grow.
    gain = np.where(gone & (contribution != 0), contribution / inputs.variances, 0)  # 0: not to be grown
    price = np.where(gone, np.inf, scores(matrix, inputs.norms))  # infinite: not to be removed
    row, running = np.arange(len(matrix)), np.ones(len(matrix), bool)
    for _ in range(rule.cycles):
        positive = errors > 0
        grown = np.where(positive, gain.argmax(axis=1), gain.argmin(axis=1))  # (out,)
        prices = np.where(_removable(contribution, positive, grown, rule), price, np.inf)
        removed = prices.argmin(axis=1)  # (out,)
        after = errors + contribution[row, removed] - contribution[row, grown]

        found = np.where(positive, gain[row, grown] > 0, gain[row, grown] < 0) & np.isfinite(prices[row, removed])
        running &= found & (np.abs(errors) > ENOUGH)
        if rule.accept:
            running &= np.abs(after) < np.abs(errors)
        elif rule.pattern is not None:
            running &= np.sign(after) == np.sign(result.before)
        if not running.any():
            break
        now, grows, goes = row[running], grown[running], removed[running]
        result.gone[now, grows], result.gone[now, goes] = False, True
        gain[now, grows], price[now, goes] = 0, np.inf
        errors[now] = after[now]
        result.exchanges[now] += 1
    return result


def _removable(contribution: np.ndarray, positive: np.ndarray, grown: np.ndarray, rule: Rule) -> np.ndarray:
    """True where a weight may go in exchange for the grown one: by its sign, or with a pattern by its group."""
    if rule.pattern is None:
        return np.where(positive[:, None], contribution < 0, contribution > 0)
    group = np.arange(contribution.shape[1]) // rule.pattern[1]  # (in,)
    return group == group[grown][:, None]


# ---- a whole model ---------------------------------------------------------------------------------------------------
def fit(
    model: Llama, documents: str | Sequence[str], target: float, *, context: int | None = None,
    matrices: str = "ffn", rule: Rule = RELEASED,
) -> Variant:  # fmt: skip
    """Prune by Wanda, then exchange weights (module docstring). Arguments and errors are those of ``wanda.fit``."""
    names = checked(target, matrices, rule.pattern)
    change = _change(names, target, rule)
    layers = layer_by_layer(model, runs(model, documents, "documents", context), moments, change)
    score = f"|W_ij| ||x_j||, exchanged {'where the expected error falls' if rule.accept else 'as released'}"
    spec = weights_spec("dsnot", score, target, matrices, rule.pattern)
    return weights_variant(model, layers, spec, names, frozenset(document_hashes(documents)))


def error_rows(
    model: Llama, documents: str | Sequence[str], target: float, *, context: int | None = None,
    matrices: str = "ffn", rule: Rule = RELEASED,
) -> list[dict]:  # fmt: skip
    """Both errors of every matrix that ``fit`` changes, before and after the exchanges; one row each.

    exchanges: the mean number in a row of the matrix. expected_...: mean |e_i|, per token. true_...: the true error as
    a share of the output's energy. mean_part_...: the mean part, as a share of the same energy (module docstring).
    risen: share of the rows whose |e_i| is larger afterwards. Arguments and errors are those of ``wanda.fit``. Needs
    the products of all pairs of inputs: n^2 numbers for each matrix.
    """
    check("dsnot", model, target)
    rows: list[dict] = []
    change = _change(checked(target, matrices, rule.pattern), target, rule, rows)

    pieces = runs(model, documents, "documents", context)
    layer_by_layer(model, pieces, lambda x: np.vstack([moments(x), products(x)]), change)  # (5 + n, n)
    return rows


def _change(
    names: Sequence[str], target: float, rule: Rule, rows: list[dict] | None = None
) -> Callable[[Layer, dict[str, np.ndarray]], Layer]:
    """What ``layer_by_layer`` does to each layer. rows: where to put the errors; then summed holds x^T x as well."""

    def change(layer: Layer, summed: dict[str, np.ndarray]) -> Layer:
        changed = {}
        for name in names:
            matrix, inputs = getattr(layer, name), inputs_of(summed[name][:5])
            first = removed_weights(scores(matrix, inputs.norms), target, rule.pattern)
            result = exchanged(matrix, inputs, first, rule)
            changed[name] = np.where(result.gone, matrix.dtype.type(0), matrix)
            if rows is not None:
                row = {"layer": layer.index, "matrix": name, "exchanges": float(result.exchanges.mean())}
                rows.append(row | _errors(matrix, first, result, summed[name]))
        return replace(layer, **changed)

    return change


def _errors(matrix: np.ndarray, first: np.ndarray, result: Exchanged, summed: np.ndarray) -> dict[str, float]:
    """The errors of a matrix before and after the exchanges (``error_rows``)."""
    (sequences, *_), (tokens, *_), sums, products = summed[0], summed[1], summed[2], summed[5:]
    energy, errors = np.sum((matrix @ products) * matrix), {}
    for when, gone, expected in (("before", first, result.before), ("after", result.gone, result.after)):
        removed = np.where(gone, matrix, 0).astype(np.float64)  # d, one for each row
        errors[f"expected_{when}"] = float(np.abs(expected).mean() * sequences / tokens)
        errors[f"true_{when}"] = float(np.sum((removed @ products) * removed) / energy)
        errors[f"mean_part_{when}"] = float(np.sum((removed @ sums) ** 2) / tokens / energy)
    return errors | {"risen": float(np.mean(np.abs(result.after) > np.abs(result.before)))}


fit_accept = partial(fit, rule=Rule(accept=True))
fit_all = partial(fit, matrices="all")
fit_2_4 = partial(fit, rule=Rule(pattern=(2, 4)))
