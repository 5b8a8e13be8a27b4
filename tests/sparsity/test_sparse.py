"""From a policy and thresholds to a FeedForward or a Selector."""

import numpy as np
import pytest
import tiny
from cutting import NEURON_POLICIES
from passes import cut

from minillm.errors import MinillmError, ThresholdsError
from minillm.predictors.select import sparse_ffn
from minillm.sparsity.calibrate import calibrate
from minillm.trace import Trace
from minillm.transformer.attention import KVCache

IDS = [1, 5, 3, 9, 30, 2, 7]
FORMS = ("masked", "gathered")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("policy", NEURON_POLICIES)
def test_a_threshold_above_everything_leaves_the_attention_alone(form, policy):
    model = tiny.model("mistral")
    ffn = cut(model, policy, 1e9, form)
    silent = model.forward(IDS, ffn=lambda x, layer, position, tap: np.zeros_like(x))
    np.testing.assert_allclose(model.forward(IDS, ffn=ffn), silent, rtol=1e-13)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("policy", NEURON_POLICIES)
def test_a_cut_model_gives_the_same_token_by_token_as_in_one_pass(form, policy):
    model = tiny.model("llama")
    ffn, cache = cut(model, policy, 0.4, form), KVCache(model.config, 8, np.float64)
    steps = np.concatenate([model.forward([index], cache, ffn) for index in IDS])
    np.testing.assert_allclose(steps, model.forward(IDS, ffn=ffn), rtol=0, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("policy", NEURON_POLICIES)
def test_a_float32_model_stays_float32(form, policy):
    model = tiny.model("llama", np.float32)
    with Trace() as trace:
        model.forward(IDS, ffn=cut(model, policy, 0.4, form), tap=trace)
    values = [value for name, value in trace.items() if not name.endswith(".reads")]  # a report, and float64
    assert {value.dtype for value in values} == {np.dtype(np.float32), np.dtype(bool)}


@pytest.mark.parametrize("form", FORMS)
def test_a_neuron_that_an_edit_takes_out_of_the_mask_is_gone(form):
    model = tiny.model("llama")
    ffn = cut(model, "dhar", 0.2, form)

    def without_the_first_six(mask: np.ndarray) -> np.ndarray:
        mask[:, :6] = False
        return mask

    with Trace(keep="blocks.0.mlp.mid_cut", edits={"blocks.0.mlp.mask": without_the_first_six}) as trace:
        model.forward(IDS, ffn=ffn, tap=trace)
    assert not trace["blocks.0.mlp.mid_cut"][:, :6].any() and trace["blocks.0.mlp.mid_cut"][:, 6:].any()


def test_an_unknown_form_and_thresholds_of_another_model_are_refused(model):
    thresholds = calibrate(model, ["a cat"], "mid", 0.5)
    with pytest.raises(MinillmError, match="form is 'fast', expected one of masked, gathered"):
        sparse_ffn(model, thresholds, form="fast")
    with pytest.raises(ThresholdsError, match="for 2 layers, the model has 3"):
        sparse_ffn(tiny.model(num_hidden_layers=3), thresholds)
