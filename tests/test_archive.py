"""Archives of arrays: written whole, and refused before they are unpacked where they are broken, pickled or a bomb."""

import io
import struct
import warnings
import zipfile
from pathlib import Path

import fuzz
import numpy as np
import pytest

from minillm.archive import RATIO, UNPACKED, load_archive, load_arrays, save_arrays
from minillm.errors import TraceError

ARRAYS = {"embed": np.arange(6.0).reshape(2, 3), "mask": np.array([True]), "a/b": np.float32(3)}
ARRAYS |= {"none": np.ones((0, 4))}


def test_arrays_and_comment_are_read_back_as_they_were(tmp_path):
    for comment in (b"", b"about"):
        save_arrays(tmp_path / "a.npz", ARRAYS, comment)
        found, said = load_archive(tmp_path / "a.npz")
        assert said == comment and list(found) == list(ARRAYS) and list(tmp_path.iterdir()) == [tmp_path / "a.npz"]
        for name, array in ARRAYS.items():
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape) and (found[name] == array).all()
    np.savez_compressed(tmp_path / "b.npz", turned=np.asfortranarray(ARRAYS["embed"]))
    assert (load_arrays(tmp_path / "b.npz")["turned"] == ARRAYS["embed"]).all()


class Pickled:
    """Whoever unpickles it creates a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def broken_files(folder: Path):
    """(what is wrong, file) pairs."""
    good = folder / "good.npz"
    np.savez_compressed(good, embed=np.arange(400.0))
    raw = good.read_bytes()
    flipped = bytearray(raw)
    for i in range(150, 170):  # inside the compressed numbers
        flipped[i] ^= 0xFF
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }"
    huge = b"\x93NUMPY\x01\x00v\x00" + header.ljust(117) + b"\n"
    pickled = np.array([Pickled(folder / "executed")], dtype=object)
    yield "empty", b""
    yield "text", b"not a zip file at all"
    yield "cut short", raw[: len(raw) // 2]
    yield "flipped", bytes(flipped)
    for name, write in (
        ("single", lambda path: np.save(path.open("wb"), np.ones(3))),
        ("pickle", lambda path: np.savez(path, embed=pickled)),
        ("words", lambda path: np.savez(path, embed=np.array(["a"]))),
        ("complex", lambda path: np.savez(path, embed=np.array([1j]))),
        ("huge", lambda path: zipfile.ZipFile(path, "w").writestr("embed.npy", huge)),
        ("other files", lambda path: zipfile.ZipFile(path, "w").writestr("readme.txt", "hello")),
    ):
        path = folder / f"{name}.npz"
        write(path)
        yield name, path.read_bytes()


def test_broken_files_are_refused_in_one_sentence_that_names_the_file(tmp_path):
    (tmp_path / "sources").mkdir()
    for name, raw in broken_files(tmp_path / "sources"):
        path = tmp_path / "broken.npz"
        path.write_bytes(raw)
        with pytest.raises(TraceError) as caught:
            load_arrays(path)
        text = str(caught.value)
        assert "broken.npz" in text and "\n" not in text and len(text) < 500, (name, text)
    assert not (tmp_path / "sources" / "executed").exists()
    with pytest.raises(TraceError, match="absent.npz: is missing"):
        load_arrays(tmp_path / "absent.npz")
    with pytest.raises(TraceError, match="sources: is a folder"):
        load_arrays(tmp_path / "sources")


def archive_of(path: Path, members: list[tuple[str, bytes]], kind: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name that stands twice
        for name, raw in members:
            archive.writestr(name, raw)
    return path


def npy(shape: tuple, dtype: str = "<f8", data: bytes = b"") -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": dtype, "fortran_order": False, "shape": shape})
    return out.getvalue() + data


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([("x.npy", npy((1,), data=bytes(8))), ("x.npy", npy((1,), data=bytes(8)))], "'x.npy' twice"),
        ([("x.npy", npy((2,), data=bytes(8)))], "'x.npy' has 8 bytes, expected the bytes of float64.2."),
        ([("x.npy", npy((1,), data=bytes(9)))], "'x.npy' has 9 bytes"),
        ([("x.npy", npy((-1, -8), data=bytes(64)))], "'x.npy' has 64 bytes, expected the bytes of float64.-1, -8."),
        ([("x.npy", npy((2**40, 2**40)))], "'x.npy' has 0 bytes"),
        ([("x.npy", npy((1,), "<U9999999"))], "'x.npy' is <U9999999, expected numbers"),
        ([("x.npy", npy((1,), "|O", b"cos"))], "'x.npy' is object, expected numbers"),
        ([("x.npy", b"\x93NUMPY\x03\x00" + struct.pack("<I", 4) + b"{}  ")], r"\.npy version \(3, 0\)"),
        ([("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", 40_000) + b" " * 40_000)], "not an .npz file of plain"),
        ([("x.txt", b"")], "holds 'x.txt', expected only arrays"),
        ([("x/", b"")], "holds 'x/'"),
    ],
)
def test_a_member_that_is_not_what_it_says_is_named(tmp_path, members, says):
    path = archive_of(tmp_path / "a.npz", members)
    with pytest.raises(TraceError, match=f"a.npz.*{says}"):
        load_arrays(path)


def test_an_archive_whose_list_lost_members_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    save_arrays(path, {"x": np.ones(2), "y": np.ones(2)}, b"about")
    raw = bytearray(path.read_bytes())
    start = raw.rindex(b"PK\x05\x06")
    second = raw.rindex(b"PK\x01\x02")
    raw[start + 12 : start + 16] = (start - second).to_bytes(4, "little")  # the list is said to begin at the second
    raw[start + 16 : start + 20] = second.to_bytes(4, "little")
    path.write_bytes(raw)
    with pytest.raises(TraceError, match="a.npz: lists 1 arrays and ends with a count of 2"):
        load_arrays(path)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    zeros = bytes(1 << 20)
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(2):
            with archive.open(f"{number}.npy", "w", force_zip64=True) as file:
                file.write(npy((160 << 17,)))
                for _ in range(160):
                    file.write(zeros)
    assert path.stat().st_size < 1 << 20
    assert fuzz.memory_of(load_arrays, path) < 5e6
    with pytest.raises(TraceError, match=f"unpack to {(320 << 20) + 256:,} bytes, expected at most {UNPACKED:,}"):
        load_arrays(path)


def test_a_large_archive_may_unpack_to_more(tmp_path, monkeypatch):
    monkeypatch.setattr("minillm.archive.UNPACKED", 100)
    save_arrays(tmp_path / "a.npz", {"x": np.arange(1000.0)})
    assert len(load_arrays(tmp_path / "a.npz")["x"]) == 1000  # it is not packed at all
    np.savez_compressed(tmp_path / "b.npz", x=np.zeros(1 << 20))
    with pytest.raises(TraceError, match=f"at most {RATIO * (tmp_path / 'b.npz').stat().st_size:,}"):
        load_arrays(tmp_path / "b.npz")
