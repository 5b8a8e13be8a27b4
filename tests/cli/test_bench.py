"""`minillm bench`: tables and JSON, and what it measures without torch."""

import json

import pytest


def test_bench_measures_without_torch_and_prints_a_table_or_json(run, monkeypatch):
    monkeypatch.setattr("minillm.bench.model.find_spec", lambda name: None)
    for what in ("decode", "perplexity"):
        status, out, _ = run("bench", what, "--shape", "260K", "--rounds", "1")
        assert status == 0 and out.startswith(f"{what}, random 260K, 1 rounds in turns") and "threads 1" in out
    found = json.loads(run("bench", "decode", "-m", "m", "--rounds", "1", "--json")[1])
    assert [row["name"] for row in found["rows"]] == ["minillm", "read probe"] and found["model"] == "m"


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
