"""Learned predictors as they are used: honest look-ahead, a refined shadow."""

import numpy as np
import pytest
import tiny

from minillm.errors import MinillmError
from minillm.predictors.copies import Shadow
from minillm.predictors.learned import Learned, Refined
from minillm.predictors.train import train


def test_one_layer_ahead_reads_the_layer_before_and_nothing_of_its_own(inputs):
    rng = np.random.default_rng(0)
    shapes = {"A": (2, 16, 3), "B": (2, 3, 24), "c": (2, 24)}
    tables = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    predictor, own = Learned((2, 16, 24), tables, ahead=1), Learned((2, 16, 24), tables)
    first = predictor.predict(0, 0, inputs)
    np.testing.assert_array_equal(first, own.predict(0, 0, inputs))  # layer 0 has none before it
    later = predictor.predict(1, 0, np.full_like(inputs, np.nan))
    np.testing.assert_array_equal(later, own.predict(1, 0, inputs))


def test_a_refined_shadow_begins_where_the_shadow_is(small):
    """With nothing learned (no epochs) z is 0 where the score is the threshold, and neurons keep their order."""
    model, thresholds = small
    shadow, x = Shadow.fit(model, 3), np.random.default_rng(0).standard_normal((6, 16))
    refined = train(model, thresholds, tiny.STORIES[:3], tiny.STORIES[3:], 2, shadow, epochs=0)
    assert isinstance(refined, Refined)
    scores = shadow.predict(1, 0, x)
    found = refined.predict(1, 0, x)
    np.testing.assert_array_equal(found > 0, scores > thresholds.layers[1]["mid"])
    order = np.argsort(scores, axis=1)
    assert (np.diff(np.take_along_axis(found, order, axis=1)) > -1e-9).all()
    assert refined.nbytes == shadow.nbytes + 2 * 2 * (2 * (16 + 24) + 2 * 24)


def test_one_layer_ahead_needs_the_layer_before_first(inputs):
    tables = {"A": np.ones((2, 16, 3)), "B": np.ones((2, 3, 24)), "c": np.ones((2, 24))}
    with pytest.raises(MinillmError, match="layer 1 is predicted from the layer before it"):
        Learned((2, 16, 24), tables, ahead=1).predict(1, 0, inputs)
