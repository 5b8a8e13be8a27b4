"""One layer ahead: what it may know, that the map is least squares, and that it agrees in chunks and in one pass."""

import numpy as np
import pytest
import tiny

from minillm.predictors.ahead import Ahead, Features
from minillm.predictors.cutoffs import fit_cutoffs
from minillm.predictors.select import sparse_ffn
from minillm.trace import Trace
from minillm.transformer.attention import KVCache
from minillm.transformer.texts import runs


def test_the_features_are_the_layer_before_and_the_token_before():
    rng = np.random.default_rng(0)
    below, here, features = rng.standard_normal((4, 3)), rng.standard_normal((4, 3)), Features()
    np.testing.assert_array_equal(features(0, 0, below), np.hstack([below, np.zeros_like(below)]))
    shifted = np.vstack([np.zeros((1, 3)), here[:-1]])
    np.testing.assert_array_equal(features(1, 0, here), np.hstack([below, shifted]))
    again = Features()  # the same in two pieces, after another text
    again(0, 0, here), again(1, 0, below)
    for rows, position in ((slice(0, 3), 0), (slice(3, 4), 3)):
        again(0, position, below[rows])
        found = again(1, position, here[rows])
        np.testing.assert_array_equal(found, np.hstack([below, shifted])[rows])


def test_a_layer_s_own_input_at_the_same_token_has_no_influence(small, inputs):
    model, thresholds = small
    predictor = Ahead.fit(model, thresholds, tiny.STORIES, 4)
    scores = []
    for last in (0.0, 100.0):
        here = inputs.copy()
        here[-1] = last
        predictor.predict(0, 0, inputs)
        scores.append(predictor.predict(1, 0, here))
    np.testing.assert_array_equal(*scores)


def test_at_eight_bits_it_is_the_least_squares_map_into_the_true_weights(small):
    model, thresholds = small
    predictor, f, x = Ahead.fit(model, thresholds, tiny.STORIES, 8), [], []
    features = Features()
    for run in runs(model, tiny.STORIES):
        with Trace(keep="blocks.*.mlp.norm") as trace:
            model.forward(run.ids, ffn=sparse_ffn(model, thresholds), tap=trace)
        features(0, 0, trace["blocks.0.mlp.norm"])
        f.append(features(1, 0, trace["blocks.1.mlp.norm"]))
        x.append(trace["blocks.1.mlp.norm"])
    f, x = np.concatenate(f), np.concatenate(x)
    ones = np.hstack([f, np.ones_like(f[:, :1])])
    expected = ones @ np.linalg.lstsq(ones, x, rcond=None)[0]  # (n, D), the best guess of x
    gate, up = predictor.shadow.gate_up(1, f)
    layer = model.layers[1]
    for found, weight, part in ((gate, layer.gate_proj, "gate"), (up, layer.up_proj, "up")):
        wanted = expected @ weight.T
        assert np.square(found - wanted).mean() < 0.03**2 * np.square(wanted).mean()  # 8 bits, and a ridge
        missed = np.sqrt(np.square(x @ weight.T - found).mean(axis=0))
        np.testing.assert_allclose(predictor.shadow.tables[f"{part}_error"][1], missed, rtol=0.05)


@pytest.mark.parametrize("form", ["masked", "gathered"])
def test_in_chunks_it_is_the_full_pass(form, small):
    model, thresholds = small
    predictor = Ahead.fit(model, thresholds, tiny.STORIES, 3)
    fit_cutoffs(model, predictor, thresholds, tiny.STORIES, 0.5)
    ids, cache, parts = model.tokenizer.encode("The cat sat."), KVCache(model.config, 32, model.dtype), []
    ffn = sparse_ffn(model, thresholds, predictor=predictor, form=form)
    full = model.forward(ids, ffn=ffn)
    for part in (ids[:3], ids[3:4], ids[4:]):
        parts.append(model.forward(part, cache, ffn))
    np.testing.assert_allclose(np.concatenate(parts), full, rtol=0, atol=1e-12)


def test_a_layer_may_be_asked_about_early_and_then_in_time_without_any_other_answer():
    """As a reader does that announces a layer's neurons to the disk while the layer before is computed."""
    rng, in_time, early = np.random.default_rng(3), Features(), Features()
    rows = [rng.standard_normal((3, 6, 4)) for _ in range(2)]  # two texts, three layers, six tokens
    for text in rows:
        for t in range(6):
            for layer in range(3):
                x = text[layer, t : t + 1]
                expected = in_time(layer, t, x)
                assert np.array_equal(early(layer, t, x), expected)
                if layer < 2:
                    guessed = early(layer + 1, t, x)  # of its own input nothing is known
                    own = text[layer + 1, t - 1] if t else np.zeros(4)
                    assert np.array_equal(guessed, np.concatenate([x[0], own])[None])
