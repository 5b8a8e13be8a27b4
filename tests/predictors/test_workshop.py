"""The workshop makes every predictor of the catalogue, from training documents alone."""

import numpy as np
import pytest
import tiny

from minillm.errors import MinillmError
from minillm.predictors.catalogue import CATALOGUE, EVALUATED
from minillm.predictors.copies import Shadow
from minillm.predictors.files import save_predictor
from minillm.predictors.workshop import Workshop
from minillm.sparsity.calibrate import calibrate
from minillm.transformer.texts import document_hashes

TRAINING = [f"{story} And then he saw {i} red balls." for i in range(3) for story in tiny.STORIES]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.loaded(tmp_path_factory.mktemp("workshop") / "model", hidden_size=16, intermediate_size=24)


@pytest.fixture(scope="module")
def shop(model):
    held = TRAINING[9:]
    return Workshop(model, calibrate(model, held, "mid", 0.5, by="neuron"), TRAINING[:9], held, rank=3)


def test_every_name_makes_a_predictor_and_an_unknown_one_is_refused(model, tmp_path):
    shop = Workshop(model, calibrate(model, TRAINING[9:], "mid", 0.5, by="neuron"), TRAINING[:9], TRAINING[9:], rank=2)
    x = np.ones((2, 16))
    for name in ("oracle", *EVALUATED, "shadow-8", "up-3", "ahead", "refined"):
        predictor = shop.make(name)
        predictor.attach(model)
        assert predictor.predict(0, 0, x[:1] if predictor.sequential else x).shape[1] == 24, name
    assert shop.make("shadow-3").name == "shadow 3-bit"
    for name in ("magic", "shadow-9", "static-2"):
        with pytest.raises(MinillmError, match=f"predictor '{name}' is unknown"):
            shop.make(name)
    save_predictor(tmp_path / "p.safetensors", shop.make("shadow-3"))
    assert shop.make(str(tmp_path / "p.safetensors")).name == "shadow 3-bit"


def test_each_predictor_is_of_the_class_that_the_catalogue_names(shop):
    for name, entry in CATALOGUE.items():
        made = shop.make(name.replace("BITS", "2"))
        assert entry.place == f"{type(made).__module__.rpartition('.')[2]}:{type(made).__name__}", name


def test_what_several_predictors_need_is_computed_once_and_makes_them_know_the_training_documents(shop):
    assert shop.make("static") is shop.static and shop.make("previous-token").static is shop.static
    assert shop.moments is shop.moments
    shadow = shop.make("shadow-2")
    assert shadow.trained_on == frozenset(document_hashes(TRAINING[:9]))
    plain = Shadow.fit(shop.model, 2)
    assert plain.trained_on == frozenset() and shadow.nbytes > plain.nbytes  # it stores the errors, too
