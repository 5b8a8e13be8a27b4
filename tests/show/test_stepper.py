"""Controls: their logic without widgets, their widgets without a browser."""

import html

import ipywidgets
import numpy as np
import pytest
import tiny

import minillm
from minillm.errors import MinillmError
from minillm.prefetch.buffer import PrefetchBuffer
from minillm.show.stepper import buffer_text, slider, stepper, threshold_range, threshold_view


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return minillm.load(tiny.folder(tmp_path_factory.mktemp("tiny")), dtype="float64")


def test_a_threshold_of_zero_cuts_next_to_nothing_and_changes_nothing(model):
    view = threshold_view(model, "A cat sat.", 0.0, layer=1, new_tokens=5)
    assert view.cut == 0 and view.mask.all() and not view.errors.any()
    assert view.dense == view.text
    assert view.mask.shape == (len(view.tokens), model.config.intermediate_size)
    assert len(view.errors) == len(model.layers)


def test_a_threshold_above_everything_cuts_all_and_loses_the_whole_output(model):
    view = threshold_view(model, "A cat sat.", 1e9, new_tokens=5)
    assert view.cut == 1 and not view.mask.any()
    assert np.array_equal(view.errors, np.ones(len(model.layers)))


def test_the_view_is_what_the_sparse_ffn_says(model):
    ids, t = model.tokenizer.encode("A cat sat on the mat."), 0.02
    with minillm.Trace(keep="blocks.1.mlp.*") as trace:
        model.hidden(ids, tap=trace)
    view = threshold_view(model, "A cat sat on the mat.", t, layer=1, new_tokens=3)
    mid = trace["blocks.1.mlp.mid"]
    assert np.array_equal(view.mask, np.abs(mid) > t) and 0 < view.mask.mean() < 1
    lost = np.where(view.mask, 0, mid) @ model.layers[1].down_proj.T
    assert np.isclose(view.errors[1], np.linalg.norm(lost) / np.linalg.norm(trace["blocks.1.mlp.out"]))
    assert f"threshold {t}" in str(view) and f"{100 * view.cut:.0f} % of all neurons cut" in str(view)


@pytest.mark.parametrize(("threshold", "layer"), [(-1, 0), (float("nan"), 0), (0.1, 99), (0.1, -1)])
def test_a_threshold_or_layer_that_is_none_is_refused(model, threshold, layer):
    with pytest.raises(MinillmError, match="expected a number >= 0 and a layer from 0 to"):
        threshold_view(model, "A cat sat.", threshold, layer)


def test_the_slider_redraws_when_it_is_moved_and_goes_from_little_to_nearly_everything(model):
    low, high = threshold_range(model, "A cat sat.")
    cuts = [threshold_view(model, "A cat sat.", t, new_tokens=1).cut for t in (low, high)]
    assert cuts[0] < 0.2 and cuts[1] > 0.97
    box = slider(ipywidgets, lambda value: f"<p>{value:.2f}</p>", 0.5, 8.0)
    value, field = box.children
    assert np.allclose((10**value.min, value.value, 10**value.max), (0.5, 2, 8)) and field.value == "<p>2.00</p>"
    value.value = 3.2
    assert field.value == "<p>3.20</p>"


def test_a_model_with_exact_zeros_has_a_slider_too():
    low, high = threshold_range(minillm.load("default-relu"), "A cat sat.")
    assert 0 < low < high


def buffer(tokens: int = 3) -> PrefetchBuffer:
    trace = np.zeros((tokens, 2, 6), bool)
    for t in range(tokens):
        trace[t, :, [t, t + 1]] = True
    found = PrefetchBuffer(2, 6, 2)
    found.follow(trace, np.roll(trace, 1, axis=2))
    return found


def test_the_text_of_a_buffer_is_its_last_events_and_its_contents():
    b = buffer()
    assert "nothing has happened yet" in buffer_text(b) and "0 of 2" in buffer_text(b)
    for _ in range(5):
        b.step()
    whole, two = buffer_text(b).splitlines(), buffer_text(b, last=2).splitlines()
    assert len(whole) == len(two) + 3 == 1 + 5 + 1 + 3
    assert [line.split()[0] for line in whole[1:6]] == ["0", "1", "2", "3", "4"]
    wide = PrefetchBuffer(1, 300, 200)
    wide.request(0, np.ones(300, bool))
    assert max(map(len, buffer_text(wide).splitlines())) < 100


def test_the_stepper_goes_on_by_one_or_ten_and_stops_at_the_end():
    b, twin = buffer(), buffer()
    box = stepper(ipywidgets, b)
    (one, ten), field = box.children[0].children, box.children[1]
    one.click()
    twin.step()
    assert b.events == twin.events and html.unescape(field.value) == f"<pre>{buffer_text(twin)}</pre>"
    ten.click()
    assert len(b.events) == 11 and not ten.disabled
    for _ in range(10):
        ten.click()
    twin.run()
    assert b.events == twin.events and one.disabled and ten.disabled
