"""Check an exercise: call the reader's function and the specification on the same cases, and compare the results.

    score   right of total cases;  values = mean over the cases of the share of right values (differences.py)

The specification is a function of the package, or a slow loop that says plainly what is meant. Where the two disagree,
one sentence says how.

How an answer is called, and what is caught there, is in attempt.py. The arguments are copies; a change that the
specification does not make is a wrong case.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..errors import MESSAGE_LIMIT, MinillmError, show
from .attempt import Outcome, attempt, copied, error_text
from .differences import described, difference

PRINTED = 10  # lines shown at most of what a wrong answer printed


class Score(NamedTuple):
    """Numbers of right cases and of all cases, mean share of right values, and the sentence on the first wrong case."""

    right: int
    total: int
    values: float
    problem: str

    @property
    def fraction(self) -> float:
        """Share of the cases that are right."""
        return self.right / self.total

    def _ipython_display_(self) -> None:
        """Show nothing: a notebook would display the last value of a cell, and ``check`` has printed it already."""


class Verdict(NamedTuple):
    """One case: share of right values, what is wrong ("" when right), and what was judged."""

    values: float
    problem: str
    outcome: Outcome


def check(exercise: str, answer: Callable, spec: Callable, cases: Sequence[tuple], rtol: float = 1e-6) -> Score:
    """Compare answer(*case) with spec(*case) on each case; print how many are right and what is wrong first.

    cases: tuples of arguments; both functions get copies. rtol: relative to the largest value expected. Errors of the
    answer are caught and printed; errors of the specification are raised; no cases at all raise MinillmError. An answer
    that never ends is not stopped: interrupt the kernel.
    """
    cases = [tuple(case) for case in cases]
    if not cases:
        raise MinillmError(f"exercise {exercise} has no cases, expected at least one")
    verdicts = []
    for case in cases:
        given = copied(case)
        expected = spec(*given)
        verdicts.append(judge(attempt(answer, case, after=given), expected, rtol))
    name = getattr(answer, "__name__", "answer")
    score = total_score(verdicts, [written_call(name, case) for case in cases])
    print(f"exercise {exercise}: {score.right} of {score.total} right")
    if score.problem:
        print(f"  {score.problem}")
        for line in next(v.outcome.printed for v in verdicts if v.problem).splitlines()[:PRINTED]:
            print(f"  printed: {show(line, MESSAGE_LIMIT)}")
    return score


def total_score(verdicts: Sequence[Verdict], calls: Sequence[str]) -> Score:
    """The score of several cases; calls: each call in words, for the sentence on the first wrong one."""
    sentences = [f"case {i}, {call}: {v.problem}" for i, (v, call) in enumerate(zip(verdicts, calls, strict=True), 1)]
    first = show(next((words for words, v in zip(sentences, verdicts, strict=True) if v.problem), ""), MESSAGE_LIMIT)
    right = sum(not v.problem for v in verdicts)
    return Score(right, len(verdicts), float(np.mean([v.values for v in verdicts])), first)


# ---- one call --------------------------------------------------------------------------------------------------------
def judge(outcome: Outcome, expected: object, rtol: float) -> Verdict:
    """Compare the outcome of a call with the expected result."""
    if not outcome.returned:
        return Verdict(0.0, outcome.problem, outcome)
    try:
        values, problem = difference(outcome.result, expected, rtol)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an object whose own methods raise
        seen = f"{described(outcome.result)} that cannot be compared ({error_text(error)})"
        values, problem = 0.0, f"returned {seen}, expected {described(expected)}"
    if outcome.changed:
        told = f"changed its argument {outcome.changed} in place, expected a new array"
        problem = f"{told}; and {problem}" if problem else told
    return Verdict(values, problem, outcome)


# ---- calls in words --------------------------------------------------------------------------------------------------
def written_call(name: str, case: tuple) -> str:
    """A call as it would be written: rms_norm(float64[2, 8], float64[8], 1e-05)."""
    return f"{name}({', '.join(map(described, case))})"
