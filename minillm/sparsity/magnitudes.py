"""Magnitudes of activations, collected layer by layer while a text passes, and their quantiles.

Two ways to the quantile. Exact: keep every magnitude, sort, interpolate linearly (NumPy's default definition).
Streaming: count magnitudes in the buckets of a float's own leading bits, at any length of text in fixed memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import MinillmError
from ..steps import place
from ..threads import with_few_threads
from ..transformer.evaluation import pass_over
from ..transformer.ffn import FeedForward, swiglu
from ..transformer.model import Llama
from ..transformer.texts import Run, first_runs, runs
from .policies import TENSORS, column_norms, magnitude

EXACT_BYTES = 1 << 30  # above this, magnitudes are counted in buckets and not kept
COLLECTED = ("gate_pre", "gate", "up", "mid", "out")  # what `collect` collects by default


class ExactMagnitudes:
    """Every magnitude of one tensor of one layer, in one preallocated array. quantile() is exactly NumPy's."""

    def __init__(self, size: int, dtype: np.dtype):
        self._values, self._count, self._sorted = np.empty(size, dtype), 0, False

    def add(self, values: np.ndarray) -> None:
        """Add the magnitudes of ``values``, of any shape."""
        np.abs(values.ravel(), out=self._values[self._count : self._count + values.size])
        self._count, self._sorted = self._count + values.size, False

    def quantile(self, level: float) -> float:
        """The value below which a share ``level`` lies, linear between order statistics (np.quantile's default)."""
        values = self._values[: self._count]
        if not self._sorted:
            values.sort()  # once, in place: every further level is one look-up
            self._sorted = True
        rank = level * (self._count - 1)
        low = int(rank)
        a, b = float(values[low]), float(values[min(low + 1, self._count - 1)])
        share = rank - low
        return a + (b - a) * share if share < 0.5 else b - (b - a) * (1 - share)  # NumPy's, to the last bit

    def rank_error(self, level: float) -> float:
        """0: the quantile is exact."""
        return 0.0


class StreamingMagnitudes:
    """Counts of magnitudes in buckets 0.02 % wide: the exponent and first 12 bits of the fraction of a float32.

    The bits of a positive float, read as an integer, grow with its value, so bits >> 11 is a logarithmic scale. It has
    64 powers of two (2^-40 to 2^24) with 4096 buckets each; bucket 0 holds everything below, exact zeros included.
    The rank error of a quantile is at most the share of values in its bucket, ``rank_error``.
    """

    FIRST = (127 - 40) << 12
    BUCKETS = 64 << 12

    def __init__(self) -> None:
        self.counts = np.zeros(self.BUCKETS, np.int64)

    def add(self, values: np.ndarray) -> None:
        """Count the magnitudes of ``values``, of any shape."""
        bits = np.abs(values.ravel()).astype(np.float32, copy=False).view(np.uint32) >> 11
        bucket = bits.astype(np.int64) - self.FIRST
        if bucket.max(initial=0) >= self.BUCKETS:
            raise MinillmError("an activation is not finite or is 2^24 or larger: its quantile cannot be counted")
        self.counts += np.bincount(np.maximum(bucket, 0), minlength=self.BUCKETS)

    def _bucket(self, level: float) -> tuple[int, float]:
        """The bucket of a level, and the position of the level among its values, 0 .. 1."""
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
        """The largest possible difference between ``level`` and the share of values below ``quantile(level)``."""
        bucket, _ = self._bucket(level)
        return 0.0 if bucket == 0 else float(self.counts[bucket] / self.counts.sum())


class Magnitudes:
    """A tap that collects the magnitudes of chosen tensors, layer by layer; thresholds(tensors, level) gives quantiles.

    tokens: number of positions that will follow; it sizes the exact kind's arrays. kind: "exact" or "streaming"; None
    takes exact where it fits in EXACT_BYTES. Tensors with the same values (the inputs of gate and of up) are kept once.
    """

    def __init__(self, model: Llama, tensors: Sequence[str], tokens: int, kind: str | None = None):
        self.searches: dict[str, list] = {}  # other results that calibrations on the same text share
        sources = {tensor: tensor if TENSORS[tensor].norms else TENSORS[tensor].step for tensor in tensors}
        distinct = {source: tensor for tensor, source in sources.items()}  # one tensor for each set of values
        hidden = {"norm", "out"}
        widths = {
            t: model.config.hidden_size if TENSORS[t].step in hidden else model.config.intermediate_size
            for t in distinct.values()
        }
        if kind is None:
            needed = tokens * sum(widths.values()) * len(model.layers) * model.dtype.itemsize
            kind = "exact" if needed <= EXACT_BYTES else "streaming"
        if kind not in ("exact", "streaming"):
            raise MinillmError(f"quantile is {kind!r}, expected exact or streaming")
        self.kind = kind

        def make(width: int) -> ExactMagnitudes | StreamingMagnitudes:
            return ExactMagnitudes(tokens * width, model.dtype) if kind == "exact" else StreamingMagnitudes()

        kept = [{t: make(width) for t, width in widths.items()} for _ in model.layers]
        self._adding = [[(TENSORS[t].step, t, layer[t]) for t in layer] for layer in kept]
        self.layers = [{t: layer[distinct[source]] for t, source in sources.items()} for layer in kept]
        self._norms = [column_norms(layer, list(widths)) for layer in model.layers]

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        if (at := place(name)) is not None:
            for step, tensor, magnitudes in self._adding[at.layer]:
                if at.step == f"mlp.{step}":
                    try:
                        magnitudes.add(magnitude(tensor, value, self._norms[at.layer]))
                    except MinillmError as problem:
                        raise MinillmError(f"{name}: {problem}") from None
        return value

    def thresholds(self, tensors: Sequence[str], level: float) -> list[dict[str, float]]:
        """Per layer {tensor: threshold} at a level from 0 to below 1; 0 gives thresholds of 0."""
        quantile = (lambda m: m.quantile(level)) if level > 0 else (lambda m: 0.0)
        return [{t: quantile(layer[t]) for t in tensors} for layer in self.layers]

    def rank_error(self, tensors: Sequence[str], level: float) -> float:
        """The largest rank error of any threshold at that level; 0 for the exact kind."""
        if level == 0:
            return 0.0
        return max(layer[t].rank_error(level) for layer in self.layers for t in tensors)


@with_few_threads
def collect(
    model: Llama,
    documents: str | Sequence[str],
    tensors: Sequence[str] = COLLECTED,
    context: int | None = None,
    quantile: str | None = None,
) -> Magnitudes:
    """Run the dense model over a text, cut as protocol ``documents`` does, and collect magnitudes at every position."""
    pieces = runs(model, documents, "documents", context)
    magnitudes = Magnitudes(model, tensors, sum(len(run.ids) for run in pieces), quantile)
    if tensors:  # a policy that cuts shares needs no magnitudes
        pass_over(model, pieces, magnitudes, what="calibrating")
    return magnitudes


@with_few_threads
def sample_values(
    model: Llama, pieces: Sequence[Run], steps: Sequence[str], tokens: int | None = None, ffn: FeedForward = swiglu
) -> list[dict[str, np.ndarray]]:
    """Per layer {step: (n, width)}: what the model computes at the first ``tokens`` positions of a text (or at all).

    steps: names inside the FFN, such as "norm" or "mid", or "mask" of a sparse FFN. All values are held in memory.
    """
    values: list[dict[str, list[np.ndarray]]] = [{step: [] for step in steps} for _ in model.layers]

    def tap(name: str, value: np.ndarray) -> np.ndarray:
        if (at := place(name)) is not None and (step := at.step.removeprefix("mlp.")) in steps:
            values[at.layer][step].append(value.copy())
        return value

    if tokens is not None:
        pieces = first_runs(pieces, tokens)
    pass_over(model, pieces, tap, ffn, what="sampling")
    return [{step: np.concatenate(parts)[:tokens] for step, parts in layer.items()} for layer in values]
