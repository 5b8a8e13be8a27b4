"""Figures of whole passes: curves and bars are the rows, the first step that differs is named."""

import math

import numpy as np
import pytest
from figures import check_figure, tokens

from minillm.divergence import Comparison, Row
from minillm.errors import MinillmError
from minillm.show import canvas
from minillm.show.canvas import figure_of
from minillm.show.explain_passes import cache_growth, error_per_step, sampling_bars, training_curve, work_per_token
from minillm.steps import step_names


def errors(steps, first=None, each=1e-7):
    """Rows of a comparison, of which those from ``first`` on differ."""
    wrong = len(steps) if first is None else steps.index(first)
    rows = [Row(n, "ok" if i < wrong else "differs", each, each * 1e4 ** (i >= wrong)) for i, n in enumerate(steps)]
    return [Row("absent", "missing"), *rows]


def settings(*rows):
    """Probabilities under settings' names."""
    return dict(zip(("temperature 1", "greedy", "temperature 9"), rows, strict=True))


def figures():
    """Every figure, at its fullest and, where it differs, at its plainest."""
    likely = [np.array([0.3, 0.2, 0.1, 0.05, *[0.35 / 36] * 36]), np.eye(40)[0], np.ones(40) / 40]
    cache = [{"name": n, "positions": t, "bytes": 4096 * t * i} for t in (0, 64, 128) for i, n in enumerate("abc")]
    work = [{"name": n, "positions": t, "multiply_adds": 10**6 * t**i} for t in (1, 64) for i, n in enumerate("ab")]
    losses = [{"step": i, "loss": 3 / (1 + i), "held_out": 4 / (1 + i) if i % 5 == 0 else None} for i in range(50)]
    return {
        "errors": lambda: error_per_step(errors(step_names(8), "blocks.7.mlp.mid")),
        "errors of 40 layers": lambda: error_per_step(Comparison(errors(step_names(40)), 1e-5, None)),
        "errors of one layer": lambda: error_per_step(errors(step_names(1), "blocks.0.attn.q", 0.0)),
        "error of one step": lambda: error_per_step([Row("logits", "differs", math.inf, math.inf)]),
        "cache": lambda: cache_growth(cache),
        "cache of one row": lambda: cache_growth([{"positions": 1, "bytes": 12}]),
        "work": lambda: work_per_token(work),
        "sampling": lambda: sampling_bars(tokens(40), settings(*likely)),
        "sampling of one": lambda: sampling_bars(["a"], {"greedy": np.ones(1)}),
        "training": lambda: training_curve(losses),
    }


FIGURES = figures()


UNITS = (
    "(in execution order)",
    "(numbers: where a layer begins)",
    "(share of the largest value)",
    "(positions)",
    "(multiply-adds)",
    "(kB)",
    "(bytes)",
    "(MB)",
    "(␣ is a space)",
    "(%)",
    "(steps)",
    "(nats)",
)


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_can_be_read_and_has_an_alt_text(name, recwarn):
    check_figure(figure_of(FIGURES[name]()), recwarn, UNITS, titles=False)


def test_errors_are_the_rows_and_the_first_that_differs_is_named():
    steps = step_names(2)
    rows = errors(steps, "blocks.1.attn.scores")
    ax = error_per_step(Comparison(rows, 1e-5, "blocks.1.attn.scores"))
    lines = {line.get_label(): line.get_xydata() for line in ax.lines}
    wrong = steps.index("blocks.1.attn.scores")
    np.testing.assert_allclose(lines["agrees"], [[i, 1e-7] for i in range(wrong)])
    np.testing.assert_allclose(lines["differs"], [[i, 1e-3] for i in range(wrong, len(steps))])
    assert lines["tolerance 1e-05"][0][1] == 1e-5
    assert [text.get_text().strip() for text in ax.texts] == ["blocks.1.attn.scores"]
    assert "the first that differs is blocks.1.attn.scores, by 1.0e-03" in canvas.alt_text(ax)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1"]
    equal = error_per_step(errors(steps, None, 0.0))
    assert [line.get_label() for line in equal.lines] == ["equal bit for bit"]


def test_cache_and_training_are_the_rows():
    rows = [{"name": n, "positions": t, "bytes": 1000 * t * i} for t in (8, 2) for i, n in enumerate(("none", "all"))]
    lines = {line.get_label(): line.get_xydata().tolist() for line in cache_growth(rows).lines}
    assert lines == {"none": [[2, 0], [8, 0]], "all": [[2, 2], [8, 8]]}
    names = enumerate(("with", "without"))
    rows = [{"name": n, "positions": t, "multiply_adds": t**i} for i, n in names for t in (8, 2)]
    ax = work_per_token(rows)
    assert {line.get_label(): line.get_xydata().tolist() for line in ax.lines} == {
        "with": [[2, 1], [8, 1]], "without": [[2, 2], [8, 8]],
    }  # fmt: skip
    assert canvas.alt_text(ax).endswith("with 1 at 8 and without 8 at 8.")
    rows = [{"tokens": 10 * i, "loss": 5.0 - i, **({"held_out": 6.0} if i == 2 else {})} for i in range(3)]
    ax = training_curve(rows, unit="bits")
    lines = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert lines == {"loss": [[0, 5], [10, 4], [20, 3]], "held out": [[20, 6]]}
    assert ax.get_xlabel() == "training (tokens)" and ax.get_ylabel() == "loss (bits)"


def test_bars_of_a_setting_add_up_to_one_with_all_others():
    likely = np.array([0.001, 0.6, 0.3, 0.099])
    ax = sampling_bars(["a", " b", "c", "d"], {"plain": likely, "greedy": np.eye(4)[1]})
    plain, greedy = ([bar.get_height() for bar in bars] for bars in ax.containers)
    np.testing.assert_allclose(plain, [60, 30, 9.9, 0.1])
    np.testing.assert_allclose(greedy, [100, 0, 0, 0])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["␣b", "c", "d", "all others"]


@pytest.mark.parametrize(
    ("draw", "given", "said"),
    [
        (error_per_step, ([],), "there is no difference to draw"),
        (cache_growth, ([],), "there are no rows, expected dicts with positions and bytes"),
        (cache_growth, ([{"positions": 1}],), "the rows have no bytes"),
        (work_per_token, ([{"name": "a", "positions": 1}],), "the rows have no multiply_adds"),
        (sampling_bars, ([], {}), "there are no probabilities"),
        (sampling_bars, (["a"], {"greedy": np.ones(2)}), "found 1 tokens for 2 probabilities"),
        (training_curve, ([],), "there are no rows, expected dicts with step"),
        (training_curve, ([{"step": 1}],), "the rows have step alone, expected a loss beside it"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_sentence(draw, given, said):
    with pytest.raises(MinillmError, match=said):
        draw(*given)
