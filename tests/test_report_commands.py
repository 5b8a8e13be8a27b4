"""The commands under the parts of a report give the figures of these parts again, to the last digit."""

import contextlib
import io
import json
import re
import shlex
from html import unescape

import pytest
import tiny

from minillm.cli.main import main

SEPARATOR = "\n<|endoftext|>\n"
STORIES = [f"{story} And then he saw {number} red balls." for number in range(10) for story in tiny.STORIES]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["embedded texts", "a file"])
def reported(tmp_path_factory, request):
    """(folder, the study's JSON, {first words: command} as the page prints them)."""
    here = tmp_path_factory.mktemp("report")
    tiny.folder(here / "m", hidden_size=16, intermediate_size=24)
    (here / "my text.txt").write_text(SEPARATOR.join(STORIES), encoding="utf-8")
    options = "report -m m --context 64 --seed 3 --method wanda --dtype float64 --json".split()
    # The embedded documents have some 1,000 tokens each here, and variants need two documents.
    options += ["--text", "my text.txt", "--tokens", "400"] if request.param == "a file" else ["--tokens", "5000"]
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(here)
        status, study = run([*options, "-o", "r.html"])
    page = (here / "r.html").read_text(encoding="utf-8")
    lines = [unescape(line) for line in re.findall(r"<code>(minillm [^<]+)</code>", page)]
    assert status == 0 and len(lines) > 12
    return here, study, lines, page


def run(words: list[str]) -> tuple[int, dict]:
    """The status and the JSON of a command."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        status = main(words)
    return status, json.loads(out.getvalue() or "null")


def repeated(reported, start: str, *more: str):
    """The JSON of the page's one command with that beginning."""
    found = [line for line in reported[2] if line.startswith(f"minillm {start} ") and all(m in line for m in more)]
    assert len(found) == 1, (start, found)
    status, result = run([*shlex.split(found[0])[1:], "--json"])
    assert status == 0
    return result


def printed(reported, start: str) -> list[str]:
    """Positions and match of all variants together, as the page's command prints them."""
    (line,) = [line for line in reported[2] if line.startswith(f"minillm {start} ")]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(shlex.split(line)[1:]) == 0
    head, *rows = [line.split() for line in out.getvalue().split("\n\n")[0].splitlines()]
    return [f"{row[head.index('positions')]} {row[head.index('match')]}" for row in rows if row[0] == "all"]


@pytest.fixture(autouse=True)
def in_the_folder(reported, monkeypatch):
    monkeypatch.chdir(reported[0])


def same(ours: list[dict], theirs: list[dict]) -> None:
    """Every figure that both rows have is equal."""
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        common = set(a) & set(b)
        assert len(common) > 5 or common == set(b)
        assert {key: a[key] for key in common} == {key: b[key] for key in common}


@pytest.mark.parametrize("by", ["neuron", "reads", "tensor", "weights"])
def test_costs(reported, by):
    more = ("--method",) if by == "weights" else (f"--by {by}",)
    result = repeated(reported, "sweep", *more)
    same(result["rows"], reported[1]["cuts"][by])
    if by in ("neuron", "reads"):
        assert result["comparison"] == reported[1]["compared"].get(by, [])


def test_predictors(reported):
    result = repeated(reported, "predict eval")
    same(result["rows"], reported[1]["predictors"])
    assert list(result["verdict"].values()) == [reported[1]["verdict"]]


def test_the_buffer(reported):
    same(repeated(reported, "prefetch replay"), reported[1]["keepers"])
    rows = {
        (r["way"], r["capacity"], r["misses"], r["keeper"]): r for r in repeated(reported, "prefetch table")["rows"]
    }
    same([rows[r["way"], r["capacity"], r["misses"], r["keeper"]] for r in reported[1]["ways"]], reported[1]["ways"])


def test_what_reads_a_file_from_its_beginning_says_so_and_else_repeats_it(reported):
    _, study, _, page = reported
    apart = page.count("digits differ")
    if "text" in study["options"] and study["options"]["text"]:
        assert apart == 5
        return
    assert apart == 0
    assert repeated(reported, "perplexity")["perplexity"] == study["dense"]["perplexity"]
    same(repeated(reported, "inspect --natural")["natural"], study["natural"])
    found = repeated(reported, "inspect --distributions")
    same(found["weight_magnitudes"], study["weights"])
    steps = {row["step"] for row in study["activations"]}
    same([row for row in found["activation_magnitudes"] if row["step"] in steps], study["activations"])
    assert printed(reported, "patterns") == [f"{row['positions']:,} {row['match']:.4f}" for row in study["patterns"]]
    repeated(reported, "calibrate")
    assert repeated(reported, "generate")["text"] == study["stories"]["mid"]
