"""The model that train_default.py trains: made, computed fast, scored, written as a Hugging Face folder.

Two things make a step fast. The documents of a batch are concatenated without padding, and each attends only to its own
tokens (about 200), not to a whole row of 512. And where the processor multiplies bfloat16 natively, weights and
activations are rounded to bfloat16 for matrix products; they are stored in float32.
"""

import os
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from training_text import CONTEXT, VOCABULARY

import minillm
from minillm.training.fresh import SIZES


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
    """The model's logits (tokens, vocabulary) after each token but the last of each document, concatenated.

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


def loss_on(
    logits: torch.Tensor, targets: torch.Tensor, anchor: torch.Tensor | None = None, share: float = 0.0
) -> torch.Tensor:
    """Mean cross-entropy of the logits (tokens, vocabulary) in nats; ``targets`` (tokens,) are the ids that follow.

    With an anchor's logits, of the same shape, its probabilities are ``share`` of each target.
    """
    if anchor is not None:
        ids = targets[:, None]
        targets = anchor.softmax(-1).mul_(share)
        targets.scatter_add_(1, ids, torch.full_like(targets[:, :1], 1 - share))
    return torch.nn.functional.cross_entropy(logits, targets)


def bits_per_byte(folder: Path, documents: list[str]) -> float:
    """The exported model's score, computed by minillm with protocol documents."""
    return minillm.perplexity(minillm.load(folder), documents).bits_per_byte
