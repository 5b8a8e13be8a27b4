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
from typing import TYPE_CHECKING, NamedTuple

from ..errors import MinillmError, show
from . import flags
from .shared import check_new, learnt_and_held_out, load_model, say, wrapped

if TYPE_CHECKING:
    from ..training.batches import Batches
    from ..training.trainer import Plan, Trained
    from ..training.tune import Settings
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
    tune.add_argument(
        "--router",
        type=flags.whole,
        default=64,
        metavar="R",
        help="hidden units of the router that "
        "chooses the blocks of --block and learns with the model; 0: an oracle chooses (default: 64)",
    )
    tune.add_argument("--inputs", type=inputs, metavar="all|N:M", help="in place of a policy, cut the inputs of all "
                      "seven matrices (Q-Sparse): of all inputs, or of each M successive ones, --sparsity")  # fmt: skip
    tune.add_argument("--no-control", action="store_true", help="leave out the control, a dense model that is trained "
                      "further for the same time")  # fmt: skip
    tune.add_argument("--teacher", metavar="MODEL", help="whose probabilities are learnt (default: --model, dense)")
    tune.add_argument("--straight", action="store_true", help="straight-through instead of masked gradients")


def inputs(word: str) -> str:
    """--inputs: all, or N:M."""
    with flags.expecting("all or N:M, such as 16:32", word):
        if word != "all":
            kept, of = (flags.positive(part) for part in word.split(":"))
            return f"{kept}:{of}"
    return word


def common(about: str) -> tuple[flags.Parser, ...]:
    """The flags of both commands."""
    folder = flags.flag("--output", "-o", dest="folder", required=True, metavar="FOLDER", help="must not exist yet")
    end = flags.flag("--minutes", type=flags.above_zero, help="of training (default: 1, where there is no --steps)")
    steps = flags.flag("--steps", type=flags.positive, help="of training; a given number gives the same weights again")
    rate = flags.flag("--rate", type=flags.above_zero, help="Adam's step size (default: 0.001; from scratch 0.003)")
    schedule = flags.flag("--schedule", choices=("constant", "cosine"), default="constant",
                          help="of the rate (default: constant; cosine needs --steps)")  # fmt: skip
    batch = flags.flag("--batch", type=flags.positive, default=1024, help="tokens of a step (default: 1024)")
    text = flags.text(f"{about}; a tenth of its documents is held out and scored (default: the embedded texts)")
    held = flags.flag("--held-out", metavar="FILE", help="score this text, all of it, and learn all of --text")
    own = held, folder, end, steps, rate, schedule, batch, flags.context()
    return (flags.model(), text, *own, flags.seed(), flags.running())


# ---- what both do ----------------------------------------------------------------------------------------------------


def plan_of(a: argparse.Namespace) -> Plan:
    """The plan of --steps, --minutes, --rate and --schedule."""
    from ..training.fresh import RATE
    from ..training.trainer import Plan

    minutes = 1.0 if a.minutes is None and a.steps is None else a.minutes
    rate = a.rate or (RATE if getattr(a, "size", None) else Plan.rate)
    return Plan(a.steps, minutes, rate, a.schedule)


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
    training, held = learnt_and_held_out(a.text, given, a.context, a.held_out)
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


class Tuning(NamedTuple):
    """What a tuning begins with: the models, the documents to train on and others to score, the batches, the plan."""

    given: Llama
    teacher: Llama
    training: list[str]
    held: list[str]
    batches: Batches
    plan: Plan
    checkpoint: Path


class Tuned(NamedTuple):
    """What it ends with: the model, the rows of the table, and the FFN's settings for the folder."""

    trained: Trained
    rows: list[dict]
    settings: Settings


def scored(a: argparse.Namespace, name: str, model: Llama, ffn: FeedForward, held: list[str]) -> dict:
    """The row of a model with an FFN."""
    from ..sparsity.spec import SparsityMeter
    from ..transformer.evaluation import perplexity

    meter = SparsityMeter()
    score = perplexity(model, held, context=a.context, ffn=ffn, tap=meter).perplexity
    return {"model": name, "perplexity": score, "neurons cut": meter.report().neuron_sparsity}


def tune_policy(a: argparse.Namespace, t: Tuning) -> Tuned:
    """A policy in the loop, at thresholds that are found before and stay."""
    from ..sparsity.calibrate import calibrate
    from ..sparsity.sparse import policy_ffn
    from ..training.distill import distill
    from ..training.tune import Settings
    from ..transformer.ffn import swiglu
    from ..transformer.texts import first_tokens

    known = first_tokens(t.given, t.training, CUT_TOKENS, a.context)
    thresholds = calibrate(t.given, known, a.policy, a.sparsity, a.context, a.by)
    ffn = policy_ffn(t.given, thresholds)
    trained = distill(t.given, t.batches, ffn, t.plan, teacher=t.teacher, straight=a.straight, checkpoint=t.checkpoint)
    thresholds = replace(thresholds, model=trained.model.fingerprint)
    rows = [
        scored(a, "dense", t.given, swiglu, t.held), scored(a, "cut", t.given, ffn, t.held),
        scored(a, "tuned, dense", trained.model, swiglu, t.held),
        scored(a, "tuned, cut", trained.model, policy_ffn(trained.model, thresholds), t.held),
    ]  # fmt: skip
    if thresholds.by == "neuron":
        thresholds = replace(thresholds, spec=replace(thresholds.spec, achieved=rows[-1]["neurons cut"]))
    return Tuned(trained, rows, Settings(thresholds))


def tune_blocks(a: argparse.Namespace, t: Tuning) -> Tuned:
    """Blocks in the loop, chosen by a router that learns with the model; with --router 0 by an oracle, a bound."""
    from ..predictors.router import Router
    from ..prefetch.reorder import BlockOracle, kept_count
    from ..sparsity.calibrate import calibrate
    from ..training.distill import distill
    from ..training.route import distill_routed, routed_ffn
    from ..training.tune import Settings, grouped
    from ..transformer.ffn import swiglu
    from ..transformer.model import shape_of
    from ..transformer.texts import first_tokens

    say(f"neurons are put into an order for blocks of {a.block}")
    share, known = 1 - a.sparsity, first_tokens(t.given, t.training, CUT_TOKENS, a.context)
    model, oracle = grouped(t.given, t.training, a.block, share, a.seed), BlockOracle(a.block, share).ffn()
    rows = [scored(a, "dense", t.given, swiglu, t.held), scored(a, "cut, oracle", model, oracle, t.held)]
    if not a.router:
        trained = distill(model, t.batches, oracle, t.plan, teacher=t.teacher, straight=a.straight,
                          checkpoint=t.checkpoint)  # fmt: skip
        rows += [
            scored(a, "tuned, dense", trained.model, swiglu, t.held),
            scored(a, "tuned, oracle", trained.model, oracle, t.held),
        ]
        return Tuned(trained, rows, Settings())
    kept = kept_count(-(-shape_of(model)[2] // a.block), share)
    router = Router.fit(model, t.training, a.block, kept, a.router, a.seed, a.context)
    rows.append(scored(a, "cut, router", model, routed_ffn(router), t.held))
    trained, router = distill_routed(model, t.batches, router, t.plan, teacher=t.teacher, straight=a.straight,
                                     checkpoint=t.checkpoint)  # fmt: skip
    rows += [
        scored(a, "tuned, dense", trained.model, swiglu, t.held),
        scored(a, "tuned, oracle", trained.model, oracle, t.held),
        scored(a, "tuned, router", trained.model, routed_ffn(router), t.held),
    ]
    truth = calibrate(trained.model, known, "mid", a.sparsity, a.context, "neuron")
    return Tuned(trained, rows, Settings(truth, router))


def tune_inputs(a: argparse.Namespace, t: Tuning) -> Tuned:
    """The largest inputs of all seven matrices in the loop (methods/qsparse.py); the text is learnt, not a teacher."""
    from ..methods import qsparse
    from ..training.trainer import train
    from ..training.tune import Settings
    from ..transformer.evaluation import perplexity
    from ..transformer.ffn import swiglu

    if a.block or a.teacher:
        raise MinillmError(f"--inputs and --{'block' if a.block else 'teacher'} were both given, expected one of them")
    kept, _, of = a.inputs.partition(":")
    pattern = (int(kept), int(of)) if of else None
    cut = qsparse.fit(t.given, t.training, a.sparsity, pattern=pattern)
    groups = qsparse.groups_of(t.given, a.sparsity, pattern)
    trained = train(t.given, t.batches, t.plan, qsparse.sparse_language(groups, a.straight), t.checkpoint)
    rows = [
        {
            "model": name,
            "perplexity": perplexity(model, t.held, context=a.context, tap=cut.tap).perplexity,
            "neurons cut": cut.removed,  # a token's inputs of down that are cut
        }
        for name, model in (("cut", t.given), ("tuned, cut", trained.model))
    ]
    dense, tuned = scored(a, "dense", t.given, swiglu, t.held), scored(a, "tuned, dense", trained.model, swiglu, t.held)
    return Tuned(trained, [dense, rows[0], tuned, rows[1]], Settings())


def control(a: argparse.Namespace, t: Tuning) -> list[dict]:
    """The row of the dense model, trained further on the same text for the same time: what training alone changes."""
    from ..training.trainer import train
    from ..transformer.ffn import swiglu

    if a.no_control:
        return []
    say("the control: the dense model, trained further on the same text")
    checkpoint = t.checkpoint.with_name(f"{t.checkpoint.name.removesuffix('.npz')}-control.npz")
    further = train(t.given, t.batches, t.plan, checkpoint=checkpoint)
    row = scored(a, "dense, trained", further.model, swiglu, t.held)
    with suppress(OSError):
        checkpoint.unlink()
    return [row]


def command_tune(a: argparse.Namespace) -> int:
    """Train a model with a sparse FFN in the loop, from a dense teacher; write it as a Hugging Face folder."""
    import minillm

    from ..training.batches import batches_of
    from ..training.tune import ROUTER, THRESHOLDS, save_trained
    from .shared import with_bos

    checkpoint, plan, given = checkpoint_of(a.folder), plan_of(a), load_model(a)
    teacher = given if a.teacher is None else with_bos(a, minillm.load(a.teacher, dtype=a.dtype))
    training, held = learnt_and_held_out(a.text, given, a.context, a.held_out)
    batches = batches_of(given, training, a.batch, a.seed, a.context)
    t = Tuning(given, teacher, training, held, batches, plan, checkpoint)
    trained, rows, settings = (tune_inputs if a.inputs else tune_blocks if a.block else tune_policy)(a, t)
    rows[1:1] = control(a, t)
    about = {"block": a.block, "sparsity": a.sparsity, "teacher": teacher.name, "straight": a.straight, "scores": rows}
    about |= {"router": a.router if a.block else None, "inputs": a.inputs}
    save_trained(a.folder, trained, given.fingerprint, about, settings)
    with suppress(OSError):
        checkpoint.unlink()
    report(a, rows, trained.curve[-1]["tokens"])
    if settings.thresholds and not a.json:
        more = f" --predictor {a.folder}/{ROUTER}" if settings.router else ""
        print(wrapped(f"to run it: minillm perplexity -m {a.folder} --thresholds {a.folder}/{THRESHOLDS}{more}"))
    return 0
