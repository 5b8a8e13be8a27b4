"""The embedded texts and those to train on: what the script writes, byte for byte, and whether stories are whole."""

import hashlib
import json
import random
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from scripts import load_script

from minillm.transformer.texts import SEPARATOR, split_documents

SCRIPT = Path(__file__).parents[2] / "weights_scripts" / "write_stories.py"
write_stories = load_script(SCRIPT)

NAMES = sorted(write_stories.FILES)
GRAMMAR = write_stories.Grammar(write_stories.GRAMMAR.read_text(encoding="utf-8"))


def embedded(name: str) -> str:
    return (write_stories.FOLDER / name).read_text(encoding="utf-8")


def faults(story: str) -> list[str]:
    """Marks of the notation left over, a small letter after a full stop, a wrong article, an open quotation."""
    found = re.findall(r"[][{}|^#@%/]|  | [,.!?]|[^.]\. [a-z]|\b[Aa] [aeiou]\w+|\b[Aa]n [^aeiou\W]\w+", story)
    return found + [line for line in story.split("\n") if line.count('"') % 2 or not re.match('"?[A-Z]', line)]


def test_the_script_writes_the_embedded_files_again(tmp_path):
    write_stories.write(tmp_path)
    for name in NAMES:  # read as text: a checkout on Windows may hold other line ends
        assert (tmp_path / name).read_text(encoding="utf-8") == embedded(name)
        assert b"\r" not in (tmp_path / name).read_bytes()


def test_no_story_comes_twice_within_or_across_the_parts():
    stories = [story for name in NAMES for story in split_documents(embedded(name))]
    assert len(set(stories)) == len(stories) > 150


@pytest.mark.parametrize("name", NAMES)
def test_each_part_is_whole_stories_with_a_separator_line_after_each(name):
    text = embedded(name)
    size = write_stories.FILES[name]
    assert text.isascii() and size <= len(text) < size + 1500
    assert text.endswith(f"\n{SEPARATOR}\n")
    pieces = text.split(f"\n{SEPARATOR}\n")
    assert pieces.pop() == "" and pieces == split_documents(text)
    assert all(len(story) in write_stories.LENGTHS and not faults(story) for story in pieces)


@pytest.mark.parametrize("plot", GRAMMAR.plots)
def test_every_plot_can_be_told_in_many_ways(plot):
    rng = random.Random(0)
    stories = [write_stories.Story(rng, GRAMMAR).tell(GRAMMAR.plots[plot]) for _ in range(25)]
    assert len(set(stories)) == len(stories)
    assert [(fault, story) for story in stories for fault in faults(story)] == []


def test_faults_are_found():
    for story in ("He ate a apple.", "He ran. he fell.", "The {toy}.", 'He said, "Yes.', "he ran.", "He had an ball."):
        assert faults(story)


def test_pronouns_belong_to_one_gender_each():
    for seed in range(200):
        cast = write_stories.Story(random.Random(seed), GRAMMAR).cast
        assert {cast["A"]["he"], cast["B"]["he"]} == {"he", "she"}
        assert cast["A"]["name"] in (write_stories.GIRLS if cast["A"]["he"] == "she" else write_stories.BOYS)


# ---- the grammar of the stories that a model is trained on -----------------------------------------------------------

TRAINING = write_stories.Grammar(SCRIPT.with_name("training_grammar.txt").read_text(encoding="utf-8"))


@pytest.mark.parametrize("plot", TRAINING.plots)
def test_stories_to_train_on_are_whole_too(plot):
    stories = [write_stories.Story(random.Random(seed), TRAINING).tell(TRAINING.plots[plot]) for seed in range(30)]
    assert {story: faults(story) for story in stories if faults(story)} == {}


def test_what_models_are_scored_on_is_not_in_what_they_are_trained_on():
    assert not set(TRAINING.plots) & set(GRAMMAR.plots)
    sentences = {s for plot in GRAMMAR.plots.values() for line in plot for s in re.split(r"(?<=[.!?]) ", line)}
    trained = {s for plot in TRAINING.plots.values() for line in plot for s in re.split(r"(?<=[.!?]) ", line)}
    assert {s for s in sentences & trained if len(s.split()) > 6} == set()


def test_the_script_writes_other_stories_on_demand_and_never_into_the_package(tmp_path):
    grammar = str(SCRIPT.with_name("training_grammar.txt"))
    command = [sys.executable, str(SCRIPT), "--grammar", grammar, "--stories", "40"]
    assert subprocess.run(command, capture_output=True).returncode == 2  # no folder
    subprocess.run([*command, str(tmp_path)], check=True)
    stories = split_documents((tmp_path / "stories.txt").read_text(encoding="utf-8"))
    assert len(set(stories)) == len(stories) == 40


def test_stories_with_an_introduction_name_their_hero_first_and_once():
    stories = list(islice(write_stories.series(TRAINING, "introduced"), 400))
    assert len(set(stories)) == len(stories)
    for story in stories:
        story = story.removesuffix("\n<|endoftext|>\n")
        assert not faults(story)
        first, rest = re.split(r"(?<=[.]) ", story, maxsplit=1)
        hero = re.search(r"named (\w+)|^(\w+) was a", first)
        assert hero and not re.search(rf"named {hero[1] or hero[2]}\b", rest)


def test_a_described_hero_is_one_of_its_kind():
    """What is said to be a girl is "she", and "he" a boy; an animal can be both."""
    stories = list(islice(write_stories.series(TRAINING, "described"), 400))
    assert len(set(stories)) == len(stories)
    kinds = {"She": [], "He": []}
    for story in stories:
        assert not faults(story.removesuffix("\n<|endoftext|>\n"))
        opening = " ".join(re.split(r"(?<=[.]) ", story)[:3])
        for pronoun, kind in re.findall(r"(She|He) (?:is|was) an? (?:\w+ )*?(\w+)(?=[.,])", opening):
            kinds[pronoun].append(kind)
    assert kinds["She"].count("girl") > 30 < kinds["He"].count("boy")
    assert "boy" not in kinds["She"] and "girl" not in kinds["He"]
    assert set(kinds["She"]) & set(kinds["He"]) <= set(write_stories.ANIMALS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stories.txt", "introduced.txt", "described.txt"])
def test_the_script_writes_the_texts_again_that_the_default_model_was_trained_on(tmp_path, name):
    part = json.loads((write_stories.FOLDER.parent / "default" / "log.json").read_text(encoding="utf-8"))
    parts = [part]
    while part := part.get("before"):
        parts.append(part)
    (used,) = {(d["documents"], d["sha256"]) for part in parts for d in part["data"] if d["file"] == name}
    grammar = str(SCRIPT.with_name("training_grammar.txt"))
    command = [sys.executable, str(SCRIPT), str(tmp_path), "--grammar", grammar, "--stories", str(used[0])]
    command += [] if name == "stories.txt" else ["--opening", name.removesuffix(".txt")]
    subprocess.run(command, check=True)
    assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == used[1]


@pytest.mark.slow
def test_what_models_are_scored_on_is_hardly_met_in_what_they_are_trained_on():
    """Of the runs of eight words of the embedded test text, few come in as many stories to train on."""
    trained = " ".join(islice(write_stories.series(TRAINING), 3000)).split()
    met = set(zip(*(trained[i:] for i in range(8)), strict=False))
    scored = embedded("test.txt").split()
    runs = list(zip(*(scored[i:] for i in range(8)), strict=False))
    assert np.mean([run in met for run in runs]) < 0.02
