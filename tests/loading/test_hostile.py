"""Every broken or hostile file of tests/hostile.py is refused in one sentence that names the file and the culprit."""

import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import hostile
import numpy as np
import pytest
from hostile import (
    ACCEPTED_FILES,
    ACCEPTED_FOLDERS,
    HARMLESS_CONFIGS,
    HARMLESS_QWEN,
    REFUSED_CONFIG_FILES,
    REFUSED_CONFIGS,
    REFUSED_FILES,
    REFUSED_FOLDERS,
)
from safetensors import SafetensorError, deserialize

from minillm.errors import CheckpointError, ConfigError, MinillmError
from minillm.loading.checkpoint import checkpoint_tensors, load_weights
from minillm.loading.config import ModelConfig
from minillm.loading.tensors import read_header, read_tensor


def one_sentence(error: Exception, *named: str) -> None:
    """The message is one short line, safe to print, and names these."""
    text = str(error)
    assert "\n" not in text and text.isprintable() and len(text) < 600, text
    for name in named:
        assert name in text, f"{name!r} not in {text!r}"


@pytest.fixture(scope="module")
def can_link(tmp_path_factory) -> bool:
    folder = tmp_path_factory.mktemp("links")
    try:
        os.symlink(folder, folder / "link")
    except OSError:  # Windows without the developer mode
        return False
    return True


@pytest.mark.parametrize("case", REFUSED_FILES)
def test_refuses_the_file(case, tmp_path):
    raw, named = REFUSED_FILES[case]
    hostile.write_folder(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError) as refusal:
        read_header(path)
    one_sentence(refusal.value, "model.safetensors", named)
    with pytest.raises(CheckpointError):
        load_weights(tmp_path, ModelConfig.from_folder(tmp_path))


@pytest.mark.parametrize("case", ACCEPTED_FILES)
def test_accepts_the_header_but_not_for_a_model(case, tmp_path):
    hostile.write_folder(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(ACCEPTED_FILES[case])
    for info in read_header(path).values():
        if info.name == "w":
            theirs = np.frombuffer(dict(deserialize(ACCEPTED_FILES[case]))["w"]["data"], "<f4").reshape(info.shape)
            assert np.array_equal(read_tensor(info, np.float32), theirs)
    with pytest.raises(CheckpointError) as refusal:
        load_weights(tmp_path, ModelConfig.from_folder(tmp_path))
    one_sentence(refusal.value, str(tmp_path))


@pytest.mark.parametrize("path", ["absent.safetensors", "."])
def test_refuses_a_missing_file_and_a_directory(path, tmp_path):
    with pytest.raises(CheckpointError) as refusal:
        read_header(tmp_path / path)
    one_sentence(refusal.value, str(tmp_path / path))
    for folder in (tmp_path / path, tmp_path / "no" / "where"):
        with pytest.raises(CheckpointError) as refusal:
            checkpoint_tensors(folder)
        one_sentence(refusal.value, str(folder))


def test_refuses_whatever_the_library_refuses():
    """No file of the lists, and none of several hundred with flipped bytes, passes here but not there."""
    for case, raw in ACCEPTED_FILES.items():
        deserialize(raw)
        assert case
    refused_there = 0
    for raw, _ in REFUSED_FILES.values():
        try:
            deserialize(raw)
        except SafetensorError:
            refused_there += 1
    assert refused_there > 30  # the rest is what it accepts and we do not


def test_flipped_bytes_give_an_error_or_the_library_s_arrays(tmp_path):
    header = {"__metadata__": {"format": "pt"}, "a": hostile.entry(), "bb": hostile.entry("F16", [4], 16, 24)}
    good = hostile.pack(header, bytes(range(64, 88)))
    rng = np.random.default_rng(0)
    path = tmp_path / "flipped.safetensors"
    both = 0
    for _ in range(800):
        raw = bytearray(good)
        for at in rng.integers(0, len(good) - 24, rng.integers(1, 3)):
            raw[at] = rng.integers(0, 256) if rng.random() < 0.5 else rng.choice(list(b'0123456789-"[]{},:F'))
        path.write_bytes(raw)
        try:
            theirs = {name: (t["shape"], bytes(t["data"])) for name, t in deserialize(bytes(raw))}
        except SafetensorError:
            theirs = None
        try:
            ours = read_header(path)
        except MinillmError as refusal:
            one_sentence(refusal, "flipped.safetensors")
            continue
        assert theirs is not None, bytes(raw)
        assert ours.keys() == theirs.keys()
        for name, info in ours.items():
            shape, data = theirs[name]
            stored = {"F32": "<f4", "F16": "<f2"}.get(info.dtype)
            if stored:
                values = np.frombuffer(data, stored).reshape(shape).astype(np.float32)
                assert np.array_equal(read_tensor(info, np.float32), values)
        both += 1
    assert both > 20


@pytest.mark.parametrize("case", REFUSED_FOLDERS)
def test_refuses_the_folder(case, tmp_path, can_link):
    if case in hostile.NEED_LINKS and not can_link:
        pytest.skip("this system makes no symbolic links")
    build, named = REFUSED_FOLDERS[case]
    folder = build(tmp_path / "model")
    config = ModelConfig.from_folder(folder)
    with pytest.raises(CheckpointError) as refusal:
        load_weights(folder, config)
    one_sentence(refusal.value, str(folder), named)


@pytest.mark.parametrize("case", ACCEPTED_FOLDERS)
def test_accepts_the_folder(case, tmp_path):
    folder = ACCEPTED_FOLDERS[case](tmp_path / "model")
    config = ModelConfig.from_folder(folder)
    weights = load_weights(folder, config)
    assert {name: w.shape for name, w in weights.items()} == hostile.tiny_shapes(tied=config.tie_word_embeddings)
    assert all(w.dtype == np.float32 and not w.flags.writeable for w in weights.values())


def test_accepts_the_hub_cache_s_own_links(tmp_path, can_link):
    if not can_link:
        pytest.skip("this system makes no symbolic links")
    snapshot = hostile.hub_cache(tmp_path)
    weights = load_weights(snapshot, ModelConfig.from_folder(snapshot))
    assert np.array_equal(weights[hostile.Q1], hostile.tiny_tensors()[hostile.Q1])


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_refuses_a_config_that_is_a_link_out(name, tmp_path, can_link):
    if not can_link:
        pytest.skip("this system makes no symbolic links")
    folder = hostile.write_folder(tmp_path / "model")
    (tmp_path / "outside.json").write_text(json.dumps(hostile.CONFIG), encoding="utf-8")
    (folder / name).unlink(missing_ok=True)
    os.symlink(tmp_path / "outside.json", folder / name)
    with pytest.raises(ConfigError, match="link out of its folder"):
        ModelConfig.from_folder(folder)


def test_a_wrong_total_size_is_a_warning(tmp_path):
    folder = hostile.write_folder(tmp_path, shards=2)
    index = folder / "model.safetensors.index.json"
    fields = json.loads(index.read_text(encoding="utf-8"))
    checkpoint_tensors(folder)  # the right size: no warning (pytest would show it)
    for wrong in (1, "many"):
        fields["metadata"]["total_size"] = wrong
        index.write_text(json.dumps(fields), encoding="utf-8")
        with pytest.warns(UserWarning, match="total_size"):
            checkpoint_tensors(folder)


@pytest.mark.parametrize("case", REFUSED_CONFIGS)
def test_refuses_the_config(case):
    changes, named = REFUSED_CONFIGS[case]
    with pytest.raises(ConfigError) as refusal:
        ModelConfig.from_dict(hostile.changed(changes), "folder/config.json")
    one_sentence(refusal.value, "folder/config.json: ", named, "expected")


@pytest.mark.parametrize("case", REFUSED_CONFIG_FILES)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_refuses_the_config_file(case, name, tmp_path):
    raw, named = REFUSED_CONFIG_FILES[case]
    hostile.write_folder(tmp_path)
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ConfigError) as refusal:
        ModelConfig.from_folder(tmp_path)
    one_sentence(refusal.value, name, named)


def test_refuses_a_missing_config(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match=r"config\.json"):
            ModelConfig.from_folder(folder)


@pytest.mark.parametrize("case", HARMLESS_CONFIGS)
def test_a_harmless_difference_changes_nothing(case, recwarn):
    changes, noted = HARMLESS_CONFIGS[case]
    plain, found = (ModelConfig.from_dict(hostile.changed(fields), "x/config.json") for fields in ({}, changes))
    if "bos" in case:
        assert found.bos_token_id is None
        found = replace(found, bos_token_id=plain.bos_token_id)
    assert found == plain
    assert len(recwarn) == (noted is not None) and all(noted in str(note.message) for note in recwarn)


@pytest.mark.parametrize("case", HARMLESS_QWEN)
def test_a_field_that_is_not_used_may_hold_anything(case):
    assert ModelConfig.from_dict(hostile.changed(HARMLESS_QWEN[case])).sliding_windows == (None, None)


def test_eos_ids_of_generation_config_outside_the_vocabulary_are_left_out_with_a_note(tmp_path):
    hostile.write_folder(tmp_path)
    for text, left in (("[3, 128009]", (3,)), ("128009", (2,))):  # none is left: then those of config.json
        (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": {text}}}', encoding="utf-8")
        with pytest.warns(UserWarning, match=r"generation_config\.json: eos_token_id holds the id 128009"):
            assert ModelConfig.from_folder(tmp_path).eos_token_ids == left


def test_refuses_a_dtype_that_is_not_computed_in(tmp_path):
    folder = hostile.write_folder(tmp_path)
    with pytest.raises(CheckpointError, match="float16, expected float32 or float64"):
        load_weights(folder, ModelConfig.from_folder(folder), np.float16)


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from minillm.errors import CheckpointError
from minillm.loading.checkpoint import load_weights
from minillm.loading.config import ModelConfig
now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 50_000_000,) * 2)
for path in sys.argv[1:]:
    try:
        load_weights(path, ModelConfig.from_folder(path))
    except CheckpointError as refusal:
        print(refusal)
    else:
        sys.exit("accepted " + path)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_AS and /proc")
def test_a_hostile_file_allocates_nothing(tmp_path):
    """With 50 MB of address space left, files that claim 100 MB to 8 EB are refused for what they are."""
    claims = {
        "header": struct.pack("<Q", 16_000_001),
        "long header": struct.pack("<Q", 2**62),
        "shape": hostile.pack({hostile.EMBED: hostile.entry(shape=(2**21, 2**16), end=2**39)}),
        "index": b" ",
        "config": None,
    }
    for name, raw in claims.items():
        folder = hostile.write_folder(tmp_path / name)
        if raw is None:  # a small file, and a config that wants 512 GiB
            fields = hostile.changed({"vocab_size": 2**21, "hidden_size": 2**16, "head_dim": 2})
            (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
            continue
        if name == "index":
            (folder / "model.safetensors").unlink()
        with open(folder / ("model.safetensors" + ".index.json" * (name == "index")), "wb") as file:
            file.write(raw)
            if name in ("header", "index"):
                file.truncate(200_000_000)  # sparse: the claim is true, only too large
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, *(str(tmp_path / name) for name in claims)],
        capture_output=True, text=True, encoding="utf-8", env=env, timeout=60,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) == len(claims), run.stdout
    for sign in ("16000001", str(2**62), "arrays end at byte", "at most 10,000,000", "expected [2097152, 65536]"):
        assert sign in run.stdout
