"""Training the embedded models: the tokenizer loses nothing, a run goes on where it stopped, the folder loads."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback_hub import LoopbackHub
from scripts import load_script

import minillm

STORIES = [
    f"Once upon a time there was a {animal} named {name}. {name} had a red {thing}. One day the {thing} was gone."
    for animal in ("cat", "dog", "bird", "mouse")
    for name in ("Lily", "Tom", "Mia", "Ben", "Sue")
    for thing in ("ball", "hat", "car", "kite")
]


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    return load_script("weights_scripts/train_default.py")


@pytest.fixture(scope="module")
def tokenizer(script):
    return script.train_tokenizer(STORIES)


pytestmark = pytest.mark.parity


def test_the_tokenizer_gives_every_text_back(tokenizer):
    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def check(text):
        tokenizer.encode_special_tokens = True
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text

    check()
    for text in ("  two  spaces ", "\u2581 is no space", "<0x41> is no byte, </s> no end", "naïve 猫 😀\r\n\tx"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_a_batch_is_documents_each_from_its_start_of_so_many_tokens_in_all(script, tokenizer):
    documents = [*script.encode(tokenizer, STORIES), np.arange(3, 1000)]
    for tokens in (0, 1, 512, 4096):
        drawn = script.batch(documents, tokens, np.random.default_rng(tokens))
        assert sum(len(document) - 1 for document in drawn) == tokens
        for cut in drawn:
            whole = next(document for document in documents if np.array_equal(document[: len(cut)], cut))
            assert len(cut) == min(len(whole), script.CONTEXT + 1) or cut is drawn[-1]


def test_a_fast_model_reads_each_document_by_itself_and_gives_the_logits_of_a_plain_one(script, tokenizer):
    import torch

    documents = script.encode(tokenizer, [STORIES[0], "A", STORIES[1] * 5])
    plain, exact, rounded = (script.new_model("twin", "silu", 0) for _ in range(3))
    script.make_fast(exact, False), script.make_fast(rounded, True)
    alone = [plain(torch.from_numpy(document[:-1])[None], use_cache=False).logits[0] for document in documents]
    ways = [torch.cat(alone), script.logits_of(exact, documents), script.logits_of(rounded, documents)]
    targets = torch.from_numpy(np.concatenate([document[1:] for document in documents]))
    for logits in ways:
        script.loss_on(logits, targets).backward()
    assert torch.allclose(ways[1], ways[0], atol=1e-6)
    error = (ways[2] - ways[0]).abs().max()
    assert 1e-5 < error < 2**-6 * ways[0].abs().max()  # bfloat16 has eight bits
    for a, b, c in zip(*(model.parameters() for model in (plain, exact, rounded)), strict=True):
        assert torch.allclose(b.grad, a.grad, rtol=1e-4, atol=1e-6)
        assert (c.grad - a.grad).norm() < 0.03 * a.grad.norm()


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


@pytest.mark.parametrize("shape", [(128, 384), (384, 128), (64, 64)])
def test_muon_takes_the_steps_of_the_library_but_in_float32(script, shape):
    import torch

    random = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=random)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    optimizers = [script.Muon([ours], lr=0.02), torch.optim.Muon([theirs], lr=0.02, momentum=0.95, weight_decay=0.02)]
    for _ in range(4):
        ours.grad = torch.randn(shape, generator=random)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = (theirs - start).detach().norm()
    assert (ours - theirs).detach().norm() < 0.02 * moved  # bfloat16 has eight bits
    values = torch.linalg.svdvals(script.Muon.orthogonal(start))
    assert values.median() > 0.6 and values.max() < 1.3  # the least ones would need more than five steps


def test_an_anchor_is_its_share_of_every_target(script):
    import torch

    logits, held = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    came = torch.tensor([0, 3, 3, 6, 1])
    targets = 0.8 * torch.eye(7, dtype=torch.float64)[came] + 0.2 * held.exp() / held.exp().sum(1, keepdim=True)
    by_hand = -(targets * logits.log_softmax(1)).sum(1).mean()
    assert torch.allclose(script.loss_on(logits, came, held, 0.2), by_hand, rtol=1e-12)
    assert script.loss_on(logits, came) == torch.nn.functional.cross_entropy(logits, came)


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


@pytest.mark.shared
@pytest.mark.slow
def test_a_teacher_tells_stories_with_an_end(script, shared):
    stories = script.sample(shared / "models" / "tinystories-656k", 3, seed=0, at_once=6)
    assert len(stories) == 3 and all(len(story) > 100 and "<" not in story for story in stories)


def test_without_a_text_it_reads_as_much_of_the_published_stories_as_it_wants_and_no_more(script):
    _, name = script.PUBLISHED.split("TinyStories/", 1)
    file = "\n<|endoftext|>\n".join(f"{i} {story}" for i, story in enumerate(STORIES * 400)).encode()
    code = (
        "import sys; sys.path.insert(0, 'weights_scripts'); import train_default as t; "
        "s = t.published_stories(1, 1 << 18); print(len(s)); print(s[0]); print(s[-1])"
    )
    with LoopbackHub("roneneldan/TinyStories", {name: file}, kind="datasets") as hub:
        variables = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        variables |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
        root = Path(__file__).parents[2]
        run = subprocess.run([sys.executable, "-c", code], env=variables, cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    count, first, last = run.stdout.splitlines()
    asked = sum(int(r.split("-")[1]) - int(r.removeprefix("bytes=").split("-")[0]) + 1 for r in hub.ranges)
    assert 1_000_000 <= asked < 2_000_000 < len(file)
    assert first == f"0 {STORIES[0]}" and last == f"{int(count) - 1} {STORIES[(int(count) - 1) % len(STORIES)]}"


def test_a_text_that_is_scored_may_not_be_trained_on(script, tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("\n<|endoftext|>\n".join(STORIES), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["train", str(tmp_path / "out"), "--text", str(text), "--valid", str(text)])
    with pytest.raises(SystemExit, match="expected none"):
        script.main()
