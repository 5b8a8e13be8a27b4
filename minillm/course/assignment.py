"""Seven functions that a student writes in one file: the template, the goldens, and the grade of one function.

    minillm grade --template -o mine.py      the file to fill in
    minillm grade mine.py                    points, what is wrong, and the first wrong step

The goldens (minillm/data/goldens, written by weights_scripts/write_grading_goldens.py with PyTorch) hold arguments and
expected results, so grading needs no model. Each function has 10 points: half for cases that are wholly right, half for
right values.

    points = 5 (right cases / cases) + 5 (mean share of right values)

How the functions run together is in block.py, and how a file is executed is in judge.py and child.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from ..archive import load_arrays
from ..errors import MinillmError
from ..files import file_errors, whole_file
from ..loading.embedded import DATA
from .attempt import Outcome
from .check import Verdict, judge, total_score, written_call
from .mistakes import Call, diagnose

POINTS = 10  # per function
RTOL = {"float64": 1e-9, "float32": 1e-5}  # relative to the largest value expected

# Parameters and docstring of each function, as the template gives them.
FUNCTIONS = {
    "rms_norm": ("x, weight, eps", """
    Scale each row to root mean square 1, then multiply it by a learned weight (arXiv 1910.07467, eq. 4).

        y = x / sqrt(mean(x^2) + eps) * weight

    x (T, D), weight (D,), eps a number  ->  y (T, D). The mean is over the last axis.
    """),
    "rope": ("x, positions, theta", """
    Rotate each pair of coordinates of a head by an angle that grows with the position (arXiv 2104.09864).

        f_j = theta^(-2j/d),  j = 0 .. d/2 - 1
        (a, b)  ->  (a cos(p f_j) - b sin(p f_j),  b cos(p f_j) + a sin(p f_j))

    Pair j is made of coordinates j and j + d/2 ("halves", Hugging Face's layout).
    x (T, heads, d), positions (T,) integers p, theta a number  ->  (T, heads, d).
    """),
    "attention": ("q, k, v", """
    Each new position takes a weighted mean of the values at the positions up to its own (arXiv 1706.03762, eq. 1).

        z_t = sum over s <= t of  softmax_s(q_t . k_s / sqrt(d)) v_s

    The T queries are the last T of the S positions. Query head h reads key and value head h // (H / K).
    q (T, H, d), k and v (S, K, d), S >= T  ->  z (T, H, d).
    """),
    "swiglu": ("x, gate_proj, up_proj, down_proj", """
    The gated feed-forward network (arXiv 2002.05202, eq. 6).

        mid = silu(x gate_proj^T) * (x up_proj^T)      silu(g) = g / (1 + exp(-g))
        y = mid down_proj^T

    x (T, D), gate_proj and up_proj (F, D), down_proj (D, F)  ->  y (T, D).
    """),
    "thresholded_swiglu": ("x, gate_proj, up_proj, down_proj, threshold", """
    SwiGLU in which every neuron with a small coefficient is set to zero.

        mid as in swiglu      mask = |mid| > threshold      y = (mid where mask, else 0) down_proj^T

    x (T, D), gate_proj and up_proj (F, D), down_proj (D, F), threshold a number
    ->  the pair y (T, D), mask (T, F) bool.
    """),
    "train_predictor": ("x, mask, A, B, c, rate, steps", """
    Train a low-rank predictor of the neurons that a mask keeps (Deja Vu, arXiv 2310.17157, section 3).

        z = x A B + c      p = 1 / (1 + exp(-z))
        loss = -mean over all T F values of  (mask ln p + (1 - mask) ln(1 - p))

    Plain gradient descent, ``steps`` times: every parameter minus rate times its gradient, all gradients are taken
    at the parameters before the step. With d = (p - mask) / (T F):

        dA = x^T (d B^T)      dB = (x A)^T d      dc = sum over tokens of d

    x (T, D), mask (T, F) bool, A (D, r), B (r, F), c (F,)  ->  the three new arrays A, B, c.
    """),
    "lru": ("requests, capacity", """
    Replay requests through a buffer that evicts the least recently used neuron when it is full.

    A request is a hit where the neuron is in the buffer; a miss loads it. In both cases it is
    the most recently used neuron afterwards.
    requests (N,) integers, capacity the number of neurons that fit (0: none)  ->  hits (N,) bool.
    """),
}  # fmt: skip

HEADING = '''"""Seven functions of a language model and of its sparse form, to write with NumPy.

    minillm grade THIS_FILE

Shapes: T new positions, S positions in all, D hidden, F intermediate, H query heads, K key and value heads, d head
size, r rank. Weights are (out, in): x @ weight.T. From float32 arguments the result is float32. Do not change the
arguments. Leave out a function that you cannot write: the others are graded without it.
"""

import numpy as np
'''


def template() -> str:
    """The file to fill in: signatures, equations and shapes; every body raises NotImplementedError."""
    stubs = (
        f'\n\ndef {name}({parameters}):\n    """{text.strip()}\n    """\n    raise NotImplementedError("your turn")\n'
        for name, (parameters, text) in FUNCTIONS.items()
    )
    return HEADING + "".join(stubs)


def write_template(path: str | Path) -> None:
    """Write the template to a new file. Raises MinillmError where a file of that name exists."""
    path = Path(path)
    if path.exists():
        raise MinillmError(f"{path}: exists, expected a new name (a template never replaces a file)")
    with whole_file(path, MinillmError) as beside:
        beside.write_bytes(template().encode())


# ---- the goldens -----------------------------------------------------------------------------------------------------
@cache
def goldens() -> dict[str, np.ndarray]:
    """Every array of the goldens by name. Raises MinillmError where the file's hash is not the one in the manifest."""
    path = DATA / "goldens" / "goldens.npz"
    with file_errors(path, "read", MinillmError):
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        manifest = json.loads((path.parent / "manifest.json").read_text(encoding="utf-8"))
    if found != manifest["sha256"][path.name]:
        raise MinillmError(f"{path}: its sha256 is {found[:12]}..., expected {manifest['sha256'][path.name][:12]}...")
    return load_arrays(path)


class Case(NamedTuple):
    """One case of a function: arguments (numbers as Python's own), expected result, and tolerance."""

    arguments: tuple
    expected: object
    rtol: float


def cases_of(name: str) -> list[Case]:
    """The cases of a function, in the order of the goldens."""
    cases: list[Case] = []
    while (prefix := f"{name}/{len(cases)}/") + "in/0" in goldens():
        arrays = {key.removeprefix(prefix): a for key, a in goldens().items() if key.startswith(prefix)}
        arguments = tuple(a if a.ndim else a.item() for key, a in arrays.items() if key.startswith("in/"))
        results = tuple(a for key, a in arrays.items() if key.startswith("out/"))
        rtol = RTOL["float32" if any(a.dtype == np.float32 for a in arrays.values()) else "float64"]
        cases.append(Case(arguments, results if len(results) > 1 else results[0], rtol))
    return cases


# ---- one function ----------------------------------------------------------------------------------------------------
class Grade(NamedTuple):
    """One function: points, number of right cases and of all cases, the first wrong case in words, and its cause."""

    function: str
    points: float
    right: int
    total: int
    problem: str
    diagnosis: str


Answer: TypeAlias = Callable[[tuple], Outcome]  # calls a student's function, here or in another process


def grade_function(name: str, answers: Mapping[str, Answer], missing: str = "is missing") -> Grade:
    """Call one function of a file on all its cases; ``missing`` says why it is not among the answers."""
    cases = cases_of(name)
    if name not in answers:
        return Grade(name, 0.0, 0, len(cases), missing, "")
    with np.errstate(all="ignore"):  # the results may hold any numbers
        verdicts = [judge(answers[name](arguments), expected, rtol) for arguments, expected, rtol in cases]
    score = total_score(verdicts, [written_call(name, case.arguments) for case in cases])
    points = POINTS * (score.fraction + score.values) / 2
    calls = [
        Call(case.arguments, verdict.outcome.result, case.expected, case.rtol)
        for case, verdict in zip(cases, verdicts, strict=True)
        if verdict.outcome.returned
    ]
    problems = {v.problem for v in verdicts}
    problem = problems.pop() if len(problems) == 1 and not calls else score.problem  # the same in every case
    return Grade(name, points, score.right, score.total, problem, cause(name, calls, verdicts))


def cause(name: str, calls: Sequence[Call], verdicts: Sequence[Verdict]) -> str:
    """Every known mistake in these calls of a function, in words; "" where there is none."""
    names = [verdict.outcome.changed for verdict in verdicts if verdict.outcome.changed]
    changed = [f"its argument {name} is changed in place, expected a new array" for name in names]
    return "; ".join(filter(None, [diagnose(name, calls), *changed[:1]]))
