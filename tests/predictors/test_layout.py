"""Layouts: what is refused on a header, before a table is read, and which values a table may hold."""

import numpy as np
import pytest

from minillm.errors import CheckpointError
from minillm.fields import Fields
from minillm.loading.tensors import read_header, save_tensors
from minillm.predictors.catalogue import KINDS
from minillm.predictors.files import class_of
from minillm.predictors.layout import ABOVE_ZERO, Layout, Table, check_header, check_values, read_table, sizes_of

LAYOUT = Layout(
    {"A": Table("LDr"), "B": Table("LrF"), "c": Table("LF", ("F32",)), "e": Table("LF", group="x"),
     "f": Table("LF", group="x")},
    sizes_of((2, 8, 3)), {"r": range(1, 9)},
)  # fmt: skip
GOOD = {"A": ("F16", (2, 8, 4)), "B": ("F16", (2, 4, 3)), "c": ("F32", (2, 3))}
GROUP = {"e": ("F16", (2, 3)), "f": ("F16", (2, 3))}


@pytest.mark.parametrize("header", [GOOD, GOOD | GROUP])
def test_a_header_that_fits_is_accepted_with_and_without_a_group(header):
    check_header(LAYOUT, header, "p")


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (GOOD | {"z": ("F16", (2, 3))}, "'z' is unknown, expected A, B, c, e, f"),
        ({name: GOOD[name] for name in "AB"}, "tensor c is missing"),
        (GOOD | {"e": GROUP["e"]}, "tensor f is missing"),
        (GOOD | {"c": ("F64", (2, 3))}, "tensor c is F64, expected F32"),
        (GOOD | {"c": ("F32", (3, 2))}, "tensor c has shape [3, 2], expected [2, 3]"),
        (GOOD | {"c": ("F32", (2, 3, 1))}, "tensor c has shape [2, 3, 1]"),
        (GOOD | {"A": ("F16", (2, 8))}, "tensor A has shape [2, 8], expected [2, 8, r]"),
        (GOOD | {"A": ("F16", (2, 8, 9))}, "tensor A has shape [2, 8, 9], expected [2, 8, r]"),
        (GOOD | {"A": ("F16", (2, 8, 0))}, "tensor A has shape [2, 8, 0]"),
        (GOOD | {"B": ("F16", (2, 5, 3))}, "tensor B has shape [2, 5, 3], expected [2, 4, 3]"),
    ],
)
def test_a_header_that_does_not_fit_is_refused_by_the_tables_name(header, said):
    with pytest.raises(CheckpointError) as error:
        check_header(LAYOUT, header, "p")
    assert str(error.value).startswith("p: ") and said in str(error.value)


@pytest.mark.parametrize(
    ("table", "value", "said"),
    [
        (Table("LF"), np.nan, "holds nan in layer 1, expected finite numbers"),
        (Table("LF"), np.inf, "holds inf in layer 1, expected finite numbers"),
        (Table("LF"), -np.inf, "holds -inf in layer 1, expected finite numbers"),
        (Table("LF", low=0), -1, "holds -1 in layer 1, expected finite numbers from 0"),
        (Table("LF", low=ABOVE_ZERO), 0, "holds 0 in layer 1, expected finite numbers above 0"),
        (Table("LF", low=0, high=1), 1.5, "holds 1.5 in layer 1, expected numbers from 0 to 1"),
        (Table("FD"), np.nan, "holds nan, expected finite numbers"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_table_and_layer(table, value, said):
    array = np.full((2, 3), 0.5, np.float16)
    check_values(table, "t", array, "p")
    array[1, 2] = value
    with pytest.raises(CheckpointError, match="p: tensor t ") as error:
        check_values(table, "t", array, "p")
    assert said in str(error.value)


def test_a_table_is_read_from_its_place_in_the_file(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.uint8), "b": np.arange(6, dtype=np.float16).reshape(2, 3)}
    save_tensors(path := tmp_path / "p.safetensors", arrays)
    header = read_header(path)
    assert np.array_equal(read_table(Table("LF"), header["b"], "p"), arrays["b"])
    path.write_bytes(path.read_bytes()[:-1])  # it shrank since
    with pytest.raises(CheckpointError, match="ends inside tensor"):
        [read_table(Table("LF"), info, "p") for info in header.values()]


SETTINGS = {"shape": [2, 8, 3], "seed": 0, "hidden_act": "silu", "act": "silu", "gate_bits": 3, "up_bits": 4,
            "ahead": 1, "k": 2, "level": 0.5, "row_bits": 20, "group": 2, "kept": 1}  # fmt: skip
OWN = {"chance": ["shape", "seed"], "svd": ["shape", "hidden_act"], "learned": ["shape", "ahead"],
       "router": ["shape", "group", "kept"], "library": ["k", "level", "act"],
       "coded": ["shape", "hidden_act", "row_bits"],
       **dict.fromkeys(["static", "previous-token", "sign", "clusters"], ["shape"]),
       **dict.fromkeys(["shadow", "refined", "ahead"], ["shape", "hidden_act", "gate_bits", "up_bits"])}  # fmt: skip
WRONG = {"shape": [2, 8], "seed": -1, "hidden_act": "tanh", "act": None, "gate_bits": 9, "up_bits": 0, "ahead": True,
         "k": 0, "level": "x", "row_bits": 65, "group": 4, "kept": 3}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_takes_its_own_settings_and_no_other(kind):
    good = {name: SETTINGS[name] for name in OWN[kind]}
    if kind == "ahead":
        good["shape"] = [2, 16, 3]  # of a shadow of two inputs for each one

    def layout(settings):
        return class_of(kind).layout(Fields(settings, "p", "settings.", CheckpointError), (2, 8, 3))

    assert {"L", "D", "F"} <= set(layout(good).sizes)
    with pytest.raises(CheckpointError, match="settings.'x' is unknown"):
        layout(good | {"x": 1})
    for name in OWN[kind]:
        for settings in (good | {name: WRONG[name]}, {key: good[key] for key in good if key != name}):
            with pytest.raises(CheckpointError, match=f"settings.{name} is "):
                layout(settings)


@pytest.mark.parametrize("target", ["gate", None, 1])
def test_a_learned_predictor_was_trained_on_the_mask_or_on_mid(target):
    with pytest.raises(CheckpointError, match="settings.target is "):
        settings = Fields({"shape": [2, 8, 3], "ahead": 0, "target": target}, "p", "settings.", CheckpointError)
        class_of("learned").layout(settings, (2, 8, 3))
