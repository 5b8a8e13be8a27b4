"""The figure of tuned models: a curve for each block size and kind, full points for what was tuned."""

import numpy as np
import pytest
from figures import check_figure

from minillm.errors import MinillmError
from minillm.show.canvas import figure_of
from minillm.show.results_tuned import speed_after_tuning


def tuned(groups=(8, 32), increases=(0.02, 0.2, 0.1), shares=(0.9, 0.5)):
    """Rows as study/tuned.py gives them, in no order. increases: at the larger share; tuned, router, oracle."""
    kinds = (("router", True), ("router", False), ("oracle", False), ("oracle", True))
    return [
        {"group": group, "sparsity": share, "chosen_by": by, "tuned": tuned, "speedup": group / 10 + share + n,
         "increase": share * group * (*increases, 0.01)[n]}
        for group in groups for share in shares for n, (by, tuned) in enumerate(kinds)
    ]  # fmt: skip


def curves_of(ax):
    return [line for line in ax.lines if len(line.get_xdata()) > 0 and not str(line.get_label()).startswith("dense")]


def test_every_kind_is_a_curve_from_the_smaller_share_to_the_larger(recwarn):
    ax = speed_after_tuning(tuned())
    curves = [line for line in curves_of(ax) if len(line.get_xdata()) == 2 and line.get_linestyle() != "None"]
    curves = [line for line in curves if line.get_marker() != "None"]
    assert len(curves) == 2 * 3  # the oracle of a tuned model stands in the table only
    full = [line for line in curves if line.get_markerfacecolor() != "white"]
    assert len(full) == 2 and {line.get_linestyle() for line in full} == {"-"}
    np.testing.assert_allclose(full[0].get_xdata(), 100 * np.array([0.5, 0.9]) * 8 * 0.02)
    np.testing.assert_allclose(full[0].get_ydata(), [0.8 + 0.5, 0.8 + 0.9])
    words = [text.get_text() for text in ax.get_legend().get_texts()]
    assert words[:2] == ["blocks of 8", "blocks of 32"] and "a bound" in words[-1] and len(words) == 5
    assert {text.get_text() for text in ax.texts} <= {"50", "90"} and ax.texts
    assert "blocks of 32, router, tuned with it: 3.7 times at +32.0 % and 4.1 times at +57.6 %" in ax.get_label()
    check_figure(figure_of(ax), recwarn)


@pytest.mark.parametrize("increases", [(-0.001, 0.2, 0.1), (-0.1, 50, 9), (0, 0, 0)])
def test_an_increase_at_or_below_nothing_has_its_place(increases, recwarn):
    ax = speed_after_tuning(tuned(increases=increases))
    low, high = ax.get_xlim()
    shown = [x for line in curves_of(ax) if line.get_marker() != "None" for x in line.get_xdata()]
    assert low < min(shown) and max(shown) < high
    check_figure(figure_of(ax), recwarn)


def test_of_two_runs_with_the_same_blocks_the_cheaper_is_drawn_and_rows_without_speed_are_not():
    rows = tuned((8,), shares=(0.5,))
    rows += [row | {"increase": row["increase"] + 0.5} for row in rows] + [rows[0] | {"sparsity": 0.7, "speedup": None}]
    points = [line for line in curves_of(speed_after_tuning(rows)) if line.get_marker() != "None"]
    assert [len(line.get_xdata()) for line in points] == [1, 1, 1]
    assert max(line.get_xdata()[0] for line in points) < 50 + 1e-6 + 100 * 0.5 * 8 * 0.2 - 50


def test_rows_without_any_speed_are_refused():
    with pytest.raises(MinillmError, match="none of the rows has a speed"):
        speed_after_tuning([row | {"speedup": None} for row in tuned()])
    with pytest.raises(MinillmError, match="there are no rows"):
        speed_after_tuning([])
