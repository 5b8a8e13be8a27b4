import os

import pytest

from minillm.prefetch.reader import cached_share


@pytest.fixture
def cold_disk(tmp_path):
    """Skips where a file that is dropped from the system's cache stays in it: tmpfs keeps its pages."""
    control = tmp_path / "control"
    control.write_bytes(bytes(1 << 20))
    with open(control, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached_share(control) > 0:
        pytest.skip("this file system keeps its pages in memory")
