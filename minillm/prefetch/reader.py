"""Reading from a real disk: the bundles that a token needs, and nothing else.

    reader = BundleReader(open_bundle(folder))
    model = resident_llama(reader.bundle)                       # everything but the FFN's matrices
    logits = model.forward(ids, ffn=FetchedFFN(reader, select))

How it is read:

    first everything is announced: posix_fadvise(WILLNEED) starts the disk and returns at once, so that it works on many
        reads at a time and not on one after the other; one layer ahead, where a guess says what comes
    then one read per run of neighbouring bundles, straight into three reused buffers, gate, up and down rows apart
        (preadv fills a list of places from one stretch of the file; no row is copied once it is in memory)
    where the system lacks these calls (macOS has no fadvise, Windows neither): seek and readinto, the same bytes

A buffer (buffer.py) may keep bundles in memory between tokens: it decides what stays, and the reader holds it.

bytes_read counts the bytes that the system returned. Whether they came from the disk or from the system's own cache is
another question, and every measured time depends on it: drop_cache() empties the cache, cached_share() checks that.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

import numpy as np

from ..errors import BundleError
from ..files import file_errors
from ..loading.tensors import DTYPES, all_finite
from .buffer import PrefetchBuffer
from .bundle import STORED, Bundle
from .system import Unsupported

VECTORS = 1024 if hasattr(os, "sysconf") else 16  # of one preadv: Linux's and macOS's IOV_MAX


def runs_of(blocks: Sequence[int]) -> list[tuple[int, int]]:
    """Runs of neighbours: ascending numbers -> [(first, last + 1), ...].

    >>> runs_of([2, 3, 4, 7])
    [(2, 5), (7, 8)]
    """
    numbers = np.asarray(blocks)
    if not numbers.size:
        return []
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in np.split(numbers, breaks)]


class BundleReader:
    """Reads bundles of an open bundle folder and counts the bytes; use it in a ``with``, or close() it.

    dtype: of the rows that fetch() returns (float32 or float64). buffer: a PrefetchBuffer of bundle.layers x
    bundle.blocks, or None; its start is read at once. portable: never use preadv and fadvise. announce: whether fetch()
    announces what it will read before it reads it.
    bytes_read, reads and seconds (in fetch and will_need) so far can all be set to 0. Raises BundleError for a file
    that cannot be read, has become shorter, or holds NaN or infinity where it is read.
    """

    def __init__(
        self, bundle: Bundle, dtype: str | type | np.dtype = np.float32, buffer: PrefetchBuffer | None = None,
        portable: bool = False, announce: bool = True,
    ):  # fmt: skip
        self.bundle, self.dtype, self.buffer = bundle, np.dtype(dtype), buffer
        self.portable = portable or not hasattr(os, "preadv")
        self.announce = announce
        self.bytes_read, self.reads, self.seconds = 0, 0, 0.0
        self._stored = DTYPES[STORED[bundle.dtype]]
        self._raw = [np.empty((1, bundle.config.hidden_size), self._stored) for _ in range(3)]  # gate, up, down rows
        self._wide = self._raw if self._stored == self.dtype else [array.astype(self.dtype) for array in self._raw]
        self._files, self._written = [], False
        self._checked = np.zeros((len(bundle.layers), bundle.blocks), bool)  # blocks whose numbers are finite
        self._held: list[dict[int, tuple[np.ndarray, ...]]] = [{} for _ in bundle.layers]
        for info in bundle.layers:
            with file_errors(info.path, "read", BundleError):
                self._files.append(open(info.path, "rb", buffering=0))
        if buffer is not None:
            shape = (len(bundle.layers), bundle.blocks)
            if buffer.held.shape != shape:
                found = f"the buffer is for {list(buffer.held.shape)} layers and neurons"
                raise BundleError(f"{found}, expected {list(shape)} layers and blocks of this bundle")
            for layer, start in enumerate(buffer.held):
                self._read(layer, np.flatnonzero(start))
                self._keep(layer, np.flatnonzero(start), buffer)

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()

    def __enter__(self) -> BundleReader:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    # -- what callers use

    def neurons(self, blocks: np.ndarray) -> np.ndarray:
        """The neurons of ascending blocks, in the order of the rows that fetch() returns."""
        group, count = self.bundle.group, self.bundle.config.intermediate_size
        neurons = (np.asarray(blocks, int)[:, None] * group + np.arange(group)).ravel()
        return neurons[neurons < count]  # the last block may be shorter

    def fetch(self, layer: int, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows of ascending blocks of one layer.  blocks (n,)  ->  gate, up, down rows, each (neurons, D).

        The arrays are valid until the next call. With a buffer, the blocks that it holds are not read again, and this
        call is the one request of that layer's token.
        """
        started = time.perf_counter()
        if self.buffer is not None:
            self.buffer.request(layer, blocks)
        gate, up, down = self._read(layer, blocks)
        if self.buffer is not None:
            self._keep(layer, blocks, self.buffer)
        self.seconds += time.perf_counter() - started
        return gate, up, down

    def will_need(self, layer: int, blocks: np.ndarray) -> None:
        """Ask the system to start reading these blocks, without waiting; no effect where it has no such call."""
        started = time.perf_counter()
        self._announce(layer, runs_of([b for b in np.asarray(blocks).tolist() if b not in self._held[layer]]))
        self.seconds += time.perf_counter() - started

    def drop_cache(self) -> None:
        """Drop the layers' files from the system's cache, so that the next read comes from the disk (cached_share).

        Pages that some process has mapped stay; this reader maps none. Raises Unsupported where it cannot be done.
        """
        if not hasattr(os, "posix_fadvise"):
            raise Unsupported(f"{sys.platform}: the system's cache cannot be emptied here, expected posix_fadvise")
        for file in self._files:
            with file_errors(file.name, "dropped from the system's cache", BundleError):
                if not self._written:
                    os.fsync(file.fileno())  # pages that still have to be written are not dropped
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self._written = True  # a bundle is never changed

    # -- how it is done

    def _place(self, layer: int, first: int, end: int) -> tuple[int, int]:
        """Offset and length in bytes of the blocks first ... end - 1 in the file."""
        group, size = self.bundle.group, self.bundle.neuron_bytes
        last = min(end * group, self.bundle.config.intermediate_size)
        return self.bundle.layers[layer].offset + first * group * size, (last - first * group) * size

    def _announce(self, layer: int, runs: list[tuple[int, int]]) -> None:
        if self.portable or not hasattr(os, "posix_fadvise"):
            return
        for first, end in runs:
            offset, nbytes = self._place(layer, first, end)
            os.posix_fadvise(self._files[layer].fileno(), offset, nbytes, os.POSIX_FADV_WILLNEED)

    def _read(self, layer: int, blocks: np.ndarray) -> tuple[np.ndarray, ...]:
        """Fill the buffers with the rows of these blocks, from what is held or from the file, and widen them."""
        blocks = np.asarray(blocks).tolist()
        group, count, held = self.bundle.group, self.bundle.config.intermediate_size, self._held[layer]
        sizes = [min(group, count - b * group) for b in blocks]
        total = sum(sizes)
        if total > len(self._raw[0]):  # grown, never shrunk: at most one whole layer
            same = self._wide is self._raw
            self._raw = [np.empty((total, array.shape[1]), array.dtype) for array in self._raw]
            self._wide = self._raw if same else [np.empty(array.shape, self.dtype) for array in self._raw]
        starts = dict(zip(blocks, np.cumsum([0, *sizes]).tolist(), strict=False))
        places = [array.data.cast("B") for array in self._raw]
        row = self._raw[0].strides[0]  # bytes

        missing = runs_of([b for b in blocks if b not in held])
        if self.announce:
            self._announce(layer, missing)
        for first, end in missing:
            views = []
            for b in range(first, end):
                a, n = starts[b], min(group, count - b * group)
                views += [place[a * row : (a + n) * row] for place in places]
            self._read_at(layer, self._place(layer, first, end)[0], views)
        for b in blocks:
            if b in held:
                for array, rows in zip(self._raw, held[b], strict=True):
                    array[starts[b] : starts[b] + len(rows)] = rows
        arrays = tuple(
            self._widened(raw[:total], wide[:total]) for raw, wide in zip(self._raw, self._wide, strict=True)
        )
        if not self._checked[layer, blocks].all():  # a bundle never changes: each block is looked at once
            self._check_finite(layer, arrays)
            self._checked[layer, blocks] = True
        return arrays

    def _check_finite(self, layer: int, arrays: tuple[np.ndarray, ...]) -> None:
        """Raise BundleError for gate, up or down rows that are not finite: a NaN would reach every later layer."""
        for part, array in zip(("gate", "up", "down"), arrays, strict=True):
            if not all_finite(array):
                found = f"the {part} rows of layer {layer} hold NaN or infinity"
                raise BundleError(f"{self._files[layer].name}: {found}, expected finite numbers")

    def _widened(self, raw: np.ndarray, wide: np.ndarray) -> np.ndarray:
        if wide.dtype == raw.dtype:
            return raw
        if raw.dtype == np.uint16:  # BF16 is the upper half of a float32
            bits = raw.astype(np.uint32)
            bits <<= 16
            raw = bits.view(np.float32)
        np.copyto(wide, raw)
        return wide

    def _read_at(self, layer: int, offset: int, views: list[memoryview]) -> None:
        """Read one stretch of the file into a list of places, in as many calls as it takes."""
        file, at = self._files[layer], 0
        with file_errors(file.name, "read", BundleError):
            while at < len(views):
                if self.portable:
                    file.seek(offset)
                    got = file.readinto(views[at])
                else:
                    got = os.preadv(file.fileno(), views[at : at + VECTORS], offset)
                if not got:
                    raise BundleError(f"{file.name}: ends at byte {offset}, expected more: it has been cut short")
                self.bytes_read += got
                self.reads += 1
                offset += got
                while at < len(views) and got >= views[at].nbytes:
                    got -= views[at].nbytes
                    at += 1
                if got:  # the system may stop anywhere
                    views[at] = views[at][got:]

    def _keep(self, layer: int, blocks: np.ndarray, buffer: PrefetchBuffer) -> None:
        """Hold the blocks just read that the buffer keeps (as stored: BF16 takes half), and drop all others."""
        held, kept = self._held[layer], buffer.held[layer]
        for b in [b for b in held if not kept[b]]:
            del held[b]
        start, group, count = 0, self.bundle.group, self.bundle.config.intermediate_size
        for b in np.asarray(blocks).tolist():
            n = min(group, count - b * group)
            if kept[b] and b not in held:
                held[b] = tuple(array[start : start + n].copy() for array in self._raw)
            start += n
