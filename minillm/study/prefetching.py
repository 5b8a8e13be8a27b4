"""What the prefetch buffer is worth to a model: one table, and one page that joins speed with perplexity.

**The table** (``buffer_rows``). A row is a way to know the neurons of a token, at one capacity of the buffer:

    all neurons                nothing is known: every token asks for every neuron (the dense model)
    mask of mid                the policy's own mask, told for nothing when the layer is reached
    a predictor                its word is the mask; known when the layer is reached, or a layer before
    a baseline (static, ...)   too poor to select by: the mask is mid's, it only says what to prefetch

with hit rate, bytes and stall on a stated device, LRU, Belady and a random set on the same requests beside it, and the
perplexity: with misses that are waited for it is the cut's own, with dropped ones it is measured in the model. Bytes
are counted as the checkpoint stores its weights. ``when_it_matters`` says from which capacity on it no longer matters
what is known, or how early.

**The page** (``joint_rows``). Blocks of g neighbouring neurons are fast, since nothing is copied, and dear, since a
block is kept or left out whole. So each row joins

    increase    perplexity over the dense model's, minus 1: measured on a trained model, half of its tokens' blocks
                (or 30, 70, 90 % of them) left out by an oracle, as stored and clustered, without and with block means
    speedup     of one FFN at a large shape, over our own dense one: measured by ``minillm bench ffn``, or from the
                table in prefetch/kernels.py; low, high: the middle half of its rounds
    whole_token that speed-up's worth to a whole token (clock.whole_token), with ffn_share the FFNs' share of its bytes

Keys of a row: model, group (1, 4, 8, ...), order ("stored" or "clustered"), means (bool), sparsity (share left out),
perplexity, dense_perplexity, increase, method ("gather", "tiled" or "blocks"), speedup, low, high, whole_token,
ffn_share, shape, speed_from. Where a speed was not measured, the keys from method to whole_token are None.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..errors import MinillmError, file_errors
from ..predictors.baselines import Chance, PreviousToken, Static
from ..predictors.cutoffs import fit_cutoffs
from ..predictors.protocol import Predictor
from ..predictors.workshop import Workshop
from ..prefetch.clock import LARGE, Device, ffn_share, whole_token, work_of
from ..prefetch.kernels import expected_speedup
from ..prefetch.reorder import block_rows
from ..prefetch.replay import SHARES, Way, enough, lookaheads_of, prefetch_rows, replay
from ..sparsity.thresholds import Thresholds
from ..transformer.model import Llama, shape_of
from .prediction import ffn_bytes

TABLE_PREDICTORS = ("shadow-4", "learned", "ahead-4", "previous-token", "oracle")
ALL, OWN = "all neurons", "mask of mid"


# ---- the table -------------------------------------------------------------------------------------------------------


def way_of(predictor: Predictor) -> Way:
    """How a predictor is used best: what can guess early does, and what selects badly only prefetches."""
    early = lookaheads_of(predictor)
    if isinstance(predictor, (Chance, Static, PreviousToken)):
        return Way(predictor, "prefetch", early[-1])
    return Way(predictor, "both", early[0]) if early else Way(predictor)


def ways_of(workshop: Workshop, names: Sequence[str], sparsity: float) -> list[Way]:
    """The policy's own mask, then a way for each name of a predictor, with cutoffs for 1 - sparsity of the neurons."""
    ways = [Way()]
    for name in names:
        predictor = workshop.make(name)
        if predictor.cutoffs is None:
            given = workshop.model, predictor, workshop.thresholds, workshop.held
            fit_cutoffs(*given, 1 - sparsity, workshop.context)
        ways.append(way_of(predictor))
    return ways


def stored_size(model: Llama) -> int:
    """Bytes of one FFN weight as the checkpoint stores it."""
    layers, hidden, neurons = shape_of(model)
    return round(ffn_bytes(model)[1] / (3 * layers * hidden * neurons))


def buffer_rows(
    model: Llama,
    thresholds: Thresholds,
    documents: str | Sequence[str],
    ways: Sequence[Way] = (Way(),),
    *,
    shares: Sequence[float] = SHARES,
    device: str | Device = "laptop NVMe",
    dropping: Sequence[Way] = (),
    hot_frequencies: np.ndarray | None = None,
    context: int | None = None,
    seed: int = 0,
) -> Iterator[dict]:
    """Rows of ``prefetch_rows`` for each way and capacity, keeper lru, under the keys of TABLE_COLUMNS besides.

    thresholds: of policy mid. dropping: ways that are scored again with misses that are dropped, a pass per capacity
    for lru, and one for a hot set where its frequencies (L, N) are given. The rows of ALL come first.
    """
    layers, _, neurons = shape_of(model)
    size, first = stored_size(model), True
    how = {"device": device, "seed": seed}
    for miss, some, keepers in (("wait", ways, ("lru",)), ("drop", dropping, ("lru", "hot"))):
        for row in prefetch_rows(
            model, thresholds, documents, some, shares=shares, keepers=keepers, miss=miss, context=context,
            hot_frequencies=hot_frequencies, bytes_per_number=size, **how,
        ):  # fmt: skip
            if first:  # now it is known how many tokens there are
                about = {key: row[key] for key in ("model", "dense_perplexity")}
                about |= {"predictor": ALL, "role": "select", "own_bytes": 0, "perplexity": row["dense_perplexity"]}
                asked = np.ones((row["tokens"], layers, neurons), bool)
                capacities = [round(share * neurons) for share in shares]
                for each in replay(asked, work_of(model, size), capacities, ("lru",), **how):
                    yield _readable(about | each)
                first = False
            yield _readable(row)


def _readable(row: dict) -> dict:
    """The row, and what the table prints of it."""
    known = {None: "at the layer", "layer": "a layer before", "token": "a token before"}[row["guesses"]]
    way = OWN if row["predictor"] == "policy's own mask" else row["predictor"]
    if row["role"] == "prefetch":
        way = f"{OWN}, guess: {way}"
    wide = {"way": way, "known": "-" if way == ALL else known, "misses": row["miss"]}
    wide |= {"kB": row["bytes_per_token"] / 1e3, "stall": row["stall_share"]}
    wide["fast kB"] = (row["kept_bytes"] + row["own_bytes"]) / 1e3
    wide["stall ms"] = row["stall_share"] * row["seconds_per_token"] * 1e3
    for name in ("lru", "belady", "random"):
        wide[f"{name} kB"] = row[f"{name}_bytes"] / 1e3
        wide[f"{name} ms"] = row[f"{name}_stall"] * row[f"{name}_seconds"] * 1e3
    return row | wide


TABLE_COLUMNS = {"way": "", "known": "", "misses": "", "keeper": "", "capacity": "d", "fast kB": ",.0f"}
TABLE_COLUMNS |= dict.fromkeys(("hit_rate", "lru", "belady", "random"), ".3f")
TABLE_COLUMNS |= dict.fromkeys(("kB", "lru kB", "belady kB", "random kB"), ",.0f")
TABLE_COLUMNS |= {"stall": ".1%"} | dict.fromkeys(("stall ms", "lru ms", "belady ms", "random ms"), ".3f")
TABLE_COLUMNS |= {"perplexity": ".3f"}


def when_it_matters(rows: Sequence[dict], tolerance: float = 0.01) -> list[str]:
    """From which capacity on it stops mattering to know which neurons, and to know it early: sentences.

    rows of ``buffer_rows`` or ``prefetch_rows``; of keeper lru, misses waited for. Guesses are held against the same
    requests without guesses, and what is known against fetching all neurons, where the rows hold ALL. Time is that of
    the whole token: what is known saves computing, too, even where everything fits.
    """
    counted = [row for row in rows if row["miss"] == "wait" and row["keeper"] == "lru"]
    groups: dict[tuple, list[dict]] = {}
    for row in counted:
        groups.setdefault((row.get("way", row["predictor"]), row["role"], row["guesses"]), []).append(row)
    dense, said = groups.pop((ALL, "select", None), None), []
    for (name, role, early), found in groups.items():
        if early:
            said.append(f"{name}: {_enough(found, _without_guesses(found), 'its being known early', tolerance)}")
        if dense and role != "prefetch":
            said.append(f"{name}: {_enough(found, dense, 'knowing which neurons are needed', tolerance)}")
    return said


def _enough(found: Sequence[dict], rivals: Sequence[dict], what: str, tolerance: float) -> str:
    at, before = enough(rivals, found, tolerance), {row["capacity"]: row["seconds_per_token"] for row in rivals}
    saved, where = max((1 - row["seconds_per_token"] / before[row["capacity"]], row["capacity"]) for row in found)
    most = f"{saved:.0%} (at {where})"
    if at is None:
        return f"even at the largest capacity tried, {what} saves {tolerance:.0%} of the time or more; at most {most}"
    below = f"; below, up to {most}" if saved >= tolerance else ""
    return f"from {at} neurons per layer on, {what} saves less than {tolerance:.0%} of the time{below}"


def _without_guesses(rows: Sequence[dict]) -> list[dict]:
    """The same requests, lru without any guess: what a row carries beside it."""
    return [{"capacity": row["capacity"], "seconds_per_token": row["lru_seconds"]} for row in rows]


# ---- speed and perplexity on one page --------------------------------------------------------------------------------

GROUPS, SPARSITIES = (1, 4, 8, 16, 32), (0.3, 0.5, 0.7, 0.9)
DEAR = 0.3  # of perplexity: nobody would choose that
LIMITS = (0.01, 0.05, 0.10)  # increases of perplexity that one may be willing to pay


def expected_speeds(groups: Sequence[int] = GROUPS, sparsities: Sequence[float] = SPARSITIES) -> list[dict]:
    """Speeds at the shape of clock.LARGE from the table in kernels.py, as rows like those of ``minillm bench ffn``."""
    shape, rows = (LARGE.intermediate_size, LARGE.hidden_size), []
    for group in groups:
        for sparsity in sparsities:
            found = expected_speedup(shape, 1 - sparsity, group)
            for method in ("gather", "tiled") if group == 1 else ("blocks",):
                speed = found[method]
                rows.append({"method": method, "group": group, "sparsity": sparsity, "speedup": speed})
                rows[-1] |= {"low": speed, "high": speed, "whole_token": whole_token(speed, ffn_share(LARGE))}
    return rows


def read_speeds(path: str | Path) -> list[dict]:
    """The rows that ``minillm bench ffn --json`` wrote, alone or in its result. Raises MinillmError for other files."""
    with file_errors(Path(path), "read", MinillmError):
        data = Path(path).read_bytes()
    try:
        found = json.loads(data)
        about = {key: found[key] for key in ("shape", "ffn_share") if key in found} if isinstance(found, dict) else {}
        rows = found["rows"] if isinstance(found, dict) else found
        rows = [row for row in rows if row["method"] != "dense"]
        return [about | row | {key: float(row[key]) for key in ("sparsity", "speedup", "low", "high")} for row in rows]
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        expected = "the JSON of `minillm bench ffn`: rows with method, group, sparsity and speedup"
        raise MinillmError(f"{path}: cannot be read as speeds ({problem!r}), expected {expected}") from None


def joint_rows(
    model: Llama,
    calibration: str | Sequence[str],
    test: str | Sequence[str],
    speeds: Sequence[dict] | None = None,
    *,
    groups: Sequence[int] = GROUPS,
    sparsities: Sequence[float] = SPARSITIES,
    context: int | None = None,
    tokens: int = 2000,
    seed: int = 0,
) -> Iterator[dict]:
    """Rows of the page (keys in the module's docstring): four for each block size and sparsity, two for single neurons.

    speeds: rows of ``read_speeds``; None takes the table of kernels.py. tokens: of the calibration text that neurons
    are clustered on, which takes minutes. Each sparsity has its own order, as a bundle written for it would.
    """
    where = "the table in kernels.py" if speeds is None else "minillm bench ffn"
    speeds = expected_speeds(groups, sparsities) if speeds is None else speeds
    for sparsity in sparsities:
        for row in block_rows(model, calibration, test, groups, 1 - sparsity, context, tokens, seed):
            fastest = _fastest(speeds, row["group"], sparsity)
            for means, suffix in ((False, ""), (True, "_with_means")):
                found, increase = row[f"perplexity{suffix}"], row[f"increase{suffix}"]
                yield {
                    "model": model.name,
                    "group": row["group"],
                    "order": row["order"],
                    "means": means,
                    "sparsity": sparsity,
                    "perplexity": found,
                    "dense_perplexity": found / (1 + increase),
                    "increase": increase,
                    **{key: fastest.get(key) for key in ("method", "speedup", "low", "high", "whole_token")},
                    "ffn_share": fastest.get("ffn_share", ffn_share(LARGE)),
                    "shape": fastest.get("shape", f"{LARGE.hidden_size} x {LARGE.intermediate_size}"),
                    "speed_from": where,
                }


def _fastest(speeds: Sequence[dict], group: int, sparsity: float) -> dict:
    """The fastest way measured for blocks of so many neurons at that sparsity; {} where none was."""
    fits = [row for row in speeds if row["group"] == group and abs(row["sparsity"] - sparsity) < 1e-6]
    best = max(fits, key=lambda row: row["speedup"], default={})
    if best and best.get("whole_token") is None:
        best = best | {"whole_token": whole_token(best["speedup"], best.get("ffn_share", ffn_share(LARGE)))}
    return best


JOINT_COLUMNS = {"group": "d", "order": "", "in place": "", "left out": ".0%", "perplexity": ".3f", "increase": "+.1%",
                 "method": "", "speedup": ".2f", "spread": "", "whole token": ".2f"}  # fmt: skip


def joint_table(rows: Sequence[dict]) -> list[dict]:
    """The rows as JOINT_COLUMNS print them."""
    shown = []
    for row in rows:
        spread = None if row["speedup"] is None else f"{row['low']:.2f} .. {row['high']:.2f}"
        wide = {"in place": "means" if row["means"] else "zero", "left out": row["sparsity"], "spread": spread}
        shown.append(row | wide | {"whole token": row["whole_token"]})
    return shown


def cheaper_points(rows: Sequence[dict]) -> list[dict]:
    """What a figure of the page shows: with means or without, whichever costs less, where a speed is known.

    What costs more than DEAR is left to the table.
    """
    best: dict[tuple, dict] = {}
    for row in rows:
        key = row["group"], row["order"], row["sparsity"]
        cheaper = key not in best or row["increase"] < best[key]["increase"]
        if row["speedup"] is not None and row["increase"] <= DEAR and cheaper:
            best[key] = row
    return list(best.values())


def best_point(rows: Sequence[dict], limit: float, single: bool = False) -> dict | None:
    """The row with the largest speed-up of at least 1 whose perplexity is at most ``limit`` above the dense one's.

    single: among single neurons alone. Of equal ones the cheaper.
    """
    fits = [row for row in rows if (row["speedup"] or 0) >= 1 and row["increase"] <= limit]
    fits = [row for row in fits if row["group"] == 1] if single else fits
    return max(fits, key=lambda row: (row["speedup"], -row["increase"]), default=None)


def in_words(row: dict) -> str:
    """A row of the page as a part of a sentence."""
    neurons = f"blocks of {row['group']}, {row['order']}," if row["group"] > 1 else "single neurons,"
    means = " means in place of what is left out," if row["means"] else ""
    return (
        f"{neurons}{means} {row['sparsity']:.0%} left out ({row['method']}): FFN {row['speedup']:.2f} times as fast, "
        f"whole token {row['whole_token']:.2f}, perplexity {row['increase']:+.1%}"
    )


def which_point(rows: Sequence[dict], limits: Sequence[float] = LIMITS) -> list[str]:
    """Which point to choose, for each increase of perplexity that one is willing to pay: sentences, on one model."""
    said = []
    for limit in limits:
        best, single = best_point(rows, limit), best_point(rows, limit, single=True)
        if best is None:
            said.append(f"For at most {limit:+.0%} of perplexity: nothing is faster than the dense FFN")
            continue
        other = "" if best["group"] == 1 else "; the best of single neurons: "
        other += "" if best["group"] == 1 else in_words(single) if single else "none is faster than dense"
        said.append(f"For at most {limit:+.0%} of perplexity choose {in_words(best)}{other}")
    return said
