"""What a model is: its parts add up, and the config's rows hold every field."""

from dataclasses import fields, replace

import numpy as np
import pytest
import tiny

from minillm.study.describe import config_rows, describe, headline, stored_bytes


def test_the_parts_of_a_model_add_up_to_all_its_weights():
    model = tiny.model(dtype=np.float32)
    rows = {row["part"]: row for row in describe(model)}
    assert list(rows) == ["embedding", "attention", "ffn", "norms", "head"]
    assert rows["ffn"]["weights"] == 2 * 3 * 8 * 12 and rows["ffn"]["MB"] == 2 * 3 * 8 * 12 * 4 / 1e6
    assert sum(row["weights"] for row in rows.values()) == sum(model.parameters.values())
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)


def test_the_bytes_of_a_part_are_those_that_are_stored_whatever_is_loaded(tmp_path):
    model = tiny.loaded(tmp_path / "mine", dtype="float64")
    ffn = next(row for row in describe(model) if row["part"] == "ffn")
    assert ffn["stored_MB"] == ffn["weights"] * 4 / 1e6 and ffn["MB"] == ffn["weights"] * 8 / 1e6
    assert sum(stored_bytes(model).values()) == 4 * sum(model.parameters.values())
    assert stored_bytes(tiny.model())["ffn"] == 8 * tiny.model().parameters["ffn"]  # no file: as it is in memory


def test_a_tied_head_is_named_as_one():
    assert describe(tiny.model("qwen2"))[-1]["part"] == "head (tied to the embedding)"


def test_the_headline_holds_the_name_and_every_size(tmp_path):
    model = tiny.loaded(tmp_path / "mine")
    line = headline(model)
    assert line.startswith(f"mine: llama, {sum(model.parameters.values()):,} weights")
    for piece in (
        "2 layers",
        "hidden 8",
        "intermediate 12 (silu)",
        "4 query and 2 key/value heads of 4",
        "context 128",
    ):
        assert piece in line
    assert "\n" not in line


def test_the_rows_of_a_config_hold_every_field_and_what_is_stored(tmp_path):
    model = tiny.loaded(tmp_path / "m")
    rows = {row["field"]: row["value"] for row in config_rows(model)}
    names = {field.name for field in fields(model.config)} - {"rope", "sliding_windows"}
    assert names <= set(rows) and rows["hidden_size"] == "8" and rows["rope.theta"] == "10000.0"
    stored = sum(model.parameters.values()) * 4
    assert rows["stored"] == f"{stored:,} bytes of F32"
    assert all(isinstance(value, str) for value in rows.values())


def test_a_list_of_windows_becomes_their_sizes_and_a_count_of_layers():
    model = tiny.model("mistral", num_hidden_layers=3)
    rows = {row["field"]: row["value"] for row in config_rows(model)}
    assert rows["sliding_windows"] == "3 in 3 of 3 layers" and "stored" not in rows  # it has no folder
    model.config = replace(model.config, sliding_windows=(None, 3, 5))
    assert {row["field"]: row["value"] for row in config_rows(model)}["sliding_windows"] == "3, 5 in 2 of 3 layers"
    assert "sliding_windows" not in {row["field"] for row in config_rows(tiny.model())}
