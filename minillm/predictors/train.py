"""The training of a learned predictor: loss, gradients, and Adam on one layer after the other.

    z = x A B + c (+ a log s)           p = 1 / (1 + exp(-z))               learned.py

Trained with binary cross entropy against the mask y of policy mid,

    loss = - mean w_y (y ln p + (1 - y) ln(1 - p))        w_1 = 1, w_0 = share of active neurons + 0.005

with Adam, on what the layers of the CUT model see, since that is what they will see in use. Other documents are held
out, and the parameters are those of the epoch that was best on them. The gradients are short enough to write down. With
d = w (p - y) / size,

    dB = (x A)^T d      dA = x^T (d B^T)      dc = sum_t d      da = sum_t d log s
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
from .learned import TINY, Learned, Refined, log_scores, logits

BATCH, RATE = 256, 0.01  # examples per step, Adam's lr
Parameters = dict[str, np.ndarray]  # A (D, r), B (r, F), c (F,), and a (F,) of a refined one
Rows = tuple[np.ndarray, np.ndarray, np.ndarray | None]  # x (n, D), y (n, F) bool, log s (n, F) or None


@dataclass(frozen=True)
class Schedule:
    """How long one layer is trained, and what for.

    epochs: passes over the examples, at most. negative: the weight w_0; None: a little more than the share of active
    neurons. patience: training ends after this many epochs without gain on the held-out examples.
    """

    epochs: int = 15
    negative: float | None = None
    patience: int = 3


# ---- one layer -------------------------------------------------------------------------------------------------------


def loss_and_gradients(
    p: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray, logs: np.ndarray | None = None, negative: float = 1.0
) -> tuple[float, dict[str, np.ndarray]]:
    """The weighted cross entropy of the module's docstring and its gradient by every parameter.

    p: A, B, c (and a, where logs are given). x (T, D), y (T, F) bool, logs (T, F). negative: the weight w_0.
    """
    z = logits(p, x, logs)  # (T, F)
    weight = np.where(y, 1, negative).astype(z.dtype)
    # ln(1 + exp(-|z|)) never overflows:  -ln p = max(-z, 0) + that,  -ln(1 - p) = max(z, 0) + that
    small = np.exp(-np.abs(z))
    loss = float((weight * (np.maximum(np.where(y, -z, z), 0) + np.log1p(small))).mean(dtype=np.float64))
    probability = np.where(z >= 0, 1, small) / (1 + small)
    d = weight * (probability - y) / z.size  # (T, F)
    gradients = {"B": (x @ p["A"]).T @ d, "A": x.T @ (d @ p["B"].T), "c": d.sum(axis=0)}
    if logs is not None:
        gradients["a"] = (d * logs).sum(axis=0)
    return loss, gradients


def initial_weights(x: np.ndarray, y: np.ndarray, rank: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Where training begins: x A near 1 whatever the scale of x, B = 0, and c from the share of tokens that activate.

    x (n, D), y (n, F) bool  ->  A (D, r), B (r, F), c (F,), float32.
    """
    hidden, size = x.shape[1], float(np.sqrt(np.square(x).mean())) or 1.0
    rate = y.mean(axis=0).clip(0.01, 0.99)
    p = {"A": rng.normal(0, hidden**-0.5 / size, (hidden, rank)), "B": np.zeros((rank, y.shape[1]))}
    p["c"] = np.log(rate / (1 - rate))
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
        best, waited, adam, steps = snapshot(), 0, Adam(p, RATE), schedule.epochs * -(-len(x) // BATCH)
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
    model: Llama, thresholds: Thresholds, documents: Sequence[str], context: int | None = None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The FFN inputs of every layer in the model that is cut by these thresholds, and the neurons that it keeps.

    ->  inputs: per layer (n, D), masks: per layer (n, F) bool. Held in memory: n (4 D + F) bytes per layer.
    """
    pieces = runs(model, documents, "documents", context)
    values = sample_values(model, pieces, ("norm", "mask"), ffn=policy_ffn(model, thresholds))
    return [layer["norm"] for layer in values], [layer["mask"] for layer in values]


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
) -> Learned | Refined:
    """Train one predictor per layer (module's docstring); with a shadow, one that refines it.

    documents: training text. held_out: other documents, for early stopping: a layer's training ends after three epochs
    without gain on them. rank: r. ahead: 0, or 1 for one layer ahead (not with a shadow). rng: for the first A and the
    order of the examples. Raises MinillmError for documents in both texts and for a rank or ahead out of range.
    """
    from tqdm.auto import tqdm

    shape = layers, hidden, _ = shape_of(model)
    hashes = [frozenset(document_hashes(text)) for text in (documents, held_out)]
    if hashes[0] & hashes[1]:
        raise MinillmError(f"{len(hashes[0] & hashes[1])} of the held-out documents are among the training documents")
    if not 1 <= rank <= hidden:
        raise MinillmError(f"rank is {rank}, expected 1 to {hidden}")
    if ahead not in (0, 1) or (ahead and shadow is not None):
        raise MinillmError(f"ahead is {ahead}, expected 0, or 1 without a shadow")
    rng = np.random.default_rng(0) if rng is None else rng
    if shadow is not None:
        shadow.attach(model)
    training, judged = (
        _Examples(*examples(model, thresholds, text, context), shadow, ahead) for text in (documents, held_out)
    )
    tables: dict[str, list[np.ndarray]] = defaultdict(list)
    with tqdm(total=layers * epochs, desc="training", unit="epoch", leave=False, delay=2, disable=None) as bar:

        def watch(loss: float) -> None:
            bar.set_postfix(held_out=f"{loss:.4f}")
            bar.update()

        for i in range(layers):
            rows, rows_held = training.of_layer(i), judged.of_layer(i)
            p = initial_weights(*rows[:2], rank, rng)
            if shadow is not None:
                start_at_shadow(p, thresholds.layers[i]["mid"])
            p = train_layer(p, rows, rows_held, Schedule(epochs), rng, watch)
            for name, value in p.items():
                tables[name].append(value.astype(np.float16))
    stacked = {name: np.stack(parts) for name, parts in tables.items()}
    predictor = Learned(shape, stacked, ahead) if shadow is None else Refined(shadow, stacked)
    predictor.trained_on |= hashes[0] | hashes[1]
    predictor.model = model.fingerprint
    return predictor


def start_at_shadow(p: Parameters, level: float) -> None:
    """Set a and c of p so that z = 0 where the shadow's score is ``level``, the threshold: where training begins."""
    size = p["c"].shape  # (F,)
    p["a"] = np.full(size, 4.0, np.float32)
    p["c"] = np.full(size, -4 * np.log(level + TINY), np.float32)
