"""The training loop: batches, gradients, Adam, a checkpoint now and then.

    for each step:   g = sum of the gradients of the batch's passes, scaled down to a length of at most ``clip``
                     Adam with lr = rate x schedule(step)
                     average = running mean of the weights

A *pass* is the seam: a function (model, ids, count, tap) -> loss that runs one text forward and backward and gives its
gradients to the tap, under their names. ``language`` is the usual one, next-token prediction with any FeedForward;
distill.py has another one. What is trained are named arrays: all weights of a model, some of them, or others beside
them, such as a router's.

A training depends on its plan, its text and the model that it begins with, and on nothing else. A checkpoint holds all
of its state. After an interruption, even in the middle of writing, the same call goes on from the last checkpoint and
ends with the same weights, bit for bit.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from ..archive import load_archive, save_arrays
from ..errors import MinillmError
from ..fields import Fields, brief, parse_json
from ..identity import read_fingerprint
from ..memory import keep_freed_memory
from ..optim import Adam, average_in, clip, constant, cosine
from ..threads import few_threads
from ..trace import Tap
from ..transformer.ffn import FeedForward, swiglu
from ..transformer.model import Llama
from .backward import Saved, backward
from .batches import Batches
from .losses import cross_entropy

if TYPE_CHECKING:
    from tqdm import tqdm

FORMAT, VERSION = "minillm-training", 1
CHECKPOINT_SECONDS = 60
CURVE = ("step", "tokens", "seconds", "loss", "norm", "rate")  # the columns of the loss curve

Pass: TypeAlias = Callable[[Llama, np.ndarray, int, Tap], float]


@dataclass(frozen=True)
class Plan:
    """How long and how fast. ``steps`` or ``minutes`` end the training, whichever comes first.

    rate: Adam's lr; schedule: "constant" or "cosine" (which needs ``steps``), both after ``warmup`` steps of a linear
    rise. clip: the largest length of a gradient. average: the memory of the running average of the weights in steps, at
    least; it grows to a quarter of the steps done. 0: the result is the last weights. betas, decay: Adam's.
    """

    steps: int | None = None
    minutes: float | None = None
    rate: float = 1e-3
    schedule: str = "constant"
    warmup: int = 10
    clip: float = 1.0
    average: int = 50
    betas: tuple[float, float] = (0.9, 0.99)
    decay: float = 0.0

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise MinillmError("neither steps nor minutes are given, expected one to end the training")
        if self.schedule not in ("constant", "cosine") or (self.schedule == "cosine" and self.steps is None):
            found = f"schedule is {self.schedule!r} with steps {self.steps}"
            raise MinillmError(f"{found}, expected 'constant', or 'cosine' with a number of steps")
        for name, least in (("steps", 1), ("warmup", 0), ("average", 0)):
            if (value := getattr(self, name)) is not None and not (type(value) is int and value >= least):
                raise MinillmError(f"{name} is {value!r}, expected a whole number, at least {least}")
        for name in ("minutes", "rate", "clip"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise MinillmError(f"{name} is {value!r}, expected a number above 0")

    def factor(self, step: int) -> float:
        """The factor of the rate at a step, from 0 on."""
        if self.schedule == "constant":
            return constant(step, self.warmup)
        assert self.steps is not None  # checked above
        return cosine(step, self.steps, self.warmup)

    @property
    def path(self) -> dict:
        """What decides the weights after a number of steps: all but the end, which a cosine depends on, too."""
        same = asdict(self) | {"betas": list(self.betas)}
        del same["minutes"]
        if self.schedule == "constant":
            del same["steps"]
        return same


# ---- models ----------------------------------------------------------------------------------------------------------


def trainable(model: Llama) -> Llama:
    """A copy of a model whose weights may be written to; those of a file may not. It keeps the model's fingerprint.

    (So an FFN that was made for the model does not warn at each step that the weights are others.)
    """
    copy = Llama(model.config, {name: w.copy() for name, w in model.weights.items()}, model.folder)
    copy.bos, copy.fingerprint = model.bos, model.fingerprint
    return copy


# ---- one pass --------------------------------------------------------------------------------------------------------


def language(ffn: FeedForward = swiglu, straight: bool = False) -> Pass:
    """The pass of next-token prediction with this FFN; straight: straight-through gradients (backward.py)."""

    def one_pass(model: Llama, ids: np.ndarray, count: int, tap: Tap) -> float:
        saved = Saved()
        model.forward(ids[:-1], ffn=ffn, tap=saved)
        loss = partial(cross_entropy, targets=ids[1:], count=count)
        return backward(model, ids[:-1], loss, saved, straight, tap).loss

    return one_pass


# ---- the loop --------------------------------------------------------------------------------------------------------


class Trained(NamedTuple):
    """A model that was trained, and how. curve: a row for each step (CURVE). batches: the text."""

    model: Llama
    curve: Sequence[dict[str, float]]
    plan: Plan
    batches: Batches


def train(
    model: Llama, batches: Batches, plan: Plan, one_pass: Pass | None = None, checkpoint: str | Path | None = None
) -> Trained:
    """Train all weights of a copy of a model. one_pass: None: ``language()``, dense.

    checkpoint: a file to go on from where it is there, and to write to now and then. Raises as ``Trainer.run`` does.
    """
    trainer = Trainer(trainable(model), batches, plan, one_pass)
    trainer.run(checkpoint)
    return trained_model(trainer)


def trained_model(trainer: Trainer) -> Trained:
    """What a training has made: the model, now with a fingerprint of its own, and how."""
    model = Llama(trainer.model.config, trainer.model.weights, trainer.model.folder)
    model.bos = trainer.model.bos
    return Trained(model, trainer.curve, trainer.plan, trainer.batches)


class Trainer:
    """The state of one training: parameters, Adam's averages, the running average, the curve.

    model: the one that the passes run, ``trainable``. parameters {name: array}: what is trained, changed in place;
    None: all weights of the model. curve: a row for each step done (CURVE).
    """

    def __init__(
        self, model: Llama, batches: Batches, plan: Plan, one_pass: Pass | None = None,
        parameters: Mapping[str, np.ndarray] | None = None,
    ):  # fmt: skip
        self.model, self.batches, self.plan = model, batches, plan
        self.one_pass = language() if one_pass is None else one_pass
        self.parameters = dict(model.weights if parameters is None else parameters)
        self.gradients = {name: np.zeros_like(p) for name, p in self.parameters.items()}
        self.average = {name: p.copy() for name, p in self.parameters.items()} if plan.average else {}
        self.adam = Adam(self.parameters, plan.rate, plan.betas, decay=plan.decay)
        self.curve: list[dict[str, float]] = []
        self.seconds = 0.0  # of all runs so far

    def _add(self, name: str, d: np.ndarray) -> np.ndarray:
        """The tap of the backward pass: the gradients of what is trained are added up in place, and none is kept."""
        if name not in self.gradients:
            return d
        self.gradients[name] += d
        return self.gradients[name]

    def step(self) -> dict[str, float]:
        """One batch and one step of Adam; gives the row of the curve. Raises MinillmError for a loss that is no number.

        Memory: what the forward pass of one text holds; no array as large as all weights is made.
        """
        number, texts = len(self.curve), self.batches.of_step(len(self.curve))
        count = sum(len(ids) - 1 for ids in texts)
        for g in self.gradients.values():
            g.fill(0)
        loss = sum(self.one_pass(self.model, ids, count, self._add) for ids in texts)
        norm = clip(self.gradients, self.plan.clip)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            found = f"the loss of step {number + 1} is {loss} and its gradient has length {norm}"
            raise MinillmError(f"{found}, expected numbers: try a lower rate than {self.plan.rate:g}")
        factor = self.plan.factor(number)
        self.adam.step(self.gradients, factor)
        if self.average:
            average_in(self.average, self.parameters, number + 1, max(self.plan.average, (number + 1) // 4))
        tokens = count + (self.curve[-1]["tokens"] if self.curve else 0)
        values = (number + 1, tokens, self.seconds, loss, norm, self.plan.rate * factor)
        self.curve.append(dict(zip(CURVE, values, strict=True)))
        return self.curve[-1]

    @property
    def done(self) -> bool:
        """Whether the plan's steps or minutes are used up."""
        plan = self.plan
        return len(self.curve) >= (plan.steps or math.inf) or self.seconds >= 60 * (plan.minutes or math.inf)

    def run(self, checkpoint: str | Path | None = None) -> None:
        """Train to the end of the plan, from the checkpoint where there is one; a checkpoint is written now and then.

        Afterwards the parameters are their running average, where the plan has one. Raises MinillmError for a
        checkpoint of another training, and where it cannot be written: the older one then stays as it was.
        """
        if checkpoint is not None and Path(checkpoint).exists():
            self.load(checkpoint)
        keep_freed_memory()
        began = saved = time.monotonic() - self.seconds
        with few_threads(self.model), self._bar() as bar:
            while not self.done:
                row = self.step()
                now = time.monotonic()
                row["seconds"] = self.seconds = now - began
                self._show(bar, row)
                if checkpoint is not None and (now - saved > CHECKPOINT_SECONDS or self.done):
                    self.save(checkpoint)
                    saved = now
        for name, mean in self.average.items():
            self.parameters[name][...] = mean

    def _bar(self) -> tqdm:
        """A progress bar over tokens, which shows tokens per second and the time that is left."""
        from tqdm.auto import tqdm

        total = self.plan.steps and self.plan.steps * self.batches.tokens
        done = int(self.curve[-1]["tokens"]) if self.curve else 0
        return tqdm(total=total, initial=done, desc="training", unit="token", unit_scale=True, leave=False, delay=2,
                    disable=None)  # fmt: skip

    def _show(self, bar: tqdm, row: Mapping[str, float]) -> None:
        if self.plan.minutes is not None:  # as many tokens as the minutes have room for at this speed
            total = row["tokens"] * 60 * self.plan.minutes / row["seconds"]
            bar.total = total if self.plan.steps is None else min(total, self.plan.steps * self.batches.tokens)
        bar.set_postfix(loss=f"{row['loss']:.3f}", refresh=False)
        bar.update(row["tokens"] - bar.n)

    # ---- checkpoints ----

    def _arrays(self) -> dict[str, np.ndarray]:
        """All arrays of the state but the curve, under the names of the file."""
        state = {"parameter": self.parameters, "m": self.adam.m, "v": self.adam.v, "average": self.average}
        return {f"{kind}.{name}": array for kind, arrays in state.items() for name, array in arrays.items()}

    def _about(self) -> dict:
        """What a checkpoint must agree with."""
        about = {"format": FORMAT, "version": VERSION, "model": self.model.fingerprint.asdict()}
        return about | {"plan": self.plan.path, "text": self.batches.digest}

    def save(self, path: str | Path) -> None:
        """Write the state to an .npz file, whole or not at all. Raises MinillmError."""
        curve = np.array([list(row.values()) for row in self.curve], np.float64).reshape(-1, len(CURVE))
        save_arrays(path, self._arrays() | {"curve": curve}, json.dumps(self._about()).encode())

    def load(self, path: str | Path) -> None:
        """Take the state of a checkpoint. Raises MinillmError where it is broken or of another model, text or plan."""
        arrays, comment = load_archive(path)
        read = Fields(parse_json(comment or b"{}", f"{path} (comment)", MinillmError), str(path), kind=MinillmError)
        read.choice("format", [FORMAT])
        read.integer("version", VERSION)
        read_fingerprint(read.fields.get("model"), str(path), MinillmError)
        for key, expected in self._about().items():
            found = read.fields.get(key)
            if isinstance(expected, dict) and isinstance(found, dict):
                different = [name for name in expected if found.get(name) != expected[name]]
                key, found, expected = next(((f"{key}.{n}", found.get(n), expected[n]) for n in different), (key, 0, 0))
            if found != expected:
                raise MinillmError(f"{path}: is of another training, {key} is {brief(found)}, expected {expected}")
        curve, state = arrays.pop("curve", np.zeros(0)), self._arrays()
        if curve.ndim != 2 or curve.shape[1] != len(CURVE) or not len(curve) or not np.isfinite(curve).all():
            raise MinillmError(f"{path}: curve has shape {list(curve.shape)}, expected rows of {len(CURVE)} numbers")
        for name in state.keys() | arrays.keys():
            kinds = [f"{a[name].dtype}{list(a[name].shape)}" if name in a else "missing" for a in (arrays, state)]
            if kinds[0] != kinds[1]:
                raise MinillmError(f"{path}: {brief(name)} is {kinds[0]}, expected {kinds[1]}")
        for name, array in state.items():
            array[...] = arrays[name]
        self.curve = [dict(zip(CURVE, row, strict=True)) for row in curve.tolist()]
        self.adam.t, self.seconds = len(self.curve), self.curve[-1]["seconds"]
