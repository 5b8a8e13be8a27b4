"""Write the cards of the embedded models.

    python weights_scripts/write_model_card.py VALID

This script measures every figure of minillm/data/*/README.md. VALID is TinyStories' validation text (documents that end
at lines "<|endoftext|>"); none of the models was trained on it. A test measures the default model again and compares.
"""

import argparse
import json
from pathlib import Path

import minillm
from minillm.loading.config import ModelConfig
from minillm.loading.embedded import embedded_model, embedded_models
from minillm.study.natural import natural_sparsity
from minillm.study.sweep import sweep
from minillm.transformer.model import Llama
from minillm.transformer.texts import as_documents, first_tokens

TEXT = """# {name}

{what} It comes with minillm so that everything runs without a download. It is small enough to
follow step by step, and it is trained, so its activations are those of a language model and not noise.

| | |
|---|---|
| architecture | Llama: RMSNorm, RoPE, grouped queries, gated FFN ({act}), tied head |
| layers | {layers}, hidden {hidden}, intermediate {intermediate} |
| heads | {heads} query and {kv} key/value heads of {head} |
| vocabulary, context | {vocabulary}, {context} |
| weights | {weights:,}, stored as BF16; all files {kilobytes:,} kB |
| training text | {data} |
| trained on | {trained}; seed {seed}, torch {torch}, {threads} CPU thread{plural} |
| tokenizer | byte-fallback BPE, trained on the same text; decoding gives every Unicode text back exactly |

## Figures

Protocol documents, context {context}, BOS {bos}.

| text | bits per byte | perplexity | tokens |
|---|---|---|---|
{scores}

What cutting half of the neurons costs (thresholds from the embedded calibration text, scored on the same part of
the test text):

| policy | neuron sparsity | FFN weights read: mask computed / known | perplexity | vs dense |
|---|---|---|---|---|
{cuts}

Natural sparsity without any cut, on the same part of the test text (per cent of the root mean square of the token's own
gates):

| layer | gate exactly 0 | gate below 1 % | gate below 10 % |
|---|---|---|---|
{natural}

## Where it comes from

It was trained by `weights_scripts/train_default.py`, with

{commands}

`log.json` holds the data's checksums and the loss curve. The real stories are from TinyStories (Eldan and Li 2023,
arXiv 2305.07759; CDLA-Sharing-1.0). `stories260K-samples.txt` and `sampled.txt` were sampled from stories260K (MIT) and
TinyStories-656K (Apache-2.0), two models that were themselves trained on TinyStories.{written}
The weights are under the project's MIT licence.

## What it is not for

It writes simple stories in English, with a child's vocabulary, and {habit}.
It has no knowledge of the world, follows no instructions and was trained on no other language. Its
tolerance to sparsity says nothing about larger models.
"""
WRITTEN = """ `stories.txt`,
`introduced.txt` and `described.txt` were written by the project's `write_stories.py` (the latter two with `--opening`)
from its `training_grammar.txt`, which shares no plot with the embedded texts. `part-N` is the model of the Nth
command."""
RECITES = """often repeats the plots of its training text
with other names and other things. With greedy decoding, or with `--temperature 0.6 --top-p 0.9`, nearly every story
that begins like one of these plots is coherent. With another beginning ("A boy named Tim found a box."), or with more
random sampling, it is often not coherent"""


def training_parts(log: dict) -> list[dict]:
    """The logs of all parts of a training, the first part first; a model may have been trained further."""
    parts = [log]
    while "before" in parts[0]:
        parts = [parts[0]["before"], *parts]
    return parts


def origin_fields(name: str, config: ModelConfig, parts: list[dict]) -> dict[str, object]:
    """The card's fields about the model's purpose and its training."""
    recites = any(data["file"] == "stories.txt" for part in parts for data in part["data"])
    what = "The default model of minillm."
    if name != "default":
        what = (
            f"A small model, one of four that differ only in the activation function; this one has {config.hidden_act}."
        )
    log = parts[-1]
    return {
        "name": f"minillm {name}",
        "what": what,
        "written": WRITTEN if recites else "",
        "habit": RECITES if recites else "its stories are often not coherent",
        "data": "; then ".join(
            ", ".join(f"{data['documents']:,} documents ({data['file']})" for data in part["data"]) for part in parts
        ),
        "commands": "\n".join(f"    {part['command']}" for part in parts),
        "trained": "; then ".join(
            f"{part['curve'][-1]['tokens']:,} tokens, drawn from {part['data_tokens']:,}" for part in parts
        ),
        "seed": log["seed"],
        "threads": log["threads"],
        "plural": "s" * (log["threads"] > 1),
        "torch": log["versions"]["torch"],
    }


def size_fields(model: Llama, folder: Path) -> dict[str, object]:
    """The card's fields about the architecture and the size of the files."""
    config = model.config
    return {
        "act": config.hidden_act,
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "intermediate": config.intermediate_size,
        "heads": config.num_attention_heads,
        "kv": config.num_key_value_heads,
        "head": config.head_dim,
        "vocabulary": config.vocab_size,
        "context": config.max_position_embeddings,
        "weights": sum(model.parameters.values()),
        "kilobytes": round(sum(f.stat().st_size for f in folder.iterdir() if f.name != "README.md") / 1000),
    }


def measured_fields(model: Llama, valid: list[str]) -> dict[str, object]:
    """The card's three tables, measured now: perplexity, the cost of cutting half of the neurons, natural sparsity."""
    test = first_tokens(model, as_documents(minillm.embedded_text("test")), 20_000)
    whole = sum(len(model.tokenizer.encode(text, bos=False)) for text in as_documents(minillm.embedded_text("test")))
    texts = {"TinyStories, validation": valid, f"embedded test text, the first stories of its {whole:,} tokens": test}
    scores = {text: minillm.perplexity(model, documents, context=512) for text, documents in texts.items()}
    calibration = minillm.embedded_text("calibration")
    cuts = sweep(model, calibration, test, ("dhar", "cats", "mid"), (0.5,), "neuron", "documents", 512)
    return {
        "bos": next(iter(scores.values())).bos,
        "scores": "\n".join(
            f"| {text} | {score.bits_per_byte:.4f} | {score.perplexity:.2f} | {score.tokens:,} |"
            for text, score in scores.items()
        ),
        "cuts": "\n".join(
            f"| {row['policy']} | {row['neuron_sparsity']:.3f} "
            f"| {row['read_exact']:.2f} / {row['read_known_mask']:.2f} "
            f"| {row['perplexity']:.2f} | {row['vs_dense'] - 1:+.1%} |"
            for row in cuts
        ),
        "natural": "\n".join(
            f"| {row['layer']} | {row['gate_zeros']:.3f} | {row['gate_below_1_percent']:.3f} "
            f"| {row['gate_below_10_percent']:.3f} |"
            for row in natural_sparsity(model, test)
        ),
    }


def card(name: str, valid: list[str]) -> str:
    """The card of one embedded model."""
    folder, model = embedded_model(name), minillm.load(name)
    log = json.loads((folder / "log.json").read_text(encoding="utf-8"))
    fields = origin_fields(name, model.config, training_parts(log))
    return TEXT.format(**fields, **size_fields(model, folder), **measured_fields(model, valid))


def main() -> None:
    """Write every card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("valid", type=Path)
    valid = as_documents(parser.parse_args().valid.read_text(encoding="utf-8"))
    for name in embedded_models():
        (embedded_model(name) / "README.md").write_text(card(name, valid), encoding="utf-8")
        print(name)


if __name__ == "__main__":
    main()
