"""Traits of predictors, and the check that a predictor is for this model."""

import numpy as np
import pytest
from made import MAKERS

from minillm.errors import MinillmError
from minillm.predictors.baselines import Chance
from minillm.predictors.oracle import Oracle
from minillm.predictors.protocol import LOOKAHEADS, Predictor, check_fits


class Plain(Predictor):
    """As little as a predictor may say of itself."""

    name, shape, nbytes = "plain", (2, 16, 24), 0

    def predict(self, index, position, x):
        return np.zeros((len(x), 24), x.dtype)


def test_what_a_predictor_does_not_say_has_a_default(small):
    plain = Plain()
    check_fits(plain, small[0])
    assert plain.observe(0, 0, np.ones((1, 16)), None) is None
    assert (plain.sequential, plain.needs_truth, plain.reads_gate, plain.free) == (False,) * 4
    assert plain.selects and plain.lookaheads == () and plain.cutoffs is None and plain.trained_on == frozenset()


@pytest.mark.parametrize("kind", MAKERS)
def test_every_predictor_says_what_it_needs_and_how_early_it_can_guess(kind, small):
    predictor = MAKERS[kind](*small)
    poor = kind in ("chance", "static", "previous-token")
    early = LOOKAHEADS if poor else ("layer",) if "ahead" in kind else ()
    assert predictor.lookaheads == early and predictor.selects != poor and not predictor.free
    assert predictor.sequential == predictor.needs_truth == (kind == "previous-token")
    assert predictor.reads_gate == (kind == "own gate")
    assert isinstance(predictor.shape, tuple) and predictor.shape == (2, 16, 24)


def test_the_oracle_is_a_bound_that_may_know_anything(small):
    oracle = Oracle(*small)
    assert oracle.free and oracle.selects and oracle.lookaheads == LOOKAHEADS and oracle.nbytes == 0


def test_a_predictor_of_another_shape_is_refused_and_one_that_fits_gets_the_model(small):
    with pytest.raises(MinillmError, match="belongs to another model"):
        check_fits(Chance((3, 16, 24)), small[0])
    shadow = MAKERS["own gate"](*small)
    check_fits(shadow, small[0])
    assert shadow.predict(0, 0, np.ones((2, 16))).shape == (2, 24)
