"""pipeline runs a text through servers and says what went where; what it cannot do is one sentence."""

import json

import pytest


def test_a_liar_and_a_killed_server_leave_the_text_as_it_is(run):
    words = ("pipeline", "-m", "three", "-p", "the cat", "-n", "14", "--checked", "1")
    status, out, err = run(*words, "--speeds", "1,1,1", "--liar", "1", "--kill", "2", "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found["same_as_one_process"] == found["tokens"] and found["text_bytes"] == found["text_bytes_by_formula"]
    assert [row["server"] for row in found["rows"]] == ["1", "2", "3"] and found["rows"][1]["state"] == "lost"
    assert found["rows"][2] | {"state": "serving", "wrong": 0} == found["rows"][2]
    assert 10 < found["checks_until_99_percent"] < 60 and found["rank"] is None


def test_the_table_has_a_line_for_each_server_and_the_rank_its_price(run):
    status, out, err = run("pipeline", "-m", "m", "-n", "2", "--speeds", "1,3", "--rank", "4", "--text", "stories.txt")
    assert status == 0 and "Traceback" not in err
    lines = out.splitlines()
    table = next(i for i, line in enumerate(lines) if line.startswith("server"))
    assert [line.split()[:2] for line in lines[table + 1 : table + 3]] == [["1", "1"], ["2", "3"]]
    assert "sent as 4 numbers: perplexity" in " ".join(lines)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--liar", "5"), "--liar is 5, expected 1 to 4"),
        (("--kill", "3", "--speeds", "1,1"), "--kill is 3, expected 1 to 2"),
        (("--speeds", ",".join("1" * 17)), "--speeds has 17 servers, expected at most 16"),
        (("--memory", "1,1"), "--memory has 2 numbers, expected 4"),
        (("--memory", "1e-4,1e-4,1e-3,1e-4"), "the 4 servers cannot hold the 2 layers"),
        (("--rank", "9"), "rank is 9, expected 1 to 8"),
        (("-n", "1000"), "1000 more were asked for, the model's context holds 128"),
    ],
)
def test_what_it_cannot_do_is_one_sentence(run, words, what):
    status, out, err = run("pipeline", "-m", "m", "--text", "stories.txt", *words)
    assert (status, out) == (1, "") and what in err and "Traceback" not in err
