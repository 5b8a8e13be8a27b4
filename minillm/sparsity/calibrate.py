"""Where thresholds come from: quantiles of magnitudes on a calibration text, and the files that keep them.

For each layer l and cut tensor A (Dhar et al. 2024, arXiv 2412.12178, eq. 3-6), from the DENSE model's values:

    threshold[l, A] = the alpha-quantile of { |A[t, j]| : all tokens t, all entries j }

so that a share alpha of that tensor falls below it. Sparsity 0 is threshold 0, which cuts nothing, and not the
0-quantile, which is the smallest value seen.

Two ways to the quantile. Exact: keep every magnitude, sort, interpolate linearly (NumPy's default definition).
Streaming: count magnitudes in the buckets of a float's own leading bits, at any length of text in fixed memory.

``by="tensor"`` takes alpha as given (the paper's meaning). ``by="neuron"`` looks for the alpha at which the cut model
reaches that neuron sparsity on the calibration text, so that policies can be compared at equal neuron sparsity.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path

import numpy as np

from ..errors import MinillmError, ThresholdsError, whole_file
from ..loading.config import read_json, show
from ..trace import Tap, no_tap
from ..transformer.evaluation import document_hashes, pass_over, runs
from ..transformer.model import Layer, Llama
from .gathered import gathered_swiglu
from .masked import masked_swiglu
from .policies import POLICIES, TENSORS, Policy, policy_named
from .spec import SparsityMeter, SparsitySpec

FORMAT, VERSION = "minillm-thresholds", 1
EXACT_BYTES = 1 << 30  # beyond this, magnitudes are counted in buckets and not kept
BYS = ("tensor", "neuron")
QUANTILES = ("exact", "streaming", "as published")  # the last: from the paper's own files
FORMS = {"masked": masked_swiglu, "gathered": gathered_swiglu}


# ---- quantiles -------------------------------------------------------------------------------------------------------


class ExactMagnitudes:
    """Every magnitude of one tensor of one layer, in an array set aside once. quantile() is NumPy's, exactly."""

    def __init__(self, size: int, dtype: np.dtype):
        self._values, self._count, self._sorted = np.empty(size, dtype), 0, False

    def add(self, values: np.ndarray) -> None:
        """Take in the magnitudes of ``values``, of any shape."""
        np.abs(values.ravel(), out=self._values[self._count : self._count + values.size])
        self._count, self._sorted = self._count + values.size, False

    def quantile(self, level: float) -> float:
        """The value below which a share ``level`` lies, linear between order statistics (np.quantile's default)."""
        values = self._values[: self._count]
        if not self._sorted:
            values.sort()  # once, in place: every further level is one look-up
            self._sorted = True
        place = level * (self._count - 1)
        low = int(place)
        a, b = float(values[low]), float(values[min(low + 1, self._count - 1)])
        share = place - low
        return a + (b - a) * share if share < 0.5 else b - (b - a) * (1 - share)  # NumPy's, to the last bit


class StreamingMagnitudes:
    """Counts of magnitudes in buckets 0.02 % wide: the exponent and first 12 bits of the fraction of a float32.

    A positive float's bits, read as an integer, grow with its value, so bits >> 11 is a logarithmic scale for free. 64
    powers of two (2^-40 to 2^24) times 4096 buckets are counted; bucket 0 holds everything below, exact zeros included.
    The rank error of a quantile is at most the share of values in its bucket, ``rank_error``.
    """

    FIRST = (127 - 40) << 12
    BUCKETS = 64 << 12

    def __init__(self):
        self.counts = np.zeros(self.BUCKETS, np.int64)

    def add(self, values: np.ndarray) -> None:
        """Count the magnitudes of ``values``, of any shape."""
        bits = np.abs(values.ravel()).astype(np.float32, copy=False).view(np.uint32) >> 11
        place = bits.astype(np.int64) - self.FIRST
        if place.max(initial=0) >= self.BUCKETS:
            raise MinillmError("an activation is not finite or is 2^24 or larger: its quantile cannot be counted")
        self.counts += np.bincount(np.maximum(place, 0), minlength=self.BUCKETS)

    def _bucket(self, level: float) -> tuple[int, float]:
        """The bucket of a level, and how far into its values the level lies, 0 .. 1."""
        cumulative = np.cumsum(self.counts)
        rank = level * cumulative[-1]
        bucket = min(int(np.searchsorted(cumulative, rank, side="left")), self.BUCKETS - 1)
        return bucket, float((rank - (cumulative[bucket] - self.counts[bucket])) / max(1, self.counts[bucket]))

    def quantile(self, level: float) -> float:
        """The value below which a share ``level`` lies, linear inside its bucket."""
        bucket, inside = self._bucket(level)
        if bucket == 0:
            return 0.0  # below 2^-40: zero, as a threshold
        edges = (np.array([bucket, bucket + 1], np.uint32) + np.uint32(self.FIRST)) << np.uint32(11)
        low, high = edges.view(np.float32).astype(float)
        return float(low + (high - low) * inside)

    def rank_error(self, level: float) -> float:
        """The most that the share of values below ``quantile(level)`` can differ from ``level``."""
        bucket, _ = self._bucket(level)
        return 0.0 if bucket == 0 else float(self.counts[bucket] / self.counts.sum())


class Magnitudes:
    """A tap that collects the magnitudes of chosen tensors, layer by layer; quantile(layer, tensor, level) reads them.

    tokens: how many positions will come, for the exact kind's memory. kind: "exact" or "streaming"; None takes exact
    where it fits in EXACT_BYTES.
    """

    def __init__(self, model: Llama, tensors: Sequence[str], tokens: int, kind: str | None = None):
        widths = {t: model.config.hidden_size if t == "out" else model.config.intermediate_size for t in tensors}
        if kind is None:
            needed = tokens * sum(widths.values()) * len(model.layers) * model.dtype.itemsize
            kind = "exact" if needed <= EXACT_BYTES else "streaming"
        if kind not in ("exact", "streaming"):
            raise MinillmError(f"quantile is {kind!r}, expected exact or streaming")
        self.kind = kind

        def make(width: int) -> ExactMagnitudes | StreamingMagnitudes:
            return ExactMagnitudes(tokens * width, model.dtype) if kind == "exact" else StreamingMagnitudes()

        self.layers = [{t: make(width) for t, width in widths.items()} for _ in model.layers]

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        parts = name.split(".")  # blocks.3.mlp.gate
        if len(parts) == 4 and parts[2] == "mlp" and parts[3] in self.layers[0]:
            self.layers[int(parts[1])][parts[3]].add(value)
        return value

    def thresholds(self, tensors: Sequence[str], level: float) -> list[dict[str, float]]:
        """Per layer {tensor: threshold} at a level from 0 to below 1; 0 gives thresholds of 0."""
        quantile = (lambda m: m.quantile(level)) if level > 0 else (lambda m: 0.0)
        return [{t: quantile(layer[t]) for t in tensors} for layer in self.layers]

    def rank_error(self, tensors: Sequence[str], level: float) -> float:
        """The largest rank error of any threshold at that level; 0 for the exact kind."""
        if self.kind == "exact" or level == 0:
            return 0.0
        return max(layer[t].rank_error(level) for layer in self.layers for t in tensors)


def collect(
    model: Llama,
    documents: str | Sequence[str],
    tensors: Sequence[str] = TENSORS,
    context: int | None = None,
    quantile: str | None = None,
) -> Magnitudes:
    """Run the dense model over a text, cut as protocol ``documents`` does, and collect magnitudes at every position."""
    pieces = runs(model, documents, "documents", context)
    magnitudes = Magnitudes(model, tensors, sum(len(run.ids) for run in pieces), quantile)
    pass_over(model, pieces, magnitudes, what="calibrating")
    return magnitudes


# ---- thresholds ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Thresholds:
    """One number per layer and cut tensor, and everything that says what they mean.

    layers: per layer {tensor: threshold}, tensors under the step names. level: the quantile that was taken (what the
    paper calls its percentage), or None where it is not known. documents_sha256: the calibration text's documents.
    """

    policy: str
    by: str
    level: float | None
    layers: tuple[dict[str, float], ...]
    spec: SparsitySpec
    quantile: str = "exact"
    documents_sha256: tuple[str, ...] = ()

    def check_fits(self, model: Llama) -> None:
        """Raise ThresholdsError when the number of layers is not the model's."""
        if len(self.layers) != len(model.layers):
            raise ThresholdsError(
                f"the thresholds are for {len(self.layers)} layers, the model has {len(model.layers)}: "
                "they belong to another model"
            )

    def save(self, path: str | Path) -> None:
        """Write as JSON, first beside the target, then renamed."""
        fields = {"format": FORMAT, "version": VERSION, "policy": self.policy, "by": self.by, "level": self.level}
        fields |= {
            "spec": self.spec.asdict(),
            "quantile": self.quantile,
            "documents_sha256": list(self.documents_sha256),
        }
        _write_json(path, fields | {"layers": list(self.layers)})

    def save_paper(self, path: str | Path) -> None:
        """Write in the format of the paper's released files: {"gate_proj": {"layer_0": t, ...}, "up_proj": ...}.

        Raises ThresholdsError for a policy other than dhar, the only one that the paper's code can run.
        """
        if self.policy != "dhar":
            raise ThresholdsError(f"policy is {self.policy}, expected dhar: the paper's files hold no other")
        names = {"gate_pre": "gate_proj", "up": "up_proj", "out": "down_proj"}
        if all("up" not in layer for layer in self.layers):
            names = {"gate_pre": "gate_up_proj", "out": "down_proj"}  # Phi-3, as released
        table = {
            key: {f"layer_{i}": layer[t] for i, layer in enumerate(self.layers)}
            for t, key in names.items()
            if t in self.layers[0]
        }
        _write_json(path, table)

    @classmethod
    def load(cls, path: str | Path) -> Thresholds:
        """Read a thresholds file, ours or one of the paper's (told apart by its keys). Raises ThresholdsError."""
        path = Path(path)
        if not path.is_file():
            raise ThresholdsError(f"{path}: no such file, expected a thresholds file (JSON)")
        fields = read_json(path, ThresholdsError)
        if "format" not in fields and ("gate_proj" in fields or "gate_up_proj" in fields):
            return _from_paper(fields, path)
        for key, expected in (("format", FORMAT), ("version", VERSION)):
            if fields.get(key) != expected:
                raise ThresholdsError(f"{path}: {key} is {fields.get(key)!r}, expected {expected!r}")
        policy, layers = fields.get("policy"), fields.get("layers")
        spec, by, level = fields.get("spec"), fields.get("by"), fields.get("level")
        if not isinstance(policy, str) or policy not in POLICIES:
            raise ThresholdsError(f"{path}: policy is {show(policy)}, expected one of {', '.join(POLICIES)}")
        tensors = POLICIES[policy].tensors
        if not isinstance(layers, list) or not layers:
            raise ThresholdsError(f"{path}: layers is {show(layers)}, expected a list with one object per layer")
        for i, layer in enumerate(layers):
            known = isinstance(layer, dict) and layer and set(layer) <= set(tensors)
            if not known or set(layer) != set(layers[0]):
                found = show(sorted(layer)) if isinstance(layer, dict) else show(layer)
                raise ThresholdsError(
                    f"{path}: layers[{i}] has {found}, expected those of policy {policy} ({', '.join(tensors)}), "
                    "the same in every layer"
                )
            for tensor, value in layer.items():
                _check_threshold(path, f"layers[{i}].{tensor}", value)
        hashes = fields.get("documents_sha256", [])
        if not isinstance(hashes, list) or not all(isinstance(h, str) for h in hashes):
            raise ThresholdsError(f"{path}: documents_sha256 is not a list of strings")
        quantile = fields.get("quantile", "exact")
        for field, value, good in (("by", by, BYS), ("quantile", quantile, QUANTILES)):
            if value not in good:
                raise ThresholdsError(f"{path}: {field} is {show(value)}, expected {' or '.join(good)}")
        if level is not None and (type(level) not in (int, float) or not 0 <= level < 1):
            raise ThresholdsError(f"{path}: level is {show(level)}, expected a number from 0 to below 1, or null")
        spec = _spec_from(spec, path)
        if (spec.policy, spec.by) != (policy, by):
            raise ThresholdsError(f"{path}: spec is of {spec.policy} by {spec.by}, expected {policy} by {by}")
        return cls(policy, by, level, tuple(layers), spec, quantile, tuple(hashes))


def _spec_from(fields: object, path: Path) -> SparsitySpec:
    """The SparsitySpec that a file holds, each field of the right type."""
    names = {field.name for field in dataclass_fields(SparsitySpec)}
    if not isinstance(fields, dict) or set(fields) != names:
        raise ThresholdsError(f"{path}: spec is {show(fields)}, expected an object with {', '.join(sorted(names))}")
    for name, value in fields.items():
        if name == "tensors":
            good = isinstance(value, list) and all(isinstance(tensor, str) for tensor in value)
        elif name in ("target", "achieved"):
            good = value is None or (type(value) in (int, float) and 0 <= value <= 1)
        else:
            good = isinstance(value, str)
        if not good:
            kind = {"tensors": "a list of strings", "target": "a share or null", "achieved": "a share or null"}
            raise ThresholdsError(f"{path}: spec.{name} is {show(value)}, expected {kind.get(name, 'a string')}")
    return SparsitySpec(**fields | {"tensors": tuple(fields["tensors"])})


def _write_json(path: str | Path, fields: dict) -> None:
    with whole_file(path, ThresholdsError) as beside:
        beside.write_text(json.dumps(fields, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _check_threshold(path: Path, field: str, value: object) -> float:
    if type(value) not in (int, float) or not 0 <= value < 1e38:  # type(): True is an int
        raise ThresholdsError(f"{path}: {field} is {show(value)}, expected a number from 0 to below 1e38")
    return float(value)


def _from_paper(fields: dict, path: Path) -> Thresholds:
    """The paper's own files: projection -> layer_i -> threshold.

    A percentage at the end of the file's name (llama-3-8b-30.json) is the level.
    act_fn (activation_fn) is calibrated there and never applied. Phi-3's fused gate_up_proj has one pooled threshold,
    which the released code applies to the gate half only: up stays uncut.
    """
    names = {"gate_proj": "gate_pre", "gate_up_proj": "gate_pre", "up_proj": "up", "down_proj": "out"}
    layers: list[dict[str, float]] = []
    for key, tensor in names.items():
        if key not in fields:
            continue
        if any(tensor in layer for layer in layers):
            raise ThresholdsError(f"{path}: holds gate_proj and gate_up_proj, expected one of the two")
        table = fields[key]
        expected = {f"layer_{i}" for i in range(len(table))} if isinstance(table, dict) else None
        if not table or expected is None or set(table) != expected:
            raise ThresholdsError(f"{path}: {key} is not a table of layer_0, layer_1, ... without gaps")
        layers = layers or [{} for _ in table]
        if len(layers) != len(table):
            raise ThresholdsError(f"{path}: {key} has {len(table)} layers, the projections before it {len(layers)}")
        for i, layer in enumerate(layers):
            layer[tensor] = _check_threshold(path, f"{key}.layer_{i}", table[f"layer_{i}"])
    percent = re.search(r"-([0-9][0-9])$", path.stem)
    level = int(percent[1]) / 100 if percent else None
    spec = SparsitySpec("dhar", tuple(layers[0]), ">=", "tensor", level)
    return Thresholds("dhar", "tensor", level, tuple(layers), spec, "as published")


# ---- the sparse model ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SparseFFN:
    """A FeedForward that cuts: masked or gathered SwiGLU with a policy and each layer's own thresholds."""

    policy: Policy
    thresholds: Thresholds
    form: str

    def __call__(self, x: np.ndarray, layer: Layer, position: int = 0, tap: Tap = no_tap) -> np.ndarray:
        ffn = FORMS[self.form]
        return ffn(x, layer, position, tap, policy=self.policy, thresholds=self.thresholds.layers[layer.index])

    @property
    def calibrated_on(self) -> frozenset[str]:
        """Hashes of the documents that the thresholds were found on; scoring any of them gives a warning."""
        return frozenset(self.thresholds.documents_sha256)


def sparse_ffn(model: Llama, thresholds: Thresholds, *, form: str = "masked") -> SparseFFN:
    """The FeedForward that cuts ``model`` with these thresholds, for ``forward(ids, ffn=...)`` and everything above it.

    form: "masked" (compute all, then cut) or "gathered" (only the kept neurons). The policy computes its own mask from
    the true activations: an oracle. Raises ThresholdsError when the thresholds belong to another model.
    """
    thresholds.check_fits(model)
    if form not in FORMS:
        raise MinillmError(f"form is {form!r}, expected one of {', '.join(FORMS)}")
    return SparseFFN(policy_named(thresholds.policy), thresholds, form)


def calibrate(
    model: Llama,
    documents: str | Sequence[str],
    policy: str,
    sparsity: float,
    context: int | None = None,
    by: str = "tensor",
    quantile: str | None = None,
    magnitudes: Magnitudes | None = None,
) -> Thresholds:
    """Find the thresholds at which ``policy`` reaches ``sparsity`` on a text (arXiv 2412.12178, eq. 3-6).

    documents: a text with separator lines, or a list. sparsity: 0 to below 1. by: "tensor" or "neuron". quantile:
    "exact", "streaming", or None for exact where it fits in memory. magnitudes: what ``collect`` gave for the same
    documents, so that several calibrations share one pass. The spec in the result holds what was achieved.
    Raises MinillmError for a sparsity out of range or an unknown policy or ``by``.
    """
    rule = policy_named(policy)
    if not 0 <= sparsity < 1:
        raise MinillmError(f"sparsity is {sparsity}, expected a share from 0 to below 1")
    if by not in BYS:
        raise MinillmError(f"by is {by!r}, expected {' or '.join(BYS)}")
    if magnitudes is None:
        magnitudes = collect(model, documents, rule.tensors, context, quantile)
    elif missing := set(rule.tensors) - set(magnitudes.layers[0]):
        raise MinillmError(f"the magnitudes lack {', '.join(sorted(missing))}, which policy {policy} cuts")
    pieces = runs(model, documents, "documents", context)
    hashes = tuple(document_hashes(documents))

    def at(level: float) -> Thresholds:
        """Thresholds at a quantile, with the sparsity that the cut model then has on the calibration text."""
        layers = tuple(magnitudes.thresholds(rule.tensors, level))
        spec = SparsitySpec(policy, rule.tensors, rule.comparison, by, sparsity)
        found = Thresholds(policy, by, level, layers, spec, magnitudes.kind, hashes)
        meter = SparsityMeter()
        pass_over(model, pieces, meter, sparse_ffn(model, found), what="measuring")
        return replace(found, spec=replace(spec, achieved=meter.report().achieved(by)))

    if by == "neuron" and sparsity > 0:
        return _search(at, sparsity, len(rule.tensors) > 1)  # what it reached is measured, however coarse the quantile
    result = at(sparsity)
    if (error := magnitudes.rank_error(rule.tensors, result.level)) > 1e-3:
        raise MinillmError(
            f"streaming quantile: {error:.2%} of the values share one bucket, expected at most 0.1 %; "
            "use quantile='exact'"
        )
    return result


def _search(at: Callable[[float], Thresholds], target: float, several: bool, tolerance: float = 2e-3) -> Thresholds:
    """The level whose neuron sparsity is the target: secant steps kept inside a shrinking bracket.

    Neuron sparsity grows with the level, from 0 at 0 to 1 at 1. The first guess takes one tensor's share as it is, and
    two tensors as independent, 1 - (1 - level)^2.
    """
    low, high, low_value, high_value = 0.0, 1.0, 0.0, 1.0
    level = 1 - (1 - target) ** 0.5 if several else target
    for _ in range(20):
        found = at(level)
        value = found.spec.achieved
        if abs(value - target) <= tolerance:
            break
        if value < target:
            low, low_value = level, value
        else:
            high, high_value = level, value
        share = (target - low_value) / (high_value - low_value) if high_value > low_value else 0.5
        level = low + (high - low) * min(max(share, 0.05), 0.95)
    return found
