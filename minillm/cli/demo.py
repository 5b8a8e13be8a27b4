"""TODO."""

import argparse
import json
import time

from .flags import (
    DEMO_CALIBRATION,
    DEMO_POLICIES,
    DEMO_PREDICTION,
    DEMO_TOKENS,
    load_model,
    new_tokens,
    prompt_ids,
    say,
    two_texts,
    wrapped,
)

DEMO_PREDICTORS = ("chance", "static", "previous-token", "shadow-4")
DEMO_BUFFER = 400  # replayed through a buffer
DEMO_DEVICE = "laptop NVMe"
SHARES = (0.3, 0.5, 0.7)
CUT_COLUMNS = {
    "policy": ("policy", ""), "target": ("target", ""), "neuron_sparsity": ("neurons cut", ".3f"),
    "read_exact": ("read", ".3f"), "read_known_mask": ("known", ".3f"), "perplexity": ("perplexity", ".3f"),
    "vs_dense": ("vs dense", ".3f"), "bits_per_byte": ("bits/byte", ".4f"),
}  # fmt: skip
PREDICTED_COLUMNS = {
    "predictor": ("predictor", ""), "recall": ("recall", ".3f"), "selected": ("selected", ".3f"),
    "own_share_stored": ("own", ".3f"), "reads": ("read", ".3f"), "perplexity": ("perplexity", ".3f"),
    "vs_dense": ("vs dense", ".3f"), "times_oracle": ("x oracle", ".2f"),
}  # fmt: skip
BUFFER_COLUMNS = {
    "way": ("who knows", ""), "unbuffered": ("unbuffered", ",.0f"), "kB": ("kB", ",.0f"),
    "belady kB": ("belady", ",.0f"), "random kB": ("random", ",.0f"), "hit_rate": ("hit rate", ".3f"),
    "stall": ("stall", ".1%"), "stall ms": ("stall ms", ".2f"),
}  # fmt: skip


def command_demo(a: argparse.Namespace) -> int:
    """What the model is, one prompt continued dense and cut, and what the cuts cost."""
    from tqdm.auto import tqdm

    from ..predictors.select import sparse_ffn
    from ..sparsity.calibrate import calibrate
    from ..sparsity.magnitudes import collect
    from ..sparsity.policies import policy_named
    from ..sparsity.spec import in_words
    from ..study.buffers import Way, buffer_rows, way_of
    from ..study.describe import PART_COLUMNS, describe, headline
    from ..study.prediction import prediction_rows
    from ..study.score import row, score_cut
    from ..tables import text_table
    from ..transformer.evaluation import perplexity
    from ..transformer.generation import generate
    from ..transformer.texts import as_documents, default_context, first_tokens

    started = time.perf_counter()
    model = load_model(a)
    ids = prompt_ids(model, a.prompt)
    count = new_tokens(a, model, ids, 40)
    generate(model, ids, count)  # computes nothing yet, but refuses a prompt that is too long
    calibration, test = map(as_documents, two_texts(a.text))
    context = a.context or default_context(model)
    calibration = first_tokens(model, calibration, DEMO_CALIBRATION, context)
    test = first_tokens(model, test, DEMO_TOKENS, context)
    parts = describe(model)
    if not a.json:
        print(wrapped(headline(model)) + "\n")
        print(text_table(parts, PART_COLUMNS))
        about = "continued greedily by the dense model, then with half of the neurons cut by each policy:"
        print("\n" + wrapped(f"The prompt {a.prompt!r}, {about}") + "\n", flush=True)

    magnitudes = collect(model, calibration, context=context)

    def cut(policy: str, sparsity: float, by: str):
        return calibrate(model, calibration, policy, sparsity, context, by, magnitudes=magnitudes)

    half = {policy: cut(policy, 0.5, "neuron") for policy in DEMO_POLICIES}
    continuations = {}
    for policy in ("dense", *DEMO_POLICIES):
        ffn = {"ffn": sparse_ffn(model, half[policy])} if policy != "dense" else {}
        continuations[policy] = "".join(step.text for step in generate(model, ids, count, **ffn))
        if not a.json:
            print(wrapped(" ".join(continuations[policy].split()) or "(nothing)", f"  {policy:<7}"), flush=True)

    if not a.json:
        about = "at equal shares of neurons, then the paper's rule (dhar) at its own percentages of each tensor:"
        print("\n" + wrapped(f"What the cuts cost, {about}") + "\n", flush=True)
    plan = [(policy, share, "neuron") for share in SHARES for policy in DEMO_POLICIES]
    plan += [("dhar", share, "tensor") for share in (0.3, 0.5)]
    dense = perplexity(model, test, "documents", context)
    rows = [row(model, dense, dense)]
    for policy, sparsity, by in tqdm(plan, desc="policies", leave=False, delay=2, disable=None):
        thresholds = half[policy] if (sparsity, by) == (0.5, "neuron") else cut(policy, sparsity, by)
        rows.append(score_cut(model, test, thresholds, dense))
    few = first_tokens(model, test, DEMO_PREDICTION, context)
    making = tqdm(total=1 + len(DEMO_PREDICTORS), desc="predictors", leave=False, delay=2, disable=None)
    predicted, made = [], {}
    known = model, calibration, few, DEMO_PREDICTORS, 0.5, half["mid"]
    for line in prediction_rows(*known, context=context, made=made):
        predicted.append(line)
        making.update()
    making.close()
    ways = [Way(), way_of(made[DEMO_PREDICTORS[-1]])]
    fewer = first_tokens(model, test, DEMO_BUFFER, context)
    buffered = list(buffer_rows(model, half["mid"], fewer, ways, shares=(0, 0.25), device=DEMO_DEVICE, context=context))
    seconds = time.perf_counter() - started
    if a.json:
        result = {"model": headline(model), "parts": parts, "prompt": a.prompt, "continuations": continuations}
        result |= {"rows": rows, "predictors": predicted, "buffer": buffered, "seconds": seconds}
        print(json.dumps(result, indent=1))
        return 0
    shown = [line | {"target": line["by"] and f"{line['by']} {line['target']:.0%}"} for line in rows]
    print(text_table(shown, CUT_COLUMNS) + "\n")
    print(
        wrapped(
            f"Scored: {rows[0]['tokens']:,} tokens"
            + ("" if rows[0]["tokens"] >= DEMO_TOKENS else f" (the text holds no more; {DEMO_TOKENS:,} are better)")
            + f", protocol documents, context {context}, BOS {rows[0]['bos']}. "
            f"Thresholds from {len(calibration)} {'other ' if a.text else ''}document{'s'[: len(calibration) > 1]} of "
            + ("the same file." if a.text else "the embedded calibration text.")
        )
    )
    rules = [policy_named(policy) for policy in DEMO_POLICIES]
    kept = [f"{rule.name} {in_words(rule.tensors, rule.comparison)} ({rule.source})" for rule in rules]
    print(wrapped(f"What each policy keeps: {'; '.join(kept)}."))
    print(
        wrapped(
            "Neurons cut: share of (token, neuron) pairs. Read: share of the FFN's weights that a token reads when the "
            "policy computes its own mask; known: when the mask is known beforehand."
        )
    )
    about = "Who can know beforehand? Half of the neurons, selected by each before the layer is read:"
    print("\n" + wrapped(about) + "\n")
    shown = [line | {"vs_dense": line["perplexity"] / line["dense"]} for line in predicted]
    print(text_table(shown, PREDICTED_COLUMNS) + "\n")
    print(
        wrapped(
            f"Scored: {predicted[0]['tokens']:,} tokens, dense {predicted[0]['dense']:.3f}. Recall: of the neurons "
            "that matter most (the mask of mid), those that were selected; who misses nearly as many as chance leaves "
            "little of the model, and its perplexity shows it. Own: bytes of the predictor's tables; read: what a "
            "token touches, tables included; both as shares of the FFN's bytes as stored. The oracle has no tables "
            "and reads nothing to know. x oracle: the increase of perplexity over that of the oracle. More: minillm "
            "predict eval."
        )
    )
    print_buffer(buffered)
    say(f"{seconds:.1f} s")
    return 0


def print_buffer(rows: list[dict]) -> None:
    """The demo's last table: kB per token without and with a small buffer, for each way to know the neurons."""
    from ..tables import text_table

    kept = f"the {rows[1]['capacity']} last used neurons of a layer"
    about = f"What is then fetched from slow memory, by need, without a buffer and with one that keeps {kept}:"
    print("\n" + wrapped(about) + "\n")
    names = {"all neurons": "dense", "mask of mid": "oracle"}
    shown = [
        line | {"way": names.get(line["way"], line["way"]), "unbuffered": without["kB"]}
        for without, line in zip(rows[::2], rows[1::2], strict=True)
    ]
    print(text_table(shown, BUFFER_COLUMNS) + "\n")
    print(
        wrapped(
            f"kB: FFN weights fetched per token, as stored (mean of {rows[0]['tokens']:,}); belady, random: had the "
            "buffer kept what is best, knowing the future, or a fixed random set. Stall: waiting for what is fetched, "
            f"on a simulated {rows[0]['device']}. More: minillm prefetch table."
        )
    )
