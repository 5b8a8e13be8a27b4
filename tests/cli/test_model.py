"""generate, perplexity, inspect, trace, compare and download on a tiny model."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from commands import one_sentence, process
from loopback_hub import COMMIT, LoopbackHub, silence
from safetensors.numpy import load_file, save_file

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


def test_inspect_counts_every_weight_and_names_every_tensor(run):
    status, out, err = run("inspect", "-m", "m")
    assert (status, err) == (0, "") and "model.layers.1.mlp.down_proj.weight" in out and "hidden_size" in out
    found = json.loads(run("inspect", "-m", "m", "--json")[1])
    assert sum(part["weights"] for part in found["parts"]) == sum(np.prod(t["shape"]) for t in found["tensors"])
    assert found["config"]["hidden_size"] == 8 and len(found["tensors"]) == 2 * 9 + 3
    assert run("inspect", "-m", "bare")[0] == 0  # which needs no tokenizer


def _other_names(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({f"decoder.{name}": array for name, array in tensors.items()}, folder / "model.safetensors")


def _int8(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"] = np.zeros((8, 12), np.int8)
    save_file(tensors, folder / "model.safetensors")


def _without_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")


def _adapter(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "config.json").unlink()


def _config_of_another_family(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "mamba"}')


UNLOADABLE = {
    _other_names: "'decoder.model.embed_tokens.weight'", _int8: "is stored as I8", _adapter: "LoRA",
    _without_index: "model.safetensors.index.json", _config_of_another_family: "model_type is 'mamba'",
}  # fmt: skip


@pytest.mark.parametrize("change", UNLOADABLE)
def test_inspect_lists_the_tensors_of_a_folder_that_cannot_be_loaded_and_says_why(change, run, tmp_path):
    folder = shutil.copytree("m", tmp_path / "m")
    change(folder)
    status, out, err = run("inspect", "-m", folder)
    assert status == 1 and UNLOADABLE[change] in one_sentence(err)
    row = next(line.split() for line in out.splitlines() if "layers.1.mlp.down_proj.weight" in line)
    assert row[1:5] == ["I8" if change is _int8 else "F32", "8", "x", "12"] and ".safetensors" in out
    status, out, err = run("inspect", "-m", folder, "--json")
    found = json.loads(out)
    assert status == 1 and found["error"] == one_sentence(err) and len(found["tensors"]) == 2 * 9 + 3
    assert {(t["dtype"], *t["shape"], t["bytes"]) for t in found["tensors"]} >= {("F32", 8, 32), ("F32", 288, 8, 9216)}


def test_inspect_lists_what_can_be_read_where_a_shard_is_missing(run, tmp_path):
    folder = shutil.copytree("m", tmp_path / "m")
    _without_index(folder)
    shards = {"model.norm.weight": "model-00001-of-00002.safetensors", "x": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (folder / "other.safetensors").write_bytes(b"no header")
    status, out, err = run("inspect", "-m", folder)
    assert status == 1 and "model-00002-of-00002.safetensors" in one_sentence(err)
    assert len(out.splitlines()) == 2 + 2 * 9 + 3
    for missing in ("nowhere", tmp_path):  # nothing to list
        assert run("inspect", "-m", missing, "--json")[:2] == (1, "")


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="its names are valid Unicode")
@pytest.mark.parametrize(
    "name",
    [b"a\xff\xfeb", b"\xff" * 250, b"$x^2$_{", b"back\\slash", b"100%s %d", b"a b", b"a\nb", b"\x1b[31m"],
    ids=repr,
)
def test_a_folder_may_have_any_name_that_the_system_allows(name, run, tmp_path):
    folder = tmp_path / os.fsdecode(name)
    shutil.copytree("m", folder)
    shown = show(show(folder.name), 300)
    status, out, _ = run("inspect", "-m", folder, "--json")
    assert status == 0 and json.loads(out)["model"] == shown
    thresholds, bundle = (tmp_path / os.fsdecode(name[:200] + ending) for ending in (b".json", b".bundle"))
    for command in (
        ("perplexity", "--text", "one.txt"), ("inspect", "--text", "one.txt"), ("generate", "-p", "a", "-n", "2"),
        ("calibrate", "--text", "stories.txt", "--policy", "mid", "-o", thresholds),
        ("bundle", "-o", bundle, "--group", "4"),
        ("sweep", "--text", "one.txt", "--calibration", "stories.txt", "--sparsity", "0.5", "-o", f"{bundle}.csv"),
        ("perplexity", "--text", "one.txt", "--thresholds", thresholds, "--json"),
        ("inspect", "--text", "one.txt", "--natural", "--figure", folder.with_name(folder.name[:200] + ".svg")),
    ):  # fmt: skip
        status, out, err = run(*command, "-m", folder)
        assert status == 0, err
        (out + err).encode("utf-8")
        assert "\x1b" not in out + err
    (folder / "config.json").unlink()
    status, out, err = run("perplexity", "-m", folder, "--text", "one.txt")
    assert status == 1 and "config.json: is missing" in one_sentence(err)


def test_inspect_counts_natural_zeros_per_layer_when_asked(run):
    status, out, err = run("inspect", "-m", "m", "--text", "stories.txt")
    assert (
        out.index("Natural sparsity") < out.index("attention ") < out.index("hidden_size")
    )  # what was asked for first
    natural = out[out.index("Natural sparsity") : out.index("part ")].splitlines()
    assert (status, err) == (0, "") and max(map(len, natural)) <= 80
    lines = [line.split() for line in natural]
    head = next(i for i, line in enumerate(lines) if line[:2] == ["layer", "gate_zeros"])
    assert [line[0] for line in lines[head + 1 : head + 3]] == ["0", "1"]
    found = json.loads(run("inspect", "-m", "m", "--natural", "--text", "stories.txt", "--json")[1])["natural"]
    assert [f"{row['gate_below_10_percent']:.4f}" for row in found] == [line[3] for line in lines[head + 1 : head + 3]]


def test_trace_shows_saves_and_explains(run, tmp_path):
    status, out, err = run("trace", "-m", "m", "-p", "a", "--keep", "blocks.0.mlp.*", "--keep", "logits")
    assert (status, err) == (0, "") and len(out.splitlines()) == 1 + 6 + 1
    status, out, err = run("trace", "-m", "m", "-p", "a", "-o", tmp_path / "t.npz")
    assert (status, out) == (0, "") and "-> " in err and len(minillm.Trace.load(tmp_path / "t.npz")) == 2 * 19 + 3
    found = json.loads(run("trace", "-m", "m", "--text", "one.txt", "--json")[1])
    assert found["logits"]["shape"][1] == tiny.VOCABULARY and found["logits"]["dtype"] == "float32"
    status, out, _ = run("trace", "--explain", "blocks.0.mlp.mid")
    assert status == 0 and "m = a * u" in out and "ffn.py" in out
    assert json.loads(run("trace", "--explain", "blocks.0.mlp.mid", "--json")[1])["dims"] == "T F"


def test_compare_ends_with_0_where_all_agrees_and_1_where_something_differs(run, tmp_path):
    values = {"embed": np.ones((2, 3)), "final_norm": np.ones((2, 3)), "logits": np.full((2, 4), np.nan)}
    for name, changes in (("a", {}), ("b", {"final_norm": np.full((2, 3), 1.5)}), ("c", {"logits": np.ones((2, 4))})):
        np.savez(tmp_path / f"{name}.npz", **values | changes)
    a, b, c = (tmp_path / f"{name}.npz" for name in "abc")
    assert run("compare", a, a)[0] == 0
    status, out, err = run("compare", a, b)
    assert (status, err) == (1, "") and "first divergence: final_norm" in out
    assert run("compare", a, b, "--rtol", "0.6")[0] == 0
    status, out, _ = run("compare", a, c, "--json")
    found = json.loads(out, parse_constant=pytest.fail)  # NaN and Infinity are no JSON
    assert status == 1 and found["first"] == "logits" and found["rows"][2]["max_abs"] is None
    assert found["rows"][0] == {"name": "embed", "status": "ok", "max_abs": 0, "relative": 0}


def test_inspect_shows_how_large_weights_and_activations_are_and_draws_them(run, tmp_path):
    options = ("inspect", "-m", "m", "--text", "stories.txt", "--distributions")
    status, out, err = run(*options, "--figure", tmp_path / "f.svg")
    assert status == 0 and b"<svg" in (tmp_path / "f.svg").read_bytes() and "figure: " in err
    assert "of a normal distribution 0.0080 and 0.0797" in " ".join(out.split()) and "Natural" not in out
    found = json.loads(run(*options, "--natural", "--json")[1])
    assert [len(found[key]) for key in ("natural", "weight_magnitudes", "activation_magnitudes")] == [2, 6, 10]
    assert run("inspect", "-m", "m", "--text", "stories.txt", "--natural", "--figure", tmp_path / "n.png")[0] == 0
    status, _, err = run(*options, "--natural", "--figure", tmp_path / "b.svg")
    assert status == 1 and "--natural or --distributions" in one_sentence(err)


def test_download_prints_the_folder_which_inspect_then_finds_by_its_name(tmp_path):
    files = {path.name: path.read_bytes() for path in Path("m").iterdir()}
    with LoopbackHub("org/tiny", files) as hub:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
        out, err = process("download", "org/tiny", "--json", env=environment).communicate(timeout=60)
        assert json.loads(out) == {"folder": json.loads(out)["folder"], "commit": COMMIT}, err
        assert b"org/tiny@" + COMMIT.encode() in err
        offline = environment | {"HF_HUB_OFFLINE": "1"}
        out, err = process("inspect", "-m", "org/tiny@main", "--json", env=offline).communicate(timeout=60)
    assert json.loads(out)["model"] == "org/tiny" and not err


def test_a_download_that_stalls_is_given_up_after_the_timeout(run, tmp_path, monkeypatch):
    with LoopbackHub("org/tiny", {}) as hub:
        hub.faults[""] = silence
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        status, out, err = run("download", "org/tiny", "--timeout", "0.5")
    assert (status, out) == (1, "") and "org/tiny: " in one_sentence(err) and "0.5 seconds (--timeout)" in err
    for wrong in ("0", "-1", "nan", "inf", "x", "1e9"):
        assert run("download", "org/tiny", f"--timeout={wrong}")[0] == 2


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
    assert status == 0 and json.loads(out)["perplexity"] is None and "nats per token" in err
    assert "perplexity inf" in run("perplexity", "-m", folder, "--text", "one.txt")[1]
    weights["lm_head.weight"] *= np.float32(1e33)
    save_tensors(folder / "model.safetensors", weights)
    for command in (("perplexity", "--text", "one.txt"), ("generate", "-p", "a", "-n", "2")):
        status, out, err = run(*command, "-m", folder, "--json")
        assert (status, out) == (1, "") and "minillm: logits holds" in err
    status, out, err = run("trace", "-m", folder, "-p", "a", "--keep", "logits")
    assert status == 0 and "logits" in out and "logits holds" in err


def test_a_trace_of_ids_needs_no_tokenizer_and_other_commands_name_what_is_missing(run):
    for folder in ("bare", "m"):
        steps = json.loads(run("trace", "-m", folder, "--ids", "1,5,3", "--json")[1])
        assert steps["embed"]["shape"][0] == 3
    status, _, err = run("trace", "-m", "bare")
    assert status == 1 and "tokenizer.json" in one_sentence(err) and "--ids" in err
    status, _, err = run("generate", "-m", "bare", "-p", "a")
    assert status == 1 and "tokenizer.json" in one_sentence(err)
    assert (
        run("trace", "-m", "m", "--ids", "1,5000")[0]
        == run("trace", "-m", "m", "--ids", "1", "--text", "one.txt")[0]
        == 1
    )


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
