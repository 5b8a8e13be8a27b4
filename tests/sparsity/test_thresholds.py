"""The two kinds of thresholds files: ours, and the ones that the paper released."""

import copy
import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import tiny
from cutting import texts

from minillm.errors import ThresholdsError
from minillm.predictors.select import sparse_ffn
from minillm.sparsity.calibrate import calibrate
from minillm.sparsity.policies import POLICIES
from minillm.sparsity.sparse import policy_selector
from minillm.sparsity.spec import SparsitySpec
from minillm.sparsity.thresholds import Thresholds
from minillm.trace import Trace


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


MODEL = {"name": "m", "shape": [2, 8, 12], "sha256": "f" * 64}
GOOD = {
    "format": "minillm-thresholds", "version": 1, "policy": "dhar", "by": "tensor", "level": 0.5,
    "spec": SparsitySpec("dhar", ("gate_pre", "up", "out"), ">=", "tensor", 0.5, 0.49).asdict(),
    "quantile": "exact", "documents_sha256": ["0" * 64],
    "layers": [{"gate_pre": 0.1, "up": 0.2, "out": 0.3}, {"gate_pre": 0.4, "up": 0.5, "out": 0.6}],
}  # fmt: skip
BROKEN = {
    "no format": ({"format": None}, "format is None, expected one of minillm-thresholds"),
    "another format": ({"format": "x"}, "format is 'x'"),
    "a later version": ({"version": 2}, "version is 2, expected 1"),
    "an unknown policy": ({"policy": "tea"}, "policy is 'tea', expected one of dhar, cats, mid"),
    "a policy that is no name": ({"policy": ["dhar"]}, "policy is ['dhar']"),
    "no policy": ({"policy": None}, "policy is None"),
    "no layers": ({"layers": []}, "layers is []"),
    "layers as an object": ({"layers": {"0": {}}}, "layers is"),
    "a layer that is a number": ({"layers": [1]}, "layers[0] is 1"),
    "an empty layer": ({"layers": [{}]}, "layers[0] is []"),
    "a tensor of another policy": ({"layers": [{"mid": 1.0}]}, "layers[0] is ['mid']"),
    "layers that differ": ({"layers": [{"up": 1.0}, {"out": 1.0}]}, "layers[1] is ['out']"),
    "a negative threshold": ({"layers": [{"up": -1.0}]}, "layers[0].up is -1.0"),
    "a threshold of true": ({"layers": [{"up": True}]}, "layers[0].up is True"),
    "a threshold in words": ({"layers": [{"up": "x" * 9_000}]}, "layers[0].up is 'xxx"),
    "a threshold of null": ({"layers": [{"up": None}]}, "layers[0].up is None"),
    "a threshold beyond every float": ({"layers": [{"up": 10**400}]}, "layers[0].up is 1000"),
    "a by of another kind": ({"by": "layer"}, "by is 'layer', expected one of tensor, neuron"),
    "a quantile of another kind": ({"quantile": 3}, "quantile is 3"),
    "a level of one": ({"level": 1}, "level is 1"),
    "a level of true": ({"level": False}, "level is False"),
    "a level in words": ({"level": "half"}, "level is 'half'"),
    "hashes that are a string": ({"documents_sha256": "00"}, "documents_sha256"),
    "hashes that are numbers": ({"documents_sha256": [0]}, "documents_sha256"),
    "no spec": ({"spec": None}, "spec is None"),
    "a spec with a field too many": ({"spec": GOOD["spec"] | {"x": 1}}, "spec.'x' is unknown"),
    "a spec with a field missing": ({"spec": {"policy": "dhar"}}, "spec.tensors is missing"),
    "a spec with a target in words": ({"spec": GOOD["spec"] | {"target": "half"}}, "spec.target is 'half'"),
    "a spec with tensors as a string": ({"spec": GOOD["spec"] | {"tensors": "up"}}, "spec.tensors is 'up'"),
    "a spec with a scope of 3": ({"spec": GOOD["spec"] | {"layer_scope": 3}}, "spec.layer_scope is 3"),
    "a spec of another policy": ({"spec": GOOD["spec"] | {"policy": "mid"}}, "spec.policy is 'mid', expected 'dhar'"),
    "a spec by another quantity": ({"spec": GOOD["spec"] | {"by": "reads"}}, "spec.by is 'reads', expected 'tensor'"),
    "a spec of tensors that are not cut": ({"spec": GOOD["spec"] | {"tensors": ["up", "mid"]}}, "spec.tensors is ['up"),
    "a spec with a tensor twice": (
        {"spec": GOOD["spec"] | {"tensors": ["gate_pre", "up", "out", "out"]}},
        "spec.tensors",
    ),
    "a spec with the comparison of cats": ({"spec": GOOD["spec"] | {"comparison": ">"}}, "spec.comparison is '>'"),
    "a spec with a scope of its own": ({"spec": GOOD["spec"] | {"token_scope": "some"}}, "spec.token_scope is 'some'"),
    "a spec with another target": ({"spec": GOOD["spec"] | {"target": 0.4}}, "spec.target is 0.4, expected 0.5"),
    "a spec with more achieved than all": ({"spec": GOOD["spec"] | {"achieved": 1.5}}, "spec.achieved is 1.5"),
    "a field too many": ({"sparsity": 0.5}, "'sparsity' is unknown"),
    "a version of true": ({"version": True}, "version is True"),
    "hashes that are too short": ({"documents_sha256": ["00"]}, "documents_sha256 is ['00']"),
    "hashes in capitals": ({"documents_sha256": ["A" * 64]}, "documents_sha256 is"),
    "a target of cett for dhar": ({"by": "cett"}, "by is 'cett'"),
    "a model that is a name": ({"model": "default"}, "model is 'default'"),
    "a model of three layers": ({"model": MODEL | {"shape": [3, 8, 12]}}, "model is [3, 8, 12], expected one of 2"),
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
    assert found.layers[1]["out"] == 0.6 and found.spec.achieved == 0.49 and found.documents_sha256 == ("0" * 64,)
    path.write_text(json.dumps({key: GOOD[key] for key in GOOD if key not in ("quantile", "documents_sha256")}))
    assert Thresholds.load(path).quantile == "exact"


@pytest.mark.parametrize("text", ['"level": 0.5', '"tensors": [', '"out": 0.6'])
def test_a_field_that_stands_twice_is_refused_at_every_depth(tmp_path, text):
    path, whole = tmp_path / "twice.json", json.dumps(GOOD)
    name = text.partition(":")[0]
    path.write_text(whole.replace(text, f"{name}: 0.25, {text}"), encoding="utf-8")
    refuses(path, f"{name[1:-1]}' stands twice")


@pytest.mark.parametrize("policy", ["topk", "topp", "griffin", "statistical"])
def test_a_share_above_one_is_refused(tmp_path, policy):
    rule, path = POLICIES[policy], tmp_path / "share.json"
    (tensor,), spec = rule.tensors, SparsitySpec(policy, rule.tensors, rule.comparison, "tensor", 0.5)
    for value, good in ((1.0, True), (1.01, False)):
        layers = [{tensor: value}] * 2
        path.write_text(
            json.dumps(GOOD | {"policy": policy, "layers": layers, "spec": spec.asdict()}), encoding="utf-8"
        )
        if good:
            assert Thresholds.load(path).layers[1][tensor] == 1.0
        else:
            refuses(path, f"layers[0].{tensor} is 1.01")


def test_a_perplexity_that_fell_by_a_hair_can_be_kept(tmp_path):
    spec = SparsitySpec("mid", ("mid",), ">", "ppl", 0.01, achieved=-0.0004)
    thresholds = Thresholds("mid", "ppl", 0.02, ({"mid": 0.1},), spec)
    thresholds.save(tmp_path / "t.json")
    assert Thresholds.load(tmp_path / "t.json") == thresholds


def test_numpy_scalars_become_plain_numbers_in_the_file(model, tmp_path):
    found = calibrate(model, texts(2), "mid", np.float32(0.5), context=np.int64(16))
    assert type(found.level) is float and type(found.spec.target) is float
    found.save(tmp_path / "t.json")
    assert Thresholds.load(tmp_path / "t.json") == found
    by_hand = replace(found, level=np.float64(0.25), spec=replace(found.spec, target=np.float32(0.25)),
                      layers=tuple({"mid": np.float32(1.5)} for _ in found.layers))  # fmt: skip
    by_hand.save(tmp_path / "t.json")
    assert Thresholds.load(tmp_path / "t.json").layers[0]["mid"] == 1.5


# ---- whose they are --------------------------------------------------------------------------------------------------


def test_thresholds_name_their_model_and_a_twin_is_warned_of(tmp_path):
    ours, twin = (tiny.loaded(tmp_path / name, seed=seed) for name, seed in (("ours", 0), ("twin", 1)))
    calibrate(ours, texts(2), "mid", 0.5).save(tmp_path / "t.json")
    found = Thresholds.load(tmp_path / "t.json")
    assert found.model == ours.fingerprint and found.model.name == "ours"
    for use in (sparse_ffn, policy_selector):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            use(ours, found)
        with pytest.warns(UserWarning, match=r"another model, ours \([0-9a-f]{8}\), and is used with twin"):
            use(twin, found)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        twin.forward([1, 2, 3], ffn=sparse_ffn(twin, found))
    assert len(notes) == 1  # once, not for each layer or token


def test_thresholds_of_another_shape_are_refused_and_older_ones_are_silent(model, tmp_path):
    found = calibrate(model, texts(2), "mid", 0.5)
    wider = tiny.loaded(tmp_path / "wider", intermediate_size=20)
    with pytest.raises(ThresholdsError, match="20 neurons"):
        sparse_ffn(wider, found)
    replace(found, model=None).save(tmp_path / "older.json")
    assert "model" not in json.loads((tmp_path / "older.json").read_text(encoding="utf-8"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparse_ffn(wider, Thresholds.load(tmp_path / "older.json"))


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{", b"\xff\xfe", b'{"format": NaN}', b"[" * 100_000, b'{"format": 1, "format": 1}', b"{}"]
)
def test_a_file_that_is_no_json_object_of_a_known_kind_is_refused(tmp_path, raw):
    path = tmp_path / "raw.json"
    path.write_bytes(raw)
    refuses(path, "")


def test_a_file_that_is_not_there_or_cannot_be_written_is_refused(tmp_path):
    refuses(tmp_path / "absent.json", "is missing")
    refuses(tmp_path, "is a folder")
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
        ({"q_proj": PAPER["gate_proj"]}, "'q_proj' is unknown"),
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
