"""The fits find parameters that were planted, and say where they cannot."""

import numpy as np
import pytest

from minillm.errors import MinillmError
from minillm.study import laws
from minillm.study.laws import LOGSPACE, VANILLA, damped_step, fit, levenberg_marquardt

TOKENS = np.geomspace(1e9, 1e12, 30)
PLANTED = [  # the first of each law: the paper's for its model of 0.1 billion weights
    (LOGSPACE, [0.101, 3.20, -0.0151, 0.0614]),
    (LOGSPACE, [0.4, 1.0, -0.5, 0.1]),
    (LOGSPACE, [1.0, 0.05, -0.5, 0.01]),
    (VANILLA, [0.479, 0.102, 0.409]),
    (VANILLA, [0.2, 0.1, 0.5]),
]


def points(law, p, tokens=TOKENS, noise=0.0):
    values = law.values(tokens / 1e9, np.array(p))
    return values + noise * np.random.default_rng(3).standard_normal(len(values))


def found(made) -> list[float]:
    return [made.parameters[name] for name in made.law.names]


# ---- the search ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("law", "p"), PLANTED)
def test_planted_parameters_are_found(law, p):
    made = fit(law, TOKENS, points(law, p))
    assert found(made) == pytest.approx(p, abs=1e-4)
    assert made.rmse < 1e-9 and made.converged and made.identified


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("law", "p"), PLANTED)
def test_planted_parameters_are_found_from_several_starts(law, p, seed):
    start = np.array(p) * np.exp(np.random.default_rng(seed).normal(0, 0.4, len(p)))
    assert found(fit(law, TOKENS, points(law, p), start=start)) == pytest.approx(p, abs=1e-4)


@pytest.mark.parametrize(("law", "p"), PLANTED)
def test_with_a_little_noise_the_planted_parameters_lie_within_twice_the_widths(law, p):
    made = fit(law, TOKENS, points(law, p, noise=1e-5))
    off = np.abs(np.array(found(made)) - p)
    assert (off < 2 * np.array([*made.widths.values()])).all()
    assert made.rmse == pytest.approx(1e-5, rel=0.4) and made.identified


@pytest.mark.parametrize("unit", [1e6, 1e9, 3e11])
def test_the_unit_of_the_tokens_changes_c_alone(unit):
    p = PLANTED[3][1]
    made = fit(VANILLA, TOKENS, points(VANILLA, p), unit)
    assert found(made) == pytest.approx([p[0], p[1] * (1e9 / unit) ** p[0], p[2]], rel=1e-6)
    assert made.curve([2e9]) == pytest.approx(VANILLA.values(np.array([2.0]), np.array(p)))


@pytest.mark.parametrize(("law", "p"), PLANTED)
def test_the_jacobians_are_the_differences_of_the_values(law, p):
    d, p = np.geomspace(0.1, 50, 7), np.array(p)
    for i, column in enumerate(law.jacobian(d, p).T):
        h = 1e-6 * np.eye(len(p))[i]
        assert column == pytest.approx((law.values(d, p + h) - law.values(d, p - h)) / 2e-6, rel=1e-6, abs=1e-9)


def test_a_step_worked_by_hand():
    """J^T J = diag(1, 4), J^T r = (-1, -8), lambda = 1: (1 + 1) d1 = 1 and (4 + 4) d2 = 8."""
    r, j = np.array([-1.0, -4.0]), np.diag([1.0, 2.0])
    assert damped_step(r, j, 1.0) == pytest.approx([0.5, 1.0])
    assert damped_step(r, j, 1e-14) == pytest.approx([1.0, 2.0])  # Gauss-Newton
    assert damped_step(r, j * [1, 0], 1.0) == pytest.approx([0.5, 0.0])  # what changes nothing stays


def test_a_step_solves_the_damped_equations():
    rng = np.random.default_rng(0)
    r, j = rng.standard_normal(6), rng.standard_normal((6, 3))
    square = j.T @ j
    expected = np.linalg.solve(square + 0.3 * np.diag(np.diag(square)), -j.T @ r)
    assert damped_step(r, j, 0.3) == pytest.approx(expected)


def test_a_search_never_ends_above_its_start_nor_at_values_that_the_law_forbids():
    rng = np.random.default_rng(1)
    for law, p in PLANTED:
        a, start = rng.random(8), np.array(p)
        d = np.geomspace(1, 100, 8)
        ended = levenberg_marquardt(law, d, a, start)
        assert ended.rss <= ((law.values(d, start) - a) ** 2).sum()
        assert law.allows(ended.p)


# ---- what a fit is worth ---------------------------------------------------------------------------------------------


def test_widths_are_those_of_the_spread_over_many_draws_of_the_noise():
    d, p, rng = np.geomspace(1, 1000, 30), np.array(PLANTED[3][1]), np.random.default_rng(5)
    draws = [fit(VANILLA, d * 1e9, VANILLA.values(d, p) + 1e-4 * rng.standard_normal(30)) for _ in range(40)]
    spread = 2 * np.std([found(made) for made in draws], axis=0)
    assert np.mean([[*made.widths.values()] for made in draws], axis=0) == pytest.approx(spread, rel=0.35)


def test_where_the_noise_hides_the_parameters_the_curve_is_shown_instead():
    """One decade of tokens, a small alpha and a noise of 0.003: other parameters give a curve as good."""
    tokens = np.geomspace(1e9, 1e10, 8)
    made = fit(LOGSPACE, tokens, points(LOGSPACE, PLANTED[0][1], tokens, noise=3e-3))
    text = str(made)
    assert not made.identified and made.rmse < 4e-3
    assert "do not identify" in made.statement() and "A0 =" not in text and f"rmse {made.rmse:.2e}" in text
    assert [row["kept"] for row in made.rows()] == pytest.approx(made.kept)
    assert [row["fitted"] for row in made.rows()] == pytest.approx(made.curve(tokens))


def test_a_singular_jacobian_is_named_in_one_sentence():
    widths, condition = laws._widths(np.array([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]]), rss=0.1)
    assert condition > laws.SINGULAR and np.isinf(widths).all()
    assert np.isinf(laws._widths(np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]), rss=0.1)[1])
    # c D^alpha is so large that the exponential is 0 everywhere: A0 alone changes the curve.
    made = fit(LOGSPACE, TOKENS, points(LOGSPACE, PLANTED[0][1]), start=[2.0, 1e5, 0.0, 0.1])
    assert not made.identified and made.statement().startswith("the data do not identify")
    assert "Jacobian is singular" in made.statement() and "\n" not in made.statement()


@pytest.mark.parametrize("law", [LOGSPACE, VANILLA])
@pytest.mark.parametrize(
    "kept", [np.full(8, 0.4), np.linspace(0.4, 0.9, 8), np.linspace(0.9, 0.4, 8) ** 3, np.eye(8)[3]]
)
def test_any_points_are_fitted_without_an_exception(law, kept):
    made = fit(law, np.geomspace(6e4, 6e5, 8), kept)
    assert made.rmse <= np.std(kept) + 1e-6 and str(made)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (([1, 2, 3], [0.5] * 4), "tokens has 3 values and kept 4"),
        (([1, 2, 3, 3, 2], [0.5] * 5), "tokens has 3 different values, expected more than the 3"),
        (([1, 2, 0, 4], [0.5] * 4), r"tokens\[2\] is 0, expected above 0"),
        (([1, 2, 3, 4], [0.5, 0.5, 1.5, 0.5]), r"kept\[2\] is 1.5, expected from 0 to 1"),
        (([1, 2, 3, 4], [0.5, float("nan"), 0.5, 0.5]), r"kept\[1\] is nan"),
        (([1, 2, 3, 4], [0.5, "a", 0.5, 0.5]), r"kept\[1\] is 'a'"),
        (([1, 2, 3, 4], [0.5, 0.6, 0.7, 0.75], 0), "unit is 0, expected"),
        (([1, 2, 3, 4], [0.5, 0.6, 0.7, 0.75], 1e9, [1.0, 2.0]), "start is .1.0, 2.0., expected alpha, c, A0"),
        (([1, 2, 3, 4], [0.5, 0.6, 0.7, 0.75], 1e9, [-1.0, 2.0, 0.5]), "alpha and c above 0"),
        (([1, 2, 3, 4], [0.5, 0.6, 0.7, 0.75], 1e9, [90.0, 2.0, 0.5]), "no numbers at its start"),
    ],
)
def test_bad_points_are_refused_in_one_sentence(arguments, what):
    with pytest.raises(MinillmError, match=what):
        fit(VANILLA, *arguments)
