"""A search for the neurons to keep, each layer as many as pay: system 9, a smaller dense model without training.

Shen et al. 2024 (Search for Efficient LLMs, arXiv 2409.17372). Which neurons, and how many in each layer? Scores of
single neurons cannot say: the answer depends on what else is removed. So candidates are made, each is run on a text,
and the better ones have children. A candidate is one mask for each layer, and all candidates keep equally many neurons:

    S (L, F) bool, True = kept        sum of S = L * kept_count(F, target)        width of layer l = sum of S[l]

    1. start       the neurons of the largest importance (structured.py, eq. 1 of the paper), in each layer as many
    2. moves       a layer gives neurons to another one: the giver's least important, the taker's most important
    3. mutation    in each layer a few kept neurons are swapped for removed ones, by chance; of what a layer keeps at
                   least a share ALPHA stays
    4. crossover   each layer from one of two parents; then layers lose or win neurons until the sum is right
    5. fitness     perplexity on some of the calibration text; the best PARENTS live on, so the best never gets worse
    6. reformation the columns of down are corrected, by least squares or by ADMM (structured.py)

Differs from the paper: it draws a layer's ratio from a list, and a mutated mask by chance until it shares ALPHA with
the old one. Below a ratio of 0.8 chance never draws such a mask; swaps reach the same masks at once. Attention keeps
all heads and the model all layers. Its population of 100 and its 50 generations are made for a GPU.
Differs from the released code: there a candidate is a slice of neighbouring neurons.

**What should be searched for?** The paper scores masks, and corrects only the one that it finds. What is wanted is the
best model *after* the correction. With ``reformed`` each candidate is corrected before it is scored, with the sums of
the dense model, which costs one solution of F equations per layer. Seen here, with half of the neurons: on stories260K
masks are the wrong thing to search for. The mask that was found is far better than the first one, but after least
squares it is worse than equal widths without a search; with ``reformed`` most of that is gone. On tinystories-656k and
on the default model both ways end at about the same perplexity, well below that of equal widths.

Pitfalls. The text that ranks candidates is one that they are then fitted to: score another one. The figure of a found
model depends on the seed and on how long was searched. Widths that differ save bytes, not necessarily time: the layers
of a pipeline wait for the widest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from ..errors import MinillmError
from ..transformer.evaluation import perplexity
from ..transformer.layer import Layer
from ..transformer.model import Llama
from ..transformer.texts import document_hashes, first_tokens, runs
from .base import Variant, layer_by_layer
from .structured import (
    CORRECTIONS,
    SCORES,
    Sums,
    kept_count,
    largest,
    narrow,
    narrow_model,
    neurons_variant,
    products_and_sizes,
)

ALPHA = 0.8  # share of the kept neurons of a layer that a mutation leaves
MOVE = 0.05  # of a layer's neurons: what one move takes from a layer
LEAST = 0.1  # of a layer's neurons: what no move goes below


class Settings(NamedTuple):
    """How is searched, and for how long.

    tokens: of the calibration text, on which candidates are scored. score: what ranks the neurons of a layer
    (structured.py). reformed: whether candidates are corrected before they are scored.
    """

    population: int = 20
    parents: int = 5
    generations: int = 15
    tokens: int = 2_000
    seed: int = 0
    score: str = "importance"
    reformed: bool = False


USUAL = Settings()


class Found(NamedTuple):
    """masks (L, F) of the best candidate; history: the best fitness of the first and of every later generation."""

    masks: np.ndarray
    history: list[float]


# ---- children --------------------------------------------------------------------------------------------------------
def swapped(masks: np.ndarray, rng: np.random.Generator, alpha: float = ALPHA) -> np.ndarray:
    """A mutation: in each layer up to a share 1 - alpha of the kept neurons is swapped for removed ones.  (L, F)."""
    child = masks.copy()
    for mask in child:  # (F,), a view
        kept, gone = np.flatnonzero(mask), np.flatnonzero(~mask)
        most = min(int(round((1 - alpha) * len(kept), 9)), len(gone))
        count = rng.integers(most + 1)
        mask[rng.choice(kept, count, replace=False)] = False
        mask[rng.choice(gone, count, replace=False)] = True
    return child


def grown(mask: np.ndarray, scores: np.ndarray, count: int) -> np.ndarray:
    """The mask with ``count`` neurons more, or fewer where it is negative: the most, or the least, important.  (F,)."""
    child = mask.copy()
    if count > 0:
        child[largest(np.where(mask, -np.inf, scores), count)] = True
    elif count < 0:
        child[largest(np.where(mask, -scores, -np.inf), -count)] = False
    return child


def moved(masks: np.ndarray, scores: np.ndarray, rng: np.random.Generator, moves: int) -> np.ndarray:
    """``moves`` times a layer gives neurons to another; as many as it can spare and the other has room for.  (L, F)."""
    child, (layers, neurons) = masks.copy(), masks.shape
    step, least = max(1, round(MOVE * neurons)), max(1, round(LEAST * neurons))
    for _ in range(moves if layers > 1 else 0):
        giver, taker = rng.choice(layers, 2, replace=False)
        count = max(0, min(step, int(child[giver].sum()) - least, neurons - int(child[taker].sum())))
        child[giver] = grown(child[giver], scores[giver], -count)
        child[taker] = grown(child[taker], scores[taker], count)
    return child


def crossed(a: np.ndarray, b: np.ndarray, scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each layer from one of two parents, then as many neurons as they have: layers in a random order give or take."""
    child = np.where(rng.random(len(a))[:, None] < 0.5, a, b)
    excess, neurons = int(child.sum()) - int(a.sum()), a.shape[1]
    least = max(1, round(LEAST * neurons))
    for layer in rng.permutation(len(a)):
        width = int(child[layer].sum())
        room = max(0, width - least) if excess > 0 else neurons - width
        count = min(abs(excess), room)
        child[layer] = grown(child[layer], scores[layer], -count if excess > 0 else count)
        excess -= count if excess > 0 else -count
    return child if excess == 0 else a.copy()


# ---- the search ------------------------------------------------------------------------------------------------------
def evolve(
    start: np.ndarray, scores: np.ndarray, fitness: Callable[[np.ndarray], float], settings: Settings
) -> Found:  # fmt: skip
    """Search from one candidate (module docstring); a low fitness is a good one.

    start, scores (L, F). The same seed gives the same result. Raises MinillmError where there are fewer candidates than
    parents.
    """
    from tqdm.auto import tqdm

    if not 1 <= settings.parents < settings.population:
        raise MinillmError(f"{settings.parents} parents of {settings.population} candidates, expected fewer parents")
    rng = np.random.default_rng(settings.seed)
    known: dict[bytes, float] = {}

    def ranked(candidates: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The different ones of the candidates, the best first; each is scored once in a search."""
        different = {masks.tobytes(): masks for masks in candidates}
        for key, masks in different.items():
            if key not in known:
                known[key] = fitness(masks)
        return sorted(different.values(), key=lambda masks: known[masks.tobytes()])

    def child(parents: Sequence[np.ndarray]) -> np.ndarray:
        one, other = (parents[int(i)] for i in rng.integers(len(parents), size=2))
        kind = rng.random()
        if kind < 0.5:
            return moved(one, scores, rng, int(rng.integers(1, 4)))
        return swapped(one, rng) if kind < 0.7 else crossed(one, other, scores, rng)

    first = [moved(start, scores, rng, int(rng.integers(1, 3 * len(start)))) for _ in range(settings.population - 1)]
    parents = ranked([start, *first])[: settings.parents]
    history = [known[parents[0].tobytes()]]
    bar = tqdm(range(settings.generations), desc="searching", unit="generation", leave=False, delay=2, disable=None)
    for _ in bar:
        children = [child(parents) for _ in range(settings.population - len(parents))]
        parents = ranked([*parents, *children])[: settings.parents]
        history.append(known[parents[0].tobytes()])
        bar.set_postfix(best=f"{history[-1]:.3f}")
    return Found(parents[0], history)


def search(
    model: Llama, documents: str | Sequence[str], target: float, *, context: int | None = None,
    settings: Settings = USUAL,
) -> Found:  # fmt: skip
    """The masks that keep L * kept_count(F, target) neurons; nothing is corrected yet. Arguments: see ``fit``."""
    if settings.score not in SCORES:
        raise MinillmError(f"score is {settings.score!r}, expected one of {', '.join(SCORES)}")
    rank, correct = SCORES[settings.score], CORRECTIONS["least squares" if settings.reformed else "none"]
    sums: list[Sums] = []

    def look(layer: Layer, of_layer: Sums) -> Layer:
        sums.append(of_layer)
        return layer

    layer_by_layer(model, runs(model, documents, "documents", context), products_and_sizes, look)
    scores = np.array([rank(layer, each) for layer, each in zip(model.layers, sums, strict=True)])  # (L, F)
    count, neurons = kept_count(scores.shape[1], target), scores.shape[1]
    start = np.array([np.isin(np.arange(neurons), largest(row, count)) for row in scores])
    some = first_tokens(model, documents, settings.tokens, context)

    def fitness(masks: np.ndarray) -> float:
        layers = []
        for layer, mask, of_layer in zip(model.layers, masks, sums, strict=True):
            keep = np.flatnonzero(mask)
            layers.append(narrow(layer, keep, correct(layer.down_proj, of_layer["down_proj"][:-1], keep)))
        return perplexity(narrow_model(model, layers), some, context=context).perplexity

    return evolve(start, scores, fitness, settings)


def fit(
    model: Llama, documents: str | Sequence[str], target: float, *, context: int | None = None,
    settings: Settings = USUAL, correction: str = "least squares",
) -> Variant:  # fmt: skip
    """Search for the neurons to keep, and correct the columns of down (module docstring).

    target: the share of all neurons that goes. correction: of what was found; none, least squares or ADMM. Raises
    MinillmError for other names.
    """
    if correction not in CORRECTIONS:
        raise MinillmError(f"correction is {correction!r}, expected one of {', '.join(CORRECTIONS)}")
    masks = search(model, documents, target, context=context, settings=settings).masks

    def change(layer: Layer, sums: Sums) -> Layer:
        keep = np.flatnonzero(masks[layer.index])
        if len(keep) == len(layer.gate_proj):
            return layer
        return narrow(layer, keep, CORRECTIONS[correction](layer.down_proj, sums["down_proj"][:-1], keep))

    layers = layer_by_layer(model, runs(model, documents, "documents", context), products_and_sizes, change)
    fitness = "after least squares" if settings.reformed else "as masked"
    how = f"a search from the {settings.score} score, candidates {fitness} (correction of down: {correction})"
    return neurons_variant("search", model, layers, target, how, frozenset(document_hashes(documents)))


fit_mask = partial(fit, correction="none")
fit_admm = partial(fit, correction="ADMM")
fit_reformed = partial(fit, settings=Settings(reformed=True))
fit_mid = partial(fit, settings=Settings(score="mid"))
