"""What the operating system knows: its counters, what is in its cache, and a limit that really limits."""

import ctypes
import subprocess
import sys

import pytest

from minillm.errors import BundleError, MinillmError
from minillm.prefetch.system import Unsupported, cached_share, limit_memory, system_reads

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's own counters and limits")


@linux
def test_the_systems_count_leaves_out_its_own_reading(tmp_path):
    (tmp_path / "file").write_bytes(bytes(1000))
    before = system_reads()
    (tmp_path / "file").read_bytes()
    after = system_reads()
    assert after.given - before.given - before.itself == 1000 and after.disk >= before.disk


@linux
def test_what_was_just_written_is_in_the_cache_and_an_empty_file_has_no_pages(tmp_path):
    (tmp_path / "file").write_bytes(bytes(100_000))
    assert cached_share(tmp_path / "file") == 1
    (tmp_path / "empty").touch()
    assert cached_share(tmp_path / "empty") == 0
    with pytest.raises(BundleError, match="absent"):
        cached_share(tmp_path / "absent")


def test_a_system_without_the_calls_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    with pytest.raises(Unsupported, match="has no mincore"):
        cached_share(tmp_path)
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(MinillmError, match="darwin: keeps no limit"):
        limit_memory(1)


@linux
def test_beyond_the_limit_there_is_no_memory_and_below_it_there_is():
    child = """
import numpy as np
from minillm.prefetch.system import limit_memory
limit_memory(50)
print(np.ones(20_000_000 // 8).sum())
try:
    np.ones(100_000_000 // 8)
except MemoryError:
    print("no more")
"""
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["2500000.0", "no more"]
