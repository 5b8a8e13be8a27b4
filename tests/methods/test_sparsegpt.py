"""SparseGPT: one column against constrained least squares, blocks, errors in their order, H = 1; then whole models."""

import numpy as np
import pytest
import tiny

import minillm
from minillm.errors import MinillmError
from minillm.methods import sparsegpt
from minillm.methods.base import MATRIX_SETS, fit
from minillm.methods.sparsegpt import compensated, exact, isc, obs
from minillm.methods.wanda import removed_weights, scores
from minillm.predictors.quantise import damped, spread

TEXT = [f"{story} And {i} more." for i in range(2) for story in tiny.STORIES]


@pytest.fixture
def layer():
    """A matrix (12, 24), and the products of inputs that go together."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 24)) @ rng.standard_normal((24, 24)) * np.linspace(0.3, 2, 24)
    return rng.standard_normal((12, 24)), x.T @ x


def error(matrix, changed, moment):
    """The error of the output that the damped H sees."""
    off = matrix - changed
    return np.sum((off @ damped(moment, len(moment))) * off)


# ---- one matrix ------------------------------------------------------------------------------------------------------
def best_with_zero_at_0(matrix, H):
    """min (w - q) H (w - q)^T with q_0 = 0, for every row: by its normal equations (a Lagrange multiplier)."""
    n = len(H)
    system = np.zeros((n + 1, n + 1))
    system[:n, :n], system[0, n], system[n, 0] = H, 1, 1
    return np.linalg.solve(system, np.vstack([H @ matrix.T, np.zeros(len(matrix))]))[:n].T


def one_removed(matrix, moment, monkeypatch):
    """Only column 0 goes, in every row."""
    first = np.zeros((24, 12), bool)
    first[0] = True
    monkeypatch.setattr(sparsegpt, "smallest", lambda values, count: first.ravel())
    return compensated(matrix, moment, 0.5)


def test_a_removed_first_column_is_made_good_as_by_constrained_least_squares(layer, monkeypatch):
    matrix, moment = layer
    found = one_removed(matrix, moment, monkeypatch)
    expected = best_with_zero_at_0(matrix, damped(moment, 24))
    assert np.abs(found - expected).max() < 1e-10 * np.abs(expected).max()
    assert not found[:, 0].any() and (found[:, 1:] != matrix[:, 1:]).all()


def test_what_remains_of_the_error_is_the_saliency(layer, monkeypatch):
    matrix, moment = layer
    H = damped(moment, 24)
    U = spread(H, np.arange(24))
    found = one_removed(matrix, moment, monkeypatch)
    assert error(matrix, found, moment) == pytest.approx(np.sum(matrix[:, 0] ** 2 * obs(H, U)[0]), rel=1e-10)


def test_the_error_of_a_mask_falls_with_compensation_and_is_least_by_exact_least_squares(layer):
    matrix, moment = layer
    ours = compensated(matrix, moment, 0.5)
    gone = ours == 0
    masked, least = np.where(gone, 0, matrix), exact(matrix, moment, gone)
    assert np.array_equal(least == 0, gone)
    assert error(matrix, least, moment) < error(matrix, ours, moment) < error(matrix, masked, moment)


def test_exact_is_the_least_squares_of_the_inputs():
    rng = np.random.default_rng(1)
    x, matrix = rng.standard_normal((60, 10)), rng.standard_normal((4, 10))
    gone = removed_weights(np.abs(matrix), 0.4)
    # Damping is 10 more inputs of one feature each, whose size follows from the mean diagonal.
    more = np.vstack([x, np.eye(10) * np.sqrt(0.01 * np.trace(x.T @ x) / 10)])
    found = exact(matrix, x.T @ x, gone)
    for row, stays in enumerate(~gone):
        expected = np.linalg.lstsq(more[:, stays], more @ matrix[row], rcond=None)[0]
        np.testing.assert_allclose(found[row, stays], expected, rtol=1e-9)


@pytest.mark.parametrize(("block", "target"), [(24, 0.5), (24, 0.29), (10, 0.5), (7, 0.9)])
def test_every_block_has_its_share_of_exact_zeros(layer, block, target):
    changed = compensated(*layer, target, block=block)
    for start in range(0, 24, block):
        part, end = changed[:, start : start + block], min(start + block, 24)
        assert np.count_nonzero(part == 0) == 12 * (int(target * end) - int(target * start))
    assert np.count_nonzero(changed == 0) == np.count_nonzero(
        removed_weights(np.abs(changed), target)
    )  # Wanda's number


def test_updates_of_later_blocks_are_those_of_one_block(layer):
    """The same mask, in blocks of 24 or of 5 columns: only the mask depends on the block."""
    matrix, moment = layer
    gone = removed_weights(np.abs(matrix).T, 0.5)  # (24, 12)
    masks = {24: [gone], 5: [gone[start : start + 5] for start in range(0, 24, 5)]}
    found = []
    for block, parts in masks.items():
        left = iter(parts)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sparsegpt, "smallest", lambda values, count, left=left: next(left).ravel())
            found.append(compensated(matrix, moment, 0.5, block=block))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-10, atol=1e-12)


def test_with_h_the_identity_it_is_magnitude_pruning_of_the_matrix(layer):
    matrix, _ = layer
    changed = compensated(matrix, np.eye(24), 0.5, block=24)
    gone = removed_weights(np.abs(matrix).reshape(1, -1), 0.5).reshape(matrix.shape)
    assert np.array_equal(changed, np.where(gone, 0, matrix))
    assert not np.array_equal(gone, removed_weights(np.abs(matrix), 0.5))  # which is not magnitude per row


@pytest.mark.parametrize("pattern", [(2, 4), (4, 8), (1, 3)])
def test_a_pattern_keeps_n_of_each_m(layer, pattern):
    kept, group = pattern
    changed = compensated(*layer, 1 - kept / group, pattern)
    assert (np.count_nonzero(changed.reshape(12, -1, group), axis=2) == kept).all()


def test_a_group_chooses_when_its_first_column_is_reached(layer):
    """The first group by the dense weights, a later one by the weights as they are by then."""
    matrix, moment = layer
    H = damped(moment, 24)
    values = matrix**2 * obs(H, spread(H, np.arange(24)))
    at_first = removed_weights(values, 0.5, (2, 4))
    gone = compensated(matrix, moment, 0.5, (2, 4)) == 0
    assert np.array_equal(gone[:, :4], at_first[:, :4]) and not np.array_equal(gone, at_first)


def test_a_pattern_that_does_not_divide_the_inputs_is_refused(layer):
    with pytest.raises(MinillmError, match="24 inputs, expected a multiple of 7 for 3:7"):
        compensated(*layer, 4 / 7, (3, 7))


def test_isc_is_the_square_of_wandas_score_times_1_to_2(layer):
    matrix, moment = layer
    H = damped(moment, 24)
    U = spread(H, np.arange(24))
    inverse = np.linalg.inv(H)
    np.testing.assert_allclose(U.T @ U, inverse, rtol=1e-9, atol=1e-9 * inverse.max())
    np.testing.assert_allclose(isc(H, U), np.diag(H) + 1 / np.diag(inverse), rtol=1e-9)
    ratio = matrix**2 * isc(H, U) / scores(matrix, np.sqrt(np.diag(H))) ** 2
    assert 1 <= ratio.min() and ratio.max() <= 2


def test_inputs_that_never_occur_lose_their_weights_first_and_no_text_is_magnitude(layer):
    matrix, moment = layer
    dead = moment.copy()
    dead[3], dead[:, 3] = 0, 0
    changed = compensated(np.sign(matrix), dead, 1 / 24)
    assert not changed[:, 3].any() and np.isfinite(changed).all()
    nothing = compensated(matrix, np.zeros((24, 24)), 0.5)
    assert np.array_equal(nothing, compensated(matrix, np.eye(24), 0.5))


# ---- a whole model ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["sparsegpt", "sparsegpt-all", "isc", "wanda-exact"])
def test_the_zeros_are_counted_and_everything_else_is_the_same_array(name, tmp_path):
    model = tiny.loaded(tmp_path / "m", "float32")
    before = [{key: np.copy(getattr(layer, key)) for key in MATRIX_SETS["all"]} for layer in model.layers]
    made = fit(name, model, TEXT, 0.5)
    changes = MATRIX_SETS["all" if name.endswith("all") else "ffn"]
    for old, copies, new in zip(model.layers, before, made.model.layers, strict=True):
        for key, value in vars(new).items():
            assert (value is getattr(old, key)) == (key not in changes), key
        for key in changes:
            value, dense = getattr(new, key), copies[key]
            assert np.count_nonzero(value == 0) == value.size // 2 and value.dtype == dense.dtype
            assert not np.array_equal(value[value != 0], dense[value != 0])  # they make up for the others
            assert np.array_equal(getattr(old, key), dense)  # the original is untouched
    assert made.spec.achieved == 0.5 and made.calibrated_on


@pytest.mark.parametrize("name", ["sparsegpt", "isc-all"])
def test_target_0_changes_no_logit(name, tmp_path):
    model = tiny.loaded(tmp_path / "m", "float32")
    made = fit(name, model, TEXT, 0.0)
    ids = model.tokenizer.encode("The cat sat.")
    assert np.array_equal(made.model.forward(ids), model.forward(ids)) and made.spec.achieved == 0


def test_other_saliencies_targets_and_matrices_are_refused(tmp_path):
    model = tiny.loaded(tmp_path / "m")
    with pytest.raises(MinillmError, match="saliency is 'OBD', expected one of OBS, ISC"):
        sparsegpt.fit(model, TEXT, 0.5, saliency="OBD")
    with pytest.raises(MinillmError, match=r"target is 0\.3, expected 0\.5"):
        fit("sparsegpt-2:4", model, TEXT, 0.3)
    with pytest.raises(MinillmError, match="matrices is 'attention'"):
        sparsegpt.fit_exact(model, TEXT, 0.5, matrices="attention")
    with pytest.raises(MinillmError, match="the text is empty"):
        fit("sparsegpt", model, "", 0.5)


def test_it_runs_with_policy_mid_on_top(tmp_path):
    model = tiny.loaded(tmp_path / "m", "float32", hidden_size=16, intermediate_size=64)
    made, weights = fit("sparsegpt+mid", model, TEXT, 0.6), fit("sparsegpt", model, TEXT, 0.3125)
    assert np.array_equal(made.model.layers[1].up, weights.model.layers[1].up)
    assert np.isfinite(minillm.perplexity(made.model, ["The end."], ffn=made.ffn).perplexity)
