"""The Variant record: its bytes by hand, the catalogue, the inputs that are collected, and a method in one new file."""

from dataclasses import replace

import numpy as np
import pytest
import tiny

import minillm
from minillm import methods
from minillm.errors import MinillmError
from minillm.methods import base
from minillm.methods.base import INPUTS, METHODS, fit, idle_neurons, layer_by_layer, products, squares, weights_variant
from minillm.sparsity.spec import SparsitySpec
from minillm.study.score import score_variant
from minillm.study.sweep import sweep
from minillm.trace import Trace
from minillm.transformer.linear import linear
from minillm.transformer.texts import document_hashes, runs

SPEC = SparsitySpec("toy", ("weights",), "chance, a share goes", "weights", 0.5)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.loaded(tmp_path_factory.mktemp("methods") / "m")


# ---- bytes -----------------------------------------------------------------------------------------------------------
def test_bytes_of_a_matrix_by_hand():
    matrix = np.zeros((3, 7), np.float32)
    matrix[0, 1] = matrix[2, 3] = matrix[2, 6] = 1
    assert base.dense_bytes(matrix) == 42  # 21 weights of 16 bits
    assert base.bitmap_bytes(matrix) == 6 + 3  # 3 weights, 21 bits
    assert base.csr_bytes(matrix) == 3 * (2 + 2) + 4 * 4  # 3 weights and columns, 4 places
    wide = np.zeros((1, 70_000), np.float32)
    wide[0, 5] = 1
    assert base.csr_bytes(wide) == (2 + 4) + 8  # a column beyond 65,535 takes 4 bytes


def halved(layer, names=("gate_proj",)):
    """The layer with every second weight of a row set to zero."""
    changed = {name: getattr(layer, name).copy() for name in names}
    for matrix in changed.values():
        matrix[:, ::2] = 0
    return replace(layer, **changed)


def test_what_a_variant_reads_and_stores_is_counted_from_its_weights(model):
    layers = [halved(layer) for layer in model.layers]
    made = weights_variant(model, layers, SPEC, ("gate_proj",), frozenset())
    weights = 12 * 8 * 2  # F D L
    assert made.spec.achieved == 0.5 and made.removed == 0
    assert made.reads["gate_proj"] == (2 * weights, weights + weights / 8, weights + weights / 8)
    assert made.reads["up_proj"] == (2 * weights,) * 3 and made.reads["q_proj"][0] == made.reads["q_proj"][1]
    dense = 2 * sum(model.parameters.values())
    assert made.stored["dense"] == dense
    assert made.stored["bitmap"] == dense - weights + weights // 8
    assert made.stored["csr"] == dense - 2 * weights + 4 * weights // 2 + 2 * 4 * (12 + 1)


def test_a_bitmap_that_would_be_larger_than_the_dense_matrix_is_not_read(model):
    def one_zero(layer):
        matrix = layer.up_proj.copy()
        matrix[0, 0] = 0
        return replace(layer, up_proj=matrix)

    made = weights_variant(model, [one_zero(layer) for layer in model.layers], SPEC, ("up_proj",), frozenset())
    assert made.reads["up_proj"].exact == made.reads["up_proj"].dense
    assert made.spec.achieved == pytest.approx(1 / 96)


def test_the_row_of_a_variant_has_the_shares_of_its_bytes(model):
    layers = [halved(layer, ("gate_proj", "up_proj")) for layer in model.layers]
    made = weights_variant(model, layers, SPEC, ("gate_proj", "up_proj"), frozenset())
    dense = minillm.perplexity(model, tiny.STORIES)
    row = score_variant(made, tiny.STORIES, dense)
    share = 0.5 + 1 / 16  # half of the weights, and a bit for each 16-bit weight
    assert (row["read_gate"], row["read_up"], row["read_down"]) == (share, share, 1)
    assert row["read_exact"] == row["read_known_mask"] == pytest.approx((2 * share + 1) / 3)
    assert (row["policy"], row["by"], row["target"], row["achieved"]) == ("toy", "weights", 0.5, 0.5)
    assert row["neuron_sparsity"] == 0 and row["union_density"] is None and row["tensor_sparsity"] == {"weights": 0.5}
    assert row["perplexity"] == minillm.perplexity(made.model, tiny.STORIES).perplexity != dense.perplexity
    assert "weights by chance" in row["spec"] and "weights removed, target 0.500, achieved 0.500" in row["spec"]


@pytest.mark.parametrize(
    ("name", "place", "biases", "idle"),
    [
        ("gate_proj", (3, slice(None)), False, 1),
        ("up_proj", (3, slice(None)), False, 1),
        ("down_proj", (slice(None), 3), False, 1),
        ("gate_proj", (3, slice(None)), True, 0),  # its bias still makes a gate
        ("down_proj", (3, slice(None)), False, 0),  # a row of down is no neuron
    ],
)
def test_a_neuron_is_idle_when_it_can_add_nothing(name, place, biases, idle):
    layer = tiny.model("llama" if biases else "plain").layers[0]
    matrix = getattr(layer, name).copy()
    matrix[place] = 0
    layer = replace(layer, **{name: matrix})
    assert idle_neurons(layer) == idle
    x = np.random.default_rng(0).normal(size=(5, 8))
    with Trace(keep="*mid") as trace:
        out = minillm.swiglu(x, layer, tap=trace)
    without = replace(layer, down_proj=np.where(np.arange(12) == 3, 0, layer.down_proj))
    assert np.array_equal(out, minillm.swiglu(x, without)) == bool(idle), trace["mid"][:, 3]


# ---- the catalogue ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_the_catalogue_makes_a_variant_of_that_name(name, tmp_path):
    model = tiny.loaded(tmp_path / "m", intermediate_size=16)  # for 4:8, a multiple of 8
    made = fit(name, model, tiny.STORIES, 0.5)
    assert made.name == made.spec.policy == name and made.spec.target == 0.5
    assert np.isfinite(minillm.perplexity(made.model, ["The end."], ffn=made.ffn, tap=made.tap).perplexity)


def test_an_unknown_method_and_a_target_out_of_range_are_refused(model):
    with pytest.raises(MinillmError, match="method 'wander' is unknown, expected one of .*wanda"):
        fit("wander", model, tiny.STORIES, 0.5)
    for target in (-0.1, 1.0):
        with pytest.raises(MinillmError, match=f"target is {target}, expected a share from 0 to below 1"):
            fit("wanda", model, tiny.STORIES, target)


TOY = '''
"""A method in one file: the weights that chance chooses go."""

import numpy as np
from dataclasses import replace
from minillm.methods.base import weights_variant
from minillm.transformer.layer import FFN_MATRICES
from minillm.sparsity.spec import SparsitySpec


def fit(model, documents, target, *, context=None):
    rng = np.random.default_rng(0)
    layers = []
    for layer in model.layers:
        weights = {name: getattr(layer, name) for name in FFN_MATRICES}
        changed = {name: w * (rng.random(w.shape) >= target) for name, w in weights.items()}
        layers.append(replace(layer, **changed))
    spec = SparsitySpec("toy", ("weights",), "chance, a share goes", "weights", target)
    return weights_variant(model, layers, spec, FFN_MATRICES, frozenset())
'''


def test_a_new_method_is_one_file_and_one_line_in_the_catalogue(model, tmp_path, monkeypatch):
    (tmp_path / "toy.py").write_text(TOY, encoding="utf-8")
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])  # as if it lay in minillm/methods
    monkeypatch.setitem(METHODS, "toy", "toy:fit")
    rows = sweep(model, tiny.STORIES[:2], tiny.STORIES[2:], ("mid",), (0.3, 0.6), methods=("toy",))
    assert [(row["policy"], row["by"], row["target"]) for row in rows] == [
        ("dense", None, None),
        ("mid", "tensor", 0.3), ("toy", "weights", 0.3),
        ("mid", "tensor", 0.6), ("toy", "weights", 0.6),
    ]  # fmt: skip
    assert all(list(row) == list(rows[0]) for row in rows)
    assert [round(row["achieved"], 1) for row in rows[2::2]] == [0.3, 0.6]
    assert rows[2]["perplexity"] != rows[4]["perplexity"]
    assert rows[4]["read_exact"] < rows[2]["read_exact"] < 1


def test_scoring_a_document_that_the_variant_has_seen_gives_a_warning(model):
    made = fit("wanda", model, tiny.STORIES[:2], 0.5)
    assert made.calibrated_on == set(document_hashes(tiny.STORIES[:2]))
    dense = minillm.perplexity(model, tiny.STORIES)
    with pytest.warns(UserWarning, match="2 of the documents scored are among those"):
        score_variant(made, tiny.STORIES, dense)
    assert not fit("magnitude", model, tiny.STORIES[:2], 0.5).calibrated_on  # it reads no text


# ---- statistics of the inputs ----------------------------------------------------------------------------------------
def test_squares_are_summed_per_feature_in_float64():
    x = np.array([[1, 2, 0], [3, -1, 0]], np.float32)
    assert squares(x).tolist() == [10, 5, 0] and squares(x).dtype == np.float64
    assert products(x).tolist() == [[10, -1, 0], [-1, 5, 0], [0, 0, 0]] and products(x).dtype == np.float64


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_each_matrix_is_multiplied_with_the_step_that_is_called_its_input(family):
    model = tiny.model(family)
    outputs = {"q_proj": "attn.q", "k_proj": "attn.k", "v_proj": "attn.v", "o_proj": "attn.out"}
    outputs |= {"gate_proj": "mlp.gate_pre", "up_proj": "mlp.up", "down_proj": "mlp.out"}
    assert outputs.keys() == INPUTS.keys()
    with Trace(keep="blocks.1.*") as trace:
        model.forward([3, 1, 4, 1], tap=trace)
    for name, step in INPUTS.items():
        x = trace[f"blocks.1.{step}"].reshape(4, -1)
        y = linear(x, getattr(model.layers[1], name), getattr(model.layers[1], name.replace("_proj", "_bias")))
        if family == "qwen3" and name in ("q_proj", "k_proj"):  # tapped after their norms
            continue
        np.testing.assert_allclose(trace[f"blocks.1.{outputs[name]}"].reshape(4, -1), y, rtol=1e-12)


@pytest.mark.parametrize("changing", [False, True])
def test_the_inputs_are_those_of_the_model_whose_earlier_layers_are_changed(model, changing):
    """layer_by_layer against whole passes with a trace, layer after layer; the scored positions only."""
    pieces = runs(model, tiny.STORIES, "documents", 20)
    seen = []

    def change(layer, sums):
        seen.append(sums)
        return halved(layer, ("gate_proj", "o_proj")) if changing else layer

    layers = layer_by_layer(model, pieces, squares, change)
    assert len({run.unscored for run in pieces}) == 1 and len(pieces) > len(tiny.STORIES)
    for i, sums in enumerate(seen):
        partly = base.with_layers(model, [*layers[:i], *model.layers[i:]])
        expected = dict.fromkeys(INPUTS, 0.0)
        for run in pieces:
            with Trace(keep=f"blocks.{i}.*") as trace:
                partly.forward(run.ids[:-1], tap=trace)
            for name, step in INPUTS.items():
                rows = trace[f"blocks.{i}.{step}"].reshape(len(run.ids) - 1, -1)[run.unscored - 1 :]
                expected[name] = expected[name] + (rows**2).sum(axis=0)
        for name in INPUTS:
            assert sums[name].shape == (getattr(model.layers[i], name).shape[1],)
            np.testing.assert_allclose(sums[name], expected[name], rtol=1e-12)


def test_a_changed_model_has_a_fingerprint_of_its_own(model):
    before = model.fingerprint
    changed = base.with_layers(model, [halved(layer) for layer in model.layers])
    assert changed.fingerprint.sha256 != before.sha256 == model.fingerprint.sha256
