"""How fast one row meets a weight matrix, form by form: ``minillm bench linear``.

A generated token needs each weight once, so a product can be no faster than reading the matrix (transformer/linear.py).
For each size of matrix this table says how many gigabytes of it per second

    a sum      np.add.reduce reads: one number for each weight, and nothing else
    BLAS       W.dot(x)
    rows       np.vecdot(W, x), a product of two vectors for each row
    turned     x @ W_T, from a copy that is stored as (in, out)

and which form ``linear`` takes here. Sizes below the caches are measured as a model meets them: as many matrices of one
size take their turns as fill TURN bytes, so that none lies in a core's own cache from the last time. "turned" would
need a second copy of the weights. It is here to show that nothing is lost without one.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..tables import Columns, text_table
from ..threads import use_threads
from ..transformer.linear import row_by_row
from .turns import environment, seconds_in_turns, timed

SIZES = (  # (out, in): of the presets 260K, 15M and 110M and of a model of 1B
    (172, 64), (288, 288), (768, 288), (288, 768), (32000, 288), (768, 768), (2048, 768), (768, 2048), (32000, 768),
    (5632, 2048), (2048, 5632),
)  # fmt: skip
TURN = 64_000_000  # bytes of matrices in a turn
FORMS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], object]] = {  # of (W, W_T, x)
    "sum": lambda w, w_t, x: np.add.reduce(w, axis=None),
    "BLAS": lambda w, w_t, x: w.dot(x),
    "rows": lambda w, w_t, x: np.vecdot(w, x),
    "turned": lambda w, w_t, x: x @ w_t,
}
COLUMNS: Columns = {
    "size": ("W (out, in)", ""), "megabytes": ("MB", ".2f"), "sum": ("a sum", ".1f"), "BLAS": ("BLAS", ".1f"),
    "rows": ("rows", ".1f"), "turned": ("turned", ".1f"), "takes": ("linear takes", ""), "best": ("of the best", ".2f"),
}  # fmt: skip


def bench_linear(sizes: Sequence[tuple[int, int]] = SIZES, rounds: int = 7, threads: int = 1) -> dict[str, Any]:
    """Measure the forms at each size (module docstring), all in turns.

    Rows: out, in, megabytes, gigabytes per second of each form (sum, BLAS, rows, turned; medians), takes (the form of
    ``linear``), best (its speed over that of the faster of BLAS and rows, median over rounds).
    """
    rows = []
    with use_threads(threads):
        for out, into in sizes:
            times = _seconds(out, into, rounds)
            takes = "rows" if row_by_row(out * into) else "BLAS"
            pairs = zip(times["BLAS"], times["rows"], times[takes], strict=True)
            best = statistics.median(min(blas, by_rows) / taken for blas, by_rows, taken in pairs)
            speed = {form: 4e-9 * out * into / statistics.median(series) for form, series in times.items()}
            rows.append({"out": out, "in": into, "megabytes": 4e-6 * out * into, **speed, "takes": takes, "best": best})
    return {"what": "linear", "rounds": rounds, "environment": environment(threads), "rows": rows}


def _seconds(out: int, into: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each form for one product, round by round."""
    rng = np.random.default_rng(0)
    count = max(1, TURN // (4 * out * into))
    matrices = [rng.standard_normal((out, into), dtype=np.float32) for _ in range(min(count, 400))]
    pairs = [(w, np.ascontiguousarray(w.T)) for w in matrices]
    x = rng.standard_normal(into, dtype=np.float32)

    def turn(form: Callable[[np.ndarray, np.ndarray, np.ndarray], object]) -> Callable[[], float]:
        def all_of_them() -> None:
            for w, w_t in pairs:
                form(w, w_t, x)

        return lambda: timed(all_of_them) / len(pairs)

    return seconds_in_turns({name: turn(form) for name, form in FORMS.items()}, rounds)


def linear_text(result: dict[str, Any]) -> str:
    """A result of ``bench_linear`` as text: a table, and what its columns mean."""
    rows = [row | {"size": f"{row['out']} x {row['in']}"} for row in result["rows"]]
    parts = [
        f"linear, one row, {result['rounds']} rounds in turns: gigabytes of W per second",
        "",
        text_table(rows, COLUMNS),
        "\na sum: reading alone; BLAS: W.dot(x); rows: np.vecdot(W, x); turned: x @ W_T, stored as (in, out)",
        "linear takes: the form that minillm takes on this machine, by its kind and the size of W alone; of the best: "
        "its speed over that of the faster of BLAS and rows, 1 where it is the faster one",
        "",
        "; ".join(f"{key} {value}" for key, value in result["environment"].items()),
    ]
    return "\n".join(parts)
