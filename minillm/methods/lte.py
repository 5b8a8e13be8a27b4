"""LTE, Learn To be Efficient: gates that the model itself learns to close.

Zheng et al. 2024 (Learn To be Efficient: Build Structured Sparsity in Large Language Models, arXiv 2402.06126). The
neurons of an FFN are dealt into N blocks of g, and one gate for each block looks at the FFN's input:

    G_b = sigmoid(10 (x . w_b + c_b))               x (D,), w_b (D,)
    y   = sum_b  gate_b  (what block b gives)       soft: gate_b = G_b        hard: gate_b = 1 where G_b > tau, else 0

Unlike the K best blocks of a router (predictors/router.py), the number of open gates differs from token to token and
from layer to layer. How many stay open is decided by a price:

    L = L_task + eta L_eff + s L_sep        L_eff = mean of G_b^2        L_sep = mean of 1 / (G_b - tau)^2

over all gates of all layers and tokens. **The paper's two stages:** first soft gates, which L_eff pushes down and L_sep
away from tau, then hard ones: the gates are frozen, and the rest of the model gets used to them. **The other way**
(``hard``): the gates are hard in every forward pass, and the gradient of a hard gate is taken for that of its sigmoid
(a straight-through estimator). So training and use are the same from the first step, and neither L_sep nor a second
stage is needed.

    d gate_b = sum over the block of d(m_j gate) m_j        d(x . w_b + c_b) = 10 d gate_b G_b (1 - G_b)

The 10 lets the gates learn ten times as fast as the weights: Adam's steps are of one length, whatever the gradient's.
(The released scripts give the router a rate of 0.01.)

**A wall.** L_sep is recalled, not published with its code: at tau it is infinite, and its slope is 2 / |G - tau|^3.
Where gates begin above tau (c_b = 0.1, so G = 0.73), a weight of 0.5 gives a slope of 81 upwards beside one of 1.5 eta
downwards, so that no gate ever crosses tau and nothing gets sparse (``wall`` measures it).

**Grouping.** Balanced k-means of the rows of gate, each divided by its length: clusters of exactly g neurons.

Pitfalls. A soft gate below 1 shrinks what its block gives, and the weights of down grow to make up for it: hard gates
then give too much. Tokens that are computed together need the union of their blocks. Compare with a dense model that
was trained further for the same time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from ..errors import MinillmError
from ..predictors.router import block_sums
from ..sparsity.selected import NOTHING_READ, SelectedFFN
from ..steps import place
from ..trace import Tap, no_tap
from ..training.backward import Saved, backward
from ..training.batches import Batches
from ..training.losses import cross_entropy, distillation
from ..training.trainer import Pass, Plan, Trained, Trainer, trainable, trained_model
from ..training.tune import in_order
from ..transformer.ffn import mid_of
from ..transformer.layer import Layer
from ..transformer.linear import linear
from ..transformer.model import Llama, shape_of

TAU = 0.5  # a gate above it is open
OPEN = 1.0  # 10 c_b at the beginning: G = 0.73
FASTER = 10.0  # than the weights
NEAREST = 1e-2  # |G - tau| is taken for at least this, since L_sep has no value at tau
TURNS = 20  # of k-means, at most


# ---- the blocks ------------------------------------------------------------------------------------------------------


def balanced_clusters(rows: np.ndarray, group: int, rng: np.random.Generator) -> np.ndarray:
    """K-means whose clusters all have ``group`` members (the last one fewer, where it does not divide the rows).

    rows (F, D)  ->  order (F,): the members of the first cluster, then those of the second, and so on. In each turn the
    pairs of row and centre are taken from the nearest on; a row goes to a centre that has room.
    """
    count = len(rows)
    sizes = np.full(-(-count // group), group)
    sizes[-1] = count - group * (len(sizes) - 1)
    centres, before = rows[rng.choice(count, len(sizes), replace=False)], None
    for _ in range(TURNS):
        distance = np.vecdot(centres, centres) - 2 * rows @ centres.T  # (F, N), but for |row|^2
        cluster, room = np.full(count, -1), sizes.copy()
        for pair in np.argsort(distance, axis=None, kind="stable").tolist():
            row, centre = divmod(pair, len(sizes))
            if cluster[row] < 0 and room[centre]:
                cluster[row], room[centre] = centre, room[centre] - 1
        if before is not None and np.array_equal(cluster, before):
            break
        before = cluster
        centres = np.stack([rows[cluster == c].mean(axis=0) for c in range(len(sizes))])
    return np.argsort(cluster, kind="stable")


def in_blocks(model: Llama, group: int, seed: int = 0) -> Llama:
    """The model with the neurons of each layer in the order of ``balanced_clusters`` of its gate rows."""
    rng, weights = np.random.default_rng(seed), model.weights
    for layer in model.layers:
        rows = layer.gate_proj / np.maximum(np.linalg.norm(layer.gate_proj, axis=1, keepdims=True), 1e-12)
        weights = weights | in_order(layer, balanced_clusters(rows, group, rng)).weights()
    made = Llama(model.config, weights, model.folder)
    made.bos = model.bos
    return made


# ---- the gates -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Gates:
    """The gates of all layers: a Selector (hard: ``SelectedFFN(gates)`` runs it), and with ``soft_ffn`` a FeedForward.

    layers: per layer W (N, D) and c (N,). group: g. calibrated_on: hashes of the documents that they learnt from.
    """

    layers: Sequence[dict[str, np.ndarray]]
    group: int
    tau: float = TAU
    name: str = "LTE's gates"
    calibrated_on: frozenset[str] = field(default_factory=frozenset)
    reads: frozenset[str] = NOTHING_READ

    @classmethod
    def new(cls, model: Llama, group: int) -> Gates:
        """Gates that are all open by the same 0.73. Raises MinillmError for a group out of range."""
        layers, width, neurons = shape_of(model)
        if not 1 <= group <= neurons:
            raise MinillmError(f"group is {group}, expected 1 to {neurons}")
        blocks = -(-neurons // group)
        made = [{"W": np.zeros((blocks, width), model.dtype), "c": np.full(blocks, OPEN / FASTER, model.dtype)}
                for _ in range(layers)]  # fmt: skip
        return cls(made, group)

    def values(self, index: int, x: np.ndarray) -> np.ndarray:
        """G of each block: x (T, D)  ->  (T, N)."""
        tables = self.layers[index]
        z = x.dtype.type(FASTER) * linear(x, tables["W"], tables["c"])  # (T, N)
        return 1 / (1 + np.exp(-np.maximum(z, -80)))

    def of_neurons(self, blocks: np.ndarray, neurons: int) -> np.ndarray:
        """A value for each neuron from one for each block: (T, N)  ->  (T, F)."""
        return np.repeat(blocks, self.group, axis=1)[:, :neurons]

    def __call__(self, x: np.ndarray, layer: Layer, position: int = 0, tap: Tap = no_tap) -> np.ndarray:
        """x (T, D)  ->  mask (T, F): True where the gate of the neuron's block is open."""
        return self.of_neurons(self.values(layer.index, x) > self.tau, len(layer.gate_proj))

    def soft_ffn(self, x: np.ndarray, layer: Layer, position: int = 0, tap: Tap = no_tap) -> np.ndarray:
        """The FeedForward with soft gates: each neuron times its G. Its mask is no mask, but the G: it taps them."""
        mid = mid_of(x, layer, tap)  # (T, F)
        gate = tap("mask", self.of_neurons(self.values(layer.index, x), mid.shape[1]))  # (T, F), 0 to 1
        return tap("out", linear(tap("mid_cut", mid * gate), layer.down_proj, layer.down_bias))  # (T, D)

    def parameters(self) -> dict[str, np.ndarray]:
        """Their tables by names of their own, for a Trainer."""
        return {f"gates.{i}.{name}": table for i, tables in enumerate(self.layers) for name, table in tables.items()}


@dataclass(frozen=True)
class Price:
    """What open gates cost: eta for L_eff, separability s for L_sep (module docstring)."""

    eta: float = 0.1
    separability: float = 0.0
    tau: float = TAU

    def of(self, gates: np.ndarray) -> float:
        """eta G^2 + s / (G - tau)^2, summed over all gates.  (T, N)  ->  a number."""
        apart = np.maximum(np.abs(gates - self.tau), NEAREST)
        return float((self.eta * gates**2 + self.separability / apart**2).sum(dtype=np.float64))

    def slope(self, gates: np.ndarray) -> np.ndarray:
        """Its slope: 2 eta G - 2 s / (G - tau)^3.  (T, N)  ->  (T, N). None of L_sep nearer to tau than NEAREST."""
        apart = gates - self.tau
        away = np.where(np.abs(apart) < NEAREST, 0, apart)
        cube = np.divide(1, away**3, out=np.zeros_like(away), where=away != 0)
        return 2 * self.eta * gates - 2 * self.separability * cube


@dataclass(eq=False)
class GatesBack:
    """The tap of the way back (training/backward.py) that lets the gates learn, too.

    It sees d(m_j gate) of each layer, from which the gradients of the gates follow, and adds to dx what the gates hand
    on. saved: the values of the forward pass. share: of one gate of one token in the price: 1 / (L N tokens).
    """

    gates: Gates
    saved: Mapping[str, np.ndarray]
    price: Price
    share: float
    give: Tap
    d_logits: dict[int, np.ndarray] = field(default_factory=dict)

    def __call__(self, name: str, d: np.ndarray) -> np.ndarray:
        at = place(name)
        if at is not None and at.step == "mlp.mid_cut":
            x, mid = (self.saved[f"blocks.{at.layer}.mlp.{step}"] for step in ("norm", "mid"))
            G = self.gates.values(at.layer, x)  # (T, N)
            d_gate = block_sums(d * mid, self.gates.group) + self.share * self.price.slope(G)  # (T, N)
            self.d_logits[at.layer] = (FASTER * d_gate * G * (1 - G)).astype(d.dtype, copy=False)
        if at is not None and at.step == "mlp.norm":
            d_logits, tables = self.d_logits.pop(at.layer), self.gates.layers[at.layer]
            self.give(f"gates.{at.layer}.W", d_logits.T @ self.saved[name])
            self.give(f"gates.{at.layer}.c", d_logits.sum(axis=0))
            d = d + d_logits @ tables["W"]
        return self.give(name, d)


def with_gates(gates: Gates, price: Price, hard: bool = True, teacher: Llama | None = None) -> Pass:
    """The pass of a training with gates; its loss is that of the task and the price.

    hard: with the straight-through gradient of the module's docstring; else soft. teacher: whose probabilities are
    learnt; None: the next token.
    """
    ffn = SelectedFFN(gates) if hard else gates.soft_ffn

    def one_pass(model: Llama, ids: np.ndarray, count: int, tap: Tap) -> float:
        saved, layers = Saved(), model.layers
        model.forward(ids[:-1], ffn=ffn, tap=saved)
        loss = partial(cross_entropy, targets=ids[1:], count=count)
        if teacher is not None:
            loss = partial(distillation, teacher=teacher.forward(ids[:-1]), count=count)
        share = 1 / (len(layers) * len(gates.layers[0]["c"]) * count)
        back = GatesBack(gates, saved, price, share, tap)
        task = backward(model, ids[:-1], loss, saved, tap=back).loss
        norms = [saved[f"blocks.{layer.index}.mlp.norm"] for layer in layers]
        return task + share * sum(price.of(gates.values(i, x)) for i, x in enumerate(norms))

    return one_pass


# ---- training --------------------------------------------------------------------------------------------------------


def learn(
    model: Llama, batches: Batches, group: int, price: Price, plan: Plan, *, hard: bool = True,
    teacher: Llama | None = None,
) -> tuple[Trained, Gates]:  # fmt: skip
    """Train a copy of a model (its neurons in blocks) together with gates; gives both.

    Raises MinillmError for a group out of range, and as ``Trainer.run`` does.
    """
    copy, gates = trainable(model), Gates.new(model, group)
    trainer = Trainer(copy, batches, plan, with_gates(gates, price, hard, teacher), copy.weights | gates.parameters())
    trainer.run()
    return trained_model(trainer), replace(gates, calibrated_on=batches.documents_sha256)


def settle(model: Llama, gates: Gates, batches: Batches, plan: Plan, *, teacher: Llama | None = None) -> Trained:
    """The paper's second stage: hard gates that are frozen, while the weights of a copy of the model learn."""
    copy = trainable(model)
    nothing = Price(eta=0.0)
    trainer = Trainer(copy, batches, plan, with_gates(gates, nothing, True, teacher), copy.weights)
    trainer.run()
    return trained_model(trainer)


def wall(model: Llama, batches: Batches, group: int, plan: Plan, ids: np.ndarray) -> Iterator[dict]:
    """Soft gates for a short time at two prices and three weights of L_sep: a row each (module docstring, "A wall").

    kept: share of open gates on the text ids (T,). upwards, downwards: the slopes of L_sep and of L_eff where the
    gates begin.
    """
    start = float(1 / (1 + np.exp(-OPEN)))
    for separability in (0.0, 5e-4, 0.5):
        for eta in (0.3, 1.0):
            trained, gates = learn(model, batches, group, Price(eta, separability), plan, hard=False)
            kept = [gates.values(layer.index, x) > gates.tau for layer, x in _inputs(trained.model, gates, ids)]
            yield {
                "eta": eta, "separability": separability, "downwards": 2 * eta * start,
                "upwards": 2 * separability / (start - TAU) ** 3, "kept": float(np.mean(kept)),
            }  # fmt: skip


def _inputs(model: Llama, gates: Gates, ids: np.ndarray) -> Iterator[tuple[Layer, np.ndarray]]:
    """Each layer with the input of its FFN, soft gates in the loop."""
    saved = Saved()
    model.forward(ids, ffn=gates.soft_ffn, tap=saved)
    for layer in model.layers:
        yield layer, saved[f"blocks.{layer.index}.mlp.norm"]
