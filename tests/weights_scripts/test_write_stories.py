"""The embedded texts: what the script writes, byte for byte, and whether the stories are whole."""

import importlib.util
import random
import re
from pathlib import Path

import pytest

from minillm.transformer.evaluation import SEPARATOR, split_documents

SCRIPT = Path(__file__).parents[2] / "weights_scripts" / "write_stories.py"
spec = importlib.util.spec_from_file_location("write_stories", SCRIPT)
write_stories = importlib.util.module_from_spec(spec)
spec.loader.exec_module(write_stories)

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
