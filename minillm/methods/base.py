"""What a method gives: one record that can be scored, whatever the method is.

A method takes a dense model, a calibration text and a target, and gives a Variant:

    fit(model, documents, target, context=None)  ->  Variant(name, model, ffn, tap, reads, stored, calibrated_on)

A Variant holds a model to run (its weights or widths may be changed), the FeedForward and the tap to run it with, the
bytes that this costs, and the documents that were used to make it. A sweep and a report score Variants and know no
method by name. A policy with its thresholds is a Variant, too: the dense model with another FeedForward.

**A new method** is one new file of this folder with a function ``fit`` and one line in METHODS.

**Bytes.** A weight counts as 16 bits, as most models are published. Where single weights are removed, a matrix is
stored in one of three forms. With n weights of which k are not zero, in r rows of at most 65,536 columns:

    dense     2 n                     zeros are stored like other weights
    bitmap    2 k + n / 8             one bit per weight says which of them follow
    csr       (2 + 2) k + 4 (r + 1)   a column index for each weight, a place for each row

A token reads every stored byte of a matrix, so what is read is what is stored: as a bitmap, or dense where that is
smaller. Such a mask is part of the file: reading with the mask known and with the mask computed is then the same.

**Statistics of inputs** come from ``layer_by_layer``: the layers are changed one after the other, and the inputs of
layer l are those of the model whose layers before l are changed already. Within a layer all inputs are those of its
dense weights. (The released code of Wanda, arXiv 2306.11695, and of SparseGPT, arXiv 2301.00774, does the same.)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import NamedTuple

import numpy as np

from ..errors import MinillmError
from ..sparsity.spec import SparsitySpec
from ..steps import near_misses
from ..threads import with_few_threads
from ..trace import Tap, no_tap
from ..transformer.blocks import block, positions_of
from ..transformer.ffn import FeedForward, swiglu
from ..transformer.finite import first_problem, report, rows_are_numbers
from ..transformer.layer import FFN_MATRICES, Layer
from ..transformer.model import Llama
from ..transformer.ops import no_warnings
from ..transformer.texts import Run

WEIGHT_BYTES = 2
INPUTS = {  # of each matrix of a block: the step that it is multiplied with
    "q_proj": "attn.norm", "k_proj": "attn.norm", "v_proj": "attn.norm", "o_proj": "attn.z",
    "gate_proj": "mlp.norm", "up_proj": "mlp.norm", "down_proj": "mlp.mid",
}  # fmt: skip
MATRIX_SETS = {"ffn": FFN_MATRICES, "all": tuple(INPUTS)}

# The catalogue: what `--method` takes -> the module of this folder and its function. Imported when first asked for.
METHODS = {
    "magnitude": "wanda:fit_magnitude",
    "magnitude-2:4": "wanda:fit_magnitude_2_4",
    "magnitude-all": "wanda:fit_magnitude_all",
    "wanda": "wanda:fit",
    "wanda-2:4": "wanda:fit_2_4",
    "wanda-4:8": "wanda:fit_4_8",
    "wanda-all": "wanda:fit_all",
    "wanda-exact": "sparsegpt:fit_exact",
    "sparsegpt": "sparsegpt:fit",
    "sparsegpt-2:4": "sparsegpt:fit_2_4",
    "sparsegpt-4:8": "sparsegpt:fit_4_8",
    "sparsegpt-all": "sparsegpt:fit_all",
    "mixed": "mixed:fit",
    "mixed-all": "mixed:fit_all",
    "isc": "sparsegpt:fit_isc",
    "isc-all": "sparsegpt:fit_isc_all",
    "dsnot": "dsnot:fit",
    "dsnot-accept": "dsnot:fit_accept",
    "dsnot-2:4": "dsnot:fit_2_4",
    "dsnot-all": "dsnot:fit_all",
    "neurons": "structured:fit",
    "neurons-mask": "structured:fit_mask",
    "neurons-admm": "structured:fit_admm",
    "neurons-norm": "structured:fit_norm",
    "neurons-norm-mask": "structured:fit_norm_mask",
    "neurons-importance": "structured:fit_importance",
    "neurons-importance-mask": "structured:fit_importance_mask",
    "neurons-random": "structured:fit_random",
    "neurons-random-mask": "structured:fit_random_mask",
    "search": "search:fit",
    "search-mask": "search:fit_mask",
    "search-admm": "search:fit_admm",
    "search-reformed": "search:fit_reformed",
    "search-mid": "search:fit_mid",
    "wanda+mid": "combined:fit",
    "wanda+mid-dense": "combined:fit_dense_thresholds",
    "sparsegpt+mid": "combined:fit_sparsegpt",
    "sparsegpt+mid-dense": "combined:fit_sparsegpt_dense_thresholds",
    "svd": "svd:fit_plain",
    "svd-all": "svd:fit_plain_all",
    "svd-whitened": "svd:fit",
    "svd-whitened-all": "svd:fit_all",
}


# ---- the record ------------------------------------------------------------------------------------------------------
class Read(NamedTuple):
    """Bytes of one matrix that a token reads, all layers together; dense: when nothing is changed.

    exact: with the mask computed, so all that decides it is read as well. known_mask: with the mask known beforehand.
    """

    dense: float
    exact: float
    known_mask: float


@dataclass(frozen=True, eq=False)
class Variant:
    """What a method made of a model (module docstring).

    spec: what its target means, and what was achieved; None for a model in which nothing is cut. reads: by matrix
    name; None where the masks of a run decide it (SparsityMeter counts them). stored: bytes of the whole model by form
    ("dense", "bitmap", "csr"; of low rank "dense", "factors"). removed: share of the neurons that can never add
    anything; where reads are given and each token cuts neurons of its own, the share that a token cuts. level: the
    quantile behind thresholds. calibrated_on: hashes of the documents that it has seen; scoring any of them gives a
    warning.
    """

    name: str
    model: Llama
    ffn: FeedForward = swiglu
    tap: Tap = no_tap
    spec: SparsitySpec | None = None
    reads: Mapping[str, Read] | None = None
    stored: Mapping[str, int] | None = None
    removed: float = 0.0
    level: float | None = None
    calibrated_on: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A FeedForward that knows which documents it was made with, so that scoring one of them gives a warning."""

    ffn: FeedForward
    calibrated_on: frozenset[str]

    def __call__(self, x: np.ndarray, layer: Layer, position: int = 0, tap: Tap = no_tap) -> np.ndarray:
        return self.ffn(x, layer, position, tap)


# ---- the catalogue ---------------------------------------------------------------------------------------------------
def method_named(name: str) -> Callable[..., Variant]:
    """The ``fit`` of a method. Raises MinillmError listing the methods there are."""
    if name not in METHODS:
        expected = f"expected one of {', '.join(METHODS)}"
        raise MinillmError(f"method {name!r} is unknown, {expected}{near_misses(name, METHODS)}")
    module, function = METHODS[name].split(":")
    return getattr(import_module(f".{module}", __package__), function)


def fit(
    name: str, model: Llama, documents: str | Sequence[str], target: float, context: int | None = None
) -> Variant:  # fmt: skip
    """Make the Variant of a method by its name, under which it then stands in tables.

    documents: the calibration text. target: a share from 0 to below 1; what it counts is in the variant's spec.
    Raises MinillmError for an unknown method and a target out of range or out of reach.
    """
    make = method_named(name)
    check(name, model, target)
    made = make(model, documents, target, context=context)
    return replace(made, name=name, spec=made.spec and replace(made.spec, policy=name))


def check(name: str, model: Llama, target: float) -> None:
    """Raise MinillmError where the model's FFNs have no gate, and for a target out of range."""
    if not model.config.gated:
        raise MinillmError(
            f"method {name} changes gate, up and down, and the model's FFNs have no gate, expected gated ones"
        )
    if not 0 <= target < 1:
        raise MinillmError(f"target is {target}, expected a share from 0 to below 1")


# ---- changed weights -------------------------------------------------------------------------------------------------
def with_layers(model: Llama, layers: Sequence[Layer]) -> Llama:
    """The same model with other layers; everything else is shared, and the original stays as it is."""
    changed = copy.copy(model)
    changed.layers = list(layers)
    for known in ("fingerprint", "nbytes"):  # of the weights, where they were asked for before
        vars(changed).pop(known, None)
    return changed


def weights_variant(
    model: Llama, layers: Sequence[Layer], spec: SparsitySpec, matrices: Sequence[str], calibrated_on: frozenset[str]
) -> Variant:
    """The Variant of a method that removes single weights from some matrices; its figures are counted, not believed.

    model: the dense one. layers: the changed ones. matrices: the names of the changed matrices. The spec gets
    achieved: the share of zeros among their weights.
    """
    changed = with_layers(model, layers)
    weights = {name: [getattr(layer, name) for layer in layers] for name in INPUTS}
    some = [matrix for name in matrices for matrix in weights[name]]
    zeros = 1 - sum(map(np.count_nonzero, some)) / sum(matrix.size for matrix in some)
    neurons = sum(len(layer.gate_proj) for layer in layers)
    reads = {}
    for name, of_layers in weights.items():
        read = sum(min(dense_bytes(matrix), bitmap_bytes(matrix)) for matrix in of_layers)
        reads[name] = Read(sum(map(dense_bytes, of_layers)), read, read)
    return Variant(
        spec.policy, changed, spec=replace(spec, achieved=float(zeros)), reads=reads,
        stored=stored_bytes(model, layers), removed=sum(map(idle_neurons, layers)) / neurons,
        calibrated_on=calibrated_on,
    )  # fmt: skip


def dense_bytes(matrix: np.ndarray) -> int:
    """Bytes of a matrix with its zeros: 2 n."""
    return WEIGHT_BYTES * matrix.size


def bitmap_bytes(matrix: np.ndarray) -> int:
    """Bytes of the weights that are not zero, and of one bit for each weight: 2 k + n / 8, rounded up."""
    return WEIGHT_BYTES * int(np.count_nonzero(matrix)) + math.ceil(matrix.size / 8)


def csr_bytes(matrix: np.ndarray) -> int:
    """Bytes as compressed sparse rows: weights, their column indices (2 or 4 bytes each), row pointers of 4 bytes."""
    rows, columns = matrix.shape
    index = 2 if columns <= 1 << 16 else 4
    return (WEIGHT_BYTES + index) * int(np.count_nonzero(matrix)) + 4 * (rows + 1)


def stored_bytes(model: Llama, layers: Sequence[Layer]) -> dict[str, int]:
    """Bytes of a whole model file by form, embedding, norms and biases included; headers left out.

    A matrix without zeros is stored dense in every form.
    """
    matrices = [getattr(layer, name) for layer in layers for name in INPUTS]
    before = sum(getattr(layer, name).size for layer in model.layers for name in INPUTS)
    other = WEIGHT_BYTES * (sum(model.parameters.values()) - before)
    stored = {}
    for form, count in {"dense": dense_bytes, "bitmap": bitmap_bytes, "csr": csr_bytes}.items():
        stored[form] = other + sum(dense_bytes(m) if m.all() else count(m) for m in matrices)
    return stored


def idle_neurons(layer: Layer) -> int:
    """How many neurons add nothing, whatever the input.

    Neuron j is idle where column j of down is all zeros, or where its gate (and act(0) = 0) or its up is 0: a row of
    zeros, and no bias.
    """
    idle = ~layer.down_proj.any(axis=0)  # (F,)
    for matrix, bias, zero in (
        (layer.gate_proj, layer.gate_bias, layer.act(np.zeros(1))[0] == 0), (layer.up, layer.up_bias, True)
    ):  # fmt: skip
        silent = ~matrix.any(axis=1) if bias is None else ~matrix.any(axis=1) & (bias == 0)
        idle |= silent & zero
    return int(np.count_nonzero(idle))


# ---- statistics of the inputs ----------------------------------------------------------------------------------------
Statistic = Callable[[np.ndarray], np.ndarray]


def squares(x: np.ndarray) -> np.ndarray:
    """Sum of squares of each input feature: sum_t x[t, j]^2.  x (T, n)  ->  (n,) float64."""
    return np.square(x, dtype=np.float64).sum(axis=0)


def products(x: np.ndarray) -> np.ndarray:
    """Sums of products of each pair of input features: x^T x.  x (T, n)  ->  (n, n) float64."""
    exact = x.astype(np.float64)
    return exact.T @ exact


class InputSums:
    """A tap of one block that sums a statistic of the inputs of its matrices, over the rows from ``first`` on."""

    def __init__(self, statistic: Statistic):
        self.statistic, self.first = statistic, 0
        self.sums: dict[str, np.ndarray] = {}

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        if name in INPUTS.values():
            rows = value[self.first :].reshape(len(value) - self.first, -1)  # z is (T, H, d): (T, H d)
            self.sums[name] = self.sums.get(name, 0) + self.statistic(rows)
        return value


@with_few_threads
@no_warnings
def layer_by_layer(
    model: Llama, pieces: Sequence[Run], statistic: Statistic,
    change: Callable[[Layer, dict[str, np.ndarray]], Layer],
) -> list[Layer]:  # fmt: skip
    """Change the layers one after the other, each after a look at its inputs (module docstring).

    pieces: the calibration text (``runs``). statistic: of the rows of an input, added over all runs; only positions
    whose next token is scored count, as in ``perplexity``. change(layer, sums) -> the changed layer, with sums
    {matrix name: the statistic of its inputs}. Each layer is computed twice for each run, first dense, then changed;
    the hidden states of all positions are held in memory.
    """
    from tqdm.auto import tqdm

    hidden = [model.embed_tokens[run.ids[:-1]] for run in pieces]  # (T, D) each; the last id is only a target
    layers = []
    for layer in tqdm(model.layers, desc="fitting", unit="layer", leave=False, delay=2, disable=None):
        tap = InputSums(statistic)
        for h, run in zip(hidden, pieces, strict=True):
            tap.first = run.unscored - 1
            _through(model, layer, h, tap)
        changed = change(layer, {name: tap.sums[step] for name, step in INPUTS.items()})
        hidden = [_through(model, changed, h) for h in hidden]
        layers.append(changed)
    return layers


def _through(model: Llama, layer: Layer, h: np.ndarray, tap: Tap = no_tap) -> np.ndarray:
    """One dense block on a whole run: h (T, D) -> (T, D)."""
    positions = positions_of(model.config, len(h), model.dtype)
    after = block(h, layer, positions, swiglu, tap)  # (T, D)
    if not rows_are_numbers(after):
        problem = first_problem(lambda look: block(h, layer, positions, swiglu, look), no_tap)
        report(f"blocks.{layer.index}.{problem}", model.dtype, no_tap)
    return after
