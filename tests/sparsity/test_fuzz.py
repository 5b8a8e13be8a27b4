"""Thresholds files that are right but for one or two things: one sentence, or thresholds that are right."""

import json
import math
import re

import fuzz

from minillm.sparsity.thresholds import Thresholds

SPEC = {"token_scope": "every token, prompt and continuation alike", "layer_scope": "all layers",
        "granularity": "one threshold per layer and tensor, one decision per token and neuron"}  # fmt: skip
HASHES = ["0123456789abcdef" * 4, "f" * 64]
OURS = {
    "format": "minillm-thresholds", "version": 1, "policy": "dhar", "by": "tensor", "level": 0.5,
    "spec": {"policy": "dhar", "tensors": ["gate_pre", "up", "out"], "comparison": ">=", "by": "tensor", "target": 0.5,
             "achieved": 0.49, **SPEC},
    "quantile": "exact", "documents_sha256": HASHES,
    "model": {"name": "m", "shape": [2, 8, 12], "sha256": "e" * 64},
    "layers": [{"gate_pre": 0.1, "up": 0.2, "out": 0.3}, {"gate_pre": 0.4, "up": 0.5, "out": 0.6}],
}  # fmt: skip
OLDER = {
    "format": "minillm-thresholds", "version": 1, "policy": "topk", "by": "neuron", "level": 0.25,
    "spec": {"policy": "topk", "tensors": ["mid"], "comparison": "top-k", "by": "neuron", "target": 0.3,
             "achieved": 0.29, **SPEC},
    "quantile": "streaming", "documents_sha256": HASHES, "layers": [{"mid": 0.25}, {"mid": 0.25}],
}  # fmt: skip
PAPER = {"gate_proj": {"layer_0": 0.1, "layer_1": 0.2}, "up_proj": {"layer_0": 0.3, "layer_1": 0.4},
         "down_proj": {"layer_0": 0.5, "layer_1": 0.6}, "act_fn": {"layer_0": 9, "layer_1": 9}}  # fmt: skip
COMPARISONS = {"dhar": ">=", "cats": ">", "mid": ">", "cett": ">=", "teal": ">", "wina": ">", "countdown": ">",
               "griffin": "prompt", "topk": "top-k", "topp": "top-p",
               "statistical": "statistical"}  # fmt: skip


def once(pairs: list) -> dict:
    """The fields of an object. Fails for a name that stands twice."""
    assert len({name for name, _ in pairs}) == len(pairs)
    return dict(pairs)


def number(value: object, low: float, high: float) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and low <= value <= high


def valid_spec(found: Thresholds, given: dict) -> None:
    spec = given["spec"]
    assert set(spec) == set(OURS["spec"])
    assert (spec["policy"], spec["by"]) == (given["policy"], given["by"]) == (found.spec.policy, found.spec.by)
    assert sorted(spec["tensors"]) == sorted(given["layers"][0]) and spec["comparison"] == COMPARISONS[spec["policy"]]
    assert spec["target"] is None or number(spec["target"], 0, 1)
    assert spec["achieved"] is None or number(spec["achieved"], -1, 1.001 if spec["by"] != "ppl" else 1e6)
    assert given["by"] != "tensor" or spec["target"] == given["level"] or given["level"] is None
    assert spec["token_scope"].startswith("every token") and spec["granularity"].startswith("one threshold")


def valid_layers(found: Thresholds, policy: str) -> None:
    high = 1 if policy in ("topk", "topp", "griffin", "statistical") else 1e38
    assert len({frozenset(layer) for layer in found.layers}) == 1 and found.layers[0]
    assert all(number(value, 0, high) and type(value) is float for layer in found.layers for value in layer.values())


def check_against(path):
    """A check of what was read, with a reader of its own."""

    def valid(found: Thresholds) -> None:
        raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
        given = json.loads(raw, object_pairs_hook=once, parse_constant=lambda name: math.nan)
        if "format" not in given:
            assert set(given) <= {"gate_proj", "gate_up_proj", "up_proj", "down_proj", "act_fn", "activation_fn"}
            return valid_layers(found, "dhar")
        assert (given["format"], given["version"], type(given["version"])) == ("minillm-thresholds", 1, int)
        assert set(given) | {"model", "quantile", "documents_sha256"} == set(OURS)
        assert given.get("level") is None or (number(given["level"], 0, 1) and given["level"] < 1)
        assert given.get("quantile", "exact") in ("exact", "streaming", "as published")
        assert all(re.fullmatch("[0-9a-f]{64}", each) for each in given.get("documents_sha256", []))
        if (model := given.get("model")) is not None:
            assert set(model) == {"name", "shape", "sha256"} and model["shape"][0] == len(found.layers)
            assert all(type(size) is int and size > 0 for size in model["shape"])
            assert re.fullmatch("[0-9a-f]{64}", model["sha256"]) and found.model.sha256 == model["sha256"]
        assert [dict(layer) for layer in found.layers] == given["layers"]
        valid_spec(found, given)
        valid_layers(found, given["policy"])

    return valid


@fuzz.examples
def test_a_changed_file_gives_one_sentence_or_thresholds_that_are_right(examples, tmp_path):
    path = tmp_path / "t-50.json"
    for good in (OURS, OLDER, PAPER):
        counts = fuzz.holds(examples, fuzz.json_files(good), path, Thresholds.load, check_against(path))
        assert counts["accepted"] > examples // 50 and counts["refused"] > examples // 2, counts


def test_a_huge_or_deep_file_takes_little_memory(tmp_path):
    path = fuzz.huge(tmp_path / "huge.json", json.dumps(OURS).encode())
    assert fuzz.parsed(Thresholds.load, path, lambda found: False) == "refused"
    assert fuzz.memory_of(Thresholds.load, path) < 1_000_000
    path.write_bytes(b'{"layers": ' + b"[" * 4_900_000 + b"]" * 4_900_000 + b"}")
    assert fuzz.parsed(Thresholds.load, path, lambda found: False) == "refused"
    assert fuzz.memory_of(Thresholds.load, path) < fuzz.MEMORY
