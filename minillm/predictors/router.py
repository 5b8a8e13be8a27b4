"""A router: for each token it chooses whole blocks of neurons, with one small network per layer.

    s = max(x A + h, 0) B + c               A (D, r), h (r,), B (r, N), c (N,)
    the K blocks with the largest s are kept; block b is the neurons b g ... b g + g - 1

N is the number of blocks of g neighbours. A score per block costs g times less than a score per neuron, and whole
blocks are what a memory reads fast (prefetch/kernels.py). (MoEfication, Zhang et al. 2022, arXiv 2110.01786, section
3.3, chooses blocks of a trained network by such a network; LTE, arXiv 2402.06126, by a single matrix.)

**What it learns.** E_b is the energy of block b, the share of the FFN's output that its neurons make
(prefetch/reorder.py):

    E_b = sum over its neurons of m_j^2 ||down_j||^2        e_b = E_b / sum of all E
    p = softmax(s)        loss = - mean_t  sum_b e_b ln p_b         dloss / ds = (p - e) / T

The large blocks count most, as they do for the output. (For the mask of the best K blocks as the target, the K-th block
counts as much as the first: on the default model that ends worse.) Here the tables are found for a model as it is;
training/route.py trains model and router together.

A router is a predictor: its scores are those of the blocks, moved so that 0 lies between the K-th and the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import MinillmError
from ..fields import Fields
from ..optim import Adam, cosine
from ..sparsity.magnitudes import sample_values
from ..threads import few_threads
from ..transformer.layer import Layer
from ..transformer.model import Llama, shape_of
from ..transformer.texts import document_hashes, runs
from .layout import Layout, Shape, Table, check_shape, sizes_of
from .learned import logits
from .protocol import Predictor
from .train import Parameters, gradients_of

TOKENS = 20_000  # that a router is fitted on
STEPS, BATCH, RATE = 400, 512, 3e-3


def block_sums(values: np.ndarray, group: int) -> np.ndarray:
    """Sums over blocks of ``group`` neighbours, the last one perhaps smaller.  (T, F)  ->  (T, N)."""
    return np.add.reduceat(values, np.arange(0, values.shape[-1], group), axis=-1)


def neuron_energy(mid: np.ndarray, layer: Layer) -> np.ndarray:
    """m_j^2 ||down_j||^2, not yet divided by the token's sum.  mid (T, F)  ->  (T, F)."""
    return mid**2 * np.vecdot(layer.down_proj.T, layer.down_proj.T)


def energies(mid: np.ndarray, layer: Layer, group: int) -> np.ndarray:
    """E_b of each block.  mid (T, F)  ->  (T, N)."""
    return block_sums(neuron_energy(mid, layer), group)


def route_loss(scores: np.ndarray, energy: np.ndarray, count: int | None = None) -> tuple[float, np.ndarray]:
    """The loss of the module's docstring and dloss/ds.  scores, energy (T, N)  ->  loss, (T, N). count: T.

    A token without any energy has no target, and no part in the loss.
    """
    total, count = energy.sum(axis=1, keepdims=True), count or len(scores)  # (T, 1)
    share = np.divide(energy, total, out=np.zeros_like(energy), where=total > 0)  # e (T, N)
    shifted = scores - scores.max(axis=1, keepdims=True)  # (T, N)
    p = np.exp(shifted)
    size = p.sum(axis=1, keepdims=True)  # (T, 1)
    loss = -float((share * (shifted - np.log(size))).sum(dtype=np.float64)) / count
    p /= size
    d = np.where(total > 0, p - share, 0) / count  # (T, N)
    return loss, d.astype(scores.dtype, copy=False)


class Router(Predictor):
    """The network of the module's docstring for every layer.

    layers: per layer A, h, B, c. group: g. kept: K.
    """

    def __init__(self, shape: Shape, layers: Sequence[Parameters], group: int, kept: int):
        self.shape, self.layers, self.group, self.kept = shape, list(layers), group, kept
        rank, blocks = self.layers[0]["B"].shape
        self.name = f"router {shape[1]}-{rank}-{blocks}, {kept} blocks of {group} kept"
        self.cutoffs = np.zeros(shape[0])

    @classmethod
    def new(cls, shape: Shape, group: int, kept: int, rank: int, rng: np.random.Generator) -> Router:
        """A router that knows nothing: A drawn at random, all else 0.

        Raises MinillmError for numbers out of range.
        """
        layers, width, neurons = shape
        blocks = -(-neurons // max(1, group))
        for name, value, most in (("group", group, neurons), ("kept", kept, blocks), ("hidden", rank, width * 16)):
            if not 1 <= value <= most:
                raise MinillmError(f"{name} is {value}, expected 1 to {most}")
        made: list[Parameters] = [
            {
                "A": rng.normal(0, width**-0.5, (width, rank)).astype(np.float32), "h": np.zeros(rank, np.float32),
                "B": np.zeros((rank, blocks), np.float32), "c": np.zeros(blocks, np.float32),
            }
            for _ in range(layers)
        ]  # fmt: skip
        return cls(shape, made, group, kept)

    @classmethod
    def fit(
        cls, model: Llama, documents: str | Sequence[str], group: int, kept: int, rank: int = 64, seed: int = 0,
        context: int | None = None,
    ) -> Router:  # fmt: skip
        """A router for a dense model whose neurons lie in blocks, from the first TOKENS tokens of a text."""
        from tqdm.auto import tqdm

        rng = np.random.default_rng(seed)
        router = cls.new(shape_of(model), group, kept, rank, rng)
        values = sample_values(model, runs(model, documents, "documents", context), ("norm", "mid"), TOKENS)
        for layer in tqdm(model.layers, desc="fitting", unit="layer", leave=False, delay=2, disable=None):
            x, energy = values[layer.index]["norm"], energies(values[layer.index]["mid"], layer, group)
            with few_threads(x):
                _fit_layer(router.layers[layer.index], x, energy, rng)
        router.trained_on, router.model = frozenset(document_hashes(documents)), model.fingerprint
        return router

    def scores(self, index: int, x: np.ndarray) -> np.ndarray:
        """s of each block: x (T, D)  ->  (T, N)."""
        tables = self.layers[index]
        return logits({name: table.astype(x.dtype, copy=False) for name, table in tables.items()}, x)

    def predict(self, index: int, position: int, x: np.ndarray) -> np.ndarray:
        """x (T, D)  ->  (T, F): each neuron has its block's score, above 0 in the K best blocks of the token."""
        s = self.scores(index, x)  # (T, N)
        if self.kept < s.shape[1]:
            below, least = np.partition(s, (-self.kept - 1, -self.kept), axis=1)[:, [-self.kept - 1, -self.kept]].T
            s = s - ((below + least) / 2)[:, None]
        else:
            s = s - s.min(axis=1, keepdims=True) + 1
        return np.repeat(s, self.group, axis=1)[:, : self.shape[2]]

    def parameters(self) -> dict[str, np.ndarray]:
        """Its tables by names of their own, for a Trainer: {"router.0.A": array, ...}."""
        return {f"router.{i}.{name}": table for i, tables in enumerate(self.layers) for name, table in tables.items()}

    def gradients(
        self, index: int, x: np.ndarray, energy: np.ndarray, count: int | None = None
    ) -> tuple[float, dict[str, np.ndarray]]:
        """The loss and its gradients by the names of ``parameters``.  x (T, D), energy (T, N)."""
        loss, d = route_loss(self.scores(index, x), energy, count)
        found = gradients_of(self.layers[index], x, d)
        return loss, {f"router.{index}.{name}": g for name, g in found.items()}

    def rounded(self) -> Router:
        """The same router with its tables in float16, as they are stored."""
        half = [{name: table.astype(np.float16) for name, table in tables.items()} for tables in self.layers]
        again = Router(self.shape, half, self.group, self.kept)
        again.trained_on, again.model = self.trained_on, self.model
        return again

    @property
    def nbytes(self) -> int:
        """A, h, B and c in float16: 2 (r (D + N) + r + N) bytes per layer."""
        return 2 * sum(table.size for tables in self.layers for table in tables.values())

    def multiply_adds(self, index: int) -> float:
        """r (D + N)."""
        rank, blocks = self.layers[index]["B"].shape
        return rank * (self.shape[1] + blocks)

    def arrays(self) -> dict[str, np.ndarray]:
        """A (L, D, r), h (L, r), B (L, r, N) and c (L, N), in float16."""
        return {name: np.stack([t[name] for t in self.layers]).astype(np.float16) for name in ("A", "h", "B", "c")}

    def settings(self) -> dict:
        """Shape, group and kept."""
        return {"shape": self.shape, "group": self.group, "kept": self.kept}

    @classmethod
    def layout(cls, settings: Fields, shape: Shape) -> Layout:
        """The four tables; N follows from the group."""
        settings.only(["shape", "group", "kept"])
        check_shape(settings, shape)
        blocks = -(-shape[2] // settings.integer("group", shape[2]))
        settings.integer("kept", blocks)
        tables = {"A": Table("LDr"), "h": Table("Lr"), "B": Table("LrN"), "c": Table("LN")}
        return Layout(tables, sizes_of(shape) | {"N": blocks}, {"r": range(1, 16 * shape[1] + 1)})

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], settings: dict) -> Router:
        """The router with these tables."""
        layers = [{name: table[i] for name, table in arrays.items()} for i in range(settings["shape"][0])]
        return cls(settings["shape"], layers, settings["group"], settings["kept"])


def _fit_layer(tables: Parameters, x: np.ndarray, energy: np.ndarray, rng: np.random.Generator) -> None:
    """Adam on one layer's tables, which are changed.  x (n, D), energy (n, N)."""
    adam = Adam(tables, RATE)
    for _ in range(STEPS):
        rows = rng.integers(len(x), size=min(BATCH, len(x)))
        _, d = route_loss(logits(tables, x[rows]), energy[rows])
        adam.step(gradients_of(tables, x[rows], d), cosine(adam.t, STEPS, warmup=20))
