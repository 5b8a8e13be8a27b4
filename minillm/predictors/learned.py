"""Predictors that are trained: Deja Vu's two low-rank maps, the same one layer ahead, and one that corrects a shadow.

    z = x A B + c                       A (D, r), B (r, F), c (F,)          learned
    z = x A B + c + a log s             s (F,) the shadow's scores, a (F,)  refined
    p = 1 / (1 + exp(-z))               how likely each neuron is active

(Liu et al. 2023, Deja Vu, arXiv 2310.17157, section 3 and the released code: two linear maps without anything between
them, one predictor per layer.) Trained with binary cross entropy against the mask y of policy mid,

    loss = - mean w_y (y ln p + (1 - y) ln(1 - p))        w_1 = 1, w_0 = share of active neurons + 0.005

with Adam, on what the layers of the CUT model see, since that is what they will see in use. Other documents are held
out, and the parameters are those of the epoch that was best on them. The gradients are short enough to write down. With
d = w (p - y) / size,

    dB = (x A)^T d      dA = x^T (d B^T)      dc = sum_t d      da = sum_t d log s

One layer ahead (``ahead``): x is the input of the FFN one layer BEFORE, at the same token, so that the weights can be
on their way while that layer is computed. Layer 0 has no layer before it and is predicted from its own input.

Differs from Deja Vu: the bias c, which costs next to nothing; a score is no decision, the cutoffs are set afterwards.
A linear z can say which gates will be large, but hardly which |up|, since up may have either sign.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from ..errors import MinillmError
from ..optim import Adam, cosine
from ..sparsity.magnitudes import sample_values
from ..sparsity.sparse import policy_ffn
from ..sparsity.thresholds import Thresholds
from ..transformer.model import Llama, shape_of
from ..transformer.texts import document_hashes, runs
from .copies import Shadow
from .protocol import Predictor

BATCH, RATE = 256, 0.01  # examples per step, Adam's lr
TINY = 1e-6  # added to a shadow's score before its logarithm


# ---- one layer: value and gradient -----------------------------------------------------------------------------------


def logits(p: dict[str, np.ndarray], x: np.ndarray, logs: np.ndarray | None = None) -> np.ndarray:
    """z = x A B + c (+ a log s): x (T, D), logs (T, F) or None  ->  (T, F)."""
    z = (x @ p["A"]) @ p["B"] + p["c"]  # (T, F)
    return z if logs is None else z + p["a"] * logs


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


# ---- all layers: examples and training -------------------------------------------------------------------------------


def examples(
    model: Llama, thresholds: Thresholds, documents: Sequence[str], context: int | None = None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What every layer sees in the model that is cut by these thresholds, and which neurons it keeps.

    ->  inputs: per layer (n, D), masks: per layer (n, F) bool. Held in memory: n (4 D + F) bytes per layer.
    """
    pieces = runs(model, documents, "documents", context)
    found = sample_values(model, pieces, ("norm", "mask"), ffn=policy_ffn(model, thresholds))
    return [layer["norm"] for layer in found], [layer["mask"] for layer in found]


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

    layers, hidden, intermediate = shape_of(model)
    hashes = [frozenset(document_hashes(text)) for text in (documents, held_out)]
    if hashes[0] & hashes[1]:
        raise MinillmError(f"{len(hashes[0] & hashes[1])} of the held-out documents are among the training documents")
    if not 1 <= rank <= hidden:
        raise MinillmError(f"rank is {rank}, expected 1 to {hidden}")
    if ahead not in (0, 1) or (ahead and shadow is not None):
        raise MinillmError(f"ahead is {ahead}, expected 0, or 1 without a shadow")
    rng = np.random.default_rng(0) if rng is None else rng
    (x, y), (x_held, y_held) = (examples(model, thresholds, text, context) for text in (documents, held_out))
    if shadow is not None:
        shadow.attach(model)

    tables: dict[str, list[np.ndarray]] = defaultdict(list)
    with tqdm(total=layers * epochs, desc="training", unit="epoch", leave=False, delay=2, disable=None) as bar:

        def watch(loss: float) -> None:
            bar.set_postfix(held_out=f"{loss:.4f}")
            bar.update()

        for i in range(layers):
            seen, seen_held = (inputs[max(0, i - ahead)] for inputs in (x, x_held))
            logs = [None, None] if shadow is None else [log_scores(shadow, i, part) for part in (x[i], x_held[i])]
            p = first_guess(seen, y[i], rank, rng)
            if shadow is not None:  # begin where the shadow is: z = 0 where its score is the threshold
                p["a"] = np.full(intermediate, 4.0, np.float32)
                p["c"] = np.full(intermediate, -4 * np.log(thresholds.layers[i]["mid"] + TINY), np.float32)
            p = train_layer(p, (seen, y[i], logs[0]), (seen_held, y_held[i], logs[1]), epochs, rng, watch=watch)
            for name, value in p.items():
                tables[name].append(value.astype(np.float16))
    stacked = {name: np.stack(parts) for name, parts in tables.items()}
    shape = (layers, hidden, intermediate)
    found = Learned(shape, stacked, ahead) if shadow is None else Refined(shadow, stacked)
    found.trained_on |= hashes[0] | hashes[1]
    return found


def first_guess(x: np.ndarray, y: np.ndarray, rank: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Where training begins: x A near 1 whatever the scale of x, B = 0, and c says how often each neuron is active.

    x (n, D), y (n, F) bool  ->  A (D, r), B (r, F), c (F,), float32.
    """
    hidden, size = x.shape[1], float(np.sqrt(np.square(x).mean()))
    rate = y.mean(axis=0).clip(0.01, 0.99)
    p = {"A": rng.normal(0, hidden**-0.5 / size, (hidden, rank)), "B": np.zeros((rank, y.shape[1]))}
    p["c"] = np.log(rate / (1 - rate))
    return {name: value.astype(np.float32) for name, value in p.items()}


def train_layer(
    p: dict[str, np.ndarray], training: tuple, held_out: tuple, epochs: int, rng: np.random.Generator,
    negative: float | None = None, patience: int = 3, watch: Callable[[float], None] = lambda loss: None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Adam on one layer's parameters p, which are changed; gives those of the epoch that was best on held_out.

    training, held_out: (x (n, D), y (n, F), log s (n, F) or None). negative: the weight w_0; None: a little more than
    the share of active neurons. So many epochs without gain (patience) are the last. watch: told the held-out loss
    after each epoch.
    """
    x, y, logs = training
    negative = float(y.mean()) + 0.005 if negative is None else negative

    def kept() -> tuple[float, dict[str, np.ndarray]]:
        return loss_and_gradients(p, *held_out, negative)[0], {name: value.copy() for name, value in p.items()}

    best, waited, adam, steps = kept(), 0, Adam(p, RATE), epochs * -(-len(x) // BATCH)
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for a in range(0, len(x), BATCH):
            rows = order[a : a + BATCH]
            part = (x[rows], y[rows], None if logs is None else logs[rows], negative)
            adam.step(loss_and_gradients(p, *part)[1], cosine(adam.t, steps, warmup=20))
        now = kept()
        best, waited = (now, 0) if now[0] < best[0] else (best, waited + 1)
        watch(now[0])
        if waited == patience:
            break
    return best[1]


def log_scores(shadow: Shadow, index: int, x: np.ndarray) -> np.ndarray:
    """log s of a shadow: x (T, D)  ->  (T, F)."""
    return np.log(shadow.predict(index, 0, x) + TINY)


# ---- the predictors --------------------------------------------------------------------------------------------------


def check_tables(tables: dict[str, np.ndarray], shape: tuple[int, int, int], names: str) -> None:
    """Raise ValueError unless the tables are A (L, D, r), B (L, r, F) and c, a (L, F)."""
    layers, hidden, intermediate = shape
    rank = tables["A"].shape[-1]
    sizes = {"A": (layers, hidden, rank), "B": (layers, rank, intermediate)}
    for name in names:
        expected = sizes.get(name, (layers, intermediate))
        if tables[name].shape != expected:
            raise ValueError(f"{name} is {list(tables[name].shape)}, expected {list(expected)}")


class Learned(Predictor):
    """Deja Vu's predictor, z = x A B + c, in float16; ahead 1 takes x from the layer before."""

    def __init__(self, shape: tuple[int, int, int], tables: dict[str, np.ndarray], ahead: int = 0):
        self.shape, self.tables, self.ahead = tuple(shape), tables, ahead
        self.lookaheads = ("layer",) if ahead else ()
        check_tables(tables, self.shape, "ABc")
        self.name = f"learned rank {tables['A'].shape[-1]}" + (", one layer ahead" if ahead else "")
        self._before: np.ndarray | None = None  # the input of the layer before, of the same tokens

    def predict(self, index: int, position: int, x: np.ndarray) -> np.ndarray:
        """x (T, D)  ->  z (T, F)."""
        seen = self._before if self.ahead and index else x
        self._before = x
        return logits({name: table[index].astype(x.dtype) for name, table in self.tables.items()}, seen)

    @property
    def nbytes(self) -> int:
        """A, B and c: 2 (r (D + F) + F) bytes per layer."""
        return sum(table.nbytes for table in self.tables.values())

    def multiply_adds(self, index: int) -> float:
        """r (D + F)."""
        _, hidden, intermediate = self.shape
        return self.tables["A"].shape[-1] * (hidden + intermediate)

    def arrays(self) -> dict[str, np.ndarray]:
        """A, B and c."""
        return self.tables

    def settings(self) -> dict:
        """Shape and ahead."""
        return {"shape": self.shape, "ahead": self.ahead}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], settings: dict) -> Learned:
        """Made again from its tables."""
        return cls(settings["shape"], arrays, settings["ahead"])


class Refined(Predictor):
    """A shadow and a small learned correction: z = a log s + c + x A B, the correction in float16."""

    def __init__(self, shadow: Shadow, tables: dict[str, np.ndarray]):
        self.shadow, self.shape, self.tables = shadow, shadow.shape, tables
        check_tables(tables, self.shape, "ABca")
        self.trained_on, self.reads_gate = shadow.trained_on, shadow.reads_gate
        self.name = f"{shadow.name}, refined"

    def attach(self, model: Llama) -> None:
        """Hand the model on to the shadow."""
        self.shadow.attach(model)

    def predict(self, index: int, position: int, x: np.ndarray) -> np.ndarray:
        """x (T, D)  ->  z (T, F)."""
        logs = log_scores(self.shadow, index, x)
        return logits({name: table[index].astype(x.dtype) for name, table in self.tables.items()}, x, logs)

    @property
    def nbytes(self) -> int:
        """The shadow's, and 2 (r (D + F) + 2 F) bytes per layer."""
        return self.shadow.nbytes + sum(table.nbytes for table in self.tables.values())

    def multiply_adds(self, index: int) -> float:
        """The shadow's and r (D + F) + F."""
        _, hidden, intermediate = self.shape
        rank = self.tables["A"].shape[-1]
        return self.shadow.multiply_adds(index) + rank * (hidden + intermediate) + intermediate

    def arrays(self) -> dict[str, np.ndarray]:
        """The shadow's tables and the correction's."""
        return self.shadow.arrays() | {f"correction_{name}": table for name, table in self.tables.items()}

    def settings(self) -> dict:
        """The shadow's."""
        return self.shadow.settings()

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], settings: dict) -> Refined:
        """Made again from both."""
        own = {name.removeprefix("correction_"): a for name, a in arrays.items() if name.startswith("correction_")}
        rest = {name: a for name, a in arrays.items() if not name.startswith("correction_")}
        return cls(Shadow.from_arrays(rest, settings), own)
