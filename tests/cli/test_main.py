"""The program around the commands: wrong input, files, signals, threads, memory; and the help of every command."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import one_sentence, process

from minillm.cli import inspect
from minillm.cli import main as cli

COMMANDS = (
    "demo", "generate", "perplexity", "inspect", "trace", "compare", "download", "calibrate", "sweep", "prune",
    "pareto", "pipeline", "train", "tune", "predict", "activations", "bundle", "prefetch", "patterns", "report",
    "grade", "bench",
)  # fmt: skip
POSIX = pytest.mark.skipif(os.name == "nt", reason="signals, file size limits and /dev are POSIX's")


def test_every_command_is_in_the_file_that_the_table_names():
    whole = cli.parser().format_help()
    for file, names in cli.COMMANDS.items():
        alone = re.findall(r"^    (\w+)(?: |$)", cli.parser(names[0]).format_help(), re.M)
        assert alone == list(names), file
    assert re.findall(r"^    (\w+)(?: |$)", whole, re.M) == [name for names in cli.COMMANDS.values() for name in names]
    assert cli.parser("no such command").format_help() == whole


EVERY_START = ("flags", "inspect", "main", "outputs", "parser", "shared")


def test_a_command_imports_no_other_commands():
    code = "import sys; from minillm.cli.main import parser; parser('inspect')"
    code += "; print(*sorted(name for name in sys.modules if name.startswith('minillm.cli.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f"minillm.cli.{name}" for name in sorted(EVERY_START)]


# ---- wrong input: one sentence, status 1, nothing on stdout ----------------------------------------------------------

LONG = "a" * 300
WRONG_INPUT = [
    ("perplexity -m m --text empty.txt", "empty.txt: is empty"),
    ("perplexity -m m --text separators.txt", "the text is empty"),
    ("perplexity -m m --text latin.txt", "latin.txt: byte 3 is not UTF-8"),
    ("perplexity -m m --text m", "m: is a folder"),
    ("perplexity -m m --text absent.txt", "absent.txt: is missing"),
    ("perplexity -m m --text one.txt --context 1", "context is 1, expected 2 to 128"),
    ("perplexity -m m --text one.txt --context 129", "context is 129, expected 2 to 128"),
    ("perplexity -m m --text one.txt --protocol stream", "needs at least one window of 128"),
    ("perplexity -m m --text one.txt --thresholds absent.json", "absent.json: is missing"),
    ("perplexity -m m --text one.txt --thresholds one.txt", "one.txt: "),
    ("perplexity -m bare --text one.txt", "tokenizer.json: does not exist"),
    ("demo -m bare --text one.txt", "tokenizer.json: does not exist"),
    ("demo -m m --text letter.txt", "too few to calibrate on one part and score another"),
    ("demo -m m --text separators.txt", "too few"),
    ("demo -m m --text one.txt -n 500", "ask for at most 111"),
    (f"demo -m m --text one.txt -p {LONG}", "the prompt has 302 tokens"),
    ("demo -m m --text one.txt --context 1", "context is 1"),
    ("generate -m absent -p a", "'absent': does not exist"),
    ("generate -m default-foo -p a", "'default-foo': does not exist, expected a folder, an embedded model ("),
    ("generate -m one.txt -p a", "'one.txt': is a file"),
    ("generate -m bare -p a", "tokenizer.json: does not exist"),
    ("generate -m m -p a -n 126", "ask for at most 125"),
    (f"generate -m m -p {LONG}", "the model's context holds 128"),
    ("generate -m m -p a --temperature -1", "temperature is -1.0"),
    ("generate -m m -p a --temperature nan", "temperature is nan"),
    ("generate -m m -p a --temp 1 --top-p 0", "top_p is 0.0"),
    ("generate -m m -p a --temp 1 --top-p 2", "top_p is 2.0"),
    ("generate -m m -p a --temp 1 --min-p nan", "min_p is nan"),
    ("generate -m m -p \udcff", "lone surrogate"),
    (f"trace -m m -p {LONG}", "the text has 302 tokens"),
    ("trace --explain blocks.0.mlp.midd", "did you mean"),
    ("trace -m m --keep blocks.7.*", "matched no step"),
    ("compare absent.npz absent.npz", "absent.npz: is missing"),
    ("compare one.txt one.txt", "not an .npz file"),
    ("calibrate -m m --text one.txt --policy mid --paper -o t.json", "policy is mid, expected dhar"),
    ("calibrate -m m --text one.txt -o absent/t.json", "absent/t.json: cannot be written"),
    ("calibrate -m m --text one.txt -o m", "is not a regular file"),
    ("calibrate -m m --text one.txt -o .", "is not a regular file"),
    ("calibrate -m m --text one.txt -o one.txt/t.json", "one.txt/t.json: cannot be written"),
    (f"calibrate -m m --text one.txt -o {LONG}", "cannot be written"),
    ("trace -m m -o absent/t.npz", "absent/t.npz: cannot be written"),
    ("sweep -m m --text one.txt --policy mid,nothing", "policy 'nothing' is unknown, expected one of dhar, cats, mid"),
    ("sweep -m m --text one.txt -o rows.xlsx", "rows.xlsx: the name ends in .xlsx, expected .csv or .json"),
    ("sweep -m m --text one.txt -o absent/rows.csv", "absent/rows.csv: cannot be written"),
    ("sweep -m m --text one.txt --figure absent/f.png", "absent/f.png: cannot be written"),
    ("sweep -m m --text one.txt --figure f.pdf", "f.pdf: the name ends in .pdf, expected .png or .svg"),
    ("inspect -m m --figure f.png", "--natural or --distributions"),
    ("sweep -m m --text letter.txt", "too few"),
    ("sweep -m m --text one.txt --calibration empty.txt", "empty.txt: is empty"),
    ("download nothing", "'nothing' is no name of a model on the hub"),
    ("bench decode -m absent", "'absent': does not exist"),
    ("bench start -m bare", "tokenizer.json: does not exist"),
]


@pytest.mark.parametrize(("line", "sentence"), WRONG_INPUT, ids=[line[:60].strip("\udcff") for line, _ in WRONG_INPUT])
def test_wrong_input_gives_one_sentence_status_1_and_no_output(run, here, line, sentence):
    before = sorted(here.rglob("*"))
    status, out, err = run(*line.split(" "))
    assert (status, out) == (1, "") and sentence in one_sentence(err)
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--json", "COMMAND"),
        ("nothing", "invalid choice: 'nothing'"),
        ("generate -m m", "--prompt"),
        ("generate -m m -p a -n 0", "found '0', expected a whole number of at least 1"),
        ("generate -m m -p a -n 1.5", "found '1.5', expected a whole number of at least 1"),
        ("generate -m m -p a --top-k 0", "found '0', expected a whole number of at least 1"),
        ("generate -m m -p a --seed -1", "found '-1', expected a whole number of at least 0"),
        ("calibrate -m m --text one.txt -o t.json --sparsity 1.0", "found '1.0', expected a share from 0 to below 1"),
        ("calibrate -m m --text one.txt -o t.json --sparsity nan", "found 'nan', expected a share"),
        ("calibrate -m m --text one.txt", "--output"),
        ("calibrate -m m --text one.txt -o t.json --policy nothing", "invalid choice: 'nothing'"),
        ("sweep -m m --text one.txt --sparsity 0.5,", "found '', expected a share"),
        ("bench decode --dtype float64", "unrecognized arguments: --dtype"),  # it measures float32
        ("demo -m m --text one.txt --threads 0", "found '0'"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_was_expected(run, line, expected):
    status, out, err = run(*line.split())
    assert (status, out) == (2, "") and err.startswith("usage: minillm") and expected in err


# ---- files: nothing partial, nothing lost ----------------------------------------------------------------------------

WRITERS = {
    "calibrate": ("t.json", "--text one.txt"),
    "trace": ("t.npz", "-p a"),
    "sweep": ("t.csv", "--text one.txt --policy mid --sparsity 0.5"),
}


@POSIX
@pytest.mark.parametrize("command", WRITERS)
def test_a_disk_that_fills_up_leaves_the_older_file_and_no_partial_one(run, tmp_path, command):
    import resource  # a limit on file sizes fails in the midst of a write, as a full disk does

    name, options = WRITERS[command]
    (tmp_path / name).write_text("model", encoding="utf-8")  # for a sweep: a heading, and no rows yet
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        status, out, err = run(command, "-m", "m", *options.split(), "-o", tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    sentence = one_sentence(err.splitlines()[-1])
    assert (status, out) == (1, "") and sentence == f"{tmp_path / name}: cannot be written (File too large)"
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text(encoding="utf-8") == "model"


@POSIX
@pytest.mark.parametrize("command", WRITERS)
def test_a_device_or_a_pipe_is_never_replaced_by_a_file(run, tmp_path, command):
    name, options = WRITERS[command]
    os.mkfifo(tmp_path / name)
    status, out, err = run(command, "-m", "m", *options.split(), "-o", tmp_path / name)
    assert (status, out) == (1, "") and "is not a regular file" in one_sentence(err)
    assert (tmp_path / name).is_fifo() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_behind_stdout_gives_one_sentence():
    with open("/dev/full", "wb") as full:
        done = process("inspect", "-m", "m", stdout=full)
        _, err = done.communicate(timeout=60)
    assert done.returncode == 1 and one_sentence(err.decode()) == "output: No space left on device"


# ---- the process around it -------------------------------------------------------------------------------------------


@POSIX
@pytest.mark.parametrize("how", ["Ctrl-C", "the reader goes away"])
def test_an_interrupted_generation_ends_quietly(how):
    running = process("generate", "-m", "long", "-p", "a", "-n", "19000")
    try:
        assert running.stdout.read(20)  # it is in the midst of it
        if how == "Ctrl-C":
            running.send_signal(signal.SIGINT)
            _, err = running.communicate(timeout=60)
            assert running.returncode == 130 and err.decode().splitlines()[-1] == "minillm: interrupted"
        else:
            running.stdout.close()
            err = running.stderr.read()
            assert running.wait(timeout=60) == 0
        assert b"Traceback" not in err and b"Exception ignored" not in err
    finally:
        running.kill()
        running.wait()


def test_help_works_in_the_c_locale_at_40_columns_and_never_loads_numpy():
    script = f"""
import sys
from minillm.cli.main import main
for command in ["", *{COMMANDS}]:
    try:
        main([*command.split(), "--help"])
    except SystemExit as done:
        assert done.code == 0, command
print("loaded:", [name for name in ("numpy", "tokenizers", "tqdm", "huggingface_hub") if name in sys.modules])
"""
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "40"}
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | plain, capture_output=True)
    assert done.returncode == 0 and not done.stderr, done.stderr.decode()
    out = done.stdout.decode("ascii")
    assert out.endswith("loaded: []\n") and out.count("usage: minillm") == 1 + len(COMMANDS)


def test_what_the_outputs_encoding_lacks_is_printed_as_an_escape():
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = process("generate", "-m", "m", "-p", "🦊", "-n", "1", env=ascii_only)
    out, err = done.communicate(timeout=60)
    assert done.returncode == 0 and out.startswith(b"\\U0001f98a"), err


def test_a_command_runs_in_the_threads_that_are_asked_for(run, monkeypatch):
    from minillm.threads import asked

    seen: list[int | None] = []
    monkeypatch.setattr("minillm.cli.inspect.command_inspect", lambda a: seen.append(asked()) or 0)
    assert run("inspect", "-m", "m", "--threads", "3")[0] == run("inspect", "-m", "m")[0] == 0
    assert seen == [3, None]


@POSIX
def test_a_model_folder_with_a_dangling_link_gives_one_sentence(run, tmp_path):
    shutil.copy("m/config.json", tmp_path)
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "nowhere.safetensors")
    status, out, err = run("inspect", "-m", tmp_path)
    assert (status, out) == (1, "") and "model.safetensors" in one_sentence(err)


def test_without_memory_there_is_a_sentence_and_no_traceback(run, monkeypatch):
    def greedy(arguments):
        np.empty(1 << 62, np.uint8)

    monkeypatch.setattr(inspect, "command_inspect", greedy)
    status, out, err = run("inspect", "-m", "m")
    assert (status, out) == (1, "") and "not enough memory" in one_sentence(err)


def test_help_lists_every_command_with_one_line_of_what_it_does():
    (commands,) = (action for action in cli.parser()._actions if action.dest == "command")
    assert set(commands.choices) == set(COMMANDS)
    for line in commands._choices_actions:
        assert line.help and "\n" not in line.help and line.help.endswith("."), line.dest
