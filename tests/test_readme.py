"""The README's promises: commands parse, code runs, the test command is the one that is run, the table is true."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import tiny
from scripts import load_script

import minillm
from minillm.cli.main import parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.S | re.M)
SHELL, PYTHON = (
    "".join(code for kind, code in FENCED.findall(README) if kind == wanted) for wanted in ("sh", "python")
)


def command_lines() -> list[str]:
    """Everything after "minillm " in the shell blocks, and in `minillm ...` and `.venv/bin/minillm ...` in the text."""
    in_blocks = re.findall(r"(?:^|/bin/)minillm (.*)$", SHELL, re.M)
    return in_blocks + re.findall(r"`(?:\.venv/bin/)?minillm ([^`]+)`", FENCED.sub("", README))


def test_every_command_line_parses(capsys):
    lines = command_lines()
    assert len(lines) >= 12 and {line.split()[0] for line in lines} >= set("demo generate trace compare bench".split())
    for line in lines:
        one = re.sub(r"(\w+)(\\\|\w+)+", r"\1", line)  # decode\|perplexity\|start
        try:
            parser().parse_args(shlex.split(one))
        except SystemExit:
            pytest.fail(f"minillm {one}: {capsys.readouterr().err}")


def test_every_command_has_its_row_in_the_table():
    rows = re.findall(r"^\| `minillm (\w+)", README, re.M)
    commands = re.findall(r"^    (\w+)(?: |$)", parser().format_help(), re.M)
    assert len(commands) > 9 and sorted(rows) == sorted(commands)


def test_the_python_code_runs_as_it_stands(tmp_path, capsys):
    texts = {"calibration": "A cat sat on the mat. The sea.", "test": "A dog saw the sea.\nIt ran home."}
    code = PYTHON.replace('load("default")', f"load({tiny.folder(tmp_path).as_posix()!r})")
    code = re.sub(r'minillm\.embedded_text\("(\w+)"\)', lambda call: repr(texts[call[1]]), code)
    assert "import minillm\n" in code and code.count("cat sat") == code.count("saw the sea") == 2
    exec(code, {})
    out = capsys.readouterr().out
    assert "blocks.0.mlp.mid" in out and "perplexity" in out and "SparsityReport" in out
    used = set(re.findall(r"(?<!from )minillm\.(\w+)", PYTHON))
    assert used <= set(minillm.__all__)


@pytest.mark.slow
def test_the_python_code_runs_letter_for_letter(capsys):
    exec(PYTHON, {})
    out = capsys.readouterr().out
    assert out.count("perplexity ") >= 2 and "blocks.0.mlp.mid" in out


def test_there_are_two_commands_that_do_everything_and_ci_runs_the_second_letter_for_letter():
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    extraction = next(line for line in run.splitlines() if line.startswith("command=$("))
    demo, tests = (line for line in SHELL.splitlines() if line.startswith("python3 -m venv"))
    assert demo.endswith(" && .venv/bin/minillm demo") and "-m pytest" in tests
    assert 'bash -c "$command"' in run
    if os.name == "posix":
        script = f'{extraction}\necho "$command"'
        done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout == tests + "\n"


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_ci_works_in_a_copy_beside_shared_and_removes_it_after_a_failure_too(tmp_path):
    checkout, temporary = tmp_path / "checkout", tmp_path / "temporary"
    for folder in (checkout / ".ci", checkout / ".venv", tmp_path / "shared", temporary):
        folder.mkdir(parents=True)
    (checkout / ".venv" / "mine").touch()
    (tmp_path / "shared" / "text").write_text("a text that is shared")
    command = "python3 -m venv --help > .venv && pwd && cat ../shared/text && exit 7"
    (checkout / "README.md").write_text(f"**Run the tests**\n\n```sh\n{command}\n```\n")
    (checkout / ".ci" / "run").write_bytes((ROOT / ".ci" / "run").read_bytes())
    before = sorted(checkout.rglob("*"))
    environment = os.environ | {"TMPDIR": str(temporary), "GIT_CEILING_DIRECTORIES": str(tmp_path)}
    script = str(checkout / ".ci" / "run")
    done = subprocess.run(["bash", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    assert str(temporary) in done.stdout and done.stdout.endswith("a text that is shared")
    assert sorted(checkout.rglob("*")) == before and not list(temporary.iterdir())


def test_every_file_that_is_named_exists():
    named = set(re.findall(r"\b[\w/]+\.py\b", README)) | {".ci/run", "LICENSE"}
    assert len(named) > 4
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "minillm" / name).exists(), name


def test_every_link_leads_to_a_heading_or_a_file():
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", README), re.M)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    targets = [t for t in re.findall(r"\]\(([^)\s]+)\)", README) if not t.startswith("https://")]
    assert len(targets) > 3
    for target in targets:
        assert target[1:] in anchors if target.startswith("#") else (ROOT / target).exists(), target


def test_every_extra_and_marker_that_is_named_exists():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in re.findall(r"\.\[([\w,]+)\]", README):
        assert all(f"\n{name} = [" in project for name in extra.split(",")), extra
    for marker in re.findall(r"not (\w+)", re.search(r'-m "(.*?)"', SHELL)[1]):
        assert f'"{marker}: ' in project


def check_block(computed: str, made_by) -> None:
    """What a script computes is what stands between its marks, but for the last digit."""
    written = README.split(made_by.BEGIN)[1].split(made_by.END)[0].strip()
    number = re.compile(r"[+-]?\d[\d,]*(?:\.\d+)?")
    assert number.sub("#", computed) == number.sub("#", written)
    for ours, theirs in zip(number.findall(computed), number.findall(written), strict=True):
        decimals = theirs.partition(".")[2]
        rounded = decimals or len(theirs) < 3  # a count is exact; a share may be rounded another way elsewhere
        slack = 1.001 * 10.0 ** -len(decimals) if rounded else 0
        assert abs(float(ours.replace(",", "")) - float(theirs.replace(",", ""))) <= slack, (ours, theirs)


def test_the_picture_is_there_small_and_has_its_words_with_it():
    ((words, name),) = re.findall(r"^!\[(.+)\]\((.+\.png)\)$", README, re.M)
    picture = (ROOT / name).read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) < 150_000
    assert words.encode() in picture  # its Description


@pytest.mark.slow
def test_the_picture_is_what_its_script_draws(tmp_path):
    make = load_script("notebooks/figures/make.py")
    figure, below = make.draw()
    check_block(make.block(figure, below), make)
    make.save_figure(figure, tmp_path / "again.png")
    assert abs((tmp_path / "again.png").stat().st_size / make.PICTURE.stat().st_size - 1) < 0.2


@pytest.mark.slow
@pytest.mark.shared
def test_the_table_is_what_its_script_computes(shared):
    write = load_script("weights_scripts/write_readme_table.py")
    texts = (shared / "text" / f"tinystories-{part}.txt" for part in ("valid", "train"))
    check_block(write.table(shared / "models" / "tinystories-656k", *texts), write)
