"""The figure of Sparsing Law: points are means over seeds, bars reach from the least to the most."""

import numpy as np
import pytest
from figures import check_figure

from minillm.errors import MinillmError
from minillm.show.canvas import alt_text, figure_of
from minillm.show.results_laws import active_while_training
from minillm.study.laws import LOGSPACE, VANILLA, fit

TOKENS = np.array([60, 120, 200, 300, 420, 600]) * 1e3


def rows(kept: np.ndarray) -> list[dict[str, float]]:
    return [{"tokens": t, "kept": k} for t, k in zip(TOKENS.tolist(), kept.tolist(), strict=True)]


RELU = 0.08 + np.exp(-((TOKENS / 1e6) ** 0.5) - 2)
SILU = 0.2 - 0.01 / (TOKENS / 1e6) ** 0.5
CURVES = {"relu": [rows(RELU - 0.01), rows(RELU + 0.01)], "silu": [rows(SILU)]}


def test_it_can_be_read_with_and_without_the_laws(recwarn):
    fits = {"relu": fit(LOGSPACE, TOKENS, RELU, 1e6), "silu": fit(VANILLA, TOKENS, SILU, 1e6)}
    for figure in (active_while_training(CURVES, fits), active_while_training(CURVES)):
        check_figure(figure_of(figure), recwarn, ("(thousands)", "(%)"))


def test_points_are_means_over_seeds():
    ax = active_while_training(CURVES)
    np.testing.assert_allclose(ax.containers[0].lines[0].get_xydata(), np.transpose([TOKENS / 1e3, 100 * RELU]))
    assert f"relu {100 * RELU[0]:.1f} to {100 * RELU[-1]:.1f}" in alt_text(ax)


def test_seeds_of_unequal_length_are_refused():
    with pytest.raises(MinillmError, match=r"relu: the seeds have .6, 2. checkpoints"):
        active_while_training({"relu": [rows(RELU), rows(RELU)[:2]]})
