"""Attention against a triple loop over heads, positions and coordinates; the cache against a pass without one."""

import doctest
import math

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.errors import MinillmError
from minillm.transformer import attention as attention_module
from minillm.transformer.attention import KVCache, attend, attention, causal_mask
from minillm.transformer.ops import softmax
from minillm.transformer.rope import rope_table, rotate_halves

quick = settings(max_examples=20, derandomize=True, deadline=None)
IDS = np.random.default_rng(3).integers(0, 31, 11)


def slow_attention(x: np.ndarray, layer, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """z_t = sum_s softmax_s(q_t . k_s / sqrt(d)) v_s, one number at a time; head h reads key head h // (H / K)."""
    length, d = len(x), layer.head_dim

    def heads(weight, bias, norm=None):
        rows = [[sum(w * v for w, v in zip(row, xt, strict=True)) for row in weight.tolist()] for xt in x.tolist()]
        y = (np.array(rows) + (0 if bias is None else bias)).reshape(length, -1, d)
        if norm is not None:
            y = y / np.sqrt((y**2).mean(axis=-1, keepdims=True) + layer.eps) * norm
        return y

    q = rotate_halves(heads(layer.q_proj, layer.q_bias, layer.q_norm), cos, sin)
    k = rotate_halves(heads(layer.k_proj, layer.k_bias, layer.k_norm), cos, sin)
    v = heads(layer.v_proj, layer.v_bias)
    group = q.shape[1] // k.shape[1]
    z = np.zeros_like(q)
    for h in range(q.shape[1]):
        for t in range(length):
            seen = [s for s in range(t + 1) if layer.window is None or t - s < layer.window]
            scores = [float(q[t, h] @ k[s, h // group]) / math.sqrt(d) for s in seen]
            shares = [math.exp(score - max(scores)) for score in scores]
            for s, share in zip(seen, shares, strict=True):
                z[t, h] += share / sum(shares) * v[s, h // group]
    out = z.reshape(length, -1) @ layer.o_proj.T
    return out if layer.o_bias is None else out + layer.o_bias


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_is_the_triple_loop_for_every_family_and_every_grouping(family, kv_heads):
    model = tiny.model(family, num_key_value_heads=kv_heads)
    layer, x = model.layers[1], np.random.default_rng(1).standard_normal((7, 8))
    cos, sin = rope_table(model.config.rope, 7, np.float64)
    np.testing.assert_allclose(attention(x, layer, cos, sin), slow_attention(x, layer, cos, sin), rtol=1e-11)


@pytest.mark.parametrize(("new", "attended", "window"), [(3, 3, None), (2, 5, None), (4, 6, 2), (1, 5, 3), (3, 3, 1)])
def test_the_mask_lets_a_position_see_itself_and_window_less_one_before_it(new, attended, window):
    mask = causal_mask(new, attended, window)
    assert mask.shape == (new, attended)
    for row in range(new):
        t = attended - new + row
        for s in range(attended):
            assert mask[row, s] == (s <= t and (window is None or t - s < window))


def test_the_worked_examples_of_the_mask_are_right():
    result = doctest.testmod(attention_module)
    assert result.failed == 0 and result.attempted == 2


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("new", "attended", "window"), [(5, 5, None), (2, 6, None), (1, 6, None), (3, 7, 2)])
def test_attend_is_its_equation_for_each_head_by_itself(kv_heads, new, attended, window):
    rng, heads, d = np.random.default_rng(0), 4, 3
    q, (k, v) = rng.standard_normal((new, heads, d)), rng.standard_normal((2, kv_heads, attended, d))
    mask = causal_mask(new, attended, window)
    added, expected = np.where(mask, 0, -np.inf), np.empty((new, heads, d))
    for h in range(heads):
        g = h // (heads // kv_heads)
        expected[:, h] = softmax(q[:, h] @ k[g].T / math.sqrt(d) + added) @ v[g]
    before = [array.copy() for array in (q, k, v, mask)]
    np.testing.assert_allclose(attend(q, k, v, mask), expected, rtol=1e-12)
    assert all(np.array_equal(array, copy) for array, copy in zip((q, k, v, mask), before, strict=True))
    if window is None:  # the columns that are all True may be left out of the mask
        assert np.array_equal(attend(q, k, v, mask[:, -new:]), attend(q, k, v, mask))
    assert np.array_equal(attend(q, k, v, None), attend(q, k, v, np.ones_like(mask)))


def test_a_later_token_changes_nothing_before_it_and_a_window_forgets():
    plain, mistral = tiny.model("plain"), tiny.model("mistral", num_hidden_layers=1)  # its window is 3
    changed = IDS.copy()
    changed[5] = (changed[5] + 1) % 31
    same = [np.abs(m.forward(IDS) - m.forward(changed)).max(axis=-1) == 0 for m in (plain, mistral)]
    assert same[0].tolist() == [True] * 5 + [False] * 6
    assert same[1].tolist() == [True] * 5 + [False] * 3 + [True] * 3


# ---- the cache -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
@quick
@given(cuts=st.lists(st.integers(1, len(IDS) - 1), max_size=4), capacity=st.integers(len(IDS), 20))
def test_token_by_token_and_in_chunks_equal_the_full_pass(family, cuts, capacity):
    model = tiny.model(family)
    edges = [0, *sorted(set(cuts)), len(IDS)]
    for pieces in (list(zip(edges, edges[1:], strict=False)), [(i, i + 1) for i in range(len(IDS))]):
        cache = KVCache(model.config, capacity, np.float64)
        parts = [model.forward(IDS[a:b], cache=cache) for a, b in pieces]
        assert cache.length == len(IDS)
        full = model.forward(IDS)
        np.testing.assert_allclose(np.concatenate(parts), full, rtol=0, atol=1e-12 * np.abs(full).max())


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("keep", [0, 1, 4, 8])
def test_a_truncated_and_continued_cache_equals_a_fresh_one(family, keep):
    model = tiny.model(family)
    used, fresh = (KVCache(model.config, 16, np.float64) for _ in range(2))
    model.forward(IDS[::-1][:8], cache=used)
    used.truncate(0)
    model.forward(IDS[:8], cache=used)
    used.truncate(keep)
    if keep:
        model.forward(IDS[:keep], cache=fresh)
    again, expected = (model.forward(IDS[keep:], cache=cache) for cache in (used, fresh))
    np.testing.assert_allclose(again, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    assert used.length == fresh.length == len(IDS)


def test_append_writes_behind_what_is_there_and_gives_back_all_of_it_as_views():
    config = tiny.config(num_hidden_layers=1)
    cache = KVCache(config, 4, np.float64)
    k = np.arange(24.0).reshape(3, 2, 4)  # (T, K, d)
    cache.append(0, k[:2], -k[:2])
    assert cache.length == 0  # it moves on once all layers have written
    cache.advance(2)
    keys, values = cache.append(0, k[2:], -k[2:])
    assert np.array_equal(keys, k.transpose(1, 0, 2)) and np.array_equal(values, -keys)
    assert np.shares_memory(keys, cache.keys) and np.shares_memory(values, cache.values)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nbytes_is_two_times_layers_heads_capacity_and_head_size(dtype):
    cache = KVCache(tiny.config(), 7, dtype)
    assert cache.nbytes == 2 * 2 * 2 * 7 * 4 * np.dtype(dtype).itemsize == cache.keys.nbytes + cache.values.nbytes


@pytest.mark.parametrize("capacity", [0, -1, 65])
def test_a_capacity_that_the_model_does_not_have_is_refused(capacity):
    with pytest.raises(MinillmError, match=f"capacity is {capacity}, expected 1 to 64"):
        KVCache(tiny.config(), capacity)


def test_a_full_cache_refuses_more_and_stays_usable():
    model = tiny.model()
    cache = KVCache(model.config, 4, np.float64)
    model.forward([1, 2, 3], cache=cache)
    with pytest.raises(MinillmError, match="holds 3 of 4 positions, 2 more do not fit"):
        model.forward([4, 5], cache=cache)
    assert cache.length == 3
    assert np.allclose(model.forward([4], cache=cache)[-1], model.forward([1, 2, 3, 4])[-1], rtol=1e-12)


@pytest.mark.parametrize("length", [-1, 4])
def test_truncating_to_what_is_not_there_is_refused(length):
    model = tiny.model()
    cache = KVCache(model.config, 8, np.float64)
    model.forward([1, 2, 3], cache=cache)
    with pytest.raises(MinillmError, match=f"cannot truncate a cache of 3 positions to {length}"):
        cache.truncate(length)


def test_a_cache_of_another_dtype_is_refused():
    with pytest.raises(MinillmError, match="the cache is float32, the model float64"):
        tiny.model().forward([1, 2], cache=KVCache(tiny.config(), 8))


def test_longropes_list_of_factors_follows_the_planned_length_and_not_the_length_so_far():
    model = tiny.model("phi3")  # original length 4
    short, long = (KVCache(model.config, capacity, np.float64) for capacity in (4, 11))
    first = [model.forward(IDS[:4], cache=cache) for cache in (short, long)]
    assert np.array_equal(first[0], model.forward(IDS[:4])) and not np.allclose(*first)
    np.testing.assert_allclose(first[1], model.forward(IDS)[:4], rtol=1e-11)
