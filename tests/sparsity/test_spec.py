"""The one accounting: the meter against slow counts, and what each policy must read."""

import json

import numpy as np
import pytest
import tiny

from minillm.predictors.select import sparse_ffn
from minillm.sparsity.policies import POLICIES
from minillm.sparsity.spec import SparsityMeter, SparsitySpec
from minillm.sparsity.thresholds import Thresholds
from minillm.trace import Trace

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
