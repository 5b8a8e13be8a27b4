"""The functions run together: each usual mistake is found at the right step, with the right words."""

import pytest
from student_files import PLAIN, answers_of, changed, file_of

from minillm.course.assignment import FUNCTIONS, Grade, grade_function
from minillm.course.block import run_block

NORM, PRED = "blocks.0.attn.norm", "predictor.A"
# what is changed: the function, from, to, the first wrong step of the block (None: none), words of the diagnosis
PLANTED = {
    "eps of another family": ("rms_norm", "+ eps)", "+ 1e-6)", NORM, "eps is always 1e-6"),
    "eps outside the root": (
        "rms_norm", "np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)",
        "(np.sqrt((x * x).mean(axis=-1, keepdims=True)) + eps)", NORM, "eps is outside the root"),
    "norm over the wrong axis": ("rms_norm", "axis=-1", "axis=0", NORM, "over the tokens (axis 0)"),
    "rope interleaved": (
        "rope", "return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)",
        "a, b = x[..., ::2], x[..., 1::2]; "
        "return np.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)",
        "blocks.0.attn.rot_q", "pairs are neighbours (0, 1), (2, 3) (interleaved)"),
    "rope backwards": ("rope", "np.sin(angle)", "np.sin(-angle)", "blocks.0.attn.rot_q", "it rotates backwards"),
    "rope's own positions": ("rope", "np.outer(positions,", "np.outer(range(len(x)),", None, "positions are ignored"),
    "a float64 leak": ("rope", ".astype(x.dtype)", "", None, "float32 goes in and float64 comes out"),
    "mask off by one": (
        "attention", "np.arange(length) <= np.arange(length - new, length)",
        "np.arange(length) <= 1 + np.arange(length - new, length)", "blocks.0.attn.z", "each token sees the next one"),
    "mask off by one the other way": (
        "attention", "np.arange(length) <=", "np.arange(length) <", "blocks.0.attn.z", "no token sees itself"),
    "mask from position 0": (
        "attention", "np.arange(length - new, length)", "np.arange(new)", None, "the first new token at position 0"),
    "no 1/sqrt(d)": ("attention", " / float(np.sqrt(d))", "", "blocks.0.attn.z", "not divided by sqrt(d)"),
    "tile instead of repeat": (
        "attention", "np.repeat(a, heads // kv_heads, axis=1)", "np.tile(a, (1, heads // kv_heads, 1))",
        "blocks.0.attn.z", "query heads read the wrong key/value heads"),
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
    "an uncut sum": ("thresholded_swiglu", "np.where(mask, mid, 0)", "mid", "cut.out", "y is computed without it"),
    "a mask of what is cut": (
        "thresholded_swiglu", "down_proj.T, mask", "down_proj.T, ~mask", "blocks.0.mlp.mask",
        "the mask is True for what is cut"),
    "uphill": ("train_predictor", "- mask).astype", "- mask).__neg__().astype", PRED, "the loss grows"),
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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mistake", PLANTED)
def test_each_planted_mistake_is_named_at_the_right_step(tmp_path, mistake):
    function, old, new, step, words = PLANTED[mistake]
    functions = answers_of(file_of(tmp_path, changed(function, old, new)))
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


def test_a_mistake_that_nobody_knows_is_told_by_its_numbers(tmp_path):
    functions = answers_of(file_of(tmp_path, changed("swiglu", "@ down_proj.T", "@ down_proj.T * 1.01")))
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
    functions = answers_of(file_of(tmp_path, PLAIN + "\n\n" + body + "\n"))
    grade = grade_function(name, functions)
    assert words in grade.problem and "\n" not in grade.problem and grade.right == 0, grade
    block = run_block(functions)
    assert (
        block.function == name and block.replaced == [name] and words.split(",")[0].split(" of 40")[0][:12] in block.how
    )
    assert all(step["status"] == "ok" for step in block.steps)
