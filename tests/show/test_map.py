"""The map of the model: every step is on it, boxes lie apart, arrows begin and end at boxes."""

import math
import re

import pytest
from figures import check_figure, drawn_texts, overlapping

from minillm.errors import MinillmError
from minillm.show import canvas
from minillm.show.canvas import figure_of, new_axes
from minillm.show.map import BOXES, OTHER_FAMILIES, PARTS, boxes_of, you_are_here
from minillm.steps import STEPS, step_names


def filled(ax):
    """The names of the boxes that are not white."""
    return {box.get_gid() for box in ax.patches if box.get_gid() and box.get_facecolor() != (1, 1, 1, 1)}


def figures():
    """Every figure, at its fullest and, where it differs, at its plainest."""
    return {
        "map": lambda: you_are_here("mlp.mid"),
        "map, nothing filled": lambda: you_are_here(),
    }


FIGURES = figures()


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_can_be_read_and_has_an_alt_text(name, recwarn):
    check_figure(figure_of(FIGURES[name]()), recwarn, titles=False)


def test_every_step_of_a_trace_is_on_the_map_and_alone_on_it():
    for step in STEPS:
        (box,) = boxes_of(step.replace("*", "3"))
        assert boxes_of(step) == (box,) and (step.endswith(box) or box == "mlp.mask" or box in OTHER_FAMILIES.values())
    assert len({boxes_of(step) for step in step_names(1)}) == len(step_names(1))  # the dense ones are told apart


def test_what_is_named_is_filled_and_nothing_else():
    assert filled(you_are_here()) == set()
    assert filled(you_are_here("blocks.0.mlp.mask_gate")) == {"mlp.mask"}
    assert filled(you_are_here("cache")) == {"cache"}
    assert filled(you_are_here("attn")) == {name for name in BOXES if name.startswith("attn.")}
    assert filled(you_are_here("transformer")) == {re.sub(r"^blocks\.0\.", "", n) for n in step_names(1)}
    for part, boxes in PARTS.items():
        assert filled(you_are_here(part)) == set(boxes) <= set(BOXES)
    assert canvas.alt_text(you_are_here("prefetch")).endswith("Filled: buffer and slow memory.")
    with pytest.raises(
        MinillmError, match="'mlp.middle' is no place on the map, expected a step's name or one of loading"
    ):
        you_are_here("mlp.middle")


def test_boxes_lie_apart_and_every_way_begins_and_ends_at_one():
    ax = you_are_here()
    boxes = {box.get_gid(): box.get_extents() for box in ax.patches if box.get_gid()}
    boxes = {name: box.transformed(ax.transData.inverted()) for name, box in boxes.items()}
    assert set(boxes) == set(BOXES)
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
    panel = you_are_here("mlp.mid", ax=new_axes(rows, columns)[0])
    assert not overlapping(drawn_texts(panel.figure))
