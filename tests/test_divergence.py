"""Two traces are compared step by step, and the first that differs is named."""

import re

import numpy as np
import pytest
import tiny
from passes import IDS, cut, traced

from minillm import trace as trace_module
from minillm.divergence import compare
from minillm.errors import TraceError
from minillm.trace import Trace


def statuses(ours, theirs, rtol=None) -> dict[str, str]:
    return {row.name: row.status for row in compare(ours, theirs, rtol).rows}


def test_two_passes_that_agree_have_no_divergence(tmp_path):
    ours, theirs = traced(tiny.model()), traced(tiny.model())
    ours.save(tmp_path / "ours.npz")
    result = compare(tmp_path / "ours.npz", theirs)
    assert result.first is None and result.tolerance == 1e-10
    assert [row.name for row in result.rows] == list(ours)
    assert all(row.status == "ok" and row.max_abs == 0 for row in result.rows)
    assert f"all {len(ours)} compared steps agree" in str(result)


def test_the_first_divergence_is_the_step_where_the_planted_bug_is():
    model = tiny.model()
    with Trace(edits={"blocks.1.attn.rot_q": lambda q: q[:, ::-1].copy()}) as theirs:
        model.forward(IDS, tap=theirs)
    result = compare(traced(model), theirs)
    assert result.first == "blocks.1.attn.rot_q"
    text = str(result)
    assert "first divergence: blocks.1.attn.rot_q" in text and "the step before it, blocks.1.attn.v, agrees" in text
    assert "R(position) q" in text


def test_a_float32_pass_agrees_with_a_float64_pass_within_the_wider_default_only():
    double, single = traced(tiny.model()), traced(tiny.model(dtype=np.float32))
    assert compare(single, double).tolerance == 1e-5 and compare(single, double).first is None
    assert compare(single, double, rtol=1e-10).first is not None


def test_masks_do_not_widen_the_tolerance_of_a_float64_comparison():
    model = tiny.model()
    trace = traced(model, ffn=cut(model, "dhar"))
    assert compare(trace, trace).tolerance == 1e-10


def test_a_difference_is_measured_against_the_largest_value_of_theirs():
    ours, theirs = {"a": np.array([100.0, 1.001])}, {"a": np.array([100.0, 1.0])}
    row = compare(ours, theirs).rows[0]
    assert row.status == "differs" and np.isclose(row.max_abs, 1e-3) and np.isclose(row.relative, 1e-5)
    assert statuses(ours, theirs, rtol=2e-5) == {"a": "ok"}
    assert compare({"a": np.full(2, 1e-3)}, {"a": np.zeros(2)}).rows[0].relative == 1e-3  # absolute where all are zero


def test_shape_missing_and_extra_steps_are_told_apart_and_only_shape_is_a_divergence():
    ours = {"a": np.ones(2), "b": np.ones((2, 1)), "c": np.ones(1)}
    theirs = {"d": np.ones(1), "b": np.ones((1, 2)), "a": np.ones(2)}
    result = compare(ours, theirs)
    assert [(row.name, row.status) for row in result.rows] == [
        ("a", "ok"), ("b", "shape"), ("c", "missing"), ("d", "extra"),
    ]  # fmt: skip
    assert result.first == "b"
    assert compare({"a": np.ones(2), "c": np.ones(1)}, {"a": np.ones(2)}).first is None
    assert "shape" in str(result)


def test_files_of_two_models_are_compared_with_a_warning_that_names_both(recwarn, tmp_path):
    one, other = tiny.model(), tiny.model(seed=1)
    traces = []
    for model in (one, one, other):
        with Trace(keep="embed", model=model.fingerprint) as trace:
            model.forward(IDS, tap=trace)
        traces.append(trace)
    assert compare(traces[0], traces[1]).first is None
    assert compare(traces[0], dict(traces[1])).first is None and not recwarn.list
    assert compare(traces[0], traces[2]).first == "embed" and not recwarn.list  # who made both knows
    traces[2].save(tmp_path / "t.npz")
    both = re.escape(f"two models, {one.fingerprint} and {other.fingerprint}")
    with pytest.warns(UserWarning, match=both):
        assert compare(traces[0], tmp_path / "t.npz").first == "embed"


def test_numbers_that_are_not_finite_are_named_even_where_they_agree(capsys):
    good, bad = {"a": np.ones(2), "b": np.ones(2)}, {"a": np.ones(2), "b": np.array([np.nan, np.inf])}
    assert compare(good, good).not_finite is None and "finite" not in str(compare(good, good))
    result = compare(bad, bad)
    assert (result.first, result.not_finite) == (None, "b") and result.asdict()["not_finite"] == "b"
    assert "b is the first step with NaN or infinity" in str(result)
    trace = Trace()
    trace("embed", bad["b"][None])
    trace.show()
    assert "nan" in capsys.readouterr().out


def test_traces_without_a_common_step_are_an_error():
    with pytest.raises(TraceError, match="share no step.*'a'.*'b'"):
        compare({"a": np.ones(1)}, {"b": np.ones(1)})


@pytest.mark.parametrize(
    ("ours", "theirs", "status"),
    [
        ([np.nan, 1.0], [np.nan, 1.0], "ok"),
        ([-np.inf, 1.0], [-np.inf, 1.0], "ok"),
        ([np.nan, 1.0], [0.0, 1.0], "differs"),
        ([0.0, 1.0], [np.nan, 1.0], "differs"),
        ([np.inf, 1.0], [-np.inf, 1.0], "differs"),
        ([np.inf, 1.0], [1.0, 1.0], "differs"),
        ([np.nan, 1.0], [np.inf, 1.0], "differs"),
        ([np.nan, np.nan], [np.nan, np.nan], "ok"),
        ([], [], "ok"),
    ],
)
def test_values_that_are_not_finite_agree_only_with_the_same_at_the_same_place(ours, theirs, status):
    assert statuses({"a": np.array(ours)}, {"a": np.array(theirs)}) == {"a": status}


def test_the_module_imports_no_chapter_before_explain_asks_for_one():
    assert not [name for name in vars(trace_module) if name in ("transformer", "sparsity")]
