"""Commands that change weights: train learns a text, tune teaches a model to live with a cut of its FFN.

Both write a new Hugging Face folder. While they work, a checkpoint lies beside it: FOLDER.checkpoint.npz. The same
command goes on from there after an interruption, and removes the file at the end.
"""

from __future__ import annotations

import argparse
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import show
from . import flags
from .shared import check_new, learnt_and_held_out, load_model, say, wrapped

if TYPE_CHECKING:
    from ..sparsity.thresholds import Thresholds
    from ..training.trainer import Plan
    from ..transformer.ffn import FeedForward
    from ..transformer.model import Llama

CUT_TOKENS = 10_000  # of the training text: for the thresholds of the cut
COLUMNS = {"model": ("model", ""), "perplexity": ("perplexity", ".3f"), "neurons cut": ("neurons cut", ".3f")}


def add(commands: flags.Commands) -> None:
    """Add the commands of this file."""
    train = flags.command(
        commands, "train", command_train, *common("the text to learn"),
        example="minillm train --size twin --minutes 5 -o mine",
    )  # fmt: skip
    train.add_argument("--size", choices=("default", "twin"), help="from scratch, a new Llama of this size with the "
                       "tokenizer of --model (default: train --model further)")  # fmt: skip
    train.add_argument("--act", choices=("silu", "relu", "relu2", "gelu", "gelu_pytorch_tanh"), default="silu",
                       help="the activation of --size (default: silu)")  # fmt: skip
    cut = flags.flag("--sparsity", type=flags.share, default=0.5, help="share of what is cut (default: 0.5)")
    policy = flags.flag("--policy", choices=flags.POLICY_NAMES, default="mid", help="what to cut by (default: mid)")
    tune = flags.command(
        commands, "tune", command_tune, *common("the text to learn on"), policy, cut,
        example="minillm tune -m default-relu --sparsity 0.9 --minutes 2 -o tuned",
    )  # fmt: skip
    tune.add_argument("--by", choices=("tensor", "neuron", "reads"), default="neuron",
                      help="what --sparsity counts (default: neuron)")  # fmt: skip
    tune.add_argument("--block", type=flags.positive, metavar="G", help="cut blocks of G neurons, the best of each "
                      "token kept, in place of a policy; the neurons are put into an order for it")  # fmt: skip
    tune.add_argument("--teacher", metavar="MODEL", help="whose probabilities are learnt (default: --model, dense)")
    tune.add_argument("--straight", action="store_true", help="straight-through instead of masked gradients")


def common(about: str) -> tuple[flags.Parser, ...]:
    """The flags of both commands."""
    folder = flags.flag("--output", "-o", dest="folder", required=True, metavar="FOLDER", help="must not exist yet")
    end = flags.flag("--minutes", type=flags.above_zero, help="of training (default: 1, where there is no --steps)")
    steps = flags.flag("--steps", type=flags.positive, help="of training; a given number gives the same weights again")
    rate = flags.flag("--rate", type=flags.above_zero, default=1e-3, help="Adam's step size (default: 0.001)")
    schedule = flags.flag("--schedule", choices=("constant", "cosine"), default="constant",
                          help="of the rate (default: constant; cosine needs --steps)")  # fmt: skip
    batch = flags.flag("--batch", type=flags.positive, default=1024, help="tokens of a step (default: 1024)")
    text = flags.text(f"{about}; a tenth of its documents is held out and scored (default: the embedded texts)")
    own = folder, end, steps, rate, schedule, batch, flags.context()
    return (flags.model(), text, *own, flags.seed(), flags.running())


# ---- what both do ----------------------------------------------------------------------------------------------------


def plan_of(a: argparse.Namespace) -> Plan:
    """The plan of --steps, --minutes, --rate and --schedule."""
    from ..training.trainer import Plan

    minutes = 1.0 if a.minutes is None and a.steps is None else a.minutes
    return Plan(a.steps, minutes, a.rate, a.schedule)


def checkpoint_of(folder: str) -> Path:
    """The path of the checkpoint beside a folder. Raises MinillmError where the folder exists, or cannot be made."""
    path = check_new(folder)
    return path.with_name(f"{path.name}.checkpoint.npz")


def report(a: argparse.Namespace, rows: list[dict], tokens: float) -> None:
    """Print the rows of the result, and where it is."""
    from ..tables import json_rows, text_table

    if a.json:
        print(f'{{"folder": {json.dumps(show(a.folder))}, "tokens": {int(tokens)},\n"rows": {json_rows(rows)}}}')
        return
    print(text_table(rows, COLUMNS))
    print(wrapped(f"trained on {int(tokens):,} tokens; scored on documents that were held out -> {a.folder}"))


# ---- train -----------------------------------------------------------------------------------------------------------


def command_train(a: argparse.Namespace) -> int:
    """Train a model on a text, further or from scratch, and write it as a Hugging Face folder."""
    from ..loading.config import ModelConfig
    from ..training.batches import batches_of
    from ..training.fresh import fresh_fields, new_model
    from ..training.trainer import train
    from ..training.tune import save_trained
    from ..transformer.evaluation import perplexity

    checkpoint, plan, given = checkpoint_of(a.folder), plan_of(a), load_model(a)
    training, held = learnt_and_held_out(a.text, given, a.context)
    fields, model = None, given
    if a.size:
        fields = fresh_fields(a.size, a.act, given)
        model = new_model(ModelConfig.from_dict(fields), a.seed, given.folder)
        model.bos = given.bos
    batches = batches_of(model, training, a.batch, a.seed, a.context)
    trained = train(model, batches, plan, checkpoint=checkpoint)
    rows = [
        {"model": name, "perplexity": perplexity(each, held, context=a.context).perplexity}
        for name, each in (("before", model), ("trained", trained.model))
    ]
    save_trained(a.folder, trained, model.fingerprint, {"scores": rows}, fields=fields)
    with suppress(OSError):
        checkpoint.unlink()
    report(a, rows, trained.curve[-1]["tokens"])
    return 0


# ---- tune ------------------------------------------------------------------------------------------------------------


def the_cut(a: argparse.Namespace, model: Llama, training: list[str]) -> tuple[Llama, FeedForward, Thresholds | None]:
    """The model to tune, the FFN in its loop and its thresholds; for blocks the model in their order, and None."""
    from ..prefetch.reorder import BlockOracle
    from ..sparsity.calibrate import calibrate
    from ..sparsity.sparse import policy_ffn
    from ..training.tune import grouped
    from ..transformer.texts import first_tokens

    if a.block:
        say(f"neurons are put into an order for blocks of {a.block}")
        kept = 1 - a.sparsity
        return grouped(model, training, a.block, kept, a.seed), BlockOracle(a.block, kept).ffn(), None
    known = first_tokens(model, training, CUT_TOKENS, a.context)
    thresholds = calibrate(model, known, a.policy, a.sparsity, a.context, a.by)
    return model, policy_ffn(model, thresholds), thresholds


def command_tune(a: argparse.Namespace) -> int:
    """Train a model with a sparse FFN in the loop, from a dense teacher; write it as a Hugging Face folder."""
    import minillm

    from ..sparsity.sparse import policy_ffn
    from ..sparsity.spec import SparsityMeter
    from ..training.batches import batches_of
    from ..training.distill import distill
    from ..training.tune import save_trained
    from ..transformer.evaluation import perplexity
    from ..transformer.ffn import swiglu
    from .shared import with_bos

    checkpoint, plan, given = checkpoint_of(a.folder), plan_of(a), load_model(a)
    teacher = given if a.teacher is None else with_bos(a, minillm.load(a.teacher, dtype=a.dtype))
    training, held = learnt_and_held_out(a.text, given, a.context)
    model, ffn, thresholds = the_cut(a, given, training)
    batches = batches_of(model, training, a.batch, a.seed, a.context)
    trained = distill(model, batches, ffn, plan, teacher=teacher, straight=a.straight, checkpoint=checkpoint)
    after = ffn
    if thresholds is not None:
        thresholds = replace(thresholds, model=trained.model.fingerprint)
        after = policy_ffn(trained.model, thresholds)
    rows, meter = [], SparsityMeter()
    for name, each, cut in (
        ("dense", model, swiglu), ("cut", model, ffn), ("tuned, dense", trained.model, swiglu),
        ("tuned, cut", trained.model, after),
    ):  # fmt: skip
        meter = SparsityMeter()
        score = perplexity(each, held, context=a.context, ffn=cut, tap=meter).perplexity
        rows.append({"model": name, "perplexity": score, "neurons cut": meter.report().neuron_sparsity})
    about = {"block": a.block, "sparsity": a.sparsity, "teacher": teacher.name, "straight": a.straight, "scores": rows}
    if thresholds is not None:
        spec = replace(thresholds.spec, achieved=meter.report().achieved(thresholds.by))
        thresholds = replace(thresholds, spec=spec)
    save_trained(a.folder, trained, given.fingerprint, about, thresholds)
    with suppress(OSError):
        checkpoint.unlink()
    report(a, rows, trained.curve[-1]["tokens"])
    return 0
