"""Figures of what a cut costs: curves, bands and published points are the rows."""

import numpy as np
import pytest
from figures import check_figure

from minillm.errors import MinillmError
from minillm.show import canvas
from minillm.show.canvas import figure_of
from minillm.show.results_cuts import beside_the_paper, cost_of_cuts, speed_against_perplexity, sweep_figure
from minillm.sparsity.policies import POLICIES

ABOUT = {"tokens": 20_000, "protocol": "documents", "context": 512}


def sweep_rows(model="default-relu2", by="neuron", policies=tuple(POLICIES), targets=(0.3, 0.5, 0.7), cost=1.0, **more):
    """Rows as a sweep would give them, with as many curves as there can be."""
    rows = [{"policy": "dense", "by": None, "target": None, "neuron_sparsity": 0.0, "read_exact": 1.0, "vs_dense": 1.0}]
    for n, policy in enumerate(policies):
        for target in targets:
            rows.append({"policy": policy, "by": by, "target": target, "vs_dense": 1 + cost * (n + 1) * target**4})
            rows[-1] |= {"neuron_sparsity": target, "read_exact": 1 - target * (1 + n % 3) / 3}
    for row in rows:
        height = row["perplexity"] = 13.2 * row["vs_dense"]
        row |= {"model": model, "perplexity_low": 0.98 * height, "perplexity_high": 1.02 * height} | ABOUT | more
    return rows


def speeds(groups=(1, 4, 8, 16, 32), top=0.3, **more):
    """Rows of the page that joins speed with perplexity."""
    return [
        {"group": g, "order": order, "sparsity": s, "speedup": (1 + (g > 1)) / (1 - s), "increase": top * s**3 * g}
        | more
        for g in groups
        for order in (("stored", "clustered") if g > 1 else ("stored",))
        for s in (0.9, 0.5)
    ]


def figures():
    """Every figure, at its fullest and, where it differs, at its plainest."""
    paper = sweep_rows("default", "tensor", ("dhar",), (0.3, 0.4, 0.5))
    paper += sweep_rows("tinystories-656k", "tensor", ("dhar",), (0.3, 0.4, 0.5), 5)
    plain = [
        {k: v for k, v in row.items() if "_low" not in k and "_high" not in k} for row in sweep_rows(policies=["mid"])
    ]
    return {
        "cost": lambda: cost_of_cuts(sweep_rows()),
        "cost of a wide range": lambda: cost_of_cuts(sweep_rows(cost=30), "read_exact"),
        "cost of one policy": lambda: cost_of_cuts(plain, "read_exact"),
        "sweep of two models": lambda: sweep_figure(sweep_rows() + sweep_rows("tinystories-656k", cost=30)),
        "figure 8": lambda: sweep_figure(paper),
        "speed": lambda: speed_against_perplexity(speeds(low=1.5, high=3.0)),
        "speed of a wide range": lambda: speed_against_perplexity(speeds(top=3) + speeds((1,), -0.001)),
    }


FIGURES = figures()


UNITS = ("(%)", "(per token)", "(per token), log scale", "(times dense)")


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_can_be_read_and_has_an_alt_text(name, recwarn):
    check_figure(figure_of(FIGURES[name]()), recwarn, UNITS)


def test_a_policy_looks_the_same_whichever_others_are_beside_it():
    many, few = cost_of_cuts(sweep_rows()), cost_of_cuts(sweep_rows(policies=("mid", "topp")))
    looks = [{line.get_label(): (line.get_color(), line.get_marker()) for line in ax.lines} for ax in (many, few)]
    assert all(looks[0][policy] == looks[1][policy] for policy in ("mid", "topp"))


def test_a_method_that_is_no_policy_is_drawn_with_a_look_of_its_own():
    rows = sweep_rows(policies=("wanda", "mid", "magnitude"))
    lines = {line.get_label(): line for line in cost_of_cuts(rows).lines}
    assert {"wanda", "mid", "magnitude"} <= set(lines)
    looks = {(lines[name].get_color(), lines[name].get_marker()) for name in ("wanda", "mid", "magnitude")}
    assert len(looks) == 3


def test_what_is_published_is_marked_and_ours_is_relative_to_our_own_dense_model():
    ax = beside_the_paper(sweep_rows("ours", "tensor", ("dhar",), (0.5, 0.3), 2.0))
    lines = {line.get_label(): line for line in ax.lines}
    published = [label for label in lines if label.endswith("(published, read off the figure)")]
    assert [label.split()[0] for label in published] == ["Llama-3-8B", "Phi-3-mini", "Mistral-7B"]
    assert all(lines[label].get_linestyle() == "--" for label in published)
    np.testing.assert_allclose(lines["ours (this run)"].get_xydata(), [[0, 0], [30, 1.62], [50, 12.5]])
    assert lines[published[0]].get_ydata()[-1] == pytest.approx(100 * (10.64 / 6.14 - 1))
    with pytest.raises(MinillmError, match="none of the rows is of policy dhar by tensor"):
        beside_the_paper(sweep_rows(by="neuron"))


def test_a_sweep_of_dhar_by_tensor_is_the_papers_figure_and_any_other_is_two_panels_a_model():
    paper = sweep_rows(by="tensor", policies=("dhar",))
    assert [ax.get_title() for ax in sweep_figure(paper).axes] == ["The paper's rule (dhar, by tensor)"]
    two = sweep_figure(sweep_rows("a") + sweep_rows("b", by="tensor")).axes
    assert [ax.get_title()[0] for ax in two] == ["a", "a", "b", "b"]
    assert ["sparsity" in ax.get_xlabel() for ax in two] == [True, False] * 2


def test_curves_and_bands_are_the_rows():
    rows = sweep_rows(policies=("mid",))
    ax = cost_of_cuts(rows[::-1])
    line = next(line for line in ax.lines if line.get_label() == "mid")
    assert line.get_xydata().tolist() == [[100 * r["neuron_sparsity"], r["perplexity"]] for r in rows[1:]]
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == rows[1]["perplexity_low"] and band[:, 1].max() == rows[-1]["perplexity_high"]


def curves_of(ax):
    return {line.get_label(): line.get_xydata() for line in ax.lines}


def test_speed_and_perplexity_are_the_rows_by_block_size_with_the_cheaper_order():
    rows = speeds((1, 4), low=2.0, high=4.0)
    rows = [row | {"increase": row["increase"] * (0.5 if row["order"] == "clustered" else 1)} for row in rows]
    ax = speed_against_perplexity(rows)
    assert set(curves_of(ax)) == {"front: best of all", "single neurons", "blocks of 4, clustered", "dense"}
    own = sorted([100 * r["increase"], r["speedup"]] for r in rows if r["order"] == "clustered")
    np.testing.assert_allclose(curves_of(ax)["blocks of 4, clustered"], own)
    spread = ax.collections[0].get_segments()
    assert [segment[:, 1].tolist() for segment in spread] == [[2, 4], [2, 4]]
    whole = speed_against_perplexity([row | {"ffn_share": 0.5} for row in rows], token=True)
    np.testing.assert_allclose(curves_of(whole)["blocks of 4, clustered"], [[x, 1 / (0.5 + 0.5 / y)] for x, y in own])
    spread = whole.collections[0].get_segments()
    np.testing.assert_allclose([segment[:, 1] for segment in spread], [[1 / 0.75, 1 / 0.625]] * 2)
    assert "a token" in whole.get_ylabel() and "a token" in canvas.alt_text(whole)


def test_points_carry_the_share_left_out_and_the_front_is_what_nothing_beats():
    ax = speed_against_perplexity(speeds((1, 8)))
    assert sorted(text.get_text() for text in ax.texts) == ["50", "50", "90", "90"]
    x, y = curves_of(ax)["front: best of all"].T
    assert (np.diff(x) > 0).all() and (np.diff(y) > 0).all()
    everything = [(100 * row["increase"], row["speedup"]) for row in speeds((1, 8))]
    for paid, speed in everything:  # each is on the front or below it
        assert speed <= y[x <= paid + 1e-9].max()
    assert "left out" in ax.get_title() and "front" in canvas.alt_text(ax)


def test_no_panel_has_more_than_five_block_sizes():
    names = set(curves_of(speed_against_perplexity(speeds((1, 2, 4, 8, 16, 32, 64, 128)))))
    assert len(names - {"front: best of all", "dense"}) == 5


@pytest.mark.parametrize(
    ("draw", "given", "said"),
    [
        (speed_against_perplexity, [{"group": 1}], "have no sparsity, speedup and increase"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_sentence(draw, given, said):
    with pytest.raises(MinillmError, match=said):
        draw(given)
