"""Training the embedded models: a run goes on where it stopped, the folder loads."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from scripts import load_script
from training_stories import STORIES

import minillm


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    return load_script("weights_scripts/train_default.py")


pytestmark = pytest.mark.parity


def options(out: Path) -> Namespace:
    how = {"init": None, "anchor": None, "anchor_share": 0.05, "bfloat16": False}
    return Namespace(out=out, size="twin", act="relu", seed=3, tokens=6 * 4096, last_share=0.5, **how)


def test_an_interrupted_run_goes_on_to_the_same_model(script, tokenizer, tmp_path, monkeypatch):
    import torch

    documents = script.encode(tokenizer, STORIES)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    for folder in (straight, broken):
        folder.mkdir()
        tokenizer.save(str(folder / "tokenizer.json"))
    curve = script.train(options(straight), documents, [documents[:9]], [])

    monkeypatch.setattr(script, "CHECKPOINT_SECONDS", 0)
    whole, calls = script.batch, []

    def stops(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(script, "batch", stops)
    with pytest.raises(KeyboardInterrupt):
        script.train(options(broken), documents, [documents[:9]], [])
    monkeypatch.setattr(script, "batch", whole)
    state = torch.load(broken / "checkpoint.pt")
    torch.save(state | {"seconds": state["seconds"] + 600}, broken / "checkpoint.pt")
    resumed = script.train(options(broken), documents, [documents[:9]], [])
    assert resumed[-1]["minutes"] >= 10 > resumed[0]["minutes"]  # the time before the interruption counts
    for point in (*curve, *resumed):
        del point["minutes"]
    assert resumed == curve
    assert [point["step"] for point in curve] == [0, 5]
    assert curve[-1]["loss"] < curve[0]["loss"]
    same = [(folder / "model" / "model.safetensors").read_bytes() for folder in (straight, broken)]
    assert same[0] == same[1]


def test_the_last_documents_come_in_while_the_rate_falls_up_to_their_share(script, tokenizer, tmp_path, monkeypatch):
    text, *last = ([np.full(600, token)] for token in (5, 7, 9))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    whole, drawn = script.batch, {5: [], 7: [], 9: []}

    def noted(documents, tokens, rng):
        drawn[documents[0][0]].append(tokens)
        return whole(documents, tokens, rng)

    monkeypatch.setattr(script, "batch", noted)
    monkeypatch.setattr(script, "rate_factor", lambda step, steps: min(1, (steps - step) / (0.45 * steps)))
    a = options(tmp_path)
    a.tokens, a.last_share = 20 * script.BATCH, 0.5
    script.train(a, text, last, [])
    late = drawn[7]
    assert late == drawn[9] and late[:12] == [0] * 12 and late[12] > 0  # the rate falls from step 11 on
    assert np.diff(late[11:]) == pytest.approx(0.25 * 4096 / 9, abs=1)
    assert late[-1] == round(0.25 * 4096 * 8 / 9)  # the last step of 20 is not quite at the end
    assert {a + 2 * b for a, b in zip(drawn[5], late, strict=True)} == {4096}


def test_training_asks_the_anchor_about_every_batch(script, tokenizer, tmp_path, monkeypatch):
    import torch

    for name in ("start", "anchored"):
        (tmp_path / name).mkdir()
        tokenizer.save(str(tmp_path / name / "tokenizer.json"))
    documents = script.encode(tokenizer, STORIES)
    script.train(options(tmp_path / "start"), documents, [], [])
    seen, loss_on = [], script.loss_on

    def noted(logits, targets, anchor, share):
        seen.append((logits.detach(), anchor, share))
        return loss_on(logits, targets, anchor, share)

    monkeypatch.setattr(script, "loss_on", noted)
    a = options(tmp_path / "anchored")
    a.init = a.anchor = tmp_path / "start" / "model"
    a.anchor_share, a.tokens = 0.5, 3 * script.BATCH
    script.train(a, documents, [], [])
    assert [share for *_, share in seen] == [0.5] * 3
    assert torch.allclose(*seen[0][:2], atol=1e-6)  # the model begins as its anchor,
    assert not torch.allclose(*seen[2][:2], atol=1e-6)  # moves on, and the anchor does not
    assert not any(held.requires_grad for _, held, _ in seen)


def test_an_anchor_of_other_tokens_is_refused(script, tokenizer, tmp_path, monkeypatch):
    text, held = tmp_path / "text.txt", tmp_path / "held"
    text.write_text("\n<|endoftext|>\n".join(STORIES), encoding="utf-8")
    held.mkdir()
    tokenizer.save(str(held / "tokenizer.json"))
    (held / "other.json").write_text((held / "tokenizer.json").read_text(encoding="utf-8") + "\n", encoding="utf-8")
    command = ["train", str(tmp_path / "out"), "--text", str(text), "--anchor", str(held)]
    monkeypatch.setattr("sys.argv", [*command, "--tokenizer", str(held / "other.json")])
    with pytest.raises(SystemExit, match="tokenizer, expected the same"):
        script.main()


def test_the_command_writes_a_folder_that_minillm_loads_and_a_log(script, tmp_path, monkeypatch):
    text, last, valid, out = (tmp_path / name for name in ("text.txt", "last.txt", "valid.txt", "out"))
    text.write_text("\n<|endoftext|>\n".join(STORIES[:-5]), encoding="utf-8")
    last.write_text("\n<|endoftext|>\n".join(STORIES[:3]), encoding="utf-8")
    valid.write_text("\n<|endoftext|>\n".join(STORIES[-5:]), encoding="utf-8")
    command = ["train", str(out), "--text", str(text), "--last", str(last), str(text)]
    command += ["--valid", str(valid)]
    monkeypatch.setattr("sys.argv", [*command, "--size", "twin", "--act", "relu2", "--tokens", "20000"])
    script.main()
    model = minillm.load(out / "model")
    assert model.config.hidden_act == "relu2" and model.config.tie_word_embeddings
    log = json.loads((out / "log.json").read_text(encoding="utf-8"))
    assert log["act"] == "relu2" and log["curve"][-1]["bits_per_byte"] > 0
    assert [data["documents"] for data in log["data"]] == [75, 3]  # the same file twice is read once
    tokenizer = minillm.load(out / "model").tokenizer
    counts = [len(tokenizer.encode(story)) + 1 for story in (*STORIES[:-5], *STORIES[:3])]
    assert log["data_tokens"] == sum(counts)


def test_a_text_that_is_scored_may_not_be_trained_on(script, tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("\n<|endoftext|>\n".join(STORIES), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["train", str(tmp_path / "out"), "--text", str(text), "--valid", str(text)])
    with pytest.raises(SystemExit, match="expected none"):
        script.main()


def test_without_a_text_it_trains_on_the_published_stories(script, tmp_path, monkeypatch):
    trained_on = []

    def train(a, texts, last, valid):
        (a.out / "model").mkdir()
        trained_on.extend(texts)
        return []

    monkeypatch.setattr(script, "published_stories", lambda: STORIES)
    monkeypatch.setattr(script, "train", train)
    monkeypatch.setattr("sys.argv", ["train", str(tmp_path)])
    script.main()
    log = json.loads((tmp_path / "log.json").read_text(encoding="utf-8"))
    assert len(trained_on) == len(STORIES) and log["data"] == []
    assert log["data_tokens"] == sum(len(document) for document in trained_on) > len(STORIES)
    assert (tmp_path / "model" / "log.json").read_bytes() == (tmp_path / "log.json").read_bytes()


def test_the_command_line_of_the_log_has_what_determines_the_result_and_no_path(script, tmp_path):
    words = f"{tmp_path} --text /a/t.txt --last /b/l.txt --anchor /c/part-1 --tokens 5e4 --valid /d/v.txt --seed 2"
    line = "--size default --act silu --tokens 50000 --seed 2 --text t.txt --last l.txt --anchor part-1"
    assert script.command_line(script.parse(words.split())) == line
    assert script.command_line(script.parse([*words.split(), "--anchor-share", "0.1"])) == f"{line} --anchor-share 0.1"
