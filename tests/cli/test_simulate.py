"""prefetch simulate on a tiny model."""

import json

import pytest


def test_simulate_prints_what_happened_and_what_it_cost(files, run):
    how = ("-m", files / "model", "--text", files / "text.txt", "-p", "the cat", "-n", 2)
    status, out, _ = run("prefetch", "simulate", *how, "--capacity", "0.5")
    assert status == 0 and "request" in out and "miss" in out and "seconds_per_token" in out
    status, out, _ = run("prefetch", "simulate", *how, "--capacity", "1", "--keeper", "lfu", "--json")
    found = json.loads(out)
    assert status == 0 and found["capacity"] == 12 and 0 < found["figures"]["hit_rate"] < 1
    asked = sum(row["count"] for row in found["events"] if row["what"] == "request")
    held = sum(row["count"] for row in found["events"] if row["what"] == "hit")
    assert found["figures"]["hit_rate"] == pytest.approx(held / asked)
    status, _, said = run("prefetch", "simulate", *how, "--keeper", "belady")
    assert status == 1 and "keeper 'belady' needs a text to choose from, expected lru, lfu or window-K" in said
