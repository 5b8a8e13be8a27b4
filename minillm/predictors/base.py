"""What a predictor is, how it is set, measured and kept.

A predictor gives every neuron of a layer a score before the layer is computed, larger where the neuron is likelier to
matter; those above the layer's cutoff are selected (sparsity/predicted.py). A score needs no scale of its own, because
the cutoffs are quantiles: the cutoff of layer l is where the selected share of (token, neuron) pairs is ``fraction``.
It is found with the predictor in the loop, since what a layer sees shifts when neurons are cut before it.

Held against the truth (the mask of policy mid), over the (token, neuron) pairs of a layer, S selected and A active:

    recall |S & A| / |A|    precision |S & A| / |S|    F1 = 2 |S & A| / (|S| + |A|)    IoU |S & A| / |S or A|

pooled over the tokens of a layer, then averaged over layers. For two independent masks with half of the neurons each,
recall and precision are 1/2 and IoU is 1/3: chance has a score, too.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..errors import CheckpointError, MinillmError
from ..loading.checkpoint import save_tensors
from ..loading.fields import parse_json, show
from ..transformer.evaluation import pass_over
from ..transformer.model import Llama
from ..transformer.texts import document_hashes, runs
from .protocol import check_fits
from .select import PredictedFFN

if TYPE_CHECKING:
    from ..sparsity.thresholds import Thresholds

FORMAT, VERSION = "minillm-predictor", "1"
# What a file may hold: the kind it names -> the class below this module that reads it. Loaded when first asked for.
KINDS = {
    "chance": "baselines:Chance",
    "static": "baselines:Static",
    "previous-token": "baselines:PreviousToken",
    "sign": "training_free:Sign",
    "svd": "training_free:LowRank",
    "shadow": "training_free:Shadow",
    "ahead": "ahead:Ahead",
    "learned": "learned:Learned",
    "refined": "learned:Refined",
    "library": "patterns:Library",
    "clusters": "patterns:Clusters",
}


class Predictor(Protocol):
    """Scores neurons in advance. One object serves one text at a time: position 0 starts a new one, state afresh.

    name: as in the table. shape: (L, D, F) of the model it is for. cutoffs (L,): neuron j is selected where its score
    is above the layer's cutoff; fit_cutoffs sets them. sequential: rows must be shown one at a time, each observed
    before the next is predicted. needs_truth: observe() must get the true mask. trained_on: hashes of the documents
    behind its tables and cutoffs.
    """

    name: str
    shape: tuple[int, int, int]
    sequential: bool
    needs_truth: bool
    cutoffs: np.ndarray | None
    trained_on: frozenset[str]

    def predict(self, index: int, position: int, x: np.ndarray) -> np.ndarray:
        """x (T, D), the FFN's normed input at layer ``index``, its first row at ``position``  ->  scores (T, F)."""

    def observe(self, index: int, position: int, x: np.ndarray, mask: np.ndarray | None) -> None:
        """Called after the layer was computed; mask (T, F) is the true one where needs_truth, else None."""

    @property
    def nbytes(self) -> int:
        """Bytes of its own tables as they are stored (packed), the cutoffs not counted."""

    def multiply_adds(self, index: int) -> float:
        """Multiply-adds per token at that layer; 32 operations on single bits count as one."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Its tables, by name; together with settings() all that from_arrays needs."""

    def settings(self) -> dict:
        """The rest, as JSON values."""

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], settings: dict) -> Predictor:
        """The same predictor again; raises KeyError, TypeError or ValueError for arrays that do not fit."""


# ---- cutoffs ---------------------------------------------------------------------------------------------------------


def fit_cutoffs(
    model: Llama,
    predictor: Predictor,
    thresholds: Thresholds,
    documents: str | Sequence[str],
    fraction: float,
    context: int | None = None,
    tolerance: float = 1e-3,
) -> np.ndarray:
    """Set predictor.cutoffs so that every layer selects ``fraction`` of its (token, neuron) pairs; returns them (L,).

        cutoff[l] = the (1 - fraction)-quantile of the scores of layer l, with layers 0 .. l-1 already cut

    A pass finds all quantiles with the cutoffs that there are; the first is dense. Each pass settles at least one more
    layer for good, and it stops as soon as every layer is within ``tolerance``, after two or three as a rule.
    documents: training text only. fraction 1 selects everything, with cutoffs of -inf. All scores of a pass are
    held in memory: ten thousand tokens are plenty.
    """
    check_fits(predictor, model)
    if not 0 < fraction <= 1:
        raise MinillmError(f"fraction is {fraction}, expected a share above 0 and at most 1")
    layers = len(model.layers)
    predictor.cutoffs = np.full(layers, -np.inf)
    predictor.trained_on |= frozenset(document_hashes(documents))
    pieces = runs(model, documents, "documents", context)
    scores: dict[int, list[np.ndarray]] = defaultdict(list)

    def tap(name: str, value: np.ndarray) -> np.ndarray:
        if name.endswith(".mlp.scores"):
            scores[int(name.split(".")[1])].append(np.array(value))
        return value

    for _ in range(layers + 1 if fraction < 1 else 0):
        pass_over(model, pieces, tap, PredictedFFN(predictor, thresholds), f"cutoffs of {predictor.name}")
        values = [np.concatenate(scores.pop(i)).ravel() for i in range(layers)]
        selected = [np.mean(~(v <= c)) for v, c in zip(values, predictor.cutoffs, strict=True)]
        if max(abs(s - fraction) for s in selected) <= tolerance:
            break
        before, predictor.cutoffs = predictor.cutoffs, np.array([_cutoff(v, fraction) for v in values])
        if np.array_equal(before, predictor.cutoffs):  # scores with ties (static) have no cutoff that is nearer
            break
    return predictor.cutoffs


def _cutoff(values: np.ndarray, fraction: float) -> float:
    """The number that a share ``fraction`` of the values lies above; among equal values the nearer side is taken."""
    rank = round((1 - fraction) * len(values))  # so many are to be left out
    if rank == 0:
        return -np.inf
    cutoff = np.partition(values, rank - 1)[rank - 1]
    above = np.count_nonzero(values > cutoff)
    equal = np.count_nonzero(values == cutoff)
    if abs(above + equal - fraction * len(values)) < abs(above - fraction * len(values)):
        below = values[values < cutoff]
        cutoff = below.max() if below.size else -np.inf
    return float(cutoff)


# ---- metrics ---------------------------------------------------------------------------------------------------------


class PredictionMeter:
    """A tap that counts a predicted FFN's masks against the true ones; ``report()`` gives the metrics.

    Every position counts, the BOS included.
    """

    def __init__(self):
        self._count: dict[int, Counter] = defaultdict(Counter)
        self._true: dict[str, np.ndarray] = {}

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        if name.endswith(".mlp.mask_true"):
            self._true[name] = value  # its mask follows before anything else of the layer
        elif name.endswith(".mlp.mask") and (true := self._true.pop(f"{name}_true", None)) is not None:
            count = self._count[int(name.split(".")[1])]
            count["both"] += int(np.count_nonzero(value & true))
            count["selected"] += int(np.count_nonzero(value))
            count["true"] += int(np.count_nonzero(true))
            count["pairs"] += value.size
        return value

    def layers(self) -> list[dict[str, float]]:
        """The metrics of each layer: recall, precision, f1, iou, selected, active (shares of all pairs)."""
        found = []
        for _, n in sorted(self._count.items()):
            either = n["selected"] + n["true"] - n["both"]
            found.append({
                "recall": n["both"] / max(1, n["true"]),
                "precision": n["both"] / max(1, n["selected"]),
                "f1": 2 * n["both"] / max(1, n["selected"] + n["true"]),
                "iou": n["both"] / max(1, either),
                "selected": n["selected"] / n["pairs"],
                "active": n["true"] / n["pairs"],
            })  # fmt: skip
        return found

    def report(self) -> dict[str, float]:
        """The mean over layers of each metric. Raises MinillmError where no mask came with its truth."""
        layers = self.layers()
        if not layers:
            raise MinillmError("no predicted mask was seen beside its truth, expected a predicted FFN in masked form")
        return {key: float(np.mean([layer[key] for layer in layers])) for key in layers[0]}


# ---- files -----------------------------------------------------------------------------------------------------------


def save_predictor(path: str | Path, predictor: Predictor) -> None:
    """Write a predictor as one safetensors file, whole or not at all: its arrays, the rest as text beside them.

    Raises MinillmError for a predictor that is no file's (the oracle), CheckpointError when it cannot be written.
    """
    place = f"{type(predictor).__module__.rpartition('.')[2]}:{type(predictor).__qualname__}"
    kind = next((kind for kind, known in KINDS.items() if known == place), None)
    if kind is None:
        raise MinillmError(f"the predictor {predictor.name} has no tables of its own, expected one that can be saved")
    arrays = {f"table.{name}": array for name, array in predictor.arrays().items()}
    if predictor.cutoffs is not None:
        arrays["cutoffs"] = np.asarray(predictor.cutoffs, np.float64)
    about = {"settings": predictor.settings(), "shape": predictor.shape, "trained_on": sorted(predictor.trained_on)}
    save_tensors(path, arrays, {"format": FORMAT, "version": VERSION, "kind": kind, "predictor": json.dumps(about)})


def load_predictor(path: str | Path) -> Predictor:
    """Read a predictor's file. Raises CheckpointError, in one sentence, for a file that is none or does not fit."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file, expected a predictor (safetensors)")
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError) as problem:  # TypeError: a dtype that NumPy lacks
        raise CheckpointError(f"{path}: is no safetensors file of plain arrays ({problem})") from None
    for key, good in (("format", [FORMAT]), ("version", [VERSION]), ("kind", KINDS)):
        if metadata.get(key) not in good:
            expected = ", ".join(good)
            raise CheckpointError(f"{path}: {key} is {show(metadata.get(key))}, expected one of {expected}")
    about = parse_json(metadata.get("predictor", "").encode(), f"{path} (predictor)", CheckpointError)
    for key, form in (("settings", dict), ("shape", list), ("trained_on", list)):
        if not isinstance(about.get(key), form):
            raise CheckpointError(f"{path}: {key} is {show(about.get(key))}, expected a {form.__name__}")
    module, name = KINDS[metadata["kind"]].split(":")
    kind, cutoffs = getattr(import_module(f"{__package__}.{module}"), name), arrays.pop("cutoffs", None)
    tables = {name.removeprefix("table."): array for name, array in arrays.items()}
    try:
        predictor = kind.from_arrays(tables, about["settings"])
        if list(predictor.shape) != about["shape"] or (cutoffs is not None and cutoffs.shape != predictor.shape[:1]):
            raise ValueError(f"found {predictor.shape} and {np.shape(cutoffs)} cutoffs, expected {about['shape']}")
    except (KeyError, TypeError, ValueError, IndexError) as problem:
        raise CheckpointError(f"{path}: its tables make no {metadata['kind']} predictor ({problem})") from None
    predictor.cutoffs, predictor.trained_on = cutoffs, frozenset(map(str, about["trained_on"]))
    return predictor
