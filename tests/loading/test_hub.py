"""Names to folders: a real huggingface_hub in a fresh process against a hub on the loopback address."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from loopback_hub import COMMIT, OLD_COMMIT, LoopbackHub
from safetensors.numpy import load, save
from scripts import load_script

from minillm.errors import CheckpointError
from minillm.loading.fetch import reason
from minillm.loading.hub import download, resolve

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "weights_scripts" / "download.py"
REPO = "org/tiny-model"


def repository(vocab: int = 32) -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    sizes = {"vocab_size": vocab, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = sizes | {"model_type": "llama", "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
                      "tie_word_embeddings": True}  # fmt: skip
    shapes = {
        "model.embed_tokens.weight": (vocab, 16), "model.norm.weight": (16,),
        "model.layers.0.input_layernorm.weight": (16,),
        "model.layers.0.post_attention_layernorm.weight": (16,), "model.layers.0.self_attn.q_proj.weight": (16, 16),
        "model.layers.0.self_attn.k_proj.weight": (8, 16), "model.layers.0.self_attn.v_proj.weight": (8, 16),
        "model.layers.0.self_attn.o_proj.weight": (16, 16), "model.layers.0.mlp.gate_proj.weight": (24, 16),
        "model.layers.0.mlp.up_proj.weight": (24, 16), "model.layers.0.mlp.down_proj.weight": (16, 24),
    }  # fmt: skip
    return {
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": b"{}",
        "model.safetensors": save({n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}),
        "pytorch_model.bin": b"a pickle",
        "modeling.py": b"raise SystemExit('code of a stranger')",
    }


@pytest.fixture
def hub():
    with LoopbackHub(REPO, repository(), old_files=repository() | {"tokenizer.json": b'{"old": 1}'}) as hub:
        yield hub


def variables(hub, home: Path, offline: bool) -> dict[str, str]:
    found = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    found |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    return found | ({"HF_HUB_OFFLINE": "1"} if offline else {})


def fresh_process(hub, home: Path, *command: str, offline=False) -> subprocess.Popen:
    """huggingface_hub reads its variables when imported, so each look at the cache is a process of its own."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    if os.name == "posix":  # a shell's background job ignores Ctrl-C, and so would its children
        pipes["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen([sys.executable, *command], env=variables(hub, home, offline), cwd=ROOT, **pipes)


def fetch(hub, home: Path, name: str = REPO, offline=False) -> tuple[int, list[str], str]:
    """What weights_scripts/download.py prints: its exit status, stdout and stderr. (The download is a process.)"""
    out, err = io.StringIO(), io.StringIO()
    with mock.patch.dict(os.environ, variables(hub, home, offline), clear=True):
        with mock.patch("sys.argv", ["download.py", name]), redirect_stdout(out), redirect_stderr(err):
            code = load_script(SCRIPT).main()
    assert "Traceback" not in err.getvalue()
    return code, out.getvalue().splitlines(), err.getvalue()


def refused(hub, home: Path, name: str = REPO, **options) -> str:
    """The one sentence of a refused download."""
    code, out, err = fetch(hub, home, name, **options)
    sentences = [line for line in err.splitlines() if line.startswith("download: ")]
    assert (code, out, len(sentences)) == (1, [], 1), err
    return sentences[0]


def test_downloads_only_the_allowed_files_and_the_folder_is_named_after_the_commit(hub, tmp_path):
    code, (pinned, folder), _ = fetch(hub, tmp_path)
    assert (code, pinned, Path(folder).name) == (0, f"{REPO}@{COMMIT}", COMMIT)
    assert {p.name for p in Path(folder).iterdir()} == {"config.json", "tokenizer.json", "model.safetensors"}
    assert (Path(folder) / "model.safetensors").read_bytes() == hub.trees[COMMIT]["model.safetensors"]
    assert not [line for line in hub.asked if "pytorch_model.bin" in line or "modeling.py" in line]


def test_a_pinned_revision_is_that_one_by_tag_and_by_commit(hub, tmp_path):
    for revision in ("v1", OLD_COMMIT):
        _, (pinned, folder), _ = fetch(hub, tmp_path / revision, f"{REPO}@{revision}")
        assert pinned == f"{REPO}@{OLD_COMMIT}"
        assert (Path(folder) / "tokenizer.json").read_bytes() == b'{"old": 1}'


@pytest.mark.slow
def test_a_second_call_fetches_no_file_and_works_offline_and_with_the_hub_down(hub, tmp_path):
    first = fetch(hub, tmp_path)[1]
    hub.asked.clear()
    assert fetch(hub, tmp_path)[1] == first
    assert not [line for line in hub.asked if line.startswith("GET") and "/resolve/" in line]
    hub.asked.clear()
    assert fetch(hub, tmp_path, offline=True)[1] == first
    assert hub.asked == []
    hub.status = 500
    assert fetch(hub, tmp_path, f"{REPO}@{COMMIT}")[1] == first


@pytest.mark.slow
def test_a_dropped_connection_is_resumed_in_the_middle_of_the_file(hub, tmp_path):
    chunk = 10 * 2**20  # what huggingface_hub writes at once, and so where it goes on
    hub.trees[COMMIT] = repository(vocab=200_000)
    hub.cut["model.safetensors"] = chunk + 1000
    code, out, _ = fetch(hub, tmp_path)
    if code:  # older versions of huggingface_hub go on with the next call, newer ones within the first
        code, out, _ = fetch(hub, tmp_path)
    assert code == 0
    assert (Path(out[1]) / "model.safetensors").read_bytes() == hub.trees[COMMIT]["model.safetensors"]
    assert hub.ranges == [f"bytes={chunk}-"]


@pytest.mark.slow
def test_a_killed_download_leaves_no_loadable_folder_and_goes_on_with_the_missing_file_only(hub, tmp_path):
    hub.cut["model.safetensors"], hub.hang = 1000, True
    process = fresh_process(hub, tmp_path, str(SCRIPT), REPO)
    assert hub.cut_now.wait(60)
    process.kill()
    process.communicate()
    assert not list(tmp_path.rglob("*.safetensors")) and list(tmp_path.rglob("config.json"))
    assert "no complete copy" in refused(hub, tmp_path, offline=True)
    code = f"from minillm.loading.hub import resolve; resolve('{REPO}')"
    assert "only in part in the cache" in fresh_process(hub, tmp_path, "-c", code).communicate(timeout=60)[1]
    hub.asked.clear()
    assert fetch(hub, tmp_path)[0] == 0
    assert [a for a in hub.asked if a.startswith("GET") and "/resolve/" in a] == [
        f"GET /{REPO}/resolve/{COMMIT}/model.safetensors"
    ]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_ends_a_silent_download_with_130_and_no_loadable_folder(hub, tmp_path):
    hub.cut["model.safetensors"], hub.hang = 1000, True
    process = fresh_process(hub, tmp_path, str(SCRIPT), REPO)
    assert hub.cut_now.wait(60)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=5)  # long before the 10 seconds after which a silent hub is asked again
    assert process.returncode == 130 and "Traceback" not in err
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.slow
def test_every_refusal_is_one_sentence(hub, tmp_path):
    assert "no revision 'v9'" in refused(hub, tmp_path, f"{REPO}@v9")
    assert "org/other: is not on the hub" in refused(hub, tmp_path, "org/other")
    assert "expected org/name" in refused(hub, tmp_path, "../../etc")
    assert "no complete copy" in refused(hub, tmp_path, offline=True)
    hub.status, hub.error = 403, "GatedRepo"
    assert "is gated" in refused(hub, tmp_path)
    hub.__exit__()
    assert "cannot be reached" in refused(hub, tmp_path)


def test_a_repository_without_safetensors_is_refused(hub, tmp_path):
    del hub.trees[COMMIT]["model.safetensors"]
    assert "safetensors" in refused(hub, tmp_path)
    assert not [line for line in hub.asked if "pytorch_model.bin" in line]


def test_a_path_that_leads_out_of_the_folder_is_refused_and_nothing_is_written_there(hub, tmp_path):
    hub.trees[COMMIT]["../../../evil.safetensors.index.json"] = b"{}"
    assert "evil" in (sentence := refused(hub, tmp_path / "home")) and ".." in sentence
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.slow
def test_an_index_fetches_its_own_shards_only_and_none_outside_the_folder(hub, tmp_path):
    files = hub.trees[COMMIT]
    names = list(load(files["model.safetensors"]))
    files["shard-1.safetensors"] = files["consolidated.safetensors"] = files.pop("model.safetensors")
    files["../evil.safetensors"] = b"evil"
    index = {"weight_map": dict.fromkeys(names, "shard-1.safetensors")}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    folder = Path(fetch(hub, tmp_path / "one")[1][1])
    assert [p.name for p in folder.glob("*.safetensors")] == ["shard-1.safetensors"]
    for hostile in ("../evil.safetensors", "pytorch_model.bin", ["a list"], None):
        index["weight_map"][names[0]] = hostile
        files["model.safetensors.index.json"] = json.dumps(index).encode()
        assert "weight_map" in refused(hub, tmp_path / f"{len(hub.asked)}")
    assert not list(tmp_path.rglob("*evil*")) and not [a for a in hub.asked if "evil" in a or ".bin" in a]


def test_a_full_disk_is_one_sentence():
    problem = OSError(errno.ENOSPC, "No space left on device")
    assert reason(problem, "org/name", None, "x") == "cannot be written to the cache (No space left on device)"


def test_a_downloaded_model_is_found_by_name_and_loads_through_the_links_of_the_cache(hub, tmp_path):
    fetch(hub, tmp_path)
    hub.asked.clear()
    code = (
        "import sys; from minillm.loading.hub import resolve; from minillm.transformer.model import Llama\n"
        "print(resolve(sys.argv[1])); print(Llama.from_folder(resolve(sys.argv[1])).forward([1, 2]).shape)"
    )
    for name in (REPO, f"{REPO}@main", f"{REPO}@{COMMIT}"):
        out, err = fresh_process(hub, tmp_path, "-c", code, name).communicate(timeout=60)
        folder, shape = out.splitlines() or [err, ""]
        assert (Path(folder).name, shape) == (COMMIT, "(2, 32)")
    assert hub.asked == []


def test_a_name_that_is_not_in_the_cache_is_refused_without_asking_the_hub(hub, tmp_path):
    code = f"from minillm.loading.hub import resolve; resolve('{REPO}@v1')"
    _, err = fresh_process(hub, tmp_path, "-c", code).communicate(timeout=60)
    assert f"CheckpointError: {REPO}@v1: is no folder, and not in the cache" in err
    assert f"run `minillm download {REPO}@v1` first" in err
    assert hub.asked == []


def test_a_folder_is_taken_as_it_is_without_importing_huggingface_hub(tmp_path):
    code = "import sys; from minillm.loading.hub import resolve; "
    code += "print(resolve(sys.argv[1]), 'huggingface_hub' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True).stdout
    assert out.split() == [str(tmp_path), "False"]
    assert resolve(tmp_path) == tmp_path


def test_what_is_neither_a_folder_nor_a_name_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is a file"):
        resolve(tmp_path / "file")
    for source in (tmp_path / "a" / "b", "nobody", "../a", "a/b/c", "a/b@", "", "a\0b", "a" * 5000):
        with pytest.raises(CheckpointError, match="does not exist"):
            resolve(source)
    for name in ("nobody", "a/b/c", "../a", ""):
        with pytest.raises(CheckpointError, match="expected org/name"):
            download(name)
