"""One row times a matrix: that the forms are the right ones, and that all that is asked for is measured."""

import numpy as np
import pytest

from minillm.bench import linear as bench
from minillm.bench.linear import FORMS, SIZES, bench_linear, linear_text
from minillm.bench.shapes import SHAPES


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(bench, "TURN", 400_000)


def test_every_form_but_the_sum_is_the_product():
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((30, 20)), rng.standard_normal(20)
    for name, form in FORMS.items():
        found = form(w, np.ascontiguousarray(w.T), x)
        np.testing.assert_allclose(found, w.sum() if name == "sum" else w @ x, rtol=1e-12)


@pytest.mark.parametrize(("slow", "takes"), [(False, ["BLAS", "BLAS"]), (True, ["BLAS", "rows"])])
def test_a_row_per_size_with_every_form_and_the_one_that_is_taken(monkeypatch, slow, takes):
    monkeypatch.setattr("minillm.transformer.linear.blas_is_slow", lambda: slow)
    result = bench_linear([(100, 20), (300, 100)], rounds=2)
    assert [(row["out"], row["in"], row["takes"]) for row in result["rows"]] == [
        (100, 20, takes[0]),
        (300, 100, takes[1]),
    ]
    for row in result["rows"]:
        assert all(row[form] > 0 for form in FORMS) and 0 < row["best"] <= 1
        assert row["megabytes"] == pytest.approx(4e-6 * row["out"] * row["in"])
    text = linear_text(result)
    assert "300 x 100" in text and "linear takes" in text and "threads 1" in text


def test_the_sizes_are_those_of_the_presets():
    for shape in SHAPES.values():
        if shape.vocabulary == 32000:
            sizes = {(shape.hidden,) * 2, (shape.intermediate, shape.hidden), (shape.hidden, shape.intermediate)}
            assert sizes | {(shape.vocabulary, shape.hidden)} <= set(SIZES)
