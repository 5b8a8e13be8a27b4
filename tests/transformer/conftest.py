"""The goldens, made into model folders once for all tests of this chapter."""

import golden_cases
import pytest


@pytest.fixture(scope="session")
def golden(tmp_path_factory):
    """golden(name) -> golden_cases.Golden."""
    return golden_cases.golden_loader(tmp_path_factory.mktemp("goldens"))
