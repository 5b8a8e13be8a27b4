"""The sparse FFN in its plain form: compute everything, then set to zero what the policy cuts.

    g, a, u, m as in the dense FFN        mask = (g or a kept) and (u or m kept)
    y = (m where mask, else 0) W_down^T   y = y where kept, else 0     (dhar)

Nothing is saved here, which is the point: every value that a cut removes can still be looked at, the formula stands
alone, and the result is exact. gathered.py computes the same from the kept neurons alone. With thresholds of zero
every neuron is kept and the result equals the dense FFN bit for bit, because it is the same computation.
"""

import numpy as np

from ..trace import Tap, no_tap
from ..transformer.model import Layer
from ..transformer.ops import linear
from .policies import AFTER_GATE, AFTER_UP, Policy


def both(masks: list[np.ndarray | None]) -> np.ndarray | None:
    """The conjunction of the masks that there are; None when nothing is cut."""
    found = [mask for mask in masks if mask is not None]
    return np.logical_and.reduce(found) if found else None


def masked_swiglu(
    x: np.ndarray, layer: Layer, position: int = 0, tap: Tap = no_tap, *, policy: Policy, thresholds: dict[str, float]
) -> np.ndarray:
    """SwiGLU with the neurons that the policy cuts set to zero (equations above; policies.py for the rules).

    x (T, D), thresholds {tensor: number} of this layer  ->  y (T, D). Taps the values before the cut.
    """
    gate_pre = tap("gate_pre", linear(x, layer.gate_proj, layer.gate_bias))  # (T, F)
    gate = tap("gate", layer.act(gate_pre))  # (T, F)
    up = tap("up", linear(x, layer.up_proj, layer.up_bias))  # (T, F)
    mid = tap("mid", gate * up)  # (T, F)

    values = {"gate_pre": gate_pre, "gate": gate, "up": up, "mid": mid}
    mask_gate = both([policy.kept(t, values[t], thresholds) for t in AFTER_GATE])
    mask_up = both([policy.kept(t, values[t], thresholds) for t in AFTER_UP])
    mask_gate = mask_gate if mask_gate is None else tap("mask_gate", mask_gate)  # (T, F)
    mask_up = mask_up if mask_up is None else tap("mask_up", mask_up)  # (T, F)
    mask = both([mask_gate, mask_up])
    mask = tap("mask", np.ones(mid.shape, bool) if mask is None else mask)  # (T, F)

    mid_cut = tap("mid_cut", np.where(mask, mid, 0))  # (T, F)
    out = tap("out", linear(mid_cut, layer.down_proj, layer.down_bias))  # (T, D)
    mask_out = policy.kept("out", out, thresholds)
    return out if mask_out is None else np.where(tap("mask_out", mask_out), out, 0)
