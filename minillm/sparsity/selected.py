"""The FFN of a Selector: the Selector says which neurons are wanted, and SwiGLU is computed from these.

    J = select(x, layer)                                  a mask (T, F), known before the layer is computed
    y = W_down[:, J] (act(W_gate[J] x) * (W_up[J] x))

The wanted neurons are computed exactly and none of them is cut again, so there is only one kind of error: a neuron
that mattered and was not wanted. There are two forms of the same sum. ``masked`` computes every neuron and then sets
those that are not wanted to zero, so that all values can be looked at. ``gathered`` reads only the rows and columns of
the wanted ones.

Where ``truth`` is given, the masked form also taps mask_true, the mask of the neurons' own values: |mid| > t at
thresholds of policy mid. A predictor is compared with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import MinillmError, ThresholdsError
from ..identity import Fingerprint
from ..trace import Tap, no_tap
from ..transformer.ffn import Selector, mid_of
from ..transformer.layer import Layer
from ..transformer.linear import linear
from .gathered import columns_of, rows_of
from .policies import policy_named, where_kept
from .spec import tap_reads
from .thresholds import Thresholds

FORMS = ("masked", "gathered")
NOTHING_READ: frozenset[str] = frozenset()


def check_form(form: str) -> None:
    """Raise MinillmError for an unknown form."""
    if form not in FORMS:
        raise MinillmError(f"form is {form!r}, expected one of {', '.join(FORMS)}")


def check_truth(thresholds: Thresholds) -> None:
    """Raise ThresholdsError unless the thresholds are of policy mid."""
    if thresholds.policy != "mid":
        raise ThresholdsError(
            f"the thresholds are of policy {thresholds.policy}, expected mid: it defines a predictor's truth"
        )


def mid_mask(mid: np.ndarray, thresholds: Thresholds, index: int) -> np.ndarray:
    """The mask of policy mid, |mid| > t, at one layer's threshold.  mid (T, F)  ->  bool (T, F)."""
    mask = policy_named("mid").kept("mid", mid, thresholds.layers[index])
    assert mask is not None  # policy mid cuts mid, and its thresholds files hold nothing else
    return mask


def tap_selected_reads(tap: Tap, select: Selector, mask: np.ndarray, gated: bool = True) -> None:
    """Tap what the FFN of a Selector reads: the wanted rows and columns, and what the Selector reads in full."""
    gate, up = (None if matrix in select.reads else mask for matrix in ("gate", "up"))
    tap_reads(tap, gate, up, mask, gated)


@dataclass(frozen=True, eq=False)
class SelectedFFN:
    """A FeedForward that computes the neurons that a Selector wants (equations in the module's docstring).

    form: "masked" or "gathered". truth: thresholds of policy mid, for mask_true (masked form only). guess: a second
    Selector, whose mask is tapped as mask_guess and changes nothing: what a prefetcher would load. means: per layer
    (F,), the value that replaces the mid of a neuron that is left out (masked form only); None: zero. model: the one
    that it was made for, where that is known.
    """

    select: Selector
    form: str = "masked"
    truth: Thresholds | None = None
    guess: Selector | None = None
    means: Sequence[np.ndarray] | None = None
    model: Fingerprint | None = None

    def __post_init__(self) -> None:
        check_form(self.form)
        if self.truth is not None:
            check_truth(self.truth)
        if self.form == "gathered" and self.means is not None:
            raise MinillmError(
                "form is 'gathered' with means, expected masked: with means every neuron contributes to the sum"
            )

    @property
    def calibrated_on(self) -> frozenset[str]:
        """Hashes of the documents behind the selection and the truth; scoring any of them gives a warning."""
        known = frozenset(self.truth.documents_sha256) if self.truth else frozenset()
        return known | self.select.calibrated_on

    def __call__(self, x: np.ndarray, layer: Layer, position: int = 0, tap: Tap = no_tap) -> np.ndarray:
        """x (T, D)  ->  y (T, D). Taps mask, reads, mid_cut and out; the masked form also gate_pre, gate, up, mid."""
        selected = self.select(x, layer, position, tap)  # (T, F)
        if self.guess is not None:
            guess = selected if self.guess is self.select else self.guess(x, layer, position, tap)
            tap("mask_guess", guess)  # (T, F)
        if self.form == "gathered":
            return self._gathered(x, layer, selected, tap)
        mid = mid_of(x, layer, tap)  # (T, F)
        if self.truth is not None and tap is not no_tap:
            tap("mask_true", mid_mask(mid, self.truth, layer.index))  # (T, F)
        mask = tap("mask", selected)  # (T, F)
        tap_selected_reads(tap, self.select, mask, layer.up_proj is not None)
        mid_cut = where_kept(mask, mid)  # (T, F)
        if self.means is not None:
            mid_cut += where_kept(~mask, self.means[layer.index])
        mid_cut = tap("mid_cut", mid_cut)  # (T, F)
        return tap("out", linear(mid_cut, layer.down_proj, layer.down_bias))  # (T, D)

    def _gathered(self, x: np.ndarray, layer: Layer, selected: np.ndarray, tap: Tap) -> np.ndarray:
        mask = tap("mask", selected)  # (T, F)
        tap_selected_reads(tap, self.select, mask, layer.up_proj is not None)
        mid = layer.act(rows_of(x, layer.gate_proj, layer.gate_bias, mask))  # (T, F), right where selected
        if layer.up_proj is not None:
            mid *= rows_of(x, layer.up_proj, layer.up_bias, mask)  # (T, F)
        mid_cut = tap("mid_cut", where_kept(mask, mid))  # (T, F)
        return tap("out", columns_of(mid_cut, layer.down_proj, layer.down_bias, mask))  # (T, D)


# ---- two Selectors that do not look at x -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Recorded:
    """A Selector that repeats recorded masks (L, T, F) bool, for the positions 0 .. T - 1 of the same text."""

    masks: np.ndarray
    name: str = "recorded"
    calibrated_on: frozenset[str] = frozenset()
    reads: frozenset[str] = NOTHING_READ

    def __call__(self, x: np.ndarray, layer: Layer, position: int = 0, tap: Tap = no_tap) -> np.ndarray:
        """x (T, D), of which only T matters  ->  mask (T, F). Raises MinillmError past the end of the recording."""
        end, recorded = position + len(x), self.masks.shape[1]
        if end > recorded:
            raise MinillmError(f"the text has position {end - 1}, the recorded masks end at position {recorded - 1}")
        return self.masks[layer.index, position:end]


@dataclass(frozen=True, eq=False)
class StaticSet:
    """A Selector that always wants the same neurons: sets (L, F) bool."""

    sets: np.ndarray
    name: str = "static set"
    calibrated_on: frozenset[str] = frozenset()
    reads: frozenset[str] = NOTHING_READ

    def __call__(self, x: np.ndarray, layer: Layer, position: int = 0, tap: Tap = no_tap) -> np.ndarray:
        """x (T, D), of which only T matters  ->  mask (T, F)."""
        return np.tile(self.sets[layer.index], (len(x), 1))
