"""The sparse FFN that does less: for each token, only the rows and columns of the kept neurons are touched.

    g = W_gate x, a = act(g)                 all rows: nothing is known yet
    J = {j : g_j and a_j kept}               u_J = W_up[J] x          |J| rows of up
    J' = {j in J : u_j and m_j kept}         y = W_down[:, J'] m_J'   |J'| columns of down

It reads exactly what ``read_exact`` counts, and equals the masked form up to the order in which the same products are
added. Each token has its own J, so there are loops over tokens: this is the form for decoding, one token at a time.
"""

import numpy as np

from ..trace import Tap, no_tap
from ..transformer.model import Layer
from ..transformer.ops import linear
from .masked import both
from .policies import AFTER_GATE, AFTER_UP, Policy


def gathered_swiglu(
    x: np.ndarray, layer: Layer, position: int = 0, tap: Tap = no_tap, *, policy: Policy, thresholds: dict[str, float]
) -> np.ndarray:
    """SwiGLU from the kept neurons alone (equations above).

    x (T, D), thresholds {tensor: number} of this layer  ->  y (T, D). Taps gate_pre, gate, the masks, mid_cut and
    out. An edit of the mask can cut more, not less: what was not read is 0 in mid_cut.
    """
    gate_pre = tap("gate_pre", linear(x, layer.gate_proj, layer.gate_bias))  # (T, F)
    gate = tap("gate", layer.act(gate_pre))  # (T, F)
    mask_gate = both([policy.kept(t, v, thresholds) for t, v in zip(AFTER_GATE, (gate_pre, gate), strict=True)])
    if mask_gate is not None:
        mask_gate = tap("mask_gate", mask_gate)  # (T, F)
    cuts_up = any(t in policy.tensors and t in thresholds for t in AFTER_UP)
    mask = np.ones(gate.shape, bool) if mask_gate is None else mask_gate.copy()  # (T, F)

    mid = np.zeros_like(gate)  # (T, F), filled in where something was computed
    for t in range(len(x)):
        kept = np.flatnonzero(mask[t])  # (|J|,)
        up_bias = None if layer.up_bias is None else layer.up_bias[kept]
        up = linear(x[t], layer.up_proj[kept], up_bias)  # (|J|,)
        mid[t, kept] = gate[t, kept] * up
        if cuts_up:
            values = (up, mid[t, kept])
            mask[t, kept] = both([policy.kept(name, v, thresholds) for name, v in zip(AFTER_UP, values, strict=True)])
    mask = tap("mask", mask)  # there is no mask_up to show: up was computed only where the gate was kept
    mid_cut = tap("mid_cut", np.where(mask, mid, 0))  # (T, F)

    out = np.empty_like(x)  # (T, D)
    for t in range(len(x)):
        kept = np.flatnonzero(mask[t])  # (|J'|,)
        out[t] = linear(mid_cut[t, kept], layer.down_proj[:, kept], layer.down_bias)  # (D,)
    out = tap("out", out)  # (T, D)
    mask_out = policy.kept("out", out, thresholds)
    return out if mask_out is None else np.where(tap("mask_out", mask_out), out, 0)
