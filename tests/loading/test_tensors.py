"""One safetensors file: numbers arrive exactly as stored and are written whole or not at all; bfloat16 both ways."""

import os
from pathlib import Path

import hostile
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from minillm.errors import BundleError, CheckpointError
from minillm.loading import tensors as tensors_module
from minillm.loading.tensors import TensorInfo, read_header, read_tensor, save_tensors, to_bfloat16

# bits of a BF16 number -> its value, by hand: sign, 8 bits of exponent (bias 127), 7 bits of fraction
BF16 = {0x3F80: 1.0, 0xC000: -2.0, 0x3FC0: 1.5, 0x3F81: 1 + 2**-7, 0x0000: 0.0, 0x0001: 2.0**-133,
        0x807F: -127 * 2.0**-133, 0x0080: 2.0**-126, 0x7F7F: (2 - 2**-7) * 2.0**127}  # fmt: skip


F16 = {0x3C00: 1.0, 0xC000: -2.0, 0x3C01: 1 + 2**-10, 0x0001: 2.0**-24, 0x83FF: -1023 * 2.0**-24, 0x7BFF: 65504.0}


def one_file(path: Path, dtype: str, shape: list[int], raw: bytes) -> TensorInfo:
    path.write_bytes(hostile.pack_arrays({"w": (dtype, shape, raw)}))
    return read_header(path)["w"]


@pytest.mark.parametrize("stored, values", [("BF16", BF16), ("F16", F16)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_widening_is_exact(stored, values, dtype, tmp_path):
    info = one_file(tmp_path / "x", stored, [len(values)], np.array(list(values), "<u2").tobytes())
    array = read_tensor(info, dtype)
    assert array.dtype == dtype and array.tolist() == list(values.values())


def test_every_bf16_number_is_its_bits_shifted(tmp_path):
    bits = np.arange(2**16, dtype="<u2")
    finite = bits[(bits & 0x7F80) != 0x7F80]
    array = read_tensor(one_file(tmp_path / "x", "BF16", [finite.size], finite.tobytes()), np.float32)
    assert np.array_equal(array.view(np.uint32), finite.astype(np.uint32) << 16)


def test_every_f16_number_is_numpy_s(tmp_path):
    bits = np.arange(2**16, dtype="<u2")
    finite = bits[(bits & 0x7C00) != 0x7C00]
    array = read_tensor(one_file(tmp_path / "x", "F16", [256, finite.size // 256], finite.tobytes()), np.float64)
    assert np.array_equal(array.reshape(-1), finite.view("<f2"))


@pytest.mark.parametrize("stored", ["F32", "F16", "BF16"])
def test_pieces_fit_together(stored, tmp_path, monkeypatch):
    values = np.arange(1, 101, dtype=np.float32).reshape(4, 25)  # exact in all three
    info = one_file(tmp_path / "x", *hostile.encode(values, stored))
    for chunk in (1, 7, 99, 100, 101):
        monkeypatch.setattr(tensors_module, "NUMBERS_AT_ONCE", chunk)
        assert np.array_equal(read_tensor(info, np.float64), values)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path):
    info = one_file(tmp_path / "x", *hostile.encode(np.ones((4, 4)), "BF16"))
    os.truncate(tmp_path / "x", info.offset + 10)
    with pytest.raises(CheckpointError, match="ends inside tensor w"):
        read_tensor(info, np.float32)


def test_saved_tensors_come_back(tmp_path):
    """Also transposed, strided and Fortran-ordered ones, which safetensors 0.8.0 writes wrongly by itself."""
    a = np.arange(24, dtype=np.float32).reshape(4, 6)
    tensors = {"plain": a, "turned": a.T, "strided": a[::2, 1::2], "fortran": np.asfortranarray(a), "scalar": a[1, 1],
               "f16": a.astype(np.float16)}  # fmt: skip
    save_tensors(tmp_path / "x.safetensors", tensors, {"made": "here"})
    infos = read_header(tmp_path / "x.safetensors")
    for name, array in tensors.items():
        assert infos[name].shape == np.shape(array)
        assert np.array_equal(read_tensor(infos[name], np.float32), array), name
    with safe_open(tmp_path / "x.safetensors", "numpy") as file:
        assert file.metadata() == {"made": "here"}
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]  # nothing left beside it


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"w": np.ones(3, np.float32)})
    before = path.read_bytes()
    monkeypatch.setattr("safetensors.numpy.save_file", lambda tensors, path, metadata: save_file(
        {name: array + 1 for name, array in tensors.items()}, path))  # fmt: skip
    with pytest.raises(CheckpointError, match="not what was written"):
        save_tensors(path, {"w": np.ones(3, np.float32)})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_tensors(tmp_path / "nowhere" / "x.safetensors", {"w": np.ones(3, np.float32)})
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_bfloat16_is_the_nearest_and_ties_go_to_the_even_one():
    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, np.uint32)
    ties = np.arange(0x3F80, 0x3FA0, dtype=np.uint32) << 16 | 0x8000  # exactly between two neighbours
    values = np.concatenate([bits, ties, ties ^ 0x80000000, [0, 0x80000000]]).astype(np.uint32).view(np.float32)
    values = values[np.abs(values) < 3e38]  # also drops NaN
    found = to_bfloat16(values)
    low = values.view(np.uint32) >> 16
    below, above = ((low + step).astype(np.uint32) << 16 for step in (0, 1))
    below, above = (side.view(np.float32).astype(np.float64) for side in (below, above))
    down, up = np.abs(values - below), np.abs(above - values)
    expected = np.where(down < up, low, np.where(up < down, low + 1, low + (low & 1)))
    assert np.array_equal(found, expected)
    assert found.dtype == np.uint16


def test_a_weight_that_bfloat16_cannot_hold_is_refused():
    with pytest.raises(BundleError, match="3.39e38"):
        to_bfloat16(np.array([np.finfo(np.float32).max], np.float32))
