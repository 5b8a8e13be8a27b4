"""The one accounting: the meter against slow counts, and what each policy must read."""

import json
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
import tiny

from minillm.predictors.select import sparse_ffn
from minillm.sparsity.policies import POLICIES
from minillm.sparsity.selected import Recorded, SelectedFFN, StaticSet
from minillm.sparsity.spec import SparsityMeter, SparsitySpec
from minillm.sparsity.thresholds import Thresholds
from minillm.trace import Trace
from minillm.transformer.attention import KVCache

IDS = np.random.default_rng(0).integers(0, 31, 19)


def cut(model, policy: str, form: str = "masked", **thresholds):
    rule = POLICIES[policy]
    layers = tuple(
        thresholds or dict.fromkeys(rule.tensors, 0.6 if policy == "countdown" else 0.3) for _ in model.layers
    )
    spec = SparsitySpec(policy, rule.tensors, rule.comparison, "tensor", None)
    return sparse_ffn(model, Thresholds(policy, "tensor", None, layers, spec), form=form)


def metered(model, ffn, window: int = 16, texts=(IDS,)):
    """The meter's report, and the same texts' traces for counting by hand."""
    meter, traces = SparsityMeter(window), []
    for ids in texts:
        with Trace() as trace:
            model.forward(ids, ffn=ffn, tap=lambda name, value, trace=trace: meter(name, trace(name, value)))
        traces.append(trace)
    return meter.report(), traces


def masks(traces, name: str) -> np.ndarray:
    """(layers, tokens of all texts, F) of one mask."""
    return np.array([np.concatenate([t[f"blocks.{i}.mlp.{name}"] for t in traces]) for i in range(2)])


# Which share of [gate rows, up rows, down columns] each policy reads when it computes its own mask.
READS = {
    "dhar": lambda traces: (1, masks(traces, "mask_gate").mean(), masks(traces, "mask").mean()),
    "cats": lambda traces: (1, masks(traces, "mask").mean(), masks(traces, "mask").mean()),
    "statistical": lambda traces: (1, masks(traces, "mask").mean(), masks(traces, "mask").mean()),
    "countdown": lambda traces: (masks(traces, "mask").mean(), 1, masks(traces, "mask").mean()),  # up comes first
    **dict.fromkeys(("mid", "cett", "topk", "topp"), lambda traces: (1, 1, masks(traces, "mask").mean())),
    **dict.fromkeys(
        ("teal", "wina"),
        lambda traces: tuple(masks(traces, mask).mean() for mask in ("mask_in_gate", "mask_in_up", "mask")),
    ),
}


@pytest.mark.parametrize("form", ["masked", "gathered"])
@pytest.mark.parametrize("policy", READS)
def test_reads_and_sparsity_are_the_shares_counted_by_hand(policy, form):
    model = tiny.model()
    report, traces = metered(model, cut(model, policy, form), texts=(IDS, IDS[:7], IDS[5:6]))
    kept = masks(traces, "mask")
    assert 0.2 < kept.mean() < 0.8 and report.tokens == 27
    assert np.isclose(report.neuron_sparsity, np.count_nonzero(masks(traces, "mid_cut") == 0) / kept.size)
    np.testing.assert_allclose(report.layer_sparsity, 1 - kept.mean(axis=(1, 2)))
    np.testing.assert_allclose(report.read_exact, READS[policy](traces))
    np.testing.assert_allclose(report.read_known_mask, (kept.mean(),) * 3)
    assert np.isclose(report.weight_reads, sum(READS[policy](traces)) / 3)
    assert np.isclose(report.weight_reads_known_mask, kept.mean())
    if policy not in ("teal", "wina", "countdown"):
        assert report.read_exact[1] >= report.read_exact[2]  # more is known later
    assert report.weight_reads_known_mask < report.weight_reads


# ---- reads, counted without a mask -----------------------------------------------------------------------------------

FILES = {  # a thresholds file may hold some of a policy's tensors only
    **{policy: dict.fromkeys(rule.tensors, 0.3) for policy, rule in POLICIES.items() if policy != "griffin"},
    "dhar, gate alone": {"gate_pre": 0.3},
    "dhar, up alone": {"up": 0.3},
    "dhar, output alone": {"out": 0.3},
    "teal, input of gate alone": {"in_gate": 0.3},
    "teal, input of up alone": {"in_up": 0.3},
    "teal, mid alone": {"mid": 0.3},
    "wina, input of up and mid": {"in_up": 0.3, "mid": 0.3},
}


def reads_by_hand(policy: str, limits: dict[str, float], x: np.ndarray, layer) -> tuple[float, float, float]:
    """Shares of gate, up and down that a policy must read for one token, from the values of x (D,) and the rule."""
    none = -1.0  # a limit that nothing is below
    cuts_inputs = policy in ("teal", "wina")
    weight = np.sqrt((layer.gate_proj**2).sum(axis=0)) if policy == "wina" else np.ones(len(x))
    gate_input = np.abs(x) * weight > limits.get("in_gate", limits.get("in_gate_norm", none))
    up_input = np.abs(x) > limits.get("in_up", none)
    g = layer.gate_proj @ np.where(gate_input, x, 0) + (0 if layer.gate_bias is None else layer.gate_bias)
    u = layer.up_proj @ np.where(up_input, x, 0) + (0 if layer.up_bias is None else layer.up_bias)
    a = layer.act(g)
    m, F = a * u, len(g)
    by_gate = (np.abs(g) >= limits.get("gate_pre", none)) & (np.abs(a) > limits.get("gate", none))
    if policy == "statistical":
        by_gate = g > g.mean() + g.std() * NormalDist().inv_cdf(limits["gate_pre"])
    by_up = np.abs(u) >= limits.get("up", none)
    if policy in ("mid", "teal", "wina"):
        by_mid = np.abs(m) > limits.get("mid", none)
    elif policy == "cett":
        by_mid = np.abs(m) * np.sqrt((layer.down_proj**2).sum(axis=0)) >= limits["neuron_norm"]
    elif policy == "topk":
        by_mid = np.abs(m) >= np.sort(np.abs(m))[round(limits["mid"] * F)]
    elif policy == "topp":
        falling = np.sort(np.abs(m))[::-1]
        enough = next(n for n in range(1, F + 1) if falling[:n].sum() >= (1 - limits["mid"]) * falling.sum())
        by_mid = np.abs(m) >= falling[enough - 1]
    else:
        by_mid = np.ones(F, bool)
    down = (by_gate & by_up & by_mid).mean()
    if cuts_inputs:
        return gate_input.mean(), up_input.mean(), down
    if {"gate_pre", "gate"} & set(limits):
        return 1.0, by_gate.mean(), down
    return (by_up.mean() if "up" in limits else 1.0), 1.0, down


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("form", ["masked", "gathered"])
@pytest.mark.parametrize("family", ["plain", "llama"])
@pytest.mark.parametrize("file", FILES)
def test_reads_are_what_the_rule_needs_token_by_token(file, family, form, dtype):
    model, policy = tiny.model(family, dtype), file.partition(",")[0]
    report, (trace,) = metered(model, cut(model, policy, form, **FILES[file]))
    shares = [
        reads_by_hand(policy, FILES[file], x, layer)
        for i, layer in enumerate(model.layers)
        for x in trace[f"blocks.{i}.mlp.norm"]
    ]
    assert report.read_exact == pytest.approx(np.mean(shares, axis=0), abs=1e-12)
    np.testing.assert_allclose(np.concatenate([trace[f"blocks.{i}.mlp.reads"] for i in range(2)]), shares, atol=1e-12)


class Counted(np.ndarray):
    """A weight matrix that writes down which share of it is taken: some rows, some columns, or (by .T) all."""

    @classmethod
    def of(cls, array: np.ndarray, taken: list[float]) -> "Counted":
        counted = array.view(cls)
        counted.taken = taken
        return counted

    def __getitem__(self, key):
        part = np.asarray(super().__getitem__(key))
        self.taken.append(part.size / self.size)
        return part

    @property
    def T(self):  # noqa: N802
        self.taken.append(1.0)
        return np.asarray(self).T

    def dot(self, x, out=None):
        self.taken.append(1.0)
        return np.asarray(self).dot(x, out=out)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("file", [*FILES, "static set", "recorded"])
def test_reads_of_the_gathered_form_are_the_weights_that_it_touches(file, dtype, monkeypatch):
    monkeypatch.setattr("minillm.transformer.linear.blas_is_slow", lambda: False)  # the form that Counted sees
    model, policy = tiny.model("llama", dtype), file.partition(",")[0]
    chosen = np.random.default_rng(1).random((2, len(IDS), 12)) < 0.4
    if file in FILES:
        ffn = cut(model, policy, "gathered", **FILES[file])
    else:
        ffn = SelectedFFN(StaticSet(chosen[:, 0]) if file == "static set" else Recorded(chosen), "gathered")
    taken = {name: [] for name in ("gate_proj", "up_proj", "down_proj")}
    for i, layer in enumerate(model.layers):
        counted = {name: Counted.of(getattr(layer, name), shares) for name, shares in taken.items()}
        model.layers[i] = replace(layer, **counted)
    meter, cache = SparsityMeter(), KVCache(model.config, len(IDS), dtype)
    for index in IDS:
        model.forward([index], cache, ffn, tap=meter)
    assert all(len(shares) == 2 * len(IDS) for shares in taken.values())  # once for each layer and token
    assert meter.report().read_exact == pytest.approx([np.mean(shares) for shares in taken.values()], abs=1e-12)


def test_dhar_gate_alone_as_for_phi3_reads_as_cats_does():
    model = tiny.model("phi3")
    report, traces = metered(model, cut(model, "dhar", gate_pre=0.3, out=0.2))
    kept = masks(traces, "mask").mean()
    np.testing.assert_allclose(report.read_exact, (1, kept, kept))
    assert set(report.tensor_sparsity) == {"gate", "out"}


def test_a_tensor_sparsity_is_the_share_that_its_own_threshold_cuts():
    model = tiny.model()
    report, traces = metered(model, cut(model, "dhar", gate_pre=0.1, up=0.4, out=0.2))
    for tensor, step, threshold in (("gate", "gate_pre", 0.1), ("up", "up", 0.4), ("out", "out", 0.2)):
        share = (np.abs(masks(traces, step)) < threshold).mean()
        assert np.isclose(report.tensor_sparsity[tensor], share)
    assert np.isclose(report.achieved("tensor"), np.mean(list(report.tensor_sparsity.values())))
    assert report.achieved("neuron") == report.neuron_sparsity


def test_the_gathered_form_does_not_know_how_much_of_up_dhar_cuts():
    (masked, _), (gathered, _) = (
        metered(tiny.model(), cut(tiny.model(), "dhar", form)) for form in ("masked", "gathered")
    )
    assert set(masked.tensor_sparsity) == {"gate", "up", "out"} and set(gathered.tensor_sparsity) == {"gate", "out"}
    assert gathered.neuron_sparsity == masked.neuron_sparsity and gathered.read_exact == masked.read_exact


@pytest.mark.parametrize(("policy", "name"), [("cats", "gate"), ("mid", "mid"), ("countdown", "up")])
def test_a_policy_of_one_tensor_has_one_tensor_sparsity_which_is_its_neuron_sparsity(policy, name):
    report, _ = metered(tiny.model(), cut(tiny.model(), policy))
    assert report.tensor_sparsity == {name: report.neuron_sparsity}
    assert report.achieved("tensor") == report.achieved("neuron") > 0.15


def test_union_density_is_the_share_of_neurons_that_any_token_of_a_window_needs():
    model = tiny.model()
    ffn = cut(model, "mid", mid=1.0)
    for window in (1, 4, 5):
        report, traces = metered(model, ffn, window, texts=(IDS, IDS[:6]))
        needed = [
            trace[f"blocks.{i}.mlp.mask"][a : a + window].any(axis=0)
            for trace in traces
            for i in range(2)
            for a in range(0, len(trace["embed"]) - window + 1, window)  # whole windows, none across two texts
        ]
        assert np.isclose(report.union_density, np.mean(needed)) and report.union_window == window
        if window == 1:
            whole = [trace[f"blocks.{i}.mlp.mask"] for trace in traces for i in range(2)]
            assert np.isclose(report.union_density, np.concatenate(whole).mean())
    assert metered(model, ffn, 64)[0].union_density is None  # no text is that long


def test_a_dense_model_has_sparsity_zero_and_reads_everything():
    meter = SparsityMeter()
    tiny.model().forward(IDS, tap=meter)
    report = meter.report()
    assert (report.tokens, report.neuron_sparsity, report.tensor_sparsity) == (19, 0, {})
    assert report.read_exact == report.read_known_mask == (1, 1, 1) and report.weight_reads == 1
    assert report.union_density is None and report.achieved("tensor") == 0


def test_the_meter_changes_nothing():
    model = tiny.model()
    ffn = cut(model, "dhar")
    assert np.array_equal(model.forward(IDS, ffn=ffn, tap=SparsityMeter()), model.forward(IDS, ffn=ffn))


def test_a_spec_names_everything_that_a_percentage_leaves_open_and_goes_through_json():
    spec = SparsitySpec("dhar", ("gate_pre", "up"), ">=", "neuron", 0.5, 0.4987)
    text = str(spec)
    for part in ("dhar", "|gate_pre| >=", "|up| >=", "neuron sparsity", "target 0.500", "achieved 0.499", "every token",
                 "all layers", "one threshold per layer and tensor"):  # fmt: skip
        assert part in text
    fields = json.loads(json.dumps(spec.asdict()))
    assert SparsitySpec(**fields | {"tensors": tuple(fields["tensors"])}) == spec
    assert "target unknown" in str(SparsitySpec("cats", ("gate",), ">", "tensor", None))
