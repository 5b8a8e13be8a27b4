"""Which activations a method cuts: the tensor it looks at and how it compares.

With x the normed input of the FFN, g = x W_gate^T, a = act(g), u = x W_up^T, m = a * u, y = m W_down^T, and one
threshold t per layer and tensor:

    dhar   keep neuron j where |g_j| >= t_g and |u_j| >= t_u; then keep output coordinate i where |y_i| >= t_y
           Dhar et al. 2024 (arXiv 2412.12178, eq. 3-7 and the released ThresholdLlamaMLP). The gate is compared
           BEFORE its activation. "50 %" means half of each of the three tensors: far more than half of the neurons.
           Cutting y saves no neuron.
    cats   keep neuron j where |a_j| > t        Lee et al. 2024 (CATS, arXiv 2404.08763): after the activation
    mid    keep neuron j where |m_j| > t        the neuron's own coefficient; needs gate and up in full

What a policy must compute before it knows its mask is what it must read. The tensors come in the order g, a, u, m, y,
so a policy that looks only at g or a can leave the other neurons' rows of W_up unread, and so on.
"""

from dataclasses import dataclass

import numpy as np

from ..errors import MinillmError

AFTER_GATE = ("gate_pre", "gate")  # known once the gate is computed
AFTER_UP = ("up", "mid")  # known once up is computed too
TENSORS = (*AFTER_GATE, *AFTER_UP, "out")  # in the order of computation, under the step names


@dataclass(frozen=True)
class Policy:
    """A rule: the tensors it cuts, and whether a value equal to the threshold stays (">=") or goes (">")."""

    name: str
    tensors: tuple[str, ...]
    comparison: str
    source: str

    def kept(self, tensor: str, values: np.ndarray, thresholds: dict[str, float]) -> np.ndarray | None:
        """True where a value stays; None when this policy (or this thresholds file) does not cut that tensor.

        values (...)  ->  bool (...).
        """
        if tensor not in self.tensors or tensor not in thresholds:
            return None
        magnitude, threshold = np.abs(values), thresholds[tensor]
        # Put as "not below", so that a NaN stays and shows up in the result.
        return ~(magnitude < threshold) if self.comparison == ">=" else ~(magnitude <= threshold)


POLICIES = {
    policy.name: policy
    for policy in (
        Policy("dhar", ("gate_pre", "up", "out"), ">=", "arXiv 2412.12178, eq. 3-7"),
        Policy("cats", ("gate",), ">", "arXiv 2404.08763"),
        Policy("mid", ("mid",), ">", "the coefficient of each neuron"),
    )
}


def policy_named(name: str) -> Policy:
    """The policy of that name. Raises MinillmError listing the ones there are."""
    if name not in POLICIES:
        raise MinillmError(f"policy {name!r} is unknown, expected one of {', '.join(POLICIES)}")
    return POLICIES[name]
