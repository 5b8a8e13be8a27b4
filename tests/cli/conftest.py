"""A folder of tiny models and texts, and `run`: one command in this process."""

import os
import shutil
import warnings
from pathlib import Path

import pytest
import tiny

from minillm.cli.main import main

SEPARATOR = "\n<|endoftext|>\n"


@pytest.fixture(scope="session")
def here(tmp_path_factory) -> Path:
    """A folder with models m, three (layers) and bare (no tokenizer), and texts."""
    here = tmp_path_factory.mktemp("cli")
    tiny.folder(here / "m")
    tiny.folder(here / "three", num_hidden_layers=3)
    tiny.folder(here / "no_bos", bos=False)
    tiny.folder(here / "long", max_position_embeddings=20_000, eos_token_id=None)
    shutil.copytree(here / "m", here / "bare")
    (here / "bare" / "tokenizer.json").unlink()
    stories = [f"{story} {number}" for number in range(3) for story in tiny.STORIES]
    texts = {"stories.txt": SEPARATOR.join(stories), "one.txt": "A cat.\nA dog.\nThe sea.", "letter.txt": "a"}
    texts |= {"empty.txt": " \n", "separators.txt": SEPARATOR * 3}
    for name, text in texts.items():
        (here / name).write_text(text, encoding="utf-8")
    (here / "latin.txt").write_bytes("café".encode("latin-1"))
    return here


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    """A folder for the commands of the buffer: a model, and a text of a few documents."""
    folder = tmp_path_factory.mktemp("prefetch")
    tiny.loaded(folder / "model")
    (folder / "text.txt").write_text(SEPARATOR.join(tiny.STORIES * 4), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def unchanged(monkeypatch, here):
    """Run in the folder, at 80 columns; what main changes for the whole process is put back."""
    monkeypatch.chdir(here)
    monkeypatch.setenv("COLUMNS", "80")
    environment, show = dict(os.environ), warnings.showwarning
    yield
    warnings.showwarning = show
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture
def run(capsys):
    """run("inspect", "-m", "m") -> (exit status, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as wrong_usage:
            status = wrong_usage.code
        return status, *capsys.readouterr()

    return run
