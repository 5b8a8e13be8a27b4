"""Figures: axes with units, words in the file, nothing written over anything else, files whole or not there."""

import functools
import itertools
import os
import struct
import sys
import zlib

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from minillm.errors import MinillmError
from minillm.sparsity.policies import POLICIES
from minillm.study import plots

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


def figures():
    """Every figure, at its fullest and, where it differs, at its plainest."""
    twins = [f"default-{act}" for act in ("silu", "relu", "relu2", "gelu")]
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
    }  # fmt: skip


FIGURES = figures()


def drawn_texts(figure):
    """(text, its box) of everything written in a drawn figure."""
    FigureCanvasAgg(figure).draw()
    found = []
    for ax in figure.axes:
        artists = [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            artists += [tick.label1 for tick in ticks if low <= tick.get_loc() <= high]
        artists += ax.get_legend().get_texts() if ax.get_legend() else []
        found += [(a.get_text(), a.get_window_extent()) for a in artists if a.get_visible() and a.get_text().strip()]
    return found


def overlapping(texts):
    pairs = itertools.combinations(texts, 2)
    return [(a, b) for (a, box), (b, other) in pairs if box.padded(-1).overlaps(other.padded(-1))]


@functools.cache
def figure_of(name):
    """The figure of that name, for tests that only look at it."""
    drawn = FIGURES[name]()
    return getattr(drawn, "figure", drawn)


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_lies_on_another_or_leaves_the_figure(name):
    figure = figure_of(name)
    texts = drawn_texts(figure)
    assert not overlapping(texts)
    width, height = figure.get_size_inches() * figure.dpi
    for text, box in texts:
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, text
        assert box.height > 0.08 * figure.dpi  # about 6 points: legible


def test_overlapping_texts_would_be_noticed():
    ax = plots.match_by_position([{"group": g, "match": 0.5, "static_match": 0.5, "chance_match": 0.5} for g in GROUPS])
    ax.set_xticks(range(len(GROUPS)), GROUPS)  # unwrapped
    assert overlapping(drawn_texts(ax.figure))


@pytest.mark.parametrize("name", FIGURES)
def test_axes_say_what_they_show_in_which_unit(name):
    units = ("(%)", "(no unit, log scale)", "(per token)", "(per token), log scale", "(MB)", "(% of neurons)")
    for ax in figure_of(name).axes:
        for label in (ax.get_xlabel(), ax.get_ylabel()):
            assert label in ("layer", "kind of position") or label.endswith(units), label
        assert ax.get_title() and ax.get_legend()


@pytest.mark.parametrize("name", FIGURES)
def test_every_curve_has_a_colour_and_marker_of_its_own(name):
    for ax in figure_of(name).axes:
        lines = [line for line in ax.lines if not line.get_label().startswith("_") and "dense" not in line.get_label()]
        looks = {(str(line.get_color()), line.get_marker()) for line in lines}
        assert len(looks) == len(lines) and all(line.get_marker() != "None" for line in lines)


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
    assert "iou" in ax.get_ylabel() and "95 % changed 50 (chance 50)" in plots.alt_text(ax)


def test_natural_sparsity_shows_near_zeros_where_no_gate_is_exactly_zero():
    rows = natural("silu")
    assert "exactly zero" in plots.natural_by_layer(rows).get_ylabel()
    for row in rows["silu"]:
        row["gate_zeros"] = 0.0
    assert "below 10 %" in plots.natural_by_layer(rows).get_ylabel()


def test_a_figure_is_drawn_on_the_axes_that_are_given():
    left, right = plots.new_axes(1, 2)
    assert plots.cost_of_cuts(sweep_rows(), ax=right) is right and right.lines and not left.lines
    assert len(plots.new_axes()) == 1 and "pyplot" not in str(sorted(sys.modules.get("matplotlib").__dict__))


def png_texts(data: bytes) -> dict[str, str]:
    """The words in a PNG's tEXt and iTXt parts."""
    found, at = {}, 8
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + size]
        assert zlib.crc32(kind + body) == struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0]
        if kind in (b"tEXt", b"iTXt"):
            key, _, text = body.partition(b"\0")
            found[key.decode()] = text.lstrip(b"\0").decode()
        at += 12 + size
    return found


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_a_file_holds_the_alt_text_and_is_the_same_every_time(tmp_path, ending):
    files = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        ax = plots.cost_of_predictors(predictors(), dense=13.2)
        assert "12 predictors" in plots.alt_text(ax) == plots.alt_text(ax.figure)
        ax.set_label("My own words.")
        plots.save_figure(ax, folder / f"figure{ending}")
        files.append((folder / f"figure{ending}").read_bytes())
        assert len(list(folder.iterdir())) == 1
    assert files[0] == files[1]
    if ending == ".png":
        assert png_texts(files[0])["Description"] == "My own words."
    else:
        assert b"<dc:description>My own words.</dc:description>" in files[0]


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_words_for_who_cannot_see_it(name):
    words = plots.alt_text(figure_of(name))
    assert len(words) > 60 and words.endswith(".") and any(c.isdigit() for c in words)


@pytest.mark.parametrize("name", ["figure.pdf", "figure", "figure.PNG", ".svg"])
def test_another_ending_is_refused(tmp_path, name):
    with pytest.raises(MinillmError, match=r"expected \.png or \.svg"):
        plots.save_figure(plots.new_axes()[0], tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_there_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for draw in (lambda: plots.check_figure(tmp_path / "a.png"), lambda: plots.cost_of_cuts(sweep_rows())):
        with pytest.raises(MinillmError, match=r"figures need matplotlib: pip install '\.\[study\]'"):
            draw()


@pytest.mark.skipif(os.name == "nt", reason="file size limits are POSIX's")
@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_a_disk_that_fills_up_leaves_the_older_file(tmp_path, ending):
    import resource

    target = tmp_path / f"figure{ending}"
    target.write_text("older", encoding="utf-8")
    ax = plots.match_by_position([{"group": "A", "match": 0.5, "static_match": 0.5, "chance_match": 0.5}])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(MinillmError, match=rf"figure\{ending}: cannot be written \(File too large\)"):
            plots.save_figure(ax, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.read_text(encoding="utf-8") == "older" and list(tmp_path.iterdir()) == [target]
    with pytest.raises(MinillmError, match="cannot be written"):
        plots.save_figure(ax, tmp_path / "absent" / f"figure{ending}")
