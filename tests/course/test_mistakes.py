"""The usual mistakes: each is wrong, no two are the same, and the right form is right."""

import numpy as np
import pytest

from minillm.course.assignment import cases_of
from minillm.course.differences import difference
from minillm.course.mistakes import MISTAKES, RIGHT, Call, diagnose, in_double


def results(name: str, function) -> list:
    with np.errstate(all="ignore"):
        return [function(*map(in_double, arguments)) for arguments, *_ in cases_of(name)]


def calls(name: str, found: list) -> list[Call]:
    return [Call(a, value, expected, rtol) for value, (a, expected, rtol) in zip(found, cases_of(name), strict=True)]


@pytest.mark.parametrize("name", MISTAKES)
def test_without_a_mistake_it_is_the_golden(name):
    found = calls(name, results(name, RIGHT[name]))
    assert [difference(c.result, in_double(c.expected), c.rtol) for c in found] == [(1.0, "")] * len(found)
    narrow = [c._replace(result=c.expected) for c in found]
    assert diagnose(name, narrow) == ""


@pytest.mark.parametrize(("name", "words", "wrong"), [(n, w, f) for n, all_of in MISTAKES.items() for w, f in all_of])
def test_each_mistake_is_wrong_somewhere_and_is_not_taken_for_another(name, words, wrong):
    found = calls(name, results(name, wrong))
    assert any(difference(c.result, in_double(c.expected), c.rtol)[1] for c in found)
    assert diagnose(name, found).startswith(words)


def test_what_is_not_one_known_mistake_on_every_case_is_not_diagnosed():
    (words, first), (_, second) = ((words, results("lru", wrong)) for words, wrong in MISTAKES["lru"][:2])
    assert diagnose("lru", calls("lru", first)) == words
    assert diagnose("lru", calls("lru", [first[0], *second[1:]])) == ""
    assert diagnose("lru", calls("lru", [None, *first[1:]])) == ""
    assert diagnose("lru", calls("lru", [first[0].tolist(), *first[1:]])) == ""
    assert diagnose("lru", []) == ""


def test_a_leak_is_told_beside_the_mistake_and_alone():
    right = results("rope", RIGHT["rope"])
    assert diagnose("rope", calls("rope", right)).startswith("float32 goes in and float64 comes out")
    words, wrong = MISTAKES["rope"][0]
    assert diagnose("rope", calls("rope", results("rope", wrong))) == (
        f"{words}; float32 goes in and float64 comes out (a table or a constant in it is float64)"
    )
