"""Which activations a policy cuts: the tensor that it looks at, and the comparison.

With x the normed input of the FFN, g = x W_gate^T, a = act(g), u = x W_up^T, m = a * u, y = m W_down^T, and one
threshold t per layer and tensor, neuron j (or input i) stays where:

    dhar       |g_j| >= t_g and |u_j| >= t_u; then output coordinate i where |y_i| >= t_y
               Dhar et al. 2024 (arXiv 2412.12178, eq. 3-7 and the released ThresholdLlamaMLP). The gate is compared
               BEFORE its activation. "50 %" means half of each of the three tensors: far more than half of the
               neurons. Cutting y saves no neuron.
    cats       |a_j| > t                    Lee et al. 2024 (CATS, arXiv 2404.08763): after the activation
    countdown  |u_j| > t                    M-CountDown (arXiv 2505.17701): the other branch, which needs no activation
    mid        |m_j| > t                    the neuron's own coefficient; needs gate and up in full
    cett       |m_j| ||W_down[:, j]|| >= t  Luo et al. 2025 (Sparsing Law, arXiv 2411.02335, section 3): the length of
                                            what the neuron adds to y
    teal       inputs: |x_i| > t for the gate, |x_i| > t for up, |m_j| > t for down
               Liu et al. 2024 (TEAL, arXiv 2408.14690): whole columns of the three matrices
    wina       |x_i| ||W_gate[:, i]|| > t for the gate, |x_i| > t for up, |m_j| > t for down
               Chen et al. 2025 (WINA, arXiv 2505.19427). Differs from WINA: the FFN alone, attention is left dense.
               The norms are those of the gate's columns alone, as in its released code.
    topk       the k largest |m_j| of each token, k a fixed share of F
    topp       the largest |m_j| of each token that together reach a fixed share of its sum_j |m_j|
               both: Szatkowski et al. 2025 (arXiv 2509.00454)
    statistical  g_j > mean(g) + std(g) Phi^-1(p), with Phi^-1 the inverse of the normal distribution: where the g of a
               token are normally distributed, a share p of them is cut. No sort, no calibration text
               Statistical top-k, You et al. 2025 (Spark Transformer, arXiv 2506.06644), and the gate of Gemma 3n.
               The gate is compared with its sign, BEFORE its activation. Differs from both: models that are trained
               with this rule go on with g_j - cutoff; here a g_j that stays is not changed.
    griffin    the neurons that were largest over the prompt (Dong et al. 2024, arXiv 2404.01365): griffin.py

What a policy must compute before it knows its mask is what it must read. A policy that looks only at g or a can leave
the other neurons' rows of W_up unread, one that looks only at u those of W_gate, and so on.

The thresholds of topk, topp and statistical are shares: of the neurons that are cut, of the sum that is cut, and the p
above. So a threshold of 0 cuts nothing under any policy, and a larger threshold cuts more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from ..errors import MinillmError
from ..transformer.layer import Layer

OF_GATE_INPUT = ("in_gate", "in_gate_norm")  # known from x alone
OF_UP_INPUT = ("in_up", "in_up_norm")
AFTER_GATE = ("gate_pre", "gate")  # known once the gate is computed
AFTER_UP = ("up",)  # known once up is computed
AFTER_BOTH = ("mid", "neuron_norm")


class Tensor(NamedTuple):
    """What a threshold is compared with: the magnitude of a step, times a norm per column where ``norms`` is given."""

    step: str
    norms: Callable[[Layer], np.ndarray] | None = None


TENSORS = {  # in the order of computation
    "in_gate": Tensor("norm"),
    "in_gate_norm": Tensor("norm", lambda layer: np.linalg.norm(layer.gate_proj, axis=0)),  # (D,)
    "in_up": Tensor("norm"),
    "in_up_norm": Tensor("norm", lambda layer: np.linalg.norm(layer.up, axis=0)),  # (D,)
    "gate_pre": Tensor("gate_pre"),
    "gate": Tensor("gate"),
    "up": Tensor("up"),
    "mid": Tensor("mid"),
    "neuron_norm": Tensor("mid", lambda layer: np.linalg.norm(layer.down_proj, axis=0)),  # (F,)
    "out": Tensor("out"),
}
Norms = dict[str, np.ndarray]


def magnitude(tensor: str, values: np.ndarray, norms: Norms) -> np.ndarray:
    """|values|, times the column's norm where ``tensor`` has one: what is compared with its threshold."""
    size = np.abs(values)
    return size * norms[tensor] if TENSORS[tensor].norms else size


def column_norms(layer: Layer, tensors: Sequence[str]) -> Norms:
    """{tensor: (D,) or (F,)}: the column norms of this layer, for the tensors that have one."""
    return {t: norms(layer) for t in tensors if (norms := TENSORS[t].norms) is not None}


@dataclass(frozen=True)
class Policy:
    """A rule: the tensors that it cuts, and the comparison.

    comparison: ">=" (a value equal to the threshold stays), ">" (it is cut), "top-k", "top-p" and "statistical" (per
    token), "prompt" (griffin).
    """

    name: str
    tensors: tuple[str, ...]
    comparison: str
    source: str

    @property
    def of_shares(self) -> bool:
        """Whether its thresholds are shares, from 0 to 1, which no calibration text is needed for."""
        return self.comparison in ("top-k", "top-p", "statistical", "prompt")

    def check_gated(self, gated: bool) -> None:
        """Raise MinillmError where this policy cuts up or its input, and the model's FFNs have no gate (up is 1)."""
        of_up = [tensor for tensor in self.tensors if tensor in ("up", "in_up")]
        if of_up and not gated:
            raise MinillmError(
                f"policy {self.name} cuts {of_up[0]}, and the model's FFNs have no gate (up is 1 there), "
                "expected a policy that does not look at up (cats, mid, cett, griffin, topk, topp, statistical)"
            )

    def norms(self, layer: Layer) -> Norms:
        """{tensor: (D,) or (F,)}: the column norms of this layer that the rule needs; {} for most rules."""
        return column_norms(layer, self.tensors)

    def kept(
        self, tensor: str, values: np.ndarray, thresholds: dict[str, float], norms: Norms | None = None
    ) -> np.ndarray | None:
        """True where a value stays; None when this policy (or this thresholds file) does not cut that tensor.

        values (..., n)  ->  bool (..., n). norms: what ``norms(layer)`` gives; needed for a tensor that has one.
        """
        if tensor not in self.tensors or tensor not in thresholds:
            return None
        threshold = thresholds[tensor]
        if self.comparison == "statistical":
            return above_cutoff(values, threshold)
        size = magnitude(tensor, values, norms or {})
        if self.comparison == "top-k":
            return largest(size, size.shape[-1] - round(min(threshold, 1) * size.shape[-1]))
        if self.comparison == "top-p":
            return reaching(size, 1 - threshold)
        # Written as "not below", so that a NaN is kept and shows up in the result.
        return ~(size < threshold) if self.comparison == ">=" else ~(size <= threshold)


class Cut(NamedTuple):
    """A policy at work in one layer: the layer's thresholds and the column norms that the policy needs."""

    policy: Policy
    thresholds: dict[str, float]
    norms: Norms

    def keep(self, tensors: Sequence[str], *values: np.ndarray) -> np.ndarray | None:
        """True where the values of all these tensors stay; None where none of the tensors is cut."""
        pairs = zip(tensors, values, strict=True)
        return all_of(*(self.policy.kept(t, v, self.thresholds, self.norms) for t, v in pairs))


def all_of(*masks: np.ndarray | None) -> np.ndarray | None:
    """True where every mask is True. A mask of None cuts nothing; None when all of them are None."""
    cuts = [mask for mask in masks if mask is not None]
    return np.logical_and.reduce(cuts) if cuts else None


def where_kept(mask: np.ndarray | None, values: np.ndarray) -> np.ndarray:
    """The values where the mask is True, 0 elsewhere: mask, values (T, n)  ->  (T, n). None: nothing is cut.

    A product with ones and zeros: np.where decides at each entry, which takes ten times as long where the mask has no
    pattern. An infinity that is cut gives NaN, and the pass reports it.
    """
    return values if mask is None else values * mask.astype(values.dtype)


def largest(size: np.ndarray, count: int) -> np.ndarray:
    """True at the ``count`` largest entries of each row; of equal entries, the first.  (..., n) -> bool (..., n)."""
    size = np.where(np.isnan(size), np.inf, size)  # a NaN is kept, so that it shows up in the result
    left_out = size.shape[-1] - count
    if left_out <= 0 or count <= 0:
        return np.full(size.shape, left_out <= 0)
    least = np.partition(size, left_out, axis=-1)[..., left_out, None]  # of those kept
    mask = size >= least
    if np.count_nonzero(mask) > count * (size.size // size.shape[-1]):  # several are equal to it
        above, equal = size > least, size == least
        room = count - np.count_nonzero(above, axis=-1, keepdims=True)
        mask = above | (equal & (np.cumsum(equal, axis=-1) <= room))
    return mask


def reaching(size: np.ndarray, share: float) -> np.ndarray:
    """True at the fewest largest entries of each row whose sum reaches ``share`` of the row's sum; ties are kept.

    (..., n) -> bool (..., n). Sums are in float64, so that many small entries are not lost.
    """
    if share >= 1:
        return np.ones(size.shape, bool)  # a rounded sum may reach 1 too early
    if share <= 0:
        return np.zeros(size.shape, bool)
    falling = -np.sort(-size, axis=-1)
    total = np.cumsum(falling, axis=-1, dtype=np.float64)
    last = np.argmax(total >= share * total[..., -1:], axis=-1)[..., None]  # the entry that reaches it
    return ~(size < np.take_along_axis(falling, last, axis=-1))


def above_cutoff(values: np.ndarray, share: float) -> np.ndarray:
    """True at the entries of each row above mean + std * Phi^-1(share), all three of the row (module docstring).

    (..., n) -> bool (..., n).
    """
    if not 0 < share < 1:
        return np.full(values.shape, share <= 0)
    mean, std = values.mean(axis=-1, keepdims=True), values.std(axis=-1, keepdims=True)
    return ~(values <= mean + std * NormalDist().inv_cdf(share))  # a NaN is kept, so that it shows up in the result


POLICIES = {
    policy.name: policy
    for policy in (
        Policy("dhar", ("gate_pre", "up", "out"), ">=", "arXiv 2412.12178, eq. 3-7"),
        Policy("cats", ("gate",), ">", "arXiv 2404.08763"),
        Policy("mid", ("mid",), ">", "the coefficient of each neuron"),
        Policy("cett", ("neuron_norm",), ">=", "arXiv 2411.02335, section 3"),
        Policy("teal", ("in_gate", "in_up", "mid"), ">", "arXiv 2408.14690"),
        Policy("wina", ("in_gate_norm", "in_up", "mid"), ">", "arXiv 2505.19427"),
        Policy("countdown", ("up",), ">", "arXiv 2505.17701, M-CountDown"),
        Policy("griffin", ("mid",), "prompt", "arXiv 2404.01365"),
        Policy("topk", ("mid",), "top-k", "arXiv 2509.00454"),
        Policy("topp", ("mid",), "top-p", "arXiv 2509.00454"),
        Policy("statistical", ("gate_pre",), "statistical", "arXiv 2506.06644"),
    )
}


def policy_named(name: str) -> Policy:
    """The policy of that name. Raises MinillmError with the list of all names."""
    if name not in POLICIES:
        raise MinillmError(f"policy {name!r} is unknown, expected one of {', '.join(POLICIES)}")
    return POLICIES[name]
