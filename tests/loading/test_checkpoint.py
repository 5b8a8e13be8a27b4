"""Weights arrive exactly as stored, under Llama's names, without a second copy in memory."""

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import hostile
import numpy as np
import pytest
from hostile import CONFIG, EMBED, HEAD, PHI3, changed, tiny_tensors, write_folder
from safetensors import safe_open
from safetensors.numpy import load_file

from minillm.loading.checkpoint import checkpoint_tensors, load_weights, split_fused
from minillm.loading.config import ModelConfig


def load(folder: Path, dtype=np.float32) -> dict[str, np.ndarray]:
    return load_weights(folder, ModelConfig.from_folder(folder), dtype)


def equal(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert np.array_equal(ours[name], array), name


@pytest.mark.parametrize("shards", [1, 2, 5])
@pytest.mark.parametrize("stored", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_loads_every_dtype_from_one_file_and_from_shards(shards, stored, dtype, tmp_path):
    tensors = {name: np.round(array * 8) for name, array in tiny_tensors().items()}  # exact in all three
    weights = load(write_folder(tmp_path, tensors, shards=shards, dtype=stored), dtype)
    equal(weights, tensors)
    for w in weights.values():
        assert w.dtype == dtype and w.flags.c_contiguous and w.flags.aligned and not w.flags.writeable
        assert type(w) is np.ndarray


def test_reads_what_the_library_reads(tmp_path):
    write_folder(tmp_path)
    equal(load(tmp_path), load_file(tmp_path / "model.safetensors"))
    infos = checkpoint_tensors(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert {name: list(info.shape) for name, info in infos.items()} == {
            name: file.get_slice(name).get_shape()
            for name in file.keys()  # noqa: SIM118
        }
    assert sum(info.nbytes for info in infos.values()) == sum(a.nbytes for a in tiny_tensors().values())


def test_float32_is_mapped_and_not_copied(tmp_path):
    """The arrays lie in memory at the distances they have in the file."""
    folder = write_folder(tmp_path)
    weights, infos = load(folder), checkpoint_tensors(folder)
    starts = {w.__array_interface__["data"][0] - infos[name].offset for name, w in weights.items()}
    assert len(starts) == 1


def test_unaligned_arrays_are_right_and_aligned(tmp_path):
    folder = write_folder(tmp_path)
    raw = (folder / "model.safetensors").read_bytes()
    n = int.from_bytes(raw[:8], "little")
    for spaces in range(1, 5):
        (folder / "model.safetensors").write_bytes(hostile.pack(raw[8 : 8 + n] + b" " * spaces, raw[8 + n :]))
        weights = load(folder)
        equal(weights, tiny_tensors())
        assert all(w.flags.aligned for w in weights.values())


def test_phi3_s_fused_matrices_come_apart_as_views(tmp_path):
    plain = tiny_tensors()
    fused = {name: w for name, w in plain.items() if not any(f".{part}_proj" in name for part in
             ("q", "k", "v", "gate", "up"))}  # fmt: skip
    for i in range(2):
        attn, mlp = f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
        fused[attn + "qkv_proj.weight"] = np.concatenate([plain[f"{attn}{p}_proj.weight"] for p in "qkv"])
        fused[mlp + "gate_up_proj.weight"] = np.concatenate([plain[f"{mlp}{p}_proj.weight"] for p in ("gate", "up")])
    folder = write_folder(tmp_path, fused, changed(PHI3))
    equal(load(folder), plain)
    equal(load(folder, np.float64), plain)
    parts = split_fused(fused, ModelConfig.from_folder(folder))
    whole = fused["model.layers.1.self_attn.qkv_proj.weight"]
    assert all(np.shares_memory(whole, parts[f"model.layers.1.self_attn.{p}_proj.weight"]) for p in "qkv")


def test_a_tied_head_may_be_stored_in_another_dtype(tmp_path):
    tensors = {name: np.round(array * 8) for name, array in tiny_tensors().items()}
    tensors |= {HEAD: hostile.encode(tensors[EMBED], "BF16")}
    folder = write_folder(tmp_path, tensors, changed({"tie_word_embeddings": True}))
    assert HEAD not in load(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    assert np.array_equal(load(folder)[HEAD], load(folder)[EMBED])


def medium(folder: Path, dtype: str) -> tuple[Path, int]:
    """About 20 million numbers; returns how many."""
    fields = changed({"vocab_size": 8000, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 3})
    shapes = ModelConfig.from_dict(fields).tensor_shapes()
    ones = {name: hostile.encode(np.ones(shape, np.float32), dtype) for name, shape in shapes.items()}
    return write_folder(folder, ones, fields), sum(int(np.prod(shape)) for shape in shapes.values())


def test_memory_stays_close_to_the_weights(tmp_path):
    """BF16 to float32: at most a quarter more than the result; float32 to float32: nothing is allocated."""
    for stored, dtype, limit in [("BF16", np.float32, 1.25), ("F32", np.float32, 0.01), ("F32", np.float64, 1.25)]:
        folder, count = medium(tmp_path / f"{stored}{dtype.__name__}", stored)
        tracemalloc.start()
        weights = load(folder, dtype)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert weights[EMBED].dtype == dtype
        assert peak <= limit * count * np.dtype(dtype).itemsize, (stored, dtype, peak)


RESIDENT = """
import sys
from pathlib import Path
from minillm.loading.checkpoint import load_weights
from minillm.loading.config import ModelConfig
config = ModelConfig.from_folder(sys.argv[1])
def peak():  # ru_maxrss would also count the parent's memory at the time of the fork
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))
before = peak()
weights = load_weights(sys.argv[1], config)
print(peak() - before)
print(*(name for name in ("safetensors", "tqdm", "huggingface_hub", "tokenizers") if name in sys.modules))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_resident_memory_stays_close_to_the_weights_and_nothing_heavy_is_imported(tmp_path):
    folder, count = medium(tmp_path, "BF16")
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OPENBLAS_NUM_THREADS": "1"}
    out = subprocess.run([sys.executable, "-c", RESIDENT, str(folder)], env=env, capture_output=True, text=True,
                         check=True).stdout.splitlines()  # fmt: skip
    assert 0.9 * 4 * count < int(out[0]) * 1024 < 1.25 * 4 * count
    assert out[1] == ""


def test_the_weights_of_a_folder_do_not_depend_on_the_order_in_the_file(tmp_path):
    backwards = dict(reversed(tiny_tensors().items()))
    weights = load(write_folder(tmp_path, backwards))
    equal(weights, backwards)
    assert list(weights) == list(ModelConfig.from_dict(CONFIG).tensor_shapes())


FAMILIES = {
    "Llama": {"attention_bias": True, "mlp_bias": True},
    "Mistral": {"head_dim": 6},
    "Qwen2": {"tie_word_embeddings": True},
    "Qwen3": {"head_dim": 6},
    "Phi3": {},
}


@pytest.mark.parity
@pytest.mark.parametrize("shard", ["5GB", "5KB"])
@pytest.mark.parametrize("name", FAMILIES)
def test_loads_what_transformers_saves(name, shard, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    fields = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "pad_token_id": 0,
              "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(
        getattr(transformers, f"{name}Config")(**fields, **FAMILIES[name])
    )
    for stored in (torch.float32, torch.bfloat16, torch.float16):
        folder = tmp_path / str(stored)
        model.to(stored).save_pretrained(folder, max_shard_size=shard)
        assert (folder / "model.safetensors.index.json").exists() == (shard == "5KB")
        weights = load(folder)
        state = {key: t.float().numpy() for key, t in model.state_dict().items()}
        if name == "Qwen2":
            del state["lm_head.weight"]
        if name == "Phi3":
            for key in [key for key in state if "qkv_proj" in key or "gate_up_proj" in key]:
                fused = state.pop(key)
                q, k, v = fused[:16], fused[16:24], fused[24:]
                parts = zip(("q", "k", "v"), (q, k, v), strict=True)
                if "gate_up" in key:
                    parts = zip(("gate", "up"), np.split(fused, 2), strict=True)
                stem = key.rsplit(".", 2)[0]
                state |= {f"{stem}.{part}_proj.weight": rows for part, rows in parts}
        equal(weights, state)


@pytest.mark.shared
def test_loads_the_published_model(shared):
    folder = shared / "models" / "tinystories-656k"
    weights = load(folder)
    theirs = load_file(folder / "model.safetensors")
    theirs[EMBED] = theirs.pop(HEAD)  # tied, and the head is the one that is stored
    equal(weights, theirs)
