"""Figures that explain: what is drawn is what was given, any token can be a label, every step is on the map."""

import functools
import math
import re

import numpy as np
import pytest
from figures import check_labels, check_looks, check_texts, drawn_texts, overlapping, panels

from minillm.errors import MinillmError
from minillm.loading.config import RopeConfig
from minillm.show import canvas as canvas_module
from minillm.show import explain as drawings
from minillm.show import map as map_module
from minillm.show.canvas import new_axes
from minillm.steps import STEPS, step_names
from minillm.trace import Comparison, Row
from minillm.transformer.rope import rope_table

WORDS = ["", "Once", " upon", " a", " time", " internationalization", "\n", " ", "$", " 猫", "\t", "�"]


def causal(heads, new, attended, seed=0):
    """Random attention patterns (H, T, S)."""
    weights = np.random.default_rng(seed).random((heads, new, attended)) ** 4
    weights *= np.tril(np.ones((new, attended)), attended - new)
    return weights / weights.sum(axis=-1, keepdims=True)


def errors(steps, first=None, each=1e-7):
    """Rows of a comparison, of which those from ``first`` on differ."""
    wrong = len(steps) if first is None else steps.index(first)
    rows = [Row(n, "ok" if i < wrong else "differs", each, each * 1e4 ** (i >= wrong)) for i, n in enumerate(steps)]
    return [Row("absent", "missing"), *rows]


def tokens(count):
    return [WORDS[i % len(WORDS)] for i in range(count)]


def settings(*rows):
    """Probabilities under settings' names."""
    return dict(zip(("temperature 1", "greedy", "temperature 9"), rows, strict=True))


def figures():
    """Every figure at its fullest and at its plainest."""
    rng = np.random.default_rng(0)
    ridges = [rng.standard_t(3, 4000) * (1 + i) for i in range(40)]
    fan = rope_table(RopeConfig("default", 10_000.0, 64), 40)
    likely = [np.array([0.3, 0.2, 0.1, 0.05, *[0.35 / 36] * 36]), np.eye(40)[0], np.ones(40) / 40]
    cache = [{"name": n, "positions": t, "bytes": 4096 * t * i} for t in (0, 64, 128) for i, n in enumerate("abc")]
    work = [{"name": n, "positions": t, "multiply_adds": 10**6 * t**i} for t in (1, 64) for i, n in enumerate("ab")]
    losses = [{"step": i, "loss": 3 / (1 + i), "held_out": 4 / (1 + i) if i % 5 == 0 else None} for i in range(50)]
    return {
        "map": lambda: map_module.you_are_here("mlp.mid"),
        "map, nothing filled": lambda: map_module.you_are_here(),
        "one head": lambda: drawings.attention_pattern(causal(1, 12, 12)[0], tokens(12)),
        "one token": lambda: drawings.attention_pattern(np.ones((1, 1)), ["a"]),
        "eight heads": lambda: drawings.attention_pattern(causal(8, 60, 60), tokens(60)),
        "five heads, a long text": lambda: drawings.attention_pattern(causal(5, 3, 512), tokens(512)),
        "raster": lambda: drawings.neuron_raster(rng.random((24, 384)) < 0.5, tokens(24)),
        "raster of 512 tokens, sorted": lambda: drawings.neuron_raster(rng.random((512, 64)) < 0.2, tokens(512), True),
        "raster of one": lambda: drawings.neuron_raster(np.ones((1, 1), bool), [" internationalization"]),
        "ridges": lambda: drawings.activation_ridges(ridges, "mlp.gate_pre"),
        "one ridge": lambda: drawings.activation_ridges([np.zeros(3)], "mlp.mid"),
        "fans": lambda: drawings.rope_fan(*fan),
        "one fan": lambda: drawings.rope_fan(np.ones((1, 1)), np.zeros((1, 1))),
        "errors": lambda: drawings.error_per_step(errors(step_names(8), "blocks.7.mlp.mid")),
        "errors of 40 layers": lambda: drawings.error_per_step(Comparison(errors(step_names(40)), 1e-5, None)),
        "errors of one layer": lambda: drawings.error_per_step(errors(step_names(1), "blocks.0.attn.q", 0.0)),
        "error of one step": lambda: drawings.error_per_step([Row("logits", "differs", math.inf, math.inf)]),
        "cache": lambda: drawings.cache_growth(cache),
        "cache of one row": lambda: drawings.cache_growth([{"positions": 1, "bytes": 12}]),
        "work": lambda: drawings.work_per_token(work),
        "sampling": lambda: drawings.sampling_bars(tokens(40), settings(*likely)),
        "sampling of one": lambda: drawings.sampling_bars(["a"], {"greedy": np.ones(1)}),
        "bits": lambda: drawings.bf16_bits(-math.pi * 1e30),
        "bits of zero": lambda: drawings.bf16_bits(0),
        "training": lambda: drawings.training_curve(losses),
    }  # fmt: skip


FIGURES = figures()
UNITS = ("(token)", "(index)", "(most often active first)", "(no unit)", "(share of values, to its own height)",
         "(in execution order)", "(numbers: where a layer begins)", "(share of the largest value)", "(positions)",
         "(multiply-adds)", "(kB)", "(bytes)", "(MB)", "(␣ is a space)", "(%)", "(steps)", "(nats)")  # fmt: skip


@functools.cache
def axes_of(name):
    return FIGURES[name]()


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_can_be_read(name, recwarn):
    figure = axes_of(name).figure
    check_texts(figure)
    check_labels(figure, UNITS)
    check_looks(figure)
    assert not [w for w in recwarn if "Glyph" in str(w.message)]
    words = canvas_module.alt_text(axes_of(name))
    assert len(words) > 60 and words.endswith(".")


# ---- the map ---------------------------------------------------------------------------------------------------------


def filled(ax):
    """The names of the boxes that are not white."""
    return {box.get_gid() for box in ax.patches if box.get_gid() and box.get_facecolor() != (1, 1, 1, 1)}


def test_every_step_of_a_trace_is_on_the_map_and_alone_on_it():
    for step in STEPS:
        (box,) = map_module.boxes_of(step.replace("*", "3"))
        assert map_module.boxes_of(step) == (box,) and (step.endswith(box) or box == "mlp.mask")
    assert len({map_module.boxes_of(step) for step in step_names(1)}) == len(
        step_names(1)
    )  # the dense ones are told apart


def test_what_is_named_is_filled_and_nothing_else():
    assert filled(map_module.you_are_here()) == set()
    assert filled(map_module.you_are_here("blocks.0.mlp.mask_gate")) == {"mlp.mask"}
    assert filled(map_module.you_are_here("cache")) == {"cache"}
    assert filled(map_module.you_are_here("attn")) == {name for name in map_module.BOXES if name.startswith("attn.")}
    assert filled(map_module.you_are_here("transformer")) == {re.sub(r"^blocks\.0\.", "", n) for n in step_names(1)}
    for part, boxes in map_module.PARTS.items():
        assert filled(map_module.you_are_here(part)) == set(boxes) <= set(map_module.BOXES)
    assert canvas_module.alt_text(map_module.you_are_here("prefetch")).endswith("Filled: buffer and slow memory.")
    with pytest.raises(
        MinillmError, match="'mlp.middle' is no place on the map, expected a step's name or one of loading"
    ):
        map_module.you_are_here("mlp.middle")


def test_boxes_lie_apart_and_every_way_begins_and_ends_at_one():
    ax = map_module.you_are_here()
    boxes = {box.get_gid(): box.get_extents() for box in ax.patches if box.get_gid()}
    boxes = {name: box.transformed(ax.transData.inverted()) for name, box in boxes.items()}
    assert set(boxes) == set(map_module.BOXES)
    names = list(boxes)
    assert not [(a, b) for i, a in enumerate(names) for b in names[:i] if boxes[a].overlaps(boxes[b])]
    circles = [text.get_position() for text in ax.texts if text.get_text() == "+"]

    def at_home(x, y):
        at_box = any(box.padded(0.03).contains(x, y) for box in boxes.values())
        return at_box or any(math.hypot(x - cx, y - cy) < 0.15 for cx, cy in circles)

    for line in ax.lines:
        assert at_home(*line.get_xydata()[0]), line.get_xydata()
    heads = [patch.get_xy()[1] for patch in ax.patches if type(patch).__name__ == "Polygon"]
    assert len(heads) == len(ax.lines) and all(at_home(*head) for head in heads)


@pytest.mark.parametrize(("rows", "columns"), [(1, 2), (2, 2), (3, 1)])
def test_the_map_stays_legible_as_a_panel_among_others(rows, columns):
    panel = map_module.you_are_here("mlp.mid", ax=new_axes(rows, columns)[0])
    assert not overlapping(drawn_texts(panel.figure))


# ---- what is drawn is what was given ---------------------------------------------------------------------------------


def test_each_head_is_drawn_as_it_is_and_what_nobody_may_see_is_left_out():
    pattern = causal(4, 3, 5)
    insets = [panel for panel in panels(drawings.attention_pattern(pattern, tokens(5)).figure) if panel.get_title()]
    assert [panel.get_title() for panel in insets] == [f"head {i}" for i in range(4)]
    for panel, head in zip(insets, pattern, strict=True):
        shown = panel.images[0].get_array()
        np.testing.assert_array_equal(shown.data, head)
        np.testing.assert_array_equal(shown.mask, [[False] * 3 + [True] * 2, [False] * 4 + [True], [False] * 5])
    leaky = np.full((2, 2), 0.5)  # a mask that lets the future through must be seen
    assert not drawings.attention_pattern(leaky, ["a", "b"]).images[0].get_array().mask.any()
    assert "4 heads, 3 new by 5 attended" in canvas_module.alt_text(drawings.attention_pattern(pattern, tokens(5)))


def test_the_rows_of_a_pattern_are_named_after_the_last_tokens():
    ax = drawings.attention_pattern(causal(1, 2, 4)[0], list("abcd"))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["c", "d"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c", "d"]


def test_a_raster_is_the_mask_and_sorted_begins_with_the_busiest_neuron():
    mask = np.array([[0, 1, 1], [0, 0, 1]], bool)
    np.testing.assert_array_equal(drawings.neuron_raster(mask, ["a", "b"]).images[0].get_array(), mask)
    ax = drawings.neuron_raster(mask, ["a", "b"], sort=True)
    np.testing.assert_array_equal(ax.images[0].get_array(), [[1, 1, 0], [1, 0, 0]])
    assert ax.get_title().startswith("50 % of the (token, neuron) pairs are active")
    assert "33 % of the neurons are active for every token, 33 % for none" in canvas_module.alt_text(ax)


def test_a_ridge_is_the_histogram_of_its_layer():
    layers = [np.r_[np.zeros(90), np.full(10, 0.95)], np.linspace(-1, 1, 1000)]
    ax = drawings.activation_ridges(layers, "mlp.mid")
    (x, first), (_, second) = (line.get_xydata().T for line in ax.lines[:2])
    assert first.max() == pytest.approx(1.7) and abs(x[first.argmax()]) < 0.01
    np.testing.assert_allclose(first[np.abs(x - 0.95) < 0.01].max(), 1.7 / 9)
    assert second.min() > 0 - 1 + 1  # an even distribution is high everywhere
    assert "layer 0) to 0.5 (layer 1)" in canvas_module.alt_text(ax)


def test_spokes_of_a_fan_are_the_cosines_and_sines():
    cos, sin = rope_table(RopeConfig("default", 10_000.0, 16), 5)
    ax = drawings.rope_fan(cos, sin)
    spokes = [line.get_xydata() for line in ax.lines if len(line.get_xydata()) == 2]
    assert len(spokes) == 4 * 5  # pairs 0, 1, 2 and 7
    for spoke, (p, j) in zip(spokes, ((p, j) for j in (0, 1, 2, 7) for p in range(5)), strict=True):
        np.testing.assert_allclose(spoke[1] - spoke[0], [cos[p, j], sin[p, j]], atol=1e-6)
    assert "pair 0 1 radians a position" in canvas_module.alt_text(ax)


def test_errors_are_the_rows_and_the_first_that_differs_is_named():
    steps = step_names(2)
    rows = errors(steps, "blocks.1.attn.scores")
    ax = drawings.error_per_step(Comparison(rows, 1e-5, "blocks.1.attn.scores"))
    lines = {line.get_label(): line.get_xydata() for line in ax.lines}
    wrong = steps.index("blocks.1.attn.scores")
    np.testing.assert_allclose(lines["agrees"], [[i, 1e-7] for i in range(wrong)])
    np.testing.assert_allclose(lines["differs"], [[i, 1e-3] for i in range(wrong, len(steps))])
    assert lines["tolerance 1e-05"][0][1] == 1e-5
    assert [text.get_text().strip() for text in ax.texts] == ["blocks.1.attn.scores"]
    assert "the first that differs is blocks.1.attn.scores, by 1.0e-03" in canvas_module.alt_text(ax)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1"]
    equal = drawings.error_per_step(errors(steps, None, 0.0))
    assert [line.get_label() for line in equal.lines] == ["equal bit for bit"]


def test_cache_and_training_are_the_rows():
    rows = [{"name": n, "positions": t, "bytes": 1000 * t * i} for t in (8, 2) for i, n in enumerate(("none", "all"))]
    lines = {line.get_label(): line.get_xydata().tolist() for line in drawings.cache_growth(rows).lines}
    assert lines == {"none": [[2, 0], [8, 0]], "all": [[2, 2], [8, 8]]}
    names = enumerate(("with", "without"))
    rows = [{"name": n, "positions": t, "multiply_adds": t**i} for i, n in names for t in (8, 2)]
    ax = drawings.work_per_token(rows)
    assert {line.get_label(): line.get_xydata().tolist() for line in ax.lines} == {
        "with": [[2, 1], [8, 1]], "without": [[2, 2], [8, 8]],
    }  # fmt: skip
    assert canvas_module.alt_text(ax).endswith("with 1 at 8 and without 8 at 8.")
    rows = [{"tokens": 10 * i, "loss": 5.0 - i, **({"held_out": 6.0} if i == 2 else {})} for i in range(3)]
    ax = drawings.training_curve(rows, unit="bits")
    lines = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert lines == {"loss": [[0, 5], [10, 4], [20, 3]], "held out": [[20, 6]]}
    assert ax.get_xlabel() == "training (tokens)" and ax.get_ylabel() == "loss (bits)"


def test_bars_of_a_setting_add_up_to_one_with_all_others():
    likely = np.array([0.001, 0.6, 0.3, 0.099])
    ax = drawings.sampling_bars(["a", " b", "c", "d"], {"plain": likely, "greedy": np.eye(4)[1]})
    plain, greedy = ([bar.get_height() for bar in bars] for bars in ax.containers)
    np.testing.assert_allclose(plain, [60, 30, 9.9, 0.1])
    np.testing.assert_allclose(greedy, [100, 0, 0, 0])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["␣b", "c", "d", "all others"]


def test_bits_are_those_of_the_number_and_of_its_upper_half_rounded():
    ax = drawings.bf16_bits(math.pi)
    bits = "".join(text.get_text() for text in ax.texts if text.get_text() in ("0", "1"))
    assert bits == f"{0x40490FDB:032b}" + f"{0x4049:016b}"
    assert "3.140625 (0.031 % off)" in canvas_module.alt_text(ax)
    assert "(exact)" in canvas_module.alt_text(drawings.bf16_bits(0.5)) and "1.0078125" in canvas_module.alt_text(
        drawings.bf16_bits(1.006)
    )


def test_any_token_makes_a_label():
    assert drawings.token_label(" cat") == "cat" and drawings.token_label(" cat", "␣") == "␣cat"
    assert drawings.token_label("") == "(special)" and drawings.token_label("  ") == "␣␣"
    assert drawings.token_label("a\n\tb") == "a↵⇥b" and drawings.token_label("$x$") == r"\$x\$"
    assert drawings.token_label(" internationalization") == "internation…"
    assert drawings.token_label("猫\x00") == "□□"


@pytest.mark.parametrize(
    ("draw", "given", "said"),
    [
        ("attention_pattern", (np.ones((2, 3)), ["a"]), "found 1 tokens for 3 attended positions"),
        ("attention_pattern", (np.ones((3, 2)), ["a", "b"]), "3 new positions, expected at most the 2 attended"),
        ("attention_pattern", (np.ones(3), ["a"] * 3), r"pattern is \[3\], expected \(H, T, S\)"),
        ("attention_pattern", (np.ones((0, 0)), []), r"pattern is \[1, 0, 0\]"),
        ("neuron_raster", (np.ones((2, 3)), ["a"]), "found 1 tokens for 2 rows of the mask"),
        ("neuron_raster", (np.ones((0, 3)), []), r"mask is \[0, 3\], expected \(T, F\), nothing of it empty"),
        ("activation_ridges", ([], "mid"), "expected an array of finite values for each layer"),
        ("activation_ridges", ([np.ones(3), np.array([np.nan])], "mid"), "expected an array of finite values"),
        ("rope_fan", (np.ones((2, 3)), np.ones((2, 2))), r"cos is \[2, 3\] and sin \[2, 2\]"),
        ("error_per_step", ([],), "there is no difference to draw"),
        ("cache_growth", ([],), "there are no rows, expected dicts with positions and bytes"),
        ("cache_growth", ([{"positions": 1}],), "the rows have no bytes"),
        ("work_per_token", ([{"name": "a", "positions": 1}],), "the rows have no multiply_adds"),
        ("sampling_bars", ([], {}), "there are no probabilities"),
        ("sampling_bars", (["a"], {"greedy": np.ones(2)}), "found 1 tokens for 2 probabilities"),
        ("bf16_bits", (math.inf,), "value is inf, expected a finite number"),
        ("training_curve", ([],), "there are no rows, expected dicts with step"),
        ("training_curve", ([{"step": 1}],), "the rows have step alone, expected a loss beside it"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_sentence(draw, given, said):
    with pytest.raises(MinillmError, match=said):
        getattr(drawings, draw)(*given)
