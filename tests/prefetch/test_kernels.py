"""The FFN of one token from a set of neurons: three ways, one sum."""

import numpy as np
import pytest
import tiny

from minillm.errors import MinillmError
from minillm.prefetch.kernels import (
    DENSITIES,
    MEASURED,
    Blocks,
    NeuronMajor,
    block_views,
    choose,
    expected_speedup,
    gather,
    tiled_gather,
    with_router,
)
from minillm.sparsity.gathered import columns_of, rows_of
from minillm.transformer.ffn import swiglu

F, D = 44, 8


def layer_of(family="llama", dtype=np.float64, act="silu"):
    return tiny.model(family, dtype, intermediate_size=F, hidden_act=act).layers[1]


def sets(seed=0):
    rng = np.random.default_rng(seed)
    yield np.array([], int)
    yield np.arange(F)
    for share in (0.05, 0.5, 0.9):
        yield np.flatnonzero(rng.random(F) < share)


def plain(x, layer, neurons):
    """The gathered form of the chapter on cutting: rows and columns of a mask."""
    mask = np.zeros((1, F), bool)
    mask[0, neurons] = True
    gate = layer.act(rows_of(x[None], layer.gate_proj, layer.gate_bias, mask))
    up = rows_of(x[None], layer.up_proj, layer.up_bias, mask)
    return columns_of(gate * up, layer.down_proj, layer.down_bias, mask)[0]


def close(found, expected):
    assert found.dtype == expected.dtype and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * (np.abs(expected).max() or 1))


@pytest.mark.parametrize("act", ["silu", "relu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("family", ["llama", "mistral"])  # with and without biases
def test_gather_and_tiled_gather_equal_the_gathered_form(family, act):
    layer, x = layer_of(family, act=act), np.random.default_rng(1).standard_normal(D)
    weights = NeuronMajor.of(layer)
    for neurons in sets():
        expected = plain(x, layer, neurons)
        close(gather(x, weights, neurons), expected)
        for rows in (1, 3, 1000):  # tiles of one row, of three with a shorter last one, and all at once
            close(tiled_gather(x, weights, neurons, tile=rows * D * 8), expected)


@pytest.mark.parametrize("group", [1, 4, 16, 32, 44])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_block_views_equal_the_gathered_form_of_their_neurons(family, group):
    layer, x = layer_of(family), np.random.default_rng(2).standard_normal(D)
    weights, rng = Blocks.of(layer, group), np.random.default_rng(3)
    for share in (0, 0.3, 1):
        blocks = np.flatnonzero(rng.random(-(-F // group)) < share)
        neurons = [j for j in range(F) if j // group in blocks]
        close(block_views(x, weights, blocks), plain(x, layer, np.array(neurons, int)))


def test_all_neurons_are_the_dense_ffn_and_dtypes_stay():
    for dtype in (np.float32, np.float64):
        layer, x = layer_of(dtype=dtype), np.random.default_rng(4).standard_normal(D).astype(dtype)
        dense, every = swiglu(x[None], layer)[0], np.arange(F)
        results = gather(x, NeuronMajor.of(layer), every), tiled_gather(x, NeuronMajor.of(layer), every)
        for found in (*results, block_views(x, Blocks.of(layer, 16), np.arange(3))):
            assert found.dtype == dtype
            np.testing.assert_allclose(found, dense, rtol=0, atol=(1e-5 if dtype == np.float32 else 1e-12) * 10)


def test_the_weights_are_not_written_to():
    layer = layer_of()
    weights, blocks = NeuronMajor.of(layer), Blocks.of(layer, 4)
    arrays = [weights.gate, weights.up, weights.down, blocks.rows, layer.gate_bias, layer.up_bias, layer.down_bias]
    before = [array.copy() for array in arrays]
    for _ in range(2):
        gather(np.ones(D), weights, np.arange(0, F, 2))
        tiled_gather(np.ones(D), weights, np.arange(0, F, 2), 64)
        block_views(np.ones(D), blocks, np.arange(5))
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before, strict=True))


@pytest.mark.parametrize("neurons", [[0, F], [-1, 3]])
def test_a_neuron_out_of_range_is_refused_and_not_clipped(neurons):
    with pytest.raises(MinillmError, match=f"expected 0 to {F - 1}"):
        tiled_gather(np.ones(D), NeuronMajor.of(layer_of()), np.array(neurons))


def test_blocks_are_views_of_the_bundles():
    """Nothing but a few short arrays is made: the reason that blocks win."""
    import tracemalloc

    layer = tiny.model("mistral", np.float32, hidden_size=256, intermediate_size=512).layers[0]
    weights, x, blocks = Blocks.of(layer, 32), np.ones(256, np.float32), np.arange(0, 16, 2)
    tracemalloc.start()
    block_views(x, weights, blocks)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000 < weights.rows.nbytes / 2


def test_the_choice_follows_what_was_measured():
    assert choose((172, 64), 0.5) == choose((172, 64), 0.5, 32) == "dense"  # too small for anything
    assert choose((5632, 2048), 0.95) == "dense"
    assert choose((5632, 2048), 0.1) == choose((5632, 2048), 0.5) == "tiled"
    assert choose((5632, 2048), 0.5, 32) == "blocks"
    assert choose((768, 288), 0.7) == "dense" and choose((768, 288), 0.5, 32) == "blocks"
    for megabytes, ways in MEASURED.items():
        for place, density in enumerate(DENSITIES):
            found = expected_speedup((int(megabytes * 1e6 / 3 / 4), 1), density, 32)
            for way, speedups in ways.items():
                assert found[way] == pytest.approx(speedups[place], rel=1e-3)
    half, tenth = MEASURED[138]["tiled"]
    between = expected_speedup((5632, 2048), (0.5 * 0.1) ** 0.5)["tiled"]  # half way, in logarithms
    assert between == pytest.approx((half * tenth) ** 0.5, rel=5e-3)


def test_a_router_costs_its_tables_share_of_the_dense_time():
    dense, router = 3 * 24 * 8, 4 * 8 + 3 * 4  # weights of D = 8, F = 24; W1 (4, 8), W2 (3, 4) of blocks of 8
    assert with_router(2.0, (24, 8), 8) == pytest.approx(dense / (dense / 2 + router))
    assert with_router(2.0, (24, 8), 9) == with_router(2.0, (24, 8), 8)  # the last block has fewer
