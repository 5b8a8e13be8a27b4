"""The page's section on the prefetch buffer. The words are those of templates/buffer.html."""

from __future__ import annotations

from ..study.summary import (
    BUFFER_PREDICTORS,
    CAPACITIES,
    DEVICE,
    HALF,
    Study,
)
from .html import beside, bullets, commands, figure, table
from .page_shared import command, joined, under
from .results_buffer import bytes_by_capacity, gantt, hit_rate_by_capacity

RIVALS = {"LRU": "lru", "Belady": "belady", "random": "random"}
BUFFERED = {"capacity": ("capacity", "d"), "perplexity": ("perplexity", ".3f")}
BUFFERED |= under("hit rate", {"found": ("hit_rate", ".3f")} | {name: (key, ".3f") for name, key in RIVALS.items()})
BUFFERED |= under("kB per token", {"found": ("kB", ",.0f")} | {n: (f"{key} kB", ",.0f") for n, key in RIVALS.items()})
BUFFERED |= under("stall, ms", {"found": ("stall ms", ".3f")} | {n: (f"{key} ms", ".3f") for n, key in RIVALS.items()})
BUFFERED |= {"stall": ("stall", ".0%")}


def buffer_parts(s: Study) -> dict[str, str]:
    """Hits and bytes against capacity, one token's timeline, the table, and where prediction stops mattering."""
    where = f"Definition: {s.specs['buffer']}. Read: {s.texts[-1]['tokens']:,} tokens, context {s.dense['context']}."
    device = f"Simulated on the device {DEVICE!r} of prefetch/clock.py, not measured."
    said = (
        "A layer's neurons become known when the layer is reached, so it waits for all that is missing.",
        "A layer's neurons are guessed one layer before, so that fetching goes on behind the computing.",
    )
    timelines = [
        figure(
            gantt(bars), f"timeline-{n}", f"One token, {name}",
            f"What is computed (above) and fetched (below) for the last token read, layer by layer, with a buffer for "
            f"{HALF:.0%} of the neurons, LRU. {said[n]} {device} {where}",
        )
        for n, (name, bars) in enumerate(s.timelines.items())
    ]  # fmt: skip
    hits = "Requests that the buffer answers, by keeper (hot: neurons most often needed on the calibration text)."
    about = (
        "Keeper LRU; capacity: neurons kept per layer. LRU, Belady, random: these keepers on the same requests without "
        "any guess. Misses are waited for (exact) or dropped, which changes the output, so its perplexity is measured. "
        f"kB: fetched per token, as stored. {device}"
    )
    told = "{way}; known: {known}; misses: {misses}"
    rows = [row | {"told": told.format(**row).replace(" known: -;", "")} for row in s.ways]
    ways = ("--predictor", joined(BUFFER_PREDICTORS), "--capacity", joined(CAPACITIES), "-o", "buffer.csv")
    return {
        "figures": beside(
            figure(hit_rate_by_capacity(s.keepers), "hits", "Hit rate against capacity", f"{hits} {where}"),
            figure(
                bytes_by_capacity(s.keepers), "fetched", "Bytes against capacity",
                f"Fetched from slow memory per token, as stored, by keeper. {where}",
            ),
        ),
        "timelines": "\n".join(timelines),
        "ways": table(rows, BUFFERED, "What the buffer is worth, by how the neurons are known", about, within="told"),
        "matters": bullets([f"{sentence}." for sentence in s.matters]),
        "repeat": commands([
            command(s, "prefetch replay", "-o", "keepers.csv"),
            command(s, "prefetch table", *ways),
            command(s, "prefetch simulate", takes="context"),
        ]),
    }  # fmt: skip
