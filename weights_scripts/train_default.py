"""Train a small Llama and write it as a Hugging Face folder, OUT/model, with OUT/log.json beside it.

    python weights_scripts/train_default.py OUT                      published TinyStories, from the hub
    python weights_scripts/train_default.py OUT --text TEXT --last STORIES

The training text consists of the documents of ``--text`` (they end at lines "<|endoftext|>") and of ``--last``. While
the learning rate falls, more and more documents of ``--last`` are mixed in, up to ``--last-share`` of a batch, with an
equal part from each file. This is the place for a small set of real stories: earlier in the training the model would
memorise them. ``--teacher DIR ...`` first samples more documents from trained models, at temperature 1. ``--valid`` is
scored from time to time and never trained on. ``--init DIR`` trains an existing model further, with its tokenizer and
at a lower learning rate.

The default model is trained in two parts. The first part uses stories sampled from the teachers, and ends with real
stories. But the teachers' stories are not coherent, and a model that was trained on them alone is not coherent either.
So most of the second part's text are stories that write_stories.py made. These alone would be harmful: a model that has
seen the same plots many times is far too confident where a text continues in another way, and in such a text every cut
of the FFN seems to improve it. So the teachers' text stays among the documents, and there is an anchor, ``--anchor
DIR``: the target is not only the next token. A part of it, ``--anchor-share``, is the probabilities of that model, here
the model of the first part (as in Learning without Forgetting, Li and Hoiem 2016, arXiv 1606.09282).

Batches are small (4,096 tokens), because for a model of this size the number of steps matters more than the number of
tokens. Every batch depends only on the seed and the step. A checkpoint is written every two minutes; after an
interruption the same command continues from it and gives the same result.

Three modules beside this script hold its parts: training_text.py (documents, tokenizer, batches), training_model.py
(the model, and what makes it fast) and training_optimizers.py (Muon, and the learning rate at each step).

It stays with torch, though minillm has a backward pass of its own: 48 million tokens are needed. NumPy trains about
4,000 tokens of this model in a second on one core, which is torch's speed there (``minillm bench train``). That would
take three hours for each run of an experiment, and the optimiser of the matrices (Muon) and products in bfloat16 would
be missing.

Needs torch and transformers: pip install ".[parity]"
"""

import argparse
import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer
from tqdm import tqdm
from training_model import SIZES, bits_per_byte, export, logits_of, loss_on, make_fast, new_model
from training_optimizers import Optimizers, make_optimizers, rate_factor, set_rates, update
from training_text import PUBLISHED, batch, encode, published_stories, sample, train_tokenizer

from minillm.errors import MinillmError
from minillm.files import whole_file
from minillm.transformer.texts import SEPARATOR, split_documents

BATCH = 4096  # tokens of a step
TOKENIZER_DOCUMENTS = 8000  # as many are enough for its statistics
CHECKPOINT_SECONDS = 120
ANCHOR_SHARE = 0.05  # of each target; with 0.15, sampled text drifts from its plots into the anchor's
LAST_SHARE = 1 / 8  # of a batch, at the end: 700 stories are seen four times; seen ten times, they are learnt by heart


@dataclass
class Progress:
    """How far a run has come; a checkpoint holds it beside the model and the optimizers."""

    step: int = 0  # steps done
    curve: list[dict] = field(default_factory=list)  # the points for the log
    mean: float | None = None  # running mean of the loss
    seconds: float = 0.0  # time used, before an interruption too


def load_checkpoint(path: Path, model: torch.nn.Module, optimizers: Optimizers) -> Progress:
    """Set model and optimizers to their state in the checkpoint."""
    state = torch.load(path)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return Progress(state["step"], state["curve"], state["mean"], state["seconds"])


def save_checkpoint(path: Path, model: torch.nn.Module, optimizers: Optimizers, progress: Progress) -> None:
    """Write a checkpoint, complete or not at all."""
    state = vars(progress) | {"model": model.state_dict()}
    state["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
    with whole_file(path, MinillmError) as beside:
        torch.save(state, beside)


def draw_documents(
    a: argparse.Namespace, texts: list[np.ndarray], last: list[list[np.ndarray]], step: int, factor: float
) -> list[np.ndarray]:
    """The documents of one step: BATCH tokens. While the rate falls (``factor``), those of ``last`` are mixed in."""
    rng = np.random.default_rng([a.seed, step])
    falling = step > int(a.tokens / BATCH) / 2
    late = round(BATCH * a.last_share / len(last) * (1 - factor)) if last and falling else 0
    documents = batch(texts, BATCH - late * len(last), rng)
    return documents + [document for file in last for document in batch(file, late, rng)]


def loss_of(
    model: torch.nn.Module, anchor: torch.nn.Module | None, documents: list[np.ndarray], share: float
) -> torch.Tensor:
    """The loss of a step, in nats per token; an anchor's probabilities are ``share`` of each target."""
    targets = torch.from_numpy(np.concatenate([document[1:] for document in documents]))
    held = logits_of(anchor, documents) if anchor else None
    return loss_on(logits_of(model, documents), targets, held, share)


def train(a: argparse.Namespace, texts: list[np.ndarray], last: list[list[np.ndarray]], valid: list[str]) -> list[dict]:
    """Train from the last checkpoint (or the start) to the end; gives the curve."""
    model, anchor = new_model(a.size, a.act, a.seed, a.init), None
    make_fast(model, a.bfloat16)
    if a.anchor:
        anchor = new_model(a.size, a.act, a.seed, a.anchor).requires_grad_(False)
        make_fast(anchor, a.bfloat16)
    optimizers = make_optimizers(model)
    steps, progress, began, checkpoint = int(a.tokens / BATCH), Progress(), time.time(), a.out / "checkpoint.pt"
    if checkpoint.exists():
        progress = load_checkpoint(checkpoint, model, optimizers)
        began -= progress.seconds
        print(f"continuing at step {progress.step} of {steps}", flush=True)
    first, saved_at = progress.step, time.time()
    for step in tqdm(range(first, steps), initial=first, total=steps, desc="training", unit="step", disable=None):
        factor = rate_factor(step, steps)
        set_rates(optimizers, factor, further=bool(a.init))
        loss = loss_of(model, anchor, draw_documents(a, texts, last, step, factor), a.anchor_share)
        model.zero_grad(set_to_none=True)
        loss.backward()
        update(optimizers)
        progress.step = step + 1
        progress.mean = loss.item() if progress.mean is None else 0.98 * progress.mean + 0.02 * loss.item()
        done = progress.step == steps
        if step % 100 == 0 or done:
            minutes = round((time.time() - began) / 60, 1)
            point = {"step": step, "tokens": (step + 1) * BATCH, "minutes": minutes, "loss": round(progress.mean, 4)}
            if valid and (step % 500 == 0 or done):
                export(model, a.out / "tokenizer.json", a.out / "model")
                point["bits_per_byte"] = round(bits_per_byte(a.out / "model", valid if done else valid[:40]), 4)
            progress.curve.append(point)
            print(json.dumps(point), flush=True)
        if time.time() - saved_at > CHECKPOINT_SECONDS or done:
            progress.seconds = time.time() - began
            save_checkpoint(checkpoint, model, optimizers, progress)
            saved_at = time.time()
    export(model, a.out / "tokenizer.json", a.out / "model")
    return progress.curve


def command_line(a: argparse.Namespace) -> str:
    """The arguments that determine the result; files and folders by name, without their path."""
    words = [f"--size {a.size} --act {a.act} --tokens {int(a.tokens)} --seed {a.seed}"]
    words += ["--text " + " ".join(path.name for path in a.text)] if a.text else []
    words += ["--teacher " + " ".join(path.name for path in a.teacher) + f" --stories {a.stories}"] if a.teacher else []
    words += ["--last " + " ".join(path.name for path in a.last)] if a.last else []
    words += [
        f"--{kind} {path.name}"
        for kind, path in (("init", a.init), ("anchor", a.anchor), ("tokenizer", a.tokenizer))
        if path
    ]
    words += [f"--last-share {a.last_share:g}"] if a.last_share != LAST_SHARE else []
    words += [f"--anchor-share {a.anchor_share:g}"] if a.anchor and a.anchor_share != ANCHOR_SHARE else []
    return " ".join(words)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", type=Path, nargs="+", default=[], help="default: the published TinyStories")
    parser.add_argument("--last", type=Path, nargs="+", default=[], help="for the last part, best real stories")
    parser.add_argument("--last-share", type=float, default=LAST_SHARE, help="share of --last in the last batches")
    parser.add_argument("--valid", type=Path, help="documents to score from time to time, never trained on")
    parser.add_argument("--teacher", type=Path, nargs="+", default=[], help="model folders to sample documents from")
    parser.add_argument("--stories", type=int, default=24_000, help="documents to sample from each teacher")
    parser.add_argument("--init", type=Path, help="train the model of this folder further, with its tokenizer")
    parser.add_argument("--anchor", type=Path, help="a model whose probabilities are part of every target")
    parser.add_argument("--anchor-share", type=float, default=ANCHOR_SHARE, help="the anchor's share of a target")
    parser.add_argument("--tokenizer", type=Path, help="use this tokenizer.json")
    parser.add_argument("--size", choices=SIZES, default="default")
    parser.add_argument("--act", choices=("silu", "relu", "relu2", "gelu", "gelu_pytorch_tanh"), default="silu")
    parser.add_argument("--tokens", type=float, default=24e6)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args(arguments)
    a.bfloat16 = torch.cpu.get_capabilities().get("avx512_bf16", False)  # elsewhere such products would be slower
    return a


def sampled_stories(a: argparse.Namespace) -> Path:
    """The file of documents sampled from the teachers; it is written once."""
    path = a.out / "sampled.txt"
    if not path.exists():
        drawn = [story for teacher in a.teacher for story in sample(teacher, a.stories, a.seed)]
        with whole_file(path, MinillmError) as beside:
            beside.write_text(f"\n{SEPARATOR}\n".join(drawn) + "\n", encoding="utf-8")
    return path


def prepare_tokenizer(a: argparse.Namespace, texts: list[str], real: list[str]) -> Tokenizer:
    """The tokenizer of the run, OUT/tokenizer.json: the given one, or one trained on the texts and the real stories."""
    path = a.out / "tokenizer.json"
    if a.tokenizer:
        path.write_bytes(a.tokenizer.read_bytes())
    elif not path.exists():
        train_tokenizer(texts[:TOKENIZER_DOCUMENTS] + real).save(str(path))
    if a.anchor and (a.anchor / "tokenizer.json").read_bytes() != path.read_bytes():
        raise SystemExit(f"{a.anchor / 'tokenizer.json'} differs from the model's tokenizer, expected the same")
    return Tokenizer.from_file(str(path))


def log_of(a: argparse.Namespace, documents: dict[Path, list[str]], data_tokens: int) -> dict:
    """The log but for its curve: what determines the result. ``documents``: those of each file that is trained on."""
    log = {
        "command": command_line(a),
        "seed": a.seed,
        "size": a.size,
        "act": a.act,
        "tokens": int(a.tokens),
        "data": [
            {"file": file.name, "documents": len(texts), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
            for file, texts in documents.items()
        ],
        "data_tokens": data_tokens,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "threads": torch.get_num_threads(),
        "bfloat16": a.bfloat16,
    }
    if a.init:
        log["before"] = json.loads((a.init / "log.json").read_text(encoding="utf-8"))  # how the given model was made
    return log


def main() -> None:
    """Prepare the text, train the tokenizer, train the model, write the log."""
    a = parse()
    a.out.mkdir(parents=True, exist_ok=True)
    if a.init:
        a.tokenizer = a.init / "tokenizer.json"

    files = [*a.text, *([sampled_stories(a)] if a.teacher else [])]
    read = {file: split_documents(file.read_text(encoding="utf-8")) for file in (*files, *a.last, a.valid) if file}
    texts = [document for file in files for document in read[file]] if files else published_stories()
    last, valid = [read[file] for file in a.last], read.get(a.valid, [])
    if overlap := set(valid) & {*texts, *sum(last, [])}:
        raise SystemExit(f"{len(overlap)} documents of {a.valid} are in the training text, expected none")

    tokenizer = prepare_tokenizer(a, texts, last[0] if last else [])
    trained_on = {file: documents for file, documents in read.items() if file != a.valid}
    encoded = {file: encode(tokenizer, documents) for file, documents in trained_on.items()}
    if not files:
        encoded[PUBLISHED] = encode(tokenizer, texts)
    ids = [document for source in files or [PUBLISHED] for document in encoded[source]]
    data_tokens = sum(len(document) for documents in encoded.values() for document in documents)
    log = log_of(a, trained_on, data_tokens)
    log["curve"] = train(a, ids, [encoded[file] for file in a.last], valid)
    for folder in (a.out, a.out / "model"):
        (folder / "log.json").write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
