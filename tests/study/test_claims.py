"""What the README says about the method, on three trained models and text that none of them was calibrated on."""

import sys
from pathlib import Path

import numpy as np
import pytest

import minillm
from minillm.methods.base import fit
from minillm.sparsity.magnitudes import sample_values
from minillm.study.bootstrap import compare_policies
from minillm.study.prediction import PredictionSettings, prediction_rows
from minillm.study.sweep import sweep
from minillm.transformer.texts import Sample, first_tokens, runs, split_documents

pytestmark = [pytest.mark.slow, pytest.mark.shared]
SCRIPTS = Path(__file__).parents[2] / "weights_scripts"
HALVES = ("dhar", "cats", "countdown", "statistical")  # they rank by a part of what a neuron does


@pytest.fixture(scope="module", params=["default", "tinystories-656k", "stories260K"])
def model(request, shared, tmp_path_factory):
    if request.param == "stories260K":
        sys.path.insert(0, str(SCRIPTS))
        try:
            from convert_llama2c import convert
        finally:
            sys.path.pop(0)
        source = shared / "models" / "stories260K"
        folder = tmp_path_factory.mktemp("converted") / "stories260K"
        convert(source / "stories260K.bin", source / "tok512.bin", folder)
        return minillm.load(folder)
    return minillm.load("default" if request.param == "default" else shared / "models" / request.param)


@pytest.fixture(scope="module")
def stories(shared):
    def read(name):
        return split_documents((shared / "text" / name).read_text(encoding="utf-8"))

    return read("tinystories-train.txt")[:100], read("tinystories-valid.txt")


def test_at_equal_neuron_sparsity_no_policy_that_looks_at_a_part_beats_mid(model, stories):
    calibration, test = stories[0][:30], first_tokens(model, stories[1], 20_000)
    rows = list(sweep(model, calibration, test, [*HALVES, "mid", "cett"], [0.5], "neuron"))
    found = {row["policy"]: row for row in compare_policies(rows, "mid", np.random.default_rng(0))}
    assert all(abs(row["share"] - 0.5) < 0.02 for row in found.values())
    assert [found[policy]["verdict"] for policy in HALVES] == ["worse"] * len(HALVES), found
    assert abs(found["cett"]["log_ratio"]) < 0.02  # it looks at the whole neuron, too
    against_cats = {row["policy"]: row for row in compare_policies(rows, "cats", np.random.default_rng(0))}
    assert against_cats["statistical"]["verdict"] == "worse"  # these models were not trained with it
    against_dhar = {row["policy"]: row for row in compare_policies(rows, "dhar", np.random.default_rng(0))}
    if model.name == "stories260K":
        assert against_dhar["cats"]["verdict"] == "worse" and against_dhar["cats"]["log_ratio"] > 0.1
    if model.name == "tinystories-656k":
        assert against_dhar["cats"]["verdict"] == "better" and against_dhar["cats"]["log_ratio"] > -0.02


def test_cats_is_dear_where_small_gates_come_with_large_ups(model, stories):
    pieces = runs(model, stories[1][:10])
    found = []
    for values in sample_values(model, pieces, ("gate", "up"), 1500):
        gate, up = np.abs(values["gate"]).ravel(), np.abs(values["up"]).ravel()
        found.append(np.corrcoef(gate, up)[0, 1])
    assert (np.mean(found) < -0.03) == (model.name == "stories260K")
    assert model.name == "stories260K" or np.mean(found) > 0.03


NOTHING = 1e-3  # of the dense perplexity


def test_a_shadow_of_an_eighth_of_the_bytes_costs_at_most_half_more_than_the_oracle(model, stories):
    calibration, test = stories
    test = first_tokens(model, test, 8_000)
    rows = {row["predictor"]: row for row in prediction_rows(model, calibration, Sample(test), ("static", "shadow-4"))}
    oracle, static, shadow = rows.values()
    assert oracle["predictor"] == "oracle" and oracle["recall"] == 1 and 0 < shadow["own_share_float32"] <= 1 / 8
    # The embedded model loses next to nothing with half of its neurons: there, next to nothing is the bound.
    assert shadow["increase"] <= max(1.5 * oracle["increase"], NOTHING * oracle["dense"]), rows
    assert static["increase"] > 10 * max(oracle["increase"], NOTHING * oracle["dense"]) and static["recall"] < 0.7
    assert all(abs(row["selected"] - 0.5) <= 0.015 for row in rows.values())


def test_a_coded_copy_of_a_sixteenth_of_the_bytes_loses_less_than_half_of_what_two_bits_lose(model, stories):
    """In KL, which is surer than perplexity. The bar of 1.2 times the oracle's increase is not met on all three."""
    calibration, test = stories
    settings = PredictionSettings(0.8 if model.name == "default" else 0.5)  # a half of default's neurons costs nothing
    sample = Sample(first_tokens(model, test, 8_000))
    oracle, coded, two = prediction_rows(model, calibration, sample, ("coded", "shadow-2"), settings)
    assert 0.98 / 16 < coded["own_share_float32"] <= 1 / 16
    assert coded["kl"] - oracle["kl"] < 0.5 * (two["kl"] - oracle["kl"]), (oracle, coded, two)
    assert coded["recall"] > two["recall"] + 0.05 and coded["increase"] < 2 * oracle["increase"]


# Perplexities at 50 % found by an independent prototype: on the three matrices of the FFN, then on all seven.
PRUNED = {
    "tinystories-656k": {"wanda": 25.70, "magnitude": 25.26, "wanda-2:4": 37.8, "wanda-all": 34.7},
    "stories260K": {"wanda": 10.16, "magnitude": 11.33, "wanda-2:4": 25.8, "wanda-all": 20.5},
}


def pruned_perplexities(model, stories, names, published) -> dict[str, float]:
    """Of these methods at 50 %, and of those with a published figure for this model, which is then scored in full."""
    calibration, test = stories
    test = test if model.name in published else first_tokens(model, test, 8_000)
    found = {}
    for name in (*names, *published.get(model.name, ())):
        made = fit(name, model, calibration, 0.5, 512)
        found[name] = minillm.perplexity(made.model, test, "documents", 512).perplexity
    return found


def test_wanda_beats_magnitude_on_all_matrices_and_has_the_figures_of_an_independent_prototype(model, stories):
    """On the FFN of tinystories-656k alone it does not: the inputs of its matrices have nearly equal norms."""
    found = pruned_perplexities(model, stories, ("wanda-all", "magnitude-all"), PRUNED)
    assert found["wanda-all"] < 0.97 * found["magnitude-all"]
    for name, published in PRUNED.get(model.name, {}).items():
        assert found[name] == pytest.approx(published, rel=5e-3), name


# The same of SparseGPT and what builds on it: three matrices, 2:4, all seven, and ISC in its place.
COMPENSATED = {
    "tinystories-656k": {"sparsegpt": 24.30, "sparsegpt-2:4": 29.3, "sparsegpt-all": 31.0, "isc": 24.17},
    "stories260K": {"sparsegpt": 9.07, "sparsegpt-2:4": 16.2, "sparsegpt-all": 18.9, "isc": 9.01},
}


def test_sparsegpt_beats_wanda_and_has_the_figures_of_an_independent_prototype(model, stories):
    found = pruned_perplexities(model, stories, ("wanda", "sparsegpt"), COMPENSATED)
    assert found["sparsegpt"] < 0.97 * found["wanda"]
    for name, published in COMPENSATED.get(model.name, {}).items():
        assert found[name] == pytest.approx(published, rel=1e-2), name
