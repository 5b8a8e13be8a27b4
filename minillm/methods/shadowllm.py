"""ShadowLLM: one small network looks at a prompt once, and says which neurons of all layers its continuation needs.

Akhauri et al. 2024 (ShadowLLM: Predictor-based Contextual Sparsity for Large Language Models, arXiv 2406.16635). The
mask is fixed for a whole sequence, unlike the masks of the other predictors here, which change with every token.

**What is important?** With a_it = mid of neuron i at token t and g_it = dL / da_it, L the loss of the continuation:

    l2         sqrt(sum_t a_it^2)            how large the neuron is (Deja Vu's criterion)
    grad       sqrt(sum_t g_it^2)            how much the loss would feel of it
    plainact   sum_t |a_it g_it|             both
    taylor     |sum_t a_it g_it|             what the loss would change by without it, to first order
    fisher     sum_t (a_it g_it)^2
    weights    sum_j |W_ij dL/dW_ij|         row i of gate: the form of the released code

(For a small e,  (L(m (1 - e)) - L(m (1 + e))) / 2e = - sum_t m_t . dL/dm_t:  where the name comes from.)

**The predictor.** x is what the attention of layer 0 gives at the last token of the prompt, brought to 0 ... 1, and so
are the targets, all L F of them for each sequence:

    s = max(x A + h, 0) B + c               A (D, r), h (r,), B (r, L F), c (L F,)          loss = mean (s - target)^2

The control is one such network for each layer, with that layer's own attention and targets of its own scale. Adam,
with a cosine, as many epochs as the paper has. The ranks of s are compared with those of the truth by Spearman's
correlation.

**Masks.** Of each layer the largest share (local), or of the whole model (global).

Differs from the paper: one model of stories in place of seven tasks, and the score is the loss of the continuation.
Pitfalls. The scores of a network for each layer have each layer's own scale: they say nothing of one layer beside
another, so their ranks over the model and their global masks are poor. Min-max for each sequence takes away how large
the sequences are beside each other. The mean of the targets, the same mask for every sequence, is a strong baseline: a
predictor has to beat it before it is worth anything. The most predictable criterion need not be the best one. **The
released input is that of the last token of prompt and continuation: it has seen the answer** (``sees_answer``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from ..errors import MinillmError
from ..optim import Adam, cosine
from ..predictors.learned import logits
from ..predictors.train import Parameters, gradients_of, initial_weights, scaled, squared_error
from ..sparsity.policies import largest
from ..sparsity.selected import SelectedFFN, StaticSet
from ..threads import few_threads
from ..training.backward import Saved, backward
from ..training.losses import Loss, cross_entropy
from ..transformer.ffn import FeedForward, swiglu
from ..transformer.model import Llama, shape_of
from ..transformer.ops import log_probability
from ..transformer.texts import runs

CRITERIA = ("l2", "grad", "plainact", "taylor", "fisher", "weights")
EPOCHS, BATCH, RATE = 20, 16, 1e-3  # the paper's


class Prompted(NamedTuple):
    """A text in two parts: ids (T,), of which the first ``prompt`` are known and the others are to be predicted."""

    ids: np.ndarray
    prompt: int


def prompted(model: Llama, documents: str | Sequence[str], prompt: int, answer: int) -> list[Prompted]:
    """The pieces of documents that are long enough: ``prompt`` tokens (the BOS among them), ``answer`` that follow."""
    pieces = runs(model, documents, "documents", prompt + answer)
    return [Prompted(np.array(run.ids), prompt) for run in pieces if len(run.ids) == prompt + answer]


# ---- the criteria ----------------------------------------------------------------------------------------------------


def importance(mid: np.ndarray, d_mid: np.ndarray, criterion: str) -> np.ndarray:
    """A criterion of one layer from mid and dL / d mid, all but "weights".  Both (T, F)  ->  (F,)."""
    product = mid * d_mid  # (T, F)
    match criterion:
        case "l2":
            return np.sqrt(np.square(mid).sum(axis=0))
        case "grad":
            return np.sqrt(np.square(d_mid).sum(axis=0))
        case "plainact":
            return np.abs(product).sum(axis=0)
        case "taylor":
            return np.abs(product.sum(axis=0))
        case "fisher":
            return np.square(product).sum(axis=0)
    raise MinillmError(f"criterion {criterion!r} is unknown, expected one of {', '.join(CRITERIA)}")


class Seen(NamedTuple):
    """What one sequence shows. criteria {name: (L, F)}; context (L, D): what each attention gives at the last token of
    the prompt; answer (L, D): the same at the last token of all."""

    criteria: dict[str, np.ndarray]
    context: np.ndarray
    answer: np.ndarray


def look_at(model: Llama, text: Prompted) -> Seen:
    """The criteria of a sequence, from one dense pass forward and one back; L is the mean loss of the continuation."""
    saved, (ids, prompt) = Saved(), text
    model.forward(ids[:-1], tap=saved)
    found = backward(model, ids[:-1], partial(answer_loss, text=text), saved)
    criteria: dict[str, list[np.ndarray]] = {name: [] for name in CRITERIA}
    for layer in model.layers:
        step, gate = f"blocks.{layer.index}.mlp.mid", f"model.layers.{layer.index}.mlp.gate_proj.weight"
        for name in CRITERIA:
            if name == "weights":
                criteria[name].append(np.abs(layer.gate_proj * found.weights[gate]).sum(axis=1))
            else:
                criteria[name].append(importance(saved[step], found.steps[step], name))
    context = np.stack([saved[f"blocks.{layer.index}.attn.out"] for layer in model.layers])  # (L, T, D)
    return Seen({name: np.stack(rows) for name, rows in criteria.items()}, context[:, prompt - 1], context[:, -1])


def answer_loss(z: np.ndarray, text: Prompted) -> Loss:
    """The mean cross entropy of the continuation alone: z (T - 1, V)."""
    ids, prompt = text
    value, d = cross_entropy(z[prompt - 1 :], ids[prompt:])
    whole = np.zeros_like(z)
    whole[prompt - 1 :] = d
    return Loss(value, whole)


# ---- the predictor ---------------------------------------------------------------------------------------------------


def learnt(x: np.ndarray, targets: np.ndarray, hidden: int, seed: int = 0) -> Parameters:
    """A network for one input and all its targets: x (n, D), targets (n, outputs), both 0 ... 1."""
    rng = np.random.default_rng(seed)
    tables = initial_weights(x, targets, hidden, rng, hidden_layer=True)
    steps = EPOCHS * -(-len(x) // BATCH)
    with few_threads(x):
        adam = Adam(tables, RATE)
        for _ in range(EPOCHS):
            order = rng.permutation(len(x))
            for a in range(0, len(x), BATCH):
                rows = order[a : a + BATCH]
                _, d = squared_error(logits(tables, x[rows]), targets[rows])
                adam.step(gradients_of(tables, x[rows], d.astype(np.float32)), cosine(adam.t, steps))
    return tables


@dataclass(frozen=True, eq=False)
class Shadows:
    """Networks that see a prompt once: one for all layers, or (the control) one for each.

    shape: (L, D, F). networks: one, or L. sees_answer: its input is that of the released code.
    """

    shape: tuple[int, int, int]
    networks: Sequence[Parameters]
    sees_answer: bool = False

    @classmethod
    def fit(
        cls, shape: tuple[int, int, int], seen: Sequence[Seen], criterion: str, hidden: int = 64,
        per_layer: bool = False, sees_answer: bool = False,
    ) -> Shadows:  # fmt: skip
        """Learn a criterion from sequences that were looked at."""
        targets = np.stack([one.criteria[criterion] for one in seen]).astype(np.float32)  # (n, L, F)
        inputs = np.stack([one.answer if sees_answer else one.context for one in seen]).astype(np.float32)  # (n, L, D)
        if per_layer:
            made = [learnt(scaled(inputs[:, i]), scaled(targets[:, i]), hidden, i) for i in range(shape[0])]
        else:
            made = [learnt(scaled(inputs[:, 0]), scaled(targets.reshape(len(seen), -1)), hidden)]
        return cls(shape, made, sees_answer)

    def scores(self, seen: Seen) -> np.ndarray:
        """What is expected of each neuron of a sequence: (L, F)."""
        x = (seen.answer if self.sees_answer else seen.context).astype(np.float32)
        parts = [logits(tables, scaled(x[i : i + 1])) for i, tables in enumerate(self.networks)]
        return np.concatenate(parts).reshape(self.shape[0], self.shape[2])

    @property
    def multiply_adds(self) -> int:
        """For one sequence: the sizes of A and B, of all networks."""
        return sum(tables["A"].size + tables["B"].size for tables in self.networks)


# ---- masks, ranks, rows ----------------------------------------------------------------------------------------------


def mask_of(scores: np.ndarray, share: float, whole: bool) -> np.ndarray:
    """The neurons to keep: the largest ``share`` of each layer, or of the whole model.  (L, F)  ->  bool (L, F)."""
    rows = scores.reshape(1, -1) if whole else scores
    return largest(rows, round(share * rows.shape[1])).reshape(scores.shape)


def answer_nll(model: Llama, text: Prompted, ffn: FeedForward = swiglu) -> float:
    """Nats per token of the continuation."""
    ids, prompt = text
    z = model.forward(ids[:-1], ffn=ffn)[prompt - 1 :]
    return -float(np.mean(log_probability(z, ids[prompt:])))


def ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each number, equal ones share their mean rank.  (n,)  ->  (n,)."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[where]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """The correlation of the ranks of two lists of numbers, -1 to 1; 0 where one of them has no order."""
    a, b = ranks(a.ravel()), ranks(b.ravel())
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size else 0.0


def rows_of(
    model: Llama, training: Sequence[Prompted], test: Sequence[Prompted], share: float = 0.5,
    criteria: Sequence[str] = CRITERIA, hidden: int = 64,
) -> Iterator[dict]:  # fmt: skip
    """A row for each criterion and each way to know it, in nats per token of continuations.

    training, test: of different documents. share: of the neurons that are kept. Ways: the truth (oracle), the mean of
    the training sequences (static), one network at layer 0, one network for each layer, and the released input. Raises
    MinillmError for too few sequences.
    """
    if len(training) < 2 or not test:
        raise MinillmError(f"{len(training)} training and {len(test)} test sequences are there, expected 2 and 1")
    seen, asked = ([look_at(model, text) for text in texts] for texts in (training, test))
    dense = float(np.mean([answer_nll(model, text) for text in test]))
    shape = shape_of(model)
    for criterion in criteria:
        truths = [one.criteria[criterion] for one in asked]  # (L, F) each
        for way, (scores, work) in _ways(shape, seen, criterion, hidden).items():
            guesses = [scores(one) for one in asked]
            agreement = [spearman(guess, truth) for guess, truth in zip(guesses, truths, strict=True)]
            row = {"criterion": criterion, "from": way, "spearman": float(np.mean(agreement)), "dense": dense}
            for name, whole in (("local", False), ("global", True)):
                masks = [StaticSet(mask_of(guess, share, whole)) for guess in guesses]
                nlls = [answer_nll(model, text, SelectedFFN(m)) for text, m in zip(test, masks, strict=True)]
                row[name] = float(np.mean(nlls))
            yield row | {"multiply_adds": work}


WAYS: dict[str, dict[str, bool]] = {  # way to know a criterion -> how Shadows.fit learns it
    "layer 0": {}, "each layer": {"per_layer": True}, "layer 0, sees the answer": {"sees_answer": True},
}  # fmt: skip


def _ways(
    shape: tuple[int, int, int], seen: Sequence[Seen], criterion: str, hidden: int
) -> dict[str, tuple[Callable[[Seen], np.ndarray], int]]:
    """Each way to know a criterion: a function of what a sequence shows, and its multiply-adds."""
    means = np.mean([scaled(one.criteria[criterion].reshape(1, -1)) for one in seen], axis=0)  # (1, L F)
    ways: dict[str, tuple[Callable[[Seen], np.ndarray], int]] = {
        "oracle": (partial(_true_scores, criterion=criterion), 0),
        "static": (partial(_same_scores, scores=means.reshape(shape[0], -1)), 0),
    }
    for way, options in WAYS.items():
        made = Shadows.fit(shape, seen, criterion, hidden, **options)
        ways[way] = made.scores, made.multiply_adds
    return ways


def _true_scores(one: Seen, criterion: str) -> np.ndarray:
    return one.criteria[criterion]


def _same_scores(one: Seen, scores: np.ndarray) -> np.ndarray:
    return scores


def verdict(rows: Sequence[Mapping]) -> list[str]:
    """What the rows say, in sentences: predictability, the gain over the static mean, and which criterion is best."""
    by = {(row["criterion"], row["from"]): row for row in rows}
    names = list(dict.fromkeys(row["criterion"] for row in rows))
    known = max(names, key=lambda name: by[name, "layer 0"]["spearman"])
    sentences = [f"The most predictable criterion is {known} ({by[known, 'layer 0']['spearman']:.3f})"]
    for name in names:
        gain = by[name, "layer 0"]["spearman"] - by[name, "static"]["spearman"]
        if abs(gain) <= 0.01:
            sentences.append(f"{name}: no gain over the static mean ({gain:+.3f})")
        else:
            sentences.append(f"{name}: {gain:+.3f} beside the static mean")
    for kind in ("local", "global"):
        best = min(names, key=lambda name: by[name, "oracle"][kind])
        sentences.append(f"Of the oracles, {best} loses least with {kind} masks ({by[best, 'oracle'][kind]:.3f} nats)")
    return sentences
