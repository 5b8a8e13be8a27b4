"""Each wiring has its way back; a cut of the FFN goes back through every one of them."""

import pytest
import tiny
from gradients import wrong
from passes import cut

from minillm.training.blocks import WIRINGS_BACK
from minillm.transformer.blocks import WIRINGS


def test_each_wiring_has_a_way_back():
    assert WIRINGS_BACK.keys() == WIRINGS.keys()


@pytest.mark.parametrize("family", tiny.OTHERS)
def test_the_gradients_of_a_cut_model_of_each_family(family):
    model = tiny.model(family)
    assert wrong(model, ffn=cut(model, "mid", 0.02)) == []
