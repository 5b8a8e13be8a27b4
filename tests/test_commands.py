"""Every command that the documentation prints is run as it is printed, in a folder where its names are real files.

So DIR is a model folder called DIR, FILE a text called FILE, and nothing in a command is replaced. What cannot be run
here is listed by name with its reason (NOT_RUN); a command that is neither known nor listed fails.
"""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import tiny
from documented import ROOT, SCRIPT, Block, docstring_blocks, docstrings, inline_commands, page_blocks
from loopback_hub import LoopbackHub

from minillm.cli.main import main
from minillm.course.assignment import write_template
from minillm.divergence import compare

SEPARATOR = "\n<|endoftext|>\n"
STORIES = [f"{story} And then he saw {number} red balls." for number in range(8) for story in tiny.STORIES]
NOT_RUN = {  # a command -> why, and where else it is checked
    ".venv/bin/python -m pytest -q -n 2 -m 'not slow and not parity'": "is this run; .ci/run runs it from the README",
    ".venv/bin/python -m pytest -q tests/notebooks --notebook-runs 3": "runs all notebooks, as tests/notebooks does",
    "python weights_scripts/train_default.py OUT": "needs the network and hours; test_train_default.py trains less",
    "python weights_scripts/train_default.py OUT --text TEXT --last STORIES": "takes hours; see there",
    "python weights_scripts/write_model_card.py VALID": "measures for minutes; see test_write_model_card.py",
    "minillm bench ffn --json": "measures speed for minutes; see tests/bench and tests/cli/test_bench.py",
    "minillm bench disk": "measures a disk for minutes; see there",
    "minillm bench token": "measures speed for minutes; a small one stands beside it in the README",
    "minillm bench decode": "measures speed for minutes; see there",
    "minillm pareto --cluster tcp://HOST:8786 -o rows.csv": "needs a cluster; see tests/study/test_workers.py",
    "minillm train -o FOLDER": "trains the embedded model for a minute; see tests/cli/test_train.py",
    "minillm tune -o FOLDER": "trains the embedded model for a minute; a small one stands in the README",
    "minillm patterns --released FOLDER": "needs the paper's files; see tests/study/test_variants.py",
}
STATUS = {"minillm grade mine.py": 1}  # nothing is filled in: no points
SLOW = {  # commands of the embedded model
    "minillm sweep --by neuron", "minillm predict eval", "minillm prefetch table",
    "minillm prefetch blocks", "python notebooks/figures/make.py", "python notebooks/build.py",
    ".venv/bin/minillm demo", ".venv/bin/python notebooks/source/00_shapes_before_models.py",
    "python weights_scripts/write_stories.py OUT --grammar weights_scripts/training_grammar.txt --stories 30000",
    ".venv/bin/minillm report -o report.html --model DIR --text FILE",
}  # fmt: skip


def single(line: str) -> list[str]:
    """The commands of a line that are joined by &&."""
    return [part.strip() for part in line.split(" && ")]


def cases(blocks: list[Block]) -> list:
    """The blocks as parameters: with the mark of what they need."""
    found = []
    for block in blocks:
        commands = [command for line in block.lines for command in single(line)]
        needs = [pytest.mark.slow] if SLOW & set(commands) else []
        torch = ("dump_reference.py", "write_grading_goldens.py")
        needs += [pytest.mark.parity] if any(name in command for command in commands for name in torch) else []
        needs += [pytest.mark.shared] if any("convert_llama2c.py" in command for command in commands) else []
        found.append(pytest.param(block, id=str(block), marks=needs))
    return found


@pytest.fixture
def place(tmp_path, monkeypatch, request):
    """A folder in which every name that a printed command uses is there, and the scripts at their places."""
    for name in ("DIR", "MODEL_FOLDER"):
        tiny.folder(tmp_path / name, max_position_embeddings=512, intermediate_size=64)
    for name, stories in (("FILE", STORIES), ("TEXT", STORIES[8:]), ("CALIBRATION", STORIES[:8])):
        (tmp_path / name).write_text(SEPARATOR.join(stories), encoding="utf-8")
    for name in ("weights_scripts", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "README.md", tmp_path)
    (tmp_path / "handed_in").mkdir()
    for name in ("ada.py", "alan.py"):
        write_template(tmp_path / "handed_in" / name)
    for name in ("minillm/data/text", "minillm/data/goldens", "tests/goldens", "OUT"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    environment, show = dict(os.environ), warnings.showwarning
    yield tmp_path
    warnings.showwarning = show
    os.environ.clear()
    os.environ.update(environment)


def run_minillm(command: str, capsys) -> None:
    words = shlex.split(command)[1:]
    expected = STATUS.get(command.removeprefix(".venv/bin/"), 0)
    capsys.readouterr()
    try:
        status = main(words)
    except SystemExit as refused:
        status = refused.code
    out, err = capsys.readouterr()
    assert status == expected, f"{command}: {err}"
    assert "Traceback" not in err and (out or "->" in err or "written" in err), f"{command} prints nothing"


def run_script(command: str, monkeypatch) -> None:
    script, *words = shlex.split(command)[1:]
    monkeypatch.setattr(sys, "argv", [script, *words])
    monkeypatch.syspath_prepend(str(Path(script).resolve().parent))
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert not end.code, f"{command}: {end.code}"
    finally:
        if "torch" in sys.modules:
            sys.modules["torch"].set_grad_enabled(True)  # a script may turn it off for its whole process


def check_installed(command: str) -> None:
    """pip and jupyter: nothing is installed or opened here, but what they name must be there."""
    words = [word for word in shlex.split(command)[1:] if not word.startswith("-")]
    if words[0] == "install":
        project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        for wanted in words[1:]:
            extras = re.fullmatch(r"\.(?:\[([\w,]+)\])?", wanted)
            assert extras, f"{command}: {wanted} is installed by name"  # that name belongs to another project
            for extra in filter(None, (extras[1] or "").split(",")):
                assert f"\n{extra} = [" in project, extra
    else:
        assert words[0] == "lab" and Path(words[1]).exists(), command


def run_command(command: str, monkeypatch, capsys) -> None:
    """Run one command, or know why not."""
    program = command.removeprefix(".venv/bin/").split()[0]
    plain = " ".join(shlex.join(shlex.split(command)).split())
    if plain in NOT_RUN or command == "python3 -m venv .venv":
        return
    if program in ("pip", "jupyter"):
        check_installed(command)
    elif program == "minillm":
        run_minillm(command, capsys)
    elif SCRIPT.search(command):
        run_script(command, monkeypatch)
    else:
        pytest.fail(f"{command}: how to run it is not known here, expected a rule or a line of NOT_RUN")


def run_block(block: Block, monkeypatch, capsys) -> None:
    for line in block.lines:
        for command in single(line):
            run_command(command, monkeypatch, capsys)


@pytest.mark.parametrize("block", cases(page_blocks()))
def test_the_blocks_of_the_pages_run(block, place, monkeypatch, capsys):
    run_block(block, monkeypatch, capsys)


@pytest.mark.parametrize("block", cases(docstring_blocks()))
def test_the_commands_of_the_docstrings_run(block, place, request, monkeypatch, capsys):
    if any("convert_llama2c.py" in line for line in block.lines):
        source = request.getfixturevalue("shared") / "models" / "stories260K"
        for name, file in (("BIN", "stories260K.bin"), ("TOKENIZER", "tok512.bin")):
            shutil.copy(source / file, name)
        Path("OUT").rmdir()
    with_hub(block, place, monkeypatch, capsys)


def with_hub(block: Block, place: Path, monkeypatch, capsys) -> None:
    """Run it; a download comes from a hub on this machine."""
    if not any("org/name" in line for line in block.lines):
        return run_block(block, monkeypatch, capsys)
    files = {file.name: file.read_bytes() for file in (place / "DIR").iterdir()}
    with LoopbackHub("org/name", files) as served:
        monkeypatch.setenv("HF_HOME", str(place / "cache"))
        code = "import sys; from minillm.cli.main import main; sys.exit(main({words}))"
        environment = os.environ | {"HF_ENDPOINT": served.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(place / "cache")}
        for command in block.lines:
            words = shlex.split(command)
            words = words[1:] if words[0].endswith("minillm") else ["download", *words[2:]]
            program = [sys.executable, "-c", code.format(words=words)]
            done = subprocess.run(program, env=environment, capture_output=True, text=True)
            assert done.returncode == 0 and (Path(done.stdout.strip()) / "config.json").is_file(), done.stderr


def test_the_commands_of_the_running_text_run_one_after_the_other(place, monkeypatch, capsys):
    """Those of a tiny model; what the text needs before it (a predictor) is made as the text says."""
    main("predict train -m DIR --text FILE --predictor shadow-4 -o p.safetensors".split())
    names = []
    for block in inline_commands():
        (command,) = block.lines
        if command not in SLOW:
            names.append(command)
            with_hub(block, place, monkeypatch, capsys)
    assert "minillm bundle -m DIR -o FOLDER" in names and len(names) > 8


@pytest.mark.slow
@pytest.mark.parametrize("block", [b for b in inline_commands() if b.lines[0] in SLOW], ids=lambda b: b.lines[0])
def test_the_commands_of_the_embedded_model_run(block, place, monkeypatch, capsys):
    run_block(block, monkeypatch, capsys)


@pytest.mark.parity
def test_the_check_against_pytorch_finds_that_both_are_equal(place, monkeypatch, capsys):
    (block,) = [block for block in page_blocks() if any("dump_reference.py" in line for line in block.lines)]
    run_block(block, monkeypatch, capsys)
    result = compare(place / "ours.npz", place / "theirs.npz")
    assert result.first is None and len(result.rows) > 30


@pytest.mark.slow
def test_no_command_is_printed_where_this_file_does_not_look():
    for name, text in docstrings().items():
        indented = re.sub(r"^ +(?:\.venv/bin/)?python3? .*$", "", text, flags=re.M)
        assert not SCRIPT.search(indented), f"{name}: a command inside a sentence, expected a line of its own"
    printed = {
        c for b in (*page_blocks(), *inline_commands(), *docstring_blocks()) for ln in b.lines for c in single(ln)
    }
    plain = {shlex.join(shlex.split(command)) for command in printed}
    assert not set(NOT_RUN) - plain, f"not printed any more: {set(NOT_RUN) - plain}"
    assert not SLOW - printed, f"not printed any more: {SLOW - printed}"


def test_an_unknown_command_fails(place, monkeypatch, capsys):
    for command in ("curl https://example.org", "minillm nonsense", "python missing.py", "pip install minillm"):
        with pytest.raises((AssertionError, pytest.fail.Exception, OSError)):
            run_command(command, monkeypatch, capsys)
