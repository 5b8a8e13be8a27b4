"""Names from outside are drawn as they are: no formula, no missing letter, nothing that steers a terminal or a page."""

import warnings
from xml.etree import ElementTree

import numpy as np
import pytest
from figures import written

from minillm.divergence import Row
from minillm.show import canvas
from minillm.show.explain_passes import cache_growth, error_per_step, sampling_bars, training_curve, work_per_token
from minillm.show.explain_values import neuron_raster
from minillm.show.html import text
from minillm.show.primer import file_layout, merges
from minillm.show.results_buffer import bytes_by_capacity, hit_rate_by_capacity
from minillm.show.results_cuts import beside_the_paper, cost_of_cuts
from minillm.show.results_distributions import magnitudes_by_layer, natural_by_layer
from minillm.show.results_predictors import bytes_read, cost_of_predictors, match_by_position, precision_recall
from minillm.show.svg import svg

NAME = "_a$b_c$ \\frac{%s} $\\oops \x1b[31m\u202e 模型 😀"
ABOUT = {"model": NAME, "tokens": 9, "protocol": "documents", "context": 8, "by": "tensor", "achieved": 0.5}


def cuts(policy):
    reads = {"neuron_sparsity": 0.5, "read_exact": 0.7, "read_known_mask": 0.5}
    dense = ABOUT | reads | {"policy": "dense", "by": None, "target": None, "perplexity": 10.0, "vs_dense": 1.0}
    return [dense, ABOUT | reads | {"policy": policy, "target": 0.5, "perplexity": 11.0, "vs_dense": 1.1}]


def of_a_buffer():
    same = {"lru": 0.2, "belady": 0.3, "lru_bytes": 1e6, "belady_bytes": 9e5, "dense_bytes": 2e6}
    return [
        {"keeper": NAME, "predictor": name, "capacity_share": share, "hit_rate": share, "bytes_per_token": 1e6} | same
        for name in (NAME, "mid") for share in (0.1, 0.5)
    ]  # fmt: skip


RATES = {"match": 0.5, "static_match": 0.4, "chance_match": 0.3}
FIGURES = {
    "cuts": lambda: cost_of_cuts(cuts(NAME)),
    "paper": lambda: beside_the_paper(cuts("dhar")),
    "hits": lambda: hit_rate_by_capacity(of_a_buffer()),
    "bytes": lambda: bytes_by_capacity(of_a_buffer()),
    "magnitudes": lambda: magnitudes_by_layer(np.array([0.1, 1.0]), np.array([[0.2, 1.0]]), "mid", NAME),
    "natural": lambda: natural_by_layer({NAME: [{"layer": 0, "gate_zeros": 0.5}]}),
    "predictors": lambda: cost_of_predictors(
        [{"predictor": NAME, "fraction": 0.5, "bytes_per_token": 1e6, "perplexity": 9.0}], 8.0
    ),
    "recall": lambda: precision_recall([{"predictor": NAME, "recall": 0.5, "precision": 0.5}]),
    "read": lambda: bytes_read({"dense": 2e6, NAME: 1e6}),
    "match": lambda: match_by_position([{"variant": NAME, "scope": "window"} | RATES]),
    "steps": lambda: error_per_step([Row("embed", "ok", 0, 0), Row(NAME, "differs", 1e-3, 1e-3)]),
    "sampling": lambda: sampling_bars([NAME, "a"], {NAME: np.array([0.5, 0.5])}),
    "cache": lambda: cache_growth(
        [{"name": name, "positions": 1, "bytes": 9.0} for name in (NAME, "b")]
    ),
    "work": lambda: work_per_token([{"name": NAME, "positions": p, "multiply_adds": 1e6 * p} for p in (1, 100)]),
    "training": lambda: training_curve([{"step": 1, NAME: 2.0}, {"step": 2, NAME: 1.0}]),
    "raster": lambda: neuron_raster(np.array([[True, False]]), [NAME]),
    "merges": lambda: merges([list("a$猫"), ["a$", "猫"]]),
    "file": lambda: file_layout([(0, 8, NAME)], 8),
}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_a_hostile_name_is_drawn_without_a_formula_a_warning_or_a_control_character(name, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ax = FIGURES[name]()
        canvas.save_figure(ax, tmp_path / "figure.svg")
        ElementTree.parse(tmp_path / "figure.svg")  # XML has no control characters
        words = [t.get_text() for t in written(canvas.figure_of(ax))]
    assert any(r"\$" in word or "□" in word for word in words), words  # the name is there
    assert all(word.count("$") == word.count(r"\$") or "mathdefault" in word for word in words)
    assert not any(c in word for word in [*words, canvas.alt_text(ax)] for c in "\x1b\u202e")
    assert "\x1b" not in svg(ax, "x", "title")


def test_a_name_is_cut_where_it_would_leave_no_room_and_kept_where_a_legend_would_leave_it_out():
    assert canvas.plain_text("default") == "default" and canvas.plain_text("_x") == " _x"
    assert len(canvas.plain_text("x" * 500)) <= canvas.LONGEST_NAME
    assert canvas.plain_text("猫$1") == r"□\$1"


def test_a_page_shows_what_would_steer_it_as_text():
    assert text("<b>\x1b[2J\x00\u202e</b>\n\t") == "&lt;b&gt;\\x1b[2J\\x00\\u202e&lt;/b&gt;\n\t"


@pytest.mark.parametrize(("low", "high"), [(10, 31), (3, 9.9), (9, 1e6), (1.2, 1.4), (1e-3, 30), (10, 1e12)])
def test_a_logarithmic_axis_has_enough_plain_numbers(low, high):
    ticks = canvas.log_ticks(low, high)
    assert 3 <= len(ticks) <= 9 and low <= ticks[0] < ticks[-1] <= high
    ax = canvas.new_axes()[0]
    canvas.log_axis(ax, "y", low, high)
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert len(labels) == len(ticks) and not any("e" in label or "$" in label for label in labels)
