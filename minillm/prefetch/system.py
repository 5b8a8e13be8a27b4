"""What the operating system knows about our reads: bytes counted, pages in its cache, and a limit of memory.

A read that the system serves from its own cache takes microseconds, a read from the disk a hundred times that. So every
time that is measured depends on where the bytes came from, and only the system knows:

    system_reads()      bytes that this process was given, and bytes that came from a disk         /proc/self/io
    cached_share()      share of a file's pages that lie in memory now: 0 is cold                  mincore(2)
    limit_memory()      forbids this process more memory, so that "it need not fit" can be shown   RLIMIT_AS

reader.py counts its own bytes; the two counts must agree. Where a system lacks a call, Unsupported says so (or the
answer is None), and no time measured there is called a disk's.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import BundleError, MinillmError
from ..files import file_errors


class Unsupported(MinillmError):
    """This system has no such call."""


class SystemReads(NamedTuple):
    """What Linux has counted for this process, in bytes (/proc/self/io).

    given: by all reads so far (rchar). disk: the part that came from a disk (read_bytes), including what WILLNEED
    announced, used or not, and without what was in the system's cache. itself: bytes of reading these counters, which
    ``given`` will include from now on.
    """

    given: int
    disk: int
    itself: int


def system_reads() -> SystemReads | None:
    """The counters now; None where the system has none."""
    try:
        with open("/proc/self/io", "rb", buffering=0) as file:
            text = file.read(4096)
    except OSError:
        return None
    fields = dict(line.split(b": ") for line in text.splitlines())
    return SystemReads(int(fields[b"rchar"]), int(fields[b"read_bytes"]), len(text))


def cached_share(path: str | Path) -> float:
    """The share of a file's pages that lie in the system's memory now, by mincore(2): 0 is cold. Linux and macOS.

    (Linux shows the true share to a file's owner, and 1 to other users.) Raises Unsupported where there is no such
    call.
    """
    try:
        mincore = ctypes.CDLL(None, use_errno=True).mincore
    except (TypeError, OSError, AttributeError):
        raise Unsupported(f"{sys.platform}: has no mincore, expected a system that shows its cache") from None
    mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    with file_errors(path, "read", BundleError), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            return 0.0
        pages = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            start = np.frombuffer(mapped, np.uint8)  # mapping alone brings no page in
            failed = mincore(start.ctypes.data, size, pages.ctypes.data)
            del start  # the map cannot be closed while it is used
        if failed:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return float((pages & 1).mean())


def limit_memory(megabytes: int) -> None:
    """Let this process use at most that many megabytes more than now (RLIMIT_AS): beyond that is a MemoryError.

    Address space counts, including mapped files; the limit stays until the process ends. Linux only: macOS accepts
    the call and keeps no limit. Raises MinillmError.
    """
    if not sys.platform.startswith("linux"):
        raise MinillmError(f"{sys.platform}: keeps no limit of a process's memory, expected Linux")
    import resource

    import tokenizers  # noqa: F401  (loaded later, it would count as the model's)

    for dtype in (np.float32, np.float64):  # BLAS allocates its own memory at its first larger product
        square = np.ones((600, 600), dtype)
        square @ square, square @ square[0], square[0] @ square
    with open("/proc/self/statm", "rb") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = used + megabytes * 1_000_000
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
