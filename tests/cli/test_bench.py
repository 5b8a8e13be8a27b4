"""`minillm bench`: tables and JSON, and what it measures without torch."""

import json

import pytest

from minillm.bench.shapes import SHAPES


def test_bench_measures_without_torch_and_prints_a_table_or_json(run, monkeypatch):
    monkeypatch.setattr("minillm.bench.model.find_spec", lambda name: None)
    for what in ("decode", "perplexity"):
        status, out, _ = run("bench", what, "--shape", "260K", "--rounds", "1")
        assert status == 0 and out.startswith(f"{what}, random 260K, 1 rounds in turns") and "threads 1" in out
    found = json.loads(run("bench", "decode", "-m", "m", "--rounds", "1", "--json")[1])
    assert [row["name"] for row in found["rows"]] == ["minillm", "read probe"] and found["model"] == "m"


def test_bench_train_prints_a_table_or_json(run, monkeypatch):
    monkeypatch.setattr("minillm.bench.train.find_spec", lambda name: None)
    status, out, _ = run("bench", "train", "-m", "m", "--rounds", "1")
    assert status == 0 and out.startswith("train, m, 1 rounds in turns") and "threads 1" in out
    found = json.loads(run("bench", "train", "-m", "m", "--rounds", "1", "--json")[1])
    assert [row["name"] for row in found["rows"]] == ["minillm"]


def test_bench_linear_prints_a_table_or_json(run, monkeypatch):
    monkeypatch.setattr("minillm.bench.linear.TURN", 0)
    monkeypatch.setattr("minillm.bench.linear.bench_linear.__defaults__", (((64, 32),), 7, 1))
    status, out, _ = run("bench", "linear", "--rounds", "1")
    assert status == 0 and "64 x 32" in out and max(map(len, out.splitlines())) <= 100
    (row,) = json.loads(run("bench", "linear", "--rounds", "1", "--json")[1])["rows"]
    assert {"out", "in", "megabytes", "sum", "BLAS", "rows", "turned", "takes", "best"} == set(row)


@pytest.mark.slow
def test_bench_start_measures_whole_processes(run):
    found = json.loads(run("bench", "start", "--shape", "260K", "--rounds", "1", "--json")[1])
    assert [r["name"] for r in found["rows"]] == ["import numpy", "first token from ids", "first token from text"]


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("what", ["decode", "perplexity"])
def test_bench_measures_transformers_in_turns_where_it_is_installed(run, what):
    found = json.loads(run("bench", what, "--shape", "260K", "--rounds", "1", "--json")[1])
    assert found["rows"][-1]["name"] == "transformers" and "torch" in found["environment"]["transformers"]


def test_bench_token_measures_every_row_and_scores_the_models_given(run, monkeypatch):
    monkeypatch.setitem(SHAPES, "260K", SHAPES["260K"]._replace(new_tokens=8))
    words = "bench token --shape 260K --rounds 1 --sparsity 0.5 --groups 2 --text stories.txt --tokens 100"
    status, out, _ = run(*words.split(), "--quality", "m", "three")
    assert status == 0 and "oracle (bound)" in out and all(len(line) <= 100 for line in out.splitlines())
    assert out.startswith("token, random 260K, 1 rounds in turns") and "perplexity, three" in out
    found = json.loads(run(*words.split(), "--quality", "m", "--json")[1])
    assert [cost["model"] for cost in found["rows"][-1]["quality"]] == ["m"] and len(found["rows"]) == 1 + 2 * 4


def test_bench_token_refuses_a_wrong_model_before_it_measures(run, monkeypatch):
    monkeypatch.setattr("minillm.bench.token.bench_token", lambda *_: pytest.fail("measured"))
    status, _, err = run("bench", "token", "--quality", "nowhere", "--text", "stories.txt")
    assert status == 1 and "nowhere" in err
