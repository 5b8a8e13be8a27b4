"""Speed joined with perplexity: the gain and the cost of keeping whole blocks of neighbouring neurons.

Blocks of g neighbouring neurons are fast, since nothing is copied, and they cost perplexity, since a block is kept or
left out whole. So each row (``joint_rows``) joins

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

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import MinillmError
from ..fields import JSON_LIMIT, brief, parse_value
from ..files import read_text
from ..prefetch.clock import LARGE, ffn_share, whole_token
from ..prefetch.kernels import expected_speedup, with_router
from ..prefetch.reorder import BlockOracle, clustered, dropped_means, energy_shares, recorded_mid, retained
from ..rows import NOT_NEGATIVE, SHARE, TEXT, YES_OR_NO, checked_row, numbers, one_of, whole
from ..transformer.evaluation import perplexity
from ..transformer.model import Llama
from ..transformer.texts import Sample

GROUPS, SPARSITIES = (1, 8, 32), (0.5, 0.7, 0.9)
BLOCK_COLUMNS = {
    "group": ("group", "d"), "order": ("order", ""), "kept_energy": ("kept energy", ".2%"),
    "perplexity": ("perplexity", ".4f"), "increase": ("increase", ".2%"),
    "perplexity_with_means": ("perplexity with means", ".4f"), "increase_with_means": ("increase with means", ".2%"),
}  # fmt: skip


@dataclass(frozen=True)
class BlockSettings:
    """Settings of the clustering into blocks, which takes minutes.

    groups: neurons per block. tokens: of the calibration text that neurons are clustered on. seed: of the random start.
    """

    groups: Sequence[int] = GROUPS
    tokens: int = 2000
    seed: int = 0


def block_rows(
    model: Llama, calibration: str | Sequence[str], test: Sample, settings: BlockSettings, share: float = 0.5
) -> list[dict]:
    """Perplexity with that share of each token's blocks kept, as stored and clustered: rows of BLOCK_COLUMNS.

    kept_energy is measured on the calibration text, perplexity on the test text: once with zero in place of a block
    that is left out, once with its neurons' means. increase: over the dense model. Blocks of one neuron have no order.
    """
    return [*_block_rows(model, calibration, test, settings, share, lambda: None)]


def _block_rows(
    model: Llama, calibration: str | Sequence[str], test: Sample, settings: BlockSettings, share: float,
    done: Callable[[], object],
) -> Iterator[dict]:  # fmt: skip
    """The rows of ``block_rows``, each as soon as it is known. done: called ``steps_of`` times, for a bar."""
    dense = perplexity(model, *test).perplexity
    mids = recorded_mid(model, calibration, settings.tokens, test.context)
    measured = [energy_shares(mid, layer) for mid, layer in zip(mids, model.layers, strict=True)]
    for group in settings.groups:
        kinds = {"stored": [np.arange(model.config.intermediate_size)] * len(model.layers)}
        if group > 1:
            rng, kinds["clustered"] = np.random.default_rng(settings.seed), []
            for energy in measured:
                kinds["clustered"].append(clustered(energy, group, rng, share))
                done()
        for kind, orders in kinds.items():
            kept = np.mean([retained(e, order, group, share) for e, order in zip(measured, orders, strict=True)])
            row = {"group": group, "order": kind, "kept_energy": float(kept)}
            means = [dropped_means(*each, group, share) for each in zip(mids, model.layers, orders, strict=True)]
            for suffix, used in (("", None), ("_with_means", means)):
                ffn = BlockOracle(group, share, orders, used).ffn()
                score = perplexity(model, *test, ffn=ffn).perplexity
                row |= {f"perplexity{suffix}": score, f"increase{suffix}": score / dense - 1}
                done()
            yield row


def steps_of(model: Llama, groups: Sequence[int]) -> int:
    """The number of steps of ``_block_rows``: a layer that is clustered, or a score."""
    single = sum(group == 1 for group in groups)
    return 2 * single + (len(groups) - single) * (4 + len(model.layers))


DEAR = 0.3  # an increase of perplexity too large for a figure
LIMITS = (0.01, 0.05, 0.10)  # acceptable increases of perplexity


def expected_speeds(groups: Sequence[int] = GROUPS, sparsities: Sequence[float] = SPARSITIES) -> list[dict]:
    """Speeds at the shape of clock.LARGE from the table in kernels.py, as rows like those of ``minillm bench ffn``."""
    shape, rows = (LARGE.intermediate_size, LARGE.hidden_size), []
    for group in groups:
        for sparsity in sparsities:
            speedups = expected_speedup(shape, 1 - sparsity, group)
            if group > 1:
                speedups["routed"] = with_router(speedups["blocks"], shape, group)
            for method in ("gather", "tiled") if group == 1 else ("blocks", "routed"):
                speed = speedups[method]
                rows.append({"method": method, "group": group, "sparsity": sparsity, "speedup": speed})
                rows[-1] |= {"low": speed, "high": speed, "whole_token": whole_token(speed, ffn_share(LARGE))}
    return rows


SPEED_COLUMNS = {  # of a row of `minillm bench ffn --json`; older files and rows of one's own have only the first six
    "method": one_of("dense", "gather", "tiled", "blocks", "routed"),
    "group": whole(1),
    "sparsity": SHARE,
    "speedup": numbers(1e-6, 1e6, "a speed-up above 0"),
    "low": numbers(1e-6, 1e6, "a speed-up above 0"),
    "high": numbers(1e-6, 1e6, "a speed-up above 0"),
    "whole_token": numbers(1e-6, 1e6, "a speed-up above 0").or_absent(),
    "ffn_share": SHARE.or_absent(),
    "shape": TEXT.or_absent(),
    "touched": SHARE.or_absent(),
    "chosen": YES_OR_NO.or_absent(),
    "milliseconds": NOT_NEGATIVE.or_absent(),
}
HEAD_COLUMNS = {key: SPEED_COLUMNS[key] for key in ("shape", "ffn_share")}  # of the whole result: what its rows share
OTHER_FIELDS = "what rounds environment token layers cache router clock own_time kernels rows".split()  # not used here


def read_speeds(path: str | Path) -> list[dict]:
    """The rows of a file by ``minillm bench ffn --json``, or its whole result, but for the dense one.

    Raises MinillmError, in one sentence that names row and key, for other files.
    """
    path, about = Path(path), {}
    found = parse_value(read_text(path, MinillmError, JSON_LIMIT).encode(), str(path), MinillmError)
    if isinstance(found, dict):
        head = {key: value for key, value in found.items() if key not in OTHER_FIELDS}
        about, found = checked_row(head, HEAD_COLUMNS, f"{path}: the result"), found.get("rows")
    if not isinstance(found, list) or not found:
        raise MinillmError(f"{path}: rows is {brief(found)}, expected the rows of `minillm bench ffn --json`")
    rows: dict[tuple, dict] = {}
    for number, fields in enumerate(found, start=1):
        where = f"{path}: row {number}"
        row = about | checked_row(fields, SPEED_COLUMNS, where, "it should be the JSON of `minillm bench ffn`")
        _check_speed(row, where)
        key = row["method"], row["group"], row["sparsity"]
        if key in rows:
            raise MinillmError(
                f"{where}: {key[0]}, group {key[1]}, sparsity {key[2]} was there before, expected it once"
            )
        rows[key] = row
    return [row for row in rows.values() if row["method"] != "dense"]


def _check_speed(row: dict, where: str) -> None:
    """Raise MinillmError where the figures of a row contradict each other."""
    if (row["method"] in ("blocks", "routed")) != (row["group"] > 1):
        raise MinillmError(f"{where}: group is {row['group']} of {row['method']}, expected 1, or more for blocks")
    if not row["low"] <= row["speedup"] <= row["high"]:
        found = f"{row['low']:g}, {row['speedup']:g} and {row['high']:g}"
        raise MinillmError(f"{where}: low, speedup and high are {found}, expected them in ascending order")
    if {"whole_token", "ffn_share"} <= set(row):
        worth = whole_token(row["speedup"], row["ffn_share"])
        if not math.isclose(worth, row["whole_token"], rel_tol=1e-6):
            found = f"whole_token is {row['whole_token']:g}"
            raise MinillmError(f"{where}: {found}, expected {worth:g} by speedup and ffn_share")


def joint_rows(
    model: Llama, calibration: str | Sequence[str], test: Sample, speeds: Sequence[dict] | None = None,
    settings: BlockSettings | None = None, sparsities: Sequence[float] = SPARSITIES,
) -> Iterator[dict]:  # fmt: skip
    """Rows (keys in the module's docstring): four for each block size and sparsity, two for single neurons.

    speeds: rows of ``read_speeds``; None: the table of kernels.py. Neurons are clustered again for each sparsity, as
    for a bundle that is written for it. A progress bar shows how far it is.
    """
    from tqdm.auto import tqdm

    settings = settings or BlockSettings()
    where = "the table in kernels.py" if speeds is None else "minillm bench ffn"
    speeds = expected_speeds(settings.groups, sparsities) if speeds is None else speeds
    total = len(sparsities) * steps_of(model, settings.groups)
    with tqdm(total=total, desc="blocks", unit="step", leave=False, disable=None) as bar:
        for sparsity in sparsities:
            for row in _block_rows(model, calibration, test, settings, 1 - sparsity, bar.update):
                fastest = speed_of(speeds, ("gather", "tiled", "blocks"), row["group"], sparsity)
                for means, suffix in ((False, ""), (True, "_with_means")):
                    score, increase = row[f"perplexity{suffix}"], row[f"increase{suffix}"]
                    yield {
                        "model": model.name,
                        "group": row["group"],
                        "order": row["order"],
                        "means": means,
                        "sparsity": sparsity,
                        "perplexity": score,
                        "dense_perplexity": score / (1 + increase),
                        "increase": increase,
                        **fastest,
                        "speed_from": where,
                    }


def speed_of(speeds: Sequence[dict], methods: Collection[str], group: int, sparsity: float) -> dict:
    """The speed of the fastest of some methods for that block size and sparsity.

    Keys: method, speedup, low, high, whole_token (None where none was measured), ffn_share, shape.
    """
    fits = [row for row in speeds if row["group"] == group and abs(row["sparsity"] - sparsity) < 1e-6]
    fits = [row for row in fits if row["method"] in methods]
    best = max(fits, key=lambda row: row["speedup"], default={})
    share = best.get("ffn_share", ffn_share(LARGE))
    if best and best.get("whole_token") is None:
        best = best | {"whole_token": whole_token(best["speedup"], share)}
    found = {key: best.get(key) for key in ("method", "speedup", "low", "high", "whole_token")}
    shape = best.get("shape", f"{LARGE.hidden_size} x {LARGE.intermediate_size}")
    return found | {"ffn_share": share, "shape": shape}


JOINT_COLUMNS = {
    "group": ("group", "d"), "order": ("order", ""), "in_place": ("in place", ""), "sparsity": ("left out", ".0%"),
    "perplexity": ("perplexity", ".3f"), "increase": ("increase", "+.1%"), "method": ("method", ""),
    "speedup": ("speedup", ".2f"), "spread": ("spread", ""), "whole_token": ("token", ".2f"),
}  # fmt: skip


def joint_table(rows: Sequence[dict]) -> list[dict]:
    """The rows, with the columns in_place (zero or means) and spread (of the speed) that JOINT_COLUMNS prints."""
    shown = []
    for row in rows:
        spread = None if row["speedup"] is None else f"{row['low']:.2f}-{row['high']:.2f}"
        shown.append(row | {"in_place": "means" if row["means"] else "zero", "spread": spread})
    return shown


def cheaper_points(rows: Sequence[dict]) -> list[dict]:
    """The points of a figure: rows with a known speed, with means or without, whichever costs less.

    Rows that cost more than DEAR stand in the table only.
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


def point_in_words(row: dict) -> str:
    """A row as a part of a sentence."""
    neurons = f"blocks of {row['group']}, {row['order']}," if row["group"] > 1 else "single neurons,"
    means = " means in place of what is left out," if row["means"] else ""
    return (
        f"{neurons}{means} {row['sparsity']:.0%} left out ({row['method']}): FFN {row['speedup']:.2f} times as fast, "
        f"whole token {row['whole_token']:.2f}, perplexity {row['increase']:+.1%}"
    )


def bounds_in_words(rows: Sequence[dict], limits: Sequence[float] = LIMITS) -> list[str]:
    """The most speed that an oracle's blocks leave room for, for each limit on the increase of perplexity: sentences.

    A bound and no recommendation: the oracle knows beforehand what each token needs.
    """
    sentences = []
    for limit in limits:
        best, single = best_point(rows, limit), best_point(rows, limit, single=True)
        if best is None:
            sentences.append(f"Bound for at most {limit:+.0%} of perplexity: nothing is faster than the dense FFN")
            continue
        other = "" if best["group"] == 1 else "; the bound of single neurons: "
        other += "" if best["group"] == 1 else point_in_words(single) if single else "none is faster than dense"
        sentences.append(f"Bound for at most {limit:+.0%} of perplexity: {point_in_words(best)}{other}")
    return sentences
