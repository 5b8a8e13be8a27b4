"""Sparsing Law: how the share of active neurons changes while a model is trained, and the two curves that describe it.

Luo et al. 2024 (Sparsing Law, arXiv 2411.02335, section 4) train one model and measure, at some of its checkpoints, the
activation ratio A: the share of (token, neuron) pairs that are kept at one fixed CETT (policy cett). With D the
training tokens so far, they fit

    logspace power law, for ReLU     A(D) = exp(-c D^alpha + b) + A0     falls to the limit A0: ever sparser
    vanilla power law, for SiLU      A(D) = A0 - c / D^alpha             rises to the limit A0: ever denser

with alpha > 0 and c > 0. The fit is least squares by Levenberg-Marquardt (Marquardt 1963, "An algorithm for
least-squares estimation of nonlinear parameters"). With p the k parameters, r (n,) the residuals A(D; p) - A measured,
and J (n, k) their derivatives, one step d solves

    (J^T J + lambda diag(J^T J)) d = -J^T r

    lambda near 0   the step of Gauss-Newton: fast where the curve is nearly linear in p
    lambda large    a short step down the gradient, in each parameter's own scale: safe everywhere

alpha and c must stay above 0. So what is searched is their logarithm: d changes alpha to alpha exp(d / alpha), which is
alpha + d for a small d, and never 0.

A step that makes sum r^2 smaller is taken, and lambda becomes ten times smaller. Any other step is not taken, and
lambda becomes ten times larger. The search stops where r is at right angles to every column of J (then no small step
helps), where a step no longer changes the digits of p, or after STEPS trials.

**A good fit is not yet a finding.** Several p can give the same curve to within the noise, most of all for small alpha,
where D^alpha = 1 + alpha ln D + ... lets alpha, b and c replace each other. So each fit says how wide its parameters
are, and where the data do not identify them it shows the curve and its error instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..arguments import real_number
from ..errors import MinillmError
from ..tables import keys_as_headings, text_table

BILLION = 1e9  # tokens: the paper's unit of D
STEPS = 1000  # trials of one search, at most
RIGHT_ANGLE = 1e-10  # the largest cosine of an angle between r and a column of J that counts as a right one
SAME_DIGITS = 1e-14  # a relative change of every parameter that counts as none
SINGULAR = 1e12  # condition number from which on the columns of J count as dependent
KNOWN = 0.5  # alpha and c count as identified where their widths are below this share of them
LEAST = 1e-12  # what stands for 0 where a start needs a number above 0
ALPHAS = (0.05, 0.1, 0.3, 0.6, 1.0, 2.0)  # where the searches begin
COLUMNS = keys_as_headings({"tokens": ",", "kept": ".4f", "fitted": ".4f"})

# ---- the two curves --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Law:
    """A curve A(D; p). names: of the parameters, in the order of p (k,). D (n,) are tokens in any unit.

    values: D, p -> A (n,). jacobian: D, p -> dA/dp (n, k). starts: D, A measured -> parameters to begin with.
    """

    name: str
    equation: str
    names: tuple[str, ...]
    values: Callable[[np.ndarray, np.ndarray], np.ndarray]
    jacobian: Callable[[np.ndarray, np.ndarray], np.ndarray]
    starts: Callable[[np.ndarray, np.ndarray], Iterator[np.ndarray]]

    @property
    def above_0(self) -> np.ndarray:
        """Which parameters are above 0: alpha and c.  (k,) bool."""
        return np.isin(self.names, ("alpha", "c"))

    def allows(self, p: np.ndarray) -> bool:
        """Whether alpha and c are above 0."""
        return bool((p[self.above_0] > 0).all())


def _logspace(d: np.ndarray, p: np.ndarray) -> np.ndarray:
    alpha, c, b, a0 = p
    return np.exp(b - c * d**alpha) + a0


def _logspace_jacobian(d: np.ndarray, p: np.ndarray) -> np.ndarray:
    """With E = exp(-c D^alpha + b):  dA = -c D^alpha ln D E dalpha - D^alpha E dc + E db + dA0."""
    alpha, c, b, _ = p
    power, e = d**alpha, np.exp(b - c * d**alpha)
    return np.stack([-c * power * np.log(d) * e, -power * e, e, np.ones_like(d)], axis=1)


def _logspace_starts(d: np.ndarray, a: np.ndarray) -> Iterator[np.ndarray]:
    """For a given alpha and A0, a little below the smallest value, ln(A - A0) = b - c D^alpha is a straight line."""
    a0 = a.min() - 0.1 * np.ptp(a)
    for alpha in ALPHAS:
        slope, b = _falling_line(d**alpha, np.log(np.maximum(a - a0, LEAST)))
        yield np.array([alpha, -slope, b, a0])


def _vanilla(d: np.ndarray, p: np.ndarray) -> np.ndarray:
    alpha, c, a0 = p
    return a0 - c / d**alpha


def _vanilla_jacobian(d: np.ndarray, p: np.ndarray) -> np.ndarray:
    """dA = c ln D / D^alpha dalpha - 1 / D^alpha dc + dA0."""
    alpha, c, _ = p
    inverse = d**-alpha
    return np.stack([c * np.log(d) * inverse, -inverse, np.ones_like(d)], axis=1)


def _vanilla_starts(d: np.ndarray, a: np.ndarray) -> Iterator[np.ndarray]:
    """For a given alpha, A = A0 - c / D^alpha is a straight line."""
    for alpha in ALPHAS:
        slope, a0 = _falling_line(d**-alpha, a)
        yield np.array([alpha, -slope, a0])


def _falling_line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and intercept of the best straight line through points that falls, if only by a little. x, y (n,)."""
    across = x - x.mean()
    slope = min(float(across @ y / (across @ across)), -LEAST)
    return slope, float(y.mean() - slope * x.mean())


LOGSPACE = Law(
    "logspace power law", "A(D) = exp(-c D^alpha + b) + A0", ("alpha", "c", "b", "A0"),
    _logspace, _logspace_jacobian, _logspace_starts,
)  # fmt: skip
VANILLA = Law(
    "vanilla power law", "A(D) = A0 - c / D^alpha", ("alpha", "c", "A0"), _vanilla, _vanilla_jacobian, _vanilla_starts
)

# ---- Levenberg-Marquardt ---------------------------------------------------------------------------------------------


def damped_step(r: np.ndarray, j: np.ndarray, damping: float) -> np.ndarray:
    """The step d of the module's docstring: residuals r (n,), Jacobian j (n, k), lambda > 0  ->  (k,).

    It is the least-squares solution of two systems on top of each other, J d = -r and sqrt(lambda) |J_i| d_i = 0, which
    loses only half of the digits that J^T J loses. A parameter that changes nothing (a column of zeros) stays.
    """
    lengths = np.linalg.norm(j, axis=0)  # (k,)
    lengths[lengths == 0] = 1
    both = np.concatenate([j / lengths, math.sqrt(damping) * np.eye(len(lengths))])  # (n + k, k)
    return np.linalg.lstsq(both, np.concatenate([-r, np.zeros(len(lengths))]), rcond=None)[0] / lengths


class Found(NamedTuple):
    """The end of a search. p (k,) parameters; rss: sum r^2; converged: r is at right angles to J, or p stands still."""

    p: np.ndarray
    rss: float
    converged: bool


def levenberg_marquardt(law: Law, d: np.ndarray, a: np.ndarray, start: np.ndarray) -> Found:
    """The parameters near ``start`` with the least sum of squares. d, a (n,); start (k,).

    A step to values that are no numbers counts as one that makes the sum larger. A start without numbers comes back as
    it is, with an infinite sum.
    """
    p, damping = start, 1e-3
    r, j, rss = _at(law, d, a, p)
    if rss == math.inf:
        return Found(p, rss, False)
    for _ in range(STEPS):
        if _is_flat(r, j):
            return Found(p, rss, True)
        step = damped_step(r, j, damping)
        tried = _moved(law, p, step)
        new_r, new_j, new_rss = _at(law, d, a, tried)
        if new_rss < rss:
            p, r, j, rss, damping = tried, new_r, new_j, new_rss, max(damping / 10, 1e-12)
        elif (np.abs(step) <= SAME_DIGITS * (np.abs(p) + SAME_DIGITS)).all():
            return Found(p, rss, True)
        else:
            damping *= 10
    return Found(p, rss, False)


def _moved(law: Law, p: np.ndarray, step: np.ndarray) -> np.ndarray:
    """p + step, but alpha and c as p exp(step / p): p, step (k,)  ->  (k,)."""
    with np.errstate(all="ignore"):  # of the branch that is not taken, and of steps that lead to no numbers
        return np.where(law.above_0, p * np.exp(np.where(law.above_0, step / p, 0)), p + step)


def _at(law: Law, d: np.ndarray, a: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Residuals (n,), Jacobian (n, k) and sum of squares at p; the sum is infinite where p is not allowed."""
    with np.errstate(all="ignore"):
        r, j = law.values(d, p) - a, law.jacobian(d, p)
        good = law.allows(p) and np.isfinite(r).all() and np.isfinite(j).all()
        return r, j, float(r @ r) if good else math.inf


def _is_flat(r: np.ndarray, j: np.ndarray) -> bool:
    """Whether r is zero, or at right angles to every column of J: then sum r^2 has no slope."""
    lengths = np.linalg.norm(j, axis=0) * np.linalg.norm(r)
    return bool((np.abs(j.T @ r) <= RIGHT_ANGLE * lengths).all())


# ---- fits, and what they are worth -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Fit:
    """A law fitted to measured points. parameters {name: value} for D in ``unit`` tokens.

    widths {name: +-}: two standard errors, from s^2 (J^T J)^-1 with s^2 = sum r^2 / (n - k), the curve taken as
    straight near the result; infinite where J is singular. condition: the largest over the smallest singular value of
    J, its columns scaled to length 1. rmse = sqrt(sum r^2 / n).
    """

    law: Law
    unit: float
    tokens: np.ndarray  # (n,)
    kept: np.ndarray  # (n,) activation ratios
    parameters: dict[str, float]
    widths: dict[str, float]
    condition: float
    rmse: float
    converged: bool

    @property
    def identified(self) -> bool:
        """Whether the data say what the parameters are: above all alpha and c, to within half of their values."""
        return self.converged and self.condition < SINGULAR and not self._too_wide()

    def _too_wide(self) -> list[str]:
        return [name for name in ("alpha", "c") if not self.widths[name] < KNOWN * self.parameters[name]]

    def curve(self, tokens: Sequence[float] | np.ndarray) -> np.ndarray:
        """The activation ratio that the law gives at these tokens.  (n,) -> (n,)."""
        return self.law.values(np.asarray(tokens, np.float64) / self.unit, np.array([*self.parameters.values()]))

    def rows(self) -> list[dict[str, float]]:
        """The points: tokens, the activation ratio that was measured (kept), and the law's (fitted)."""
        points = zip(self.tokens.tolist(), self.kept.tolist(), self.curve(self.tokens).tolist(), strict=True)
        return [{"tokens": tokens, "kept": kept, "fitted": fitted} for tokens, kept, fitted in points]

    def statement(self) -> str:
        """The parameters with their widths; or, in one sentence, that the data do not identify them."""
        if self.identified:
            pairs = (f"{name} = {value:.4g} +- {self.widths[name]:.2g}" for name, value in self.parameters.items())
            return f"{', '.join(pairs)} (D in {self.unit:g} tokens)"
        if self.condition >= SINGULAR:
            why = "the Jacobian is singular, so other parameters give the same curve"
        elif not self.converged:
            why = f"the search did not end in {STEPS} steps"
        else:
            why = " and ".join(f"{n} = {self.parameters[n]:.2g} +- {self.widths[n]:.2g}" for n in self._too_wide())
        return f"the data do not identify the parameters: {why} (condition number {self.condition:.1e})"

    def __str__(self) -> str:
        heading = f"{self.law.name}: {self.law.equation}, rmse {self.rmse:.2e}"
        return f"{heading}\n{self.statement()}\n\n{text_table(self.rows(), COLUMNS)}"


def fit(
    law: Law, tokens: Sequence[float] | np.ndarray, kept: Sequence[float] | np.ndarray, unit: float = BILLION,
    start: Sequence[float] | None = None,
) -> Fit:  # fmt: skip
    """Fit one of the two laws to activation ratios: LOGSPACE for ReLU and its like, VANILLA for SiLU and its like.

    tokens, kept (n,): n larger than the number k of parameters. unit: tokens that D counts as 1. start (k,): where the
    search begins; None: at several alphas, and the best result counts. Raises MinillmError for points that cannot be
    fitted.
    """
    unit = real_number("unit", unit, lambda value: 0 < value < math.inf, "a number of tokens above 0")
    x, a = _points(law, tokens, kept)
    d = x / unit
    found = min((levenberg_marquardt(law, d, a, p) for p in _starts(law, d, a, start)), key=lambda found: found.rss)
    if found.rss == math.inf:
        raise MinillmError(f"the {law.name} has no numbers at its start, expected a unit among the tokens ({unit:g})")
    j = law.jacobian(d, found.p)
    widths, condition = _widths(j, found.rss)
    p, wide = (dict(zip(law.names, array.tolist(), strict=True)) for array in (found.p, widths))
    return Fit(law, unit, x, a, p, wide, condition, math.sqrt(found.rss / len(a)), found.converged)


def _points(
    law: Law, tokens: Sequence[float] | np.ndarray, kept: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and ratios as arrays (n,) of float64; MinillmError for what is no number or out of range."""
    x = np.array([real_number(f"tokens[{i}]", v, lambda v: 0 < v < math.inf, "above 0") for i, v in enumerate(tokens)])
    a = np.array([real_number(f"kept[{i}]", v, lambda v: 0 <= v <= 1, "from 0 to 1") for i, v in enumerate(kept)])
    if len(x) != len(a):
        raise MinillmError(f"tokens has {len(x)} values and kept {len(a)}, expected as many")
    if (different := len(np.unique(x))) <= len(law.names):
        expected = f"expected more than the {len(law.names)} parameters of the {law.name}"
        raise MinillmError(f"tokens has {different} different values, {expected}")
    return x, a


def _starts(law: Law, d: np.ndarray, a: np.ndarray, start: Sequence[float] | None) -> list[np.ndarray]:
    if start is None:
        with np.errstate(all="ignore"):  # a start without numbers is left out by the search
            return list(law.starts(d, a))
    p = np.array([real_number(f"start[{i}]", v, math.isfinite, "a number") for i, v in enumerate(start)])
    if len(p) != len(law.names) or not law.allows(p):
        expected = f"expected {', '.join(law.names)} with alpha and c above 0"
        raise MinillmError(f"start is {p.tolist()}, {expected}")
    return [p]


def _widths(j: np.ndarray, rss: float) -> tuple[np.ndarray, float]:
    """Two standard errors of each parameter (k,), and the condition number (``Fit``)."""
    n, k = j.shape
    lengths = np.linalg.norm(j, axis=0)
    if not lengths.all():
        return np.full(k, math.inf), math.inf
    _, singular, vt = np.linalg.svd(j / lengths, full_matrices=False)
    condition = float(singular[0] / max(singular[-1], np.finfo(np.float64).tiny))
    if condition >= SINGULAR:
        return np.full(k, math.inf), condition
    spread = np.sqrt(((vt / singular[:, None]) ** 2).sum(axis=0)) / lengths
    return 2 * math.sqrt(rss / (n - k)) * spread, condition
