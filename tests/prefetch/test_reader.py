"""Reading bundles: only those asked for, every byte counted, and the same FFN as from the model in memory."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tiny

from minillm.errors import BundleError, MinillmError
from minillm.loading.tensors import save_tensors
from minillm.predictors.protocol import Predictor
from minillm.prefetch.buffer import PrefetchBuffer
from minillm.prefetch.bundle import open_bundle, read_layer, resident_llama, write_bundle
from minillm.prefetch.eviction import random_set
from minillm.prefetch.fetched import FetchedFFN, predicted
from minillm.prefetch.kernels import NeuronMajor, gather
from minillm.prefetch.reader import BundleReader, runs_of
from minillm.prefetch.system import cached_share
from minillm.sparsity.selected import Recorded, StaticSet
from minillm.trace import Trace, no_tap
from minillm.transformer.attention import KVCache
from minillm.transformer.ffn import swiglu
from minillm.transformer.model import Llama

IDS = [1, 5, 3, 9, 30, 2, 7]
F, D, LAYERS = 12, 8, 2
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's own counters")
GROUPS = [1, 5, 12]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """bundles(group, dtype) -> an open bundle of one tiny model with biases; each is written once."""
    folder, made = tmp_path_factory.mktemp("reader"), {}
    tiny.folder(folder / "model", mlp_bias=True)

    def bundle(group, dtype="float32"):
        if (group, dtype) not in made:
            made[group, dtype] = open_bundle(write_bundle(folder / "model", folder / f"{group}{dtype}", group, dtype))
        return made[group, dtype]

    bundle.source = lambda dtype="float64": Llama.from_folder(folder / "model", dtype)
    return bundle


def masks(seed=0, share=0.4, tokens=7):
    return np.random.default_rng(seed).random((LAYERS, tokens, F)) < share


def widened(mask, group):
    """Every neuron of a block in which one is True.  (..., F) -> (..., F)."""
    out = mask.copy()
    for first in range(0, F, group):
        out[..., first : first + group] = mask[..., first : first + group].any(axis=-1, keepdims=True)
    return out


def masked_ffn(all_masks, group=1):
    """The plain form of the same sum: everything computed, what was not fetched set to zero."""

    def ffn(x, layer, position, tap):
        gate = layer.act(x @ layer.gate_proj.T + layer.gate_bias)
        mid = gate * (x @ layer.up_proj.T + layer.up_bias)
        keep = widened(all_masks[layer.index], group)[position : position + len(x)]
        return np.where(keep, mid, 0) @ layer.down_proj.T + layer.down_bias

    return ffn


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


# ---- the right sum ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", GROUPS)
def test_the_fetched_ffn_equals_the_masked_one_in_float64(bundles, group):
    """Weights are float32 on disk and widened, so both sides compute with the same numbers."""
    bundle, wanted = bundles(group), masks()
    expected = bundles.source().forward(IDS, ffn=masked_ffn(wanted, group))
    with BundleReader(bundle, "float64") as reader:
        model = resident_llama(bundle, "float64")
        found = model.forward(IDS, ffn=FetchedFFN(reader, Recorded(wanted)))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
        cache = KVCache(model.config, len(IDS), model.dtype)  # and token by token
        ffn = FetchedFFN(reader, Recorded(wanted))
        rows = np.concatenate([model.forward([token], cache, ffn) for token in IDS])
    np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_token_is_bit_equal_to_the_gathered_rows_in_the_same_order(bundles, group, dtype):
    wanted, x = masks(tokens=1), np.random.default_rng(1).standard_normal((1, D)).astype(dtype)
    with BundleReader(bundles(group), dtype) as reader:
        for layer in bundles.source(dtype).layers:
            found = FetchedFFN(reader, Recorded(wanted))(x, layer)[0]
            kept = np.flatnonzero(widened(wanted[layer.index, 0], group))
            assert found.tobytes() == gather(x[0], NeuronMajor.of(layer), kept).tobytes()


def test_with_everything_fetched_it_is_the_dense_model(bundles):
    bundle, dense = bundles(5), bundles.source().forward(IDS)
    with BundleReader(bundle, "float64") as reader:
        found = resident_llama(bundle, "float64").forward(IDS, ffn=FetchedFFN(reader))
        assert reader.bytes_read == LAYERS * F * bundle.neuron_bytes
    np.testing.assert_allclose(found, dense, rtol=0, atol=1e-12 * np.abs(dense).max())


def test_a_bfloat16_bundle_computes_with_the_rounded_weights(bundles):
    bundle = bundles(5, "bfloat16")
    rounded = bundles.source()
    for layer in rounded.layers:
        gate, up, down = read_layer(bundle, layer.index, np.float64)
        for name, array in (("gate_proj", gate), ("up_proj", up), ("down_proj", down)):
            object.__setattr__(layer, name, array)
    expected = rounded.forward(IDS)
    with BundleReader(bundle, "float64") as reader:
        found = resident_llama(bundle, "float64").forward(IDS, ffn=FetchedFFN(reader))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_nothing_wanted_is_the_bias_alone(bundles):
    x = np.ones((3, D))
    with BundleReader(bundles(5), "float64") as reader:
        layer = bundles.source().layers[0]
        found = FetchedFFN(reader, Recorded(np.zeros((LAYERS, 3, F), bool)))(x, layer)
        assert reader.bytes_read == reader.reads == 0
    assert np.array_equal(found, np.broadcast_to(layer.down_bias, (3, D)))


def test_the_taps_show_what_was_used_and_an_edit_of_the_mask_cuts_more(bundles):
    bundle, wanted = bundles(5), masks()
    with BundleReader(bundle, "float64") as reader:
        model, ffn = resident_llama(bundle, "float64"), FetchedFFN(reader, Recorded(wanted))
        plain = model.forward(IDS, ffn=ffn)
        with Trace(keep="*.mlp.*") as trace:
            assert np.array_equal(model.forward(IDS, ffn=ffn, tap=trace), plain)
        for i in range(LAYERS):
            mask, mid = trace[f"blocks.{i}.mlp.mask"], trace[f"blocks.{i}.mlp.mid_cut"]
            assert np.array_equal(mask, widened(wanted[i], 5)) and not mid[~mask].any() and mid[mask].all()
        with Trace(keep="*.mlp.mid_cut", edits={"blocks.0.mlp.mask": np.zeros_like}) as trace:
            model.forward(IDS, ffn=ffn, tap=trace)
        assert not trace["blocks.0.mlp.mid_cut"].any()


def test_a_predictor_selects_and_one_that_needs_the_truth_is_refused(bundles):
    class Table(Predictor):
        name, shape, sequential, cutoffs, seen = "table", (LAYERS, D, F), True, np.zeros(LAYERS), []

        def predict(self, index, position, x):
            self.seen.append(("predict", index, position, len(x)))
            return x @ np.random.default_rng(index).standard_normal((D, F))

        def observe(self, index, position, x, mask):
            self.seen.append(("observe", index, position, len(x)))

    table, x = Table(), np.random.default_rng(2).standard_normal((2, D))
    wanted = predicted(table)(x, bundles.source("float64").layers[1], 3)
    assert np.array_equal(wanted, x @ np.random.default_rng(1).standard_normal((D, F)) > 0)
    assert table.seen == [("predict", 1, 3, 1), ("observe", 1, 3, 1), ("predict", 1, 4, 1), ("observe", 1, 4, 1)]
    table.needs_truth = True
    with pytest.raises(MinillmError, match="needs the true mask"):
        predicted(table)


def test_with_a_share_a_predictor_selects_the_blocks_of_the_largest_squares(bundles):
    class Scores(Predictor):
        name, shape = "scores", (LAYERS, D, F)

        def predict(self, index, position, x):
            return np.array([[0, 0, 0, 0, 3, 2, 2, 0, 0, 0, -9, 1.0], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0]])

        def observe(self, *_):
            pass

    x, layer = np.ones((2, D)), bundles.source("float64").layers[0]
    found = predicted(Scores(), 5, 1 / 3)(x, layer)  # blocks of 5, 5 and 2; a negative score counts nothing
    assert np.array_equal(np.flatnonzero(found[0]), range(5)) and np.array_equal(np.flatnonzero(found[1]), (10, 11))
    assert np.array_equal(predicted(Scores(), 5, 2 / 3)(x, layer)[0], np.arange(F) < 10)
    with pytest.raises(MinillmError, match="has no cutoffs"):
        predicted(Scores())
    Scores.reads_gate = True
    with pytest.raises(MinillmError, match="reads the layer's own gate, which is not in memory"):
        predicted(Scores(), 5, 0.5)


def test_a_mask_of_the_wrong_shape_is_refused(bundles):
    with BundleReader(bundles(5)) as reader:
        ffn = FetchedFFN(reader, StaticSet(np.ones((LAYERS, F + 1), bool)))
        with pytest.raises(MinillmError, match=r"bool\[1, 13\] for layer 0, expected bool\[1, 12\]"):
            ffn(np.ones((1, D), np.float32), bundles.source("float32").layers[0], 0, no_tap)


# ---- bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", GROUPS)
def test_bytes_read_are_those_of_the_blocks_touched(bundles, group):
    bundle, wanted = bundles(group), masks(tokens=1)
    with BundleReader(bundle) as reader:
        FetchedFFN(reader, Recorded(wanted))(np.ones((1, D), np.float32), bundles.source("float32").layers[1])
        kept = widened(wanted[1, 0], group)
        assert reader.bytes_read == kept.sum() * bundle.neuron_bytes
        assert reader.reads == len(runs_of(np.flatnonzero(np.add.reduceat(kept, range(0, F, group)))))


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


@pytest.mark.parametrize("capacity", [0, 1, 2, 3])
@pytest.mark.parametrize("group", [1, 5])
def test_a_buffer_changes_the_bytes_and_not_the_result(bundles, group, capacity):
    bundle, wanted = bundles(group), masks(tokens=40)
    x = np.random.default_rng(3).standard_normal((40, D)).astype(np.float32)
    layer, traffic = bundles.source("float32").layers[0], PrefetchBuffer(1, bundle.blocks, capacity, log=False)
    buffer = PrefetchBuffer(LAYERS, bundle.blocks, capacity, log=False)
    with BundleReader(bundle) as plain, BundleReader(bundle, buffer=buffer) as reader:
        ours, direct = FetchedFFN(reader, Recorded(wanted)), FetchedFFN(plain, Recorded(wanted))
        for t in range(40):
            assert ours(x[t : t + 1], layer, t).tobytes() == direct(x[t : t + 1], layer, t).tobytes()
            traffic.request(0, np.unique(np.flatnonzero(wanted[0, t]) // group))
        sizes = np.minimum(group, F - np.arange(bundle.blocks) * group)
        if group == 1:  # neurons and blocks are the same
            assert reader.bytes_read == traffic.traffic().missed.sum() * bundle.neuron_bytes
        assert reader.bytes_read <= plain.bytes_read and (capacity or reader.bytes_read == plain.bytes_read)
        assert capacity < 3 or group == 1 or reader.bytes_read == sizes.sum() * bundle.neuron_bytes  # each once


def test_a_static_set_is_read_once_at_the_start(bundles):
    bundle = bundles(1)
    keeper = random_set(LAYERS, F, 4, np.random.default_rng(0))
    with BundleReader(bundle, buffer=PrefetchBuffer(LAYERS, F, 4, keeper)) as reader:
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


def test_the_next_layer_is_announced_before_this_one_is_read(bundles, monkeypatch):
    bundle, wanted, calls = bundles(1), masks(), []
    with BundleReader(bundle) as reader:
        monkeypatch.setattr(reader, "will_need", lambda layer, blocks: calls.append((layer, list(blocks))))
        fetch = reader.fetch
        monkeypatch.setattr(reader, "fetch", lambda layer, blocks: calls.append(layer) or fetch(layer, blocks))
        resident_llama(bundle).forward(IDS, ffn=FetchedFFN(reader, Recorded(wanted), ahead=Recorded(wanted)))
    assert calls == [(1, list(np.flatnonzero(wanted[1].any(axis=0)))), 0, 1]


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


# ---- larger than memory ----------------------------------------------------------------------------------------------

CHILD = """
    import resource, sys
    import numpy as np
    from minillm.errors import MinillmError
    from minillm.prefetch.bundle import open_bundle, resident_llama
    from minillm.prefetch.fetched import FetchedFFN
    from minillm.prefetch.reader import BundleReader
    from minillm.transformer.model import Llama

    for dtype in (np.float32, np.float64):  # BLAS sets its own memory aside at its first larger product
        square = np.ones((600, 600), dtype)
        square @ square, square @ square[0], square[0] @ square
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[3]),) * 2)
    try:
        Llama.from_folder(sys.argv[1])
        print("the whole model fits")
    except (MinillmError, MemoryError) as problem:
        print("whole:", problem)
    with BundleReader(bundle := open_bundle(sys.argv[2])) as reader:
        model = resident_llama(bundle)
        print(model.forward([1, 2, 3], ffn=FetchedFFN(reader)).astype(np.float64).sum(), reader.bytes_read)
"""


@linux
def test_a_model_larger_than_the_memory_it_may_use_runs(tmp_path):
    """A limit that the weights alone exceed: the whole model does not load, the bundles give its logits."""
    sizes = dict(hidden_size=256, intermediate_size=2048, num_hidden_layers=5)
    config = tiny.config("plain", **sizes)
    arrays = tiny.weights(config, np.float32, std=0.02)
    source, out = tmp_path / "model", tmp_path / "bundle"
    source.mkdir()
    (source / "config.json").write_text(json.dumps({**tiny.LLAMA, **sizes}), encoding="utf-8")
    save_tensors(source / "model.safetensors", arrays)
    model = Llama.from_folder(source)
    write_bundle(model, out, 32)
    ffn_bytes, limit = 5 * 3 * 2048 * 256 * 4, 20_000_000
    assert ffn_bytes > 1.5 * limit
    expected = model.forward([1, 2, 3], ffn=swiglu).astype(np.float64).sum()
    command = [sys.executable, "-c", textwrap.dedent(CHILD), source, out, str(limit)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    whole, line = done.stdout.splitlines()
    assert whole.startswith("whole:"), whole
    total, nbytes = line.split()
    assert abs(float(total) - expected) < 1e-3 * max(1, abs(expected)) and int(nbytes) == ffn_bytes
