"""Figures of distributions: units, near-zeros where there are no zeros."""

import numpy as np
import pytest
from figures import check_figure

from minillm.show.canvas import figure_of
from minillm.show.results_distributions import magnitudes_by_layer, magnitudes_figure, natural_by_layer


def natural(*models):
    keys = ("gate_zeros", "gate_below_1_percent", "gate_below_10_percent", "mid_zeros")
    return {m: [{"layer": i, **dict.fromkeys(keys, (n + i / 9) / 4)} for i in range(8)] for n, m in enumerate(models)}


def figures():
    """Every figure, at its fullest and, where it differs, at its plainest."""
    twins = [f"default-{act}" for act in ("silu", "relu", "relu2", "gelu")]
    at = np.geomspace(1e-4, 20, 200)
    shares = np.stack([1 - np.exp(-at / (0.1 + 0.2 * i)) for i in range(32)])
    return {
        "magnitudes": lambda: magnitudes_by_layer(at, shares, "gate_pre", "default"),
        "magnitudes of one layer": lambda: magnitudes_by_layer(at, shares[:1], "mid"),
        "magnitudes of every step": lambda: magnitudes_figure(
            {step: (at, shares[:8]) for step in ("gate_pre", "gate", "up", "mid", "out")}, "default"
        ),
        "natural": lambda: natural_by_layer(natural(*twins)),
        "natural of one model": lambda: natural_by_layer(natural("default"), "mid_zeros"),
    }


FIGURES = figures()


UNITS = ("(%)", "(no unit, log scale)")
NAMES = ("layer",)  # an axis that has names of things, and no unit


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_can_be_read_and_has_an_alt_text(name, recwarn):
    check_figure(figure_of(FIGURES[name]()), recwarn, UNITS, NAMES)


def test_natural_sparsity_shows_near_zeros_where_no_gate_is_exactly_zero():
    rows = natural("silu")
    assert "exactly zero" in natural_by_layer(rows).get_ylabel()
    for row in rows["silu"]:
        row["gate_zeros"] = 0.0
    assert "below 10 %" in natural_by_layer(rows).get_ylabel()
