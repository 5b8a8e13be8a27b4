"""The command that spreads a model over server processes: a text goes through them, one lies, one is killed."""

from __future__ import annotations

import argparse
import json
import math
from typing import TYPE_CHECKING

from ..errors import MinillmError
from . import flags
from .shared import enough_documents, learnt_and_held_out, load_model, new_tokens, prompt_ids, wrapped

if TYPE_CHECKING:
    import numpy as np

    from ..methods.pipeline_chain import Chain
    from ..transformer.model import Llama

NEW = 40  # tokens
LIES = 0.3  # of the answers of the server that --liar names
MOST = 16  # servers
BASIS_TOKENS = 5_000  # of the calibration text, for --rank
COLUMNS = {
    "server": ("server", ""), "speed": ("gigaflops", "g"), "layers": ("layers", ""), "weight_bytes": ("weights", ","),
    "text_bytes": ("text", ","), "again_bytes": ("text again", ","), "checks": ("checks", ""),
    "wrong": ("wrong", ""), "trust": ("trust", ".2f"), "state": ("", ""),
}  # fmt: skip


def share_or_all(word: str) -> float:
    """A share from 0 to 1."""
    return 1.0 if word.strip() in ("1", "1.0") else flags.share(word)


def numbers(word: str) -> list[float]:
    """Numbers above 0, separated by commas."""
    return [flags.above_zero(part) for part in word.split(",")]


def add(commands: flags.Commands) -> None:
    """Add the command of this file."""
    fast = flags.flag("--speeds", type=numbers, default="1,1,2,1", metavar="NUMBERS",
                      help="gigaflops of each server, with commas; they decide who gets how many layers "
                      "(default: 1,1,2,1)")  # fmt: skip
    memory = flags.flag("--memory", type=numbers, metavar="NUMBERS",
                        help="megabytes of each server, with commas (default: enough for all layers)")  # fmt: skip
    liar = flags.flag("--liar", type=flags.positive, metavar="N",
                      help=f"server N gives wrong answers, a share of {LIES:g}")  # fmt: skip
    kill = flags.flag("--kill", type=flags.positive, metavar="N", help="server N is killed in the middle of the text")
    checked = flags.flag("--checked", type=share_or_all, default=0.5, metavar="SHARE",
                         help="share of the answers that are computed again (default: 0.5)")  # fmt: skip
    rank = flags.flag("--rank", type=flags.positive, metavar="K",
                      help="send hidden states as K numbers each, and score the loss (default: whole)")  # fmt: skip
    text = flags.text("with --rank: the text for the directions, of which a tenth is scored (default: embedded)")
    flags.command(
        commands, "pipeline", command_pipeline, flags.model(), flags.prompt(), flags.length(NEW), fast, memory, liar,
        kill, checked, rank, text, flags.context(), flags.seed("of which answers are checked (default: 0)"),
        flags.running(),
        example="minillm pipeline --liar 2 --kill 3",
    )  # fmt: skip


def command_pipeline(a: argparse.Namespace) -> int:
    """Spread the layers over server processes, and continue a text through them, with checks of their answers."""
    import numpy as np

    from ..methods.pipeline import Server, cut_places, excluded_within, layer_costs, partition
    from ..methods.pipeline_chain import Chain
    from ..tables import json_rows, text_table
    from ..transformer.generation import generate

    if len(a.speeds) > MOST:
        raise MinillmError(f"--speeds has {len(a.speeds)} servers, expected at most {MOST}: each is a process")
    if a.memory is not None and len(a.memory) != len(a.speeds):
        raise MinillmError(f"--memory has {len(a.memory)} numbers, expected {len(a.speeds)}, as many as --speeds")
    for name, number in (("--liar", a.liar), ("--kill", a.kill)):
        if number is not None and number > len(a.speeds):
            raise MinillmError(f"{name} is {number}, expected 1 to {len(a.speeds)}, the number of servers")
    room = a.memory or [math.inf] * len(a.speeds)
    servers = [
        Server(f"{number}", speed * 1e9, size * 1e6, lies=LIES if number == a.liar else 0.0)
        for number, (speed, size) in enumerate(zip(a.speeds, room, strict=True), start=1)
    ]
    model = load_model(a)
    ids = prompt_ids(model, a.prompt)
    count = new_tokens(a, model, ids, NEW)
    generate(model, ids, count)  # only its checks: nothing is generated before it is asked for a step
    costs: dict[str, float] = {}
    bases = None
    if a.rank is not None:
        plan = partition(servers, layer_costs(model), 2 * a.rank * model.dtype.itemsize)
        bases, costs = low_rank(a, model, cut_places(plan))
    chain = Chain(model, servers, len(ids) + count, checked=a.checked, bases=bases, rng=np.random.default_rng(a.seed))
    with chain:
        tokens, same = continued(chain, model, ids, count, a.kill)
        rows, expected = chain.rows(), chain.bytes_of_text([len(ids)] + [1] * (len(tokens) - 1))
    rows = [row | {"speed": speed} for row, speed in zip(rows, a.speeds, strict=True)]
    sent = sum(link.bytes["text"] for link in chain.links)
    within = int(np.searchsorted(excluded_within(1_000, LIES), 0.99)) + 1
    text = model.tokenizer.decode([*ids, *tokens])
    if a.json:
        facts = {
            "text": text, "tokens": len(tokens), "same_as_one_process": same, "text_bytes": sent,
            "text_bytes_by_formula": expected, "checked": a.checked, "rank": a.rank, **costs,
            "checks_until_99_percent": within,
        }  # fmt: skip
        print(f'{json.dumps(facts)[:-1]},\n"rows": {json_rows(rows)}}}')
        return 0
    print(wrapped(text) + "\n\n" + text_table(rows, COLUMNS) + "\n")
    print(wrapped(f"logits of {same} of {len(tokens)} tokens are those of one process, bit for bit"))
    print(wrapped(f"bytes on the sockets: {sent:,} for the text, {expected:,} by the formula"))
    print(wrapped(f"a server with {LIES:.0%} wrong answers is excluded within {within} checks in 99 of 100 cases"))
    if costs:
        low, whole = costs["perplexity"], costs["whole"]
        print(wrapped(f"hidden states sent as {a.rank} numbers: perplexity {low:.3f}, sent whole {whole:.3f}"))
    return 0


def continued(chain: Chain, model: Llama, ids: list[int], count: int, kill: int | None) -> tuple[list[int], int]:
    """The greedy continuation by a chain, and how many of its logits are those of one process, bit for bit.

    kill: the server (from 1 on) that is killed when half of the tokens are there.
    """
    import numpy as np

    from ..transformer.attention import KVCache

    cache, new = KVCache(model.config, chain.capacity, model.dtype), ids
    tokens: list[int] = []
    same = 0
    while len(tokens) < count:
        if kill is not None and len(tokens) == count // 2:
            chain.links[kill - 1].process.kill()
        logits = chain.forward(new)[-1]  # (V,)
        same += int(np.array_equal(logits, model.forward(new, cache)[-1]))
        tokens.append(int(logits.argmax()))
        new = tokens[-1:]
        if new[0] in model.config.eos_token_ids:
            break
    return tokens, same


def low_rank(
    a: argparse.Namespace, model: Llama, places: list[int]
) -> tuple[dict[int, np.ndarray], dict[str, float]]:  # fmt: skip
    """The bases of hidden states, and the perplexities of held-out documents with and without them."""
    from ..methods.pipeline import bases_of, low_rank_variant
    from ..transformer.evaluation import perplexity

    known, held = learnt_and_held_out(a.text, model, a.context)
    known = enough_documents([model], known, BASIS_TOKENS, a.context)
    bases = bases_of(model, known, places, a.rank, a.context)
    cut = low_rank_variant(model, bases, known)
    whole = perplexity(model, held, context=a.context).perplexity
    return bases, {"perplexity": perplexity(model, held, context=a.context, tap=cut.tap).perplexity, "whole": whole}
