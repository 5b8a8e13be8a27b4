"""Rows of sweeps: those that are made agree with themselves, and a changed cell contradicts the others."""

import re

import pytest
import tiny

from minillm.sparsity.policies import POLICIES
from minillm.study.sweep import sweep
from minillm.study.sweep_rows import COLUMNS, contradictions
from minillm.transformer.texts import split_text

STORIES = [f"{story} {number}" for number in range(2) for story in tiny.STORIES]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The dense row, then every policy at 40 % of its tensors, then methods; by name."""
    model = tiny.loaded(tmp_path_factory.mktemp("rows") / "m")
    made = sweep(model, *split_text(STORIES), list(POLICIES), (0.4,), context=64, methods=("wanda", "magnitude"))
    return {row["policy"]: row for row in made}


def test_rows_of_every_policy_and_of_methods_are_what_their_columns_say_and_contradict_nothing(rows):
    assert set(rows) == {"dense", *POLICIES, "wanda", "magnitude"}
    for row in rows.values():
        assert list(row) == list(COLUMNS) and list(contradictions(row)) == []
        for key, kind in COLUMNS.items():
            assert row[key] is None and kind.may_be_empty or kind.check(row[key]) == row[key]


@pytest.mark.parametrize("policy", ["dense", "mid", "dhar", "wanda"])
@pytest.mark.parametrize("change", [0.93, 1.07])
def test_a_figure_that_is_changed_by_7_percent_contradicts_the_others(rows, policy, change):
    free = {"union_density", "union_window", "context"}  # nothing else in the row tells these
    free |= {"read_known_mask", "neuron_sparsity", "stored"} if policy == "wanda" else set()
    free |= {"vs_dense"} if policy != "dense" else set()  # that is for the dense row to say
    for key, value in rows[policy].items():
        if isinstance(value, int | float) and value and key not in free:
            changed = type(value)(value * change) + (type(value) is int)
            assert list(contradictions(rows[policy] | {key: changed})), (key, changed)


@pytest.mark.parametrize(
    ("policy", "cells", "says"),
    [
        ("mid", {"policy": "cats"}, "spec is 'mid: "),
        ("mid", {"policy": "mod"}, "policy 'mod' is unknown"),
        ("wanda", {"policy": "mid"}, "method 'mid' is unknown"),
        ("mid", {"target": 0.3}, "level is 0.4, expected 0.3"),
        ("mid", {"target": 0.3, "level": 0.3}, "target 0.300"),
        ("mid", {"level": None}, "level is None, expected a share"),
        ("wanda", {"level": 0.4}, "level is 0.4, expected .* nothing for a method"),
        ("mid", {"tensor_sparsity": {}}, "tensor_sparsity is empty"),
        ("dhar", {"read_up": 1.2}, "read_up is 1.2, expected a share"),
        ("dense", {"tensor_sparsity": {"mid": 0.5}}, "tensor_sparsity is .* expected nothing for the dense"),
        ("dense", {"union_density": 0.5}, "union_density is 0.5, expected nothing for the dense"),
        ("dense", {"spec": "mid: keep"}, "spec is 'mid: keep', expected .*'dense: '"),
        ("wanda", {"union_density": 0.5}, "union_density is 0.5, expected nothing for a method"),
        ("wanda", {"read_known_mask": 0.9}, "read_known_mask is 0.9, expected at most read_exact"),
        ("mid", {"document_nll": [1.0]}, "have 1 and 5 numbers"),
        ("mid", {"nll": 1e300}, "nll is 1e.300, expected less than 709 per token"),
    ],
)
def test_what_contradicts_a_row_is_said(rows, policy, cells, says):
    found = list(contradictions(rows[policy] | cells))
    assert any(re.search(says, problem) for problem in found), found
