"""inspect, trace and compare: what they count, list, save and name."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from commands import one_sentence
from safetensors.numpy import load_file, save_file

import minillm
from minillm.errors import show


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
