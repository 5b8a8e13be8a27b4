"""The checks bite: each classic mistake, planted in the real source, is found at the step where it was made.

A bug is a change of one piece of a function's source. The golden comparison then has to name the expected step as the
first divergence; every step before it must still agree.
"""

import numpy as np
import pytest
from planted import plant

from minillm.loading import checkpoint
from minillm.sparsity.masked import masked_swiglu
from minillm.sparsity.policies import POLICIES, Policy
from minillm.trace import Trace
from minillm.transformer import attention, blocks, ffn, model, ops, rope
from minillm.transformer import layer as layer_module
from minillm.transformer.attention import KVCache

# id: (owner, function, old, new, golden, the step that must be named first)
ATTENTION, ATTEND = (attention, "attention"), (attention, "attend")
ROPE, BLOCK = (rope, "rope_frequencies"), (blocks, "pre_norm")
BUGS = {
    "rope pairing": (
        *ATTENTION, "rotate_halves(np", "rotate_interleaved(np", "llama", "blocks.0.attn.rot_q"),
    "rope turns backwards": (
        rope, "rotate_halves", "[a * cos - b * sin, b * cos + a * sin", "[a * cos + b * sin, b * cos - a * sin",
        "llama", "blocks.0.attn.rot_q"),
    "rope turns the part that passes": (
        rope, "rotate_halves", "x[..., 2 * half :]]", "x[..., : x.shape[-1] - 2 * half]]",
        "phi3_partial_window", "blocks.0.attn.rot_q"),
    "positions start at one": (
        rope, "rope_table", "np.arange(length)", "np.arange(1, length + 1)", "llama", "blocks.0.attn.rot_q"),
    "linear scaling left out": (
        *ROPE, 'rope_type == "linear"', 'rope_type == "none"', "llama_linear_biases_tied", "blocks.0.attn.rot_q"),
    "llama3 scaling left out": (
        *ROPE, 'rope_type == "llama3"', 'rope_type == "none"', "llama_llama3", "blocks.0.attn.rot_q"),
    "llama3 without its blend": (
        *ROPE, "np.clip(blend, 0, 1)", "np.round(np.clip(blend, 0, 1))", "llama_llama3", "blocks.0.attn.rot_q"),
    "longrope's short list for a long text": (
        *ROPE, "rope.long_factor if", "rope.short_factor if", "phi3_long", "blocks.0.attn.rot_q"),
    "longrope's long list for a short text": (
        *ROPE, "else rope.short_factor", "else rope.long_factor", "phi3_short", "blocks.0.attn.rot_q"),
    "longrope's attention factor left out": (
        rope, "rope_table", "rope.attention_factor != 1.0", "False", "phi3_long", "blocks.0.attn.rot_q"),
    "mask lets the next position through": (
        attention, "causal_mask", "s <= t\n", "s <= t + 1\n", "llama", "blocks.0.attn.pattern"),
    "window one too long": (
        attention, "causal_mask", "s > t - window", "s >= t - window", "mistral_window", "blocks.0.attn.pattern"),
    "window one too short": (
        attention, "causal_mask", "s > t - window", "s > t - window + 1", "mistral_window", "blocks.0.attn.pattern"),
    "window on every layer": (
        layer_module.Layer, "from_weights", "config.sliding_windows[index]", "config.sliding_windows[-1]",
        "qwen2_one_window_tied", "blocks.0.attn.pattern"),
    "scale of the whole width": (
        *ATTEND, "1 / math.sqrt(d)", "1 / math.sqrt(heads * d)", "llama", "blocks.0.attn.scores"),
    "head order: query heads dealt out in turn": (
        *ATTEND, "q.reshape(new, kv_heads, -1, d).transpose(1, 2, 0, 3)",
        "q.reshape(new, -1, kv_heads, d).transpose(2, 1, 0, 3)", "llama", "blocks.0.attn.scores"),
    "heads left in front": (
        *ATTEND, "z.reshape(heads, new, d).transpose(1, 0, 2)", "z.reshape(new, -1, d)", "llama", "blocks.0.attn.z"),
    "qwen3's norms left out": (
        *ATTENTION, "if layer.q_norm is not None", "if False", "qwen3", "blocks.0.attn.q"),
    "a bias left out": (
        *ATTENTION, "linear(x, layer.k_proj, layer.k_bias)", "linear(x, layer.k_proj)",
        "qwen2_one_window_tied", "blocks.0.attn.k"),
    "norm order: the two norms of a block exchanged": (
        *BLOCK, 'normed(h, layer, "input_layernorm")', 'normed(h, layer, "post_attention_layernorm")', "llama",
        "blocks.0.attn.norm"),
    "norm order: the FFN reads the stream un-normed": (
        *BLOCK, 'tap("mlp.norm", normed(h, layer, "post_attention_layernorm"))', 'tap("mlp.norm", h)',
        "llama", "blocks.0.mlp.norm"),
    "eps beside the root": (
        ops, "rms_norm", "np.sqrt(np.vecdot(x, x)[..., None] / n + eps)",
        "(np.sqrt(np.vecdot(x, x)[..., None] / n) + eps)", "llama", "blocks.0.attn.norm"),
    "eps of another family": (
        layer_module.Layer, "from_weights", "config.rms_norm_eps", "1e-6", "llama", "blocks.0.attn.norm"),
    "eps of another family in the last norm": (
        model.Llama, "last_norm", "self.config.rms_norm_eps", "1e-6", "llama", "final_norm"),
    "residual around the FFN left out": (
        *BLOCK, '"resid_post", h + ffn(', '"resid_post", ffn(', "llama", "blocks.0.resid_post"),
    "gate and up exchanged": (
        ffn, "swiglu", "linear(x, layer.gate_proj, layer.gate_bias)", "linear(x, layer.up_proj, layer.up_bias)",
        "llama", "blocks.0.mlp.gate_pre"),
    "gate and up exchanged in the fused file": (
        checkpoint, "split_fused", "config.weight_shapes().items()",
        "sorted(config.weight_shapes().items(), key=lambda item: 'gate_proj' in item[0])", "phi3_long",
        "blocks.0.mlp.gate_pre"),
    "keys and values exchanged in the fused file": (
        checkpoint, "split_fused", "config.weight_shapes().items()",
        "sorted(config.weight_shapes().items(), key=lambda item: 'k_proj' in item[0])", "phi3_long",
        "blocks.0.attn.k"),
    "activation on up": (
        ffn, "swiglu", '"mid", gate * up', '"mid", gate_pre * layer.act(up)', "llama", "blocks.0.mlp.mid"),
    "untied head ignored": (
        model.Llama, "__init__", 'weights.get(HEAD, self.embed_tokens)', "self.embed_tokens",
        "llama", "logits"),
    "tied head is another matrix": (
        model.Llama, "__init__", 'weights.get(HEAD, self.embed_tokens)', "self.embed_tokens[::-1]",
        "qwen3", "logits"),
    "last norm with the last block's weight": (
        model.Llama, "__init__", 'weights.get("model.norm.weight")', "self.layers[-1].input_layernorm",
        "llama", "final_norm"),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_the_golden_comparison_names_the_step_of(golden, monkeypatch, bug):
    owner, name, old, new, case, step = BUGS[bug]
    monkeypatch.setattr(attention, "rotate_interleaved", rope.rotate_interleaved, raising=False)
    function = plant(monkeypatch, owner, name, old, new)
    feed_forward = function if name == "swiglu" else ffn.swiglu  # forward's default was bound when it was defined
    result = golden(case).check(ffn=feed_forward)
    assert result.first == step, str(result)
    before = result.rows[: [row.name for row in result.rows].index(step)]
    assert all(row.status == "ok" for row in before)


# A cache can be wrong where a single pass is right; then the two must be seen to differ.
CACHE_BUGS = {
    "mask counts from the chunk's start": (
        attention, "causal_mask", "np.arange(attended - new, attended)", "np.arange(new)", "mistral_window"),
    "positions start again in each chunk": (
        blocks, "positions_of", "(cos[first:][:count], sin[first:][:count])", "(cos[:count], sin[:count])", "llama"),
    "every chunk is written to the front": (
        attention.KVCache, "append", "self.keys[layer, :, self.length : end]", "self.keys[layer, :, : len(k)]",
        "llama"),
    "no window for a single new position": (
        *ATTENTION, "if layer.window is not None:", "if layer.window is not None and new > 1:", "mistral_window"),
    "longrope looks at what has come so far": (
        attention.KVCache, "__init__", "rope_table(rope, capacity, dtype)",
        "[np.concatenate([a[:8], b[8:]]) for a, b in "
        "zip(rope_table(rope, 8, dtype), rope_table(rope, capacity, dtype))]", "phi3_long"),
}  # fmt: skip


@pytest.mark.parametrize("bug", [None, *CACHE_BUGS], ids=str)
def test_chunks_with_a_cache_differ_from_the_golden_with(golden, monkeypatch, bug):
    *change, name = CACHE_BUGS[bug] if bug else (None, "mistral_window")
    case = golden(name)
    if bug:
        plant(monkeypatch, *change)
    dense = case.model()
    cache = KVCache(dense.config, len(case.ids), dense.dtype)
    cache.keys[:] = cache.values[:] = 0  # a bug must not read what memory happens to hold, which may be no number
    rows = [dense.forward(case.ids[a:b], cache) for a, b in ((0, 2), (2, 3), (3, 4), (4, 8), (8, 9), (9, 13))]
    error = np.abs(np.concatenate(rows) - case.steps["logits"]).max() / np.abs(case.steps["logits"]).max()
    assert (error > 1e-3) if bug else (error < 1e-12), error


def wrong_masks(case) -> list[str]:
    """The policies whose mask is not the one that a plain loop over the golden's values gives.

    The thresholds are values that occur, so that >= and > part ways there and nowhere else.
    """
    dense, wrong, tensors = case.model(), [], ("gate_pre", "gate", "up", "mid")
    with Trace(keep="blocks.0.mlp.*") as trace:
        dense.forward(case.ids, tap=trace)
    steps = {name.rsplit(".", 1)[-1]: np.abs(value) for name, value in trace.items()}
    at = {tensor: float(np.sort(steps[tensor].ravel())[steps[tensor].size // 2]) for tensor in tensors}
    gate_pre, gate, up, mid = (steps[tensor].ravel().tolist() for tensor in tensors)
    expected = {  # arXiv 2412.12178 eq. 3-5 keep what equals the threshold, CATS does not
        "dhar": [g >= at["gate_pre"] and u >= at["up"] for g, u in zip(gate_pre, up, strict=True)],
        "cats": [a > at["gate"] for a in gate],
        "mid": [m > at["mid"] for m in mid],
    }
    for name, mask in expected.items():
        with Trace(keep="mask") as cut:
            masked_swiglu(trace["blocks.0.mlp.norm"], dense.layers[0], 0, cut, policy=POLICIES[name], thresholds=at)
        if cut["mask"].ravel().tolist() != mask:
            wrong.append(name)
    return wrong


def test_a_threshold_compared_the_other_way_is_seen_in_the_mask(golden, monkeypatch):
    assert wrong_masks(golden("llama")) == []
    plant(monkeypatch, Policy, "kept", "~(size < threshold)", "~(size <= threshold)")
    assert wrong_masks(golden("llama")) == ["dhar"]
    monkeypatch.undo()
    plant(monkeypatch, Policy, "kept", "~(size <= threshold)", "~(size < threshold)")
    assert wrong_masks(golden("llama")) == ["cats", "mid"]


def test_skipping_the_last_layer_is_seen(golden):
    case = golden("llama")
    short = case.model()
    short.layers = short.layers[:1]
    assert case.check(short).first == "final_norm"


def test_a_planted_bug_that_no_longer_fits_the_source_says_so(monkeypatch):
    with pytest.raises(AssertionError, match="bring the planted bug up to date"):
        plant(monkeypatch, ops, "rms_norm", "no such text", "")
