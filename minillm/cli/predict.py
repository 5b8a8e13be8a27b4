"""Commands about predictors: predict train makes one and writes it, predict eval scores many beside the oracle.

predict sequence asks another question: what can one look at a prompt say of its whole continuation?
"""

from __future__ import annotations

import argparse
import json
import time

from ..errors import MinillmError, show
from ..predictors.catalogue import EVALUATED, HELP
from . import flags
from .shared import (
    enough_documents,
    given_thresholds,
    load_model,
    say,
    text_or_embedded,
    two_samples,
    two_texts,
    wrapped,
    write_figure,
)

CRITERIA = ("l2", "grad", "plainact", "taylor", "fisher", "weights")  # those of methods/shadowllm.py
COLUMNS = {
    "predictor": ("predictor", ""), "recall": ("recall", ".3f"), "precision": ("precision", ".3f"), "f1": ("F1", ".3f"),
    "iou": ("IoU", ".3f"), "selected": ("selected", ".3f"), "own_bytes": ("own bytes", ","),
    "own_share_float32": ("of float32", ".4f"), "own_share_stored": ("of stored", ".4f"), "reads": ("reads", ".3f"),
    "multiply_adds": ("multiply-adds", ",.0f"), "perplexity": ("perplexity", ".3f"), "increase": ("increase", "+.3f"),
    "over": ("over the oracle (95 %)", ""), "times_oracle": ("x oracle", ".2f"), "kl": ("KL", ".4f"),
}  # fmt: skip


SEQUENCE_COLUMNS = {
    "criterion": ("criterion", ""), "from": ("known from", ""), "spearman": ("Spearman", ".3f"),
    "dense": ("dense", ".3f"), "local": ("local", ".3f"), "global": ("global", ".3f"),
    "multiply_adds": ("multiply-adds", ","),
}  # fmt: skip


def add(commands: flags.Commands) -> None:
    """Add the command of this file, with its actions."""
    predict = flags.actions(commands, "predict", "Make predictors of the neurons that a token needs, and score them.")
    truth = flags.flag(
        "--thresholds", metavar="FILE", help="the truth: thresholds of policy mid (default: found for --sparsity)"
    )
    rank = flags.rank()
    train = flags.command(
        predict, "train", predict_train, flags.model(),
        flags.flag("--predictor", metavar="NAME", default="learned", help=f"{HELP} (default: learned)"), truth,
        flags.flag(
            "--sparsity", type=flags.share, default=0.5, help="1 - the selected share of the neurons (default: 0.5)"
        ),
        flags.tokens(f"{flags.DEMO_TOKENS:,}"), flags.context(), flags.seed(), rank,
        flags.output("the predictor's file (.safetensors)", required=True),
        flags.running(), example="minillm predict train --predictor shadow-4 -o shadow.safetensors",
    )  # fmt: skip
    learning = train.add_mutually_exclusive_group()
    learning.add_argument("--text", metavar="FILE", help="the text to learn from (default: the embedded one)")
    learning.add_argument("--calibration", metavar="FILE", help="the same as --text, as `predict eval` calls it")
    flags.command(
        predict, "eval", predict_eval, flags.model(),
        flags.text("the text to score (default: the embedded one)"),
        flags.flag(
            "--predictor", type=flags.names, metavar="NAMES", default=",".join(EVALUATED),
            help=f"comma-separated: files, or {HELP}; the oracle is always scored (default: {', '.join(EVALUATED)})",
        ),
        truth,
        flags.flag(
            "--sparsity", type=flags.shares, default="0.5",
            help="1 - the selected share of the neurons; several with commas (default: 0.5)",
        ),
        flags.protocol(), flags.context(), flags.seed(), rank,
        flags.output("rows as .csv or .json, after every row"), flags.figure(), flags.running(),
        flags.calibration("text to make predictors from (default: the first 40 %% of --text, or the embedded one)"),
        flags.tokens(f"{flags.DEMO_TOKENS:,}"), flags.calibration_tokens(f"{flags.DEMO_TOKENS:,}"),
        example="minillm predict eval --predictor static,shadow-4",
    )  # fmt: skip
    sequence = flags.command(
        predict, "sequence", predict_sequence, flags.model(),
        flags.text("the text whose sequences are asked for (default: the embedded one)"),
        flags.calibration("text to learn from (default: the first 40 %% of --text, or the embedded one)"),
        flags.flag("--sparsity", type=flags.share, default=0.5, help="share of the neurons left out (default: 0.5)"),
        flags.running(), example="minillm predict sequence --criteria l2,plainact",
    )  # fmt: skip
    sequence.add_argument("--criteria", type=flags.names, metavar="NAMES", default=",".join(CRITERIA),
                          help=f"what makes a neuron important: {', '.join(CRITERIA)} (default: all)")  # fmt: skip
    for name, value, about in (("--sequences", 500, "at most so many to learn from, and a fifth to ask for"),
                               ("--prompt-tokens", 32, "tokens of a prompt"),
                               ("--answer-tokens", 32, "tokens that follow it"),
                               ("--hidden", 64, "hidden units of the network")):  # fmt: skip
        sequence.add_argument(name, type=flags.positive, default=value, help=f"{about} (default: {value})")


def predict_sequence(a: argparse.Namespace) -> int:
    """ShadowLLM's question: can a prompt say once which neurons of all layers its continuation needs?"""
    from tqdm.auto import tqdm

    from ..methods.shadowllm import prompted, rows_of, verdict
    from ..tables import json_rows, text_table

    model = load_model(a)
    calibration, test = two_texts(a.text, a.calibration)
    texts = [prompted(model, text, a.prompt_tokens, a.answer_tokens) for text in (calibration, test)]
    training, asked = texts[0][: a.sequences], texts[1][: max(1, a.sequences // 5)]
    making = rows_of(model, training, asked, 1 - a.sparsity, a.criteria, a.hidden)
    rows = list(
        tqdm(making, desc="criteria", unit="row", total=5 * len(a.criteria), leave=False, delay=2, disable=None)
    )
    if a.json:
        print(f'{{"rows": {json_rows(rows)},\n"verdict": {json.dumps(verdict(rows))}}}')
        return 0
    print(text_table(rows, SEQUENCE_COLUMNS) + "\n")
    for sentence in verdict(rows):
        print(wrapped(f"{sentence}."))
    about = (
        f"{len(training)} training and {len(asked)} test sequences of {a.prompt_tokens} tokens and {a.answer_tokens} "
        f"that follow; {1 - a.sparsity:.0%} of the neurons are kept, the same for the whole sequence. Spearman: of the "
        "scores' ranks with those of the truth, over all neurons. Local, global: nats per token of the continuation, "
        "with the largest share of each layer kept, or of the model."
    )
    print("\n" + wrapped(about))
    return 0


def predict_train(a: argparse.Namespace) -> int:
    """Make one predictor on three quarters of a text, set its cutoffs on the rest, and write it to a file."""
    from ..predictors.cutoffs import fit_cutoffs
    from ..predictors.files import save_predictor
    from ..predictors.workshop import Workshop
    from ..sparsity.calibrate import calibrate
    from ..study.prediction import TRAINING_SHARE, ffn_bytes
    from ..transformer.texts import document_hashes, split_text

    if "," in a.predictor:
        raise MinillmError(f"--predictor {a.predictor}: predict train makes one predictor, expected one name")
    model, name, sparsity = load_model(a), a.predictor, a.sparsity
    text = text_or_embedded(a.text or a.calibration, "calibration")
    read = enough_documents([model], text, a.tokens or flags.DEMO_TOKENS, a.context)
    training, held = split_text(read, TRAINING_SHARE)
    thresholds = given_thresholds(a) or calibrate(model, held, "mid", sparsity, a.context, "neuron")
    started = time.perf_counter()
    predictor = Workshop(model, thresholds, training, held, a.context, a.rank, a.seed).make(name)
    fit_cutoffs(model, predictor, thresholds, held, 1 - sparsity, a.context)
    predictor.trained_on |= frozenset(document_hashes(read))  # of a book that was cut in two, its own hash
    save_predictor(a.output, predictor)
    say(f"{time.perf_counter() - started:.1f} s, seed {a.seed}")
    in_float32, as_stored = ffn_bytes(model)
    shares = {"own_share_float32": predictor.nbytes / in_float32, "own_share_stored": predictor.nbytes / as_stored}
    if a.json:
        about = {"predictor": predictor.name, "fraction": 1 - sparsity, "own_bytes": predictor.nbytes} | shares
        print(json.dumps(about | {"truth": thresholds.spec.asdict(), "file": show(a.output)}))
    else:
        in_words = (
            f"{predictor.name}: {predictor.nbytes:,} bytes, {shares['own_share_stored']:.4f} of the FFNs as stored "
            f"({shares['own_share_float32']:.4f} of them in float32); selects {1 - sparsity:.3f} -> {a.output}"
        )
        print(wrapped(in_words))
    return 0


def predict_eval(a: argparse.Namespace) -> int:
    """Score predictors at the same selected fraction; a row each, the oracle first."""
    from ..study.prediction import PredictionSettings, prediction_rows, verdict
    from ..tables import check_ending, json_rows, save_rows
    from ..transformer.texts import Sample

    if a.output:
        check_ending(a.output)
    if a.figure:
        from ..show.canvas import check_figure
        from ..show.results_predictors import cost_of_predictors

        check_figure(a.figure)
    model = load_model(a)
    calibration, test = two_samples(a, [model], flags.DEMO_TOKENS)
    rows: list[dict] = []
    thresholds, wanted = given_thresholds(a), a.predictor
    for sparsity in a.sparsity:
        settings = PredictionSettings(sparsity, thresholds, a.rank, a.seed)
        sample = Sample(test, a.protocol, a.context)
        for row in prediction_rows(model, calibration, sample, wanted, settings):
            rows.append(row)
            say(f"{row['predictor']} at {row['fraction']:.2f}: perplexity {row['perplexity']:.3f}")
            if a.output:
                save_rows(a.output, rows)
    if a.figure:
        write_figure(a.figure, cost_of_predictors(rows, rows[0]["dense"]))
    verdicts = {1 - s: verdict([row for row in rows if row["fraction"] == 1 - s]) for s in a.sparsity}
    if a.json:
        print(f'{{"rows": {json_rows(rows)},\n"verdict": {json.dumps({f"{f:g}": v for f, v in verdicts.items()})}}}')
    else:
        print_predictors(rows, verdicts)
    return 0


def print_predictors(rows: list[dict], verdicts: dict[float, list[str]]) -> None:
    """A table and its verdicts for each selected fraction, and what the columns mean."""
    from ..study.prediction import difference_in_words
    from ..tables import text_table

    shown = [row | {"over": difference_in_words(row, "over_oracle")} for row in rows]
    for fraction, sentences in verdicts.items():
        print(f"Dense perplexity {rows[0]['dense']:.3f}; {fraction:.0%} of the neurons selected:\n")
        print(text_table([row for row in shown if row["fraction"] == fraction], COLUMNS) + "\n")
        for sentence in sentences:
            print(wrapped(f"{sentence}."))
        print()
    about = (
        f"{rows[0]['tokens']:,} tokens, protocol {rows[0]['protocol']}, context {rows[0]['context']}, BOS "
        f"{rows[0]['bos']}. Truth: {rows[0]['truth']}. Metrics are pooled over tokens, then averaged over layers. Own "
        "bytes: the predictor's tables, and their share of the FFNs' bytes. Reads: bytes touched per token, tables "
        f"included, as a share of the FFNs' {rows[0]['dense_bytes']:,} bytes as stored; the oracle knows its mask "
        "without reading anything. Increase: perplexity over the dense model's. Over the oracle: difference of the "
        "perplexities, and its 95 % interval over documents. x oracle: the increase over the oracle's increase; a dash "
        "where the oracle's is not clearly above 0. KL: nats per token, from the dense model."
    )
    print(wrapped(about))
