"""The figure of Sparsing Law: how the share of active neurons changes while a model is trained (study/laws.py).

Rows in, matplotlib Axes out (canvas.py says how).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import MinillmError
from ..study.laws import Fit
from .canvas import check_rows, curve_styles, drawn, given_or_new, listed, percent, plain_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@drawn
def active_while_training(
    curves: Mapping[str, Sequence[Sequence[Mapping]]], fits: Mapping[str, Fit] | None = None, *, ax: Axes | None = None
) -> Axes:
    """Share of active neurons against training tokens: a curve per activation, dotted its law.

    curves: {name: [rows of checkpoints.curve, one list per seed]}, all with as many checkpoints. A point is the mean
    over seeds, its bar reaches from the smallest to the largest. fits: {name: fit to that mean}. Raises MinillmError.
    """
    ax, fits, ends = given_or_new(ax), fits or {}, []
    for name, look in curve_styles(list(curves)).items():
        seeds = curves[name]
        if not seeds or len({len(rows) for rows in seeds}) > 1:
            raise MinillmError(f"{name}: the seeds have {[len(rows) for rows in seeds]} checkpoints, expected as many")
        for rows in seeds:
            check_rows(rows, ("tokens", "kept"))
        kept = percent([[row["kept"] for row in rows] for rows in seeds])  # (seeds, checkpoints)
        tokens, mean = [row["tokens"] / 1e3 for row in seeds[0]], kept.mean(axis=0)
        spread = [mean - kept.min(axis=0), kept.max(axis=0) - mean]
        label = plain_text(name)
        if name in fits:
            at = np.geomspace(tokens[0], tokens[-1], 200)
            ax.plot(at, percent(fits[name].curve(at * 1e3)), color=look["color"], linestyle=":", linewidth=1)
            label += f" (dotted: the law, rmse {100 * fits[name].rmse:.2f})"
        ax.errorbar(tokens, mean, spread, label=label, capsize=2, **look)
        ends.append(f"{name} {mean[0]:.1f} to {mean[-1]:.1f}")
    ax.set_xlabel("training tokens (thousands)")
    ax.set_ylabel("active neurons (%)")
    ax.set_title("Active neurons while training, at one CETT")
    ax.margins(y=0.25)
    ax.legend(loc="upper right")
    ax.set_label(f"Active neurons against training tokens, in percent, first to last: {listed(ends)}.")
    return ax
