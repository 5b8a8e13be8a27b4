"""Weights removed and neurons cut: shares that read the target, both counted, thresholds of the changed model."""

import numpy as np
import pytest
import tiny

import minillm
from minillm.methods.base import fit
from minillm.methods.combined import shares_of
from minillm.methods.saved import save_variant
from minillm.study.score import score_variant
from minillm.transformer.texts import split_text

KNOWN, TEST = split_text([f"{story} {number}" for number in range(6) for story in tiny.STORIES])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    shape = {"hidden_size": 16, "intermediate_size": 64}
    return tiny.loaded(tmp_path_factory.mktemp("combined") / "m", "float32", **shape)


@pytest.mark.parametrize("target", [0, 0.1, 0.25, 0.4, 0.75])
def test_the_two_shares_read_what_the_target_leaves(target):
    removed, cut = shares_of(target)
    left = 1 if target == 0 else 1 - removed + 1 / 16
    assert left * (1 - cut) == pytest.approx(1 - target) and removed <= 5 / 16
    assert (cut > 0) == (target > 0.25)


def row_of(model, name, target):
    return score_variant(fit(name, model, KNOWN, target), TEST, minillm.perplexity(model, TEST))


@pytest.mark.parametrize("target", [0.25, 0.5, 0.75])
def test_a_row_counts_both(model, target):
    row, weights = row_of(model, "wanda+mid", target), row_of(model, "wanda", 0.3125)
    assert row["read_known_mask"] == pytest.approx(1 - target, abs=0.05)
    assert row["achieved"] == 1 - row["read_known_mask"] and row["by"] == "weights"
    share = 1 - row["neuron_sparsity"]
    assert row["read_known_mask"] == pytest.approx(weights["read_exact"] * share)
    assert row["read_gate"] == pytest.approx(weights["read_gate"])  # to know |mid|, gate and up are read
    if target == 0.25:
        assert row["perplexity"] == pytest.approx(weights["perplexity"])


def test_the_control_takes_the_thresholds_of_the_dense_model(model):
    ours, theirs = (fit(name, model, KNOWN, 0.6) for name in ("wanda+mid", "wanda+mid-dense"))
    assert all(
        np.array_equal(a.gate_proj, b.gate_proj) for a, b in zip(ours.model.layers, theirs.model.layers, strict=True)
    )
    of_dense = minillm.calibrate(model, KNOWN, "mid", shares_of(0.6)[1], by="neuron")
    assert theirs.ffn.thresholds.layers == of_dense.layers != ours.ffn.thresholds.layers


def test_a_target_of_0_is_the_dense_model_and_a_cut_has_no_folder(model, tmp_path, recwarn):
    made = fit("wanda+mid", model, KNOWN, 0)
    assert np.array_equal(made.model.forward([1, 5, 3], ffn=made.ffn), model.forward([1, 5, 3]))
    with pytest.raises(minillm.MinillmError, match="changes how a block is computed"):
        save_variant(tmp_path / "out", fit("wanda+mid", model, KNOWN, 0.5), model, {})
    assert not [str(note.message) for note in recwarn if "another model" in str(note.message)]
