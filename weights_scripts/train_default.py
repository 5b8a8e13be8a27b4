"""Train a small Llama and write it as a Hugging Face folder, OUT/model, with OUT/log.json beside it.

    python weights_scripts/train_default.py OUT                      published TinyStories, from the hub
    python weights_scripts/train_default.py OUT --text TEXT ... --last STORIES

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

The tokenizer is a byte-fallback BPE of 1,024 tokens, trained on the same documents. Pieces never cross a space. A space
is stored as a space, not as a special character that a text could contain. A character without a piece is written in
bytes. So decoding gives every Unicode text back exactly.

The matrices of the blocks are trained with Muon (Jordan et al. 2024: momentum, made orthogonal), embedding and norms
with AdamW. The learning rate warms up, stays constant, and falls linearly to zero over the last 45 %. Batches are small
(4,096 tokens), because for a model of this size the number of steps matters more than the number of tokens. Every batch
depends only on the seed and the step. A checkpoint is written every two minutes; after an interruption the same command
continues from it and gives the same result.

Two things make a step fast. The documents of a batch are concatenated without padding, and each attends only to its own
tokens (about 200), not to a whole row of 512. And where the processor multiplies bfloat16 natively, weights and
activations are rounded to bfloat16 for matrix products; they are stored in float32.

Needs torch and transformers: pip install ".[parity]"
"""

import argparse
import hashlib
import json
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm

import minillm
from minillm.transformer.texts import SEPARATOR, split_documents

PUBLISHED = "datasets/roneneldan/TinyStories/TinyStoriesV2-GPT4-train.txt"
CONTEXT, VOCABULARY = 512, 1024
BATCH = 4096  # tokens of a step
SIZES = {
    "default": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 8}
    | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32},
    "twin": {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 6}
    | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
}
MUON_RATE, ADAM_RATE = 0.02, 4e-3
TOKENIZER_DOCUMENTS = 8000  # as many are enough for its statistics
CHECKPOINT_SECONDS = 120
FURTHER_RATE = 0.3  # of the learning rates, for a model that is trained further
ANCHOR_SHARE = 0.05  # of each target; with 0.15, sampled text drifts from its plots into the anchor's
LAST_SHARE = 1 / 8  # of a batch, at the end: 700 stories are seen four times; seen ten times, they are learnt by heart


# ---- the text --------------------------------------------------------------------------------------------------------


def published_stories(megabytes: int = 60, block: int = 1 << 22) -> list[str]:
    """The first stories of the published TinyStories (Eldan and Li 2023, arXiv 2305.07759), and no more."""
    from huggingface_hub import HfFileSystem

    read = bytearray()
    bar = tqdm(desc="downloading", unit="B", unit_scale=True, disable=None)
    with HfFileSystem().open(PUBLISHED, "rb", block_size=block) as file, bar:
        while len(read) < megabytes * 1_000_000 and (more := file.read(block)):
            read += more
            bar.update(len(more))
    return split_documents(read.decode("utf-8", errors="ignore"))[:-1]  # the last one may be cut


@torch.inference_mode()
def sample(teacher: Path, documents: int, seed: int, at_once: int = 128) -> list[str]:
    """Documents sampled from a trained model at temperature 1. Unfinished ones are left out."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32).eval()
    loaded, found = minillm.load(teacher), []
    (bos,), ends = loaded.tokenizer.bos_ids, torch.tensor(loaded.config.eos_token_ids)
    with tqdm(total=documents, desc=f"sampling {loaded.name}", disable=None) as bar:
        while len(found) < documents:
            rows, cache = torch.full((at_once, 1), bos), transformers.DynamicCache()
            while len(rows) and rows.shape[1] < loaded.config.max_position_embeddings:
                logits = model(rows[:, -1:], past_key_values=cache).logits[:, -1]
                rows = torch.cat([rows, torch.multinomial(torch.softmax(logits, -1), 1)], 1)
                ended = torch.isin(rows[:, -1], ends)
                if ended.any():  # a finished story leaves the batch, and with it its part of the cache
                    # TinyStories-656K has also learnt to spell the name of its end token before it gives it.
                    texts = [
                        loaded.tokenizer.decode(row).partition("<|")[0].strip() for row in rows[ended, 1:-1].tolist()
                    ]
                    found += [text for text in texts if text]
                    bar.update(len(texts))
                    rows = rows[~ended]
                    cache.batch_select_indices((~ended).nonzero()[:, 0])
    return found[:documents]


def train_tokenizer(documents: list[str]) -> Tokenizer:
    """A byte-fallback BPE of VOCABULARY tokens; decoding gives every text back exactly."""
    named_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[^\s]+|\s+(?!\S)|\s"), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special + named_bytes, limit_alphabet=90, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    # The bytes had to be special while training, to be given their places; from here on they are ordinary pieces.
    fields = json.loads(tokenizer.to_str())
    fields["added_tokens"] = fields["added_tokens"][: len(special)]
    tokenizer = Tokenizer.from_str(json.dumps(fields))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def encode(tokenizer: Tokenizer, documents: list[str]) -> list[np.ndarray]:
    """Each document as BOS, its ids, EOS; special tokens in a text are plain text."""
    tokenizer.encode_special_tokens = True
    encodings = tokenizer.encode_batch(documents, add_special_tokens=False)
    return [np.array([1, *encoding.ids, 2]) for encoding in encodings]


def batch(documents: list[np.ndarray], tokens: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Random documents, each cut at CONTEXT, until ``tokens`` are reached: each (length + 1,) ids."""
    found = []
    while tokens > 0:
        document = documents[rng.integers(len(documents))][: min(CONTEXT, tokens) + 1]
        found.append(document)
        tokens -= len(document) - 1
    return found


# ---- the model -------------------------------------------------------------------------------------------------------


def new_model(size: str, act: str, seed: int, init: Path | None = None) -> transformers.LlamaForCausalLM:
    """A Llama with transformers' standard initialisation, or the one of a folder."""
    if init:
        return transformers.AutoModelForCausalLM.from_pretrained(init, dtype=torch.float32)
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        hidden_act=act,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        **SIZES[size],
    )
    return transformers.LlamaForCausalLM(config)


def within_documents(module, query, key, value, attention_mask, scaling, lengths, **_):
    """Causal attention of concatenated documents of ``lengths`` tokens; each document attends only to itself.

    query is (1, heads, tokens, head_dim), key and value have fewer heads; gives (1, tokens, heads, head_dim), None.
    """
    parts = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    attend = torch.nn.functional.scaled_dot_product_attention
    mixed = [attend(q, k, v, is_causal=True, scale=scaling, enable_gqa=True) for q, k, v in parts]
    return torch.cat(mixed, dim=2).transpose(1, 2), None


transformers.AttentionInterface.register("within_documents", within_documents)


def bfloat16_product(linear: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """The layer's product of operands rounded to bfloat16, in float32; the gradients are computed in the same way."""
    return torch.nn.functional.linear(x.bfloat16(), linear.weight.bfloat16()).float()


def make_fast(model: transformers.LlamaForCausalLM, bfloat16: bool) -> None:
    """Set the model's attention to ``within_documents`` and its matrix products to ``bfloat16_product``, if wanted."""
    model.set_attn_implementation("within_documents")
    for module in model.modules():
        if bfloat16 and isinstance(module, torch.nn.Linear):
            module.forward = partial(bfloat16_product, module)


def logits_of(model: transformers.LlamaForCausalLM, documents: list[np.ndarray]) -> torch.Tensor:
    """The anchor's predictions (tokens, vocabulary) after each token but the last of each document, concatenated.

    Positions run on from one document to the next: RoPE turns queries and keys by their difference alone.
    """
    ids = torch.from_numpy(np.concatenate([document[:-1] for document in documents]))[None]
    return model(ids, lengths=[len(document) - 1 for document in documents], use_cache=False).logits[0]


def export(model: transformers.LlamaForCausalLM, tokenizer: Path, folder: Path) -> None:
    """Write the model as BF16 with its tokenizer; the model in training is not changed."""
    copy = transformers.LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(folder)
    os.chmod(folder / "model.safetensors", 0o644)  # the library writes files for their owner alone
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())


def rate_factor(step: int, steps: int) -> float:
    """Factor of the learning rates: warm-up, constant, then linear to zero over the last 45 %."""
    return min(1.0, (step + 1) / 60, (steps - step) / (0.45 * steps))


def bits_per_byte(folder: Path, documents: list[str]) -> float:
    """The exported model's score, computed by minillm with protocol documents."""
    return minillm.perplexity(minillm.load(folder), documents).bits_per_byte


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024): the step is the momentum, made nearly orthogonal.

    Differs from torch.optim.Muon: orthogonal in float32. That one computes in bfloat16, which a processor without such
    instructions does ten times slower; a step of the default model then waits longer for it than for all gradients.
    """

    def __init__(self, matrices, lr: float, momentum: float = 0.95, weight_decay: float = 0.02):
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @staticmethod
    def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
        """Roughly U V^T of a matrix U S V^T: five Newton-Schulz steps bring its singular values to 0.7 .. 1.2."""
        tall = matrix.shape[0] > matrix.shape[1]
        x = matrix.T if tall else matrix
        x = x / x.norm().clamp(min=1e-7)
        for _ in range(5):
            square = x @ x.T
            x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
        return x.T if tall else x

    @torch.no_grad()
    def step(self) -> None:
        """One step, with Nesterov's momentum; it is larger for matrices with more rows than columns."""
        for group in self.param_groups:
            for p in group["params"]:
                if p not in self.state:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                mean = self.state[p]["momentum_buffer"]
                mean.lerp_(p.grad, 1 - group["momentum"])
                ahead = p.grad.lerp(mean, group["momentum"])
                p.mul_(1 - group["lr"] * group["weight_decay"])
                scale = max(1.0, p.shape[0] / p.shape[1]) ** 0.5
                p.sub_(group["lr"] * scale * self.orthogonal(ahead))


def loss_on(
    logits: torch.Tensor, targets: torch.Tensor, anchor: torch.Tensor | None = None, share: float = 0.0
) -> torch.Tensor:
    """Mean cross-entropy of the logits (tokens, vocabulary) in nats, on the tokens that came, ``targets`` (tokens,).

    With an anchor's logits, of the same shape, its probabilities are ``share`` of each target.
    """
    if anchor is not None:
        came = targets[:, None]
        targets = anchor.softmax(-1).mul_(share)
        targets.scatter_add_(1, came, torch.full_like(targets[:, :1], 1 - share))
    return torch.nn.functional.cross_entropy(logits, targets)


def train(a: argparse.Namespace, texts: list[np.ndarray], last: list[list[np.ndarray]], valid: list[str]) -> list[dict]:
    """Train from the last checkpoint (or the start) to the end; gives the curve."""
    model, anchor = new_model(a.size, a.act, a.seed, a.init), None
    make_fast(model, a.bfloat16)
    if a.anchor:
        anchor = new_model(a.size, a.act, a.seed, a.anchor).requires_grad_(False)
        make_fast(anchor, a.bfloat16)
    in_blocks = {n: p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n}
    others = [p for n, p in model.named_parameters() if n not in in_blocks]
    optimizers = [
        Muon(in_blocks.values(), lr=MUON_RATE),
        torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    steps, first, curve, mean, began = int(a.tokens / BATCH), 0, [], None, time.time()
    checkpoint = a.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint)
        first, curve, mean, began = state["step"], state["curve"], state["mean"], began - state["seconds"]
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        print(f"continuing at step {first} of {steps}", flush=True)
    saved_at = time.time()
    for step in tqdm(range(first, steps), initial=first, total=steps, desc="training", unit="step", disable=None):
        rng = np.random.default_rng([a.seed, step])
        factor = rate_factor(step, steps)
        late = round(BATCH * a.last_share / len(last) * (1 - factor)) if last and step > steps / 2 else 0
        documents = batch(texts, BATCH - late * len(last), rng)
        documents += [document for file in last for document in batch(file, late, rng)]
        for optimizer, rate in zip(optimizers, (MUON_RATE, ADAM_RATE), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor * (FURTHER_RATE if a.init else 1)
        targets = torch.from_numpy(np.concatenate([document[1:] for document in documents]))
        held = logits_of(anchor, documents) if anchor else None
        loss = loss_on(logits_of(model, documents), targets, held, a.anchor_share)
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
        done = step + 1 == steps
        if step % 100 == 0 or done:
            minutes = round((time.time() - began) / 60, 1)
            point = {"step": step, "tokens": (step + 1) * BATCH, "minutes": minutes, "loss": round(mean, 4)}
            if valid and (step % 500 == 0 or done):
                export(model, a.out / "tokenizer.json", a.out / "model")
                point["bits_per_byte"] = round(bits_per_byte(a.out / "model", valid if done else valid[:40]), 4)
            curve.append(point)
            print(json.dumps(point), flush=True)
        if time.time() - saved_at > CHECKPOINT_SECONDS or done:
            state = {"step": step + 1, "curve": curve, "mean": mean, "seconds": time.time() - began}
            state["model"] = model.state_dict()
            state["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
            torch.save(state, checkpoint.with_suffix(".partial"))
            os.replace(checkpoint.with_suffix(".partial"), checkpoint)
            saved_at = time.time()
    export(model, a.out / "tokenizer.json", a.out / "model")
    return curve


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


def main() -> None:
    """Prepare the text, train the tokenizer, train the model, write the log."""
    a = parse()
    a.out.mkdir(parents=True, exist_ok=True)

    sampled = a.out / "sampled.txt"
    if a.teacher and not sampled.exists():
        drawn = [story for teacher in a.teacher for story in sample(teacher, a.stories, a.seed)]
        sampled.with_suffix(".partial").write_text(f"\n{SEPARATOR}\n".join(drawn) + "\n", encoding="utf-8")
        os.replace(sampled.with_suffix(".partial"), sampled)
    files = [*a.text, *([sampled] if a.teacher else [])]
    read = {file: split_documents(file.read_text(encoding="utf-8")) for file in (*files, *a.last, a.valid) if file}
    texts = [document for file in files for document in read[file]] if files else published_stories()
    last, valid = [read[file] for file in a.last], read.get(a.valid, [])
    if overlap := set(valid) & {*texts, *sum(last, [])}:
        raise SystemExit(f"{len(overlap)} documents of {a.valid} are in the training text, expected none")

    if a.init:
        a.tokenizer = a.init / "tokenizer.json"
    if a.tokenizer:
        (a.out / "tokenizer.json").write_bytes(a.tokenizer.read_bytes())
    elif not (a.out / "tokenizer.json").exists():
        real = last[0] if last else []
        train_tokenizer(texts[:TOKENIZER_DOCUMENTS] + real).save(str(a.out / "tokenizer.json"))
    if a.anchor and (a.anchor / "tokenizer.json").read_bytes() != (a.out / "tokenizer.json").read_bytes():
        raise SystemExit(f"{a.anchor / 'tokenizer.json'} differs from the model's tokenizer, expected the same")
    tokenizer = Tokenizer.from_file(str(a.out / "tokenizer.json"))
    encoded = {file: encode(tokenizer, documents) for file, documents in read.items() if file != a.valid}
    if not files:
        encoded[PUBLISHED] = encode(tokenizer, texts)
    ids = [document for file in files or [PUBLISHED] for document in encoded[file]]
    log = {
        "command": command_line(a),
        "seed": a.seed,
        "size": a.size,
        "act": a.act,
        "tokens": int(a.tokens),
        "data": [
            {"file": file.name, "documents": len(read[file]), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
            for file in read
            if file != a.valid
        ],
        "data_tokens": sum(len(document) for documents in encoded.values() for document in documents),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "threads": torch.get_num_threads(),
        "bfloat16": a.bfloat16,
    }
    if a.init:
        log["before"] = json.loads((a.init / "log.json").read_text(encoding="utf-8"))  # how the given model was made
    log["curve"] = train(a, ids, [encoded[file] for file in a.last], valid)
    (a.out / "log.json").write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
    (a.out / "model" / "log.json").write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
