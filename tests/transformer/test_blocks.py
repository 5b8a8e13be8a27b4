"""How a block is wired: two parts, each on a normed copy of the stream, each added back."""

import numpy as np
import tiny

from minillm.trace import Trace, no_tap
from minillm.transformer.attention import KVCache, attention
from minillm.transformer.blocks import Positions, block
from minillm.transformer.ffn import swiglu
from minillm.transformer.ops import rms_norm
from minillm.transformer.rope import rope_table

H = np.random.default_rng(0).standard_normal((5, 8))


def test_a_block_adds_attention_and_then_the_feed_forward_network_of_normed_copies():
    model = tiny.model("mistral")
    layer, (cos, sin) = model.layers[1], rope_table(model.config.rope, 5, np.float64)
    before = H.copy()
    middle = H + attention(rms_norm(H, layer.input_layernorm, layer.eps), layer, cos, sin)
    expected = middle + swiglu(rms_norm(middle, layer.post_attention_layernorm, layer.eps), layer)
    assert np.array_equal(block(H, layer, Positions(0, ((cos, sin),)), swiglu, no_tap), expected)
    assert np.array_equal(H, before)


def test_the_feed_forward_network_gets_the_layer_and_the_first_position_and_taps_below_mlp():
    model, calls = tiny.model(), []
    cos, sin = rope_table(model.config.rope, 8, np.float64)
    cache = KVCache(model.config, 8, np.float64)
    cache.keys[:], cache.values[:], cache.length = 0, 0, 3

    def ffn(x, layer, position, tap):
        calls.append((x.shape, layer.index, position))
        return tap("out", np.zeros_like(x))

    with Trace() as trace:
        out = block(H, model.layers[1], Positions(3, ((cos[3:], sin[3:]),), cache), ffn, trace)
    assert calls == [((5, 8), 1, 3)]
    names = list(trace)
    assert names[0] == "resid_pre" and names[-4:] == ["resid_mid", "mlp.norm", "mlp.out", "resid_post"]
    assert trace["attn.pattern"].shape == (4, 5, 8)  # three positions of the cache and five new ones
    assert np.array_equal(out, trace["resid_mid"])  # a network that gives zeros changes nothing
