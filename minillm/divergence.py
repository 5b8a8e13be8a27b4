"""Two traces step by step, and the first step in which they differ: where a bug lies, not where it shows.

relative = max |ours - theirs| / max |theirs|     a step is "ok" when relative <= rtol
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from .errors import TraceError, show
from .steps import step_info
from .trace import Trace, widest
from .units import compact


class Row(NamedTuple):
    """One step of a comparison; ``relative`` is the largest difference over the largest magnitude of theirs."""

    name: str
    status: str  # "ok", "differs", "shape", "missing" (not in theirs), "extra" (not in ours)
    max_abs: float = np.nan
    relative: float = np.nan


class Comparison(NamedTuple):
    """The rows in execution order, the tolerance, and the first step that differs (None when all agree).

    not_finite: the first compared step that holds NaN or infinity on either side; None when all numbers are finite.
    """

    rows: list[Row]
    tolerance: float
    first: str | None
    not_finite: str | None = None

    def __str__(self) -> str:
        width = widest(row.name for row in self.rows)
        lines = [f"{'step':<{width}}{'status':<10}{'max abs':>11}{'relative':>11}   (tolerance {self.tolerance:g})"]
        for r in self.rows:
            numbers = "" if np.isnan(r.relative) else f"{compact(r.max_abs):>11}{compact(r.relative):>11}"
            lines.append(f"{show(r.name):<{width}}{r.status:<10}{numbers}".rstrip())
        if self.first is None:
            lines.append(f"all {sum(r.status == 'ok' for r in self.rows)} compared steps agree")
        else:
            names = [r.name for r in self.rows if r.status in ("ok", "differs", "shape")]
            before = names[: names.index(self.first)]
            agrees = f", the step before it, {before[-1]}, agrees" if before else ""
            lines.append(show(f"first divergence: {self.first}{agrees}"))
            if info := step_info(self.first):
                step = self.first.rsplit(".", 1)[-1]
                lines.append(f"  {step}: {info.equation}   [{info.dims}]   {info.hugging_face}")
        if self.not_finite is not None:
            lines.append(f"not all numbers are finite: {self.not_finite} is the first step with NaN or infinity")
        return "\n".join(lines)

    def asdict(self) -> dict:
        """For JSON, which has no NaN (nothing compared) and no infinity: None instead."""
        finite = {"max_abs", "relative"}
        rows = [
            {key: None if key in finite and not np.isfinite(value) else value for key, value in row._asdict().items()}
            for row in self.rows
        ]
        about = {"first": self.first, "tolerance": self.tolerance, "not_finite": self.not_finite}
        return about | {"rows": rows}


def _compare_step(name: str, ours: np.ndarray, theirs: np.ndarray, rtol: float) -> Row:
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if a.shape != b.shape:
        return Row(name, "shape")
    finite = np.isfinite(b)
    same_rest = np.array_equal(a[~finite], b[~finite], equal_nan=True)
    with np.errstate(over="ignore"):
        error = np.abs(a[finite] - b[finite]).max(initial=0) if same_rest else np.inf
    relative = error / (np.abs(b[finite]).max(initial=0) or 1.0)
    return Row(name, "ok" if relative <= rtol else "differs", float(error), float(relative))


Source: TypeAlias = Mapping[str, np.ndarray] | str | Path


def compare(ours: Source, theirs: Source, rtol: float | None = None) -> Comparison:
    """Compare two traces step by step, in the order of ours, and name the first that differs.

        relative = max |ours - theirs| / max |theirs|     a step is "ok" when relative <= rtol

    ours, theirs: traces, mappings or .npz files. rtol defaults to 1e-10 when all numbers are float64, else 1e-5.
    A step that only one side has is listed but is no divergence; comparing nothing at all raises TraceError.
    Values that are not finite agree only with the same values at the same places. Files of two different models, as
    far as that is known, are compared with a warning that names both; two traces just made are yours to know.
    """
    from_file = any(isinstance(x, str | Path) for x in (ours, theirs))
    ours, theirs = (Trace.load(x) if isinstance(x, (str, Path)) else x for x in (ours, theirs))
    models = [side.model for side in (ours, theirs) if isinstance(side, Trace) and side.model]
    if len({model.sha256 for model in models}) == 2 and from_file:
        warnings.warn(show(f"the traces are of two models, {models[0]} and {models[1]}"), stacklevel=2)
    common = [name for name in ours if name in theirs]
    if not common:
        raise TraceError(f"the two traces share no step: ours has {list(ours)[:3]}, theirs has {list(theirs)[:3]}")
    if rtol is None:
        kinds = {np.asarray(side[name]).dtype for name in common for side in (ours, theirs)}  # masks do not count
        rtol = 1e-5 if any(kind.kind == "f" and kind != np.float64 for kind in kinds) else 1e-10
    rows = [_compare_step(n, ours[n], theirs[n], rtol) if n in theirs else Row(n, "missing") for n in ours]
    rows += [Row(name, "extra") for name in theirs if name not in ours]
    first = next((row.name for row in rows if row.status in ("differs", "shape")), None)
    finite = {name: all(np.isfinite(side[name]).all() for side in (ours, theirs)) for name in common}
    return Comparison(rows, rtol, first, next((name for name in common if not finite[name]), None))
