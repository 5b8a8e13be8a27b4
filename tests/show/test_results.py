"""Figures of results: what is drawn is what the rows say, axes have units, nothing is written over anything else."""

import functools

import numpy as np
import pytest
from figures import check_labels, check_looks, check_texts

from minillm.errors import MinillmError
from minillm.prefetch.clock import Interval
from minillm.show import canvas
from minillm.show import results as plots
from minillm.sparsity.policies import POLICIES

ABOUT = {"tokens": 20_000, "protocol": "documents", "context": 512}
PREDICTORS = "chance static previous-token sign svd-32 shadow-2 shadow-3 shadow-4 shadow-8 learned look-ahead oracle"
GROUPS = ("A shared prefix", "B changed positions", "C scattered substitutions", "D aligned paraphrase")


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


def natural(*models):
    keys = ("gate_zeros", "gate_below_1_percent", "gate_below_10_percent", "mid_zeros")
    return {m: [{"layer": i, **dict.fromkeys(keys, (n + i / 9) / 4)} for i in range(8)] for n, m in enumerate(models)}


def predictors():
    names = PREDICTORS.split()
    return [
        {"predictor": name, "fraction": f, "bytes_per_token": 4e6 * f + 1e5 * n, "perplexity": 13.3 + n * (1 - f)}
        for n, name in enumerate(names)
        for f in (0.3, 0.501, 0.7)
    ]


def buffer_rows(names=("lru", "lfu", "window-4", "random", "belady"), predictors=("policy's own mask",)):
    """Rows as replay and prefetch_rows give them, in no order."""
    rows = []
    for p, predictor in enumerate(predictors):
        for n, name in enumerate(names):
            for share in (1.0, 0.0, 0.1, 0.5):
                hits, rivals = share ** (1 - n / 9), {"lru": share**0.9, "belady": share**0.5}
                rows.append({"keeper": name, "capacity_share": share, "hit_rate": hits, "predictor": predictor})
                rows[-1] |= {"bytes_per_token": (1.2 + p) * (1 - hits) * 1e6, "dense_bytes": 2.4e6} | rivals
                rows[-1] |= {f"{rival}_bytes": 1.2e6 * (1 - hit) for rival, hit in rivals.items()}
    return rows


def timeline(layers=8, tokens=2, each=1e-3):
    """Intervals of every kind."""
    found, now = [], 5.0
    for t in range(tokens):
        for i in range(layers):
            found += [Interval(t, i, "rest", now, now + each), Interval(t, i, "stall", now + each, now + 3 * each)]
            found += [Interval(t, i, "fetch", now + each, now + 2 * each)]
            found += [Interval(t, i, "prefetch", now + 2 * each, now + 3 * each)]
            found += [Interval(t, i, "ffn", now + 3 * each, now + 4 * each)]
            now += 4 * each
        found.append(Interval(t, layers, "head", now, now + each))
        now += each
    return found


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
    twins = [f"default-{act}" for act in ("silu", "relu", "relu2", "gelu")]
    names = PREDICTORS.split()
    at = np.geomspace(1e-4, 20, 200)
    shares = np.stack([1 - np.exp(-at / (0.1 + 0.2 * i)) for i in range(32)])
    paper = sweep_rows("default", "tensor", ("dhar",), (0.3, 0.4, 0.5))
    paper += sweep_rows("tinystories-656k", "tensor", ("dhar",), (0.3, 0.4, 0.5), 5)
    match = [{"group": g, "match": 1 - n / 5, "static_match": 0.62, "chance_match": 0.5} for n, g in enumerate(GROUPS)]
    plain = [
        {k: v for k, v in row.items() if "_low" not in k and "_high" not in k} for row in sweep_rows(policies=["mid"])
    ]
    return {
        "magnitudes": lambda: plots.magnitudes_by_layer(at, shares, "gate_pre", "default"),
        "magnitudes of one layer": lambda: plots.magnitudes_by_layer(at, shares[:1], "mid"),
        "magnitudes of every step": lambda: plots.magnitudes_figure(
            {step: (at, shares[:8]) for step in ("gate_pre", "gate", "up", "mid", "out")}, "default"
        ),
        "natural": lambda: plots.natural_by_layer(natural(*twins)),
        "natural of one model": lambda: plots.natural_by_layer(natural("default"), "mid_zeros"),
        "cost": lambda: plots.cost_of_cuts(sweep_rows()),
        "cost of a wide range": lambda: plots.cost_of_cuts(sweep_rows(cost=30), "read_exact"),
        "cost of one policy": lambda: plots.cost_of_cuts(plain, "read_exact"),
        "sweep of two models": lambda: plots.sweep_figure(sweep_rows() + sweep_rows("tinystories-656k", cost=30)),
        "figure 8": lambda: plots.sweep_figure(paper),
        "predictors": lambda: plots.cost_of_predictors(predictors(), dense=13.2),
        "match": lambda: plots.match_by_position(match),
        "recall": lambda: plots.precision_recall(
            [{"predictor": n, "recall": 0.2 + i / 13, "precision": 0.9 - i / 20} for n in names for i in range(9)]
        ),
        "recall of one row": lambda: plots.precision_recall([{"predictor": "oracle", "recall": 1, "precision": 1}]),
        "hits": lambda: plots.hit_rate_by_capacity(buffer_rows()),
        "hits of two predictors": lambda: plots.hit_rate_by_capacity(
            buffer_rows(("lru", "hot"), ("shadow-4", "ahead-4"))
        ),
        "fetched": lambda: plots.bytes_by_capacity(buffer_rows()),
        "fetched, one row": lambda: plots.bytes_by_capacity(buffer_rows(("hot",))[:1]),
        "gantt": lambda: plots.gantt(timeline()),
        "gantt of 80 layers": lambda: plots.gantt(timeline(80, 1, 2e-4)),
        "read": lambda: plots.bytes_read(
            {"dense": 2.4e6, "oracle": 1.2e6, "predicted (4-bit shadow)": 1.4e6, "predicted, with a buffer": 6e5}
        ),
        "speed": lambda: plots.speed_against_perplexity(speeds(low=1.5, high=3.0)),
        "speed of a wide range": lambda: plots.speed_against_perplexity(speeds(top=3) + speeds((1,), -0.001)),
    }  # fmt: skip


FIGURES = figures()


@functools.cache
def figure_of(name):
    """The figure of that name, for tests that only look at it."""
    drawn = FIGURES[name]()
    return getattr(drawn, "figure", drawn)


UNITS = (
    "(%)", "(no unit, log scale)", "(per token)", "(per token), log scale", "(MB)", "(kB)", "(% of neurons)",
    "(% of a layer's neurons)", "(times dense)", "(ms)", "(ms); dotted: the next token",
)  # fmt: skip
NAMES = ("layer", "kind of position", "how the FFNs are run")  # an axis that has names of things, and no unit


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_can_be_read(name):
    figure = figure_of(name)
    check_texts(figure)
    check_labels(figure, UNITS, NAMES)
    check_looks(figure)
    assert all(ax.get_title() for ax in figure.axes)


def test_a_policy_looks_the_same_whichever_others_are_beside_it():
    many, few = plots.cost_of_cuts(sweep_rows()), plots.cost_of_cuts(sweep_rows(policies=("mid", "topp")))
    looks = [{line.get_label(): (line.get_color(), line.get_marker()) for line in ax.lines} for ax in (many, few)]
    assert all(looks[0][policy] == looks[1][policy] for policy in ("mid", "topp"))


def test_what_is_published_is_marked_and_ours_is_relative_to_our_own_dense_model():
    ax = plots.beside_the_paper(sweep_rows("ours", "tensor", ("dhar",), (0.5, 0.3), 2.0))
    lines = {line.get_label(): line for line in ax.lines}
    published = [label for label in lines if label.endswith("(published, read off the figure)")]
    assert [label.split()[0] for label in published] == ["Llama-3-8B", "Phi-3-mini", "Mistral-7B"]
    assert all(lines[label].get_linestyle() == "--" for label in published)
    np.testing.assert_allclose(lines["ours (this run)"].get_xydata(), [[0, 0], [30, 1.62], [50, 12.5]])
    assert lines[published[0]].get_ydata()[-1] == pytest.approx(100 * (10.64 / 6.14 - 1))
    with pytest.raises(MinillmError, match="none of the rows is of policy dhar by tensor"):
        plots.beside_the_paper(sweep_rows(by="neuron"))


def test_a_sweep_of_dhar_by_tensor_is_the_papers_figure_and_any_other_is_two_panels_a_model():
    paper = sweep_rows(by="tensor", policies=("dhar",))
    assert [ax.get_title() for ax in plots.sweep_figure(paper).axes] == ["The paper's rule (dhar, by tensor)"]
    two = plots.sweep_figure(sweep_rows("a") + sweep_rows("b", by="tensor")).axes
    assert [ax.get_title()[0] for ax in two] == ["a", "a", "b", "b"]
    assert ["sparsity" in ax.get_xlabel() for ax in two] == [True, False] * 2


def test_curves_and_bands_are_the_rows():
    rows = sweep_rows(policies=("mid",))
    ax = plots.cost_of_cuts(rows[::-1])
    line = next(line for line in ax.lines if line.get_label() == "mid")
    assert line.get_xydata().tolist() == [[100 * r["neuron_sparsity"], r["perplexity"]] for r in rows[1:]]
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == rows[1]["perplexity_low"] and band[:, 1].max() == rows[-1]["perplexity_high"]


def test_bars_of_patterns_take_the_rows_of_the_experiment():
    rates = {f"{kind}{rate}": 0.5 for kind in ("", "static_", "chance_") for rate in ("match", "recall", "iou")}
    rows = [{"variant": v, "scope": s} | rates for v, s in (("95 %", "prefix"), ("95 %", "changed"), (None, "window"))]
    ax = plots.match_by_position(rows, "iou")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["95 % prefix", "95 % changed", "window"]
    assert "iou" in ax.get_ylabel() and "95 % changed 50 (chance 50)" in canvas.alt_text(ax)


def test_natural_sparsity_shows_near_zeros_where_no_gate_is_exactly_zero():
    rows = natural("silu")
    assert "exactly zero" in plots.natural_by_layer(rows).get_ylabel()
    for row in rows["silu"]:
        row["gate_zeros"] = 0.0
    assert "below 10 %" in plots.natural_by_layer(rows).get_ylabel()


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_words_for_who_cannot_see_it(name):
    words = canvas.alt_text(figure_of(name))
    assert len(words) > 60 and words.endswith(".") and any(c.isdigit() for c in words)


def test_precision_and_recall_are_the_rows_in_order_of_recall():
    rows = [{"predictor": "sign", "recall": r, "precision": p} for r, p in ((0.9, 0.4), (0.2, 0.7), (0.5, 0.6))]
    ax = plots.precision_recall(rows)
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[20, 70], [50, 60], [90, 40]])
    assert "sign 90 and 40" in canvas.alt_text(ax)


def test_hits_and_bytes_are_the_rows_and_the_rivals_are_drawn_though_no_row_is_theirs():
    rows = buffer_rows(("hot",))
    for draw, key, scale in (
        (plots.hit_rate_by_capacity, "hit_rate", 100),
        (plots.bytes_by_capacity, "bytes_per_token", 1e-6),
    ):
        ax = draw(rows)
        lines = {line.get_label(): line.get_xydata() for line in ax.lines}
        own = sorted([100 * row["capacity_share"], scale * row[key]] for row in rows)
        np.testing.assert_allclose(lines["hot"], own)
        rival = "belady" if key == "hit_rate" else "belady_bytes"
        np.testing.assert_allclose(lines["belady"][2], [50, scale * rows[3][rival]])
        assert set(lines) == {"hot", "lru", "belady", "capacity / N" if key == "hit_rate" else "dense, no buffer"}
    looks = [{line.get_label(): line.get_color() for line in draw(buffer_rows()).lines} for draw in
             (plots.hit_rate_by_capacity, plots.bytes_by_capacity)]  # fmt: skip
    assert all(looks[0][name] == looks[1][name] for name in ("lru", "lfu", "window-4", "random", "belady"))


def test_bars_of_a_timeline_lie_where_its_intervals_do():
    found = timeline(3, 2)
    bars = {
        (round(bar.get_x(), 6), round(bar.get_width(), 6), round(bar.get_y() + bar.get_height() / 2, 2))
        for bar in plots.gantt(found).patches
    }
    lane = {True: 0.19, False: -0.19}
    expected = {
        (round(1e3 * (i.start - 5), 6), round(1e3 * (i.end - i.start), 6), round(i.layer + lane["fetch" in i.kind], 2))
        for i in found
    }
    assert bars == expected
    as_rows = plots.gantt([interval._asdict() for interval in found])
    assert canvas.alt_text(as_rows) == canvas.alt_text(plots.gantt(found))
    assert "4 layers and 2 tokens: 26 ms" in canvas.alt_text(as_rows) and "still for 46 %" in canvas.alt_text(as_rows)
    assert [label.get_text() for label in as_rows.get_yticklabels()] == ["0", "1", "2", "head"]


def test_shares_of_what_is_read_are_of_the_first_bar():
    ax = plots.bytes_read({"dense": 4000.0, "oracle": 1000.0})
    assert [bar.get_height() for bar in ax.patches] == [4, 1] and ax.get_ylabel().endswith("(kB)")
    assert [text.get_text() for text in ax.texts] == ["100 %", "25 %"]


def test_speed_and_perplexity_are_the_rows_by_block_size_and_order():
    rows = speeds((1, 4), low=2.0, high=4.0)
    ax = plots.speed_against_perplexity(rows)
    lines = {line.get_label(): line.get_xydata() for line in ax.lines}
    assert set(lines) == {"scattered", "blocks of 4, stored", "blocks of 4, clustered", "dense"}
    own = sorted([100 * r["increase"], r["speedup"]] for r in rows if r["group"] == 4 and r["order"] == "clustered")
    np.testing.assert_allclose(lines["blocks of 4, clustered"], own)
    spread = ax.collections[0].get_segments()
    assert [segment[:, 1].tolist() for segment in spread] == [[2, 4], [2, 4]]
    whole = plots.speed_against_perplexity([row | {"ffn_share": 0.5} for row in rows], token=True)
    lines = {line.get_label(): line.get_xydata() for line in whole.lines}
    np.testing.assert_allclose(lines["blocks of 4, clustered"], [[x, 1 / (0.5 + 0.5 / y)] for x, y in own])
    spread = whole.collections[0].get_segments()
    np.testing.assert_allclose([segment[:, 1] for segment in spread], [[1 / 0.75, 1 / 0.625]] * 2)
    assert "a token" in whole.get_ylabel() and "a token" in canvas.alt_text(whole)


@pytest.mark.parametrize(
    ("draw", "given", "said"),
    [
        (plots.precision_recall, [], "no rows, expected dicts with predictor, recall and precision"),
        (plots.precision_recall, [{"predictor": "a", "recall": 1}], "have no precision"),
        (plots.hit_rate_by_capacity, [], "there are no rows"),
        (plots.bytes_by_capacity, [{"dense_bytes": 1}], "have no keeper, capacity_share and bytes_per_token"),
        (plots.gantt, [], "there are no intervals"),
        (plots.bytes_read, {}, "nothing to draw"),
        (plots.speed_against_perplexity, [{"group": 1}], "have no sparsity, speedup and increase"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_sentence(draw, given, said):
    with pytest.raises(MinillmError, match=said):
        draw(given)
