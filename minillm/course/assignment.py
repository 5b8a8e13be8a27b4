"""Bring your own implementation: seven functions in one file, graded against goldens, then run together as one block.

    minillm grade --template -o mine.py      the file to fill in
    minillm grade mine.py                    points, what is wrong, and the first step that is wrong

The goldens (minillm/data/goldens, written by weights_scripts/write_grading_goldens.py with PyTorch) hold inputs and
results, so grading needs no model. Of the 10 points of a function, half are for cases that are wholly right and half
for right values:  points = 5 (right cases / cases) + 5 (mean share of right values). Then the functions run as one
block of a Llama and what follows it, each fed with what the ones before it gave:

    rms_norm -> (q, k, v) -> rope -> attention -> (o, +) -> rms_norm -> swiglu -> (+)
                                                              '-> thresholded_swiglu -> train_predictor, lru

and ``trace.compare`` names the first step that is wrong. In brackets: done here. A function that is missing is replaced
by what it should give, so that the ones after it can be seen.

The file is executed, in a process of its own with a limit of time: grade only what you would run. When that process
hangs or dies, the function it was at gets nothing and a new process goes on behind it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import types
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import MinillmError, file_errors, whole_file
from ..loading.embedded import DATA
from ..trace import compare, load_arrays
from ..transformer.ops import linear
from .check import NOT_WRITTEN, Verdict, in_call, judge, raised, said, summed
from .mistakes import Call, diagnose

POINTS = 10  # per function
RTOL = {"float64": 1e-9, "float32": 1e-5}  # of the largest value expected
SECONDS = 20

# Name, parameters and docstring of each function: the template, and nothing else says what they are.
FUNCTIONS = {
    "rms_norm": ("x, weight, eps", """
    Scale each row to root mean square 1, then by a learned weight (arXiv 1910.07467, eq. 4).

        y = x / sqrt(mean(x^2) + eps) * weight

    x (T, D), weight (D,), eps a number  ->  y (T, D). The mean is over the last axis.
    """),
    "rope": ("x, positions, theta", """
    Turn each pair of a head's coordinates by an angle that grows with the position (arXiv 2104.09864).

        f_j = theta^(-2j/d),  j = 0 .. d/2 - 1
        (a, b)  ->  (a cos(p f_j) - b sin(p f_j),  b cos(p f_j) + a sin(p f_j))

    Pair j is made of coordinates j and j + d/2 ("halves", Hugging Face's layout).
    x (T, heads, d), positions (T,) whole numbers p, theta a number  ->  (T, heads, d).
    """),
    "attention": ("q, k, v", """
    Let each new position gather values from the positions up to its own (arXiv 1706.03762, eq. 1).

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
    SwiGLU of the neurons whose coefficient is large; all others are set to zero.

        mid as in swiglu      mask = |mid| > threshold      y = (mid where mask, else 0) down_proj^T

    x (T, D), gate_proj and up_proj (F, D), down_proj (D, F), threshold a number
    ->  the pair y (T, D), mask (T, F) bool.
    """),
    "train_predictor": ("x, mask, A, B, c, rate, steps", """
    Train two low-rank maps to say which neurons a mask will keep (Deja Vu, arXiv 2310.17157, section 3).

        z = x A B + c      p = 1 / (1 + exp(-z))
        loss = -mean over all T F values of  (mask ln p + (1 - mask) ln(1 - p))

    Plain gradient descent, ``steps`` times: every parameter minus rate times its gradient, all gradients at the
    parameters before the step. With d = (p - mask) / (T F):

        dA = x^T (d B^T)      dB = (x A)^T d      dc = sum over tokens of d

    x (T, D), mask (T, F) bool, A (D, r), B (r, F), c (F,)  ->  the three new arrays A, B, c.
    """),
    "lru": ("requests, capacity", """
    Replay requests through a buffer that drops the least recently used neuron when it is full.

    A request is a hit where the neuron is in the buffer; a miss brings it in. Either way it is now the most recent.
    requests (N,) whole numbers, capacity the most neurons it holds (0: none)  ->  hits (N,) bool.
    """),
}  # fmt: skip

HEADING = '''"""Seven functions of a language model and of its sparse form, to be written with NumPy.

    minillm grade THIS_FILE

Shapes: T new positions, S positions in all, D hidden, F intermediate, H query heads, K key and value heads, d head
size, r rank. Weights are (out, in): x @ weight.T. What comes in as float32 goes out as float32. Arguments stay as they
are. Leave out what you cannot write; the rest is graded.
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
    """Every array of the goldens by name. Raises MinillmError where they are not what the manifest tells of."""
    path = DATA / "goldens" / "goldens.npz"
    with file_errors(path, "read", MinillmError):
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        manifest = json.loads((path.parent / "manifest.json").read_text(encoding="utf-8"))
    if found != manifest["sha256"][path.name]:
        raise MinillmError(f"{path}: its sha256 is {found[:12]}..., expected {manifest['sha256'][path.name][:12]}...")
    return load_arrays(path)


def cases_of(name: str) -> list[tuple[tuple, object, float]]:
    """The cases of a function: arguments (numbers as Python's own), what is right, and the tolerance."""
    found = []
    while (prefix := f"{name}/{len(found)}/") + "in/0" in goldens():
        arrays = {key.removeprefix(prefix): a for key, a in goldens().items() if key.startswith(prefix)}
        arguments = tuple(a if a.ndim else a.item() for key, a in arrays.items() if key.startswith("in/"))
        results = tuple(a for key, a in arrays.items() if key.startswith("out/"))
        rtol = RTOL["float32" if any(a.dtype == np.float32 for a in arrays.values()) else "float64"]
        found.append((arguments, results if len(results) > 1 else results[0], rtol))
    return found


# ---- one function ----------------------------------------------------------------------------------------------------
class Grade(NamedTuple):
    """One function: points, right cases of how many, the sentence on the first wrong case, and what explains it."""

    function: str
    points: float
    right: int
    total: int
    problem: str
    diagnosis: str


def grade_function(name: str, functions: Mapping[str, object]) -> Grade:
    """Run one function of a file on all its cases."""
    cases = cases_of(name)
    if name not in functions:
        return Grade(name, 0.0, 0, len(cases), "is missing", "")
    answer = functions[name]
    verdicts = [judge(answer, arguments, expected, rtol) for arguments, expected, rtol in cases]
    score = summed(verdicts, [in_call(name, arguments) for arguments, *_ in cases])
    points = POINTS * (score.fraction + score.values) / 2
    calls = [Call(a, v.found, e, rtol) for (a, e, rtol), v in zip(cases, verdicts, strict=True) if v.returned]
    problems = {v.problem for v in verdicts}
    problem = problems.pop() if len(problems) == 1 and not calls else score.problem  # the same in every case
    return Grade(name, points, score.right, score.total, problem, explained(name, calls, verdicts))


def explained(name: str, calls: Sequence[Call], verdicts: Sequence[Verdict]) -> str:
    """Everything that is known to be wrong with these calls of a function; "" where nothing is."""
    changed = [f"its argument {v.changed} is changed in place, expected a new array" for v in verdicts if v.changed]
    return "; ".join(filter(None, [diagnose(name, calls), *changed[:1]]))


# ---- all functions as one block --------------------------------------------------------------------------------------
class Block(NamedTuple):
    """The first wrong step (None when all agree), whose it is and how it is wrong; the comparison as text and rows."""

    first: str | None
    function: str
    how: str
    replaced: list[str]
    table: str
    steps: list[dict]


def run_block(functions: Mapping[str, object]) -> Block:
    """One block and what follows it, with the functions of a file; each step is compared with the golden's."""
    given = {key.removeprefix("block/"): a for key, a in goldens().items() if key.startswith("block/")}
    w = {key.removeprefix("weight/"): a for key, a in given.items() if key.startswith("weight/")}
    expected = {key.removeprefix("step/"): a for key, a in given.items() if key.startswith("step/")}
    eps, theta, threshold, rate, steps, capacity = (
        given[key].item() for key in ("eps", "theta", "threshold", "rate", "steps", "capacity")
    )
    found: dict[str, np.ndarray] = {}
    order: list[str] = []  # all steps as they are made
    wrong: list[tuple[tuple[str, ...], str, str]] = []  # (steps, function, how) of every call that is not right
    replaced: list[str] = []

    def keep(step: str, value: np.ndarray) -> np.ndarray:
        order.append(step)
        found[step] = value
        return value

    def theirs(name: str, arguments: tuple, *names: str) -> list[np.ndarray]:
        """What a function of the file gives, or, where one cannot go on with that, what it should give."""
        right = [expected[step] for step in names]
        one = tuple(right) if len(right) > 1 else right[0]
        verdict = judge(functions[name], arguments, one, RTOL["float64"]) if name in functions else None
        if verdict is None or verdict.problem.startswith(NOT_WRITTEN):
            replaced.append(name)
            return right
        results = verdict.found if len(right) > 1 else [verdict.found]
        fits = isinstance(results, list | tuple) and len(results) == len(right) and all(map(alike, results, right))
        if verdict.problem:
            calls = [Call(arguments, verdict.found, one, RTOL["float64"])] if verdict.returned else []
            wrong.append((names, name, explained(name, calls, [verdict]) or verdict.problem))
        if not fits:
            if not verdict.returned or len(wrong) == 1:  # else its shape may follow from a mistake before it
                replaced.append(name)
            order.extend(names)
            return right
        return [keep(step, value) for step, value in zip(names, results, strict=True)]

    b, positions = "blocks.0.", given["positions"]
    h = keep(b + "resid_pre", expected[b + "resid_pre"])  # (T, D)
    (x,) = theirs("rms_norm", (h, w["input_layernorm"], eps), b + "attn.norm")  # (T, D)
    q, k, v = (
        keep(f"{b}attn.{n}", linear(x, w[f"{n}_proj"]).reshape(expected[f"{b}attn.{n}"].shape)) for n in "qkv"
    )  # (T, H, d), (T, K, d)
    (q,) = theirs("rope", (q, positions, theta), b + "attn.rot_q")
    (k,) = theirs("rope", (k, positions, theta), b + "attn.rot_k")
    (z,) = theirs("attention", (q, k, v), b + "attn.z")  # (T, H, d)
    out = keep(b + "attn.out", linear(z.reshape(len(z), -1), w["o_proj"]))  # (T, D)
    h = keep(b + "resid_mid", h + out)
    (x,) = theirs("rms_norm", (h, w["post_attention_layernorm"], eps), b + "mlp.norm")
    ffn = (w["gate_proj"], w["up_proj"], w["down_proj"])
    (y,) = theirs("swiglu", (x, *ffn), b + "mlp.out")
    keep(b + "resid_post", h + y)
    _, mask = theirs("thresholded_swiglu", (x, *ffn, threshold), "cut.out", b + "mlp.mask")  # (T, F)
    start = (given["start/A"], given["start/B"], given["start/c"])
    theirs("train_predictor", (x, mask, *start, rate, steps), "predictor.A", "predictor.B", "predictor.c")
    theirs("lru", (np.nonzero(mask)[1], capacity), "buffer.hits")

    comparison = compare(found, {step: expected[step] for step in order if step in found}, RTOL["float64"])
    bad = {row.name for row in comparison.rows if row.status != "ok"}
    # A call may be wrong without a wrong number (a dtype, a changed argument), or without any number.
    reasons = {step: call[1:] for call in wrong for step in (bad.intersection(call[0]) or call[0][:1])}
    first = next((step for step in order if step in reasons), None)
    function, how = reasons.get(first, ("", ""))
    replaced = [name for name in FUNCTIONS if name in replaced]
    return Block(first, function, how, replaced, str(comparison), comparison.asdict()["rows"])


def alike(found: object, expected: np.ndarray) -> bool:
    """Whether one can go on with a result: an array of that shape and that kind of number."""
    return isinstance(found, np.ndarray) and found.shape == expected.shape and found.dtype.kind == expected.dtype.kind


# ---- a file, in a process of its own ---------------------------------------------------------------------------------
class Report(NamedTuple):
    """A graded file."""

    grades: list[Grade]
    block: Block | None  # None where it hung or died, which ``trouble`` says
    trouble: str

    @property
    def points(self) -> float:
        """Of POINTS per function."""
        return sum(grade.points for grade in self.grades)

    @property
    def all_right(self) -> bool:
        """Whether no case and no step is wrong."""
        right = all(grade.right == grade.total for grade in self.grades)
        return right and self.block is not None and self.block.first is None

    def asdict(self) -> dict:
        """For JSON."""
        block = self.block and {key: value for key, value in self.block._asdict().items() if key != "table"}
        functions = [grade._asdict() for grade in self.grades]
        of = POINTS * len(FUNCTIONS)
        return {"points": self.points, "of": of, "functions": functions, "block": block, "trouble": self.trouble}


def grade_file(path: str | Path, seconds: float = SECONDS) -> Report:
    """Execute a file and grade its functions, in child processes that are stopped after ``seconds`` each.

    Raises MinillmError, in one sentence, for a file that cannot be read, is no Python, or does not survive its import.
    """
    path = Path(path)
    with file_errors(path, "read", MinillmError):
        path.read_bytes()
    goldens()  # what is wrong with them is no fault of the file
    grades: dict[str, Grade] = {}
    block, trouble, skipped = None, "", []
    pending = [*FUNCTIONS, "block"]
    while pending:
        rows, ended = in_child(path, seconds, pending, skipped)
        if not rows or "error" in rows[0]:  # the first line says whether the file could be imported
            raise MinillmError(f"{path}: {rows[0]['error'] if rows else f'importing it {ended}'}")
        for row in rows[1:]:
            name = pending.pop(0)
            if name == "block":
                block = Block(**row)
            else:
                grades[name] = Grade(**row)
        if pending:
            name = pending.pop(0)
            skipped.append(name)
            if name == "block":
                trouble = ended
            else:
                grades[name] = Grade(name, 0.0, 0, len(cases_of(name)), ended, "")
    return Report([grades[name] for name in FUNCTIONS], block, trouble)


def in_child(path: Path, seconds: float, names: list[str], skipped: list[str]) -> tuple[list[dict], str]:
    """Run ``grade_here`` in a new process: the lines that it wrote, and how it ended, should that matter."""
    program = "import os, sys; from minillm.course.assignment import grade_here; grade_here(*sys.argv[1:]); os._exit(0)"
    # -P: nothing in the current folder may take the place of a module.
    command = [sys.executable, "-P", "-c", program, str(path)]
    paths = [str(Path(__file__).parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    nowhere = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        output = Path(folder) / "rows.jsonl"
        output.touch()
        command += [str(output), ",".join(names), ",".join(skipped)]
        try:
            status = subprocess.run(command, timeout=seconds, env=environment, **nowhere).returncode
            ended = f"ended the process (exit status {status})"
        except subprocess.TimeoutExpired:
            ended = f"did not finish within {seconds:g} s"
        lines = output.read_bytes().split(b"\n")[:-1]  # what follows the last line's end is half a line
        return [json.loads(line) for line in lines], ended


def grade_here(path: str, output: str, names: str, skipped: str) -> None:
    """The child's part: execute the file, then write one line of JSON per name as soon as it is graded."""
    with open(output, "ab", buffering=0) as file:

        def write(row: Mapping) -> None:
            file.write(json.dumps(row).encode() + b"\n")

        try:
            functions = functions_of(path)
        except MinillmError as error:
            write({"error": str(error)})
            return
        write({})
        kept = {name: value for name, value in functions.items() if name not in skipped.split(",")}
        for name in names.split(","):
            write((run_block(kept) if name == "block" else grade_function(name, kept))._asdict())


def functions_of(path: str | Path) -> dict[str, object]:
    """Execute a Python file and take what it defines under the names of FUNCTIONS. Raises MinillmError."""
    # Compiled from the source each time: Python's own cache may hold what the file said a moment ago.
    module = types.ModuleType("answer")
    module.__file__ = str(path)
    sys.modules["answer"] = module
    try:
        code = compile(Path(path).read_bytes(), str(path), "exec")
    except SyntaxError as error:
        line = f"line {error.lineno}" if error.lineno else "it"
        raise MinillmError(f"{line} is no Python ({error.msg})") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise MinillmError(f"it is no Python ({said(error)})") from None
    try:
        exec(code, vars(module))
    except BaseException as error:  # exit(), too
        raise MinillmError(f"importing it {raised(error, str(path))}") from None
    return {name: vars(module)[name] for name in FUNCTIONS if name in vars(module)}
