"""Step names: where a step is, what STEPS says of it, and that a parsed name costs no time."""

import doctest
import timeit

import pytest

from minillm import steps
from minillm.steps import STEPS, Place, place, step_info, step_names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("blocks.3.mlp.mask", Place(3, "mlp.mask")),
        ("blocks.0.resid_pre", Place(0, "resid_pre")),
        ("blocks.127.attn.rot_q", Place(127, "attn.rot_q")),
        *((name, None) for name in ("embed", "final_norm", "logits", "", "mlp.mask", "mask")),
        *(
            (name, None)
            for name in ("blocks.*.mlp.mask", "blocks.3", "blocks.3.", "blocks..mlp", "my.blocks.3.mlp.mask")
        ),
    ],
)
def test_place_gives_the_layer_and_the_step_inside_it_and_none_outside_the_layers(name, expected):
    assert place(name) == expected


def test_every_step_of_a_pass_has_its_place_and_its_row():
    names = step_names(2)
    assert [name for name in names if place(name) is None] == ["embed", "final_norm", "logits"]
    assert {at.layer for name in names if (at := place(name))} == {0, 1}
    assert all(step_info(name) for name in names)
    assert step_info("blocks.1.mlp.mid") is step_info("blocks.*.mlp.mid") is STEPS["blocks.*.mlp.mid"]


def test_a_name_that_comes_again_is_not_parsed_again():
    place("blocks.3.mlp.mask")
    calls = 20_000
    best = min(timeit.repeat(lambda: place("blocks.3.mlp.mask"), number=calls, repeat=5)) / calls
    assert best < 1e-6


def test_the_examples_of_the_docstrings_are_right():
    assert doctest.testmod(steps).failed == 0 and doctest.testmod(steps).attempted >= 2
