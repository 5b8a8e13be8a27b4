"""The figures on the default model's card are those that its script measures."""

import re

import pytest
from scripts import load_script

from minillm.loading.embedded import embedded_model, embedded_models
from minillm.transformer.texts import as_documents


@pytest.fixture(scope="module")
def script():
    return load_script("weights_scripts/write_model_card.py")


def split_figures(text: str) -> tuple[str, list[float]]:
    """A card's words with every number taken out, and the numbers."""
    number = r"[-+]?\d[\d,]*\.?\d*"
    return re.sub(number, "#", text), [float(found.replace(",", "")) for found in re.findall(number, text)]


@pytest.mark.shared
@pytest.mark.slow
def test_the_default_card_is_what_its_script_measures(script, shared):
    valid = as_documents((shared / "text" / "tinystories-valid.txt").read_text(encoding="utf-8"))
    words, figures = split_figures(script.card("default", valid))
    committed_words, committed = split_figures((embedded_model("default") / "README.md").read_text(encoding="utf-8"))
    assert words == committed_words
    # Another processor adds up in another order: the last printed digit may differ.
    assert figures == pytest.approx(committed, rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("name", embedded_models())
def test_every_embedded_model_has_a_card_that_names_data_and_licences(name):
    card = (embedded_model(name) / "README.md").read_text(encoding="utf-8")
    for word in (f"# minillm {name}", "CDLA-Sharing-1.0", "MIT", "What it is not for", "train_default.py", "log.json"):
        assert word in card
