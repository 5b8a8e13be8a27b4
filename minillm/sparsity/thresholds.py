"""Thresholds: one number per layer and cut tensor, with the fields that define them, and their files.

Ours is JSON: {format, version, policy, by, level, spec, quantile, documents_sha256: [...], model, layers: [{tensor:
value}]}. Every field is checked like one of a config: its type, its range, and that it agrees with the others. The
paper's released files (arXiv 2412.12178) are read and written too.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import ThresholdsError
from ..fields import Fields, read_json
from ..files import whole_file
from ..identity import Fingerprint, read_fingerprint
from ..transformer.model import Llama
from .policies import POLICIES, Policy, policy_named
from .spec import SparsitySpec, read_spec

FORMAT, VERSION = "minillm-thresholds", 1
FIELDS = ("format", "version", "policy", "by", "level", "spec", "quantile", "documents_sha256", "layers")
LARGEST = 1e38  # no activation in float32 is larger
BYS = ("tensor", "neuron", "reads", "cett", "ppl")
QUANTILES = ("exact", "streaming", "as published")  # the last: from the paper's own files


@dataclass(frozen=True)
class Thresholds:
    """One number per layer and cut tensor, with the fields that define them.

    layers: per layer {tensor: threshold}, tensors under the step names. level: the quantile that was taken (the paper's
    percentage), or None where it is not known. documents_sha256: the calibration text's documents. model: whose they
    are; None in files that are older than this field, and in the paper's.
    """

    policy: str
    by: str
    level: float | None
    layers: tuple[dict[str, float], ...]
    spec: SparsitySpec
    quantile: str = "exact"
    documents_sha256: tuple[str, ...] = ()
    model: Fingerprint | None = None

    def check_fits(self, model: Llama) -> None:
        """Raise ThresholdsError when the number of layers is not the model's, or a threshold is no number.

        MinillmError where the policy cuts up, and the model has none. Warns where the thresholds are of another model.
        """
        if len(self.layers) != len(model.layers):
            raise ThresholdsError(
                f"the thresholds are for {len(self.layers)} layers, the model has {len(model.layers)}: "
                "they belong to another model"
            )
        policy_named(self.policy).check_gated(model.config.gated)
        for i, layer in enumerate(self.layers):
            for tensor, value in layer.items():
                if not math.isfinite(value):
                    raise ThresholdsError(f"the threshold layers[{i}].{tensor} is {value}, expected a finite number")
        if self.model is not None:
            self.model.check(model.fingerprint, f"the set of {self.policy} thresholds", ThresholdsError)

    def save(self, path: str | Path) -> None:
        """Write as JSON: to a temporary file beside the target, which is then renamed."""
        _write(path, self.as_json())

    def as_json(self) -> str:
        """The text of its file."""
        fields = {"format": FORMAT, "version": VERSION, "policy": self.policy, "by": self.by, "level": self.level}
        fields |= {
            "spec": self.spec.asdict(),
            "quantile": self.quantile,
            "documents_sha256": list(self.documents_sha256),
        }
        if self.model is not None:
            fields["model"] = self.model.asdict()
        return _json(fields | {"layers": list(self.layers)})

    def save_paper(self, path: str | Path) -> None:
        """Write in the format of the paper's released files: {"gate_proj": {"layer_0": t, ...}, "up_proj": ...}.

        Raises ThresholdsError for a policy other than dhar, the only one that the paper's code can run.
        """
        if self.policy != "dhar":
            raise ThresholdsError(f"policy is {self.policy}, expected dhar: the paper's files hold no other")
        names = {"gate_pre": "gate_proj", "up": "up_proj", "out": "down_proj"}
        if all("up" not in layer for layer in self.layers):
            names = {"gate_pre": "gate_up_proj", "out": "down_proj"}  # Phi-3, as released
        table = {
            key: {f"layer_{i}": layer[t] for i, layer in enumerate(self.layers)}
            for t, key in names.items()
            if t in self.layers[0]
        }
        _write(path, _json(table))

    @classmethod
    def load(cls, path: str | Path) -> Thresholds:
        """Read a thresholds file, ours or the paper's (recognised by its keys). Raises ThresholdsError."""
        path = Path(path)
        fields = read_json(path, ThresholdsError)
        read = Fields(fields, str(path), kind=ThresholdsError)
        paper = "format" not in fields and ("gate_proj" in fields or "gate_up_proj" in fields)
        return _from_paper(read, path) if paper else _from_ours(read)


def _from_ours(read: Fields) -> Thresholds:
    """A file of ours, field by field."""
    read.choice("format", [FORMAT])
    if type(version := read.fields.get("version")) is not int or version != VERSION:
        raise read.error("version", f"{VERSION}, the only one that this version of minillm knows")
    read.only([*FIELDS, "model"])
    rule = POLICIES[read.choice("policy", POLICIES)]
    by, quantile = read.choice("by", BYS), read.choice("quantile", QUANTILES, "exact")
    if by == "cett" and rule.name != "cett":
        raise read.error("by", f"another quantity for policy {rule.name}: cett counts for policy cett alone")
    level = read.between("level", 0, 1)
    if level == 1 or "level" not in read.fields:
        raise read.error("level", "a number from 0 to below 1, or null")
    layers = _layers(read, rule)
    model = read_fingerprint(read.fields.get("model"), read.source, ThresholdsError)
    if model is not None and model.shape[0] != len(layers):
        raise read.error("model", f"one of {len(layers)} layers, as the file has", list(model.shape))
    own = read.fields.get("spec")
    if not isinstance(own, dict):
        raise read.error("spec", "an object")
    target = level if by in ("tensor", "cett") else None
    expected = SparsitySpec(rule.name, tuple(t for t in rule.tensors if t in layers[0]), rule.comparison, by, target)
    spec = read_spec(Fields(own, read.source, "spec.", ThresholdsError), expected)
    return Thresholds(rule.name, by, level, layers, spec, quantile, read.hashes("documents_sha256"), model)


def _layers(read: Fields, rule: Policy) -> tuple[dict[str, float], ...]:
    """Per layer {tensor: threshold}, of the policy's tensors, the same in every layer."""
    layers = read.fields.get("layers")
    if not isinstance(layers, list) or not layers:
        raise read.error("layers", "a list with one object per layer")
    for i, layer in enumerate(layers):
        known = isinstance(layer, dict) and layer and set(layer) <= set(rule.tensors)
        if not known or set(layer) != set(layers[0]):
            found = sorted(layer) if isinstance(layer, dict) else layer
            expected = f"those of policy {rule.name} ({', '.join(rule.tensors)}), the same in every layer"
            raise read.error(f"layers[{i}]", expected, found)
    high = 1.0 if rule.of_shares else LARGEST
    return tuple(
        {tensor: _threshold(read, f"layers[{i}].{tensor}", value, high) for tensor, value in layer.items()}
        for i, layer in enumerate(layers)
    )


def _threshold(read: Fields, name: str, value: object, high: float) -> float:
    """One threshold, from 0 to ``high``."""
    if (type(value) is not int and type(value) is not float) or not 0 <= value <= high:
        raise read.error(name, f"a number from 0 to {high:g}", value)
    return float(value)


def _json(fields: dict) -> str:
    return json.dumps(fields, indent=1, allow_nan=False, default=lambda scalar: scalar.item()) + "\n"  # item: of NumPy


def _write(path: str | Path, text: str) -> None:
    with whole_file(path, ThresholdsError) as beside:
        beside.write_text(text, encoding="utf-8")


def _from_paper(read: Fields, path: Path) -> Thresholds:
    """The paper's own files: projection -> layer_i -> threshold.

    A percentage at the end of the file's name (llama-3-8b-30.json) is the level.
    act_fn (activation_fn) is calibrated there and never applied, so it is ignored. Phi-3's fused gate_up_proj has one
    pooled threshold, which the released code applies to the gate half only: up is not cut.
    """
    names = {"gate_proj": "gate_pre", "gate_up_proj": "gate_pre", "up_proj": "up", "down_proj": "out"}
    read.only([*names, "act_fn", "activation_fn"])
    layers: list[dict[str, float]] = []
    for key, tensor in names.items():
        if key not in read.fields:
            continue
        if any(tensor in layer for layer in layers):
            raise ThresholdsError(f"{path}: holds gate_proj and gate_up_proj, expected one of the two")
        table = read.fields[key]
        expected = {f"layer_{i}" for i in range(len(table))} if isinstance(table, dict) else None
        if not table or expected is None or set(table) != expected:
            raise ThresholdsError(f"{path}: {key} is not a table of layer_0, layer_1, ... without gaps")
        layers = layers or [{} for _ in table]
        if len(layers) != len(table):
            raise ThresholdsError(
                f"{path}: {key} has {len(table)} layers, the projections before it have {len(layers)}"
            )
        for i, layer in enumerate(layers):
            layer[tensor] = _threshold(read, f"{key}.layer_{i}", table[f"layer_{i}"], LARGEST)
    percent = re.search(r"-([0-9][0-9])$", path.stem)
    level = int(percent[1]) / 100 if percent else None
    spec = SparsitySpec("dhar", tuple(layers[0]), ">=", "tensor", level)
    return Thresholds("dhar", "tensor", level, tuple(layers), spec, "as published")
