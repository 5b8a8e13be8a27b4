"""What the benchmarks of sparse FFNs share."""

import tempfile

import pytest

from minillm.bench import sparse as bench_sparse


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Little memory, and a folder for temporary files that can be looked into."""
    monkeypatch.setattr(bench_sparse, "TURN", 1)
    monkeypatch.setattr(bench_sparse, "largest_cache", lambda: 4096)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


@pytest.fixture
def disk(small, cold_disk):
    """A folder whose files leave the system's cache when they are told to."""
    return small
