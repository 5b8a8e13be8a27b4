"""prune scores a model before and after, writes a folder that all commands take, and refuses what it cannot write."""

import json
import os

import pytest
from commands import one_sentence

import minillm
from minillm.methods import base
from minillm.study.score import policy_variant

TEXT = ("--text", "stories.txt")


def test_a_pruned_model_is_a_folder_that_scores_what_was_printed(run, tmp_path):
    folder = tmp_path / "pruned"
    status, out, err = run("prune", "wanda", "-m", "m", *TEXT, "-o", folder, "--json")
    found = json.loads(out)
    assert (status, err) == (0, f"written: {folder}\n") and list(found["stored"]) == ["dense", "bitmap", "csr"]
    assert (found["method"], found["target"], found["achieved"]) == ("wanda", 0.5, pytest.approx(0.5))
    assert [row["model"] for row in found["rows"]] == ["dense", "pruned"]
    assert found["stored"]["dense"] == {"bytes": found["dense_bytes"], "share": 1}
    documents = (tmp_path / "held.txt", "\n<|endoftext|>\n".join(_held_out()))
    documents[0].write_text(documents[1], encoding="utf-8")
    again = json.loads(run("perplexity", "-m", folder, "--text", documents[0], "--json")[1])
    assert again["perplexity"] == found["rows"][1]["perplexity"]
    about = json.loads((folder / "pruning.json").read_text(encoding="utf-8"))
    assert (about["format"], about["version"], about["method"]) == ("minillm-pruned", 1, "wanda")
    assert about["began_with"] == minillm.load("m").fingerprint.asdict() and about["scores"] == found["rows"]
    assert about["spec"]["achieved"] == found["achieved"] and len(about["documents_sha256"]) == 11
    assert minillm.load(folder).fingerprint.sha256 != about["began_with"]["sha256"]


def _held_out() -> list[str]:
    from minillm.transformer.texts import split_text

    with open("stories.txt", encoding="utf-8") as file:
        return split_text(file.read(), 0.9)[1]


def test_the_table_says_what_is_read_and_stored_and_without_a_folder_nothing_is_written(run, here):
    before = sorted(os.listdir(here))
    status, out, err = run("prune", "magnitude", "-m", "m", *TEXT, "--sparsity", "0.25")
    assert (status, err) == (0, "") and sorted(os.listdir(here)) == before
    firsts = [line.split()[0] for line in out.splitlines() if line.strip()]
    assert firsts[:7] == ["model", "dense", "pruned", "stored", "dense", "bitmap", "csr"] and "achieved 0.250" in out


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("wandda", *TEXT), "'wandda' is unknown, expected one of magnitude"),
        (("wandda", *TEXT), "did you mean wanda"),
        (("wanda", *TEXT, "-o", "m"), "m: exists already"),
        (("wanda", *TEXT, "-o", "absent/x"), "does not exist"),
        (("wanda", "--text", "empty.txt"), "empty.txt: is empty"),
        (("wanda", "--text", "letter.txt"), "too few"),
        (("wanda-2:4", *TEXT, "--sparsity", "0.3"), "target is 0.3, expected 0.5"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_leaves_nothing(run, here, words, what):
    before = sorted(os.listdir(here))
    status, out, err = run("prune", *words, "-m", "m")
    assert (status, out) == (1, "") and what in one_sentence(err)
    assert sorted(os.listdir(here)) == before


def test_a_method_that_only_runs_another_way_says_why_there_is_no_folder(run, here, monkeypatch):
    def running(model, documents, target, context=None):
        return policy_variant(model, minillm.calibrate(model, documents, "mid", target, context))

    monkeypatch.setitem(base.METHODS, "running", "wanda:running")
    monkeypatch.setattr("minillm.methods.wanda.running", running, raising=False)
    before = sorted(os.listdir(here))
    status, out, err = run("prune", "running", "-m", "m", *TEXT, "-o", "new")
    assert (status, out) == (1, "") and "running changes how a block is computed" in one_sentence(err)
    assert sorted(os.listdir(here)) == before
    assert run("prune", "running", "-m", "m", *TEXT)[0] == 0  # it can be scored
