"""Figures of predictors: points and bars are the rows."""

import numpy as np
import pytest
from figures import check_figure

from minillm.errors import MinillmError
from minillm.show import canvas
from minillm.show.canvas import figure_of
from minillm.show.results_predictors import bytes_read, cost_of_predictors, match_by_position, precision_recall

PREDICTORS = "chance static previous-token sign svd-32 shadow-2 shadow-3 shadow-4 shadow-8 learned look-ahead oracle"


GROUPS = ("A shared prefix", "B changed positions", "C scattered substitutions", "D aligned paraphrase")


def predictors():
    names = PREDICTORS.split()
    return [
        {"predictor": name, "fraction": f, "bytes_per_token": 4e6 * f + 1e5 * n, "perplexity": 13.3 + n * (1 - f)}
        for n, name in enumerate(names)
        for f in (0.3, 0.501, 0.7)
    ]


def figures():
    """Every figure, at its fullest and, where it differs, at its plainest."""
    names = PREDICTORS.split()
    match = [{"group": g, "match": 1 - n / 5, "static_match": 0.62, "chance_match": 0.5} for n, g in enumerate(GROUPS)]
    return {
        "predictors": lambda: cost_of_predictors(predictors(), dense=13.2),
        "match": lambda: match_by_position(match),
        "recall": lambda: precision_recall(
            [{"predictor": n, "recall": 0.2 + i / 13, "precision": 0.9 - i / 20} for n in names for i in range(9)]
        ),
        "recall of one row": lambda: precision_recall([{"predictor": "oracle", "recall": 1, "precision": 1}]),
        "read": lambda: bytes_read(
            {"dense": 2.4e6, "oracle": 1.2e6, "predicted (4-bit shadow)": 1.4e6, "predicted, with a buffer": 6e5}
        ),
    }


FIGURES = figures()


UNITS = ("(%)", "(per token)", "(MB)", "(kB)", "(% of neurons)")
NAMES = ("kind of position", "how the FFNs are run")  # an axis that has names of things, and no unit


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_can_be_read_and_has_an_alt_text(name, recwarn):
    check_figure(figure_of(FIGURES[name]()), recwarn, UNITS, NAMES)


def test_precision_and_recall_are_the_rows_in_order_of_recall():
    rows = [{"predictor": "sign", "recall": r, "precision": p} for r, p in ((0.9, 0.4), (0.2, 0.7), (0.5, 0.6))]
    ax = precision_recall(rows)
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[20, 70], [50, 60], [90, 40]])
    assert "sign 90 and 40" in canvas.alt_text(ax)


def test_bars_of_patterns_take_the_rows_of_the_experiment():
    rates = {f"{kind}{rate}": 0.5 for kind in ("", "static_", "chance_") for rate in ("match", "recall", "iou")}
    rows = [{"variant": v, "scope": s} | rates for v, s in (("95 %", "prefix"), ("95 %", "changed"), (None, "window"))]
    ax = match_by_position(rows, "iou")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["95 % prefix", "95 % changed", "window"]
    assert "iou" in ax.get_ylabel() and "95 % changed 50 (chance 50)" in canvas.alt_text(ax)


def test_shares_of_what_is_read_are_of_the_first_bar():
    ax = bytes_read({"dense": 4000.0, "oracle": 1000.0})
    assert [bar.get_height() for bar in ax.patches] == [4, 1] and ax.get_ylabel().endswith("(kB)")
    assert [text.get_text() for text in ax.texts] == ["100 %", "25 %"]


@pytest.mark.parametrize(
    ("draw", "given", "said"),
    [
        (precision_recall, [], "no rows, expected dicts with predictor, recall and precision"),
        (precision_recall, [{"predictor": "a", "recall": 1}], "have no precision"),
        (bytes_read, {}, "nothing to draw"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_sentence(draw, given, said):
    with pytest.raises(MinillmError, match=said):
        draw(given)
