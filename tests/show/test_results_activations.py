"""Figures of activations compared: points and bars are the rows."""

import numpy as np
import pytest
from figures import check_figure

from minillm.show.canvas import alt_text, figure_of
from minillm.show.results_activations import (
    activations_figure,
    recall_of_predictors,
    reuse_of_neurons,
    sparsity_and_price,
)

MODELS = ("default-silu", "default-gelu", "default-relu", "default-relu2")
TRADEOFF = [
    {"model": model, "by": by, "neuron_sparsity": 0.5 + n / 9 + cett / 2, "vs_dense": 1 + 2 * cett**2}
    for n, model in enumerate(MODELS)
    for by, cett in ((None, 0.0), ("cett", 0.1), ("cett", 0.3), ("ppl", 0.01))
]
PREDICTORS = [
    {"model": model, "predictor": name, "recall": 1 / (1 + n), "active": 0.1, "perplexity": 17.0 * 3**n, "dense": 17.0}
    for model in MODELS
    for n, name in enumerate(("oracle", "chance", "static", "previous-token", "learned rank 16"))
]
AFFINITY = [
    {"model": model, "active": 0.1}
    | {f"reuse_{k}": 1 - 0.9**k + n / 50 for k in (1, 2, 4, 8, 16)}
    | {f"chance_{k}": 1 - 0.9**k for k in (1, 2, 4, 8, 16)}
    for n, model in enumerate(MODELS)
]
FIGURES = {
    "price": lambda: sparsity_and_price(TRADEOFF),
    "recall": lambda: recall_of_predictors(PREDICTORS),
    "reuse": lambda: reuse_of_neurons(AFFINITY),
    "reuse of nothing": lambda: reuse_of_neurons([AFFINITY[0] | {"reuse_1": None}, AFFINITY[1]]),
    "all": lambda: activations_figure(TRADEOFF, PREDICTORS, AFFINITY).axes[0],
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_can_be_read_and_has_an_alt_text(name, recwarn):
    without = ("model, and its share of active neurons", "tokens looked back")
    check_figure(figure_of(FIGURES[name]()), recwarn, ("(%)",), without)


def test_the_points_are_the_rows_by_cett_and_the_bars_the_recalls():
    ax = sparsity_and_price(TRADEOFF)
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[55, 2], [65, 18]])
    assert len(ax.lines) == 4 and "default-relu2 98 at +18" in alt_text(ax)
    bars = recall_of_predictors(PREDICTORS).patches
    assert [bar.get_height() for bar in bars[:4]] == [50] * 4 and len(bars) == 16
    reused = reuse_of_neurons(AFFINITY).lines
    np.testing.assert_allclose(reused[0].get_ydata()[:2], [10, 19])
    assert reused[1].get_linestyle() == ":" and len(reused) == 8
