"""The command prefetch simulate: a short generation through a small fast memory for neurons, and what happened in it.

It follows one text through a buffer (prefetch/buffer.py) and then plays the counts on a device (prefetch/clock.py).
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from ..errors import MinillmError
from . import flags
from .shared import (
    labelled,
    load_model,
    mid_thresholds,
    new_tokens,
    prompt_ids,
    text_or_embedded,
    wrapped,
    write_figure,
)

if TYPE_CHECKING:
    from ..prefetch.buffer import PrefetchBuffer
    from ..prefetch.record import Recorder
    from ..transformer.model import Llama

SHOWN_EVENTS = 48  # two screens
SIMULATED_TOKENS = 2  # generated


def add_simulate(prefetch: flags.Commands) -> None:
    """Add ``prefetch simulate``."""
    simulate = flags.command(
        prefetch, "simulate", prefetch_simulate, flags.model(), flags.prompt(), flags.length(SIMULATED_TOKENS),
        flags.mid_truth(), flags.context(), flags.device(),
        flags.figure("also draw the last token's time: a .png or .svg (needs matplotlib)"), flags.running(),
        example='minillm prefetch simulate --prompt "Once upon a time" --capacity 0.5',
    )  # fmt: skip
    simulate.add_argument(
        "--capacity", type=one_share, metavar="SHARE", default=0.5,
        help="size of the buffer, as a share of a layer's neurons (default: 0.5)",
    )  # fmt: skip
    simulate.add_argument("--keeper", default="lru", help="eviction policy lru, lfu or window-K (default: lru)")
    simulate.add_argument(
        "--events", type=how_many, metavar="N", default=SHOWN_EVENTS,
        help=f"print the first N events, or all (default: {SHOWN_EVENTS})",
    )  # fmt: skip
    known = simulate.add_mutually_exclusive_group()
    known.add_argument("--text", metavar="FILE", help="its first 40 %% give the thresholds (default: --calibration)")
    known.add_argument("--calibration", metavar="FILE", help="text for the thresholds (default: the embedded one)")


def one_share(word: str) -> float:
    """A share from 0 to 1."""
    values = flags.shares_to_all(word)
    with flags.expecting("one share", word):
        (value,) = values
    return value


def how_many(word: str) -> int | None:
    """A whole number, or None for all."""
    return None if word == "all" else flags.whole(word)


def prefetch_simulate(a: argparse.Namespace) -> int:
    """Follow a short generation through a buffer: what it cost on a device, and its events, one line each."""
    from ..prefetch.clock import simulate, work_of
    from ..prefetch.record import Recorder
    from ..prefetch.traffic import event_rows
    from ..study.buffers import stored_size

    if a.keeper not in ("lru", "lfu") and not a.keeper.startswith("window-"):
        raise MinillmError(f"--keeper {a.keeper!r} needs a text to choose from, expected lru, lfu or window-K")
    if a.figure:
        from ..show.canvas import check_figure

        check_figure(a.figure)
    model = load_model(a)
    recorder = Recorder.of(model)
    continuation = generated(a, model, recorder)
    buffer = buffer_of(a, model)
    buffer.follow(recorder.needed)
    buffer.run()
    work, traffic, rows = work_of(model, stored_size(model)), buffer.traffic(), event_rows(buffer.events)
    timeline = simulate(traffic, a.device, work)
    figures = traffic.figures(work.neuron_bytes) | timeline.figures()
    if a.figure:
        from ..show.results_buffer import gantt

        write_figure(a.figure, gantt(timeline.of_token(len(recorder.needed) - 1)))
    if a.json:
        about = {"capacity": buffer.capacity, "keeper": a.keeper, "neuron_bytes": work.neuron_bytes}
        print(json.dumps({"events": rows, "figures": figures} | about))
        return 0
    dense = buffer.layers * buffer.neurons * work.neuron_bytes
    text = f"{len(recorder.needed)} tokens of {a.prompt!r} + {continuation!r}"
    kept = f"{buffer.capacity:,} of {buffer.neurons:,} neurons per layer kept ({a.keeper})"
    print(wrapped(f"{text}; {kept}; {a.device}, simulated.") + "\n")
    print_figures(figures, dense)
    print_events(rows, a.events)
    return 0


def generated(a: argparse.Namespace, model: Llama, recorder: Recorder) -> str:
    """Continue the prompt with the FFNs cut by policy mid; the recorder sees which neurons were needed."""
    from ..predictors.select import sparse_ffn
    from ..transformer.generation import generate
    from ..transformer.texts import as_documents, default_context, first_tokens, split_text

    context = a.context or default_context(model)
    ids, known = prompt_ids(model, a.prompt), []
    if not a.thresholds:
        text = text_or_embedded(a.text or a.calibration, "calibration")
        documents = split_text(text)[0] if a.text else as_documents(text)
        known = first_tokens(model, documents, flags.DEMO_CALIBRATION, context)
    ffn = sparse_ffn(model, mid_thresholds(a, model, known, context))
    count = new_tokens(a, model, ids, SIMULATED_TOKENS)
    return "".join(step.text for step in generate(model, ids, count, ffn=ffn, tap=recorder))


def buffer_of(a: argparse.Namespace, model: Llama) -> PrefetchBuffer:
    """The buffer of --capacity and --keeper."""
    from ..prefetch.buffer import PrefetchBuffer
    from ..transformer.model import shape_of

    layers, _, neurons = shape_of(model)
    return PrefetchBuffer(layers, neurons, round(a.capacity * neurons), a.keeper)


# ---- printing --------------------------------------------------------------------------------------------------------


def print_figures(figures: dict[str, float], dense: int) -> None:
    """The summary: hits, bytes as the checkpoint stores them, and time; the dense model's bytes beside them."""
    from ..units import in_bytes, in_seconds

    fetched = figures["bytes_per_token"]
    lines = {
        "hit rate": f"{figures['hit_rate']:.3f} of the needed neurons had been kept since an earlier token",
        "fetched": f"{in_bytes(fetched)} per token, as stored; {fetched / dense:.1%} of the {in_bytes(dense)} of all "
        "FFN weights, which a dense model without a buffer fetches",
        "time": f"{in_seconds(figures['seconds_per_token'])} per token",
        "stall": f"{figures['stall_share']:.1%} of the time: waiting for what is fetched",
        "fetching": f"{figures['fetch_share']:.1%} of the time",
    }
    print(labelled(lines))


def print_events(rows: list[dict], count: int | None) -> None:
    """The first events as a table, and how many more there are; None: all of them."""
    from ..prefetch.traffic import EVENT_COLUMNS, short
    from ..tables import text_table

    shown = [row | {"neurons": short(row["neurons"])} for row in (rows if count is None else rows[:count])]
    if shown:
        print("\n" + text_table(shown, EVENT_COLUMNS))
    if len(shown) < len(rows):
        print("\n" + wrapped(f"{len(shown)} of {len(rows):,} events; --events all prints all of them."))
