"""A tiny model with a tokenizer, which tests of calibration share."""

import pytest
import tiny

from minillm.transformer.model import Llama


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Llama:
    """Two layers with 48 neurons each, in float64."""
    return tiny.loaded(tmp_path_factory.mktemp("calibrated") / "model", intermediate_size=48)
