"""The exercises' checks: a wrong answer that nearly looks right fails, and a right one in another form passes.

Of a notebook, only what a check needs is executed, as grading does it (minillm/course/cells.py).
"""

import re
from pathlib import Path

import pytest
from scripts import load_script

from minillm.course.cells import needed_of, parsed

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
build = load_script(NOTEBOOKS / "build.py")

# exercise: (cell of the solution changed from, to); a line "def ..." replaces the whole cell
WRONG = {
    "00.2": [("axis=-1", "axis=0"), ("axis=-1, ", "")],
    "00.5": [("q.shape[-1]", "q.shape[1]")],
    "00.8": [("<=", "<"), ("np.arange(S - T, S)", "np.arange(T)")],
    "00.9": [("x - x.max(axis=-1, keepdims=True)", "x"), ("x.max(axis=-1, keepdims=True)", "x.max()"),
             ("np.exp(x -", "np.exp(x.astype(float) -")],
    "00.10": [
        ("def rotated(x):\n    return leaky(x).astype(x.dtype)", ""),
        ("def rotated(x):\n    return leaky(x.astype(np.float64)).astype(x.dtype)", ""),
        (".astype(x.dtype)", ""),
        ("/ 1.0", "/ np.float32(1)\n    angle = angle.astype(np.float32)"),
    ],
    "03.1": [("queries = config.num_attention_heads * config.head_dim", "queries = config.hidden_size"),
             ("2 * D +", "D +"), ("(1 if config.tie_word_embeddings else 2)", "2")],
    "03.2": [("> tolerance", ">= tolerance"), ("np.abs(theirs[name]).max()", "theirs[name].max()"),
             ("np.abs(value - theirs[name])", "(theirs[name] - value)"),
             ("np.abs(value - theirs[name])", "(value - theirs[name])")],
    "04.1": [("2 * config", "config"), ("num_key_value_heads", "num_attention_heads")],
    "04.3": [("before >= mass", "before > mass"), ("- p[order]\n", "\n"), ("/ kept.sum()", "")],
    "05.1": [("- values.mean()", ""), (".mean() ** 2", ".mean()")],
    "05.2": [("round(", "int("), ("round(share * mid.shape[-1])", "int(np.ceil(share * mid.shape[-1]))"),
             ("mid.shape[-1] - count", "-count"), ("mid**2", "np.abs(mid)")],
    "06.1": [("> threshold", ">= threshold"), ("np.abs(gate)", "gate"), ("np.abs(gate)", "np.abs(x @ w_gate.T)")],
    "06.2": [("    if sparsity == 0:\n        return 0.0\n", ""), ("np.abs(values)", "values")],
    "06.3": [
        ("    lost = np.where(length < threshold, mid, 0) @ w_down.T  # (T, D)\n"
         "    return float(np.mean(np.linalg.norm(lost, axis=-1) /",
         "    lost = np.where(length < threshold, length, 0).sum(axis=-1)\n    return float(np.mean(lost /"),
        ("length < threshold", "length <= threshold"), ("length = np.abs(mid) *", "length = mid *"),
        ("np.mean(np.linalg.norm(lost, axis=-1) / np.linalg.norm(mid @ w_down.T, axis=-1))",
         "np.linalg.norm(lost) / np.linalg.norm(mid @ w_down.T)"),
    ],
    "06.4": [("position + dense)", "position)"), ("max(0, start - position)", "start")],
    "07.1": [("max(1, active.sum())", "active.sum()"), ("max(1, selected.sum())", "selected.sum()")],
    "07.3": [("codes[:, 0::2] | codes[:, 1::2] << 4", "codes[:, 1::2] | codes[:, 0::2] << 4"),
             ("np.round(weight / scale[:, None] + 7.5)", "weight / scale[:, None] + 7.5"),
             ("np.clip(np.round(weight / scale[:, None] + 7.5), 0, 15)", "np.round(weight / scale[:, None] + 7.5)")],
    "08.1": [(" / z.size", " / len(z)"), ("np.where(y, 1.0, negative) * ", "")],
    "08.2": [("+ 1e-8)", ")"), ("np.sqrt(v / (1 - 0.999**t)) + 1e-8", "np.sqrt(v / (1 - 0.999**t) + 1e-8)"),
             ("m / (1 - 0.9**t)", "m")],
    "08.3": [("round(", "int("), ("np.unique(document)", "np.array(list(dict.fromkeys(document.tolist())))")],
    "09.1": [("not kept[j], j", "j"), ("kept = np.zeros(trace.shape[1], bool)\n        kept[order", "kept[order")],
}  # fmt: skip
RIGHT = {
    "00.9": [("def softmax(x):\n    e = np.exp(x - np.max(x, axis=-1)[..., None])\n"
              "    return e / np.sum(e, -1)[..., None]", "")],
    "00.10": [
        ("def rotated(x):\n    t = np.arange(len(x))\n    cos, sin = x.dtype.type(np.cos(t)), x.dtype.type(np.sin(t))\n"
         "    a, b = x.T\n    return np.stack([a * cos - b * sin, a * sin + b * cos], axis=-1)", ""),
        ("def rotated(x):\n    turn = np.exp(1j * np.arange(len(x))).astype(np.result_type(x.dtype, np.complex64))\n"
         "    z = (x[:, 0] + 1j * x[:, 1]) * turn\n    return np.stack([z.real, z.imag], axis=1)", ""),
    ],
    "03.1": [("2 * D +", "D + D +")],
    "04.3": [("def my_top_p(p, mass):\n    kept = np.zeros_like(p)\n    for i in np.argsort(p)[::-1]:\n"
              "        kept[i] = p[i]\n        if kept.sum() >= mass:\n            break\n"
              "    return kept / kept.sum()", "")],
    "06.1": [("def my_thresholded_swiglu(x, g, u, d, threshold):\n    a = x @ g.T\n    a = a / (1 + np.exp(-a))\n"
              "    return ((np.abs(a) > threshold) * a * (x @ u.T)) @ d.T", "")],
    "07.3": [("np.round(weight / scale[:, None] + 7.5)", "np.floor(weight / scale[:, None] + 8)"),
             ("np.round(weight / scale[:, None] + 7.5)", "np.ceil(weight / scale[:, None] + 7)")],
    "08.2": [("m = m + (1 - 0.9) * (g - m)", "m = 0.9 * m + 0.1 * g")],
}  # fmt: skip


class Exercise:
    """One exercise of a notebook: its solution, its check, and what stands before them."""

    def __init__(self, number: str):
        (source,) = NOTEBOOKS.glob(f"source/{number[:2]}_*.py")
        cells = [cell for cell in build.read(source).cells if cell.cell_type == "code"]
        self.place = next(i for i, cell in enumerate(cells) if f'check("{number}"' in cell.source)
        self.solution, self.check = cells[self.place - 1].source, cells[self.place].source
        self.before = [cell.source for cell in cells[: self.place - 1]]
        self.name = build.exercise_function(self.solution).name

    def changed(self, old: str, new: str) -> str:
        """The solution with one thing changed; a whole function where ``old`` is one."""
        if old.startswith("def "):
            return old
        assert old in self.solution, f"the solution holds no {old!r}"
        return self.solution.replace(old, new)

    def score(self, answers: list[str], capsys) -> list[tuple[int, int]]:
        """(right cases, all cases) of each answer."""
        texts = [*self.before, self.solution, self.check]
        statements = [s for i, text in enumerate(texts) for s in parsed(f"cell {i}", text)]
        last = [s for s in statements if s.cell == f"cell {len(texts) - 1}"]
        wanted = set().union(*(s.binds | s.uses for s in [*last, *parsed("cell", "\n\n".join(answers))]))
        space = {"__name__": "__main__"}
        for statement in needed_of(statements[: -len(last)], wanted):
            exec(statement.code, space)
        found = []
        for answer in answers:
            exec(answer, space)
            capsys.readouterr()
            exec(self.check, space)
            found.append(tuple(map(int, re.search(r": (\d+) of (\d+) right", capsys.readouterr().out).groups())))
        return found


QUICK = ("00", "04")


def each(exercises) -> list:
    return [pytest.param(n, marks=() if n.startswith(QUICK) else pytest.mark.slow) for n in sorted(exercises)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", each(WRONG.keys() | RIGHT.keys()))
def test_a_check_tells_wrong_answers_from_right_ones(number, capsys, monkeypatch):
    monkeypatch.chdir(NOTEBOOKS)
    exercise = Exercise(number)
    wrong = [exercise.changed(*change) for change in WRONG.get(number, [])]
    right = [exercise.solution, *(exercise.changed(*change) for change in RIGHT.get(number, []))]
    scores = exercise.score([*wrong, *right], capsys)
    for answer, (good, total) in zip(wrong, scores, strict=False):
        assert good < total, f"exercise {number} accepts\n{answer}"
    for answer, (good, total) in zip(right, scores[len(wrong) :], strict=True):
        assert good == total, f"exercise {number} refuses\n{answer}"
