"""calibrate and sweep on a tiny model: files, tables, comparisons, and a sweep that goes on where it was stopped."""

import json

import pytest
from commands import one_sentence

import minillm


def test_calibrate_writes_our_format_and_the_papers(run, tmp_path):
    ours, papers = tmp_path / "ours.json", tmp_path / "paper-50.json"
    status, out, err = run("calibrate", "-m", "m", "--text", "stories.txt", "-o", ours)
    assert (status, err) == (0, "") and out.startswith("dhar: keep where")
    status, out, _ = run("calibrate", "-m", "m", "--text", "stories.txt", "-o", papers, "--paper", "--json")
    assert status == 0 and json.loads(out)["policy"] == "dhar"
    assert set(json.loads(papers.read_text(encoding="utf-8"))) == {"gate_proj", "up_proj", "down_proj"}
    assert minillm.Thresholds.load(ours).layers == minillm.Thresholds.load(papers).layers
    options = ("--policy", "cats", "--by", "neuron", "--sparsity", "0.4", "--quantile", "exact", "--context", "32")
    assert run("calibrate", "-m", "m", "--text", "stories.txt", "-o", ours, *options)[0] == 0
    spec = minillm.Thresholds.load(ours).spec
    assert (spec.policy, spec.by, spec.target) == ("cats", "neuron", 0.4)
    assert spec.achieved == pytest.approx(0.4, abs=0.02)


def test_sweep_prints_a_row_for_each_policy_and_sparsity_and_writes_them(run, tmp_path):
    sweep = ("sweep", "-m", "m", "--text", "stories.txt", "--policy", "mid,cats", "--sparsity", "0.3,0.6")
    status, out, err = run(*sweep, "-o", tmp_path / "rows.csv")
    assert status == 0 and len(out.splitlines()) == (1 + 5) + 1 + (1 + 5) + 2  # a table in two parts, and the protocol
    progress = [line.partition(":")[0] for line in err.splitlines()]
    assert progress == ["dense", "mid 0.30", "cats 0.30", "mid 0.60", "cats 0.60"]
    assert len((tmp_path / "rows.csv").read_text(encoding="utf-8").splitlines()) == 6
    found = json.loads(run(*sweep, "--json", "-o", tmp_path / "rows.json")[1])["rows"]
    assert found == json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert run(*sweep, "-o", tmp_path / "rows.json")[2] == ""  # all of it is there: nothing is computed
    status, _, err = run("sweep", "-m", "three", *sweep[3:], "-o", tmp_path / "rows.json")
    assert status == 1 and "rows.json: row 1 is of another sweep (of m " in one_sentence(err)
    assert [(r["policy"], r["target"]) for r in found[1:]] == [
        ("mid", 0.3), ("cats", 0.3), ("mid", 0.6), ("cats", 0.6)
    ]  # fmt: skip
    assert sorted(tmp_path.iterdir()) == [tmp_path / "rows.csv", tmp_path / "rows.json"]
    other = ("--calibration", "one.txt", "--policy", "mid", "--sparsity", "0.5", "--by", "neuron")
    assert run("sweep", "-m", "m", "--text", "stories.txt", *other)[0] == 0


@pytest.mark.slow
def test_sweep_compares_policies_and_models_draws_and_takes_jobs(run, tmp_path):
    sweep = ("sweep", "-m", "m", "--model", "three", "--text", "stories.txt", "--by", "neuron", "--sparsity", "0.5")
    sweep += ("--policy", "mid,cats,dhar")
    status, out, err = run(*sweep, "--figure", tmp_path / "f.png")
    assert status == 0 and "figure: " in err and "Perplexity of three against" in err
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    *table, compared = (part.splitlines() for part in out.split("\n\n"))
    for part in table:
        assert [line.split()[:2] for line in part[1:9]] == [
            [model, policy] for model in ("m", "three") for policy in ("dense", "mid", "cats", "dhar")
        ]
    assert [line.split()[:2] for line in compared[1:5]] == [
        [model, policy] for model in ("m", "three") for policy in ("cats", "dhar")
    ]
    assert compared[0].endswith("verdict") and "95 % paired bootstrap interval" in " ".join(compared)
    found = json.loads(run(*sweep, "--json", "--seed", "3", "--jobs", "2")[1])
    assert [(r["model"], r["policy"], r["baseline"]) for r in found["comparison"]] == [
        (model, policy, "mid") for model in ("m", "three") for policy in ("cats", "dhar")
    ]
    assert found["rows"] == json.loads(run(*sweep, "--json")[1])["rows"]
    other = json.loads(run(*sweep, "--json", "--baseline", "dhar")[1])["comparison"]
    assert {r["baseline"] for r in other} == {"dhar"} and len(other) == 4
    paper = ("sweep", "-m", "m", "--text", "stories.txt", "--policy", "dhar", "--figure", tmp_path / "f.svg")
    status, out, err = run(*paper)
    assert status == 0 and "Published, read off the figure: Llama-3-8B +73 at 50" in err and "verdict" not in out


def test_a_sweep_that_fails_leaves_the_older_file(run, tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("older", encoding="utf-8")
    for wrong in (["--policy", "nothing"], ["--calibration", "absent.txt"], ["--context", "1"]):
        assert run("sweep", "-m", "m", "--text", "one.txt", "-o", rows, *wrong)[0] == 1
        assert rows.read_text(encoding="utf-8") == "older"


def test_a_sweep_scores_methods_that_remove_weights_beside_the_policies(run):
    sweep = ("sweep", "-m", "m", "--text", "stories.txt", "--policy", "mid", "--sparsity", "0.5")
    rows = json.loads(run(*sweep, "--method", "magnitude,wanda", "--json")[1])["rows"]
    assert [(row["policy"], row["by"]) for row in rows[1:]] == [
        ("mid", "tensor"), ("magnitude", "weights"), ("wanda", "weights")
    ]  # fmt: skip
    assert rows[:2] == json.loads(run(*sweep, "--json")[1])["rows"]
    alone = ("--policy", "", "--method", "magnitude,wanda", "--baseline", "magnitude", "--by", "neuron", "--json")
    found = json.loads(run(*sweep, *alone)[1])
    assert {row["policy"] for row in found["rows"]} == {"dense", "magnitude", "wanda"}
    assert {(row["policy"], row["by"]) for row in found["comparison"]} <= {("wanda", "weights")}
    status, out, err = run(*sweep, "--method", "nothing")
    assert (status, out) == (1, "") and "method 'nothing' is unknown, expected one of magnitude" in one_sentence(err)
