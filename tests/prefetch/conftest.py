"""A tiny model with thresholds, and its bundles."""

import pytest
import tiny

from minillm.prefetch.bundle import open_bundle, write_bundle
from minillm.sparsity.calibrate import calibrate
from minillm.transformer.model import Llama


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """(model in float32, thresholds of mid at half of the neurons)."""
    model = tiny.loaded(tmp_path_factory.mktemp("small") / "model", "float32")
    return model, calibrate(model, tiny.STORIES[:2], "mid", 0.5, by="neuron")


@pytest.fixture(scope="session")
def bundles(tmp_path_factory):
    """bundles(group, dtype) -> an open bundle of one tiny model with biases; each is written once."""
    folder, made = tmp_path_factory.mktemp("reader"), {}
    tiny.folder(folder / "model", mlp_bias=True)

    def bundle(group, dtype="float32"):
        if (group, dtype) not in made:
            made[group, dtype] = open_bundle(write_bundle(folder / "model", folder / f"{group}{dtype}", group, dtype))
        return made[group, dtype]

    bundle.source = lambda dtype="float64": Llama.from_folder(folder / "model", dtype)
    return bundle
