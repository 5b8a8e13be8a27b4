"""bundle, and prefetch real on its folder: every plan of fetching, and a model larger than memory."""

import json
import os
import subprocess
import sys

import pytest
import tiny

from minillm.prefetch.bundle import open_bundle, write_bundle, write_random_bundle

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's own counters and limits")
LAYERS, F, D = 2, 12, 8  # of the tiny model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prefetch_real")
    tiny.folder(folder / "model")
    (folder / "text.txt").write_text("\n<|endoftext|>\n".join(tiny.STORIES * 4), encoding="utf-8")
    (folder / "known.txt").write_text("\n<|endoftext|>\n".join(tiny.STORIES), encoding="utf-8")
    write_bundle(folder / "model", folder / "g1", 1)
    write_bundle(folder / "model", folder / "g5", 5, "bfloat16")
    return folder


def test_the_command_scores_a_text_by_every_way(files, run, tmp_path):
    how = ("prefetch", "real", files / "g1", "--text", files / "text.txt", "--tokens", 15, "--predictor", "static")
    status, out, _ = run(*how, "--keepers", "lru,belady,hot", "--json", "-o", tmp_path / "rows.csv")
    found = json.loads(out)
    rows = found["rows"]
    assert status == 0 and (tmp_path / "rows.csv").is_file()
    named = [(row["way"], row.get("keeper"), row.get("ahead")) for row in rows]
    oracle = [("oracle", keeper, ahead) for keeper in (None, "lru", "belady", "hot") for ahead in (False, True)]
    static = [("static", keeper, ahead) for keeper in (None, "lru", "hot") for ahead in (False, True)]
    assert named == [
        ("resident", None, None),
        *[("everything", None, ahead) for ahead in (False, True)],
        *oracle,
        *static,
    ]
    assert {row["tokens"] for row in rows} == {15} and all(row["perplexity"] > 1 for row in rows)
    assert rows[0]["perplexity"] == pytest.approx(rows[1]["perplexity"], rel=1e-4)
    assert found["bundle"]["bytes"] == LAYERS * F * 3 * D * 4 and found["bundle"]["loaded_whole"] is True
    assert "numpy" in found["bundle"]["environment"]


def test_the_command_continues_a_prompt_with_whole_blocks_and_prints_a_table(files, run):
    known = ("--calibration", files / "known.txt", "--predictor", "shadow-4", "--sparsity", "0.34", "--capacity", "0")
    status, out, said = run("prefetch", "real", "--bundle", files / "g5", "-p", "the cat", "-n", 5, *known)
    assert status == 0 and "shadow 4-bit" in out and "resident" in out
    assert "3 blocks of 5 neurons, bfloat16" in " ".join(out.split())
    assert "a prompt of 8 continued greedily" in " ".join(out.split())
    if sys.platform.startswith("linux"):
        assert "the system's own count is the same in every row" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("model", "holds no bundle.json"),
        ("g1 --calibration known.txt --predictor up-4", "reads the layer's own gate"),
        ("g1 --calibration known.txt --predictor previous-token", "needs the true mask"),
        ("g1 --memory 9 --keepers hot", "the whole model is never there"),
        ("g1 --keepers never --calibration known.txt --predictor static", "'never' is unknown"),
        ("g1 -o rows.txt", "expected .csv or .json"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_sentence(files, run, monkeypatch, words, said):
    monkeypatch.chdir(files)
    status, out, err = run("prefetch", "real", *words.split(), "-n", 2)
    assert status == 1 and said in err and not out and "Traceback" not in err
    for words in ("replay g1", "simulate --memory 9", "real", "real g1 --bundle g1", "real g1 --model m"):
        assert run("prefetch", *words.split())[0] == 2, words


def limited(folder, megabytes, *words) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "minillm",
        "prefetch",
        "real",
        folder,
        "--memory",
        str(megabytes),
        *words,
        "--json",
    ]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@linux
def test_with_a_limit_nothing_needs_the_whole_model(files):
    done = limited(files / "g1", 200, "-n", "3", "-p", "the cat", "--predictor", "chance", "--capacity", "0,0.5")
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["bundle"]["memory_limit_mb"] == 200, done.stderr
    assert [row["way"] for row in found["rows"]] == ["everything"] * 2 + ["chance"] * 4
    assert found["bundle"]["loaded_whole"] is True  # so small that it fits
    shares = [row["reads"] for row in found["rows"]]
    assert shares[:2] == [1, 1] and 0.3 < shares[2] == shares[3] < 0.7 and shares[4] < shares[2]
    done = limited(files / "g1", 200, "--predictor", "shadow-4")
    assert done.returncode == 1 and "leaves no room to make shadow-4" in done.stderr


@linux
@pytest.mark.slow
def test_a_bundle_of_400_mb_runs_where_160_mb_are_allowed_and_the_whole_model_does_not_load(tmp_path):
    """Eight layers of 50 MB: one at a time fits, two would, all do not."""
    import shutil

    if shutil.disk_usage(tmp_path).free < 1_000_000_000:
        pytest.skip("less than 1 GB free for the bundle")
    fields = {**tiny.LLAMA, "hidden_size": 512, "intermediate_size": 8192, "num_hidden_layers": 8, "head_dim": 128}
    bundle = open_bundle(write_random_bundle(fields, tmp_path / "large"))
    size, limit = sum(info.nbytes for info in bundle.layers), 160
    assert size > 2.5e6 * limit
    done = limited(tmp_path / "large", limit, "-n", "3", "--predictor", "chance", "--capacity", "0")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "allocate" in str(found["bundle"]["loaded_whole"]), found["bundle"]  # NumPy says it, or the system
    assert [row["bytes_per_token"] for row in found["rows"][:2]] == [size, size]
    assert found["rows"][2]["reads"] == pytest.approx(0.5, abs=0.01)
    enough = limited(tmp_path / "large", 4 * limit, "-n", "1", "--capacity", "0")
    assert json.loads(enough.stdout)["bundle"]["loaded_whole"] is True, enough.stderr


def test_bundle_writes_a_folder_once(tmp_path, run):
    tiny.loaded(tmp_path / "model")
    out = tmp_path / "bundles"
    how = ("-m", tmp_path / "model", "-o", out, "--group", 4)
    status, printed, _ = run("bundle", *how, "--stored", "bfloat16")
    assert (
        status == 0
        and "3 blocks of 4 neurons per layer" in " ".join(printed.split())
        and (out / "layer-001.safetensors").is_file()
    )
    status, _, said = run("bundle", *how)
    assert status == 1 and "exists already" in said
