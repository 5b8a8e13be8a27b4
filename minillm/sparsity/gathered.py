"""The sparse FFN that saves work: for each token, only the rows and columns that its mask needs are read.

    g = W_gate x, a = act(g)                 all rows: no mask is known yet
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
from ..transformer.linear import linear
from .masked import first_reads, tap_cuts
from .policies import (
    AFTER_BOTH,
    AFTER_GATE,
    AFTER_UP,
    OF_GATE_INPUT,
    OF_UP_INPUT,
    Cut,
    Norms,
    Policy,
    all_of,
    where_kept,
)
from .spec import tap_reads


def at_rows(array: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    """The entries of a bias at these rows; None where there is no bias."""
    return None if array is None else array[rows]


def rows_of(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, rows: np.ndarray) -> np.ndarray:
    """The products of each token with the rows that are True, 0 for the others.

    x (T, D), weight (F, D), rows (T, F)  ->  (T, F).
    """
    out = np.zeros((len(x), len(weight)), x.dtype)
    for t in range(len(x)):
        kept = np.flatnonzero(rows[t])  # (|J|,)
        out[t, kept] = linear(x[t], weight[kept], at_rows(bias, kept))
    return out


def columns_of(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, columns: np.ndarray) -> np.ndarray:
    """The products of each token with all rows, from the columns that are True alone.

    x, columns (T, n), weight (m, n)  ->  (T, m). W_down: n = F, m = D. W_gate and W_up: n = D, m = F.
    """
    out = np.empty((len(x), len(weight)), x.dtype)
    for t in range(len(x)):
        kept = np.flatnonzero(columns[t])  # (|J'|,)
        out[t] = linear(x[t, kept], weight[:, kept], bias)
    return out


def needed_of(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, rows: np.ndarray | None, columns: np.ndarray | None
) -> np.ndarray:
    """The products of each token from some columns, or with some rows, or (both None) from the whole matrix.

    x (T, D), weight (F, D), rows (T, F), columns (T, D)  ->  (T, F). No policy selects rows and columns of one matrix.
    """
    if columns is not None:
        return columns_of(x, weight, bias, columns)
    return linear(x, weight, bias) if rows is None else rows_of(x, weight, bias, rows)


def gathered_swiglu(
    x: np.ndarray, layer: Layer, position: int = 0, tap: Tap = no_tap, *,
    policy: Policy, thresholds: dict[str, float], norms: Norms | None = None,
) -> np.ndarray:  # fmt: skip
    """SwiGLU from only what its mask needs (equations above).

    x (T, D), thresholds {tensor: number} of this layer  ->  y (T, D). Taps what is computed in full, the masks,
    mid_cut and out. An edit of the mask can cut more, not less: what was not read is 0 in mid_cut.
    """
    policy.check_gated(layer.up_proj is not None)
    cut, tap_mask = Cut(policy, thresholds, policy.norms(layer) if norms is None else norms), tap_cuts(tap)
    mask_in_gate = tap_mask("mask_in_gate", cut.keep(OF_GATE_INPUT, x, x))  # (T, D)
    mask_in_up = tap_mask("mask_in_up", cut.keep(OF_UP_INPUT, x, x))  # (T, D)

    tensors = {t for t in policy.tensors if t in thresholds}
    if tensors.intersection(AFTER_UP) and not tensors.intersection(AFTER_GATE):  # up first
        up = tap("up", needed_of(x, layer.up, layer.up_bias, None, mask_in_up))  # (T, F)
        mask = mask_up = tap_mask("mask_up", cut.keep(AFTER_UP, up))  # (T, F)
        mask_gate = None
        # From here on, values are right where the mask is True, and their products are 0 elsewhere.
        gate = layer.act(needed_of(x, layer.gate_proj, layer.gate_bias, mask, mask_in_gate))  # (T, F)
    else:
        gate_pre = tap("gate_pre", needed_of(x, layer.gate_proj, layer.gate_bias, None, mask_in_gate))  # (T, F)
        gate = tap("gate", layer.act(gate_pre))  # (T, F)
        mask = mask_gate = tap_mask("mask_gate", cut.keep(AFTER_GATE, gate_pre, gate))  # (T, F)
        mask_up = None
        if layer.up_proj is None:
            up = None
        else:
            up = needed_of(x, layer.up_proj, layer.up_bias, mask, mask_in_up)  # (T, F), right where the mask is True
            mask = all_of(mask, cut.keep(AFTER_UP, up))  # not shown: up is known only where the gate was kept
    mid = gate if up is None else gate * up  # (T, F)
    mask = all_of(mask, cut.keep(AFTER_BOTH, mid, mid))
    mask = tap("mask", np.ones(mid.shape, bool) if mask is None else mask)  # (T, F)
    tap_reads(tap, *first_reads(mask_in_gate, mask_in_up, mask_gate, mask_up), mask, layer.up_proj is not None)
    mid_cut = tap("mid_cut", where_kept(mask, mid))  # (T, F)

    out = tap("out", columns_of(mid_cut, layer.down_proj, layer.down_bias, mask))  # (T, D)
    mask_out = tap_mask("mask_out", cut.keep(("out",), out))  # (T, D)
    return where_kept(mask_out, out)
