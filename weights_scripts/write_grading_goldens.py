"""Write the expected results of `minillm grade`: small random cases and one block, computed with PyTorch.

    python weights_scripts/write_grading_goldens.py            # into minillm/data/goldens
    python weights_scripts/write_grading_goldens.py FOLDER

The cases are chosen so that the usual mistakes give wrong results: an eps that matters, positions that do not start at
0, more keys than queries, grouped heads, scores whose exponentials overflow, values that equal the threshold exactly,
and both float32 and float64. Arguments and results are stored in the file, so grading depends on no model.

The script does not use minillm. Where a library has the function, it is used: scaled_dot_product_attention for
attention, hardshrink for the threshold, autograd for the predictor's gradients, functools.lru_cache for the buffer. The
block is computed by torch_reference.py (plain torch, float64).

Needs torch and transformers:  pip install ".[parity]"
"""

import hashlib
import json
import sys
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from dump_reference import random_state
from torch_families import run_torch64
from torch_reference import rms_norm, rotate

FOLDER = Path(__file__).parents[1] / "minillm" / "data" / "goldens"
SEED = 7
BLOCK = {
    "model_type": "llama", "vocab_size": 16, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32, "rms_norm_eps": 1e-5,
    "rope_theta": 100.0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TOKENS, RANK, CAPACITY, RATE, STEPS = 9, 3, 11, 2.0, 10


# ---- the seven functions ---------------------------------------------------------------------------------------------


def rope(x, positions, theta):
    frequency = theta ** (-torch.arange(0, x.shape[-1], 2).double() / x.shape[-1])
    angle = torch.outer(positions.double(), frequency)
    return rotate(x, torch.polar(torch.ones_like(angle), angle)[:, None, :])


def attention(q, k, v):
    group = q.shape[1] // k.shape[1]
    q, k, v = q.transpose(0, 1), *(a.repeat_interleave(group, dim=1).transpose(0, 1) for a in (k, v))
    new, attended = q.shape[1], k.shape[1]
    mask = torch.ones(new, attended, dtype=torch.bool).tril(attended - new)
    return F.scaled_dot_product_attention(q, k, v, mask).transpose(0, 1)


def neurons(x, gate_proj, up_proj):
    return F.silu(F.linear(x, gate_proj)) * F.linear(x, up_proj)


def swiglu(x, gate_proj, up_proj, down_proj):
    return F.linear(neurons(x, gate_proj, up_proj), down_proj)


def thresholded_swiglu(x, gate_proj, up_proj, down_proj, threshold):
    kept = F.hardshrink(neurons(x, gate_proj, up_proj), threshold)
    return F.linear(kept, down_proj), kept != 0


def train_predictor(x, mask, A, B, c, rate, steps):
    A, B, c = (a.clone().requires_grad_() for a in (A, B, c))
    optimizer = torch.optim.SGD([A, B, c], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(x @ A @ B + c, mask.double()).backward()
        optimizer.step()
    return A.detach(), B.detach(), c.detach()


def lru(requests, capacity):
    fetch, hits = lru_cache(capacity)(lambda neuron: None), []
    for neuron in requests.tolist():
        before = fetch.cache_info().hits
        fetch(neuron)
        hits.append(fetch.cache_info().hits > before)
    return torch.tensor(hits)


FUNCTIONS = {f.__name__: f for f in (rms_norm, rope, attention, swiglu, thresholded_swiglu, train_predictor, lru)}


def results(name: str, arguments: list) -> list[np.ndarray]:
    """The results of a function, computed in float64; rounded to float32 where the arguments are float32."""
    single = any(getattr(a, "dtype", None) == np.float32 for a in arguments)
    given = []
    for a in arguments:
        tensor = torch.from_numpy(a.copy()) if isinstance(a, np.ndarray) else a
        given.append(tensor.double() if isinstance(a, np.ndarray) and a.dtype.kind == "f" else tensor)
    result = FUNCTIONS[name](*given)
    arrays = [value.numpy() for value in (result if isinstance(result, tuple) else (result,))]
    return [a.astype(np.float32) if single and a.dtype.kind == "f" else a for a in arrays]


def between(mid: np.ndarray) -> float:
    """A threshold near the median of |mid| and far from every value: the middle of the widest gap near the median."""
    size = np.sort(np.abs(mid).ravel())
    low = len(size) * 2 // 5
    gaps = np.diff(size[low : len(size) * 3 // 5])
    at = low + int(gaps.argmax())
    return float(size[at : at + 2].mean())


# ---- the cases -------------------------------------------------------------------------------------------------------


def random_ffn(rng: np.random.Generator, tokens: int, hidden: int, inner: int, dtype=np.float64) -> list[np.ndarray]:
    """x (tokens, hidden), and the weights gate and up (inner, hidden), down (hidden, inner)."""
    shapes = ((tokens, hidden), (inner, hidden), (inner, hidden), (hidden, inner))
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def with_threshold(arguments: list[np.ndarray]) -> list:
    """The arguments of an FFN and a threshold that cuts about half of its neurons."""
    mid = neurons(*(torch.from_numpy(a).double() for a in arguments[:3])).numpy()
    return [*arguments, between(mid)]


def exact_ffn(rng: np.random.Generator) -> list[np.ndarray]:
    """An FFN whose mid values are integers, so that some equal a threshold exactly.

    For a gate of 0, or of 40 and more, SiLU returns the gate itself to the last bit. So the mid of each of these
    neurons is an integer, and a mid of 80 equals the threshold of 80 whatever formula is used.
    """
    x = np.array([[1.0, 0, 0, 1], [0, 1, 0, -1], [1, 1, 0, 2]])
    gate = np.array([[40.0, 40, 0, 0], [40, 0, 0, 0], [0, 40, 0, 0], [0, 0, 40, 0], [40, 40, 7, 0]])
    up = np.array([[0.0, 0, 0, 1], [2, 3, 0, 0], [1, -2, 0, 0], [1, 1, 1, 1], [0, 0, 1, 2]])
    down = rng.integers(-3, 4, (4, 5)).astype(np.float64)
    return [x, gate, up, down]


def random_predictor(
    rng: np.random.Generator, tokens: int, hidden: int, rank: int, inner: int, dtype=np.float64
) -> list[np.ndarray]:
    """x (tokens, hidden), a mask (tokens, inner), and the start of A (hidden, rank), B (rank, inner) and c (inner,)."""
    shapes = ((hidden, rank), (rank, inner), (inner,))
    start = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    return [rng.standard_normal((tokens, hidden)).astype(dtype), rng.random((tokens, inner)) < 0.4, *start]


def random_requests(rng: np.random.Generator, count: int, different: int) -> np.ndarray:
    """Indices of neurons below ``different``; small ones are more frequent."""
    return np.minimum(rng.zipf(1.5, count) - 1, rng.integers(0, different, count)).astype(np.int64)


def cases(rng: np.random.Generator) -> dict[str, list[list]]:
    """The arguments of all cases: {function: [arguments of a case, ...]}."""

    def normal(*shape, dtype=np.float64):
        return rng.standard_normal(shape).astype(dtype)

    ffn, predictor, requests = (partial(make, rng) for make in (random_ffn, random_predictor, random_requests))
    single = {"dtype": np.float32}
    exact = exact_ffn(rng)
    return {
        "rms_norm": [
            [normal(3, 8), 1 + 0.3 * normal(8), 1e-5],
            [0.05 * normal(4, 6), 1 + 0.3 * normal(6), 1e-3],
            [3 * normal(1, 5), normal(5), 0.5],
            [normal(2, 16, **single), normal(16, **single), 1e-6],
        ],
        "rope": [
            [normal(5, 3, 8), np.arange(5), 10000.0],
            [normal(4, 2, 4), np.arange(7, 11), 100.0],
            [normal(3, 1, 6), np.array([2, 0, 5]), 1000.0],
            [normal(4, 2, 8, **single), np.arange(3, 7), 10000.0],
        ],
        "attention": [
            [normal(5, 2, 4), normal(5, 2, 4), normal(5, 2, 4)],
            [normal(6, 4, 4), normal(6, 2, 4), normal(6, 2, 4)],
            [normal(2, 6, 3), normal(7, 2, 3), normal(7, 2, 3)],
            [400 * normal(3, 2, 4), 3 * normal(3, 1, 4), normal(3, 1, 4)],
            [normal(4, 4, 8, **single), normal(4, 2, 8, **single), normal(4, 2, 8, **single)],
        ],
        "swiglu": [
            ffn(3, 6, 10),
            ffn(1, 4, 4),
            [1000 * (a := ffn(2, 3, 5))[0], *a[1:]],
            ffn(4, 8, 12, **single),
        ],
        "thresholded_swiglu": [
            with_threshold(ffn(4, 6, 10)), [*exact, 80.0], [*exact, 0.0], with_threshold(ffn(3, 8, 12, **single)),
        ],
        "train_predictor": [
            [*predictor(7, 3, 2, 5), 0.5, 1],
            [*predictor(12, 4, 2, 6), 3.0, 8],
            [*predictor(6, 4, 4, 3), 1.0, 25],
            [*predictor(10, 4, 3, 8, **single), 1.0, 5],
        ],
        "lru": [
            [requests(40, 9), 3], [requests(60, 14), 5], [requests(15, 5), 1], [requests(20, 6), 9],
            [requests(10, 3), 0],
        ],
    }  # fmt: skip


def block(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One block of a tiny Llama: its weights, every step of a pass, and the results of the three functions after it."""
    config = transformers.AutoConfig.for_model(**BLOCK)
    model = transformers.AutoModelForCausalLM.from_config(config)
    state = random_state(model, SEED)
    tensors = {name: torch.from_numpy(value).double() for name, value in state.items()}
    ids = rng.integers(0, BLOCK["vocab_size"], TOKENS)
    steps = run_torch64(config, tensors.get, ids.tolist())
    arrays = {}
    for name, value in tensors.items():
        if name.startswith("model.layers.0."):
            arrays["weight/" + name.removesuffix(".weight").rsplit(".", 1)[-1]] = value.numpy()
    internal = ("scores", "pattern", "gate_pre", "gate", "up", "mid")  # steps inside one of the student's functions
    for name, value in steps.items():
        if name.startswith("blocks.") and name.rsplit(".", 1)[-1] not in internal:
            arrays[f"step/{name}"] = value
    x, ffn = steps["blocks.0.mlp.norm"], [arrays[f"weight/{m}_proj"] for m in ("gate", "up", "down")]
    threshold = between(steps["blocks.0.mlp.mid"])
    y, mask = results("thresholded_swiglu", [x, *ffn, threshold])
    start = [rng.standard_normal(shape) for shape in ((x.shape[1], RANK), (RANK, mask.shape[1]), (mask.shape[1],))]
    trained = results("train_predictor", [x, mask, *start, RATE, STEPS])
    (hits,) = results("lru", [np.nonzero(mask)[1], CAPACITY])
    arrays |= {"step/blocks.0.mlp.mask": mask, "step/cut.out": y}
    arrays |= {f"step/predictor.{name}": value for name, value in zip("ABc", trained, strict=True)}
    arrays |= {f"start/{name}": value for name, value in zip("ABc", start, strict=True)}
    arrays |= {"step/buffer.hits": hits, "positions": np.arange(TOKENS)}
    numbers = {"eps": BLOCK["rms_norm_eps"], "theta": BLOCK["rope_theta"], "threshold": threshold}
    numbers |= {"rate": RATE, "steps": STEPS, "capacity": CAPACITY}
    return arrays | {name: np.array(value) for name, value in numbers.items()}


def write(folder: Path) -> None:
    """Write goldens.npz and manifest.json into a folder."""
    rng = np.random.default_rng(SEED)
    arrays = {}
    for name, all_cases in cases(rng).items():
        for i, arguments in enumerate(all_cases):
            for j, value in enumerate(arguments):
                arrays[f"{name}/{i}/in/{j}"] = np.array(value)
            for j, value in enumerate(results(name, arguments)):
                arrays[f"{name}/{i}/out/{j}"] = value
    arrays |= {f"block/{name}": value for name, value in block(rng).items()}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "goldens.npz"
    np.savez_compressed(path, **arrays)
    made_by = {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__}
    manifest = {
        "generator": "python weights_scripts/write_grading_goldens.py",
        "made_by": made_by,
        "seed": SEED,
        "block": BLOCK,
        "expected": "float64 (plain torch); float32 cases computed in float64 and rounded",
        "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest()},
    }
    text = json.dumps(manifest, indent=1) + "\n"
    (folder / "manifest.json").write_text(text, encoding="utf-8", newline="\n")
    print(f"{path}: {len(arrays)} arrays, {path.stat().st_size:,} bytes", file=sys.stderr)


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
