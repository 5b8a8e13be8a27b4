"""Every intermediate of a forward pass has a name, and can be recorded or changed.

The model's source says, at each intermediate,

    h = tap("resid_mid", h)

A *tap* is a function ``tap(name, value) -> value``. That is the whole protocol. ``no_tap`` gives the value
back; ``scoped(tap, "blocks.3.mlp")`` puts a prefix before the name. The same call serves four users: a
``Trace`` keeps copies, calibration reduces values while they stream by, a meter counts masks, and an edit
returns another value (ablation, patching, planted bugs). Nothing is registered and nothing stays installed.

    with Trace(keep="blocks.*.mlp.*") as trace:
        model.forward(ids, tap=trace)
    trace["blocks.0.mlp.gate"]        # (T, F)
    trace.show()                      # a table of every kept step
    trace.explain("blocks.0.mlp.gate")

A tap that keeps a value must copy it: the model may reuse the array.
"""

import fnmatch
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np

from .archive import load_archive, save_arrays
from .errors import TraceError, show
from .fields import Fields, parse_json
from .identity import Fingerprint, read_fingerprint
from .steps import explain, near_misses, place, step_info
from .units import compact

FORMAT, VERSION = "minillm-trace", 1

Tap: TypeAlias = Callable[[str, np.ndarray], np.ndarray]


def no_tap(name: str, value: np.ndarray) -> np.ndarray:
    """The tap that does nothing."""
    return value


def scoped(tap: Tap, prefix: str) -> Tap:
    """The same tap, seen from inside a part of the model: its names get ``prefix.`` in front."""
    if tap is no_tap:  # keeps an untraced pass free of string building
        return no_tap
    return lambda name, value: tap(f"{prefix}.{name}", value)


def chained(*taps: Tap) -> Tap:
    """Several taps as one: each sees what the one before it returned."""

    def tap(name: str, value: np.ndarray) -> np.ndarray:
        for each in taps:
            value = each(name, value)
        return value

    return tap


class Trace(Mapping):
    """An ordered mapping from step names to read-only copies of what one forward pass computed.

    keep: one or more patterns, written as for file names ("blocks.*.mlp.*"); "*" keeps every step.
    edits: {pattern: fn}; fn(value) returns the value that the model goes on with, which is also the one that is kept.
    budget: the largest number of bytes to keep; more is refused, because a long text makes large arrays. Scores and
    patterns (H, T, S), the largest of all, are refused before they are made.
    model: the fingerprint of the model, which the file of the trace will carry; a pass fills it in.

    Raises TraceError for a pattern that matched nothing, an edit that never fired or that changed shape or
    dtype, an unknown key, the same step twice (one Trace is one pass), and a full budget.
    """

    def __init__(
        self,
        keep: str | Iterable[str] = "*",
        edits: Mapping[str, Callable[[np.ndarray], np.ndarray]] | None = None,
        budget: int = 1 << 30,
        model: Fingerprint | None = None,
    ):
        self.keep = (keep,) if isinstance(keep, str) else tuple(keep)
        self.edits = dict(edits or {})
        self.budget, self.model = budget, model
        self.nbytes, self._heads = 0, 0
        self._values: dict[str, np.ndarray] = {}
        self._seen: dict[str, None] = {}  # a dict, because it keeps the order
        self._unused = set(self.keep) | set(self.edits)

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        if name in self._seen:
            raise TraceError(f"step {name} came twice: one Trace records one forward pass, make a new one for the next")
        self._seen[name] = None
        for pattern, edit in self.edits.items():
            if fnmatch.fnmatchcase(name, pattern):
                self._unused.discard(pattern)
                # The edit gets a copy: what it writes into must not be the model's weights or its cache.
                edited = np.array(edit(value.copy()))
                if edited.shape != value.shape or edited.dtype != value.dtype:
                    found, expected = (f"{array.dtype}{list(array.shape)}" for array in (edited, value))
                    raise TraceError(f"the edit of {name} returned {found}, expected {expected}")
                value = edited
        kept = [pattern for pattern in self.keep if fnmatch.fnmatchcase(name, pattern)]
        if kept:
            self._unused.difference_update(kept)
            self._check_room(name, value.nbytes)
            self.nbytes += value.nbytes
            copy = np.array(value)
            copy.flags.writeable = False
            self._values[name] = copy
        self._check_room_for_scores(name, value)
        return value

    def _check_room(self, name: str, nbytes: int) -> None:
        """Raise TraceError where so many bytes more exceed the budget; name: the step that they are of."""
        if self.nbytes + nbytes > self.budget:
            excess = f"keeping {name} would take the trace to {self.nbytes + nbytes:,} bytes, more than its budget of"
            hint = 'narrow keep= (for example "blocks.0.mlp.*"), shorten the text, or raise budget='
            raise TraceError(f"{excess} {self.budget:,}; {hint}")

    def _check_room_for_scores(self, name: str, value: np.ndarray) -> None:
        """At the last step before the scores: refuse what is known to exceed the budget, before it is made."""
        if name.endswith("attn.q"):  # (T, H, d)
            self._heads = value.shape[1]
        elif name.endswith("attn.rot_k") and self._heads:  # (T, K, d)
            blocks = [name.removesuffix("rot_k")]
            if self.model is not None and (at := place(name)) is not None:  # then those of all later blocks are known
                blocks = [f"blocks.{layer}.attn." for layer in range(at.layer, self.model.shape[0])]
            steps = [block + step for block in blocks for step in ("scores", "pattern")]
            wanted = [step for step in steps if any(fnmatch.fnmatchcase(step, pattern) for pattern in self.keep)]
            if wanted:
                tokens = len(value)  # and S is at least T
                self._check_room(wanted[0], len(wanted) * self._heads * tokens * tokens * value.itemsize)

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if kind is None:  # an exception inside the block is the better message
            self.check()

    def check(self) -> None:
        """Raise TraceError when a pattern of ``keep`` or of ``edits`` matched no step of the pass."""
        for pattern in sorted(self._unused):
            what = "the edit" if pattern in self.edits else "the pattern"
            raise TraceError(f"{what} {pattern!r} matched no step{near_misses(pattern, self._seen)}")

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._values:
            why = "was not kept" if name in self._seen else "is no step of this trace"
            raise TraceError(f"{name!r} {why}{near_misses(name, self._values)}")
        return self._values[name]

    def __contains__(self, name: object) -> bool:
        return name in self._values  # Mapping's own would compose the error of every absent name, only to drop it

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def show(self) -> None:
        """Print a table of the kept steps: dimensions, shape, mean, largest magnitude, share of exact zeros."""
        width = widest(self)
        print(f"{'step':<{width}}{'dims':<8}{'shape':<16}{'mean':>14}{'max |.|':>12}{'zeros':>9}")
        for name, value in self.items():
            numbers = value.astype(np.float64)
            with np.errstate(all="ignore"):  # NaN and infinity are shown as they are
                mean, largest = numbers.mean() if value.size else np.nan, np.abs(numbers).max(initial=0)
            zeros = 1 - np.count_nonzero(value) / max(1, value.size)
            dims = info.dims if (info := step_info(name)) else "?"
            figures = f" {compact(mean, 4):>13} {compact(largest, 4):>11}{zeros:>9.1%}"
            print(f"{show(name):<{width}}{dims:<8}{str(value.shape):<16}{figures}")

    def explain(self, name: str) -> str:
        """The equation of a step, its dimensions, Hugging Face's name, and the source line that taps it."""
        return explain(name)

    def save(self, path: str | Path) -> None:
        """Write the trace as an .npz file, in execution order; written beside the target, then renamed.

        The model's fingerprint stands in the comment of the archive.
        """
        about = {"format": FORMAT, "version": VERSION, "model": self.model.asdict()} if self.model else None
        save_arrays(path, self, json.dumps(about).encode() if about else b"")

    @classmethod
    def load(cls, path: str | Path) -> "Trace":
        """Read a trace from an .npz file (ours, or one that weights_scripts/dump_reference.py wrote).

        Values may be NaN or infinite: a trace of a model that diverges must be readable. Raises TraceError for names
        that no step has and for shapes that contradict each other; a step that minillm does not know is only noted.
        """
        arrays, comment = load_archive(path)
        _check_steps(path, arrays)
        trace = cls(budget=sum(value.nbytes for value in arrays.values()), model=_model_of(path, comment))
        for name, value in arrays.items():
            trace._values[name] = value  # in memory already, so no copy is made
            trace._seen[name] = None
            trace.nbytes += value.nbytes
            value.flags.writeable = False
        return trace


def _model_of(path: str | Path, comment: bytes) -> Fingerprint | None:
    """The fingerprint in an archive's comment; None where it has none (a trace of PyTorch, an older one of ours)."""
    if not comment.startswith(b"{"):
        return None
    where = f"{path} (comment)"
    read = Fields(parse_json(comment, where, TraceError), where, kind=TraceError)
    read.choice("format", [FORMAT])
    read.integer("version", VERSION)
    if unknown := sorted(set(read.fields) - {"format", "version", "model"}):
        raise TraceError(f"{where}: holds {unknown[0][:80]!r}, expected only format, version and model")
    return read_fingerprint(read.fields.get("model"), where, TraceError)


def _check_steps(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise TraceError where a name is no step's or two shapes contradict each other; note what is unknown."""
    sizes: dict[tuple[str, int | None], tuple[int, str]] = {}  # letter (F may differ between layers) -> size, step
    unknown = []
    for name, value in arrays.items():
        if not re.fullmatch(r"\w+(\.\w+)*", name, re.ASCII) or len(name) > 200:
            raise TraceError(f"{path}: holds {name[:80]!r}, expected the name of a step, as blocks.0.mlp.mid")
        if (info := step_info(name)) is None:
            unknown.append(name)
            continue
        letters, shape = info.dims.split(), list(value.shape)
        if len(shape) != len(letters):
            raise TraceError(f"{path}: {name} has shape {shape}, expected {' x '.join(letters)}")
        for letter, size in zip(letters, shape, strict=True):
            at = place(name)
            first, where = sizes.setdefault((letter, at.layer if at and letter == "F" else None), (size, name))
            if size != (int(letter) if letter.isdigit() else first):
                raise TraceError(f"{path}: {name} has shape {shape}, expected {' x '.join(letters)} with {letter} = "
                                 f"{letter if letter.isdigit() else f'{first}, as in {where}'}")  # fmt: skip
    if unknown:
        warnings.warn(show(f"{path}: holds {unknown[0]!r}, which is no step that minillm knows"), stacklevel=3)


def widest(names: Iterable[str]) -> int:
    """The width of a column that holds these names and a space."""
    return max(28, *(len(show(name)) + 2 for name in names))
