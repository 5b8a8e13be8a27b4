"""download prints the folder, and ends within its time."""

import json
import os
from pathlib import Path

import pytest
from commands import one_sentence, process
from loopback_hub import COMMIT, LoopbackHub, silence


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_download_that_stalls_is_given_up_after_the_timeout(run, tmp_path, monkeypatch):
    with LoopbackHub("org/tiny", {}) as hub:
        hub.faults[""] = silence
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        status, out, err = run("download", "org/tiny", "--timeout", "0.5")
        assert (status, out) == (1, "") and "HF_HUB_OFFLINE is set" in one_sentence(err)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        status, out, err = run("download", "org/tiny", "--timeout", "0.5")
    assert (status, out) == (1, "") and "org/tiny: " in one_sentence(err) and "0.5 seconds (--timeout)" in err
    for wrong in ("0", "-1", "nan", "inf", "x", "1e9"):
        assert run("download", "org/tiny", f"--timeout={wrong}")[0] == 2
