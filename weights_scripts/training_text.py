"""The text that train_default.py trains on: documents, their tokenizer, and batches of their tokens.

The tokenizer is a byte-fallback BPE of 1,024 tokens, trained on the same documents. Pieces never cross a space. A space
is stored as a space, not as a special character that a text could contain. A character without a piece is written in
bytes. So decoding gives every Unicode text back exactly.
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm

import minillm
from minillm.transformer.texts import split_documents

PUBLISHED = "datasets/roneneldan/TinyStories/TinyStoriesV2-GPT4-train.txt"
CONTEXT, VOCABULARY = 512, 1024


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
    loaded, stories = minillm.load(teacher), []
    (bos,), ends = loaded.tokenizer.bos_ids, torch.tensor(loaded.config.eos_token_ids)
    with tqdm(total=documents, desc=f"sampling {loaded.name}", disable=None) as bar:
        while len(stories) < documents:
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
                    stories += [text for text in texts if text]
                    bar.update(len(texts))
                    rows = rows[~ended]
                    cache.batch_select_indices((~ended).nonzero()[:, 0])
    return stories[:documents]


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
    drawn = []
    while tokens > 0:
        document = documents[rng.integers(len(documents))][: min(CONTEXT, tokens) + 1]
        drawn.append(document)
        tokens -= len(document) - 1
    return drawn
