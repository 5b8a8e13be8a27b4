"""Three small tokenizers, trained here, as the fields of a tokenizer.json: one of each kind that models have."""

import json

from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = ["Once upon a time there was a little cat, and the cat sat on the mat. The end!", "Zoë ate 猫 and 😀."] * 20
BOS = [("<s>", 1)]


def byte_level() -> dict:
    """As GPT-2, Llama 3 and Qwen have it: every byte is a character of a private alphabet."""
    raw = RawTokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    ))  # fmt: skip
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=BOS)
    return json.loads(raw.to_str())


def byte_fallback() -> dict:
    """As Llama 1, 2 and Mistral have it: ▁ for a space, one in front of the text, and a token for each byte."""
    trained = RawTokenizer(models.BPE(unk_token="<unk>"))
    prepare = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.normalizer = prepare
    trained.train_from_iterator(CORPUS[::2], trainers.BpeTrainer(vocab_size=90, show_progress=False))
    learnt = json.loads(trained.to_str())["model"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learnt["vocab"]]
    vocab, merges = {name: index for index, name in enumerate(names)}, [tuple(m) for m in learnt["merges"]]
    raw = RawTokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.normalizer = prepare
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    raw.decoder = decoders.Sequence(back)
    raw.add_special_tokens(names[:3])
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=BOS)
    return json.loads(raw.to_str())


def words() -> dict:
    """Plain pieces without bytes: a Metaspace Unigram model, as T5 has it; what it does not know is <unk>."""
    raw = RawTokenizer(models.Unigram())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    raw.train_from_iterator(CORPUS, trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "<s>"], unk_token="<unk>", show_progress=False
    ))  # fmt: skip
    return json.loads(raw.to_str())


FILES = {"byte_level": byte_level(), "byte_fallback": byte_fallback(), "words": words()}
