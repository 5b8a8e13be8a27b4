"""train and tune write folders that all commands take, refuse what they cannot write, and go on after a stop."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from commands import one_sentence
from stopped import stopped_behind_a_checkpoint

import minillm
from minillm.methods import qsparse
from minillm.transformer.texts import document_hashes, split_text


def test_train_from_scratch_and_further_writes_models(run, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    options = ("--text", "stories.txt", "--steps", "3", "--batch", "60")
    status, out, err = run("train", "-m", "m", "--size", "twin", "--act", "relu2", *options, "-o", one)
    assert (status, err) == (0, "") and [line.split()[0] for line in out.splitlines()[:3]] == [
        "model",
        "before",
        "trained",
    ]
    made = minillm.load(one)
    assert (made.config.hidden_act, made.config.hidden_size, made.config.vocab_size) == ("relu2", 64, 288)
    status, out, _ = run("train", "-m", one, *options, "-o", two, "--json", "--schedule", "cosine")
    rows = json.loads(out)["rows"]
    assert status == 0 and rows[1]["perplexity"] < rows[0]["perplexity"]
    about = json.loads((two / "training.json").read_text(encoding="utf-8"))
    assert about["began_with"] == made.fingerprint.asdict() and about["scores"] == rows
    assert [row["step"] for row in about["curve"]] == [1, 2, 3] and about["plan"]["schedule"] == "cosine"
    from_scratch = json.loads((one / "training.json").read_text(encoding="utf-8"))
    assert (from_scratch["plan"]["rate"], about["plan"]["rate"]) == (0.003, 0.001)
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]
    assert run("generate", "-m", two, "-p", "a cat", "-n", "2")[0] == 0


def test_tune_writes_a_model_with_its_own_thresholds(run, tmp_path):
    folder = tmp_path / "tuned"
    options = ("--text", "stories.txt", "--steps", "4", "--batch", "60", "--sparsity", "0.75")
    status, out, err = run("tune", "-m", "m", *options, "-o", folder, "--json")
    assert status == 0 and err.startswith("the control: ")
    rows = {row["model"]: row for row in json.loads(out)["rows"]}
    assert list(rows) == ["dense", "dense, trained", "cut", "tuned, dense", "tuned, cut"]
    assert rows["cut"]["neurons cut"] == pytest.approx(0.75, abs=0.05) and rows["dense"]["neurons cut"] == 0
    thresholds = minillm.Thresholds.load(folder / "thresholds.json")
    model = minillm.load(folder)
    assert thresholds.model.sha256 == model.fingerprint.sha256
    assert thresholds.spec.achieved == pytest.approx(rows["tuned, cut"]["neurons cut"])
    about = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    assert set(about["documents_sha256"]) <= set(thresholds.documents_sha256)
    status, _, err = run("perplexity", "-m", folder, "--text", "one.txt", "--thresholds", folder / "thresholds.json")
    assert status == 0 and "another model" not in err


def test_tune_for_blocks_writes_the_router_that_learnt_with_the_model(run, tmp_path):
    folder = tmp_path / "tuned"
    options = ("--text", "stories.txt", "--steps", "3", "--batch", "60", "--block", "4", "--router", "5")
    status, out, _ = run("tune", "-m", "m", *options, "-o", folder)
    assert status == 0
    names = ["dense", "dense, trained", "cut, oracle", "cut, router", "tuned, dense", "tuned, oracle", "tuned, router"]
    assert [line.split("  ")[0].strip() for line in out.splitlines() if "." in line][: len(names)] == names
    ffn = ("--thresholds", folder / "thresholds.json", "--predictor", folder / "router.safetensors")
    status, out, err = run("perplexity", "-m", folder, "--text", "one.txt", *ffn)
    assert status == 0 and "router 8-5-3, 2 blocks of 4 kept" in err and "another model" not in err
    assert run("generate", "-m", folder, "-p", "a cat", "-n", "3", *ffn)[0] == 0
    about = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    assert about["router"] == 5 and [row["model"] for row in about["scores"]] == names
    assert sorted(os.listdir(tmp_path)) == ["tuned"]


def test_tune_for_blocks_stores_the_neurons_in_their_order(run, tmp_path):
    folder = tmp_path / "tuned"
    options = ("--text", "stories.txt", "--steps", "2", "--batch", "60", "--block", "4", "--straight", "--router", "0")
    status, out, err = run("tune", "-m", "m", *options, "--no-control", "--teacher", "three", "-o", folder)
    assert status == 0 and "blocks of 4" in err and "tuned, oracle" in out and "dense, trained" not in out
    assert not (folder / "thresholds.json").exists()
    about = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    assert (about["block"], about["teacher"], about["straight"]) == (4, "three", True)
    before, after = minillm.load("m"), minillm.load(folder)
    near = [np.abs(after.layers[0].gate_proj - row).max(axis=1).min() for row in before.layers[0].gate_proj]
    assert max(near) < 0.01  # the same neurons, a few steps further ...
    assert not np.allclose(before.layers[0].gate_proj, after.layers[0].gate_proj, atol=0.01)  # ... in another order


def test_the_same_command_goes_on_from_its_checkpoint(run, tmp_path, monkeypatch):
    def command(name: str) -> tuple:
        return ("train", "-m", "m", "--text", "stories.txt", "--steps", "4", "--batch", "60", "-o", tmp_path / name)

    assert run(*command("whole"))[0] == 0
    with stopped_behind_a_checkpoint(monkeypatch):
        assert run(*command("again"))[0] == 130
    assert sorted(os.listdir(tmp_path)) == ["again.checkpoint.npz", "whole"]
    status, _, err = run(*command("again"), "--seed", "1")  # the checkpoint is of seed 0
    assert status == 1 and "again.checkpoint.npz: is of another training, text is" in one_sentence(err)
    assert run(*command("again"))[0] == 0
    assert sorted(os.listdir(tmp_path)) == ["again", "whole"]
    whole, again = (minillm.load(tmp_path / name).weights for name in ("whole", "again"))
    assert all(np.array_equal(again[name], w) for name, w in whole.items())


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("-o", "m"), "m: exists already"),
        (("-o", "absent/x"), "does not exist"),
        (("-o", "new", "--schedule", "cosine"), "schedule is 'cosine' with steps None"),
        (("-o", "new", "--text", "absent.txt"), "absent.txt: is missing"),
        (("-o", "new", "--text", "letter.txt"), "too few"),
        (("-o", "new", "--context", "1"), "context is 1"),
    ],
)
@pytest.mark.parametrize("command", ["train", "tune"])
def test_what_cannot_be_done_is_one_sentence_and_leaves_nothing(run, here, command, options, what):
    before = sorted(os.listdir(here))
    text = () if "--text" in options else ("--text", "stories.txt")
    status, out, err = run(command, "-m", "m", *text, *options)
    assert (status, out) == (1, "") and what in one_sentence(err)
    assert sorted(os.listdir(here)) == before


def test_tune_with_cut_inputs_of_all_matrices_shows_them_beside_the_dense_control(run, tmp_path):
    folder = tmp_path / "tuned"
    options = ("--text", "stories.txt", "--steps", "3", "--batch", "60", "--inputs")
    status, out, err = run("tune", "-m", "m", *options, "2:4", "--straight", "-o", folder, "--json")
    assert status == 0, err
    rows = {row["model"]: row for row in json.loads(out)["rows"]}
    assert list(rows) == ["dense", "dense, trained", "cut", "tuned, dense", "tuned, cut"]
    assert rows["cut"]["neurons cut"] == 0.5 and rows["cut"]["perplexity"] != rows["dense"]["perplexity"]
    tap = qsparse.fit(minillm.load(folder), "", 0.5, pattern=(2, 4)).tap
    held = split_text(Path("stories.txt").read_text(encoding="utf-8"), 0.9)[1]
    assert minillm.perplexity(minillm.load(folder), held, tap=tap).perplexity == rows["tuned, cut"]["perplexity"]
    assert json.loads((folder / "training.json").read_text(encoding="utf-8"))["inputs"] == "2:4"
    for words, says in (
        (("2:4", "--sparsity", "0.75"), "the pattern is 2:4"), (("all", "--block", "4"), "--inputs and --block"),
        (("all", "--teacher", "three"), "--inputs and --teacher"),
    ):  # fmt: skip
        status, _, err = run("tune", "-m", "m", *options, *words, "-o", tmp_path / "no")
        assert status == 1 and says in one_sentence(err)
    assert run("tune", "-m", "m", *options, "4", "-o", tmp_path / "no")[0] == 2
    assert sorted(os.listdir(tmp_path)) == ["tuned"]


@pytest.mark.parametrize("words", [("train",), ("tune",), ("tune", "--block", "4", "--router", "5")])
def test_another_text_is_scored_whole_and_all_of_the_first_is_learnt(words, run, tmp_path):
    options = ("--text", "stories.txt", "--held-out", "one.txt", "--steps", "2", "--batch", "60", "--json")
    status, out, err = run(*words, "-m", "m", *options, "-o", tmp_path / "made")
    assert status == 0, err
    text, first = Path("one.txt").read_text(encoding="utf-8"), json.loads(out)["rows"][0]
    assert first["perplexity"] == minillm.perplexity(minillm.load("m"), text).perplexity
    about = json.loads((tmp_path / "made" / "training.json").read_text(encoding="utf-8"))
    everything = Path("stories.txt").read_text(encoding="utf-8")
    assert about["documents_sha256"] == sorted(set(document_hashes(everything)))
