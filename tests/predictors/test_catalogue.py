"""Names of predictors: what they mean, and that nothing heavy is loaded to know them."""

import doctest
import subprocess
import sys
from importlib import import_module

import pytest

from minillm.predictors import catalogue
from minillm.predictors.catalogue import CATALOGUE, EVALUATED, HELP, KINDS, entry_of


def test_every_kind_that_a_file_may_name_is_a_class():
    for place in KINDS.values():
        module, name = place.split(":")
        assert hasattr(getattr(import_module(f"minillm.predictors.{module}"), name), "from_arrays")


def test_the_example_in_the_docstring_is_right():
    assert doctest.testmod(catalogue).failed == 0 < doctest.testmod(catalogue).attempted


def test_every_name_that_is_evaluated_by_default_is_known_once():
    assert len(set(EVALUATED)) == len(EVALUATED) and all(entry_of(name) for name in EVALUATED)
    assert {entry_of(name)[0] for name in EVALUATED} == set(CATALOGUE) - {
        "oracle",
        "router",
    }  # it is scored anyway
    assert "shadow-3" in EVALUATED and entry_of("shadow-3") == ("shadow-BITS", 3)


@pytest.mark.parametrize("name", ["magic", "shadow-0", "shadow-9", "shadow-BITS", "static-2", "shadow-3 ", ""])
def test_other_names_are_unknown(name):
    assert entry_of(name) is None


def test_the_help_names_every_predictor_and_argparse_can_show_it():
    assert all(name in HELP and entry.about in HELP for name, entry in CATALOGUE.items()) and "%" not in HELP


def test_names_are_known_without_numpy():
    script = "import sys, minillm.predictors.catalogue; print('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "False"
