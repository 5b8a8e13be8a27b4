"""A file is written whole or not at all, and what the system refuses becomes one sentence."""

import errno
import os
import subprocess
import sys
import threading

import pytest

from minillm.errors import BundleError, MinillmError, TraceError
from minillm.files import file_errors, locked, read_bytes, read_text, whole_file, whole_folder


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


def test_a_users_own_file_of_a_temporary_name_stays_and_the_mode_is_kept(tmp_path):
    path = tmp_path / "name.json"
    mine = {tmp_path / name: name for name in ("name.json.partial", f".name.json.{os.getpid()}.partial")}
    for own, text in mine.items():
        own.write_text(text, encoding="utf-8")
    path.write_text("old", encoding="utf-8")
    path.chmod(0o640)
    with whole_file(path, MinillmError) as first, whole_file(path, MinillmError) as second:  # two runs at once
        assert first != second
        first.write_text("first", encoding="utf-8")
        second.write_text("second", encoding="utf-8")
    assert path.read_text(encoding="utf-8") == "first" and path.stat().st_mode & 0o777 == 0o640
    assert [own.read_text(encoding="utf-8") for own in mine] == list(mine.values())
    assert len(os.listdir(tmp_path)) == 3


def test_a_new_file_has_the_mode_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    with whole_file(tmp_path / "ours", MinillmError) as beside:
        beside.write_bytes(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path):
    (tmp_path / "other").write_text("mine", encoding="utf-8")
    (tmp_path / "link").symlink_to(tmp_path / "other")
    with whole_file(tmp_path / "link", MinillmError) as beside:
        beside.write_text("ours", encoding="utf-8")
    assert (tmp_path / "other").read_text(encoding="utf-8") == "mine"
    assert not (tmp_path / "link").is_symlink() and (tmp_path / "link").read_text(encoding="utf-8") == "ours"


def test_what_is_no_regular_file_of_that_size_is_refused_before_it_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(bytes(11))
    (tmp_path / "bad.txt").write_bytes(b"ab\xff")
    for path, found in (
        (tmp_path / "pipe", "is a pipe"), ("/dev/zero", "is a device"), (tmp_path, "is a folder"),
        (tmp_path / "large", "has 11 bytes, expected at most 10"), ("/proc/self/maps", "has more than 10 bytes"),
        (tmp_path / "absent", "is missing"), ("zero\0byte", "zero byte"),
    ):  # fmt: skip
        with pytest.raises(TraceError, match=found):
            read_bytes(path, TraceError, 10)
    assert read_bytes(tmp_path / "large", TraceError, 11) == bytes(11)
    with pytest.raises(MinillmError, match=r"bad\.txt: byte 2 is not UTF-8"):
        read_text(tmp_path / "bad.txt")
    (tmp_path / "good.txt").write_bytes("\ufeffgood ü".encode())
    assert read_text(tmp_path / "good.txt") == "good ü"


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder"
    with pytest.raises(KeyboardInterrupt), whole_folder(path, BundleError) as beside:
        (beside / "half").write_bytes(b"")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []
    with whole_folder(path, BundleError) as beside:
        (beside / "file").write_bytes(b"whole")
        assert not path.exists()
    (tmp_path / "plain").mkdir()
    assert (path / "file").read_bytes() == b"whole" and path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    with pytest.raises(BundleError, match="folder: exists already"), whole_folder(path, BundleError):
        raise AssertionError


# ---- one process at a time -------------------------------------------------------------------------------------------

HOLDER = """
import sys
from minillm.errors import MinillmError
from minillm.files import locked
with locked(sys.argv[1], MinillmError):
    print("locked", flush=True)
    sys.stdin.readline()
"""


def held(path):
    """Another process that has the lock, until a line is written to it."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "locked\n"
    return child


def test_a_lock_is_waited_for_and_leaves_nothing_behind(tmp_path):
    path, seen = tmp_path / "rows.csv", []
    child = held(path)

    def take():
        with locked(path, MinillmError):
            seen.append("mine")

    waiting = threading.Thread(target=take)
    waiting.start()
    waiting.join(0.2)
    assert seen == []
    child.communicate("\n")
    waiting.join(20)
    assert seen == ["mine"] and list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_no_lock(tmp_path):
    child = held(tmp_path / "rows.csv")
    child.kill()
    child.communicate()
    with locked(tmp_path / "rows.csv", MinillmError):  # at once
        pass
    assert list(tmp_path.iterdir()) == []


def test_where_a_file_system_knows_no_locks_nobody_waits(tmp_path, monkeypatch):
    def unknown(handle):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("minillm.files._wait_for_lock", unknown)
    with locked(tmp_path / "rows.csv", MinillmError), locked(tmp_path / "rows.csv", MinillmError):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_lock_follows_no_link_and_removes_no_file_of_the_users(tmp_path):
    theirs = tmp_path / ".rows.csv.lock"
    theirs.write_text("mine")
    with locked(tmp_path / "rows.csv", MinillmError):
        pass
    assert theirs.read_text() == "mine"
    theirs.unlink()
    theirs.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MinillmError, match="rows.csv: cannot be written"):
        with locked(tmp_path / "rows.csv", MinillmError):
            pass
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(MinillmError, match="cannot be written"):
        with locked(tmp_path / "absent" / "rows.csv", MinillmError):
            pass
