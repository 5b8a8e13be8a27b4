"""Fast and good at once: what ``minillm tune --block`` reached, joined with the speed of blocks that a router chooses.

A tuned folder says in its training.json what each way costs in perplexity on documents that nothing was trained on.
For each folder there are up to four rows:

    chosen_by   tuned   perplexity is over                               speed
    oracle      no      the dense model as it was                        of the blocks alone: a bound
    router      no      the dense model as it was                        with the router's time
    oracle      yes     the better of two dense models                   of the blocks alone: a bound
    router      yes     the better of two dense models                   with the router's time

    increase = perplexity / dense_perplexity - 1

Training alone changes a dense model, too. So a tuned model is compared with the better of two: the dense model as it
was, and the control, which was trained further on the same text for the same time. (A text of another kind can make the
control worse.) Where a folder was made without a control, it stands over the dense model as it was.

Keys of a row: model, group, sparsity, chosen_by, tuned, minutes and tokens (of the training), control (bool: whether
the dense model was trained, too), perplexity, dense_perplexity, increase, and those of a speed (study/blocks.py):
method, speedup, low, high, whole_token, ffn_share, shape, speed_from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import MinillmError
from ..fields import Fields, brief, file_in, read_json
from ..identity import read_fingerprint
from ..rows import NOT_NEGATIVE, SHARE, TEXT, Kind, checked_row, numbers
from ..training.tune import ABOUT, FORMAT, VERSION
from .blocks import best_point, expected_speeds, speed_of

WAYS = {  # the rows of a tuned folder's table that are of interest here: chosen_by, tuned
    "cut, oracle": ("oracle", False),
    "cut, router": ("router", False),
    "tuned, oracle": ("oracle", True),
    "tuned, router": ("router", True),
}
METHODS = {"oracle": "blocks", "router": "routed"}  # whose speed it is
DENSE, CONTROL = "dense", "dense, trained"
SCORE_COLUMNS: dict[str, Kind] = {
    "model": TEXT,
    "perplexity": numbers(1.0, 1e30, "a perplexity, at least 1"),
    "neurons cut": SHARE,
}
CURVE_COLUMNS: dict[str, Kind] = {"tokens": NOT_NEGATIVE, "seconds": NOT_NEGATIVE}
LIMITS = (0.03, 0.08)  # acceptable increases of perplexity


def tuned_rows(folders: Sequence[str | Path], speeds: Sequence[dict] | None = None) -> Iterator[dict]:
    """Rows (keys in the module's docstring) of folders by ``minillm tune --block``.

    speeds: rows of ``read_speeds``; None: the table of kernels.py. A speed that was not measured is None. Raises
    MinillmError for a folder of another kind, or without such rows.
    """
    for folder in folders:
        about = read_tuned(folder)
        group, sparsity, scores = about["group"], about["sparsity"], about["scores"]
        known = expected_speeds((group,), (sparsity,)) if speeds is None else speeds
        for name, (chosen_by, tuned) in WAYS.items():
            if name not in scores:
                continue
            dense = min(scores[DENSE], scores.get(CONTROL, scores[DENSE])) if tuned else scores[DENSE]
            yield {
                **{key: value for key, value in about.items() if key != "scores"},
                "chosen_by": chosen_by,
                "tuned": tuned,
                "control": CONTROL in scores,
                "perplexity": scores[name],
                "dense_perplexity": dense,
                "increase": scores[name] / dense - 1,
                **speed_of(known, (METHODS[chosen_by],), group, sparsity),
                "speed_from": "the table in kernels.py" if speeds is None else "minillm bench ffn",
            }


def read_tuned(folder: str | Path) -> dict:
    """model, group, sparsity, minutes, tokens and scores ({name: perplexity}) of a folder by ``minillm tune --block``.

    Raises MinillmError, in one sentence that names file and field.
    """
    path = file_in(folder, ABOUT, MinillmError)
    read = Fields(read_json(path, MinillmError), str(path), kind=MinillmError)
    read.choice("format", (FORMAT,))
    version = read.integer("version", 10**6)
    if version > VERSION:
        raise MinillmError(f"{path}: version is {version}, expected at most {VERSION}: it needs a newer minillm")
    if read.fields.get("block") is None:
        raise MinillmError(f"{path}: block is missing, expected a folder by `minillm tune --block`")
    began = read_fingerprint(read.fields.get("began_with"), str(path), MinillmError)
    scores = {row["model"]: row["perplexity"] for row in _rows_of(read, "scores", SCORE_COLUMNS, str(path), (DENSE,))}
    last = _rows_of(read, "curve", CURVE_COLUMNS, str(path))[-1]
    return {
        "model": "" if began is None else began.name,
        "group": read.integer("block", 2**31, low=2),
        "sparsity": read.number("sparsity", 1.0),
        "minutes": last["seconds"] / 60,
        "tokens": last["tokens"],
        "scores": scores,
    }


def _rows_of(
    read: Fields, name: str, columns: Mapping[str, Kind], source: str, needed: Sequence[str] = ()
) -> list[dict]:
    """The rows of a field, with these columns of theirs; ``needed``: models that must be among them."""
    found = read.fields.get(name)
    if not isinstance(found, list) or not found:
        raise read.error(name, "a list of rows")
    rows = []
    for number, row in enumerate(found, start=1):
        kept = {key: row[key] for key in columns if key in row} if isinstance(row, dict) else row
        rows.append(checked_row(kept, columns, f"{source}: {name}: row {number}"))
    if missing := [model for model in needed if all(row["model"] != model for row in rows)]:
        raise MinillmError(f"{source}: {name} has no row {brief(missing[0])}, expected one")
    return rows


TUNED_COLUMNS = {
    "model": ("model", ""), "group": ("group", "d"), "sparsity": ("left out", ".0%"), "blocks": ("blocks", ""),
    "minutes": ("minutes", ".1f"), "perplexity": ("perplexity", ".3f"),
    "dense_perplexity": ("dense", ".3f"), "increase": ("increase", "+.1%"), "speedup": ("speedup", ".2f"),
    "whole_token": ("token", ".2f"),
}  # fmt: skip


def tuned_table(rows: Sequence[dict]) -> list[dict]:
    """The rows, with the column "blocks" that TUNED_COLUMNS prints; the training's minutes stand in tuned rows only."""
    names = {way: name for name, way in WAYS.items()}
    return [
        row | {"blocks": names[row["chosen_by"], row["tuned"]], "minutes": row["minutes"] if row["tuned"] else None}
        for row in rows
    ]


def reached_in_words(rows: Sequence[dict], limits: Sequence[float] = LIMITS) -> list[str]:
    """The fastest tuned model with a router within each limit on the increase of perplexity: sentences, per model."""
    sentences = []
    for model in dict.fromkeys(row["model"] for row in rows):
        ours = [row for row in rows if row["model"] == model and row["tuned"] and row["chosen_by"] == "router"]
        for limit in limits if ours else ():
            best, within = best_point(ours, limit), f"{model}, at most {limit:+.0%} of perplexity"
            if best is None:
                sentences.append(f"{within}: no tuned model with a router is faster than the dense FFN")
                continue
            sentences.append(
                f"{within}: blocks of {best['group']}, {best['sparsity']:.0%} left out, tuned for "
                f"{best['minutes']:.1f} minutes: FFN {best['speedup']:.2f} times as fast with the router's time, whole "
                f"token {best['whole_token']:.2f}, perplexity {best['increase']:+.1%}"
            )
    return sentences
