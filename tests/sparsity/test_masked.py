"""The two forms of the sparse FFN: equal to dense where nothing is cut, equal to each other, and frugal."""

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.predictors.select import sparse_ffn
from minillm.sparsity.gathered import gathered_swiglu
from minillm.sparsity.masked import masked_swiglu
from minillm.sparsity.policies import POLICIES as ALL
from minillm.sparsity.spec import SparsityMeter, SparsitySpec
from minillm.sparsity.thresholds import Thresholds
from minillm.trace import Trace
from minillm.transformer.attention import KVCache
from minillm.transformer.ffn import swiglu

quick = settings(max_examples=25, derandomize=True, deadline=None)
IDS = [1, 5, 3, 9, 30, 2, 7]
POLICIES = {name: rule for name, rule in ALL.items() if name != "griffin"}  # which has a state: test_griffin.py
ACTIVATIONS = ["silu", "relu", "relu2", "gelu", "gelu_pytorch_tanh"]


def thresholds(policy: str, value: float) -> dict[str, float]:
    return dict.fromkeys(POLICIES[policy].tensors, value)


def cut(model, policy: str, value: float, form: str):
    rule = POLICIES[policy]
    layers = tuple(thresholds(policy, value) for _ in model.layers)
    spec = SparsitySpec(policy, rule.tensors, rule.comparison, "tensor", None)
    return sparse_ffn(model, Thresholds(policy, "tensor", None, layers, spec), form=form)


def by_hand(x: np.ndarray, layer, policy: str, limits: dict[str, float]) -> np.ndarray:
    """The FFN as a sum over neurons, one (token, neuron) pair at a time, with the rule written out."""
    out = np.zeros((len(x), len(layer.down_proj))) + (0 if layer.down_bias is None else layer.down_bias)
    neurons, inputs = range(len(layer.gate_proj)), range(len(layer.down_proj))
    for t in range(len(x)):
        x_gate, x_up, mids = x[t].copy(), x[t].copy(), []
        for i in inputs:
            weight = np.sqrt(sum(layer.gate_proj[j, i] ** 2 for j in neurons)) if policy == "wina" else 1.0
            if policy in ("teal", "wina"):
                x_gate[i] = (
                    x[t, i] if abs(x[t, i]) * weight > limits.get("in_gate", limits.get("in_gate_norm")) else 0.0
                )
                x_up[i] = x[t, i] if abs(x[t, i]) > limits["in_up"] else 0.0
        for j in neurons:
            g = x_gate @ layer.gate_proj[j] + (0 if layer.gate_bias is None else layer.gate_bias[j])
            u = x_up @ layer.up_proj[j] + (0 if layer.up_bias is None else layer.up_bias[j])
            if policy == "dhar":  # the paper's code: cut g and u, and then activate
                g = g if abs(g) >= limits["gate_pre"] else 0.0
                u = u if abs(u) >= limits["up"] else 0.0
            a = float(layer.act(np.array([g]))[0])
            if policy == "cats":
                a = a if abs(a) > limits["gate"] else 0.0
            if policy == "countdown":
                u = u if abs(u) > limits["up"] else 0.0
            m = a * u
            if policy in ("mid", "teal", "wina"):
                m = m if abs(m) > limits["mid"] else 0.0
            if policy == "cett":
                column = np.sqrt(sum(layer.down_proj[i, j] ** 2 for i in inputs))
                m = m if abs(m) * column >= limits["neuron_norm"] else 0.0
            mids.append(m)
        falling = sorted(map(abs, mids), reverse=True)
        if policy == "topk":
            fewest = falling[: len(mids) - round(limits["mid"] * len(mids))]
        if policy == "topp":
            fewest, goal = [], (1 - limits["mid"]) * sum(falling)
            while sum(fewest) < goal:
                fewest.append(falling[len(fewest)])
        if policy in ("topk", "topp"):
            mids = [m if abs(m) in fewest else 0.0 for m in mids]
        for j in neurons:
            out[t] += mids[j] * layer.down_proj[:, j]
    return np.where(np.abs(out) >= limits["out"], out, 0) if policy == "dhar" else out


@pytest.mark.parametrize("form", [masked_swiglu, gathered_swiglu])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", ["llama", "mistral"])  # with and without biases
def test_both_forms_are_the_rule_written_out_neuron_by_neuron(form, policy, family):
    layer, x = tiny.model(family).layers[1], np.random.default_rng(0).standard_normal((5, 8))
    limits = thresholds(policy, 0.4)
    found = form(x, layer, policy=POLICIES[policy], thresholds=limits)
    np.testing.assert_allclose(found, by_hand(x, layer, policy, limits), rtol=1e-11, atol=1e-13)
    assert not np.allclose(found, swiglu(x, layer))


# ---- nothing cut -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_masked_form_at_threshold_zero_is_dense_bit_for_bit(policy, activation, dtype):
    model = tiny.model("llama", dtype, hidden_act=activation)
    ffn = cut(model, policy, 0.0, "masked")
    assert model.forward(IDS, ffn=ffn).tobytes() == model.forward(IDS).tobytes()


@pytest.mark.parametrize("policy", POLICIES)
def test_the_gathered_form_at_threshold_zero_is_dense_up_to_the_order_of_sums(policy):
    model = tiny.model("llama")
    dense = model.forward(IDS)
    found = model.forward(IDS, ffn=cut(model, policy, 0.0, "gathered"))
    np.testing.assert_allclose(found, dense, rtol=0, atol=1e-12 * np.abs(dense).max())


# ---- gathered = masked -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", tiny.FAMILIES)
@quick
@given(value=st.floats(0, 2), seed=st.integers(0, 9))
def test_gathered_equals_masked_and_their_masks_are_the_same(policy, family, value, seed):
    model, traces = tiny.model(family, seed=seed), []
    for form in ("masked", "gathered"):
        with Trace(keep="*") as trace:
            model.forward(IDS, ffn=cut(model, policy, value, form), tap=trace)
        traces.append(trace)
    masked, gathered = traces
    assert [name for name in masked if name in gathered] == list(gathered)
    for name, found in gathered.items():
        expected = masked[name]
        if found.dtype == bool:
            assert np.array_equal(found, expected), name
        else:
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * (np.abs(expected).max() or 1))


@pytest.mark.parametrize("form", ["masked", "gathered"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_threshold_above_everything_leaves_the_attention_alone(form, policy):
    model = tiny.model("mistral")
    ffn = cut(model, policy, 1e9, form)
    silent = model.forward(IDS, ffn=lambda x, layer, position, tap: np.zeros_like(x))
    np.testing.assert_allclose(model.forward(IDS, ffn=ffn), silent, rtol=1e-13)


@pytest.mark.parametrize("form", ["masked", "gathered"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_cut_model_gives_the_same_token_by_token_as_in_one_pass(form, policy):
    model = tiny.model("llama")
    ffn, cache = cut(model, policy, 0.4, form), KVCache(model.config, 8, np.float64)
    steps = np.concatenate([model.forward([index], cache, ffn) for index in IDS])
    np.testing.assert_allclose(steps, model.forward(IDS, ffn=ffn), rtol=0, atol=1e-11)


@pytest.mark.parametrize("form", ["masked", "gathered"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_float32_model_stays_float32(form, policy):
    model = tiny.model("llama", np.float32)
    with Trace() as trace:
        model.forward(IDS, ffn=cut(model, policy, 0.4, form), tap=trace)
    values = [value for name, value in trace.items() if not name.endswith(".reads")]  # a report, and float64
    assert {value.dtype for value in values} == {np.dtype(np.float32), np.dtype(bool)}


# ---- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_the_gathered_form_reads_only_the_rows_and_columns_that_the_accounting_counts(policy):
    # One token; every row of up and every column of down that read_exact does not count is made NaN.
    model = tiny.model("llama", num_hidden_layers=1)
    layer, x = model.layers[0], np.random.default_rng(2).standard_normal((1, 8))
    limits = {tensor: value for tensor, value in thresholds(policy, 0.4).items() if tensor != "out"}  # NaN is cut there
    how = {"policy": POLICIES[policy], "thresholds": limits}
    meter, trace, norms = SparsityMeter(), Trace(), POLICIES[policy].norms(layer)

    def tap(name, value):
        return meter(f"blocks.0.mlp.{name}", trace(name, value))

    expected = gathered_swiglu(x, layer, 0, tap, **how)
    mask = trace["mask"][0]
    assert 0 < mask.sum() < len(mask)

    def read(name: str, size: int) -> np.ndarray:
        return trace[name][0] if name in trace else np.ones(size, bool)

    rows_of_gate, rows_of_up = read("mask_up", 12), read("mask_gate", 12)  # each decided by the other
    of_gate, of_up = read("mask_in_gate", 8), read("mask_in_up", 8)
    layer.gate_proj[~rows_of_gate], layer.gate_bias[~rows_of_gate] = np.nan, np.nan
    layer.up_proj[~rows_of_up], layer.up_bias[~rows_of_up] = np.nan, np.nan
    layer.gate_proj[:, ~of_gate], layer.up_proj[:, ~of_up] = np.nan, np.nan
    layer.down_proj[:, ~mask] = np.nan
    how["norms"] = norms
    assert np.array_equal(gathered_swiglu(x, layer, **how), expected) and np.isfinite(expected).all()
    assert np.isnan(masked_swiglu(x, layer, **how)).any()  # the plain form reads everything
    reads = (rows_of_gate.mean() * of_gate.mean(), rows_of_up.mean() * of_up.mean(), mask.mean())
    np.testing.assert_allclose(meter.report().read_exact, reads)
    # and each that is counted is needed: one more NaN shows
    layer.down_proj[:, np.flatnonzero(mask)[0]] = np.nan
    assert np.isnan(gathered_swiglu(x, layer, **how)).any()


@pytest.mark.parametrize("form", ["masked", "gathered"])
def test_a_neuron_that_an_edit_takes_out_of_the_mask_is_gone(form):
    model = tiny.model("llama")
    ffn = cut(model, "dhar", 0.2, form)

    def without_the_first_six(mask: np.ndarray) -> np.ndarray:
        mask[:, :6] = False
        return mask

    with Trace(keep="blocks.0.mlp.mid_cut", edits={"blocks.0.mlp.mask": without_the_first_six}) as trace:
        model.forward(IDS, ffn=ffn, tap=trace)
    assert not trace["blocks.0.mlp.mid_cut"][:, :6].any() and trace["blocks.0.mlp.mid_cut"][:, 6:].any()


@pytest.mark.parametrize("form", [masked_swiglu, gathered_swiglu])
def test_arguments_are_left_alone(form):
    model = tiny.model("llama")
    layer, x = model.layers[0], np.random.default_rng(0).standard_normal((3, 8))
    arrays = [x, *(value for value in vars(layer).values() if isinstance(value, np.ndarray))]
    before = [array.copy() for array in arrays]
    form(x, layer, policy=POLICIES["dhar"], thresholds=thresholds("dhar", 0.3))
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before, strict=True))
