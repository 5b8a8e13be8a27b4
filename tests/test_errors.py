"""A file is written whole or not at all, and what the system refuses becomes one sentence."""

import errno
import os

import pytest

from minillm.errors import BundleError, MinillmError, TraceError, file_errors, whole_file


def test_a_written_file_takes_its_name_only_after_the_block(tmp_path):
    path = tmp_path / "name.json"
    with whole_file(path, MinillmError) as beside:
        beside.write_text("new", encoding="utf-8")
        assert not path.exists() and beside.parent == tmp_path
    assert path.read_text(encoding="utf-8") == "new" and os.listdir(tmp_path) == ["name.json"]


def test_a_block_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "name.json"
    path.write_text("old", encoding="utf-8")
    for problem in (ZeroDivisionError(), KeyboardInterrupt()):
        with pytest.raises(type(problem)), whole_file(path, MinillmError) as beside:
            beside.write_text("half", encoding="utf-8")
            raise problem
    assert path.read_text(encoding="utf-8") == "old" and os.listdir(tmp_path) == ["name.json"]


@pytest.mark.parametrize("name", ["absent/name.json", ".", "folder", "x" * 300])
def test_a_name_that_cannot_be_written_is_the_callers_error_in_one_sentence(tmp_path, monkeypatch, name):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match="cannot be written") as caught, whole_file(name, BundleError) as beside:
        beside.write_bytes(b"")
    assert str(caught.value).startswith(name) and "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["folder"]


def test_only_what_the_system_refuses_is_turned_into_the_sentence():
    with pytest.raises(TraceError, match=r"^a\.npz: cannot be read \(No space left on device\)$"):
        with file_errors("a.npz", "read", TraceError):
            raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(TraceError, match=r"^a\.npz: cannot be read \(said without a number\)$"):
        with file_errors("a.npz", "read", TraceError):
            raise OSError("said without a number")
    with pytest.raises(ZeroDivisionError), file_errors("a.npz", "read", TraceError):
        raise ZeroDivisionError
