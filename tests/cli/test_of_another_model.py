"""Thresholds and predictors of one model in a command about its twin: each command says so, once."""

import pytest
import tiny

from minillm.predictors.copies import Shadow
from minillm.predictors.cutoffs import fit_cutoffs
from minillm.predictors.files import save_predictor
from minillm.sparsity.calibrate import calibrate
from minillm.transformer.model import Llama


@pytest.fixture(scope="module")
def theirs(here) -> tuple[str, str]:
    """Thresholds of mid and a predictor of model m, whose name is not to be seen in a run of its twin."""
    tiny.folder(here / "twin", seed=5)
    model = Llama.from_folder(here / "m")
    thresholds = calibrate(model, tiny.STORIES, "mid", 0.5, by="neuron")
    predictor = Shadow.fit(model, 3)
    fit_cutoffs(model, predictor, thresholds, tiny.STORIES, 0.5)
    thresholds.save(here / "of_m.json")
    save_predictor(here / "of_m.safetensors", predictor)
    calibrate(Llama.from_folder(here / "twin"), tiny.STORIES, "dhar", 0.5).save(here / "dhar_of_twin.json")
    calibrate(model, tiny.STORIES, "dhar", 0.5).save(here / "dhar_of_m.json")
    return "set of mid thresholds", "predictor shadow 3-bit"


BOTH = "--thresholds of_m.json --predictor of_m.safetensors"


@pytest.mark.parametrize(
    ("line", "which"),
    [
        ("perplexity --text one.txt --thresholds of_m.json", (0,)),
        (f"perplexity --text one.txt {BOTH}", (0, 1)),
        (f"generate -p a -n 2 {BOTH}", (0, 1)),
        (f"trace -p a {BOTH}", (0, 1)),
        (f"predict eval --text stories.txt {BOTH}", (0, 1)),
        ("predict eval --text stories.txt --predictor of_m.safetensors", (1,)),
        ("predict train --text stories.txt --thresholds of_m.json --predictor sign -o p.safetensors", (0,)),
        ("predict train --text stories.txt --predictor of_m.safetensors -o p.safetensors", (1,)),
        ("prefetch simulate -p a -n 2 --thresholds of_m.json", (0,)),
        pytest.param(f"prefetch replay --text stories.txt {BOTH}", (0, 1), marks=pytest.mark.slow),
        ("patterns --text stories.txt --thresholds dhar_of_m.json", (2,)),
    ],
)
def test_every_command_says_once_that_thresholds_or_a_predictor_are_of_another_model(run, theirs, line, which):
    words = (*theirs, "set of dhar thresholds")
    said = run(*line.split(" "), "-m", "twin")[2]
    for index, name in enumerate(words):
        assert said.count(f"the {name} was made for another model, m (") == (index in which), said
    if "patterns" in line:
        said = run(*line.replace("of_m", "of_twin").split(" "), "-m", "twin")[2]
        assert "another model" not in said and "dhar" not in said
