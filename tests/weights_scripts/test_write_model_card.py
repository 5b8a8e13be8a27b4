"""The figures on the default model's card are those that its script measures."""

import re

import pytest
from scripts import load_script

import minillm
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


def test_a_further_trained_model_names_all_parts_of_its_training_in_order(script):
    def part(number: int, **fields) -> dict:
        data = [{"file": f"text-{number}.txt", "documents": 1000 * number}]
        log = {"command": f"--seed {number}", "data": data, "data_tokens": 5 * number, "seed": number, "threads": 1}
        return log | {"curve": [{"tokens": 10 * number}], "versions": {"torch": "2"}, **fields}

    log = part(3, before=part(2, before=part(1)), threads=2)
    parts = script.training_parts(log)
    assert [part["seed"] for part in parts] == [1, 2, 3]
    config = minillm.load("default").config
    fields = script.origin_fields("default", config, parts)
    assert fields["commands"].split() == "--seed 1 --seed 2 --seed 3".split()
    assert fields["data"].split("; then ")[1] == "2,000 documents (text-2.txt)"
    assert fields["trained"].startswith("10 tokens, drawn from 5;")
    assert (fields["seed"], fields["threads"], fields["plural"], fields["written"]) == (3, 2, "s", "")
    parts[0]["data"][0]["file"] = "stories.txt"
    assert "write_stories.py" in script.origin_fields("default", config, parts)["written"]


def test_the_sizes_on_a_card_are_those_of_the_model_and_its_files(script):
    folder, model = embedded_model("default-relu"), minillm.load("default-relu")
    fields = script.size_fields(model, folder)
    bfloat16 = (folder / "model.safetensors").stat().st_size
    assert 0 <= bfloat16 - 2 * fields["weights"] < 10_000  # two bytes a weight, and the file's header
    assert bfloat16 / 1000 < fields["kilobytes"] < bfloat16 / 1000 + 200
    assert fields["act"] == "relu" and fields["head"] * fields["heads"] == fields["hidden"]
