"""How fast a whole model is, measured so that anyone can repeat it: ``minillm bench decode | perplexity | start``.

Everything is measured in turns, in one run with one thread, and only ratios of the same round are reported (turns.py).

decode      tokens per second of ``generate``, the readable code itself, against
            - a probe: how fast this machine can read the same weights at all (the best of several reductions over the
              same arrays). A token needs every weight of the blocks and the head once, so this is the limit.
            - transformers with the same weights, in a child process, where torch and transformers are installed.
perplexity  scoring a text of ids (``token_nll``) against torch doing the same in the child.
start       the whole process from nothing to the first token, against ``python -c "import numpy"``.

The weights are random, of published shapes (shapes.py), unless a model is given.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MinillmError
from ..tables import keys_as_headings, text_table
from ..threads import use_threads, variables
from ..transformer.evaluation import token_nll
from ..transformer.generation import generate
from ..transformer.model import Llama
from .shapes import SHAPES, write_made_up_tokenizer, write_random_model
from .turns import environment, in_turns, read_seconds, timed

SCORED = 512  # ids of the text that `perplexity` scores
ONE_TOKEN = [1]  # the prompt of `decode`: every pass then decodes one new token

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

    def __init__(self, folder: Path, count: int, threads: int, script: str = CHILD):
        self._process = subprocess.Popen(
            [sys.executable, "-c", script, str(folder), str(count), str(threads)],
            text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"} | variables(threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdin and self._process.stdout  # the pipes asked for
        self._to, self._from = self._process.stdin, self._process.stdout
        ready = self._from.readline().split()
        if not ready:
            raise MinillmError("the child process with transformers did not start, although both are installed")
        self.versions = f"torch {ready[1]}, transformers {ready[2]}"

    def seconds(self, what: str, ids: list[int]) -> float:
        """The child's own time for one round."""
        self._to.write(" ".join([what, *map(str, ids)]) + "\n")
        self._to.flush()
        return float(self._from.readline())

    def close(self) -> None:
        """End the process."""
        self._to.close()
        self._process.wait()


def weights_per_token(model: Llama) -> list[np.ndarray]:
    """The arrays that one decoded token must read, flat: every block's weights, the last norm and the head."""
    arrays = [a for layer in model.layers for a in vars(layer).values() if isinstance(a, np.ndarray)]
    return [a.ravel() for a in (*arrays, *model.ends[1:])]  # views: rows are contiguous


def bench(
    what: str, shape: str = "15M", source: str | Path | None = None, rounds: int = 7, threads: int = 1
) -> dict[str, Any]:
    """Measure ``what`` ("decode", "perplexity" or "start") in turns; gives medians and ratios with their spread.

    source: a model's folder instead of a random model of ``shape``. threads: of BLAS, here and in child processes.
    """
    with tempfile.TemporaryDirectory() as temporary, use_threads(threads):
        folder = Path(source) if source else write_random_model(Path(temporary), shape)
        result: dict[str, Any] = {"what": what, "model": Path(source).name if source else f"random {shape}"}
        result |= {"rounds": rounds, "environment": environment(threads)}
        if what == "start":
            if source:  # an error of the model is then one sentence here, and no traceback of a child process
                model = Llama.from_folder(folder)
                next(generate(model, ONE_TOKEN, 1)), model.tokenizer
            else:
                write_made_up_tokenizer(folder, SHAPES[shape].vocabulary)
            return result | {"rows": _start(folder, rounds, threads)}
        model = Llama.from_folder(folder)
        count = min(SHAPES[shape].new_tokens, max(1, model.config.max_position_embeddings - len(ONE_TOKEN)))
        child = Child(folder, count, threads) if find_spec("torch") and find_spec("transformers") else None
        if child:
            result["environment"]["transformers"] = child.versions
        try:
            if what == "perplexity":
                return result | {"rows": _perplexity(model, child, rounds)}
            megabytes = sum(a.nbytes for a in weights_per_token(model)) / 1e6
            about = {"new_tokens": count, "megabytes_per_token": megabytes}
            return result | {"rows": _decode(model, count, child, rounds)} | about
        finally:
            if child:
                child.close()


def _decode(model: Llama, count: int, child: Child | None, rounds: int) -> list[dict[str, Any]]:
    """Seconds per token of ``count`` new ones."""
    turns = {
        "minillm": lambda: timed(lambda: list(generate(model, ONE_TOKEN, count, stop_at_eos=False))) / count,
        "read probe": lambda: read_seconds(weights_per_token(model)),
    }
    if child:
        turns["transformers"] = lambda: child.seconds("decode", ONE_TOKEN) / count
    return in_turns(turns, rounds, "token")


def _perplexity(model: Llama, child: Child | None, rounds: int) -> list[dict[str, Any]]:
    """Seconds per text of SCORED random ids, or of as many as the model can read."""
    length = min(SCORED, model.config.max_position_embeddings)
    text = np.random.default_rng(1).integers(3, model.config.vocab_size, length).tolist()
    turns = {"minillm": lambda: timed(lambda: token_nll(model, text))}
    if child:
        turns["transformers"] = lambda: child.seconds("perplexity", text)
    return in_turns(turns, rounds, "text")


def _start(folder: Path, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Seconds of whole processes. Ours go from nothing to the first new token, from ids or from a text."""
    load = f"import minillm; m = minillm.load({str(folder)!r}); "
    programs = {
        "import numpy": "import numpy",
        "first token from ids": load + "m.folder = None; next(minillm.generate(m, [1, 5, 9, 13], 1))",  # no tokenizer
        "first token from text": load + "next(minillm.generate(m, m.tokenizer.encode('once upon'), 1))",
    }

    # An installed package has its bytecode; a machine that forbids writing it would compile every file every time.
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | variables(threads)

    def run(program: str) -> Callable[[], float]:
        return lambda: timed(lambda: subprocess.run([sys.executable, "-c", program], check=True, env=inherited))

    return in_turns({name: run(program) for name, program in programs.items()}, rounds, "process")


def model_text(result: dict[str, Any]) -> str:
    """A result of ``bench`` as text: a heading, the table of rows, and what the figures depend on."""
    lines = [f"{result['what']}, {result['model']}, {result['rounds']} rounds in turns"]
    if "megabytes_per_token" in result:
        ours, probe = result["rows"][:2]
        lines[0] += f", {result['new_tokens']} new tokens, {result['megabytes_per_token']:.1f} MB of weights per token"
        lines.append(
            f"{1e3 / ours['milliseconds']:.1f} tokens per second, {probe['ratio']:.2f} of what reading alone allows"
        )
    elif "tokens_per_second" in result:
        lines.append(f"{result['tokens_per_second']:,.0f} tokens per second: forward, backward and AdamW")
    rows = [row | {"spread": f"{row['ratio_low']:.2f} .. {row['ratio_high']:.2f}"} for row in result["rows"]]
    base = rows[0]["name"]
    columns = {"name": "", "milliseconds": ".2f", "per": "", "ratio": ".2f", "spread": ""}
    lines.append(text_table(rows, keys_as_headings(columns)))
    lines.append(f"ratio: time over that of {base} in the same round, median; spread: the middle half of the rounds")
    lines.append("; ".join(f"{key} {value}" for key, value in result["environment"].items()))
    return "\n".join(lines)
