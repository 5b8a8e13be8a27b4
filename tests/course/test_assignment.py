"""Grading a file: full points for what is right, and for each usual mistake the right step with the right words."""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from minillm.cli.main import main
from minillm.course import assignment
from minillm.course.assignment import (
    FUNCTIONS,
    Grade,
    cases_of,
    functions_of,
    goldens,
    grade_file,
    grade_function,
    grade_here,
    run_block,
    template,
    write_template,
)
from minillm.course.mistakes import MISTAKES
from minillm.errors import MinillmError
from minillm.loading import embedded

# The seven functions as minillm itself has them.
OURS = '''
from types import SimpleNamespace

import numpy as np

from minillm.loading.config import RopeConfig
from minillm.predictors.train import loss_and_gradients
from minillm.prefetch.buffer import PrefetchBuffer
from minillm.sparsity.masked import masked_swiglu
from minillm.sparsity.policies import POLICIES
from minillm.transformer import attention as chapter, ffn
from minillm.transformer.ops import rms_norm, silu
from minillm.transformer.rope import rope_table, rotate_halves


def rope(x, positions, theta):
    cos, sin = rope_table(RopeConfig("default", theta, x.shape[-1]), int(positions.max()) + 1, x.dtype)
    return rotate_halves(x, cos[positions], sin[positions])


def attention(q, k, v):
    """The model's own attention, whose q, k, v are replaced by these: earlier positions ask, too, with zeros."""
    (new, heads, d), (length, kv_heads, _) = q.shape, k.shape
    values = {"q": np.concatenate([np.zeros((length - new, heads, d), q.dtype), q]), "k": k, "v": v}
    seen = {}

    def tap(name, value):
        seen[name] = values.get(name, value)
        return seen[name]

    rows = {"q": heads, "k": kv_heads, "v": kv_heads}
    sizes = {f"{name}_proj": np.zeros((count * d, 1), q.dtype) for name, count in rows.items()}
    none = dict.fromkeys(("q_bias", "k_bias", "v_bias", "o_bias", "q_norm", "k_norm", "window"))
    layer = SimpleNamespace(**sizes, **none, o_proj=np.zeros((1, heads * d), q.dtype), head_dim=d, eps=0, index=0)
    still = np.ones((length, d // 2), q.dtype)
    chapter.attention(np.zeros((length, 1), q.dtype), layer, still, 0 * still, None, tap)
    return seen["z"][length - new :]


def layer_of(gate_proj, up_proj, down_proj):
    none = dict.fromkeys(("gate_bias", "up_bias", "down_bias"))
    return SimpleNamespace(act=silu, gate_proj=gate_proj, up_proj=up_proj, down_proj=down_proj, **none)


def swiglu(x, gate_proj, up_proj, down_proj):
    return ffn.swiglu(x, layer_of(gate_proj, up_proj, down_proj))


def thresholded_swiglu(x, gate_proj, up_proj, down_proj, threshold):
    seen = {}

    def tap(name, value):
        seen[name] = value
        return value

    layer = layer_of(gate_proj, up_proj, down_proj)
    y = masked_swiglu(x, layer, 0, tap, policy=POLICIES["mid"], thresholds={"mid": threshold})
    return y, seen["mask"]


def train_predictor(x, mask, A, B, c, rate, steps):
    p = {"A": A, "B": B, "c": c}
    for _ in range(steps):
        _, gradients = loss_and_gradients(p, x, mask)
        p = {name: value - rate * gradients[name] for name, value in p.items()}
    return p["A"], p["B"], p["c"]


def lru(requests, capacity):
    buffer = PrefetchBuffer(1, int(requests.max()) + 1, capacity, "lru")
    return np.array([buffer.request(0, [neuron]).hit.any() for neuron in requests])
'''

# And as a student may write them, into which mistakes are put below.
PLAIN = """
import numpy as np


def rms_norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def rope(x, positions, theta):
    half = x.shape[-1] // 2
    angle = np.outer(positions, theta ** (-2 * np.arange(half) / x.shape[-1]))[:, None, :]
    cos, sin = np.cos(angle).astype(x.dtype), np.sin(angle).astype(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attention(q, k, v):
    (new, heads, d), (length, kv_heads, _) = q.shape, k.shape
    k, v = (np.repeat(a, heads // kv_heads, axis=1) for a in (k, v))
    scores = np.einsum("thd,shd->hts", q, k) / float(np.sqrt(d))
    mask = np.arange(length) <= np.arange(length - new, length)[:, None]
    scores = np.where(mask, scores, -np.inf)
    pattern = np.exp(scores - scores.max(axis=-1, keepdims=True))
    pattern /= pattern.sum(axis=-1, keepdims=True)
    return np.einsum("hts,shd->thd", pattern, v)


def neurons(x, gate_proj, up_proj):
    gate, up = x @ gate_proj.T, x @ up_proj.T
    return gate / (1 + np.exp(-np.maximum(gate, -80))) * up


def swiglu(x, gate_proj, up_proj, down_proj):
    return neurons(x, gate_proj, up_proj) @ down_proj.T


def thresholded_swiglu(x, gate_proj, up_proj, down_proj, threshold):
    mid = neurons(x, gate_proj, up_proj)
    mask = np.abs(mid) > threshold
    return np.where(mask, mid, 0) @ down_proj.T, mask


def train_predictor(x, mask, A, B, c, rate, steps):
    for _ in range(steps):
        d = (1 / (1 + np.exp(-(x @ A @ B + c))) - mask).astype(x.dtype) / mask.size
        A, B, c = A - rate * x.T @ (d @ B.T), B - rate * (x @ A).T @ d, c - rate * d.sum(axis=0)
    return A, B, c


def lru(requests, capacity):
    held, hits = [], []
    for neuron in requests:
        hits.append(neuron in held)
        if neuron in held:
            held.remove(neuron)
        held = ([neuron] + held)[:capacity]
    return np.array(hits)
"""
NORM, PRED = "blocks.0.attn.norm", "predictor.A"
# what is changed: the function, from, to, the first wrong step of the block (None: none), words of the diagnosis
PLANTED = {
    "eps of another family": ("rms_norm", "+ eps)", "+ 1e-6)", NORM, "eps is always 1e-6"),
    "eps outside the root": (
        "rms_norm", "np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)",
        "(np.sqrt((x * x).mean(axis=-1, keepdims=True)) + eps)", NORM, "eps stands outside the root"),
    "norm over the wrong axis": ("rms_norm", "axis=-1", "axis=0", NORM, "over the tokens (axis 0)"),
    "rope interleaved": (
        "rope", "return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)",
        "a, b = x[..., ::2], x[..., 1::2]; "
        "return np.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)",
        "blocks.0.attn.rot_q", "pairs are neighbours (0, 1), (2, 3) (interleaved)"),
    "rope backwards": ("rope", "np.sin(angle)", "np.sin(-angle)", "blocks.0.attn.rot_q", "it turns backwards"),
    "rope's own positions": ("rope", "np.outer(positions,", "np.outer(range(len(x)),", None, "positions are ignored"),
    "a float64 leak": ("rope", ".astype(x.dtype)", "", None, "float32 goes in and float64 comes out"),
    "mask off by one": (
        "attention", "np.arange(length) <= np.arange(length - new, length)",
        "np.arange(length) <= 1 + np.arange(length - new, length)", "blocks.0.attn.z", "each token sees the next one"),
    "mask off by one the other way": (
        "attention", "np.arange(length) <=", "np.arange(length) <", "blocks.0.attn.z", "no token sees itself"),
    "mask from position 0": (
        "attention", "np.arange(length - new, length)", "np.arange(new)", None, "the new tokens from position 0"),
    "no 1/sqrt(d)": ("attention", " / float(np.sqrt(d))", "", "blocks.0.attn.z", "not divided by sqrt(d)"),
    "tile instead of repeat": (
        "attention", "np.repeat(a, heads // kv_heads, axis=1)", "np.tile(a, (1, heads // kv_heads, 1))",
        "blocks.0.attn.z", "heads of keys and values in the wrong order"),
    "softmax over the wrong axis": (
        "attention", "scores.max(axis=-1, keepdims=True))\n    pattern /= pattern.sum(axis=-1",
        "scores.max(axis=1, keepdims=True))\n    pattern /= pattern.sum(axis=1",
        "blocks.0.attn.z", "the softmax is over the queries"),
    "softmax that overflows": (
        "attention", "np.exp(scores - scores.max(axis=-1, keepdims=True))", "np.exp(scores)", None, "overflow"),
    "gate and up swapped": (
        "swiglu", "neurons(x, gate_proj, up_proj)", "neurons(x, up_proj, gate_proj)", "blocks.0.mlp.out", "swapped"),
    ">= for >": ("thresholded_swiglu", "> threshold", ">= threshold", None, "(>=)"),
    "no absolute value": ("thresholded_swiglu", "np.abs(mid)", "mid", "cut.out", "without the absolute value"),
    "another tensor": (
        "thresholded_swiglu", "np.abs(mid)", "np.abs(x @ gate_proj.T)", "cut.out", "the gate before its activation"),
    "an uncut sum": ("thresholded_swiglu", "np.where(mask, mid, 0)", "mid", "cut.out", "y is not cut by it"),
    "a mask of what is cut": (
        "thresholded_swiglu", "down_proj.T, mask", "down_proj.T, ~mask", "blocks.0.mlp.mask", "mask says what is cut"),
    "uphill": ("train_predictor", "- mask).astype", "- mask).__neg__().astype", PRED, "it climbs"),
    "a sum for the mean": ("train_predictor", " / mask.size", "", PRED, "the loss is a sum"),
    "one parameter after the other": (
        "train_predictor", "A, B, c = A - rate * x.T @ (d @ B.T), B -", "A = A - rate * x.T @ (d @ B.T); B, c = B -",
        PRED, "the gradient of B uses the A that was just changed"),
    "changed in place": (
        "train_predictor", ", c - rate * d.sum(axis=0)", ", np.subtract(c, rate * d.sum(axis=0), out=c)",
        PRED, "its argument c is changed in place"),
    "fifo": (
        "lru", "if neuron in held:\n            held.remove(neuron)", "if neuron in held:\n            continue",
        "buffer.hits", "FIFO"),
    "lfu": (
        "lru", "held = ([neuron] + held)[:capacity]",
        "seen = list(requests[: len(hits)]); "
        "held = [neuron] + sorted(held, key=lambda n: -seen.count(n))[: max(0, capacity - 1)] if capacity else []",
        "buffer.hits", "LFU"),
    "capacity off by one": ("lru", "[:capacity]", "[:capacity + 1]", "buffer.hits", "one neuron more"),
}  # fmt: skip


def file_of(folder: Path, source: str) -> Path:
    path = folder / "mine.py"
    path.write_text(source, encoding="utf-8")
    return path


def changed(function: str, old: str, new: str) -> str:
    """PLAIN with one change in one function."""
    start = PLAIN.index(f"def {function}(")
    end = PLAIN.find("\n\n\n", start) % len(PLAIN)
    body = PLAIN[start:end]
    assert body.count(old) >= 1, f"{function} holds no {old!r}"
    return PLAIN[:start] + body.replace(old, new) + PLAIN[end:]


@pytest.mark.parametrize("source", [OURS, PLAIN], ids=["minillm's own", "a student's"])
def test_a_full_solution_gets_every_point_and_every_step(tmp_path, source):
    report = grade_file(file_of(tmp_path, source))
    assert [grade.problem for grade in report.grades] == [""] * 7
    assert report.points == 70 and report.all_right and report.block.first is None and not report.block.replaced
    assert {step["status"] for step in report.block.steps} == {"ok"} and len(report.block.steps) == 19


def test_the_template_gets_nothing_and_says_so(tmp_path, capsys):
    path = tmp_path / "mine.py"
    assert main(["grade", "--template", "-o", str(path)]) == 0
    assert path.read_text(encoding="utf-8") == template() and str(path) in capsys.readouterr().err
    assert main(["grade", str(path)]) == 1
    out = capsys.readouterr().out
    assert out.count("is not written yet") == 7 and "0.0  of 70" in out and "nothing yet to run" in out
    assert [grade.points for grade in grade_file(path).grades] == [0] * 7


def test_the_template_never_replaces_a_file_and_is_printed_without_a_name(tmp_path, capsys):
    path = file_of(tmp_path, "precious")
    with pytest.raises(MinillmError, match="mine.py: exists, expected a new name"):
        write_template(path)
    assert main(["grade", "--template", "-o", str(path)]) == 1 and path.read_text(encoding="utf-8") == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["mine.py"] and capsys.readouterr().out == ""
    assert main(["grade", "--template"]) == 0 and capsys.readouterr().out == template()


def test_the_template_has_the_signatures_equations_and_shapes_of_all_functions(tmp_path):
    functions = functions_of(file_of(tmp_path, template()))
    assert list(functions) == list(FUNCTIONS) == list(MISTAKES)
    for name, function in functions.items():
        assert "->" in function.__doc__ and len(cases_of(name)) >= 4
        with pytest.raises(NotImplementedError):
            function(*cases_of(name)[0][0])
    assert max(map(len, template().splitlines())) <= 120


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mistake", PLANTED)
def test_each_planted_mistake_is_named_at_the_right_step(tmp_path, mistake):
    function, old, new, step, words = PLANTED[mistake]
    functions = functions_of(file_of(tmp_path, changed(function, old, new)))
    for name in FUNCTIONS:
        grade = grade_function(name, functions)
        if name == function:
            assert words in grade.diagnosis, grade
            assert grade.problem and grade.right < grade.total and grade.points < 10
        else:
            assert grade == Grade(name, 10.0, grade.total, grade.total, "", "")
    block = run_block(functions)
    assert block.first == step, block.table
    assert (block.function, words in block.how) == ((function, True) if step else ("", False)), block.how


def test_partial_credit_counts_cases_and_values(tmp_path):
    functions = functions_of(file_of(tmp_path, changed("attention", "(new, heads, d)", "(new, heads)")))
    assert grade_function("attention", functions).points == 0  # it raises everywhere
    values = functions_of(file_of(tmp_path, changed("rms_norm", "* weight", "* weight * (np.arange(len(weight)) > 1)")))
    grade = grade_function("rms_norm", values)
    shares = [1 - 2 / case[0][0].shape[-1] for case in cases_of("rms_norm")]
    assert grade.right == 0 and grade.points == pytest.approx(5 * np.mean(shares))
    source = changed("lru", "return np.array(hits)", "return np.zeros(len(hits), bool)")
    constant = grade_function("lru", functions_of(file_of(tmp_path, source)))
    assert constant.right == 1 and constant.points == pytest.approx(2)  # the buffer without room


def test_missing_functions_get_nothing_and_the_rest_is_graded(tmp_path, capsys):
    source = PLAIN.replace("def rope(", "def my_rope(").replace("def lru(", "lru = 3\n\n\ndef other(")
    path = file_of(tmp_path, source.replace("return gate /", "return up /"))
    assert main(["grade", str(path)]) == 1
    out = capsys.readouterr().out
    assert main(["grade", str(path), "--json"]) == 1
    points = {grade["function"]: grade["points"] for grade in json.loads(capsys.readouterr().out)["functions"]}
    assert points["rope"] == points["lru"] == 0 and points["rms_norm"] == points["attention"] == 10
    assert "is missing" in out and "it is no function (found 3)" in out
    assert "First wrong step: blocks.0.mlp.out (swiglu): " in " ".join(out.split())
    assert "In the place of rope, lru: the right values." in out


def test_a_mistake_that_nobody_knows_is_told_by_its_numbers(tmp_path):
    functions = functions_of(file_of(tmp_path, changed("swiglu", "@ down_proj.T", "@ down_proj.T * 1.01")))
    grade, block = grade_function("swiglu", functions), run_block(functions)
    assert grade.diagnosis == "" and grade.problem.startswith("case 1, swiglu(float64[3, 6], float64[10, 6], ")
    assert block.first == "blocks.0.mlp.out" and "largest difference at [" in block.how


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "body", "words"),
    [
        ("rms_norm", "def rms_norm(x):\n    return x", "takes (x), but is called with 3 arguments"),
        ("rope", "def rope(x, p, t):\n    raise SystemExit", "raised SystemExit in line"),
        ("rope", "def rope(x, p, t):\n    exit(3)", "raised SystemExit: 3 in line"),
        ("attention", "def attention(q, k, v):\n    return None", "returned None, expected an array"),
        ("attention", "def attention(q, k, v):\n    return q[0]", "2 axes, not 3"),
        ("swiglu", "def swiglu(*a):\n    print('x' * 10**6)\n    return 'y'", "returned 'y', expected an array"),
        ("thresholded_swiglu", "def thresholded_swiglu(x, g, u, d, t):\n    return x", "expected a tuple of 2 items"),
        ("train_predictor", "class train_predictor:\n    def __init__(self, *a):\n        input()", "raised"),
        (
            "lru",
            "def lru(r, c):\n    return [False] * len(r)",
            "returned a list of 40 items, expected an array bool[40]",
        ),
        ("lru", "async def lru(r, c):\n    return r", "a value of type coroutine"),
    ],
)
def test_whatever_a_function_does_is_one_sentence_and_the_block_goes_on(tmp_path, name, body, words):
    functions = functions_of(file_of(tmp_path, PLAIN + "\n\n" + body + "\n"))
    grade = grade_function(name, functions)
    assert words in grade.problem and "\n" not in grade.problem and grade.right == 0, grade
    block = run_block(functions)
    assert (
        block.function == name and block.replaced == [name] and words.split(",")[0].split(" of 40")[0][:12] in block.how
    )
    assert all(step["status"] == "ok" for step in block.steps)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def rms_norm(:\n", "line 1 is no Python (invalid syntax)"),
        ("import numpy as np\nimport no_such_module\n",
         "importing it raised ModuleNotFoundError: No module named 'no_such_module' in line 2: import no_such_module"),
        ("print('hello')\nexit(0)\n", "importing it raised SystemExit: 0 in line 2: exit(0)"),
        ("import os\nos._exit(0)\n", "importing it ended the process (exit status 0)"),
        ("x = input()\n", "importing it raised EOFError"),
        ("a = '\0'", "is no Python ("),
        ("# -*- coding: nonsense -*-\n", "is no Python ("),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_imported_is_one_sentence(tmp_path, capsys, source, words):
    path = file_of(tmp_path, source)
    assert main(["grade", str(path)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"minillm: {path}: ") and words in err and err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["mine.py"]


def test_a_file_that_is_not_there_and_a_folder(tmp_path, capsys):
    for path in (tmp_path / "nothing.py", tmp_path):
        assert main(["grade", str(path)]) == 1
        assert f"minillm: {path}: cannot be read (" in capsys.readouterr().err
    for arguments in ([], ["x.py", "--template"], ["x.py", "-o", str(tmp_path / "y")]):
        assert main(["grade", *arguments]) == 1 and "expected" in capsys.readouterr().err


def test_what_hangs_or_dies_gets_nothing_and_the_rest_is_graded(tmp_path):
    source = changed("rope", "half = x", "while True: pass\n    half = x")
    source = source.replace(
        "def lru(requests, capacity):\n", "def lru(requests, capacity):\n    import os; os._exit(7)\n"
    )
    report = grade_file(file_of(tmp_path, source), seconds=6)
    problems = {grade.function: grade.problem for grade in report.grades}
    assert problems.pop("rope") == "did not finish within 6 s"
    assert problems.pop("lru") == "ended the process (exit status 7)" and set(problems.values()) == {""}
    assert report.points == 50 and not report.all_right
    assert report.block.first is None and report.block.replaced == ["rope", "lru"]


def test_threads_that_go_on_and_printing_do_no_harm(tmp_path, capfd):
    noise = "\nimport threading, time, sys\nthreading.Thread(target=time.sleep, args=(60,)).start()\nprint('noise')\n"
    start = time.perf_counter()
    report = grade_file(file_of(tmp_path, PLAIN + noise), seconds=50)
    assert report.all_right and capfd.readouterr() == ("", "") and time.perf_counter() - start < 45


def test_the_file_is_read_anew_each_time_and_leaves_no_cache(tmp_path):
    path = file_of(tmp_path, PLAIN)
    assert grade_file(path).all_right
    path.write_text(PLAIN.replace("> threshold", "< threshold"), encoding="utf-8")  # as long as it was
    assert not grade_file(path).all_right
    assert [p.name for p in tmp_path.iterdir()] == ["mine.py"]


def test_neither_the_current_folder_nor_the_files_own_can_replace_a_module(tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise SystemExit", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert grade_file(file_of(tmp_path, PLAIN)).all_right


def test_the_report_is_json(tmp_path, capsys):
    path = file_of(tmp_path, changed("attention", "np.where(mask, scores, -np.inf)", "scores * np.nan"))
    assert main(["grade", str(path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert report["of"] == 70 and report["points"] == 60 and len(report["functions"]) == 7
    assert report["block"]["first"] == "blocks.0.attn.z" and report["block"]["function"] == "attention"
    assert main(["grade", str(file_of(tmp_path, PLAIN)), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["points"] == 70


def test_the_child_writes_a_line_for_each_function_as_it_is_done(tmp_path):
    output = tmp_path / "rows"
    grade_here(str(file_of(tmp_path, PLAIN)), str(output), "lru,block", "rope,lru")
    first, lru, block = map(json.loads, output.read_bytes().splitlines())
    assert first == {} and lru["problem"] == "is missing" and block["replaced"] == ["rope", "lru"]


def test_it_also_runs_as_a_program(tmp_path):
    path = file_of(tmp_path, PLAIN)
    done = subprocess.run([sys.executable, "-m", "minillm", "grade", str(path)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and "all 19 steps agree" in done.stdout


# ---- the goldens -----------------------------------------------------------------------------------------------------


def test_the_goldens_are_small_whole_and_say_where_they_come_from():
    folder = embedded.DATA / "goldens"
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert hashlib.sha256((folder / "goldens.npz").read_bytes()).hexdigest() == manifest["sha256"]["goldens.npz"]
    assert set(manifest["made_by"]) == {"torch", "transformers", "numpy"} and "seed" in manifest
    assert sum(path.stat().st_size for path in folder.iterdir()) < 300_000
    assert all(np.isfinite(a).all() for a in goldens().values())


def test_the_cases_hold_both_widths_and_give_back_the_width_that_came_in():
    for name in FUNCTIONS:
        widths = set()
        for arguments, expected, _ in cases_of(name):
            parts = expected if isinstance(expected, tuple) else (expected,)
            given = {a.dtype for a in arguments if isinstance(a, np.ndarray) and a.dtype.kind == "f"}
            assert {p.dtype for p in parts if p.dtype.kind == "f"} == given
            widths |= given
        assert widths == ({np.dtype("float32"), np.dtype("float64")} if name != "lru" else set())


def test_damaged_goldens_are_told(tmp_path, monkeypatch):
    folder = tmp_path / "goldens"
    folder.mkdir()
    for path in (embedded.DATA / "goldens").iterdir():
        (folder / path.name).write_bytes(path.read_bytes() + b" ")
    monkeypatch.setattr(assignment, "DATA", tmp_path)
    with pytest.raises(MinillmError, match="goldens.npz: its sha256 is"):
        goldens.__wrapped__()
