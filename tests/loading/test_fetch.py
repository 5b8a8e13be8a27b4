"""A download against a hub that misbehaves: one sentence for each fault within the time, and the next run is whole."""

import errno
import json
import os
import time
from pathlib import Path

import hostile
import pytest
from huggingface_hub import errors
from loopback_hub import COMMIT, LoopbackHub, answer, endless, reset, silence, trickle

from minillm.errors import CheckpointError
from minillm.loading import hub as hub_module
from minillm.loading.fetch import FILE_LIST, causes, check_content, reason, refused, weight_files
from minillm.loading.hub import download

REPO = "org/tiny-model"
WEIGHTS = f"GET /{REPO}/resolve/{COMMIT}/model.safetensors"
HTML = b"<!DOCTYPE html><html>Please log in to this network</html>"
SILENT = "given up after 1 seconds (--timeout)"

# name -> (requests that are answered wrongly, what is done instead, what the sentence must contain)
FAULTS = {
    "a hub that is silent": ("", silence, SILENT),
    "silent at the weights": (WEIGHTS, silence, SILENT),
    "a day to wait": ("GET /org", answer(429, Retry_After="86400"), "wait 86401.0 seconds, with status 429"),
    "a web page for everything": ("", answer(200, HTML), "no JSON, expected its list of files"),
    "500 for files": ("/resolve/", answer(500), "status 500"),
}
SLOW_FAULTS = {
    "a header without end": ("", trickle, SILENT),
    "silent at the weights' head": (WEIGHTS.replace("GET", "HEAD"), silence, SILENT),
    "a body without end": ("resolve/" + COMMIT + "/config.json", endless, "sends more than"),
    "broken off": ("", reset, "broke off the connection"),
    "broken off at the weights": (WEIGHTS, reset, "broke off the connection, expected model.safetensors"),
    "a web page for the list": ("/tree/", answer(200, HTML), "no JSON"),
    "a web page for the weights": (WEIGHTS, answer(200, HTML), "only a part of model.safetensors"),
    "wrong JSON": ("/api/", answer(200, b'{"id": 3}'), "cannot be downloaded"),
    "a list for the list": ("/api/", answer(200, b"[]"), "JSON of another kind, expected its list"),
    "a day to wait for the list": ("/api/", answer(429, Retry_After="86400"), "try again in 86400 seconds"),
    "a time to wait that is no time": (WEIGHTS, answer(429, Retry_After="9" * 20), "status 429"),
    "429 without a time": ("/api/", answer(429), "try again later"),
    "401": ("", answer(401), "refuses access, with status 401"),
    "403": ("", answer(403), "refuses access, with status 403"),
    "403 at the weights": (WEIGHTS, answer(403), "refuses access, with status 403"),
    "gated": ("", answer(403, X_Error_Code="GatedRepo"), "is gated: accept its licence"),
    "404": ("", answer(404), "refuses, with status 404"),
    "500": ("", answer(500), "an error of its own, status 500"),
    "503": ("", answer(503), "an error of its own, status 503"),
    "no weights": ("model.safetensors", answer(404, X_Error_Code="EntryNotFound"), "has no model.safetensors"),
    "no weights, and no word why": ("model.safetensors", answer(404, HTML), "has no model.safetensors"),
    "no config though it is listed": ("config.json", answer(404, X_Error_Code="EntryNotFound"), "has not all files"),
    "sent round in a circle": ("", answer(302, Location=f"/api/models/{REPO}"), "redirects"),
}
slow = pytest.mark.slow


def files() -> dict[str, bytes]:
    tensors = {name: hostile.encode(array) for name, array in hostile.tiny_tensors().items()}
    return {"config.json": json.dumps(hostile.CONFIG).encode(), "tokenizer.json": b"{}",
            "model.safetensors": hostile.pack_arrays(tensors)}  # fmt: skip


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub, and the variables for the process that downloads from it."""
    with LoopbackHub(REPO, files()) as hub:
        for name in [name for name in os.environ if name.startswith("HF_")]:
            monkeypatch.delenv(name)
        for name, value in {"ENDPOINT": hub.url, "HOME": str(tmp_path / "home"), "HUB_DISABLE_TELEMETRY": "1",
                            "HUB_DISABLE_XET": "1"}.items():  # fmt: skip
            monkeypatch.setenv(f"HF_{name}", value)
        yield hub


def sentence(timeout: float = 1.0) -> str:
    """The one sentence of a download that must fail, within its time and what a process takes to start."""
    started = time.monotonic()
    with pytest.raises(CheckpointError) as refusal:
        download(REPO, progress=False, timeout=timeout)
    assert time.monotonic() - started < timeout + 20  # mostly 1 to 2 seconds; a busy machine starts Python slowly
    said = str(refusal.value)
    assert said.startswith(f"{REPO}: ") and "\n" not in said and len(said) < 500, said
    return said


@pytest.mark.parametrize("case", [*FAULTS, *(pytest.param(name, marks=slow) for name in SLOW_FAULTS)])
def test_each_fault_has_its_own_sentence_and_the_next_run_is_whole(case, hub, capfd):
    part, fault, named = (FAULTS | SLOW_FAULTS)[case]
    hub.faults[part] = fault
    waits = named == SILENT or (part.startswith("GET") and "429" in named) or part == "/resolve/"
    assert named in sentence(timeout=1.0 if waits else 20.0)
    assert capfd.readouterr().err == ""
    hub.faults.clear()
    if case in SLOW_FAULTS:
        folder = download(REPO, progress=False, timeout=60)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == files()


@pytest.mark.parametrize("name", ["config.json", pytest.param("tokenizer.json", marks=slow), "model.safetensors"])
def test_a_web_page_in_place_of_a_file_is_not_kept(name, hub):
    hub.trees[COMMIT] = files() | {name: HTML}
    assert f"what the hub sent as {name} cannot be used: is a web page" in sentence(timeout=20)
    hub.trees[COMMIT] = files()
    folder = download(REPO, progress=False, timeout=60)
    assert (folder / name).read_bytes() == files()[name]


def test_a_missing_shard_is_named(hub):
    held = files()
    shards = dict.fromkeys(hostile.tiny_tensors(), "model-00001-of-00002.safetensors")
    shards[hostile.HEAD] = "model-00002-of-00002.safetensors"
    hub.trees[COMMIT] = held | {"model.safetensors.index.json": json.dumps({"weight_map": shards}).encode(),
                                "model-00001-of-00002.safetensors": held.pop("model.safetensors")}  # fmt: skip
    assert "has no model-00002-of-00002.safetensors, which model.safetensors.index.json names" in sentence(timeout=20)


def test_other_weights_of_a_repository_are_named(hub):
    held = files()
    hub.trees[COMMIT] = {**held, "pytorch_model.bin": held.pop("model.safetensors")}
    del hub.trees[COMMIT]["model.safetensors"]
    assert "it holds pytorch_model.bin: pickled" in sentence(timeout=20)


@slow
def test_a_file_that_is_always_cut_ends_within_the_time(hub):
    def half(handler):
        body = files()["model.safetensors"][:1000]
        handler.answer(200, body, {"Content-Length": str(2 * len(body)), "ETag": '"1"', "X-Repo-Commit": COMMIT})
        handler.close_connection = True

    hub.faults[WEIGHTS] = half
    assert "model.safetensors" in sentence() or SILENT in sentence()
    hub.faults.clear()
    assert download(REPO, progress=False, timeout=60).name == COMMIT


@slow
def test_a_large_file_may_take_longer_than_the_timeout(hub):
    """Signs of life put the end off: 8 MB in pieces of 1 MB, each after 0.4 seconds, with a timeout of 2 seconds."""
    body = hostile.pack_arrays({"w": ("F32", [2 << 20], bytes(8 << 20))})
    hub.trees[COMMIT]["model.safetensors"] = body

    def slowly(handler):
        handler.close_connection = True
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        for start in range(0, len(body), 1 << 20):
            handler.wfile.write(body[start : start + (1 << 20)])
            handler.wfile.flush()
            time.sleep(0.4)

    hub.faults[WEIGHTS] = slowly
    with pytest.raises(CheckpointError, match="lack 21"):  # it has arrived, and is not the model's
        hub_module.checkpoint_tensors(download(REPO, progress=False, timeout=2))
        from minillm.transformer.model import Llama

        Llama.from_folder(download(REPO, progress=False))


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_a_timeout_is_a_number_of_seconds(timeout):
    with pytest.raises(CheckpointError, match="expected a number of seconds"):
        download(REPO, timeout=timeout)


# ---- the parts -------------------------------------------------------------------------------------------------------


class Response:
    def __init__(self, status: int, **headers: str):
        self.status_code, self.headers = status, headers


def failed(status: int, **headers: str) -> Exception:
    problem = OSError("the request failed")
    problem.response = Response(status, **headers)
    return problem


def test_the_reason_is_found_behind_the_error_that_hides_it():
    """huggingface_hub says "cannot be found in the cache" for whatever the hub answered; the cause is behind it."""
    hidden = ValueError("not in the cache")
    hidden.__cause__ = failed(503)
    assert reason(hidden, REPO, None, "x") == refused(503, None) and "503" in refused(503, None)
    hidden.__cause__.__context__ = hidden  # a circle ends
    assert list(causes(hidden)) == [hidden, hidden.__cause__]


@pytest.mark.parametrize(("problem", "wanted", "said"), [
    (OSError(errno.ENOSPC, "No space left on device"), "x", "cannot be written to the cache (No space left on device)"),
    (failed(429, **{"Retry-After": "30"}), "x", "try again in 30 seconds"),
    (failed(404), "a.safetensors", "has no a.safetensors, which model.safetensors.index.json names"),
    (failed(404), FILE_LIST, "status 404"),
    (json.JSONDecodeError("x", "y", 0), "config.json", "no JSON, expected config.json"),
    (KeyError("id"), FILE_LIST, "JSON of another kind, expected its list of files"),
    (TimeoutError("timed out"), "config.json", "does not answer, expected config.json"),
    (ConnectionResetError("reset by peer"), "a", "broke off the connection, expected a"),
    (OSError("Consistency check failed: file should be of size 3"), "a", "only a part of a"),
    (errors.LocalEntryNotFoundError("no"), "a", "cannot be reached, and the cache holds no complete copy"),
    (RuntimeError("a\n b" * 500), "a", "cannot be downloaded (a b"),
    (RuntimeError(), "a", "cannot be downloaded (RuntimeError)"),
])  # fmt: skip
def test_each_kind_of_error_has_its_own_reason(problem, wanted, said, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    found = reason(problem, REPO, None, wanted)
    assert said in found and "\n" not in found and len(found) < 400


def output(*lines: dict) -> object:
    """What a process writes to its pipe; it then goes on without a word."""
    reading, writing = os.pipe()
    os.write(writing, b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    return os.fdopen(reading, "rb"), writing


@pytest.mark.parametrize(("lines", "said"), [
    ([{"sign": "started"}], "sent nothing more: given up after 0.1 seconds"),
    ([{"sign": "started"}, {"waits": "HTTP Error 429 thrown"}, {"waits": "Rate limited. Waiting 86401.0s"}],
     "asks to wait 86401.0 seconds, with status 429"),
    ([{"sign": "started"}, {"waits": "HTTP Error 502 thrown"}, {"waits": "Retrying in 1s"}], "status 502"),
    ([{"sign": "started"}, {"waits": "HTTP Error 502 thrown"}, {"sign": "bytes"}], "sent nothing more"),
    ([{"sign": "started"}, {"waits": "something else"}], "'something else'"),
    ([{"error": "org/x: a sentence"}], "org/x: a sentence"),
])  # fmt: skip
def test_silence_is_told_with_the_last_words(lines, said):
    reading, writing = output(*lines)
    with pytest.raises(CheckpointError) as refusal:
        hub_module._end_of(reading, "org/x", 0.1)
    assert said in str(refusal.value)
    os.close(writing)


def test_a_process_that_ends_without_a_word_is_an_error():
    reading, writing = output({"sign": "started"})
    os.close(writing)
    with pytest.raises(CheckpointError, match="org/x: the process that downloads has ended"):
        hub_module._end_of(reading, "org/x", 9)


def test_the_folder_is_what_the_process_says():
    reading, writing = output({"sign": "started"}, {"sign": "bytes"}, {"folder": "/a/\udcff"})
    assert hub_module._end_of(reading, "org/x", 9) == "/a/\udcff"
    os.close(writing)


def test_a_broken_file_goes_out_of_the_cache_with_its_blob_and_the_list_of_files(tmp_path):
    snapshot = hostile.hub_cache(tmp_path)
    trees = snapshot.parents[1] / "trees" / f"{snapshot.name}.json"
    trees.parent.mkdir()
    trees.touch()
    for name in ("config.json", "model.safetensors"):
        check_content(snapshot / name, REPO)
        blob = Path(os.path.realpath(snapshot / name))
        blob.write_bytes(HTML)
        with pytest.raises(CheckpointError, match=f"what the hub sent as {name} cannot be used: is a web page"):
            check_content(snapshot / name, REPO)
        assert not blob.exists() and not os.path.lexists(snapshot / name) and not trees.exists()


def test_the_files_of_the_weights_are_bare_names(tmp_path):
    assert weight_files(tmp_path) == ["model.safetensors"]
    hostile.write_index(tmp_path, {"a": "b.safetensors", "c": "../d.safetensors", "e": 3, "f": "g.bin"})
    assert weight_files(tmp_path) == ["b.safetensors"]
