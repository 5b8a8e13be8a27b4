"""Neurons removed for good: the small model against the masked one, least squares, ADMM and its pitfall, bytes."""

from dataclasses import replace

import numpy as np
import pytest
import tiny

import minillm
from minillm.errors import MinillmError
from minillm.methods import structured
from minillm.methods.base import fit, stored_bytes, with_layers
from minillm.methods.saved import save_variant
from minillm.methods.structured import CORRECTIONS, SCORES, admm, largest, least_squares, narrow, narrow_model
from minillm.sparsity.spec import SparsityMeter
from minillm.study.score import score_variant
from minillm.transformer.documents import split_documents

TEXT = [f"{story} And {i} more." for i in range(2) for story in tiny.STORIES]
IDS = [1, 5, 3, 9, 30]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.loaded(tmp_path_factory.mktemp("structured") / "m")


def inputs(rng, tokens=400, neurons=24) -> np.ndarray:
    """Mids that depend on each other, with scales apart: (T, F)."""
    mixed = np.eye(neurons) + 0.15 * rng.normal(size=(neurons, neurons))
    return rng.normal(size=(tokens, neurons)) @ mixed * np.linspace(0.5, 2, neurons)


def error(matrix, columns, moment, keep) -> float:
    """sum_t |mid_t W^T - mid_t[K] V^T|^2, by the products alone."""
    lost = matrix.copy()
    lost[:, keep] -= columns
    return float(np.trace(lost @ moment @ lost.T))


# ---- one matrix ------------------------------------------------------------------------------------------------------
def test_least_squares_is_the_best_and_admm_is_within_two_percent_of_it():
    rng = np.random.default_rng(0)
    for _ in range(5):
        matrix, mid = rng.normal(size=(10, 24)), inputs(rng)
        moment, keep = mid.T @ mid, np.sort(rng.choice(24, 14, replace=False))
        best = least_squares(matrix, moment, keep)
        expected = np.linalg.lstsq(mid[:, keep], mid @ matrix.T, rcond=None)[0].T
        lowest = error(matrix, expected, moment, keep)
        assert error(matrix, best, moment, keep) <= lowest * (1 + 1e-4)  # the damping
        assert error(matrix, matrix[:, keep], moment, keep) > 1.1 * lowest
        assert lowest <= error(matrix, admm(matrix, moment, keep), moment, keep) * (1 + 1e-12)
        errors = [error(matrix, admm(matrix, moment, keep, steps), moment, keep) for steps in (1, 3, 10, 30)]
        assert errors == sorted(errors, reverse=True) and errors[-1] <= 1.02 * lowest


def test_admm_with_the_printed_polarity_keeps_what_should_go():
    """Eq. (8) of the paper as printed, Z = (W + U) * M with M = 1 at removed columns, against the right one."""
    rng = np.random.default_rng(1)
    matrix, mid = rng.normal(size=(10, 24)), inputs(rng)
    moment, keep = mid.T @ mid, np.arange(6, 24)  # the six columns of the smallest scales go
    gone = np.setdiff1d(np.arange(24), keep)
    dense = np.trace(matrix @ moment @ matrix.T)
    printed = error(matrix, admm(matrix, moment, gone), moment, gone) / dense
    assert error(matrix, admm(matrix, moment, keep), moment, keep) / dense < 0.1 < 0.3 < printed


def test_on_raw_sums_admm_changes_nothing(monkeypatch):
    rng = np.random.default_rng(2)
    matrix, mid = rng.normal(size=(10, 24)), 1e3 * inputs(rng)
    moment, keep = mid.T @ mid, np.arange(10, 24)
    mask, best = (CORRECTIONS[name](matrix, moment, keep) for name in ("none", "least squares"))
    scaled = admm(matrix, moment, keep)
    monkeypatch.setattr(structured, "damped", lambda moment, share: moment)
    raw = admm(matrix, moment, keep)
    gain = [error(matrix, mask, moment, keep) - error(matrix, each, moment, keep) for each in (best, scaled, raw)]
    assert gain[1] > 0.98 * gain[0] and gain[2] < 0.05 * gain[0]


def test_a_neuron_that_never_fires_keeps_its_weights():
    rng = np.random.default_rng(3)
    matrix, mid = rng.normal(size=(5, 8)), inputs(rng, neurons=8)
    mid[:, 2] = 0
    columns = least_squares(matrix, mid.T @ mid, np.array([1, 2, 5]))
    np.testing.assert_allclose(columns[:, 1], matrix[:, 2], atol=1e-9)
    assert np.isfinite(least_squares(matrix, np.zeros((8, 8)), np.array([1, 2]))).all()


def test_the_importance_by_hand():
    x = np.diag([1.0, 2.0, 3.0])
    matrix = np.array([[1.0, 1.0, 2.0]])
    mean = (1 + 4 + 9) / 3
    expected = matrix**2 * 2 * (np.array([1.0, 4, 9]) + 0.01 * mean)  # the inverse of a diagonal matrix
    np.testing.assert_allclose(structured.importance(matrix, x.T @ x), expected, rtol=1e-12)
    assert np.isfinite(structured.importance(matrix, np.zeros((3, 3)))).all()


def test_the_largest_stay_in_their_order():
    assert largest(np.array([3.0, 1, 7, 5]), 2).tolist() == [2, 3]
    assert largest(np.array([3.0, 1]), 2).tolist() == [0, 1] and largest(np.ones(4), 1).tolist() == [3]


# ---- a whole model ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["plain", "llama", "qwen2", "gemma2"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-12)])
def test_the_small_model_is_the_masked_model(family, dtype, tolerance):
    """Widths that differ, biases of gate and up included: the logits of removed neurons and of mids set to 0."""
    model, rng = tiny.model(family, dtype), np.random.default_rng(0)
    keeps = [np.sort(rng.choice(12, count, replace=False)) for count in (5, 9)]
    small = narrow_model(model, [narrow(layer, keep) for layer, keep in zip(model.layers, keeps, strict=True)])
    masked = []
    for layer, keep in zip(model.layers, keeps, strict=True):
        kept = np.isin(np.arange(12), keep)
        masked.append(replace(layer, down_proj=layer.down_proj * kept))
    expected = with_layers(model, masked).forward(IDS)
    found = small.forward(IDS)
    assert found.dtype == dtype and small.config.intermediate_size == 9
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
    assert np.abs(found - model.forward(IDS)).max() > 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("score", [*SCORES, "random"])
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_widths_bytes_and_reads_are_those_of_the_small_model(model, score, correction):
    made = structured.fit(model, TEXT, 0.3, score=score, correction=correction)
    assert [layer.gate_proj.shape for layer in made.model.layers] == [(9, 8)] * 2  # 12 - floor(3.6)
    assert [layer.down_proj.shape for layer in made.model.layers] == [(8, 9)] * 2
    assert made.spec.achieved == made.removed == 0.25
    assert made.stored == {"dense": stored_bytes(model, model.layers)["dense"] - 2 * 2 * 3 * 3 * 8}
    assert made.stored == {"dense": 2 * sum(made.model.parameters.values())}
    assert [made.reads[name].exact / made.reads[name].dense for name in ("up_proj", "q_proj")] == [0.75, 1]
    assert bool(made.calibrated_on) == (correction != "none" or score in ("mid", "importance"))
    assert model.layers[0].gate_proj.shape == (12, 8)  # the dense model is as it was


def test_its_row_counts_what_it_reads(model):
    dense = minillm.perplexity(model, tiny.STORIES[:2])
    row = score_variant(fit("neurons", model, tiny.STORIES[2:], 0.5), tiny.STORIES[:2], dense)
    assert row["policy"] == "neurons" and row["achieved"] == row["neuron_sparsity"] == row["read_exact"] == 0.5
    assert SparsityMeter().report().weight_reads == 1


def test_target_0_is_the_dense_model_and_what_leaves_none_is_refused(model):
    made = fit("neurons-admm", model, TEXT, 0.0)
    assert np.array_equal(made.model.forward(IDS), model.forward(IDS)) and made.spec.achieved == 0
    bare = tiny.model("plain", intermediate_size=1)
    assert fit("neurons-norm-mask", bare, "", 0.99).removed == 0  # floor(0.99) neurons
    with pytest.raises(MinillmError, match=r"target is 1\.0, which leaves none of 12 neurons"):
        structured.kept_count(12, 1.0)
    for changes, expected in (({"score": "size"}, "score is 'size', expected one of norm"), (
        {"correction": "OBS"}, "correction is 'OBS', expected one of none, least squares")):  # fmt: skip
        with pytest.raises(MinillmError, match=expected):
            structured.fit(model, TEXT, 0.5, **changes)


def test_a_small_model_is_a_normal_folder(model, tmp_path):
    made = fit("neurons", model, TEXT, 0.5)
    again = minillm.load(save_variant(tmp_path / "out", made, model, {}), dtype="float64")
    assert again.config.intermediate_size == 6
    expected = made.model.forward(IDS)
    assert np.abs(again.forward(IDS) - expected).max() < 1e-6 * np.abs(expected).max()  # the file holds float32
    fit("wanda", made.model, TEXT, 0.5)  # and other methods take it


# ---- published models ------------------------------------------------------------------------------------------------
@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize(("name", "expected"), [
    ("neurons-norm-mask", 283), ("neurons-norm", 110), ("neurons-mask", 83), ("neurons", 57),
    ("neurons-importance-mask", 78), ("neurons-importance", 55),
])  # fmt: skip
def test_perplexities_are_those_of_an_independent_implementation(shared, name, expected):
    """Its figures are rounded to whole numbers: within half of one, and half a percent."""
    model = minillm.load(shared / "models" / "tinystories-656k")
    train, test = (
        split_documents((shared / "text" / f"tinystories-{part}.txt").read_text(encoding="utf-8"))
        for part in ("train", "valid")
    )
    found = minillm.perplexity(fit(name, model, train[:100], 0.5, 512).model, test, context=512).perplexity
    assert found == pytest.approx(expected, abs=0.5 + 0.005 * expected)


@pytest.mark.shared
@pytest.mark.slow
def test_what_stays_and_how_it_is_corrected(shared):
    """Least squares lowers the perplexity whatever the choice, and then chance beats the choice by norms."""
    model = minillm.load(shared / "models" / "tinystories-656k")
    train, test = (
        split_documents((shared / "text" / f"tinystories-{part}.txt").read_text(encoding="utf-8"))[:100]
        for part in ("train", "valid")
    )

    def score(name: str) -> float:
        return minillm.perplexity(fit(name, model, train, 0.5, 512).model, test, context=512).perplexity

    found = {}
    for name in ("neurons", "neurons-norm", "neurons-importance", "neurons-random"):
        found[name] = score(name)
        assert found[name] < 0.8 * score(f"{name}-mask")
    assert found["neurons-random"] < 0.8 * found["neurons-norm"]
    assert score("neurons-admm") == pytest.approx(found["neurons"], rel=1e-3)
