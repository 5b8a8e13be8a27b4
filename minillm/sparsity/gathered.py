"""The sparse FFN that does less: for each token, only the rows and columns that its mask needs are touched.

    g = W_gate x, a = act(g)                 all rows: nothing is known yet
    J = {j : g_j and a_j kept}               u_J = W_up[J] x          |J| rows of up
    J' = {j in J : u_j and m_j kept}         y = W_down[:, J'] m_J'   |J'| columns of down

A policy that looks at up alone (countdown) begins with up, and reads the gate's rows for J. One that cuts inputs
(teal, wina) reads the columns of W_gate and W_up whose input is kept.

It reads exactly what ``read_exact`` counts, and equals the masked form up to the order in which the same products are
added. Each token has its own J, so there are loops over tokens: this is the form for decoding, one token at a time.
"""

import numpy as np

from ..trace import Tap, no_tap
from ..transformer.layer import Layer
from ..transformer.ops import linear
from .masked import both, first_reads, where_any
from .policies import AFTER_BOTH, AFTER_GATE, AFTER_UP, OF_GATE_INPUT, OF_UP_INPUT, Norms, Policy
from .spec import tap_reads


def at_rows(array: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    """The entries of a bias that the kept neurons need; None stays None."""
    return None if array is None else array[rows]


def rows_of(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, rows: np.ndarray | None, columns: np.ndarray | None
) -> np.ndarray:
    """The products of each token with the rows and from the columns that are True; 0 where a row is not.

    x (T, D), weight (F, D), rows (T, F) or None for all, columns (T, D) or None for all  ->  (T, F).
    """
    out = np.zeros((len(x), len(weight)), x.dtype)
    if columns is not None:
        for t in range(len(x)):
            kept = np.flatnonzero(columns[t])
            out[t] = linear(x[t, kept], weight[:, kept], bias)
        return out
    if rows is None:
        return linear(x, weight, bias)
    for t in range(len(x)):
        kept = np.flatnonzero(rows[t])
        out[t, kept] = linear(x[t], weight[kept], at_rows(bias, kept))
    return out


def columns_of(mid: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, mask: np.ndarray) -> np.ndarray:
    """The output from the columns of W_down that are kept.  mid, mask (T, F), weight (D, F)  ->  (T, D)."""
    out = np.empty((len(mid), len(weight)), mid.dtype)
    for t in range(len(mid)):
        kept = np.flatnonzero(mask[t])  # (|J'|,)
        out[t] = linear(mid[t, kept], weight[:, kept], bias)
    return out


def gathered_swiglu(
    x: np.ndarray, layer: Layer, position: int = 0, tap: Tap = no_tap, *,
    policy: Policy, thresholds: dict[str, float], norms: Norms | None = None,
) -> np.ndarray:  # fmt: skip
    """SwiGLU from what its mask needs alone (equations above).

    x (T, D), thresholds {tensor: number} of this layer  ->  y (T, D). Taps what is computed in full, the masks,
    mid_cut and out. An edit of the mask can cut more, not less: what was not read is 0 in mid_cut.
    """
    norms, tap_mask = policy.norms(layer) if norms is None else norms, where_any(tap)

    def keep(tensors: tuple[str, ...], *values: np.ndarray) -> np.ndarray | None:
        return both([policy.kept(t, v, thresholds, norms) for t, v in zip(tensors, values, strict=True)])

    mask_in_gate = tap_mask("mask_in_gate", keep(OF_GATE_INPUT, x, x))  # (T, D)
    mask_in_up = tap_mask("mask_in_up", keep(OF_UP_INPUT, x))  # (T, D)

    def gate_rows(rows: np.ndarray | None) -> np.ndarray:
        return rows_of(x, layer.gate_proj, layer.gate_bias, rows, mask_in_gate)

    def up_rows(rows: np.ndarray | None) -> np.ndarray:
        return rows_of(x, layer.up_proj, layer.up_bias, rows, mask_in_up)

    cut = [t for t in policy.tensors if t in thresholds]
    if "up" in cut and not set(cut) & set(AFTER_GATE):  # up first
        up = tap("up", up_rows(None))  # (T, F)
        mask = mask_up = tap_mask("mask_up", keep(AFTER_UP, up))  # (T, F)
        mask_gate = None
        gate = layer.act(gate_rows(mask))  # (T, F), right where the mask is True
    else:
        gate_pre = tap("gate_pre", gate_rows(None))  # (T, F)
        gate = tap("gate", layer.act(gate_pre))  # (T, F)
        mask = mask_gate = tap_mask("mask_gate", keep(AFTER_GATE, gate_pre, gate))  # (T, F)
        mask_up = None
        up = up_rows(mask)  # (T, F), right where the mask is True
        mask = both([mask, keep(AFTER_UP, up)])  # not shown: up is known only where the gate was kept
    mid = gate * up  # (T, F)
    mask = both([mask, keep(AFTER_BOTH, mid, mid)])
    mask = tap("mask", np.ones(mid.shape, bool) if mask is None else mask)  # (T, F)
    tap_reads(tap, *first_reads(mask_in_gate, mask_in_up, mask_gate, mask_up), mask)
    mid_cut = tap("mid_cut", np.where(mask, mid, 0))  # (T, F)

    out = tap("out", columns_of(mid_cut, layer.down_proj, layer.down_bias, mask))  # (T, D)
    mask_out = tap_mask("mask_out", keep(("out",), out))  # (T, D)
    return out if mask_out is None else np.where(mask_out, out, 0)
