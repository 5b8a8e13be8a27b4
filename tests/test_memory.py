"""Freed memory is kept: the same large arrays, made again and again, cost no new pages."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import numpy as np
from minillm.memory import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "keep":
    keep_freed_memory()
def work():
    arrays = [np.ones(1 << 18) for _ in range(8)]  # 2 MB each
work()
before = faults()
for _ in range(10):
    work()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_large_arrays_that_are_made_again_cost_no_new_pages():
    def faults(mode: str) -> int:
        return int(subprocess.run([sys.executable, "-c", SCRIPT, mode], capture_output=True, check=True).stdout)

    assert faults("keep") < 1000 < 10_000 < faults("")
