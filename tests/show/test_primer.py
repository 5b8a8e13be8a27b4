"""The figures of the first two lessons."""

import numpy as np
import pytest

from minillm.errors import MinillmError
from minillm.show.canvas import alt_text, save_figure
from minillm.show.primer import broadcasting, file_layout, merges


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_a_broadcast_shows_every_value_of_the_sum_and_the_three_shapes():
    ax = broadcasting(np.array([[1], [2]]), np.array([10, 20, 30]))
    assert texts(ax)[:6] == list("111222") and [t for t in texts(ax) if "(" in t] == [
        "a  (2, 1)", "b  (3,)", "a + b  (2, 3)",
    ]  # fmt: skip
    assert {"11", "21", "31", "12", "22", "32"} <= set(texts(ax))
    assert alt_text(ax).startswith("Three grids of 2 by 3")


def test_merges_fill_the_piece_that_was_just_made():
    ax = merges([list(" the"), [" t", "h", "e"], [" t", "he"], [" the"]])
    assert [t for t in texts(ax) if "merge" in t] == ["merge 1", "merge 2", "merge 3"]
    colours = [tuple(c.get_facecolor()[0]) for c in ax.collections]
    filled = [colours.index(c) for c in colours if colours.count(c) == 3 and c != colours[0]]
    assert [i for i, c in enumerate(colours) if c == colours[filled[0]]] == [4, 8, 9]
    assert "␣the" in texts(ax)


def test_a_file_is_drawn_with_its_gaps():
    ax = file_layout([(0, 8, "length"), (8, 20, "header"), (20, 50, "first"), (90, 100, "last")], 120)
    assert [t for t in texts(ax) if "bytes" in t] == [
        "8 bytes",
        "12 bytes",
        "30 bytes",
        "40 bytes",
        "10 bytes",
        "20 bytes",
    ]
    assert texts(ax).count("...") == 2 and "120" in texts(ax)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: broadcasting(np.ones(3), np.ones(4)),
        lambda: broadcasting(np.ones((2, 9)), np.ones(9)),
        lambda: broadcasting(np.ones((1, 2, 2)), 1),
        lambda: merges([]),
        lambda: merges([["ab"], ["a", "c"]]),
        lambda: file_layout([], 10),
        lambda: file_layout([(0, 8, "a"), (7, 9, "b")], 10),
        lambda: file_layout([(0, 11, "a")], 10),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_sentence(draw):
    with pytest.raises(MinillmError):
        draw()


def test_they_can_be_saved(tmp_path):
    save_figure(merges([["a", "b"], ["ab"]]), tmp_path / "merges.png")
    assert (tmp_path / "merges.png").stat().st_size > 1000
