"""Quantiles, the search for a neuron sparsity, and the two kinds of thresholds files; real models at the end."""

import copy
import json
import sys
import warnings

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minillm.errors import MinillmError, ThresholdsError
from minillm.predictors.select import sparse_ffn
from minillm.sparsity import magnitudes as magnitudes_module
from minillm.sparsity.calibrate import calibrate
from minillm.sparsity.magnitudes import ExactMagnitudes, StreamingMagnitudes, collect
from minillm.sparsity.policies import POLICIES, TENSORS, magnitude
from minillm.sparsity.spec import SparsityMeter, SparsitySpec
from minillm.sparsity.thresholds import Thresholds
from minillm.trace import Trace
from minillm.transformer.evaluation import perplexity, run_hidden
from minillm.transformer.model import Llama
from minillm.transformer.texts import document_hashes, runs, split_documents

quick = settings(max_examples=40, derandomize=True, deadline=None)
LEVELS = [0.001, 0.1, 0.3, 0.5, 0.77, 0.9, 0.999]
DISTRIBUTIONS = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "heavy tailed": lambda rng, n: rng.standard_t(2, n),
    "exponential": lambda rng, n: rng.exponential(3.0, n),
    "log-uniform": lambda rng, n: np.exp(rng.uniform(-12, 8, n)),
    "uniform": lambda rng, n: rng.uniform(-1, 1, n),
    "tiny": lambda rng, n: rng.standard_normal(n) * 1e-7,
    "relu, with ties at zero": lambda rng, n: np.maximum(rng.standard_normal(n), 0),
}

BY_SIZE = [name for name, rule in POLICIES.items() if rule.comparison in (">", ">=")]  # the rest cut shares


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Llama:
    return tiny.loaded(tmp_path_factory.mktemp("calibrated") / "model", intermediate_size=48)


def texts(count: int, seed: int = 0) -> list[str]:
    """Documents of random words; enough of them for a share to be measured to a tenth of a percent."""
    rng = np.random.default_rng(seed)
    words = "the cat sat on a mat and saw the red sea. tom ran home".split()
    return [" ".join(rng.choice(words, 9)) for _ in range(count)]


def magnitudes(kind, values: np.ndarray):
    found = ExactMagnitudes(values.size, values.dtype) if kind == "exact" else StreamingMagnitudes()
    for part in np.array_split(values, 7):  # as a run after another brings them
        found.add(part.reshape(-1, 1))
    return found


# ---- quantiles -------------------------------------------------------------------------------------------------------


@quick
@given(arrays(np.float64, st.integers(1, 60), elements=st.floats(-1e6, 1e6)), st.floats(0, 1))
def test_the_exact_quantile_is_numpys_to_the_last_bit(values, level):
    assert magnitudes("exact", values).quantile(level) == np.quantile(np.abs(values), level)


def test_the_exact_quantile_of_float32_values_is_taken_in_double_precision():
    values = np.random.default_rng(0).standard_normal(1_001).astype(np.float32)
    found = magnitudes("exact", values)
    for level in LEVELS:
        assert found.quantile(level) == np.quantile(np.abs(values).astype(np.float64), level)


def test_values_that_come_after_a_quantile_was_asked_for_are_counted_too():
    found = ExactMagnitudes(4, np.float64)
    found.add(np.array([3.0, -1.0]))
    assert found.quantile(0.5) == 2.0
    found.add(np.array([-7.0, 5.0]))
    assert found.quantile(0.5) == 4.0


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_streaming_quantile_has_a_rank_error_of_at_most_a_thousandth(name, dtype):
    values = DISTRIBUTIONS[name](np.random.default_rng(0), 200_000).astype(dtype)
    found, size = magnitudes("streaming", values), np.sort(np.abs(values))
    for level in LEVELS:
        threshold = found.quantile(level)
        low, high = (np.searchsorted(size, threshold, side) / len(size) for side in ("left", "right"))
        assert low - 1e-3 <= level <= high + 1e-3  # between the shares below it and up to it: ties span a range
        assert found.rank_error(level) <= 1e-3
        if threshold:  # the stated error is honest
            assert max(low - level, level - high) <= found.rank_error(level) + 1e-12


@quick
@given(
    arrays(np.float64, st.integers(1, 50), elements=st.floats(0, 1e6, allow_subnormal=False)),
    st.floats(0.001, 0.999),
    st.floats(0.001, 0.999),
    st.sampled_from(["exact", "streaming"]),
)
def test_quantiles_grow_with_the_level(values, a, b, kind):
    found = magnitudes(kind, values)
    low, high = (found.quantile(level) for level in sorted((a, b)))
    assert low <= high


def test_many_values_in_one_bucket_are_reported_as_a_rank_error():
    found = StreamingMagnitudes()
    found.add(np.r_[np.full(30, 2.0), np.arange(3.0, 73.0)])
    assert found.rank_error(0.1) == 0.3 and found.rank_error(0.9) == 0.01
    assert 2.0 <= found.quantile(0.1) <= 2.0 * (1 + 2**-10)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2.0**24])
def test_what_cannot_be_counted_is_refused(bad):
    with pytest.raises(MinillmError, match="cannot be counted"):
        StreamingMagnitudes().add(np.array([1.0, bad]))


# ---- collecting ------------------------------------------------------------------------------------------------------


def test_collecting_takes_every_position_of_every_run_of_the_dense_model(model):
    documents, found = texts(3), None
    found = collect(model, documents, ("gate_pre", "gate", "up", "mid", "out"), context=16, quantile="exact")
    values = {}
    for run in runs(model, documents, "documents", 16):
        with Trace(keep="blocks.1.mlp.*") as trace:
            model.forward(run.ids, tap=trace)
        for tensor in found.layers[1]:
            values.setdefault(tensor, []).append(np.abs(trace[f"blocks.1.mlp.{tensor}"]).ravel())
    for tensor, parts in values.items():
        assert found.layers[1][tensor].quantile(0.4) == np.quantile(np.concatenate(parts), 0.4)


def test_magnitudes_that_do_not_fit_in_memory_are_streamed(model, monkeypatch):
    documents = texts(3)
    assert collect(model, documents, ("mid",)).kind == "exact"
    monkeypatch.setattr(magnitudes_module, "EXACT_BYTES", 1_000)
    streamed = collect(model, documents, ("mid",))
    assert streamed.kind == "streaming"
    exact = collect(model, documents, ("mid",), quantile="exact")
    for a, b in zip(streamed.thresholds(("mid",), 0.5), exact.thresholds(("mid",), 0.5), strict=True):
        assert np.isclose(a["mid"], b["mid"], rtol=0.02)


# ---- calibrating -----------------------------------------------------------------------------------------------------


def shares(model, documents, ffn, context=None) -> dict[str, tuple[float, float]]:
    """Over the first layer of the CUT model: the share of each tensor below its threshold, and at or below it."""
    counts: dict[str, list[np.ndarray]] = {}
    for run in runs(model, documents, "documents", context):
        with Trace(keep="blocks.0.mlp.*") as trace:
            model.forward(run.ids, ffn=ffn, tap=trace)
        for tensor, threshold in ffn.thresholds.layers[0].items():
            size = magnitude(tensor, trace[f"blocks.0.mlp.{TENSORS[tensor].step}"], ffn.norms[0])
            counts.setdefault(tensor, []).append([(size < threshold).mean(), (size <= threshold).mean(), len(size)])
    return {tensor: np.average(np.array(c)[:, :2], axis=0, weights=np.array(c)[:, 2]) for tensor, c in counts.items()}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("policy", BY_SIZE)
@pytest.mark.parametrize("level", [0.3, 0.5])
def test_the_first_layer_is_cut_by_exactly_the_level_on_the_calibration_text(tmp_path, policy, level, dtype):
    model, documents = tiny.loaded(tmp_path / "m", dtype), texts(20)
    thresholds = calibrate(model, documents, policy, level, context=32)
    count = sum(len(run.ids) for run in runs(model, documents, "documents", 32)) * 8
    near = (1 if dtype == "float64" else 5) / count
    for tensor, (below, at_most) in shares(model, documents, sparse_ffn(model, thresholds), 32).items():
        # Two are computed from values that were cut before, and so drift even in the first layer.
        if tensor != "out" and not (policy in ("teal", "wina") and tensor == "mid"):
            assert below - near <= level <= at_most + near, tensor  # values that occur often can lie on the threshold
            assert at_most - below < 0.02
    assert thresholds.level == level and thresholds.by == "tensor" and thresholds.quantile == "exact"
    assert abs(thresholds.spec.achieved - level) < 0.1 and thresholds.spec.target == level


def test_the_achieved_value_is_what_the_meter_finds_on_the_calibration_text(model):
    documents = texts(6)
    for policy in POLICIES:
        for by in ("tensor", "neuron", "reads"):
            thresholds, meter = calibrate(model, documents, policy, 0.3, by=by), SparsityMeter()
            for run in runs(model, documents):
                for _ in run_hidden(model, run.ids, sparse_ffn(model, thresholds), meter):
                    pass
            assert thresholds.spec.achieved == meter.report().achieved(by)


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "griffin"])  # whole neurons of twelve
@pytest.mark.parametrize("target", [0.1, 0.5, 0.9])
def test_a_neuron_sparsity_is_reached_on_the_calibration_text(model, policy, target):
    thresholds = calibrate(model, texts(25), policy, target, by="neuron")
    assert abs(thresholds.spec.achieved - target) <= 0.005
    assert thresholds.spec.target == target and thresholds.spec.by == thresholds.by == "neuron"
    if policy == "dhar":  # two masks: each tensor is cut by less
        assert thresholds.level < target - 0.02
    elif policy not in ("teal", "wina", "topp"):  # one mask, one tensor: its share is the share
        assert abs(thresholds.level - target) < 0.02


@pytest.mark.parametrize("by", ["tensor", "neuron"])
@pytest.mark.parametrize("policy", POLICIES)
def test_sparsity_zero_is_threshold_zero_and_the_dense_model(model, policy, by):
    thresholds = calibrate(model, texts(2), policy, 0.0, by=by)
    assert thresholds.layers == (dict.fromkeys(POLICIES[policy].tensors, 0.0),) * 2  # and not the smallest value seen
    assert thresholds.spec.achieved == 0
    ids = model.tokenizer.encode("the cat sat.")
    assert model.forward(ids, ffn=sparse_ffn(model, thresholds)).tobytes() == model.forward(ids).tobytes()


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "griffin"])
def test_a_higher_sparsity_has_higher_thresholds_and_keeps_fewer(model, policy):
    documents = texts(6)
    shared = collect(model, documents, POLICIES[policy].tensors)
    found = [calibrate(model, documents, policy, level, magnitudes=shared) for level in (0.2, 0.4, 0.6, 0.8)]
    for low, high in zip(found, found[1:], strict=False):
        for a, b in zip(low.layers, high.layers, strict=True):
            assert all(a[tensor] < b[tensor] for tensor in a)
        assert low.spec.achieved < high.spec.achieved
    alone = calibrate(model, documents, policy, 0.4)
    assert alone == found[1]  # sharing one pass changes nothing


def test_calibration_remembers_its_documents(model):
    documents = texts(2)
    thresholds = calibrate(model, "\n<|endoftext|>\n".join(documents), "mid", 0.3)
    assert thresholds.documents_sha256 == tuple(document_hashes(documents))
    assert sparse_ffn(model, thresholds).calibrated_on == set(document_hashes(documents))


def test_streaming_refuses_where_its_quantile_would_be_too_coarse(model):
    with pytest.raises(MinillmError, match="share one bucket.*use quantile='exact'"):
        calibrate(model, ["a"], "mid", 0.5, quantile="streaming")  # a handful of values: each a large share


def test_a_share_of_neurons_is_searched_by_what_is_cut_and_so_found_with_a_coarse_quantile(model):
    thresholds = calibrate(model, tiny.STORIES, "cats", 0.5, by="neuron", quantile="streaming")
    assert thresholds.spec.achieved == pytest.approx(0.5, abs=2e-3)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"policy": "tea"}, "policy 'tea' is unknown"),
        ({"sparsity": 1.0}, "sparsity is 1.0"),
        ({"sparsity": -0.1}, "sparsity is -0.1"),
        ({"sparsity": float("nan")}, "sparsity is nan"),
        ({"by": "cut"}, "by is 'cut', expected one of tensor, neuron, reads, cett, ppl"),
        ({"by": "cett"}, "by is 'cett' with policy mid, expected policy cett"),
        ({"by": "reads"}, r"mid reads at least 0.667 of the weights, 0.5 cannot go"),
        ({"allocation": "best"}, "allocation is 'best', expected uniform or greedy"),
        ({"allocation": "greedy"}, "allocation is 'greedy' with policy mid, expected teal or wina"),
        ({"quantile": "fast"}, "quantile is 'fast', expected exact or streaming"),
        ({"documents": ""}, "empty"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(model, how, said):
    with pytest.raises(MinillmError, match=said):
        calibrate(model, **{"documents": ["a"], "policy": "mid", "sparsity": 0.5} | how)


def test_an_unknown_form_and_thresholds_of_another_model_are_refused(model):
    thresholds = calibrate(model, ["a cat"], "mid", 0.5)
    with pytest.raises(MinillmError, match="form is 'fast', expected one of masked, gathered"):
        sparse_ffn(model, thresholds, form="fast")
    with pytest.raises(ThresholdsError, match="for 2 layers, the model has 3"):
        sparse_ffn(tiny.model(num_hidden_layers=3), thresholds)


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("by", ["tensor", "neuron"])
def test_a_saved_file_comes_back_equal_and_cuts_the_same(model, tmp_path, policy, by):
    thresholds = calibrate(model, texts(4), policy, 0.4, by=by)
    thresholds.save(tmp_path / "t.json")
    back = Thresholds.load(tmp_path / "t.json")
    assert back == thresholds
    ids = model.tokenizer.encode("the cat sat.")
    ours, theirs = (model.forward(ids, ffn=sparse_ffn(model, t)) for t in (thresholds, back))
    assert np.array_equal(ours, theirs) and [path.name for path in tmp_path.iterdir()] == ["t.json"]


GOOD = {
    "format": "minillm-thresholds", "version": 1, "policy": "dhar", "by": "tensor", "level": 0.5,
    "spec": SparsitySpec("dhar", ("gate_pre", "up", "out"), ">=", "tensor", 0.5, 0.49).asdict(),
    "quantile": "exact", "documents_sha256": ["00"],
    "layers": [{"gate_pre": 0.1, "up": 0.2, "out": 0.3}, {"gate_pre": 0.4, "up": 0.5, "out": 0.6}],
}  # fmt: skip
BROKEN = {
    "no format": ({"format": None}, "format is None, expected 'minillm-thresholds'"),
    "another format": ({"format": "x"}, "format is 'x'"),
    "a later version": ({"version": 2}, "version is 2, expected 1"),
    "an unknown policy": ({"policy": "tea"}, "policy is 'tea', expected one of dhar, cats, mid"),
    "a policy that is no name": ({"policy": ["dhar"]}, "policy is ['dhar']"),
    "no policy": ({"policy": None}, "policy is None"),
    "no layers": ({"layers": []}, "layers is []"),
    "layers as an object": ({"layers": {"0": {}}}, "layers is"),
    "a layer that is a number": ({"layers": [1]}, "layers[0] has 1"),
    "an empty layer": ({"layers": [{}]}, "layers[0] has []"),
    "a tensor of another policy": ({"layers": [{"mid": 1.0}]}, "layers[0] has ['mid']"),
    "layers that differ": ({"layers": [{"up": 1.0}, {"out": 1.0}]}, "layers[1] has ['out']"),
    "a negative threshold": ({"layers": [{"up": -1.0}]}, "layers[0].up is -1.0"),
    "a threshold of true": ({"layers": [{"up": True}]}, "layers[0].up is True"),
    "a threshold in words": ({"layers": [{"up": "x" * 9_000}]}, "layers[0].up is 'xxx"),
    "a threshold of null": ({"layers": [{"up": None}]}, "layers[0].up is None"),
    "a threshold beyond every float": ({"layers": [{"up": 10**400}]}, "layers[0].up is 1000"),
    "a by of another kind": ({"by": "layer"}, "by is 'layer', expected tensor or neuron"),
    "a quantile of another kind": ({"quantile": 3}, "quantile is 3"),
    "a level of one": ({"level": 1}, "level is 1"),
    "a level of true": ({"level": False}, "level is False"),
    "a level in words": ({"level": "half"}, "level is 'half'"),
    "hashes that are a string": ({"documents_sha256": "00"}, "documents_sha256"),
    "hashes that are numbers": ({"documents_sha256": [0]}, "documents_sha256"),
    "no spec": ({"spec": None}, "spec is None"),
    "a spec with a field too many": ({"spec": GOOD["spec"] | {"x": 1}}, "spec is {"),
    "a spec with a field missing": ({"spec": {"policy": "dhar"}}, "spec is {'policy': 'dhar'}"),
    "a spec with a target in words": ({"spec": GOOD["spec"] | {"target": "half"}}, "spec.target is 'half'"),
    "a spec with tensors as a string": ({"spec": GOOD["spec"] | {"tensors": "up"}}, "spec.tensors is 'up'"),
    "a spec with a scope of 3": ({"spec": GOOD["spec"] | {"layer_scope": 3}}, "spec.layer_scope is 3"),
    "a spec of another policy": ({"spec": GOOD["spec"] | {"policy": "mid"}}, "spec is of mid by tensor"),
}


def refuses(path, said: str) -> None:
    with pytest.raises(ThresholdsError) as caught:
        Thresholds.load(path)
    text = str(caught.value)
    assert path.name in text and said in text and "\n" not in text and len(text) < 600, text


@pytest.mark.parametrize("name", BROKEN)
def test_a_malformed_file_is_refused_in_one_sentence_that_names_the_field(tmp_path, name):
    changes, said = BROKEN[name]
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(GOOD | changes), encoding="utf-8")
    refuses(path, said)


def test_the_file_that_the_broken_ones_differ_from_is_read(tmp_path):
    path = tmp_path / "good.json"
    path.write_text(json.dumps(GOOD), encoding="utf-8")
    found = Thresholds.load(path)
    assert found.layers[1]["out"] == 0.6 and found.spec.achieved == 0.49 and found.documents_sha256 == ("00",)
    path.write_text(json.dumps({key: GOOD[key] for key in GOOD if key not in ("quantile", "documents_sha256")}))
    assert Thresholds.load(path).quantile == "exact"


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{", b"\xff\xfe", b'{"format": NaN}', b"[" * 100_000, b'{"format": 1, "format": 1}', b"{}"]
)
def test_a_file_that_is_no_json_object_of_a_known_kind_is_refused(tmp_path, raw):
    path = tmp_path / "raw.json"
    path.write_bytes(raw)
    refuses(path, "")


def test_a_file_that_is_not_there_or_cannot_be_written_is_refused(tmp_path):
    refuses(tmp_path / "absent.json", "no such file")
    refuses(tmp_path, "no such file")
    thresholds = Thresholds("mid", "tensor", 0.5, ({"mid": 1.0},), SparsitySpec("mid", ("mid",), ">", "tensor", 0.5))
    with pytest.raises(ThresholdsError, match="cannot be written"):
        thresholds.save(tmp_path / "absent" / "t.json")
    with pytest.raises(ThresholdsError, match="policy is mid, expected dhar"):
        thresholds.save_paper(tmp_path / "t.json")
    assert not list(tmp_path.iterdir())


PAPER = {"gate_proj": {"layer_0": 0.1, "layer_1": 0.2}, "up_proj": {"layer_0": 0.3, "layer_1": 0.4},
         "down_proj": {"layer_0": 0.5, "layer_1": 0.6}, "act_fn": {"layer_0": 9, "layer_1": 9}}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"up_proj": {"layer_0": 0.3}}, "up_proj has 1 layers"),
        ({"gate_proj": {"layer_0": 0.1, "layer_2": 0.2}}, "gate_proj is not a table"),
        ({"gate_proj": {}}, "gate_proj is not a table"),
        ({"down_proj": [0.5, 0.6]}, "down_proj is not a table"),
        ({"down_proj": {"layer_0": 0.5, "layer_1": "x"}}, "down_proj.layer_1 is 'x'"),
        ({"down_proj": {"layer_0": 0.5, "layer_1": -1}}, "down_proj.layer_1 is -1"),
        ({"gate_up_proj": PAPER["gate_proj"]}, "one of the two"),
    ],
)
def test_a_malformed_file_of_the_papers_kind_is_refused(tmp_path, changes, said):
    path = tmp_path / "paper-50.json"
    path.write_text(json.dumps(PAPER | changes), encoding="utf-8")
    refuses(path, said)


def test_a_file_of_the_papers_kind_means_dhar_and_its_name_may_say_the_level(tmp_path):
    for name, level in (("x-30.json", 0.3), ("thresholds.json", None), ("x-3.json", None), ("x-130.json", None)):
        (tmp_path / name).write_text(json.dumps(PAPER), encoding="utf-8")
        found = Thresholds.load(tmp_path / name)
        assert (found.policy, found.by, found.level, found.spec.target) == ("dhar", "tensor", level, level)
        assert found.layers == ({"gate_pre": 0.1, "up": 0.3, "out": 0.5}, {"gate_pre": 0.2, "up": 0.4, "out": 0.6})
        found.save(tmp_path / "ours.json")  # and it can be kept as one of ours
        assert Thresholds.load(tmp_path / "ours.json") == found


def test_a_file_of_the_papers_kind_for_phi3_cuts_the_gate_alone_and_is_written_back_as_it_was(tmp_path):
    fields = {"gate_up_proj": PAPER["gate_proj"], "down_proj": PAPER["down_proj"]}
    (tmp_path / "phi-30.json").write_text(json.dumps(fields | {"activation_fn": PAPER["act_fn"]}), encoding="utf-8")
    found = Thresholds.load(tmp_path / "phi-30.json")
    assert found.layers == ({"gate_pre": 0.1, "out": 0.5}, {"gate_pre": 0.2, "out": 0.6})
    assert found.spec.tensors == ("gate_pre", "out")
    found.save_paper(tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text(encoding="utf-8")) == fields


def test_our_own_thresholds_can_be_written_for_the_papers_code_and_read_back(model, tmp_path):
    thresholds = calibrate(model, texts(2), "dhar", 0.5)
    thresholds.save_paper(tmp_path / "mine-50.json")
    fields = json.loads((tmp_path / "mine-50.json").read_text(encoding="utf-8"))
    assert set(fields) == {"gate_proj", "up_proj", "down_proj"}
    back = Thresholds.load(tmp_path / "mine-50.json")
    assert back.layers == thresholds.layers and back.level == 0.5
    # a file without a table for the output writes none
    del (partial := copy.deepcopy(fields))["down_proj"]
    (tmp_path / "partial.json").write_text(json.dumps(partial), encoding="utf-8")
    Thresholds.load(tmp_path / "partial.json").save_paper(tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text(encoding="utf-8")) == partial


# ---- the paper's files and real models -------------------------------------------------------------------------------


@pytest.mark.shared
def test_all_fifteen_files_of_the_paper_load_and_can_be_written_back(shared, tmp_path):
    paths = sorted((shared / "paper" / "thresholds").glob("*.json"))
    assert len(paths) == 15
    for path in paths:
        original = json.loads(path.read_text(encoding="utf-8"))
        found = Thresholds.load(path)
        assert len(found.layers) == 32 and found.level == int(path.stem[-2:]) / 100
        phi3 = path.name.startswith("phi-3")
        assert all(set(layer) == ({"gate_pre", "out"} if phi3 else {"gate_pre", "up", "out"}) for layer in found.layers)
        gate, seventh = original["gate_up_proj" if phi3 else "gate_proj"], found.layers[7]
        assert seventh["gate_pre"] == gate["layer_7"] and seventh["out"] == original["down_proj"]["layer_7"]
        found.save_paper(tmp_path / path.name)
        written = json.loads((tmp_path / path.name).read_text(encoding="utf-8"))
        assert written == {key: value for key, value in original.items() if key not in ("act_fn", "activation_fn")}


@pytest.mark.shared
def test_the_papers_phi3_file_cuts_the_gate_and_the_output_and_leaves_up_alone(shared):
    thresholds = Thresholds.load(shared / "paper" / "thresholds" / "phi-3-mini-50.json")
    model = tiny.model("phi3", num_hidden_layers=32)
    with Trace(keep="blocks.*.mlp.*") as trace:
        model.forward([1, 5, 3], ffn=sparse_ffn(model, thresholds), tap=trace)
    assert "blocks.31.mlp.mask_up" not in trace
    expected = np.abs(trace["blocks.31.mlp.gate_pre"]) >= thresholds.layers[31]["gate_pre"]
    assert np.array_equal(trace["blocks.31.mlp.mask"], expected) and not expected.all()
    with pytest.raises(ThresholdsError, match="for 32 layers, the model has 2"):
        sparse_ffn(tiny.model("phi3"), thresholds)


CALIBRATION_STORIES = 100
CASES = [None, ("dhar", 0.3), ("dhar", 0.5), ("cats", 0.5), ("mid", 0.5)]  # None: dense
REFERENCE = {  # perplexity and (for dhar) neuron sparsity that two independent implementations found
    "tinystories-656k": [(19.004, None), (20.12, 0.506), (26.16, 0.741), (19.91, None), (19.16, None)],
    "stories260K": [(4.167, None), (4.726, 0.518), (10.10, 0.768), (6.184, None), (4.319, None)],
}
TOKENS = {"tinystories-656k": 44_293, "stories260K": 92_587}


@pytest.fixture(scope="module")
def published(shared, request, tmp_path_factory) -> dict[str, Llama]:
    """The two published models; stories260K as weights_scripts/convert_llama2c.py converts it."""
    sys.path.insert(0, str(request.config.rootpath / "weights_scripts"))
    try:
        from convert_llama2c import convert
    finally:
        sys.path.pop(0)
    source, out = shared / "models" / "stories260K", tmp_path_factory.mktemp("converted") / "stories260K"
    convert(source / "stories260K.bin", source / "tok512.bin", out)
    folders = {"tinystories-656k": shared / "models" / "tinystories-656k", "stories260K": out}
    return {name: Llama.from_folder(folder) for name, folder in folders.items()}


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCE)
def test_perplexities_on_real_text_are_those_of_two_independent_implementations(published, shared, name):
    model = published[name]
    text = (shared / "text" / "tinystories-valid.txt").read_text(encoding="utf-8")
    train = split_documents((shared / "text" / "tinystories-train.txt").read_text(encoding="utf-8"))
    calibration = train[:CALIBRATION_STORIES]
    magnitudes = collect(model, calibration, context=512)
    for case, (expected, sparsity) in zip(CASES, REFERENCE[name], strict=True):
        if case is None:
            result = perplexity(model, text, context=512)
            assert abs(result.bits_per_byte - 1.0166) < 0.0001 or name != "tinystories-656k"
        else:
            policy, level = case
            thresholds = calibrate(model, calibration, policy, level, context=512, magnitudes=magnitudes)
            meter = SparsityMeter()
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # the two texts share no story
                result = perplexity(model, text, context=512, ffn=sparse_ffn(model, thresholds), tap=meter)
            if sparsity is not None:
                assert abs(meter.report().neuron_sparsity / sparsity - 1) < 0.005, case
        assert result.tokens == TOKENS[name]
        assert abs(result.perplexity / expected - 1) < 0.005, (case, result)
