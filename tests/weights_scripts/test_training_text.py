"""The text of the training script: the tokenizer loses nothing, a batch has its number of tokens."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback_hub import LoopbackHub
from scripts import load_script
from training_stories import STORIES


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    return load_script("weights_scripts/training_text.py")


pytestmark = pytest.mark.parity


def test_the_tokenizer_gives_every_text_back(tokenizer):
    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def check(text):
        tokenizer.encode_special_tokens = True
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text

    check()
    for text in ("  two  spaces ", "\u2581 is no space", "<0x41> is no byte, </s> no end", "naïve 猫 😀\r\n\tx"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_a_batch_is_documents_each_from_its_start_of_so_many_tokens_in_all(script, tokenizer):
    documents = [*script.encode(tokenizer, STORIES), np.arange(3, 1000)]
    for tokens in (0, 1, 512, 4096):
        drawn = script.batch(documents, tokens, np.random.default_rng(tokens))
        assert sum(len(document) - 1 for document in drawn) == tokens
        for cut in drawn:
            whole = next(document for document in documents if np.array_equal(document[: len(cut)], cut))
            assert len(cut) == min(len(whole), script.CONTEXT + 1) or cut is drawn[-1]


@pytest.mark.shared
@pytest.mark.slow
def test_a_teacher_tells_stories_with_an_end(script, shared):
    stories = script.sample(shared / "models" / "tinystories-656k", 3, seed=0, at_once=6)
    assert len(stories) == 3 and all(len(story) > 100 and "<" not in story for story in stories)


def test_without_a_text_it_reads_as_much_of_the_published_stories_as_it_wants_and_no_more(script):
    _, name = script.PUBLISHED.split("TinyStories/", 1)
    file = "\n<|endoftext|>\n".join(f"{i} {story}" for i, story in enumerate(STORIES * 400)).encode()
    code = (
        "import sys; sys.path.insert(0, 'weights_scripts'); import training_text as t; "
        "s = t.published_stories(1, 1 << 18); print(len(s)); print(s[0]); print(s[-1])"
    )
    with LoopbackHub("roneneldan/TinyStories", {name: file}, kind="datasets") as hub:
        variables = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        variables |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
        root = Path(__file__).parents[2]
        run = subprocess.run(
            [sys.executable, "-B", "-c", code], env=variables, cwd=root, capture_output=True, text=True
        )
    assert run.returncode == 0, run.stderr
    count, first, last = run.stdout.splitlines()
    asked = sum(int(r.split("-")[1]) - int(r.removeprefix("bytes=").split("-")[0]) + 1 for r in hub.ranges)
    assert 1_000_000 <= asked < 2_000_000 < len(file)
    assert first == f"0 {STORIES[0]}" and last == f"{int(count) - 1} {STORIES[(int(count) - 1) % len(STORIES)]}"
