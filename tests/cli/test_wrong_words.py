"""Every flag of every command with words that nobody should give: never a traceback, never "nan" with status 0."""

import argparse
import contextlib
import io
import os
import re
import shutil

import pytest
import tiny

from minillm.cli.main import main, parser

pytestmark = pytest.mark.slow
WORDS = [
    "", " ", "-1", "0", "1", "1e400", "nan", "-inf", "1e-320", "0.5,", ",", "٣", "2**3", "99999999999999999999", "0x10",
    "x" * 5_000, "a\x1b[31mb", "caf\udce9", "absent/file", ".", "m", "m/config.json", "m/model.safetensors", "text.txt",
    "/dev/null", "pipe", "empty", "binary", "wide.csv", "default", "mid", "mid,mid", "None", "true", "=1", "~", "$HOME",
]  # fmt: skip
# What each command needs to run at all, on tiny models.
NEEDS = {
    "demo": "-m m --text text.txt -n 3", "generate": "-m m -p a -n 3", "perplexity": "-m m --text text.txt",
    "inspect": "-m m", "trace": "-m m", "compare": "t.npz t.npz", "calibrate": "-m m --text text.txt",
    "sweep": "-m m --text text.txt --policy mid --sparsity 0.5",
    "predict train": "-m m --text text.txt --predictor sign -o {new}.safetensors",
    "predict eval": "-m m --text text.txt --predictor sign", "bundle": "-m m --group 4 -o {new}",
    "prefetch simulate": "-m m -n 3", "prefetch replay": "-m m --text text.txt --tokens 20 --capacity 0.5",
    "prefetch real": "bundle -n 3", "prefetch blocks": "-m m --text text.txt --sparsity 0.5",
    "activations": "-m m --text text.txt --tokens 50",
    "patterns": "-m m --text text.txt", "report": "-m m --text text.txt --tokens 50 -o {new}.html",
    "grade": "answer.py",
}  # fmt: skip
LEFT_OUT = {"help", "version", "jobs", "threads"}  # they end the program, or start processes


def commands(top: argparse.ArgumentParser, name: str = "") -> dict[str, argparse.ArgumentParser]:
    """Every command and action by its words."""
    inner = [action for action in top._actions if isinstance(action, argparse._SubParsersAction)]
    if not inner:
        return {name: top}
    found = {}
    for word, sub in inner[0].choices.items():
        found |= commands(sub, f"{name} {word}".strip())
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    tiny.folder(folder / "m")
    (folder / "text.txt").write_text("\n<|endoftext|>\n".join(f"{s} {i}" for i in range(2) for s in tiny.STORIES))
    (folder / "empty").write_bytes(b"")
    (folder / "binary").write_bytes(bytes(range(256)) * 9)
    (folder / "wide.csv").write_text("a;b\n1;2\n")
    (folder / "answer.py").write_text("def lru(requests, capacity):\n    return None\n")
    os.mkfifo(folder / "pipe")
    before = os.getcwd()
    os.chdir(folder)
    assert silent("trace", "-m", "m", "-o", "t.npz")[0] == 0
    assert silent("bundle", "-m", "m", "--group", "4", "-o", "bundle")[0] == 0
    yield folder
    os.chdir(before)


def silent(*words: str) -> tuple[object, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status: object = main(list(words))
        except SystemExit as end:
            status = end.code
    return status, out.getvalue(), err.getvalue()


def fault(folder, line: list[str], word: str | None) -> object:
    """Run one command line and remove what it wrote; what is wrong with how it ended, None for nothing."""
    inside = set(os.listdir(folder))
    try:
        status, out, err = silent(*line)
    except BaseException as problem:
        return line[-2:], f"{type(problem).__name__}: {problem}"
    for path in set(os.listdir(folder)) - inside:
        shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink()
    assert set(os.listdir(folder)) == inside, line
    if status not in (0, 1, 2) or len(err) > 20_000 or "Traceback" in err:
        return line[-2:], status, err[-200:]
    if status == 0 and re.search(r"\b(nan|inf)\b", out) and "nan" not in str(word):
        return line[-2:], "not a number", out[-300:]
    if status == 1 and (not (out + err).strip() or max(map(len, (out + err).splitlines())) > 1_100):
        return line[-2:], "message", err[:200]
    return None


@pytest.mark.parametrize("name", NEEDS)
def test_no_word_ends_a_command_with_a_stack_of_calls(folder, name):
    every = commands(parser())
    sub = every[name] if name in every else every[name.split()[0]]
    faults, new = [], 0
    for action in sub._actions:
        if action.dest in LEFT_OUT or not action.option_strings:
            continue
        for word in WORDS if action.nargs != 0 else [None]:
            new += 1
            line = [*name.split(), *NEEDS[name].format(new=f"new{new}").split(), action.option_strings[0]]
            faults.append(fault(folder, line if word is None else [*line, word], word))
    faults = [found for found in faults if found]
    assert not faults, "\n".join(map(str, faults[:20])) + f"\n{len(faults)} faults"


LINES = (
    "compare {} t.npz",
    "compare t.npz {}",
    "grade {}",
    "prefetch real {} -n 3",
    "prefetch {}",
    "predict {}",
    "bench {}",
    "{}",
)


@pytest.mark.parametrize("line", LINES)
def test_no_word_in_a_place_of_its_own_does_either(folder, line):
    words = [word for word in WORDS if not (word == "m" and "bench" in line)]
    faults = [fault(folder, [word if part == "{}" else part for part in line.split()], word) for word in words]
    faults = [found for found in faults if found]
    assert not faults, "\n".join(map(str, faults[:20])) + f"\n{len(faults)} faults"
