"""The training of a learned predictor: loss, gradients, and Adam on one layer after the other.

    z = x A B + c (+ a log s)           learned.py

There are two targets. Classification: binary cross entropy against the mask y of policy mid, p = 1 / (1 + exp(-z)),

    loss = - mean w_y (y ln p + (1 - y) ln(1 - p))        w_1 = 1, w_0 = share of active neurons + 0.005

Regression: the squared error against |mid|, brought to 0 ... 1 for each token,

    loss = mean (z - y)^2        y_j = (|mid_j| - min_i |mid_i|) / (max_i |mid_i| - min_i |mid_i|)

To the mask, a neuron just above the threshold counts as much as the largest one. To |mid|, the large ones count, and
they are what the output is made of: at the same size, regression finds fewer of the active neurons, and perplexity
rises less.

Both are trained with Adam, on what the layers of the CUT model see, since that is what they will see in use. Other
documents are held out, and the parameters are those of the epoch that was best on them. The gradients are short enough
to write down. With d = dloss/dz, which is w (p - y) / size or 2 (z - y) / size,

    dB = (x A)^T d      dA = x^T (d B^T)      dc = sum_t d      da = sum_t d log s

With a hidden layer, x A becomes max(x A + h, 0), only what was above 0 hands d B^T on to A, and dh is its sum.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import MinillmError
from ..optim import Adam, cosine
from ..sparsity.magnitudes import sample_values
from ..sparsity.sparse import policy_ffn
from ..sparsity.thresholds import Thresholds
from ..threads import few_threads, with_few_threads
from ..transformer.model import Llama, shape_of
from ..transformer.texts import document_hashes, runs
from .copies import Shadow
from .learned import TARGETS, TINY, Learned, Refined, hidden, log_scores, logits

BATCH = 256  # examples per step
RATES = {"mask": 0.01, "mid": 0.003}  # target -> Adam's lr
Parameters = dict[str, np.ndarray]  # A (D, r), B (r, F), c (F,); h (r,) of a hidden layer; a (F,) of a refined one
Rows = tuple[np.ndarray, np.ndarray, np.ndarray | None]  # x (n, D), y (n, F), log s (n, F) or None


@dataclass(frozen=True)
class Schedule:
    """How long one layer is trained, and what for.

    epochs: passes over the examples, at most. negative: the weight w_0; None: a little more than the share of active
    neurons. patience: training ends after this many epochs without gain on the held-out examples. rate: Adam's lr.
    """

    epochs: int = 15
    negative: float | None = None
    patience: int = 3
    rate: float = RATES["mask"]


# ---- one layer -------------------------------------------------------------------------------------------------------


def cross_entropy(z: np.ndarray, y: np.ndarray, negative: float) -> tuple[float, np.ndarray]:
    """The weighted cross entropy and dloss/dz: z (T, F), y (T, F) bool, w_0  ->  loss, (T, F)."""
    weight = np.where(y, 1, negative).astype(z.dtype)
    # ln(1 + exp(-|z|)) never overflows:  -ln p = max(-z, 0) + that,  -ln(1 - p) = max(z, 0) + that
    small = np.exp(-np.abs(z))
    loss = float((weight * (np.maximum(np.where(y, -z, z), 0) + np.log1p(small))).mean(dtype=np.float64))
    probability = np.where(z >= 0, 1, small) / (1 + small)
    return loss, weight * (probability - y) / z.size


def squared_error(z: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean squared error and dloss/dz: z (T, F), y (T, F)  ->  loss, (T, F)."""
    missed = z - y
    return float(np.square(missed).mean(dtype=np.float64)), 2 * missed / z.size


def min_max(mid: np.ndarray) -> np.ndarray:
    """|mid|, brought to 0 ... 1 for each token: (n, F)  ->  (n, F). Zeros where all magnitudes of a token are equal.

    >>> min_max(np.array([[-1.0, 3.0, 5.0]]))
    array([[0. , 0.5, 1. ]])
    """
    return scaled(np.abs(mid))


def scaled(rows: np.ndarray) -> np.ndarray:
    """Each row brought to 0 ... 1: (n, m)  ->  (n, m). Zeros where all values of a row are equal."""
    low, high = (pick(rows, axis=1, keepdims=True) for pick in (np.min, np.max))
    return (rows - low) / np.maximum(high - low, np.finfo(rows.dtype).tiny)


def loss_and_gradients(
    p: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray, logs: np.ndarray | None = None, negative: float = 1.0
) -> tuple[float, dict[str, np.ndarray]]:
    """The loss of the module's docstring and its gradient by every parameter.

    p: A, B, c (and h; and a, where logs are given). x (T, D), y (T, F): bool for cross entropy, else numbers for the
    squared error. logs (T, F). negative: the weight w_0 of cross entropy.
    """
    z = logits(p, x, logs)  # (T, F)
    loss, d = cross_entropy(z, y, negative) if y.dtype == bool else squared_error(z, y)
    gradients = gradients_of(p, x, d)
    if logs is not None:
        gradients["a"] = (d * logs).sum(axis=0)
    return loss, gradients


def gradients_of(p: Parameters, x: np.ndarray, d: np.ndarray) -> Parameters:
    """Back through z = x A B + c (with a hidden layer where p has an h): x (T, D), d = dloss/dz (T, F)."""
    inner = hidden(p, x)  # (T, r)
    back = d @ p["B"].T  # (T, r)
    gradients = {"B": inner.T @ d, "c": d.sum(axis=0)}
    if "h" in p:
        back = back * (inner > 0)
        gradients["h"] = back.sum(axis=0)
    gradients["A"] = x.T @ back
    return gradients


def initial_weights(
    x: np.ndarray, y: np.ndarray, rank: int, rng: np.random.Generator, hidden_layer: bool = False
) -> dict[str, np.ndarray]:
    """Where training begins: x A near 1 whatever the scale of x, B = h = 0, and c from the mean of y alone.

    For a mask, c is the logit of the share of tokens that activate. x (n, D), y (n, F)  ->  A (D, r), B (r, F), c (F,)
    and with a hidden layer h (r,), float32.
    """
    width, size = x.shape[1], float(np.sqrt(np.square(x).mean())) or 1.0
    mean = y.mean(axis=0)
    p = {"A": rng.normal(0, width**-0.5 / size, (width, rank)), "B": np.zeros((rank, y.shape[1]))}
    share = mean.clip(0.01, 0.99)
    p["c"] = np.log(share / (1 - share)) if y.dtype == bool else mean
    if hidden_layer:
        p["h"] = np.zeros(rank)
    return {name: value.astype(np.float32) for name, value in p.items()}


def train_layer(
    p: Parameters, training: Rows, held_out: Rows, schedule: Schedule, rng: np.random.Generator,
    watch: Callable[[float], None] = lambda loss: None,
) -> Parameters:  # fmt: skip
    """Adam on one layer's parameters p, which are changed; gives those of the epoch that was best on held_out.

    rng: for the order of the examples. watch: called with the held-out loss after each epoch.
    """
    x, y, logs = training
    negative = float(y.mean()) + 0.005 if schedule.negative is None else schedule.negative

    def snapshot() -> tuple[float, Parameters]:
        return loss_and_gradients(p, *held_out, negative)[0], {name: value.copy() for name, value in p.items()}

    with few_threads(x):
        best, waited, adam, steps = snapshot(), 0, Adam(p, schedule.rate), schedule.epochs * -(-len(x) // BATCH)
        for _ in range(schedule.epochs):
            order = rng.permutation(len(x))
            for a in range(0, len(x), BATCH):
                rows = order[a : a + BATCH]
                part_logs = None if logs is None else logs[rows]
                _, gradients = loss_and_gradients(p, x[rows], y[rows], part_logs, negative)
                adam.step(gradients, cosine(adam.t, steps, warmup=20))
            latest = snapshot()
            best, waited = (latest, 0) if latest[0] < best[0] else (best, waited + 1)
            watch(latest[0])
            if waited == schedule.patience:
                break
    return best[1]


# ---- all layers ------------------------------------------------------------------------------------------------------


def examples(
    model: Llama, thresholds: Thresholds, documents: Sequence[str], context: int | None = None, target: str = "mask"
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The FFN inputs of every layer in the model that is cut by these thresholds, and the target there.

    ->  inputs: per layer (n, D); per layer (n, F): the neurons that it keeps, bool, or for target "mid" what
    ``min_max`` gives. Held in memory: n (4 D + F) bytes per layer, for "mid" n (4 D + 4 F).
    """
    pieces = runs(model, documents, "documents", context)
    values = sample_values(model, pieces, ("norm", target), ffn=policy_ffn(model, thresholds))
    targets = [layer[target] if target == "mask" else min_max(layer[target]) for layer in values]
    return [layer["norm"] for layer in values], targets


@dataclass(frozen=True)
class _Examples:
    """The examples of all layers, and where they come from: x, y per layer; a shadow gives log s beside them."""

    x: list[np.ndarray]
    y: list[np.ndarray]
    shadow: Shadow | None
    ahead: int

    def of_layer(self, index: int) -> Rows:
        """What layer ``index`` learns from; one layer ahead, the input is that of the layer before."""
        logs = None if self.shadow is None else log_scores(self.shadow, index, self.x[index])
        return self.x[max(0, index - self.ahead)], self.y[index], logs


@with_few_threads
def train(
    model: Llama,
    thresholds: Thresholds,
    documents: str | Sequence[str],
    held_out: str | Sequence[str],
    rank: int,
    shadow: Shadow | None = None,
    ahead: int = 0,
    context: int | None = None,
    epochs: int = 15,
    rng: np.random.Generator | None = None,
    target: str = "mask",
    hidden_layer: bool = False,
) -> Learned | Refined:
    """Train one predictor per layer (module's docstring); with a shadow, one that refines it.

    documents: training text. held_out: other documents, for early stopping: a layer's training ends after three epochs
    without gain on them. rank: r. ahead: 0, or 1 for one layer ahead (not with a shadow). rng: for the first A and the
    order of the examples. target: "mask", or "mid" for regression on |mid|. hidden_layer: with an h. Raises
    MinillmError for documents in both texts, for a rank or ahead out of range, and for what a shadow's correction
    cannot have: it starts at the mask, and has no hidden layer.
    """
    from tqdm.auto import tqdm

    shape = layers, width, _ = shape_of(model)
    hashes = [frozenset(document_hashes(text)) for text in (documents, held_out)]
    if hashes[0] & hashes[1]:
        raise MinillmError(f"{len(hashes[0] & hashes[1])} of the held-out documents are among the training documents")
    if not 1 <= rank <= width:
        raise MinillmError(f"rank is {rank}, expected 1 to {width}")
    if ahead not in (0, 1) or (ahead and shadow is not None):
        raise MinillmError(f"ahead is {ahead}, expected 0, or 1 without a shadow")
    if target not in TARGETS or ((target != "mask" or hidden_layer) and shadow is not None):
        raise MinillmError(
            f"target is {target!r}, expected mask, or mid without a shadow; a shadow takes no hidden layer"
        )
    rng = np.random.default_rng(0) if rng is None else rng
    if shadow is not None:
        shadow.attach(model)
    training, judged = (
        _Examples(*examples(model, thresholds, text, context, target), shadow, ahead) for text in (documents, held_out)
    )
    tables: dict[str, list[np.ndarray]] = defaultdict(list)
    with tqdm(total=layers * epochs, desc="training", unit="epoch", leave=False, delay=2, disable=None) as bar:

        def watch(loss: float) -> None:
            bar.set_postfix(held_out=f"{loss:.4f}")
            bar.update()

        for i in range(layers):
            rows, rows_held = training.of_layer(i), judged.of_layer(i)
            p = initial_weights(*rows[:2], rank, rng, hidden_layer)
            if shadow is not None:
                start_at_shadow(p, thresholds.layers[i]["mid"])
            p = train_layer(p, rows, rows_held, Schedule(epochs, rate=RATES[target]), rng, watch)
            for name, value in p.items():
                tables[name].append(value.astype(np.float16))
    stacked = {name: np.stack(parts) for name, parts in tables.items()}
    predictor = Learned(shape, stacked, ahead, target) if shadow is None else Refined(shadow, stacked)
    predictor.trained_on |= hashes[0] | hashes[1]
    predictor.model = model.fingerprint
    return predictor


def start_at_shadow(p: Parameters, level: float) -> None:
    """Set a and c of p so that z = 0 where the shadow's score is ``level``, the threshold: where training begins."""
    size = p["c"].shape  # (F,)
    p["a"] = np.full(size, 4.0, np.float32)
    p["c"] = np.full(size, -4 * np.log(level + TINY), np.float32)
