"""How fast it is, measured so that anyone can repeat it: ``minillm bench decode | perplexity | start``.

A time in seconds says more about the machine and its neighbours than about the code. So everything here is measured in
turns (ours, a limit or a rival, ours, ...) in one run with one thread, and only RATIOS of one and the same round are
reported: their median and their spread (the middle half).

decode      tokens per second of ``generate``, the readable code itself, against
            - a probe: how fast this machine can read the same weights at all (the best of several reductions over the
              same arrays). A token needs every weight of the blocks and the head once, so this is the limit.
            - transformers with the same weights, in a child process, where torch and transformers are installed.
perplexity  scoring a text of ids (``token_nll``) against torch doing the same in the child.
start       the whole process from nothing to the first token, against ``python -c "import numpy"``.

Random weights of published shapes (llama2.c's, tied heads) unless a model is given.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ..errors import MinillmError
from ..loading.config import ModelConfig
from ..loading.tensors import save_tensors
from ..transformer.evaluation import token_nll
from ..transformer.generation import generate
from ..transformer.model import Llama, random_weights
from .turns import _timed, environment, in_turns

# name -> (hidden, layers, query heads, key/value heads, intermediate, vocabulary), and new tokens per round
SHAPES = {
    "260K": ((64, 5, 8, 4, 172, 512), 200),
    "15M": ((288, 6, 6, 6, 768, 32000), 128),
    "110M": ((768, 12, 12, 12, 2048, 32000), 24),
}
SCORED = 512  # ids of the text that `perplexity` scores
PROMPT = [1]  # every pass is then a decoding pass, of one new token


def random_fields(shape: str) -> dict:
    """The config.json of a shape."""
    hidden, layers, heads, kv_heads, intermediate, vocabulary = SHAPES[shape][0]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }


def write_random_model(folder: Path, shape: str) -> Path:
    """Write a random model of a shape as a Hugging Face folder without a tokenizer."""
    fields = random_fields(shape)
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    config = ModelConfig.from_dict(fields)
    save_tensors(folder / "model.safetensors", random_weights(config, np.random.default_rng(0)), {"format": "pt"})
    return folder


def write_made_up_tokenizer(folder: Path, vocabulary: int) -> None:
    """Write a tokenizer.json with as many tokens as a real one: what it costs to read is in its size.

    Every string over a few letters, shortest first; each is the merge of its front and its last letter.
    """
    letters, pieces, merges = "▁abcdefghijklmnopqrstuvwxyz", ["<unk>", "<s>", "</s>"], []
    pieces += [f"<0x{byte:02X}>" for byte in range(256)][: max(0, vocabulary - 40)]
    words = list(letters)
    for word in words:
        if len(pieces) >= vocabulary:
            break
        pieces.append(word)
        if len(word) > 1:
            merges.append(f"{word[:-1]} {word[-1]}")  # published files of this size write merges as strings
        words += [word + letter for letter in letters[1:]]
    model = {"type": "BPE", "vocab": {p: i for i, p in enumerate(pieces)}, "merges": merges, "unk_token": "<unk>"}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": pieces[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
            | {"special": True}
            for i in range(3)
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": model | {"byte_fallback": True, "fuse_unk": True},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


CHILD = r"""
import sys, time
folder, count, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
import torch, transformers
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(threads)
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
print("ready", torch.__version__, transformers.__version__, flush=True)
for line in sys.stdin:
    what, *ids = line.split()
    ids = torch.tensor([[int(i) for i in ids]])
    start = time.perf_counter()
    with torch.inference_mode():
        if what == "decode":
            cache, new = None, ids
            for _ in range(count):
                out = model(input_ids=new, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache, new = out.past_key_values, out.logits[:, -1:].argmax(-1)
        else:
            hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state[0]
            total = 0.0
            for h, y in zip(hidden.split(256), ids[0, 1:].split(256)):
                total += torch.nn.functional.cross_entropy(model.lm_head(h), y, reduction="sum").item()
    print(time.perf_counter() - start, flush=True)
"""


class Child:
    """transformers in a process of its own, which sleeps except when it is its turn."""

    def __init__(self, folder: Path, count: int, threads: int):
        command = [sys.executable, "-c", CHILD, str(folder), str(count), str(threads)]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, text=True, env=environment, **pipes)
        ready = self._process.stdout.readline().split()
        if not ready:
            raise MinillmError("the child process with transformers did not start, although both are installed")
        self.versions = f"torch {ready[1]}, transformers {ready[2]}"

    def seconds(self, what: str, ids: list[int]) -> float:
        """The child's own time for one round."""
        self._process.stdin.write(" ".join([what, *map(str, ids)]) + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()


def read_seconds(arrays: list[np.ndarray]) -> float:
    """The least time in which this machine reads these arrays once: the best of three reductions, each over all."""
    reductions: list[Callable[[np.ndarray], object]] = [
        lambda a: np.dot(a, a),  # BLAS
        lambda a: np.add.reduce(a),
        lambda a: np.bitwise_or.reduce(a.view(np.int64) if a.size % 2 == 0 else a.view(np.int32)),
    ]
    times = []
    for reduction in reductions:
        start = time.perf_counter()
        for array in arrays:
            reduction(array)
        times.append(time.perf_counter() - start)
    return min(times)


def weights_per_token(model: Llama) -> list[np.ndarray]:
    """The arrays that one decoded token must read, flat: every block's weights, the last norm and the head."""
    arrays = [a for layer in model.layers for a in vars(layer).values() if isinstance(a, np.ndarray)]
    return [a.ravel() for a in (*arrays, model.norm, model.lm_head)]  # views: rows are contiguous


def bench(what: str, shape: str = "15M", source: str | Path | None = None, rounds: int = 7, threads: int = 1) -> dict:
    """Measure ``what`` ("decode", "perplexity" or "start") in turns; gives medians and ratios with their spread.

    source: a model's folder instead of a random model of ``shape``. threads: what BLAS was started with.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(source) if source else write_random_model(Path(temporary), shape)
        result = {"what": what, "model": Path(source).name if source else f"random {shape}", "rounds": rounds}
        result |= {"environment": environment(threads)}
        if what == "start":
            if source:  # what is wrong with it is said here, in one sentence, and not in a traceback of a process
                model = Llama.from_folder(folder)
                next(generate(model, PROMPT, 1)), model.tokenizer
            else:
                write_made_up_tokenizer(folder, SHAPES[shape][0][-1])
            return result | {"rows": _start(folder, rounds)}
        model = Llama.from_folder(folder)
        count = min(SHAPES[shape][1], max(1, model.config.max_position_embeddings - len(PROMPT)))
        length = min(SCORED, model.config.max_position_embeddings)
        text = np.random.default_rng(1).integers(3, model.config.vocab_size, length).tolist()
        if what == "decode":
            ids, unit = PROMPT, "token"
            turns = {
                "minillm": lambda: _timed(lambda: list(generate(model, PROMPT, count, stop_at_eos=False))) / count,
                "read probe": lambda: read_seconds(weights_per_token(model)),
            }
        else:
            ids, unit = text, "text"
            turns = {"minillm": lambda: _timed(lambda: token_nll(model, text))}
        child = None
        if find_spec("torch") and find_spec("transformers"):
            child = Child(folder, count, threads)
            result["environment"]["transformers"] = child.versions
            per = count if what == "decode" else 1
            turns["transformers"] = lambda: child.seconds(what, ids) / per
        try:
            result["rows"] = in_turns(turns, rounds, unit)
        finally:
            if child:
                child.close()
        if what == "decode":
            megabytes = sum(a.nbytes for a in weights_per_token(model)) / 1e6
            result |= {"new_tokens": count, "megabytes_per_token": megabytes}
        return result


def _start(folder: Path, rounds: int) -> list[dict]:
    """Whole processes. Ours go from nothing to the first new token, from ids or from a text."""
    load = f"import minillm; m = minillm.load({str(folder)!r}); "
    programs = {
        "import numpy": "import numpy",
        "first token from ids": load + "m.folder = None; next(minillm.generate(m, [1, 5, 9, 13], 1))",  # no tokenizer
        "first token from text": load + "next(minillm.generate(m, m.tokenizer.encode('once upon'), 1))",
    }

    # An installed package has its bytecode; a machine that forbids writing it would compile every file every time.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}

    def run(program: str) -> Callable[[], float]:
        return lambda: _timed(lambda: subprocess.run([sys.executable, "-c", program], check=True, env=environment))

    return in_turns({name: run(program) for name, program in programs.items()}, rounds, "process")


def as_text(result: dict) -> str:
    """A result of ``bench`` as a table."""
    from ..tables import keys_as_headings, text_table

    lines = [f"{result['what']}, {result['model']}, {result['rounds']} rounds in turns"]
    if "megabytes_per_token" in result:
        ours, probe = result["rows"][:2]
        lines[0] += f", {result['new_tokens']} new tokens, {result['megabytes_per_token']:.1f} MB of weights per token"
        lines.append(
            f"{1e3 / ours['milliseconds']:.1f} tokens per second, {probe['ratio']:.2f} of what reading alone allows"
        )
    rows = [row | {"spread": f"{row['ratio_low']:.2f} .. {row['ratio_high']:.2f}"} for row in result["rows"]]
    base = rows[0]["name"]
    columns = {"name": "", "milliseconds": ".2f", "per": "", "ratio": ".2f", "spread": ""}
    lines.append(text_table(rows, keys_as_headings(columns)))
    lines.append(f"ratio: time over that of {base} in the same round, median; spread: the middle half of the rounds")
    lines.append("; ".join(f"{key} {value}" for key, value in result["environment"].items()))
    return "\n".join(lines)
