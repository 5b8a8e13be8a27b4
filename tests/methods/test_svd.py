"""Low rank: errors against the tail energy and other factors, bytes by hand, and figures on a published model."""

import numpy as np
import pytest
import tiny

import minillm
from minillm.errors import MinillmError
from minillm.methods import svd
from minillm.methods.base import INPUTS, MATRIX_SETS, fit
from minillm.methods.svd import rank_of
from minillm.predictors.quantise import factors, with_unit_mean
from minillm.transformer.documents import split_documents

TEXT = [f"{story} And {i} more." for i in range(2) for story in tiny.STORIES]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.loaded(tmp_path_factory.mktemp("svd") / "m")


# ---- one matrix ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("whitened", [False, True])
@pytest.mark.parametrize("rank", [1, 4, 9])
def test_the_error_is_the_tail_energy_and_no_other_factors_have_a_smaller_one(whitened, rank):
    rng = np.random.default_rng(rank)
    matrix, x = rng.standard_normal((14, 10)), rng.standard_normal((40, 10)) * np.linspace(0.1, 3, 10)
    moment = x.T @ x if whitened else None
    h = with_unit_mean(moment) + 1e-6 * np.eye(10) if whitened else np.eye(10)

    def error(product):
        return np.trace((matrix - product) @ h @ (matrix - product).T)

    a, b = factors(matrix, rank, moment)
    assert a.shape == (14, rank) and b.shape == (rank, 10)
    tail = np.sum(np.linalg.svd(matrix @ np.linalg.cholesky(h), compute_uv=False)[rank:] ** 2)
    assert error(a @ b) == pytest.approx(tail, rel=1e-10)
    for _ in range(20):
        other = rng.standard_normal((14, rank))
        best = other @ np.linalg.lstsq(other, matrix, rcond=None)[0]  # the best partner of a random factor
        assert error(best) > error(a @ b)


def test_inputs_that_never_occur_leave_a_matrix_that_is_a_number():
    x = np.zeros((5, 4))
    x[:, 0] = 1.0
    a, b = factors(np.arange(12.0).reshape(3, 4), 1, x.T @ x)
    assert np.isfinite(a @ b).all()
    np.testing.assert_allclose((a @ b)[:, 0], [0, 4, 8], atol=1e-2)  # what does occur is kept


def test_the_rank_is_the_floor_of_the_share_and_none_at_all_is_refused():
    assert rank_of((384, 128), 0.75) == 72 and rank_of((172, 64), 0.5) == 23 and rank_of((10, 10), 0.2) == 1
    with pytest.raises(MinillmError, match=r"8 x 12 has no rank left at 0\.1 of its weights"):
        rank_of((8, 12), 0.1)


# ---- a whole model ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["svd", "svd-all", "svd-whitened", "svd-whitened-all"])
def test_the_matrices_have_their_rank_and_the_bytes_are_those_of_the_factors(model, name):
    made = fit(name, model, TEXT, 0.4)
    changed = MATRIX_SETS["all" if name.endswith("all") else "ffn"]
    read = dense = 0
    for matrix in INPUTS:
        for before, after in zip(model.layers, made.model.layers, strict=True):
            weights = getattr(before, matrix)
            if matrix in changed:
                rank = rank_of(weights.shape, 0.6)
                assert np.linalg.matrix_rank(getattr(after, matrix), tol=1e-5) == rank
                read, dense = read + 2 * rank * sum(weights.shape), dense + 2 * weights.size
            else:
                assert getattr(after, matrix) is weights
        assert made.reads[matrix].dense == 2 * 2 * weights.size  # two layers, two bytes
    assert sum(made.reads[matrix].exact for matrix in changed) == read
    assert made.spec.achieved == pytest.approx(1 - read / dense) and made.spec.achieved >= 0.4
    whole = 2 * sum(model.parameters.values())
    assert made.stored == {"dense": whole, "factors": whole - dense + read}
    assert bool(made.calibrated_on) == ("whitened" in name)


@pytest.mark.parametrize("name", ["svd", "svd-whitened"])
def test_target_0_changes_no_logit(model, name):
    made = fit(name, model, TEXT, 0.0)
    ids = model.tokenizer.encode("The cat sat.")
    assert np.array_equal(made.model.forward(ids), model.forward(ids))
    assert made.spec.achieved == 0 and made.stored["factors"] == made.stored["dense"]


def test_a_target_without_a_rank_is_refused_before_a_text_is_read(model):
    with pytest.raises(MinillmError, match=r"no rank left at 0\.1"):
        svd.fit(model, ["no tokens are needed"], 0.9)


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "target", "expected"),
    [
        ("svd-whitened", 0.25, 33.2), ("svd-whitened", 0.5, 70), ("svd-whitened", 0.75, 229),
        ("svd", 0.25, 33.8), ("svd", 0.5, 80), ("svd", 0.75, 351),
    ],
)  # fmt: skip
def test_perplexities_are_those_of_an_independent_implementation(shared, name, target, expected):
    model = minillm.load(shared / "models" / "tinystories-656k")
    train, test = (
        split_documents((shared / "text" / f"tinystories-{part}.txt").read_text(encoding="utf-8"))
        for part in ("train", "valid")
    )
    made = fit(name, model, train[:100], target, 512)
    assert minillm.perplexity(made.model, test, context=512).perplexity == pytest.approx(expected, rel=0.005)
