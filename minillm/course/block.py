"""The seven functions of a student's file run together: one block of a Llama and what follows it.

    rms_norm -> (q, k, v) -> rope -> attention -> (o, +) -> rms_norm -> swiglu -> (+)
                                                              '-> thresholded_swiglu -> train_predictor, lru

The steps in brackets are computed here. Each function gets the results of the functions before it, and
``trace.compare`` holds every step against the goldens. So the first wrong step is named, and with it the function that
made it. A function that is missing, or whose result does not fit, is replaced by the expected values, so that the
functions after it can still be judged. (So a function may be given what an earlier one should have returned; that
earlier call is judged by then.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..divergence import compare
from ..transformer.linear import linear
from .assignment import FUNCTIONS, RTOL, Answer, cause, goldens
from .attempt import NOT_WRITTEN
from .check import judge
from .mistakes import Call

Arrays = Mapping[str, np.ndarray]


class Block(NamedTuple):
    """The first wrong step (None when all agree), its function and its mistake; the comparison as text and as rows."""

    first: str | None
    function: str
    how: str
    replaced: list[str]
    table: str
    steps: list[dict]


class WrongCall(NamedTuple):
    """A call with a wrong result: the steps that it gives, the function, and the mistake in words."""

    steps: tuple[str, ...]
    function: str
    how: str


def run_block(answers: Mapping[str, Answer]) -> Block:
    """Run one block and what follows it with the functions of a file, and compare every step with the goldens."""
    given = {key.removeprefix("block/"): a for key, a in goldens().items() if key.startswith("block/")}
    weights = {key.removeprefix("weight/"): a for key, a in given.items() if key.startswith("weight/")}
    expected = {key.removeprefix("step/"): a for key, a in given.items() if key.startswith("step/")}
    run = BlockRun(answers, expected)
    with np.errstate(all="ignore"):  # the results may hold any numbers
        forward(run, given, weights)
        comparison = compare(run.results, {step: expected[step] for step in run.results}, RTOL["float64"])
    bad = {row.name for row in comparison.rows if row.status != "ok"}
    # A call may be wrong without a wrong number (a dtype, a changed argument), or without any number.
    reasons = {step: call for call in run.wrong for step in (bad.intersection(call.steps) or call.steps[:1])}
    first = next((step for step in run.order if step in reasons), None)
    _, function, how = reasons[first] if first is not None else ((), "", "")
    replaced = [name for name in FUNCTIONS if name in run.replaced]
    return Block(first, function, how, replaced, str(comparison), comparison.asdict()["rows"])


@dataclass
class BlockRun:
    """The state of a run: which steps there are so far, and which calls were wrong."""

    answers: Mapping[str, Answer]
    expected: Arrays
    results: dict[str, np.ndarray] = field(default_factory=dict)  # {step: value}, the steps that can be compared
    order: list[str] = field(default_factory=list)  # all steps in the order in which they were made
    wrong: list[WrongCall] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)

    def keep(self, step: str, value: np.ndarray) -> np.ndarray:
        """Record one step."""
        self.order.append(step)
        self.results[step] = value
        return value

    def call(self, name: str, arguments: tuple, *steps: str) -> list[np.ndarray]:
        """Call a function of the file; the expected values where its result cannot be used as the next input."""
        right = [self.expected[step] for step in steps]
        one = tuple(right) if len(right) > 1 else right[0]
        verdict = judge(self.answers[name](arguments), one, RTOL["float64"]) if name in self.answers else None
        if verdict is None or verdict.problem.startswith(NOT_WRITTEN):
            self.replaced.append(name)
            return right
        if verdict.problem:
            result = verdict.outcome.result
            calls = [Call(arguments, result, one, RTOL["float64"])] if verdict.outcome.returned else []
            self.wrong.append(WrongCall(steps, name, cause(name, calls, [verdict]) or verdict.problem))
        values = usable(verdict.outcome.result, right)
        if values is None:
            # After an earlier wrong call, a wrong shape may be a consequence of that call.
            if not verdict.outcome.returned or len(self.wrong) == 1:
                self.replaced.append(name)
            self.order.extend(steps)
            return right
        return [self.keep(step, value) for step, value in zip(steps, values, strict=True)]


def usable(result: object, expected: Sequence[np.ndarray]) -> list[np.ndarray] | None:
    """The arrays of a result where the next step can use them: shapes and kinds of number as expected. Else None."""
    values = result if len(expected) > 1 else [result]
    if not isinstance(values, list | tuple) or len(values) != len(expected):
        return None
    arrays = [
        a
        for a, b in zip(values, expected, strict=True)
        if isinstance(a, np.ndarray) and a.shape == b.shape and a.dtype.kind == b.dtype.kind
    ]
    return arrays if len(arrays) == len(expected) else None


def forward(run: BlockRun, given: Arrays, weights: Arrays) -> None:
    """One pass: every step of the block in order, then the three functions that follow it."""
    eps, theta, threshold, rate, steps, capacity = (
        given[key].item() for key in ("eps", "theta", "threshold", "rate", "steps", "capacity")
    )
    expected, b, positions = run.expected, "blocks.0.", given["positions"]
    h = run.keep(b + "resid_pre", expected[b + "resid_pre"])  # (T, D)
    (x,) = run.call("rms_norm", (h, weights["input_layernorm"], eps), b + "attn.norm")  # (T, D)
    q, k, v = (
        run.keep(f"{b}attn.{n}", linear(x, weights[f"{n}_proj"]).reshape(expected[f"{b}attn.{n}"].shape)) for n in "qkv"
    )  # (T, H, d), (T, K, d)
    (q,) = run.call("rope", (q, positions, theta), b + "attn.rot_q")
    (k,) = run.call("rope", (k, positions, theta), b + "attn.rot_k")
    (z,) = run.call("attention", (q, k, v), b + "attn.z")  # (T, H, d)
    out = run.keep(b + "attn.out", linear(z.reshape(len(z), -1), weights["o_proj"]))  # (T, D)
    h = run.keep(b + "resid_mid", h + out)
    (x,) = run.call("rms_norm", (h, weights["post_attention_layernorm"], eps), b + "mlp.norm")
    ffn = (weights["gate_proj"], weights["up_proj"], weights["down_proj"])
    (y,) = run.call("swiglu", (x, *ffn), b + "mlp.out")
    run.keep(b + "resid_post", h + y)
    _, mask = run.call("thresholded_swiglu", (x, *ffn, threshold), "cut.out", b + "mlp.mask")  # (T, F)
    start = (given["start/A"], given["start/B"], given["start/c"])
    run.call("train_predictor", (x, mask, *start, rate, steps), "predictor.A", "predictor.B", "predictor.c")
    run.call("lru", (np.nonzero(mask)[1], capacity), "buffer.hits")
