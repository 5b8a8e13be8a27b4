"""The figure of the one picture: curves are the rows, and every family can be told apart in grey."""

import pytest
from figures import check_figure

from minillm.errors import MinillmError
from minillm.show.canvas import alt_text, figure_of
from minillm.show.results_pareto import HIGHEST, cost_of_families, pareto_figure

FAMILIES = (
    "oracle",
    "predictor",
    "inputs",
    "unstructured",
    "2:4",
    "structured",
    "Wanda + mid",
    "Wanda + dense mid",
    "SparseGPT + mid",
    "SparseGPT + dense mid",
    "SVD",
)
UNITS = ("(%)", "(per token), log scale")


def rows(model="tinystories-656k", families=FAMILIES, top=30.0):
    found = []
    for n, family in enumerate(families):
        for read in (0.25, 0.5, 0.75):
            height = 10 * (1 + top * n * (1 - read) ** 4)
            found.append({"family": family, "policy": f"best of {family}", "read": read, "perplexity": height})
            found[-1] |= {"stored": 1 - n * (1 - read) / 10, "perplexity_low": height / 1.1}
            found[-1] |= {"perplexity_high": height * 1.1, "model": model, "model_sha256": model, "tokens": 10_000}
    return found


def plain(found):
    return [{key: value for key, value in row.items() if "_low" not in key and "_high" not in key} for row in found]


FIGURES = {
    "read": lambda: cost_of_families(rows(), 9.9),
    "stored": lambda: cost_of_families(rows(), 9.9, "stored"),
    "without intervals": lambda: cost_of_families(plain(rows(families=FAMILIES[:2], top=0.1)), 9.9),
    "three models": lambda: pareto_figure(
        rows() + rows("default") + rows("stories260K", top=3), {"tinystories-656k": 9, "default": 9, "stories260K": 9}
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_can_be_read_and_has_an_alt_text(name, recwarn):
    check_figure(figure_of(FIGURES[name]()), recwarn, UNITS)


def test_curves_are_the_rows_and_intervals_stand_upon_them():
    found = rows(families=("oracle", "SVD"))
    ax = cost_of_families(found[::-1], 9.9)
    curves = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert curves["SVD"] == [[100 * row["read"], row["perplexity"]] for row in found[3:]]
    spread = [segment[:, 1].tolist() for lines in ax.collections for segment in lines.get_segments()]
    assert sorted(spread) == sorted([row["perplexity_low"], row["perplexity_high"]] for row in found)
    assert "dense (9.90)" in curves and "SVD" in alt_text(ax) and "(best of SVD)" in alt_text(ax)


def test_a_family_that_costs_far_too_much_leaves_the_panel_and_squeezes_no_other():
    ax = cost_of_families(rows(top=1e6), 9.9)
    assert ax.get_ylim()[1] < 1.2 * HIGHEST * 9.9


def test_a_model_has_two_panels_and_no_rows_are_refused():
    axes = pareto_figure(rows("a") + rows("b"), {"a": 9, "b": 9}).axes
    assert [ax.get_title()[0] for ax in axes] == ["a", "a", "b", "b"]
    assert ["read" in ax.get_xlabel() for ax in axes] == [True, False] * 2
    assert [ax.get_legend() is None for ax in axes] == [True, False] * 2
    with pytest.raises(MinillmError, match="there are no rows"):
        pareto_figure([], {})
