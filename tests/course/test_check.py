"""An answer beside what is right: counts, sentences about shapes, and nothing that escapes."""

import os
import sys
import warnings

import numpy as np
import pytest

from minillm.course.check import Score, check
from minillm.errors import MinillmError
from minillm.transformer.ops import rms_norm, softmax

X, W = np.arange(12.0).reshape(3, 4), np.array([1.0, 2, 3, 4])
CASES = [(X, W, 1e-5), (X - 6, W, 0.1), (X[:1], W * 0, 1.0)]


def rows(x):
    return x.sum(axis=-1)


def told(capsys, answer, spec=rows, cases=((X,),), **options) -> tuple[Score, str]:
    score = check("02.1", answer, spec, list(cases), **options)
    return score, capsys.readouterr().out


def problem(capsys, answer, *options, **more) -> str:
    score, out = told(capsys, answer, *options, **more)
    assert score.right == 0 and out.splitlines()[0] == f"exercise 02.1: 0 of {score.total} right"
    assert len(out.splitlines()) == 2
    return out.splitlines()[1]


def test_a_right_answer_prints_one_line(capsys):
    score, out = told(capsys, lambda x, w, eps: w * (x / ((x * x).mean(-1, keepdims=True) + eps) ** 0.5),
                      rms_norm, CASES)  # fmt: skip
    assert out == "exercise 02.1: 3 of 3 right\n"
    assert (score.right, score.total, score.fraction, score.values, score.problem) == (3, 3, 1, 1, "")


def test_partly_right_is_counted_and_the_first_wrong_case_is_told(capsys):
    def answer(x, w, eps):
        return rms_norm(x, w, 1e-5)

    score, out = told(capsys, answer, rms_norm, CASES)
    assert out.splitlines()[0] == "exercise 02.1: 2 of 3 right"  # weights of zero hide what eps is
    assert "case 2, answer(float64[3, 4], float64[4], 0.1): largest difference at [" in out
    assert "1 of 12 values are right" in out  # the zero
    assert score.right == 2 and score.fraction == 2 / 3 and score.values == pytest.approx((2 + 1 / 12) / 3)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x: x.T, "returned float64[4, 3], expected float64[3, 4]: transposed?"),
        (lambda x: x[None], "float64[1, 3, 4], expected float64[3, 4]: an axis of length 1 too many or too few"),
        (lambda x: x.ravel(), "float64[12], expected float64[3, 4]: the same number of values in another shape"),
        (lambda x: x[:, :2], "float64[3, 2], expected float64[3, 4]: axis 1 has length 2, not 4"),
        (lambda x: x[0], "float64[4], expected float64[3, 4]: 1 axes, not 2"),
        (lambda x: x.astype(np.float32), "float32[3, 4], expected float64[3, 4]; the values are right"),
        (lambda x: x.astype(int), "int64[3, 4], expected float64[3, 4]; the values are right"),
        (lambda x: x.tolist(), "returned a list of 3 items, expected an array float64[3, 4]"),
        (lambda x: None, "returned None, expected an array float64[3, 4]: is a return missing?"),
        (lambda x: "text", "returned 'text', expected an array float64[3, 4]"),
        (lambda x: x.astype(object), "returned object[3, 4], expected an array float64[3, 4]"),
        (lambda x: x * np.nan, "nan at [0, 0], expected 0; 0 of 12 values are right"),
        (lambda x: np.where(x == 5, np.inf, x), "inf at [1, 1], expected 5; 11 of 12 values are right"),
        (lambda x: x + (x == 5), "largest difference at [1, 1]: found 6, expected 5; 11 of 12 values are right"),
        (3, "it is not a function (found 3)"),
    ],
)
def test_the_sentence_on_a_wrong_array_speaks_of_shape_dtype_and_place(capsys, answer, words):
    assert words in problem(capsys, answer, lambda x: x)


def test_a_float64_leak_is_named(capsys):
    x32 = X.astype(np.float32)
    told_of = problem(capsys, lambda x: x * np.float64(1), lambda x: x, [(x32,)])
    assert "returned float64[3, 4], expected float32[3, 4]: something in it is float64; the values are right" in told_of


def test_not_a_number_and_infinity_are_right_where_they_are_expected(capsys):
    x = np.array([1, np.nan, -np.inf, np.inf])
    assert told(capsys, lambda x: x, lambda x: x, [(x,)])[0].right == 1
    assert "1 of 4" in problem(capsys, lambda x: np.array([1.0, 2, 3, 4]), lambda x: x, [(x,)])


def test_the_tolerance_is_relative_to_the_largest_value(capsys):
    def off(x):
        return x + 5e-6

    assert told(capsys, off, lambda x: x)[0].right == 1  # 11 is the largest
    assert told(capsys, off, lambda x: x, rtol=1e-7)[0].right == 0
    assert told(capsys, lambda x: x + 1e-4, lambda x: x)[0].right == 0


# ---- what an answer may do -------------------------------------------------------------------------------------------


class Strange(Exception):
    def __str__(self):
        raise RuntimeError("no words")


def throws(error):
    raise error


class NoEquality:
    def __eq__(self, other):
        raise RuntimeError("not with me")


def endless(x):
    return endless(x)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x: throws(ValueError("two\nlines")), "raised ValueError: two lines"),
        (lambda x: x[9], "raised IndexError: index 9 is out of bounds for axis 0 with size 3 in line"),
        (lambda x: throws(NotImplementedError("your turn")), "(float64[3, 4]): is not written yet"),
        (lambda x: throws(Strange()), "raised Strange"),
        (lambda x: throws(SystemExit(3)), "raised SystemExit: 3"),
        (lambda x: sys.exit(), "raised SystemExit"),
        (lambda x: throws(BaseException("deep")), "raised BaseException: deep"),
        (endless, "raised RecursionError"),
        (lambda x, y: x, "takes (x, y), but is called with 1 arguments"),
        (lambda: 1, "takes (), but is called with 1 arguments"),
        (lambda x: NoEquality(), "returned a value of type NoEquality, expected an array"),
        (lambda x: iter([1]), "expected an array float64[3]"),
        (lambda x: rows, "returned the function rows, expected an array float64[3]"),
    ],
)
def test_whatever_an_answer_does_is_one_sentence(capsys, answer, words):
    assert words in problem(capsys, answer)


def test_a_value_that_cannot_be_compared_is_wrong(capsys):
    told_of = problem(capsys, lambda x: NoEquality(), lambda x: "text")
    assert "cannot be compared (RuntimeError: not with me), expected 'text'" in told_of


def test_ctrl_c_passes_through():
    with pytest.raises(KeyboardInterrupt):
        check("02.1", lambda x: throws(KeyboardInterrupt()), rows, [(X,)])


def test_the_specifications_own_errors_are_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        check("02.1", rows, lambda x: 1 // 0, [(X,)])
    with pytest.raises(MinillmError, match="exercise 02.1 has no cases"):
        check("02.1", rows, rows, [])


def doubles(x):
    x *= 2
    return x / 2


def test_a_changed_argument_is_told_and_the_case_itself_stays(capsys):
    x = X.copy()
    told_of = problem(capsys, doubles, lambda x: x, [(x,)])
    assert told_of.endswith("changed its argument x in place, expected a new array") and np.array_equal(x, X)
    told_of = problem(capsys, lambda items: items.append(1) or items, lambda items: [*items, 2], [([0],)])
    assert "changed its argument items in place, expected a new array; and item 2: returned 1, expected 2" in told_of


def test_a_change_that_the_specification_makes_too_is_right(capsys):
    def fill(x):
        x[:] = 0
        return x

    assert told(capsys, fill, fill)[0].right == 1
    assert "changed its argument x in place" in problem(capsys, lambda x: np.zeros_like(x), fill)


def test_arguments_with_state_are_fresh_for_both(capsys):
    cases = [(np.random.default_rng(5), 3), (np.random.default_rng(6), 2)]
    assert told(capsys, lambda rng, n: rng.random(n), lambda rng, n: rng.random(n), cases)[0].right == 2
    assert told(capsys, lambda m: 1, lambda m: 1, [(os,)])[0].right == 1  # a module cannot be copied


def test_what_a_wrong_answer_prints_is_shown_below_the_sentence_and_never_before_the_first_line(capsys):
    def chatty(x):
        print("shape", x.shape, end="")
        print("\nto stderr", file=sys.stderr)

    score, out = told(capsys, chatty)
    assert out.splitlines()[0] == "exercise 02.1: 0 of 1 right" and "  printed: shape (3, 4)" in out
    assert "  printed: to stderr" in out

    def right(x):
        print("noise " * 100)
        sys.stdout.close()
        return rows(x)

    assert told(capsys, right)[1] == "exercise 02.1: 1 of 1 right\n"


def test_settings_that_an_answer_makes_end_with_it(capsys):
    def careless(x):
        np.seterr(all="raise")
        return rows(x)

    before = np.geterr()
    assert told(capsys, careless)[0].right == 1 and np.geterr() == before


def test_a_real_exercise_with_a_loop_as_its_specification(capsys):
    def spec(x):
        return np.array([np.exp(row - row.max()) / np.exp(row - row.max()).sum() for row in x])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert told(capsys, softmax, spec, [(X,), (X * 100,)])[0].right == 2
    wrong = problem(capsys, lambda x: np.exp(x) / np.exp(x).sum(axis=0), spec, [(X,), (X.T,)])
    assert "largest difference at [2, 0]" in wrong
