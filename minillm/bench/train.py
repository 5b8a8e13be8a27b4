"""How fast a training step is, beside torch: ``minillm bench train``.

One step is forward, backward and AdamW over a batch of four texts of 256 random tokens, in float32. In turns with it:

    torch, text by text    transformers' model does the same passes, one for each text, and adds their gradients
    torch, texts joined    the four texts in one row, each attending to itself alone: one large pass, the fastest way

Torch runs in a child process, where torch and transformers are installed. Both sides start from the same weights.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..memory import keep_freed_memory
from ..threads import use_threads
from ..training.batches import Batches
from ..training.trainer import Plan, Trainer, trainable
from ..transformer.model import Llama
from .model import Child
from .turns import environment, in_turns, timed

TEXTS, TOKENS = 4, 256
RATE = 1e-5  # so small that the weights stay as good as they are

CHILD = r"""
import sys, time
folder, count, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
import torch, transformers
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(threads)

def within_texts(module, query, key, value, attention_mask, scaling, lengths, **_):
    parts = zip(*(states.split(lengths, dim=2) for states in (query, key, value)))
    mixed = [scaled_dot_product_attention(*part, is_causal=True, scale=scaling, enable_gqa=True) for part in parts]
    return torch.cat(mixed, dim=2).transpose(1, 2), None

transformers.AttentionInterface.register("within_texts", within_texts)

def loaded(**options):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.99), weight_decay=0.0)

models = {"passes": loaded(), "joined": loaded()}
models["joined"][0].set_attn_implementation("within_texts")
print("ready", torch.__version__, transformers.__version__, flush=True)
for line in sys.stdin:
    what, *ids = line.split()
    texts = torch.tensor([int(i) for i in ids]).view(count, -1)
    model, optimizer = models[what]
    start = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    if what == "joined":
        inputs, lengths = texts[:, :-1].reshape(1, -1), [texts.shape[1] - 1] * count
        logits = model(inputs, lengths=lengths, use_cache=False).logits[0]
        cross_entropy(logits, texts[:, 1:].reshape(-1)).backward()
    else:
        for text in texts:
            (cross_entropy(model(text[None, :-1], use_cache=False).logits[0], text[1:]) / count).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    print(time.perf_counter() - start, flush=True)
"""


def bench_train(source: str | Path, rounds: int = 7, threads: int = 1) -> dict[str, Any]:
    """Measure a training step of a model's folder in turns; a result as ``bench`` gives it, for ``model_text``."""
    folder = Path(source)
    model = Llama.from_folder(folder)
    length = min(TOKENS, model.config.max_position_embeddings)
    ids = np.random.default_rng(0).integers(3, model.config.vocab_size, (TEXTS, length + 1))
    keep_freed_memory()
    with use_threads(threads):
        trainer = Trainer(trainable(model), Batches([ids[0]], TEXTS * length), Plan(steps=1, rate=RATE, average=0))
        turns = {"minillm": lambda: timed(trainer.step)}
        about = environment(threads)
        child = Child(folder, TEXTS, threads, CHILD) if find_spec("torch") and find_spec("transformers") else None
        try:
            if child is not None:
                known, words = child, ids.ravel().tolist()
                about["transformers"] = child.versions
                turns["torch, text by text"] = lambda: known.seconds("passes", words)
                turns["torch, texts joined"] = lambda: known.seconds("joined", words)
            rows = in_turns(turns, rounds, "step")
        finally:
            if child is not None:
                child.close()
    return {"what": "train", "model": model.name, "rounds": rounds, "environment": about, "rows": rows,
            "tokens_per_second": TEXTS * length / rows[0]["milliseconds"] * 1e3}  # fmt: skip
