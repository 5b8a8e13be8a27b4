"""generate and perplexity on a tiny model."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import one_sentence

import minillm
from minillm.errors import show
from minillm.transformer.generation import Step


def test_generate_streams_the_prompt_and_its_continuation_and_nothing_else_on_stdout(run):
    model = minillm.load("m")
    steps = list(minillm.generate(model, model.tokenizer.encode("a cat"), 5))
    status, out, err = run("generate", "-m", "m", "-p", "a cat", "-n", "5")
    assert (status, out) == (0, "a cat|" + "".join(show(s.text, keep="\n\t") for s in steps) + "\n")
    assert "greedy, seed 0" in err and "5 tokens in" in err
    found = json.loads(run("generate", "-m", "m", "-p", "a cat", "-n", "5", "--json")[1])
    assert found["tokens"] == [s.token for s in steps] and found["logprobs"] == [s.logprob for s in steps]
    assert found["text"] == "".join(s.text for s in steps) and found["prompt"] == "a cat"


def test_generate_draws_the_same_from_the_same_seed(run):
    def tokens(seed):
        sampling = ("--temp", "1.5", "--top-k", "50", "--top-p", "0.9", "--min-p", "0.01", "-s", seed)
        return json.loads(run("generate", "-m", "m", "-p", "a", "-n", "12", *sampling, "--json")[1])["tokens"]

    assert tokens(1) == tokens(1) != tokens(2)


def test_a_model_cannot_steer_the_terminal_and_its_lines_and_tabs_stay(run, monkeypatch):
    texts = ["\x1b[2J", "red\r", "\n\tone", "\u202e"]
    steps = [Step(0, text, 0.0, i) for i, text in enumerate(texts)]
    monkeypatch.setattr("minillm.transformer.generation.generate", lambda *_, **__: iter(steps))
    status, out, _ = run("generate", "-m", "m", "-p", "a\x07", "-n", "4")
    assert (status, out) == (0, "a\\x07|\\x1b[2Jred\\r\n\tone\\u202e\n")
    assert json.loads(run("generate", "-m", "m", "-p", "a", "--json")[1])["text"] == "".join(texts)


@pytest.mark.parametrize("prompt", ["🦊👩‍👩‍👧", "漢字", "שלום, مرحبا", "e\u0301\u0301", "\0\x1b", "</s><s>"])
def test_generate_takes_any_unicode_prompt(run, prompt):
    status, out, _ = run("generate", "-m", "m", "-p", prompt, "-n", "2", "--json")
    assert status == 0 and json.loads(out)["prompt"] == prompt


def test_an_empty_prompt_is_the_bos_alone_and_refused_where_there_is_none(run):
    assert "prompt of 1 tokens" in run("generate", "-m", "m", "-p", "", "-n", "2")[2]
    for command in (["generate"], ["trace"], ["demo", "--text", "one.txt"]):
        status, out, err = run(*command, "-m", "no_bos", "-p", "")
        assert (status, out) == (1, "") and "empty" in one_sentence(err)


def test_a_prompt_that_leaves_little_room_is_continued_to_the_end_of_the_context(run):
    full = "a" * 100
    ids = len(minillm.load("m").tokenizer.encode(full))
    assert len(json.loads(run("generate", "-m", "m", "-p", full, "--json")[1])["tokens"]) <= 128 - ids


def test_perplexity_prints_the_protocol_and_with_thresholds_the_accounting(run, tmp_path):
    thresholds = tmp_path / "t.json"
    model, text = minillm.load("m"), Path("one.txt").read_text(encoding="utf-8")
    score = minillm.perplexity(model, text)
    status, out, err = run("perplexity", "-m", "m", "--text", "one.txt")
    assert (status, " ".join(out.split()), err) == (0, str(score), "")
    assert run("calibrate", "-m", "m", "--text", "stories.txt", "--policy", "mid", "-o", thresholds)[0] == 0
    status, out, err = run("perplexity", "-m", "m", "--text", "one.txt", "--thresholds", thresholds)
    assert status == 0 and "neuron sparsity 0." in out and "cut by" in err
    assert f"dense: perplexity {score.perplexity:.4f}" in out and re.search(r"adds [+-]\d+\.\d+$", out, re.M)
    forms = [
        json.loads(run("perplexity", "-m", "m", "--text", "one.txt", "--thresholds", thresholds, *form, "--json")[1])
        for form in (["--dtype", "float64"], ["--dtype", "float64", "--form", "gathered"])
    ]
    assert forms[0]["nll"] == pytest.approx(forms[1]["nll"], rel=1e-12) and forms[0]["dtype"] == "float64"
    assert forms[0]["neuron_sparsity"] == forms[1]["neuron_sparsity"] > 0
    steps = json.loads(run("trace", "-m", "m", "--thresholds", thresholds, "--form", "gathered", "--json")[1])
    assert "blocks.0.mlp.mask" in steps and "blocks.0.mlp.up" not in steps  # up is never computed in full
    dense = json.loads(run("perplexity", "-m", "m", "--text", "one.txt", "--json")[1])
    assert dense["nll"] == score.nll and dense["perplexity"] == dense["dense_perplexity"] == score.perplexity
    assert dense["neuron_sparsity"] == 0 and dense["read_exact"] == [1, 1, 1]


def test_scoring_what_was_calibrated_on_is_noted_on_stderr(run, tmp_path):
    run("calibrate", "-m", "m", "--text", "stories.txt", "-o", tmp_path / "t.json")
    status, out, err = run("perplexity", "-m", "m", "--text", "stories.txt", "--thresholds", tmp_path / "t.json")
    assert status == 0 and "minillm: note: 12 of the documents scored" in err and "note" not in out


def test_thresholds_of_another_model_are_refused(run, tmp_path):
    run("calibrate", "-m", "three", "--text", "one.txt", "-o", tmp_path / "t.json")
    for command in (["generate", "-p", "a"], ["perplexity", "--text", "one.txt"], ["trace"]):
        status, out, err = run(*command, "-m", "m", "--thresholds", tmp_path / "t.json")
        assert (status, out) == (1, "") and "are for 3 layers, the model has 2" in one_sentence(err)


def test_a_model_that_overflows_has_no_perplexity(run, tmp_path):
    from minillm.loading.checkpoint import load_weights
    from minillm.loading.tensors import save_tensors

    folder = shutil.copytree("m", tmp_path / "overflows")
    weights = load_weights(folder, minillm.load(folder).config)
    weights["lm_head.weight"] = weights["lm_head.weight"] * np.float32(1e5)  # finite scores of thousands of nats
    save_tensors(folder / "model.safetensors", weights)
    status, out, err = run("perplexity", "-m", folder, "--text", "one.txt", "--json")
    assert (status, out) == (1, "") and "nats per token" in err
    weights["lm_head.weight"] *= np.float32(1e33)
    save_tensors(folder / "model.safetensors", weights)
    for command in (("perplexity", "--text", "one.txt"), ("generate", "-p", "a", "-n", "2")):
        status, out, err = run(*command, "-m", folder, "--json")
        assert (status, out) == (1, "") and "minillm: logits holds" in err
    status, out, err = run("trace", "-m", folder, "-p", "a", "--keep", "logits")
    assert status == 0 and "logits" in out and "logits holds" in err


def test_the_bos_can_be_given_and_is_printed(run):
    found = {
        bos: run("perplexity", "-m", "m", "--text", "one.txt", *bos) for bos in ((), ("--bos", "none"), ("--bos", "5"))
    }
    assert [status for status, *_ in found.values()] == [0, 0, 0]
    assert [
        f"BOS {said}" in out for (_, out, _), said in zip(found.values(), ("1 from", "none, as", "5, as"), strict=True)
    ]
    assert len({out.split(",")[0] for _, out, _ in found.values()}) == 3
    lengths = [run("generate", "-m", "m", "-p", "a", "-n", "1", *bos)[2] for bos in ((), ("--bos", "none"))]
    assert "prompt of 3 tokens" in lengths[0] and "prompt of 2 tokens" in lengths[1]
    status, _, err = run("sweep", "-m", "m", "--text", "stories.txt", "--bos", "5000")
    assert status == 1 and "bos is 5000" in one_sentence(err)
