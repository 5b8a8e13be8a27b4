"""A small study and its page, made once for the tests of both."""

import functools
import tempfile
from dataclasses import replace
from pathlib import Path

import tiny

from minillm.show.page import page_of
from minillm.study import summary

TRAINING = [f"{story} And then he saw {i} red balls." for i in range(3) for story in tiny.STORIES]
TEST = [f"{story} The sea." for story in tiny.STORIES]
PROMPT = "A <i>é😀"
KEPT = tempfile.TemporaryDirectory()  # until the tests are over


@functools.cache
def folder():
    return tiny.folder(Path(KEPT.name) / "model", hidden_size=16, intermediate_size=24)


@functools.cache
def model():
    return tiny.Llama.from_folder(folder())


def measured(options):
    return summary.measure(model(), TRAINING, TEST, options, tokens=300, prompt=PROMPT)


@functools.cache
def study():
    return measured({"model": str(folder()), "text": "my text.txt", "tokens": 300, "prompt": PROMPT})


@functools.cache
def page():
    """The page of the study, under a name that is markup."""
    return page_of(replace(study(), name="<b>&model</b>", headline="<b>&model</b>: llama"))
