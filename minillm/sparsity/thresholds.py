"""Thresholds: one number per layer and cut tensor, with the fields that define them, and their files.

Ours is JSON: {format, version, policy, by, level, spec, quantile, documents_sha256: [...], layers: [{tensor: value}]}.
The paper's released files (arXiv 2412.12178) are read and written too.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from pathlib import Path

from ..errors import ThresholdsError
from ..files import whole_file
from ..loading.fields import brief, read_json
from ..transformer.model import Llama
from .policies import POLICIES
from .spec import SparsitySpec

FORMAT, VERSION = "minillm-thresholds", 1
BYS = ("tensor", "neuron", "reads", "cett", "ppl")
QUANTILES = ("exact", "streaming", "as published")  # the last: from the paper's own files


@dataclass(frozen=True)
class Thresholds:
    """One number per layer and cut tensor, with the fields that define them.

    layers: per layer {tensor: threshold}, tensors under the step names. level: the quantile that was taken (the paper's
    percentage), or None where it is not known. documents_sha256: the calibration text's documents.
    """

    policy: str
    by: str
    level: float | None
    layers: tuple[dict[str, float], ...]
    spec: SparsitySpec
    quantile: str = "exact"
    documents_sha256: tuple[str, ...] = ()

    def check_fits(self, model: Llama) -> None:
        """Raise ThresholdsError when the number of layers is not the model's."""
        if len(self.layers) != len(model.layers):
            raise ThresholdsError(
                f"the thresholds are for {len(self.layers)} layers, the model has {len(model.layers)}: "
                "they belong to another model"
            )

    def save(self, path: str | Path) -> None:
        """Write as JSON: to a temporary file beside the target, which is then renamed."""
        fields = {"format": FORMAT, "version": VERSION, "policy": self.policy, "by": self.by, "level": self.level}
        fields |= {
            "spec": self.spec.asdict(),
            "quantile": self.quantile,
            "documents_sha256": list(self.documents_sha256),
        }
        _write_json(path, fields | {"layers": list(self.layers)})

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
        _write_json(path, table)

    @classmethod
    def load(cls, path: str | Path) -> Thresholds:
        """Read a thresholds file, ours or the paper's (recognised by its keys). Raises ThresholdsError."""
        path = Path(path)
        if not path.is_file():
            raise ThresholdsError(f"{path}: no such file, expected a thresholds file (JSON)")
        fields = read_json(path, ThresholdsError)
        if "format" not in fields and ("gate_proj" in fields or "gate_up_proj" in fields):
            return _from_paper(fields, path)
        for key, expected in (("format", FORMAT), ("version", VERSION)):
            if fields.get(key) != expected:
                raise ThresholdsError(f"{path}: {key} is {fields.get(key)!r}, expected {expected!r}")
        policy, layers = fields.get("policy"), fields.get("layers")
        by, level = fields.get("by", ""), fields.get("level")
        if not isinstance(policy, str) or policy not in POLICIES:
            raise ThresholdsError(f"{path}: policy is {brief(policy)}, expected one of {', '.join(POLICIES)}")
        tensors = POLICIES[policy].tensors
        if not isinstance(layers, list) or not layers:
            raise ThresholdsError(f"{path}: layers is {brief(layers)}, expected a list with one object per layer")
        for i, layer in enumerate(layers):
            known = isinstance(layer, dict) and layer and set(layer) <= set(tensors)
            if not known or set(layer) != set(layers[0]):
                found = brief(sorted(layer)) if isinstance(layer, dict) else brief(layer)
                raise ThresholdsError(
                    f"{path}: layers[{i}] has {found}, expected those of policy {policy} ({', '.join(tensors)}), "
                    "the same in every layer"
                )
            for tensor, value in layer.items():
                _check_threshold(path, f"layers[{i}].{tensor}", value)
        hashes = fields.get("documents_sha256", [])
        if not isinstance(hashes, list) or not all(isinstance(h, str) for h in hashes):
            raise ThresholdsError(f"{path}: documents_sha256 is not a list of strings")
        quantile = fields.get("quantile", "exact")
        for field, value, good in (("by", by, BYS), ("quantile", quantile, QUANTILES)):
            if value not in good:
                raise ThresholdsError(f"{path}: {field} is {brief(value)}, expected {' or '.join(good)}")
        if level is not None and (type(level) not in (int, float) or not 0 <= level < 1):
            raise ThresholdsError(f"{path}: level is {brief(level)}, expected a number from 0 to below 1, or null")
        spec = _spec_from(fields.get("spec"), path)
        if (spec.policy, spec.by) != (policy, by):
            raise ThresholdsError(f"{path}: spec is of {spec.policy} by {spec.by}, expected {policy} by {by}")
        return cls(policy, by, level, tuple(layers), spec, quantile, tuple(hashes))


def _spec_from(fields: object, path: Path) -> SparsitySpec:
    """The SparsitySpec of a file, with the type of each field checked."""
    names = {field.name for field in dataclass_fields(SparsitySpec)}
    if not isinstance(fields, dict) or set(fields) != names:
        raise ThresholdsError(f"{path}: spec is {brief(fields)}, expected an object with {', '.join(sorted(names))}")
    for name, value in fields.items():
        if name == "tensors":
            good = isinstance(value, list) and all(isinstance(tensor, str) for tensor in value)
        elif name in ("target", "achieved"):
            good = value is None or (type(value) in (int, float) and 0 <= value <= 1)
        else:
            good = isinstance(value, str)
        if not good:
            kind = {"tensors": "a list of strings", "target": "a share or null", "achieved": "a share or null"}
            raise ThresholdsError(f"{path}: spec.{name} is {brief(value)}, expected {kind.get(name, 'a string')}")
    return SparsitySpec(**fields | {"tensors": tuple(fields["tensors"])})


def _write_json(path: str | Path, fields: dict) -> None:
    with whole_file(path, ThresholdsError) as beside:
        beside.write_text(json.dumps(fields, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _check_threshold(path: Path, field: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e38:  # True is an int
        raise ThresholdsError(f"{path}: {field} is {brief(value)}, expected a number from 0 to below 1e38")
    return float(value)


def _from_paper(fields: dict, path: Path) -> Thresholds:
    """The paper's own files: projection -> layer_i -> threshold.

    A percentage at the end of the file's name (llama-3-8b-30.json) is the level.
    act_fn (activation_fn) is calibrated there and never applied, so it is ignored. Phi-3's fused gate_up_proj has one
    pooled threshold, which the released code applies to the gate half only: up is not cut.
    """
    names = {"gate_proj": "gate_pre", "gate_up_proj": "gate_pre", "up_proj": "up", "down_proj": "out"}
    layers: list[dict[str, float]] = []
    for key, tensor in names.items():
        if key not in fields:
            continue
        if any(tensor in layer for layer in layers):
            raise ThresholdsError(f"{path}: holds gate_proj and gate_up_proj, expected one of the two")
        table = fields[key]
        expected = {f"layer_{i}" for i in range(len(table))} if isinstance(table, dict) else None
        if not table or expected is None or set(table) != expected:
            raise ThresholdsError(f"{path}: {key} is not a table of layer_0, layer_1, ... without gaps")
        layers = layers or [{} for _ in table]
        if len(layers) != len(table):
            raise ThresholdsError(
                f"{path}: {key} has {len(table)} layers, the projections before it have {len(layers)}"
            )
        for i, layer in enumerate(layers):
            layer[tensor] = _check_threshold(path, f"{key}.layer_{i}", table[f"layer_{i}"])
    percent = re.search(r"-([0-9][0-9])$", path.stem)
    level = int(percent[1]) / 100 if percent else None
    spec = SparsitySpec("dhar", tuple(layers[0]), ">=", "tensor", level)
    return Thresholds("dhar", "tensor", level, tuple(layers), spec, "as published")
