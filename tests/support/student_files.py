"""Files as a student hands them in to `minillm grade`: right ones, and one with a mistake put into it."""

from functools import partial
from pathlib import Path

from minillm.course.assignment import FUNCTIONS, Answer
from minillm.course.attempt import attempt
from minillm.course.cells import executed

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
    none = dict.fromkeys(("q_bias", "k_bias", "v_bias", "o_bias", "q_norm", "k_norm", "window", "scale", "cap"))
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


def file_of(folder: Path, source: str) -> Path:
    path = folder / "mine.py"
    path.write_text(source, encoding="utf-8")
    return path


def answers_of(path: Path) -> dict[str, Answer]:
    """The functions of a file, called in this process."""
    defined = executed(str(path), path.read_bytes(), FUNCTIONS).defined
    return {name: partial(attempt, function) for name, function in defined.items()}


def changed(function: str, old: str, new: str) -> str:
    """PLAIN with one change in one function."""
    start = PLAIN.index(f"def {function}(")
    end = PLAIN.find("\n\n\n", start) % len(PLAIN)
    body = PLAIN[start:end]
    assert body.count(old) >= 1, f"{function} holds no {old!r}"
    return PLAIN[:start] + body.replace(old, new) + PLAIN[end:]
