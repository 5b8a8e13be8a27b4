"""The page's section on the prefetch buffer. The words are those of templates/buffer.html."""

from __future__ import annotations

from ..study.costs import HALF
from ..study.summary import BUFFER_PREDICTORS, CAPACITIES, DEVICE, Study
from .html import beside, bullets, commands, figure, table
from .page_shared import joined, repeat_command, tokens_of, under
from .results_buffer import bytes_by_capacity, gantt, hit_rate_by_capacity

RIVALS = {"lru": "LRU", "belady": "Belady", "random": "random"}
BUFFERED = {"capacity": ("capacity", "d"), "perplexity": ("perplexity", ".3f")}
BUFFERED |= under("hit rate", {"hit_rate": ("this row", ".3f")} | {key: (name, ".3f") for key, name in RIVALS.items()})
BUFFERED |= under("kB per token", {"kB": ("this row", ",.0f")})
BUFFERED |= under("kB per token", {f"{key} kB": (name, ",.0f") for key, name in RIVALS.items()})
BUFFERED |= under("stall, ms", {"stall ms": ("this row", ".3f")})
BUFFERED |= under("stall, ms", {f"{key} ms": (name, ".3f") for key, name in RIVALS.items()})
BUFFERED |= {"stall": ("stall", ".0%")}


def buffer_parts(s: Study) -> dict[str, str]:
    """Hits and bytes against capacity, timelines of one token, the table, and where prediction no longer matters."""
    where = f"Definition: {s.specs['buffer']}. Read: {s.texts[-1]['tokens']:,} tokens, context {s.dense['context']}."
    device = f"Simulated on the device {DEVICE!r} of prefetch/clock.py, not measured."
    when_known = (
        "A layer's neurons become known when the layer begins, so it waits for all that are missing.",
        "A layer's neurons are guessed one layer ahead, so that they are fetched while that layer computes.",
    )
    timelines = [
        figure(
            gantt(bars), f"timeline-{n}", f"One token, {name}",
            f"What is computed (above) and fetched (below) for the last token read, layer by layer, with a buffer for "
            f"{HALF:.0%} of the neurons, LRU. {when_known[n]} {device} {where}",
        )
        for n, (name, bars) in enumerate(s.timelines.items())
    ]  # fmt: skip
    hits = "Requests that the buffer answers, by eviction policy (hot: most often needed on the calibration text)."
    about = (
        "Eviction policy LRU; capacity: neurons kept per layer. LRU, Belady, random: these policies on the same "
        "requests without any prediction. The layer waits for misses (exact) or drops them, which changes the output, "
        f"so the perplexity is measured. kB: fetched per token, as stored. {device}"
    )
    heading = "{way}; known: {known}; misses: {misses}"
    rows = [row | {"heading": heading.format(**row).replace(" known: -;", "")} for row in s.ways]
    how = ("--capacity", joined(CAPACITIES), *tokens_of(s, "buffer"))
    ways = ("--predictor", joined(BUFFER_PREDICTORS), *how, "-o", "buffer.csv")
    return {
        "figures": beside(
            figure(hit_rate_by_capacity(s.keepers), "hits", "Hit rate against capacity", f"{hits} {where}"),
            figure(
                bytes_by_capacity(s.keepers), "fetched", "Bytes against capacity",
                f"Fetched from slow memory per token, as stored, by eviction policy. {where}",
            ),
        ),
        "timelines": "\n".join(timelines),
        "ways": table(rows, BUFFERED, "What the buffer is worth, by how the neurons are known", about, "", "heading"),
        "matters": bullets([f"{sentence}." for sentence in s.matters]),
        "repeat": commands([
            repeat_command(s, "prefetch replay", *how, "-o", "keepers.csv"),
            repeat_command(s, "prefetch table", *ways),
        ]) + commands([repeat_command(s, "prefetch simulate", takes="context")], "To follow a short text step by step"),
    }  # fmt: skip
