"""The command prefetch simulate: the events of a short generation in a small fast memory for neurons, one line each.

It follows one text through a buffer (prefetch/buffer.py) and then plays the counts on a device (prefetch/clock.py).
"""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import TYPE_CHECKING

from ..errors import MinillmError
from .shared import new_tokens, prompt_ids, wrapped, write_figure

if TYPE_CHECKING:
    from ..sparsity.thresholds import Thresholds
    from ..transformer.model import Llama


def prefetch_simulate(a: argparse.Namespace, model: Llama, thresholds: Thresholds) -> int:
    """Print the events of a short generation, one line each, and their cost on a device."""
    from ..predictors.select import sparse_ffn
    from ..prefetch.buffer import PrefetchBuffer
    from ..prefetch.clock import simulate, work_of
    from ..prefetch.record import Recorder
    from ..prefetch.traffic import EVENT_COLUMNS, event_rows
    from ..tables import text_table
    from ..transformer.generation import generate
    from ..transformer.model import shape_of

    ffn = sparse_ffn(model, thresholds)
    recorder, ids = Recorder.of(model), prompt_ids(model, a.prompt)
    steps = list(generate(model, ids, new_tokens(a, model, ids, 2), ffn=ffn, tap=recorder))
    layers, _, neurons = shape_of(model)
    if a.keeper not in ("lru", "lfu") and not a.keeper.startswith("window-"):
        raise MinillmError(f"--keeper {a.keeper!r} needs a text to choose from, expected lru, lfu or window-K")
    capacity = round((a.capacity or [0.5])[-1] * neurons)
    buffer = PrefetchBuffer(layers, neurons, capacity, a.keeper)
    buffer.follow(recorder.needed)
    buffer.run()
    traffic, rows = buffer.traffic(), event_rows(buffer.events)
    timeline = simulate(traffic, a.device, work_of(model))
    figures = traffic.figures(work_of(model).neuron_bytes) | timeline.figures()
    if a.figure:
        from ..show.results_buffer import gantt

        write_figure(a.figure, gantt(timeline.of_token(len(recorder.needed) - 1)))
    if a.json:
        print(json.dumps({"events": rows, "figures": figures, "capacity": capacity, "keeper": a.keeper}))
        return 0
    shown = [row | {"neurons": textwrap.shorten(row["neurons"], 60, placeholder=" ...")} for row in rows]
    print(text_table(shown, EVENT_COLUMNS))
    text = a.prompt + "".join(step.text for step in steps)
    print("\n" + wrapped(f"{len(recorder.needed)} tokens through {text!r}; {capacity} neurons per layer, {a.keeper}."))
    print("\n".join(f"{key:<24}{value:,.6g}" for key, value in figures.items()))
    return 0
