"""The figure of the one picture: what is read and what is stored against perplexity, a curve for each family.

Rows in (study/pareto.py), matplotlib Axes out (canvas.py says how).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .canvas import (
    BLACK,
    check_rows,
    drawn,
    figure_of,
    given_or_new,
    legend_beside,
    listed,
    log_perplexity,
    looks_with_bound,
    new_axes,
    percent,
    plain_text,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

X_AXES = {
    "read": "FFN bytes read per token, over the dense model's (%)",
    "stored": "bytes of the model's file, over the dense one's (%)",
}
PANEL = (5.0, 3.4)  # inches
HIGHEST = 12  # times the dense perplexity: a curve that goes higher leaves the panel, or all others would be one line


@drawn
def cost_of_families(rows: Sequence[Mapping], dense: float, x: str = "read", *, ax: Axes | None = None) -> Axes:
    """Perplexity against the share that is read (or "stored"), a curve for each family; rows of ``best`` of one model.

    dense: the perplexity of the dense model. Vertical lines: 95 % intervals of the cost over documents.
    """
    check_rows(rows, ("family", "policy", "perplexity", x))
    ax = given_or_new(ax, PANEL)
    families = list(dict.fromkeys(row["family"] for row in rows))
    looks = looks_with_bound(families, "oracle")
    for family in families:
        curve = sorted((row for row in rows if row["family"] == family), key=lambda row: row["read"])
        places, heights = percent([row[x] for row in curve]), [row["perplexity"] for row in curve]
        ax.plot(places, heights, label=plain_text(family), **looks[family])
        if all("perplexity_low" in row for row in curve):
            low, high = ([row[f"perplexity_{end}"] for row in curve] for end in ("low", "high"))
            ax.vlines(places, low, high, color=looks[family]["color"], linewidth=1)
    ax.axhline(dense, color=BLACK, linestyle=":", linewidth=1, label=f"dense ({dense:.2f})")
    log_perplexity(ax, [dense, *(min(row["perplexity"], HIGHEST * dense) for row in rows)])
    ax.set_xlabel(X_AXES[x])
    ax.set_ylabel("perplexity (per token), log scale")
    ax.set_title("{}, {:,} tokens".format(plain_text(rows[0]["model"]), rows[0]["tokens"]))
    legend_beside(ax)
    ends = []
    for family in families:
        cheapest = min((row for row in rows if row["family"] == family), key=lambda row: row[x])
        ends.append(f"{family} {cheapest['perplexity']:.2f} at {100 * cheapest[x]:.0f} ({cheapest['policy']})")
    about = X_AXES[x].removesuffix(" (%)")
    ax.set_label(f"Perplexity of {rows[0]['model']} (dense {dense:.2f}) against {about}, in percent: {listed(ends)}.")
    return ax


def pareto_figure(rows: Sequence[Mapping], dense: Mapping[str, float]) -> Figure:
    """The whole page: a line of two panels for each model, what is read and what is stored.

    rows: of ``best`` of all models. dense: the perplexity of each dense model by its model_sha256.
    """
    check_rows(rows, ("model_sha256", "family", "policy", "perplexity", "read", "stored"))
    models = list(dict.fromkeys(row["model_sha256"] for row in rows))
    panels = new_axes(len(models), 2, PANEL)
    for i, model in enumerate(models):
        for ax, x in zip(panels[2 * i :], ("read", "stored"), strict=False):
            cost_of_families([row for row in rows if row["model_sha256"] == model], dense[model], x, ax=ax)
        if legend := panels[2 * i].get_legend():
            legend.remove()  # the same curves as on the right
    return figure_of(panels[0])
