"""The FFN that computes from the buffer: exact when it waits, cut when it drops, and every byte counted."""

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from passes import traced
from selectors_of_each_kind import KINDS, Watched, limits, random_masks

from minillm.errors import MinillmError
from minillm.predictors.baselines import Chance, PreviousToken, Static
from minillm.predictors.oracle import Oracle
from minillm.predictors.select import Predicted, sparse_ffn
from minillm.prefetch.buffer import PrefetchBuffer
from minillm.prefetch.eviction import belady, random_set, static
from minillm.prefetch.feedforward import BufferedFFN, FastMemory, from_weights
from minillm.sparsity import griffin
from minillm.sparsity.selected import Recorded, SelectedFFN, StaticSet
from minillm.sparsity.sparse import policy_selector
from minillm.sparsity.thresholds import Thresholds
from minillm.trace import Trace
from minillm.transformer.attention import KVCache
from minillm.transformer.evaluation import perplexity
from minillm.transformer.texts import document_hashes

quick = settings(max_examples=20, derandomize=True, deadline=None)
IDS = [1, 5, 3, 9, 30, 2, 7]
LAYERS, NEURONS, HIDDEN = 2, 12, 8  # of tiny.model()
BUNDLE = 3 * HIDDEN  # numbers


def buffer(capacity: int, eviction="lru", start=None) -> PrefetchBuffer:
    return PrefetchBuffer(LAYERS, NEURONS, capacity, eviction, start=start)


def guesser(model, kind: str = "chance"):
    """A predictor that is often wrong."""
    shape = (LAYERS, HIDDEN, NEURONS)
    shares = np.linspace(0, 1, LAYERS * NEURONS, dtype=np.float32).reshape(LAYERS, NEURONS)
    found = {"chance": lambda: Chance(shape, 3), "previous": lambda: PreviousToken(Static(shape, shares))}[kind]()
    found.cutoffs = np.full(LAYERS, 0.6)
    return found


def in_role(model, cut: Thresholds, own, role: str) -> dict:
    """select and guess of a BufferedFFN, for a predictor's Selector that selects, that only prefetches, or both."""
    select = policy_selector(model, cut) if role == "prefetch" else own
    return {"select": select, "guess": None if role == "select" else own}


def gathered(model, cut: Thresholds, predictor=None, ids=IDS) -> np.ndarray:
    """The FFN of a known mask, every neuron read where it lies in the layer's own matrices."""
    return model.forward(ids, ffn=sparse_ffn(model, cut, predictor=predictor or Oracle(model, cut), form="gathered"))


# ---- waiting is exact ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "mistral"])  # with and without biases
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@quick
@given(capacity=st.integers(0, 12), eviction=st.sampled_from(["lru", "lfu", "window-2"]), value=st.floats(0, 1.5))
def test_waiting_gives_the_gathered_ffn_bit_for_bit(family, dtype, capacity, eviction, value):
    model = tiny.model(family, dtype)
    cut = limits(model, value=value)
    ffn = BufferedFFN(policy_selector(model, cut), buffer(capacity, eviction))
    assert model.forward(IDS, ffn=ffn).tobytes() == gathered(model, cut).tobytes()


@pytest.mark.parametrize("kind", ["chance", "previous"])
@pytest.mark.parametrize("role", ["select", "prefetch", "both"])
def test_waiting_is_exact_for_a_predictor_in_every_role(kind, role):
    model = tiny.model("llama", np.float32)
    cut = limits(model)
    ffn = BufferedFFN(**in_role(model, cut, Predicted(guesser(model, kind), cut), role), buffer=buffer(4))
    found = model.forward(IDS, ffn=ffn)
    expected = gathered(model, cut, None if role == "prefetch" else guesser(model, kind))
    assert found.tobytes() == expected.tobytes()
    traffic = ffn.buffer.traffic()
    assert (traffic.prefetched.sum() > 0) == (role != "select")
    assert (traffic.wasted.sum() > 0) == (role == "prefetch") and (role != "both" or traffic.missed.sum() == 0)


@pytest.mark.parametrize("policy", ["mid", "cats", "countdown", "cett", "topk", "topp", "statistical"])
def test_any_policy_that_cuts_whole_neurons_equals_its_masked_form(policy):
    model = tiny.model("llama")
    expected = model.forward(IDS, ffn=sparse_ffn(model, limits(model, policy=policy)))
    found = model.forward(IDS, ffn=BufferedFFN(policy_selector(model, limits(model, policy=policy)), buffer(3)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_token_by_token_is_the_same_as_a_text_at_once():
    model = tiny.model("llama", np.float32)
    cut, outputs, states = limits(model), [], []
    for sizes in ([1] * 7, [7], [3, 4]):
        ffn, cache = BufferedFFN(policy_selector(model, cut), buffer(4)), KVCache(model.config, 8, np.float32)
        at, rows = 0, []
        for size in sizes:
            rows.append(model.forward(IDS[at : at + size], cache, ffn))
            at += size
        outputs.append(np.concatenate(rows))
        states.append((ffn.bytes_read, ffn.buffer.traffic(), ffn.buffer.held))
    for found, (nbytes, traffic, held) in zip(outputs[1:], states[1:], strict=True):
        np.testing.assert_allclose(found, outputs[0], rtol=1e-4, atol=1e-4)
        assert nbytes == states[0][0] and np.array_equal(held, states[0][2])
        assert all(np.array_equal(a, b) for a, b in zip(traffic, states[0][1], strict=True))


# ---- every kind of Selector ------------------------------------------------------------------------------------------


@pytest.fixture
def short_prompt(monkeypatch):
    monkeypatch.setattr(griffin, "PROMPT", 3)


@pytest.mark.parametrize("capacity", [0, 4, 12])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_waiting_gives_the_gathered_ffn_of_any_selector_bit_for_bit_and_the_masked_one(
    kind, dtype, capacity, short_prompt
):
    model, make = tiny.model("llama", dtype), KINDS[kind]
    found = model.forward(IDS, ffn=BufferedFFN(make(model), buffer(capacity)))
    assert found.tobytes() == model.forward(IDS, ffn=SelectedFFN(make(model), "gathered")).tobytes()
    masked = model.forward(IDS, ffn=SelectedFFN(make(model)))
    rounding = 1e-12 if dtype == np.float64 else 1e-5
    np.testing.assert_allclose(found, masked, rtol=0, atol=rounding * np.abs(masked).max())
    assert not np.allclose(masked, model.forward(IDS), rtol=0, atol=1e-3)  # something was cut


@pytest.mark.parametrize("kind", KINDS)
def test_mask_and_reads_are_those_of_the_selected_ffn(kind, short_prompt):
    model, make = tiny.model("llama"), KINDS[kind]
    ours, theirs = (
        traced(model, IDS, ffn=ffn) for ffn in (BufferedFFN(make(model), buffer(4)), SelectedFFN(make(model)))
    )
    for layer in range(LAYERS):
        mask, reads = (ours[f"blocks.{layer}.mlp.{name}"] for name in ("mask", "reads"))
        assert np.array_equal(mask, theirs[f"blocks.{layer}.mlp.mask"])
        assert np.array_equal(reads, theirs[f"blocks.{layer}.mlp.reads"])
        gate = np.ones(len(IDS)) if kind == "predicted, with the gate" else mask.mean(axis=1)
        np.testing.assert_allclose(reads, np.stack([gate, mask.mean(axis=1), mask.mean(axis=1)], axis=1), rtol=1e-15)


def test_with_misses_dropped_the_reads_are_of_what_was_computed():
    model = tiny.model("llama")
    ffn = BufferedFFN(KINDS["policy oracle"](model), buffer(4), "drop")
    trace = traced(model, IDS, ffn=ffn)
    for layer in range(LAYERS):
        computed = ffn.buffer.traffic().computed("drop")[:, layer] / NEURONS
        np.testing.assert_allclose(trace[f"blocks.{layer}.mlp.reads"], np.tile(computed[:, None], 3), rtol=1e-15)


@pytest.mark.parametrize("executor", [SelectedFFN, lambda select, guess: BufferedFFN(select, buffer(4), guess=guess)])
def test_a_selector_is_asked_once_per_layer_be_it_the_guess_too_or_not(executor):
    model = tiny.model("llama")
    own, other = (Watched(KINDS[kind](model)) for kind in ("policy oracle", "predicted"))
    model.forward(IDS, ffn=executor(own, guess=own))
    assert own.calls == list(range(LAYERS))
    own.calls.clear()
    model.forward(IDS, ffn=executor(own, guess=other))
    assert own.calls == other.calls == list(range(LAYERS))


@pytest.mark.parametrize("part", ["select", "guess"])
def test_the_documents_behind_the_selection_or_the_guess_reach_the_warning_of_perplexity(small, part):
    model, thresholds = small
    seen = frozenset(document_hashes(tiny.STORIES[2:3]))
    parts = {"select": StaticSet(random_masks(model)), "guess": StaticSet(random_masks(model))}
    parts[part] = Watched(parts[part], calibrated_on=seen)
    ffn = BufferedFFN(**parts, buffer=buffer(4))
    assert ffn.calibrated_on == seen
    with pytest.warns(UserWarning, match="1 of the documents scored are among those"):
        perplexity(model, tiny.STORIES[2:], ffn=ffn)
    by_policy = BufferedFFN(policy_selector(model, thresholds), buffer(4))
    assert by_policy.calibrated_on == frozenset(document_hashes(tiny.STORIES[:2]))


# ---- dropping --------------------------------------------------------------------------------------------------------


def test_dropping_with_everything_there_is_exact_too():
    model = tiny.model("llama", np.float32)
    cut, full = limits(model), np.ones((LAYERS, NEURONS), bool)
    ffn = BufferedFFN(policy_selector(model, cut), buffer(NEURONS, start=full), "drop")
    assert model.forward(IDS, ffn=ffn).tobytes() == gathered(model, cut).tobytes()
    assert ffn.bytes_read == full.sum() * BUNDLE * 4  # the start, and nothing more


def test_dropping_with_a_perfect_guess_is_exact_without_any_capacity():
    model = tiny.model("llama", np.float32)
    cut = limits(model)
    oracle = Predicted(Oracle(model, cut), cut)
    ffn = BufferedFFN(oracle, buffer(0), "drop", oracle)
    assert model.forward(IDS, ffn=ffn).tobytes() == gathered(model, cut).tobytes()


def test_dropping_leaves_out_exactly_what_was_not_there():
    model = tiny.model("llama")
    cut, fixed = limits(model), random_set(LAYERS, NEURONS, 5, np.random.default_rng(2))
    ffn = BufferedFFN(policy_selector(model, cut), buffer(5, fixed), "drop")
    with Trace(keep=["*.mask", "*.mid_cut"]) as trace:
        found = model.forward(IDS, ffn=ffn, tap=trace)

    def by_hand(x, layer, position, tap):
        def only_the_set(name, mask):
            return mask & fixed.start[layer.index] if name == "mask" else mask

        return sparse_ffn(model, cut)(x, layer, position, only_the_set)

    expected = model.forward(IDS, ffn=by_hand)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    assert not np.allclose(found, gathered(model, cut))
    for layer in range(LAYERS):
        mask = trace[f"blocks.{layer}.mlp.mask"]
        assert np.array_equal(mask.sum(axis=1), ffn.buffer.traffic().computed("drop")[:, layer])
        assert np.array_equal(trace[f"blocks.{layer}.mlp.mid_cut"] != 0, mask)


def test_dropping_without_capacity_or_guess_leaves_the_bias_alone_and_reads_nothing():
    model = tiny.model("llama")
    ffn = BufferedFFN(policy_selector(model, limits(model)), buffer(0), "drop")
    silent = model.forward(IDS, ffn=lambda x, layer, position, tap: np.zeros_like(x) + layer.down_bias)
    assert np.array_equal(model.forward(IDS, ffn=ffn), silent) and ffn.bytes_read == 0


def test_what_was_dropped_is_there_for_the_next_token():
    model = tiny.model("llama")
    everything = sparse_ffn(model, limits(model, value=0.0))
    ffn = BufferedFFN(policy_selector(model, limits(model, value=0.0)), buffer(NEURONS), "drop")
    x = np.random.default_rng(0).standard_normal((2, HIDDEN))
    found, layer = ffn(x, model.layers[0]), model.layers[0]
    assert np.array_equal(found[0], layer.down_bias)
    np.testing.assert_allclose(found[1], everything(x, layer)[1], rtol=1e-12)


# ---- it really computes from what it holds ---------------------------------------------------------------------------


def test_only_the_rows_in_fast_memory_take_part():
    # The slow memory is read through a door of our own: what does not come through it cannot be in the output.
    model, asked = tiny.model("llama"), []

    def doubled(layer, neurons):
        asked.append((layer.index, neurons.tolist()))
        gate, up, down = from_weights(layer, neurons)
        return gate, up, 2 * down

    inner, select = sparse_ffn(model, limits(model)), policy_selector(model, limits(model))
    x = np.random.default_rng(1).standard_normal((3, HIDDEN))
    layer, ffn = model.layers[0], BufferedFFN(select, buffer(4), read=doubled)
    expected = 2 * (inner(x, layer) - layer.down_bias) + layer.down_bias
    np.testing.assert_allclose(ffn(x, layer), expected, rtol=1e-12)
    assert sum(len(neurons) for _, neurons in asked) * BUNDLE * 8 == ffn.bytes_read > 0
    # A row that was changed while it lay there shows in the next token that needs it.
    ffn, reference = (BufferedFFN(select, buffer(NEURONS)) for _ in range(2))
    for each in (ffn, reference):
        each(x[:1], layer)
    assert np.array_equal(ffn(x[:1], layer, 1), reference(x[:1], layer, 1))
    ffn.memory[0].arrays[2][:] = 0
    assert np.array_equal(ffn(x[:1], layer, 2)[0], layer.down_bias)


@quick
@given(capacity=st.integers(0, 12), eviction=st.sampled_from(["lru", "window-2"]), seed=st.integers(0, 9))
def test_after_each_token_the_fast_memory_holds_what_the_buffer_says_and_the_right_rows(capacity, eviction, seed):
    model = tiny.model("mistral", seed=seed)
    own = Predicted(guesser(model), limits(model))
    ffn = BufferedFFN(own, buffer(capacity, eviction), guess=own)
    cache = KVCache(model.config, 8, np.float64)
    for index in IDS:
        model.forward([index], cache, ffn)
        for layer in model.layers:
            memory = ffn.memory[layer.index]
            there = np.flatnonzero(memory.there)
            assert np.array_equal(memory.there, ffn.buffer.held[layer.index])
            own = memory.layer_of(layer, there)
            assert np.array_equal(own.gate_proj, layer.gate_proj[there])
            assert np.array_equal(own.up_proj, layer.up_proj[there])
            assert np.array_equal(own.down_proj, layer.down_proj[:, there])


def test_the_arrays_are_no_larger_than_what_lay_there_at_once():
    memory = FastMemory(9, 4, np.float32)
    rows = np.arange(36, dtype=np.float32).reshape(9, 4)

    def put(neurons):
        return memory.put(np.array(neurons), (rows[neurons], -rows[neurons], 2 * rows[neurons]))

    assert put([0, 3, 5]) == 3 * 3 * 4 * 4 == memory.nbytes
    memory.keep_only(np.isin(np.arange(9), [3]))
    put([1, 8])
    assert memory.nbytes == 3 * 3 * 4 * 4 and np.flatnonzero(memory.there).tolist() == [1, 3, 8]
    assert np.array_equal(memory.arrays[0][memory.slot[[1, 3, 8]]], rows[[1, 3, 8]])
    put([0])
    assert memory.nbytes == 3 * 4 * 4 * 4
    assert np.array_equal(memory.arrays[2][memory.slot[[0, 1, 3, 8]]], 2 * rows[[0, 1, 3, 8]])


# ---- bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("miss", ["wait", "drop"])
@pytest.mark.parametrize("role", ["select", "prefetch", "both"])
def test_the_bytes_copied_are_those_that_the_counts_mean(miss, role):
    model = tiny.model("llama", np.float32)
    cut = limits(model)
    ffn = BufferedFFN(**in_role(model, cut, Predicted(guesser(model), cut), role), buffer=buffer(4), miss=miss)
    model.forward(IDS, ffn=ffn)
    found = ffn.buffer.traffic().figures(BUNDLE * 4, miss)
    assert ffn.bytes_read == pytest.approx(found["bytes_per_token"] * len(IDS)) and ffn.bytes_read > 0


def test_bytes_by_hand():
    model = tiny.model("mistral", np.float32)
    sets = np.zeros((3, LAYERS, NEURONS), bool)
    sets[0, 0, [1, 2]] = sets[1, 0, [2, 3]] = sets[2, 0, [1, 3]] = True  # lru of 2: fetch 1 2, then 3, then 1
    inner = Recorded(sets.transpose(1, 0, 2))
    ffn = BufferedFFN(inner, buffer(2))
    model.forward([3, 4, 5], ffn=ffn)
    assert ffn.bytes_read == 4 * BUNDLE * 4
    ffn.reset()
    assert ffn.bytes_read == 0 and not ffn.buffer.held.any()
    ffn = BufferedFFN(inner, buffer(2, belady(sets)))
    model.forward([3, 4, 5], ffn=ffn)
    assert ffn.bytes_read == 3 * BUNDLE * 4  # it lets 2 go for 3, and has 1 when it is needed again


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused():
    model = tiny.model("llama")
    inner = policy_selector(model, limits(model))
    for policy in ("dhar", "teal", "wina"):
        with pytest.raises(MinillmError, match="cuts whole neurons"):
            policy_selector(model, limits(model, policy=policy))
    with pytest.raises(MinillmError, match="miss is 'guess'"):
        BufferedFFN(inner, buffer(3), miss="guess")
    for shape in ((1, NEURONS), (LAYERS, NEURONS + 1)):
        with pytest.raises(MinillmError, match="expected one of the buffer's"):
            model.forward(IDS, ffn=BufferedFFN(inner, PrefetchBuffer(*shape, 3)))


@pytest.mark.parametrize("bug", ["stale row", "descending", "down of another"])
def test_a_planted_bug_is_seen(bug, monkeypatch):
    model = tiny.model("llama", np.float32)
    put, layer_of = FastMemory.put, FastMemory.layer_of
    name, wrong = {
        "stale row": ("put", lambda s, n, b: put(s, n, (b[0][::-1], b[1], b[2]))),
        "down of another": ("put", lambda s, n, b: put(s, n, (b[0], b[1], np.roll(b[2], 1, axis=0)))),
        "descending": ("layer_of", lambda s, layer, n: layer_of(s, layer, n[::-1])),  # the same sum in another order
    }[bug]
    monkeypatch.setattr(FastMemory, name, wrong)
    cut = limits(model)
    ffn = BufferedFFN(policy_selector(model, cut), buffer(12))
    assert model.forward(IDS, ffn=ffn).tobytes() != gathered(model, cut).tobytes()


def test_a_static_set_needs_no_slow_memory_for_its_own():
    model = tiny.model("mistral", np.float32)
    sets = np.ones((LAYERS, NEURONS), bool)
    ffn = BufferedFFN(policy_selector(model, limits(model)), buffer(NEURONS, static("all", sets)))
    model.forward(IDS, ffn=ffn)
    assert ffn.bytes_read == sets.sum() * BUNDLE * 4 and not ffn.buffer.traffic().missed.any()
