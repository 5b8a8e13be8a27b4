"""The sparse FFN in its plain form: compute everything, then set to zero what the policy cuts.

    x_g, x_u = x where kept, else 0       (teal, wina: the inputs of gate and up; all other policies: x_g = x_u = x)
    g = x_g W_gate^T    a = act(g)    u = x_u W_up^T    m = a * u
    mask = (g or a kept) and (u kept) and (m kept)
    y = (m where mask, else 0) W_down^T   y = y where kept, else 0     (dhar)

This form saves no work. It is the formula alone, and every value that a cut removes can still be looked at. gathered.py
computes the same from the kept neurons only. With thresholds of zero every neuron that is not zero anyway is kept, and
the result equals the dense FFN bit for bit, because it is the same computation.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..trace import Tap, no_tap
from ..transformer.layer import Layer
from ..transformer.linear import linear
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


def tap_cuts(tap: Tap) -> Callable[[str, np.ndarray | None], np.ndarray | None]:
    """The same tap for masks that may be None: None (nothing is cut) comes back without a call of the tap."""
    return lambda name, mask: None if mask is None else tap(name, mask)


class Decision(NamedTuple):
    """What a policy decided: mid and mask (T, F), and the masks by which gate and up are read (None: in full)."""

    mid: np.ndarray
    mask: np.ndarray
    gate_reads: np.ndarray | None
    up_reads: np.ndarray | None


def decide(x: np.ndarray, layer: Layer, tap: Tap, cut: Cut) -> Decision:
    """The neurons that a policy keeps, from the layer's gate and up in full (equations above, without the last line).

    x (T, D)  ->  Decision. Taps every value and the masks of single tensors. The caller taps ``mask`` itself.
    """
    cut.policy.check_gated(layer.up_proj is not None)
    tap_mask = tap_cuts(tap)
    mask_in_gate = tap_mask("mask_in_gate", cut.keep(OF_GATE_INPUT, x, x))  # (T, D)
    mask_in_up = tap_mask("mask_in_up", cut.keep(OF_UP_INPUT, x, x))  # (T, D)
    x_gate = where_kept(mask_in_gate, x)  # (T, D)
    x_up = where_kept(mask_in_up, x)  # (T, D)

    gate_pre = tap("gate_pre", linear(x_gate, layer.gate_proj, layer.gate_bias))  # (T, F)
    gate = tap("gate", layer.act(gate_pre))  # (T, F)
    up = None if layer.up_proj is None else tap("up", linear(x_up, layer.up_proj, layer.up_bias))  # (T, F)
    mid = tap("mid", gate if up is None else gate * up)  # (T, F)

    mask_gate = tap_mask("mask_gate", cut.keep(AFTER_GATE, gate_pre, gate))  # (T, F)
    mask_up = None if up is None else tap_mask("mask_up", cut.keep(AFTER_UP, up))  # (T, F)
    mask = all_of(mask_gate, mask_up, cut.keep(AFTER_BOTH, mid, mid))
    mask = np.ones(mid.shape, bool) if mask is None else mask  # (T, F)
    return Decision(mid, mask, *first_reads(mask_in_gate, mask_in_up, mask_gate, mask_up))


def first_reads(
    mask_in_gate: np.ndarray | None, mask_in_up: np.ndarray | None, mask_gate: np.ndarray | None,
    mask_up: np.ndarray | None,
) -> tuple[np.ndarray | None, np.ndarray | None]:  # fmt: skip
    """The masks by which a policy reads gate and up (None: in full).

    A policy that cuts inputs reads columns. Otherwise the matrix that is computed first is read in full, and its mask
    selects the rows of the other.
    """
    if mask_in_gate is not None or mask_in_up is not None:
        return mask_in_gate, mask_in_up
    return (None if mask_gate is not None else mask_up), mask_gate


def masked_swiglu(
    x: np.ndarray, layer: Layer, position: int = 0, tap: Tap = no_tap, *,
    policy: Policy, thresholds: dict[str, float], norms: Norms | None = None,
) -> np.ndarray:  # fmt: skip
    """SwiGLU with the neurons that the policy cuts set to zero (equations above; policies.py for the rules).

    x (T, D), thresholds {tensor: number} of this layer  ->  y (T, D). Taps the values before the cut. norms: what
    ``policy.norms(layer)`` gives, if already computed.
    """
    cut, tap_mask = Cut(policy, thresholds, policy.norms(layer) if norms is None else norms), tap_cuts(tap)
    mid, mask, gate_reads, up_reads = decide(x, layer, tap, cut)
    mask = tap("mask", mask)  # (T, F)
    tap_reads(tap, gate_reads, up_reads, mask, layer.up_proj is not None)
    mid_cut = tap("mid_cut", where_kept(mask, mid))  # (T, F)

    out = tap("out", linear(mid_cut, layer.down_proj, layer.down_bias))  # (T, D)
    mask_out = tap_mask("mask_out", cut.keep(("out",), out))  # (T, D)
    return where_kept(mask_out, out)
