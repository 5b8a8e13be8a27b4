"""Labels: any token can be one, an axis gets as many as it has room for, other shapes are refused."""

import numpy as np
import pytest

from minillm.errors import MinillmError
from minillm.show.canvas import new_axes
from minillm.show.labels import check_tokens, checked_array, label_axis, token_label, widest


def test_any_token_makes_a_label():
    assert token_label(" cat") == "cat" and token_label(" cat", "␣") == "␣cat"
    assert token_label("") == "(special)" and token_label("  ") == "␣␣"
    assert token_label("a\n\tb") == "a↵⇥b" and token_label("$x$") == r"\$x\$"
    assert token_label(" internationalization") == "internation…"
    assert token_label("猫\x00") == "□□"


def test_an_axis_gets_as_many_labels_as_it_has_room_for():
    ax = new_axes()[0]
    for room, shown in ((10.0, ["0", "1", "2", "3", "4", "5"]), (0.4, ["0", "2", "4"]), (0.0, ["0"])):
        label_axis(ax.xaxis, list("012345"), room, upright=True)
        assert [label.get_text() for label in ax.get_xticklabels()] == shown
        assert {label.get_rotation() for label in ax.get_xticklabels()} == {90}


def test_the_widest_label_counts():
    assert widest(["i", "mmm", "m"]) == widest(["mmm"]) > 2 * widest(["m"])


def test_arrays_and_tokens_that_do_not_fit_are_refused():
    assert checked_array([[1, 2]], "T F", "the mask").shape == (1, 2)
    check_tokens(["a"], 1, "positions")
    for given in (np.ones(3), np.ones((0, 3))):
        with pytest.raises(MinillmError, match=r"the mask is \[.*3\], expected \(T, F\)"):
            checked_array(given, "T F", "the mask")
    with pytest.raises(MinillmError, match="found 1 tokens for 2 positions"):
        check_tokens(["a"], 2, "positions")
