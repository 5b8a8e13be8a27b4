"""Predictors that are learned: Deja Vu's two low-rank maps, the same one layer ahead, and one that corrects a shadow.

    z = x A B + c                       A (D, r), B (r, F), c (F,)          learned
    z = max(x A + h, 0) B + c           h (r,)                              learned, with a hidden layer
    z = x A B + c + a log s             s (F,) the shadow's scores, a (F,)  refined

(Liu et al. 2023, Deja Vu, arXiv 2310.17157, section 3 and the released code: two linear maps without anything between
them, one predictor per layer.) train.py finds the tables, for one of two targets: the mask, where 1 / (1 + exp(-z)) is
how likely each neuron is active, or |mid| itself, where z is its size beside the other neurons of the token. Here they
are used, stored in float16.

One layer ahead (``ahead``): x is the input of the FFN one layer BEFORE, at the same token, so that the weights can be
on their way while that layer is computed. Layer 0 has no layer before it and is predicted from its own input.

Differs from Deja Vu: the bias c, which costs next to nothing; a score is no decision, the cutoffs are set afterwards.
A linear z can say which gates will be large, but hardly which |up|, since up may have either sign.
"""

from __future__ import annotations

import numpy as np

from ..errors import MinillmError
from ..fields import Fields
from ..transformer.model import Llama
from .copies import Shadow
from .layout import Layout, Shape, Table, check_shape, sizes_of
from .protocol import Predictor

TINY = 1e-6  # added to a shadow's score before its logarithm
TARGETS = ("mask", "mid")  # what a predictor may be trained on


def logits(p: dict[str, np.ndarray], x: np.ndarray, logs: np.ndarray | None = None) -> np.ndarray:
    """z = x A B + c (+ a log s), or with a hidden layer where p has an h: x (T, D), logs (T, F) or None  ->  (T, F)."""
    z = hidden(p, x) @ p["B"] + p["c"]  # (T, F)
    return z if logs is None else z + p["a"] * logs


def hidden(p: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """x A, or max(x A + h, 0) with a hidden layer: x (T, D)  ->  (T, r)."""
    inner = x @ p["A"]  # (T, r)
    return np.maximum(inner + p["h"], 0) if "h" in p else inner


def log_scores(shadow: Shadow, index: int, x: np.ndarray) -> np.ndarray:
    """log s of a shadow: x (T, D)  ->  (T, F)."""
    return np.log(shadow.predict(index, 0, x) + TINY)


class Learned(Predictor):
    """Deja Vu's predictor, z = x A B + c, in float16; ahead 1 takes x from the layer before.

    target: what it was trained on, "mask" or "mid"; only its name says so.
    """

    def __init__(
        self, shape: tuple[int, int, int], tables: dict[str, np.ndarray], ahead: int = 0, target: str = "mask"
    ):
        layers, width, intermediate = shape
        self.shape, self.tables, self.ahead, self.target = (layers, width, intermediate), tables, ahead, target
        self.lookaheads = ("layer",) if ahead else ()
        self.name = f"learned rank {tables['A'].shape[-1]}" + (" from |mid|" if target == "mid" else "")
        self.name += (", hidden layer" if "h" in tables else "") + (", one layer ahead" if ahead else "")
        self._before: np.ndarray | None = None  # the input of the layer before, of the same tokens

    def predict(self, index: int, position: int, x: np.ndarray) -> np.ndarray:
        """x (T, D)  ->  z (T, F)."""
        source, self._before = self._before if self.ahead and index else x, x
        if source is None:
            raise MinillmError(f"layer {index} is predicted from the layer before it, expected that one first")
        return logits({name: table[index].astype(x.dtype) for name, table in self.tables.items()}, source)

    @property
    def nbytes(self) -> int:
        """A, B and c: 2 (r (D + F) + F) bytes per layer; with a hidden layer, 2 r more."""
        return sum(table.nbytes for table in self.tables.values())

    def multiply_adds(self, index: int) -> float:
        """r (D + F)."""
        _, hidden, intermediate = self.shape
        return self.tables["A"].shape[-1] * (hidden + intermediate)

    def arrays(self) -> dict[str, np.ndarray]:
        """A, B and c, and h of a hidden layer."""
        return self.tables

    def settings(self) -> dict:
        """Shape and ahead; the target where it is not the mask (older files know no other)."""
        return {"shape": self.shape, "ahead": self.ahead} | ({"target": "mid"} if self.target == "mid" else {})

    @classmethod
    def layout(cls, settings: Fields, shape: Shape) -> Layout:
        """A, B and c, and h or none."""
        settings.only(["shape", "ahead", "target"])
        check_shape(settings, shape)
        settings.integer("ahead", 1, low=0)
        settings.choice("target", TARGETS, "mask")
        tables = {"A": Table("LDr"), "B": Table("LrF"), "c": Table("LF"), "h": Table("Lr", group="hidden layer")}
        return Layout(tables, sizes_of(shape), {"r": range(1, shape[1] + 1)})

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], settings: dict) -> Learned:
        """The predictor with these tables."""
        return cls(settings["shape"], arrays, settings["ahead"], settings.get("target", "mask"))


class Refined(Predictor):
    """A shadow and a small learned correction: z = a log s + c + x A B, the correction in float16."""

    def __init__(self, shadow: Shadow, tables: dict[str, np.ndarray]):
        self.shadow, self.shape, self.tables = shadow, shadow.shape, tables
        self.trained_on, self.model, self.reads_gate = shadow.trained_on, shadow.model, shadow.reads_gate
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
    def layout(cls, settings: Fields, shape: Shape) -> Layout:
        """The shadow's tables, and A, B, c and a of the correction."""
        shadow = Shadow.layout(settings, shape)
        own = {"A": Table("LDr"), "B": Table("LrF"), "c": Table("LF"), "a": Table("LF")}
        tables = shadow.tables | {f"correction_{name}": table for name, table in own.items()}
        return Layout(tables, shadow.sizes, {"r": range(1, shape[1] + 1)})

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], settings: dict) -> Refined:
        """The predictor with a shadow and a correction of these tables."""
        own = {name.removeprefix("correction_"): a for name, a in arrays.items() if name.startswith("correction_")}
        rest = {name: a for name, a in arrays.items() if not name.startswith("correction_")}
        return cls(Shadow.from_arrays(rest, settings), own)
