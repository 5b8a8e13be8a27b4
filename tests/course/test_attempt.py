"""One call of an answer: what comes out of it, whatever it does. (test_check.py has the sentences of most.)"""

import sys

import numpy as np
import pytest

from minillm.course.attempt import PRINTED, attempt, error_text


def test_a_result_its_prints_and_the_argument_that_it_changed():
    def answer(x, y):
        print("here")
        y[0] = 9
        return x + 1

    outcome = attempt(answer, (1, np.zeros(2)))
    assert outcome.returned and outcome.result == 2 and outcome.changed == "y" and outcome.printed == "here\n"
    assert attempt(lambda x, y: x, (1, np.zeros(2))).changed == ""


def test_only_the_beginning_of_what_it_prints_is_kept():
    def chatty():
        for _ in range(1000):
            print("x" * 1000)
            print("y" * 10, file=sys.stderr)

    assert len(attempt(chatty, ()).printed) == PRINTED


class NoWords(Exception):
    def __str__(self):
        raise SystemExit


def fails(error):
    def answer():
        raise error

    return answer


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("\x1b[31mred\x07"), r"raised ValueError: \x1b[31mred\x07 in line"),
        (ValueError("\u202egnitirw"), r"raised ValueError: \u202egnitirw"),
        (ValueError("x" * 10**6), "xxx ... xxx"),
        (type("E" * 10**6, (Exception,), {})("y"), "EEE ... EEE"),
        (NoWords(), "raised NoWords in line"),
        (SystemExit("\x1b[0m"), r"raised SystemExit: \x1b[0m"),
    ],
)
def test_an_exception_is_shown_escaped_and_short(error, words):
    outcome = attempt(fails(error), ())
    assert not outcome.returned and words in outcome.problem
    assert outcome.problem.isprintable() and len(outcome.problem) < 1000


def test_a_long_line_and_a_long_signature_are_cut():
    code = "def long_line():\n    raise ValueError('no')  # " + "x" * 10**5
    space: dict = {}
    exec(compile(code, __file__, "exec"), space)
    assert len(attempt(space["long_line"], ()).problem) < 1000
    exec(f"def wide(a={'x' * 10**5!r}): pass", space)
    problem = attempt(space["wide"], (1, 2)).problem
    assert "is called with 2 arguments" in problem and len(problem) < 1000


def test_a_signature_that_is_made_up_is_unknown():
    class Answer:
        __signature__ = property(lambda self: 1 / 0)

        def __call__(self, x, y):
            x[:] = 1

    assert attempt(Answer(), (np.zeros(2), 1)).changed == "number 1"
    assert attempt(Answer(), ()).problem.startswith("raised TypeError")
    assert error_text(ValueError()) == "ValueError"
