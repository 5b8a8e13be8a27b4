"""`minillm demo` on a tiny model: what it prints, and that its JSON holds the same figures."""

import io
import json
import re
import sys
from pathlib import Path

import tqdm.auto

import minillm
from minillm.cli import flags
from minillm.cli.demo import PLAN, STEPS
from minillm.study import score
from minillm.transformer.texts import split_text


def test_demo_says_what_the_model_is_continues_a_prompt_and_prints_a_table_that_fits_80_columns(run):
    status, out, err = run("demo", "-m", "m", "--text", "stories.txt", "-n", "3")
    assert status == 0 and re.fullmatch(r"(minillm: note: .*\n)*\d+\.\d s\n", err)
    assert max(map(len, out.splitlines())) <= 80
    assert out.startswith("m: llama, 5,992 weights") and "'Once upon a time'" in out
    lines = [line.split() for line in out.splitlines()]
    head = next(i for i, line in enumerate(lines) if line[:2] == ["policy", "target"])
    assert lines[head + 1][:5] == ["dense", "-", "0.000", "1.000", "1.000"]
    assert [line[:3] for line in lines[head + 2 : head + 13]] == [
        *([policy, "neuron", share] for share in ("30%", "50%", "70%") for policy in flags.DEMO_POLICIES),
        *(["dhar", "tensor", share] for share in ("30%", "50%")),
    ]
    words = " ".join(out.split())
    assert "dense perplexity" in words and "kB as stored" in words and "random set" in words
    head = next(line for line in lines if line[:1] == ["predictor"])
    assert {"over", "low", "high"} <= set(head)  # a difference with its interval, not a multiple of nearly nothing
    assert f"the text holds no more; {flags.DEMO_TOKENS:,} are better" in " ".join(out.split())


def test_demos_json_holds_the_same_and_scores_documents_that_it_did_not_calibrate_on(run):
    status, out, err = run("demo", "-m", "m", "--text", "stories.txt", "-n", "3", "--json")
    found, model = json.loads(out), minillm.load("m")
    assert status == 0 and list(found["continuations"]) == ["dense", *flags.DEMO_POLICIES] and len(found["rows"]) == 12
    text = "".join(step.text for step in minillm.generate(model, model.tokenizer.encode("Once upon a time"), 3))
    assert found["continuations"]["dense"] == text
    _, test = split_text(Path("stories.txt").read_text(encoding="utf-8"))
    assert found["rows"][0]["nll"] == minillm.perplexity(model, test).nll
    assert sum(part["weights"] for part in found["parts"]) == 5992
    assert "note" not in err  # nothing scored was calibrated on


def test_demo_prints_each_row_as_soon_as_it_is_known(run, monkeypatch):
    """Without a terminal, too: when a row is measured, all before it are on stdout."""
    printed = []
    measured = score.score_cut
    monkeypatch.setattr(score, "score_cut", lambda *a: printed.append(sys.stdout.getvalue()) or measured(*a))
    assert run("demo", "-m", "m", "--text", "stories.txt", "-n", "3")[0] == 0
    assert len(printed) == len(PLAN) and all("policy  target" in words and "dense   -" in words for words in printed)
    assert [words.count("neuron ") for words in printed[:9]] == list(range(9))


def test_the_demos_bar_counts_every_step(run, monkeypatch):
    bars = []

    class Counted(tqdm.auto.tqdm):
        def __init__(self, *args, **options):
            super().__init__(*args, **options | {"disable": False, "file": io.StringIO()})
            bars.append(self)

    monkeypatch.setattr(tqdm.auto, "tqdm", Counted)
    assert run("demo", "-m", "m", "--text", "stories.txt", "-n", "3", "--json")[0] == 0
    (bar,) = (bar for bar in bars if bar.desc.startswith("demo"))
    assert bar.n == bar.total == STEPS
