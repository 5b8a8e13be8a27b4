"""The FFN that reads its weights as it goes: the same sum as in memory, from the blocks that hold what was selected."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tiny
from passes import traced
from selectors_of_each_kind import KINDS, Watched

from minillm.errors import MinillmError
from minillm.loading.tensors import save_tensors
from minillm.predictors.protocol import Predictor
from minillm.prefetch.buffer import PrefetchBuffer
from minillm.prefetch.bundle import read_layer, resident_llama, write_bundle
from minillm.prefetch.fetched import FetchedFFN, predicted
from minillm.prefetch.kernels import NeuronMajor, gather
from minillm.prefetch.reader import BundleReader, runs_of
from minillm.sparsity import griffin
from minillm.sparsity.selected import Recorded, SelectedFFN, StaticSet
from minillm.trace import Trace, no_tap
from minillm.transformer.attention import KVCache
from minillm.transformer.evaluation import perplexity
from minillm.transformer.ffn import swiglu
from minillm.transformer.model import Llama
from minillm.transformer.texts import document_hashes

IDS = [1, 5, 3, 9, 30, 2, 7]
F, D, LAYERS = 12, 8, 2
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's own counters")
GROUPS = [1, 5, 12]


def masks(seed=0, share=0.4, tokens=7):
    return np.random.default_rng(seed).random((LAYERS, tokens, F)) < share


def widened(mask, group):
    """Every neuron of a block in which one is True.  (..., F) -> (..., F)."""
    out = mask.copy()
    for first in range(0, F, group):
        out[..., first : first + group] = mask[..., first : first + group].any(axis=-1, keepdims=True)
    return out


# ---- the right sum ---------------------------------------------------------------------------------------------------


def masked_ffn(all_masks, group=1):
    """The plain form of the same sum: everything computed, what was not fetched set to zero."""

    def ffn(x, layer, position, tap):
        gate = layer.act(x @ layer.gate_proj.T + layer.gate_bias)
        mid = gate * (x @ layer.up_proj.T + layer.up_bias)
        keep = widened(all_masks[layer.index], group)[position : position + len(x)]
        return np.where(keep, mid, 0) @ layer.down_proj.T + layer.down_bias

    return ffn


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


# ---- every kind of Selector ------------------------------------------------------------------------------------------


@pytest.fixture
def short_prompt(monkeypatch):
    monkeypatch.setattr(griffin, "PROMPT", 3)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("kind", KINDS)
def test_any_selector_gives_the_selected_ffn_of_its_blocks_and_the_same_reads(bundles, kind, group, short_prompt):
    """The layers are those of the whole model, as some Selectors look at them; the sum is made from the reader's."""
    model, make = bundles.source(), KINDS[kind]
    with BundleReader(bundles(group), "float64") as reader:
        ours = traced(model, IDS, ffn=FetchedFFN(reader, make(model)))
    blockwise = Watched(make(model), lambda mask: widened(mask, group))
    for form in ("masked", "gathered"):
        theirs = traced(model, IDS, ffn=SelectedFFN(blockwise, form))
        found, expected = ours["logits"], theirs["logits"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
        for layer in range(LAYERS):
            for step in ("mask", "reads"):
                name = f"blocks.{layer}.mlp.{step}"
                assert np.array_equal(ours[name], theirs[name]), name
    assert (ours["blocks.0.mlp.reads"][:, 0] == 1).all() or kind != "predicted, with the gate"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_token_of_any_selector_is_bit_equal_to_the_gathered_rows(bundles, kind, dtype, short_prompt):
    model, x = bundles.source(dtype), np.random.default_rng(1).standard_normal((1, D)).astype(dtype)
    ours, theirs = KINDS[kind](model), KINDS[kind](model)
    with BundleReader(bundles(5), dtype) as reader:
        for layer in model.layers:
            found = FetchedFFN(reader, ours)(x, layer)[0]
            kept = np.flatnonzero(widened(theirs(x, layer, 0, no_tap)[0], 5))
            assert found.tobytes() == gather(x[0], NeuronMajor.of(layer), kept).tobytes()


def test_each_selector_is_asked_once_per_layer_and_the_next_layer_is_guessed_before_it(bundles):
    own, ahead = (Watched(Recorded(masks())) for _ in range(2))
    with BundleReader(bundles(5)) as reader:
        resident_llama(bundles(5)).forward(IDS, ffn=FetchedFFN(reader, own, ahead))
    assert own.calls == list(range(LAYERS)) and ahead.calls == list(range(1, LAYERS))


def test_the_documents_behind_the_selection_reach_the_warning_of_perplexity(bundles):
    seen = frozenset(document_hashes(tiny.STORIES[:1]))
    select = Watched(StaticSet(np.ones((LAYERS, F), bool)), calibrated_on=seen)
    with BundleReader(bundles(5)) as reader:
        ffn = FetchedFFN(reader, select)
        assert ffn.calibrated_on == seen and FetchedFFN(reader).calibrated_on == frozenset()
        with pytest.warns(UserWarning, match="1 of the documents scored are among those"):
            perplexity(resident_llama(bundles(5)), tiny.STORIES[:2], ffn=ffn)


# ---- predictors ------------------------------------------------------------------------------------------------------


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


# ---- bytes, a buffer, and the next layer -----------------------------------------------------------------------------


@pytest.mark.parametrize("group", GROUPS)
def test_bytes_read_are_those_of_the_blocks_touched(bundles, group):
    bundle, wanted = bundles(group), masks(tokens=1)
    with BundleReader(bundle) as reader:
        FetchedFFN(reader, Recorded(wanted))(np.ones((1, D), np.float32), bundles.source("float32").layers[1])
        kept = widened(wanted[1, 0], group)
        assert reader.bytes_read == kept.sum() * bundle.neuron_bytes
        assert reader.reads == len(runs_of(np.flatnonzero(np.add.reduceat(kept, range(0, F, group)))))


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


def test_the_next_layer_is_announced_before_this_one_is_read(bundles, monkeypatch):
    bundle, wanted, calls = bundles(1), masks(), []
    with BundleReader(bundle) as reader:
        monkeypatch.setattr(reader, "will_need", lambda layer, blocks: calls.append((layer, list(blocks))))
        fetch = reader.fetch
        monkeypatch.setattr(reader, "fetch", lambda layer, blocks: calls.append(layer) or fetch(layer, blocks))
        resident_llama(bundle).forward(IDS, ffn=FetchedFFN(reader, Recorded(wanted), ahead=Recorded(wanted)))
    assert calls == [(1, list(np.flatnonzero(wanted[1].any(axis=0)))), 0, 1]


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
