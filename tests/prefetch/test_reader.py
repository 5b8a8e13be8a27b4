"""Reading bundles: only those asked for, bit for bit, and every byte counted."""

import os
import sys

import numpy as np
import pytest
import tiny

from minillm.errors import BundleError
from minillm.prefetch.buffer import PrefetchBuffer
from minillm.prefetch.bundle import open_bundle, read_layer, write_bundle
from minillm.prefetch.eviction import random_set
from minillm.prefetch.reader import BundleReader, runs_of
from minillm.prefetch.system import cached_share

IDS = [1, 5, 3, 9, 30, 2, 7]
F, D, LAYERS = 12, 8, 2
GROUPS = [1, 5, 12]
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's own counters")


def test_neighbours_are_read_together():
    assert runs_of([0, 1, 2, 5, 7, 8]) == [(0, 3), (5, 6), (7, 9)]
    assert runs_of([]) == [] and runs_of([4]) == [(4, 5)]


# ---- the right rows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("group", GROUPS)
def test_the_rows_fetched_are_those_of_the_matrices_bit_for_bit(bundles, group, dtype, portable):
    bundle, rng = bundles(group, dtype), np.random.default_rng(0)
    with BundleReader(bundle, portable=portable) as reader:
        for _ in range(12):
            layer = int(rng.integers(LAYERS))
            blocks = np.flatnonzero(rng.random(bundle.blocks) < 0.5)
            neurons = reader.neurons(blocks)
            assert np.array_equal(neurons, [j for j in range(F) if j // group in blocks])
            gate, up, down = read_layer(bundle, layer)
            for found, expected in zip(reader.fetch(layer, blocks), (gate, up, down.T), strict=True):
                assert found.dtype == np.float32 and np.array_equal(found, expected[neurons])


@pytest.mark.parametrize("group", GROUPS)
def test_the_portable_way_reads_the_same_bytes(bundles, group):
    counts = []
    for portable in (False, True):
        with BundleReader(bundles(group), portable=portable) as reader:
            rows = [array.copy() for array in reader.fetch(1, np.arange(0, bundles(group).blocks, 2))]
            counts.append((reader.bytes_read, [array.tobytes() for array in rows]))
    assert counts[0] == counts[1]


def test_a_read_that_stops_anywhere_is_continued(bundles, monkeypatch):
    bundle, whole = bundles(5), os.preadv if hasattr(os, "preadv") else pytest.skip("no preadv here")

    def short(fd, views, offset):  # as a signal or a network file system may do: 1 to 50 bytes at a time
        wanted = 1 + offset % 50
        return whole(fd, [views[0][:wanted]], offset)

    with BundleReader(bundle) as reader:
        expected = [array.copy() for array in reader.fetch(0, np.arange(3))]
        monkeypatch.setattr(os, "preadv", short)
        for found, array in zip(reader.fetch(0, np.arange(3)), expected, strict=True):
            assert np.array_equal(found, array)
        assert reader.bytes_read == 2 * F * bundle.neuron_bytes


def test_a_file_that_shrinks_while_it_is_open_is_one_sentence(tmp_path):
    bundle = open_bundle(write_bundle(tiny.folder(tmp_path / "model"), tmp_path / "bundle", 5))
    with BundleReader(bundle) as reader:
        os.truncate(bundle.layers[1].path, bundle.layers[1].offset + 100)
        with pytest.raises(BundleError, match="layer-001.safetensors: ends at byte .*cut short"):
            reader.fetch(1, np.arange(3))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("part", "row"), [("gate", 7), ("up", 12 + 7), ("down", 24 + 7)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_named_when_it_is_read_and_not_before(tmp_path, dtype, part, row, value):
    bundle = open_bundle(write_bundle(tiny.folder(tmp_path / "model"), tmp_path / "bundle", 1, dtype))
    with open(bundle.layers[1].path, "r+b") as file:
        stored = {"float32": np.float32(value).tobytes(), "bfloat16": np.float32(value).tobytes()[2:]}[dtype]
        neuron, part_index = row % 12, row // 12
        file.seek(bundle.layers[1].offset + ((3 * neuron + part_index) * D + 5) * len(stored))
        file.write(stored)
    with BundleReader(bundle, "float64") as reader:
        reader.fetch(0, np.arange(F))
        reader.fetch(1, np.arange(7))
        with pytest.raises(BundleError, match=rf"layer-001\.safetensors: the {part} rows of layer 1 hold NaN or inf"):
            reader.fetch(1, np.arange(5, 9))
    with pytest.raises(BundleError, match="layer 1 hold NaN"):
        BundleReader(bundle, buffer=PrefetchBuffer(LAYERS, F, 12, start=np.ones((LAYERS, F), bool)))


def test_a_sum_that_overflows_is_no_infinity(tmp_path):
    path = write_bundle(tiny.folder(tmp_path / "model"), tmp_path / "bundle", 1)
    bundle = open_bundle(path)
    with open(bundle.layers[0].path, "r+b") as file:
        file.seek(bundle.layers[0].offset)
        file.write(np.full(D, 3e38, np.float32).tobytes())
    with BundleReader(bundle) as reader:
        assert (reader.fetch(0, np.arange(F))[0][0] == np.float32(3e38)).all()


def test_each_block_is_looked_at_once(bundles, monkeypatch):
    looked = []
    monkeypatch.setattr("minillm.prefetch.reader.all_finite", lambda array: looked.append(len(array)) or True)
    with BundleReader(bundles(1)) as reader:
        for _ in range(3):
            reader.fetch(0, np.arange(4))
            reader.fetch(1, np.array([2]))
    assert looked == [4, 4, 4, 1, 1, 1]


# ---- bytes -----------------------------------------------------------------------------------------------------------


def rchar() -> tuple[int, int]:
    """This process's own count of bytes read, and how many bytes reading that took."""
    fd = os.open("/proc/self/io", os.O_RDONLY)
    try:
        text = os.read(fd, 4096)
    finally:
        os.close(fd)
    return int(text.split()[1]), len(text)


@linux
@pytest.mark.parametrize("portable", [False, True])
def test_the_counter_equals_the_systems_own(bundles, portable):
    bundle = bundles(1)
    with BundleReader(bundle, portable=portable) as reader:
        before, itself = rchar()
        for step in (1, 2, 3, 5):
            reader.fetch(step % LAYERS, np.arange(0, F, step))
            reader.will_need(step % LAYERS, np.arange(F))
        after, _ = rchar()
    assert after - before - itself == reader.bytes_read > 0


# ---- with a buffer ---------------------------------------------------------------------------------------------------


def test_a_static_set_is_read_once_at_the_start(bundles):
    bundle = bundles(1)
    fixed = random_set(LAYERS, F, 4, np.random.default_rng(0))
    with BundleReader(bundle, buffer=PrefetchBuffer(LAYERS, F, 4, fixed)) as reader:
        assert reader.bytes_read == LAYERS * 4 * bundle.neuron_bytes
        gate, _, _ = reader.fetch(1, np.arange(F))
        assert np.array_equal(gate, read_layer(bundle, 1)[0])
        assert reader.bytes_read == (LAYERS * 4 + F - 4) * bundle.neuron_bytes


def test_a_buffer_of_another_size_is_refused(bundles):
    with pytest.raises(BundleError, match=r"expected \[2, 3\]"):
        BundleReader(bundles(5), buffer=PrefetchBuffer(LAYERS, F, 2))


# ---- the system's cache ----------------------------------------------------------------------------------------------


@linux
def test_dropped_files_are_cold_and_only_what_is_fetched_becomes_warm(cold_disk, tmp_path):
    folder = tiny.folder(tmp_path / "model", hidden_size=64, intermediate_size=1024, num_hidden_layers=3)
    bundle = open_bundle(write_bundle(folder, tmp_path / "bundle", 32))  # three layers of 768 kB
    with BundleReader(bundle) as reader:
        reader.fetch(0, np.arange(bundle.blocks))
        assert cached_share(bundle.layers[0].path) > 0.9
        reader.drop_cache()
        assert [cached_share(info.path) for info in bundle.layers] == [0, 0, 0]
        reader.will_need(1, np.arange(16))
        reader.fetch(1, np.arange(16))
        assert cached_share(bundle.layers[1].path) > 0.3
        assert cached_share(bundle.layers[2].path) == 0


@linux
@pytest.mark.parametrize("announce", [False, True])
def test_what_will_be_read_is_announced_once_and_first_but_nothing_that_is_held(bundles, monkeypatch, announce):
    bundle, calls, advise, read = bundles(1), [], os.posix_fadvise, os.preadv
    offset, size = bundle.layers[0].offset, bundle.neuron_bytes
    monkeypatch.setattr(os, "posix_fadvise", lambda *a: calls.append(("will need", *a[1:3])) or advise(*a))
    monkeypatch.setattr(os, "preadv", lambda *a: calls.append(("read", a[2])) or read(*a))
    buffer = PrefetchBuffer(LAYERS, F, 12)
    with BundleReader(bundle, buffer=buffer, announce=announce) as reader:
        reader.fetch(0, np.array([1, 2, 7]))
        first = [("will need", offset + size, 2 * size), ("will need", offset + 7 * size, size)]
        assert calls == first * announce + [("read", offset + size), ("read", offset + 7 * size)]
        calls.clear()
        reader.fetch(0, np.array([1, 3, 7]))
        assert calls == [("will need", offset + 3 * size, size)] * announce + [("read", offset + 3 * size)]
        calls.clear()
        reader.will_need(0, np.array([2, 3, 4]))
        assert calls == [("will need", offset + 4 * size, size)]
        assert reader.seconds > 0
