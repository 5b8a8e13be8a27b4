"""A command that is stopped at any moment leaves the user's files as they were, and a second run completes.

SIGTERM and Ctrl-C leave nothing behind; after kill -9 a temporary file may lie beside the target.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
# Each writes "out..."; {text} holds a hundred short documents.
COMMANDS = {
    "calibrate": "calibrate -m m --text text.txt -o out.json",
    "sweep": "sweep -m m --text text.txt --policy mid,cats --sparsity 0.3,0.6 -o out.csv",
    "figure": "sweep -m m --text text.txt --policy mid --figure out.png",
    "predict train": "predict train -m m --text text.txt --predictor learned -o out.safetensors",
    "predict eval": "predict eval -m m --text text.txt --predictor chance,sign -o out.csv",
    "bundle": "bundle -m m --group 4 -o out",
    "trace": "trace -m m --prompt Once -o out.npz",
    "report": "report -m m --text text.txt -o out.html",
    "template": "grade --template -o out.py",
}
TIMES = 1  # moments for each command and signal


def started(words: str, folder: Path) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, "-m", "minillm", *words.split()], cwd=folder, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture
def folder(here, tmp_path) -> Path:
    shutil.copytree(here / "m", tmp_path / "m")
    stories = (here / "stories.txt").read_text(encoding="utf-8").split("<|endoftext|>")
    documents = [f"{story.strip()} {number}" for number in range(4) for story in stories]
    (tmp_path / "text.txt").write_text("\n<|endoftext|>\n".join(documents), encoding="utf-8")
    return tmp_path


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_stopped_at_a_random_moment_changes_nothing_and_completes_when_run_again(folder, name):
    words, rng = COMMANDS[name], random.Random(0)
    mine = listing(folder)
    begun = time.perf_counter()
    process = started(words, folder)
    assert process.wait(timeout=300) == 0, process.stderr.read().decode()
    seconds = time.perf_counter() - begun
    whole = {key for key in listing(folder) if key not in mine}
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        for _ in range(TIMES):
            for path in folder.glob("out*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            process = started(words, folder)
            time.sleep(rng.uniform(0.02, 1) * seconds)
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
            left = listing(folder)
            assert {key: left.pop(key, None) for key in mine} == mine
            if number == signal.SIGKILL:
                for key in [key for key in left if key.startswith(".")]:
                    (folder / key).unlink() if "/" not in key else shutil.rmtree(folder / key.split("/")[0], True)
                    left.pop(key)
            assert set(left) <= whole, (number, err)  # nothing, or what is whole
            if process.returncode:
                assert process.returncode in (130, 143, -number), err
            # Python itself drops an exception that comes while it collects garbage: then the command goes on.
            dropped = b"Exception ignored" in err and process.returncode == 0
            assert b"Traceback" not in err or process.returncode == -signal.SIGINT or dropped, err.decode()
            refuses = name in ("bundle", "template") and any(folder.glob("out*"))  # never over a folder or a file
            if not refuses:
                again = started(words, folder)
                assert again.wait(timeout=300) == 0, again.stderr.read().decode()
                assert {key for key in listing(folder) if key not in mine and not key.startswith(".")} == whole


def test_an_older_file_stays_until_the_new_one_is_whole(folder):
    (folder / "out.json").write_text("mine", encoding="utf-8")
    rng = random.Random(1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        process = started(COMMANDS["calibrate"], folder)
        time.sleep(rng.uniform(0.05, 0.3))
        process.send_signal(number)
        process.communicate(timeout=60)
        text = (folder / "out.json").read_text(encoding="utf-8")
        assert text == "mine" or text.rstrip().endswith("}")
