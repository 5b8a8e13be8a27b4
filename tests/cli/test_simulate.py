"""prefetch simulate on a tiny model."""

import json

import pytest


def test_simulate_prints_what_happened_and_what_it_cost(files, run):
    how = ("-m", files / "model", "--text", files / "text.txt", "-p", "the cat", "-n", 2)
    status, out, _ = run("prefetch", "simulate", *how, "--capacity", "0.5")
    assert status == 0 and "request" in out and "miss" in out and "hit rate" in out
    assert "as stored" in out and "e-" not in out and "\\n" not in out
    status, out, _ = run("prefetch", "simulate", *how, "--capacity", "1", "--keeper", "lfu", "--json")
    found = json.loads(out)
    assert status == 0 and found["capacity"] == 12 and 0 < found["figures"]["hit_rate"] < 1
    asked = sum(row["count"] for row in found["events"] if row["what"] == "request")
    held = sum(row["count"] for row in found["events"] if row["what"] == "hit")
    assert found["figures"]["hit_rate"] == pytest.approx(held / asked)
    status, _, said = run("prefetch", "simulate", *how, "--keeper", "belady")
    assert status == 1 and "keeper 'belady' needs a text to choose from, expected lru, lfu or window-K" in said


def test_no_more_than_two_screens_of_events_are_printed_unless_asked(files, run):
    how = ("-m", files / "model", "--text", files / "text.txt", "-p", "the cat the dog the sea", "-n", 6)
    events = json.loads(run("prefetch", "simulate", *how, "--json")[1])["events"]
    shown = run("prefetch", "simulate", *how)[1].splitlines()
    assert len(events) > 60 and len(shown) < 65 and f"48 of {len(events)} events" in shown[-1]
    assert len(run("prefetch", "simulate", *how, "--events", "all")[1].splitlines()) > len(events)
    few, none = (run("prefetch", "simulate", *how, "--events", n)[1] for n in (3, 0))
    assert few.count("\n") == none.count("\n") + 5 and "3 of" in few
    assert run("prefetch", "simulate", *how, "--events", "few")[0] == 2
