"""Figures of one step's values: what is drawn is what was given."""

import math

import numpy as np
import pytest
from figures import check_figure, panels, tokens

from minillm.errors import MinillmError
from minillm.loading.config import RopeConfig
from minillm.show import canvas
from minillm.show.canvas import figure_of
from minillm.show.explain_values import activation_ridges, attention_pattern, bf16_bits, neuron_raster, rope_fan
from minillm.transformer.rope import rope_table


def causal(heads, new, attended, seed=0):
    """Random attention patterns (H, T, S)."""
    weights = np.random.default_rng(seed).random((heads, new, attended)) ** 4
    weights *= np.tril(np.ones((new, attended)), attended - new)
    return weights / weights.sum(axis=-1, keepdims=True)


def figures():
    """Every figure, at its fullest and, where it differs, at its plainest."""
    rng = np.random.default_rng(0)
    ridges = [rng.standard_t(3, 4000) * (1 + i) for i in range(40)]
    fan = rope_table(RopeConfig("default", 10_000.0, 64), 40)
    return {
        "one head": lambda: attention_pattern(causal(1, 12, 12)[0], tokens(12)),
        "one token": lambda: attention_pattern(np.ones((1, 1)), ["a"]),
        "eight heads": lambda: attention_pattern(causal(8, 60, 60), tokens(60)),
        "five heads, a long text": lambda: attention_pattern(causal(5, 3, 512), tokens(512)),
        "raster": lambda: neuron_raster(rng.random((24, 384)) < 0.5, tokens(24)),
        "raster of 512 tokens, sorted": lambda: neuron_raster(rng.random((512, 64)) < 0.2, tokens(512), True),
        "raster of one": lambda: neuron_raster(np.ones((1, 1), bool), [" internationalization"]),
        "ridges": lambda: activation_ridges(ridges, "mlp.gate_pre"),
        "one ridge": lambda: activation_ridges([np.zeros(3)], "mlp.mid"),
        "fans": lambda: rope_fan(*fan),
        "one fan": lambda: rope_fan(np.ones((1, 1)), np.zeros((1, 1))),
        "bits": lambda: bf16_bits(-math.pi * 1e30),
        "bits of zero": lambda: bf16_bits(0),
    }


FIGURES = figures()


UNITS = ("(token)", "(index)", "(most often active first)", "(no unit)", "(share of values, own scale)", "(%)")


LONG = "five heads, a long text"  # takes some seconds


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n == LONG else ()) for n in FIGURES])
def test_every_figure_can_be_read_and_has_an_alt_text(name, recwarn):
    check_figure(figure_of(FIGURES[name]()), recwarn, UNITS, titles=False)


def test_each_head_is_drawn_as_it_is_and_what_nobody_may_see_is_left_out():
    pattern = causal(4, 3, 5)
    insets = [panel for panel in panels(attention_pattern(pattern, tokens(5)).figure) if panel.get_title()]
    assert [panel.get_title() for panel in insets] == [f"head {i}" for i in range(4)]
    for panel, head in zip(insets, pattern, strict=True):
        shown = panel.images[0].get_array()
        np.testing.assert_array_equal(shown.data, head)
        np.testing.assert_array_equal(shown.mask, [[False] * 3 + [True] * 2, [False] * 4 + [True], [False] * 5])
    leaky = np.full((2, 2), 0.5)  # a mask that lets the future through must be seen
    assert not attention_pattern(leaky, ["a", "b"]).images[0].get_array().mask.any()
    assert "4 heads, 3 new by 5 attended" in canvas.alt_text(attention_pattern(pattern, tokens(5)))


def test_the_rows_of_a_pattern_are_named_after_the_last_tokens():
    ax = attention_pattern(causal(1, 2, 4)[0], list("abcd"))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["c", "d"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c", "d"]


def test_a_raster_is_the_mask_and_sorted_begins_with_the_busiest_neuron():
    mask = np.array([[0, 1, 1], [0, 0, 1]], bool)
    np.testing.assert_array_equal(neuron_raster(mask, ["a", "b"]).images[0].get_array(), mask)
    ax = neuron_raster(mask, ["a", "b"], sort=True)
    np.testing.assert_array_equal(ax.images[0].get_array(), [[1, 1, 0], [1, 0, 0]])
    assert ax.get_title().startswith("50 % of the (token, neuron) pairs are active")
    assert "33 % of the neurons are active for every token, 33 % for none" in canvas.alt_text(ax)


def test_a_ridge_is_the_histogram_of_its_layer():
    layers = [np.r_[np.zeros(90), np.full(10, 0.95)], np.linspace(-1, 1, 1000)]
    ax = activation_ridges(layers, "mlp.mid")
    (x, first), (_, second) = (line.get_xydata().T for line in ax.lines[:2])
    assert first.max() == pytest.approx(1.7) and abs(x[first.argmax()]) < 0.01
    np.testing.assert_allclose(first[np.abs(x - 0.95) < 0.01].max(), 1.7 / 9)
    assert second.min() > 0 - 1 + 1  # an even distribution is high everywhere
    assert "layer 0) to 0.5 (layer 1)" in canvas.alt_text(ax)


def test_spokes_of_a_fan_are_the_cosines_and_sines():
    cos, sin = rope_table(RopeConfig("default", 10_000.0, 16), 5)
    ax = rope_fan(cos, sin)
    spokes = [line.get_xydata() for line in ax.lines if len(line.get_xydata()) == 2]
    assert len(spokes) == 4 * 5  # pairs 0, 1, 2 and 7
    for spoke, (p, j) in zip(spokes, ((p, j) for j in (0, 1, 2, 7) for p in range(5)), strict=True):
        np.testing.assert_allclose(spoke[1] - spoke[0], [cos[p, j], sin[p, j]], atol=1e-6)
    assert "pair 0 1 radians a position" in canvas.alt_text(ax)


def test_bits_are_those_of_the_number_and_of_its_upper_half_rounded():
    ax = bf16_bits(math.pi)
    bits = "".join(text.get_text() for text in ax.texts if text.get_text() in ("0", "1"))
    assert bits == f"{0x40490FDB:032b}" + f"{0x4049:016b}"
    assert "3.140625 (0.031 % off)" in canvas.alt_text(ax)
    assert "(exact)" in canvas.alt_text(bf16_bits(0.5)) and "1.0078125" in canvas.alt_text(bf16_bits(1.006))


@pytest.mark.parametrize(
    ("draw", "given", "said"),
    [
        (attention_pattern, (np.ones((2, 3)), ["a"]), "found 1 tokens for 3 attended positions"),
        (attention_pattern, (np.ones((3, 2)), ["a", "b"]), "3 new positions, expected at most the 2 attended"),
        (attention_pattern, (np.ones(3), ["a"] * 3), r"pattern is \[3\], expected \(H, T, S\)"),
        (attention_pattern, (np.ones((0, 0)), []), r"pattern is \[1, 0, 0\]"),
        (neuron_raster, (np.ones((2, 3)), ["a"]), "found 1 tokens for 2 rows of the mask"),
        (neuron_raster, (np.ones((0, 3)), []), r"mask is \[0, 3\], expected \(T, F\), none of them empty"),
        (activation_ridges, ([], "mid"), "expected an array of finite values for each layer"),
        (activation_ridges, ([np.ones(3), np.array([np.nan])], "mid"), "expected an array of finite values"),
        (rope_fan, (np.ones((2, 3)), np.ones((2, 2))), r"cos is \[2, 3\] and sin \[2, 2\]"),
        (bf16_bits, (math.inf,), "value is inf, expected a finite number"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_sentence(draw, given, said):
    with pytest.raises(MinillmError, match=said):
        draw(*given)
